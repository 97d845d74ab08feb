package portal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/stripe/stripe-go/v86"
	"golang.org/x/sync/errgroup"
)

// Preflight asks Stripe, before links go out, what would keep their sessions from being made. It only reads, and at a
// pace of its own (STRIPE_READ_RATE), so that no person's click waits in line behind it. Stripe's limit for an account
// is one for both: a 429 that a click gets lowers this pace too, but one that a read gets lowers this pace alone.
type Preflight struct {
	Stripe *Stripe
	Reads  *Budget
}

// PreflightQuestion is about a customer, or, without one, about the configuration that a request's session would have.
type PreflightQuestion struct {
	StripeAccount string `json:"stripe_account,omitzero"`
	Customer      string `json:"customer,omitzero"`      // cus_…
	Configuration string `json:"configuration,omitzero"` // empty = the account's default one
	Flow          string `json:"flow,omitzero"`          // flow_data.type
	ReturnURL     bool   `json:"return_url,omitzero"`    // the request names one
}

// PreflightFinding is why a session would not be made; the zero value says that nothing was found.
type PreflightFinding struct {
	Code    SessionCode `json:"code,omitzero"` // as session.failed would have it
	Problem string      `json:"problem,omitzero"`
}

// ErrNoRead is returned when it did not come to a read: Stripe has no part in that.
var ErrNoRead = errors.New("no read of Stripe could be made in time: other checks have them all (STRIPE_READ_RATE), or the database does not answer; try again in a minute")

// ReadError is returned when Stripe could not be asked. Its text is for everybody: it holds nothing of Stripe's own, and
// no key.
type ReadError struct {
	what  string
	cause *SessionError
}

// Error says what to do.
func (e *ReadError) Error() string {
	why := Remedy(e.cause.Code)
	if e.cause.Status == http.StatusForbidden {
		why = "STRIPE_API_KEY may not read them; give the restricted key this permission (Read)"
	}
	msg := "Stripe could not be asked about " + e.what + ": " + why + " (" + string(e.cause.Code)
	if e.cause.RequestID != "" {
		msg += ", " + e.cause.RequestID
	}
	return msg + ")"
}

// Unwrap gives the cause.
func (e *ReadError) Unwrap() error { return e.cause }

const (
	preflightAtATime = 16 // reads: at Stripe's usual 150 ms they are a hundred a second, its limit
	preflightTries   = 5
)

// Ask returns a finding for each question, in their order; an error where Stripe could not be asked.
func (p *Preflight) Ask(ctx context.Context, questions []PreflightQuestion) ([]PreflightFinding, error) {
	findings := make([]PreflightFinding, len(questions))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(preflightAtATime)
	for i, q := range questions {
		group.Go(func() (err error) {
			if q.Customer != "" {
				findings[i], err = p.customer(ctx, q)
			} else {
				findings[i], err = p.configuration(ctx, q)
			}
			return err
		})
	}
	return findings, group.Wait()
}

func (p *Preflight) customer(ctx context.Context, q PreflightQuestion) (PreflightFinding, error) {
	params := &stripe.CustomerRetrieveParams{Params: p.params(q)}
	customer, err := read(ctx, p, func(ctx context.Context) (*stripe.Customer, error) {
		return p.Stripe.client.V1Customers.Retrieve(ctx, q.Customer, params)
	})
	switch {
	case isOtherMode(err):
		return PreflightFinding{CodeCustomerGone, "exists in Stripe's other mode only; STRIPE_API_KEY decides between test and live"}, nil
	case isMissing(err) || err == nil && customer.Deleted:
		return PreflightFinding{CodeCustomerGone, "does not exist in Stripe, or was deleted"}, nil
	case err != nil:
		return accountOrError(err, "customers")
	}
	return PreflightFinding{}, nil
}

func (p *Preflight) configuration(ctx context.Context, q PreflightQuestion) (PreflightFinding, error) {
	configuration, err := read(ctx, p, func(ctx context.Context) (*stripe.BillingPortalConfiguration, error) {
		if q.Configuration != "" {
			return p.Stripe.client.V1BillingPortalConfigurations.Retrieve(ctx, q.Configuration, &stripe.BillingPortalConfigurationRetrieveParams{Params: p.params(q)})
		}
		list := &stripe.BillingPortalConfigurationListParams{IsDefault: stripe.Bool(true)}
		list.Limit, list.StripeAccount = stripe.Int64(1), p.params(q).StripeAccount
		for c, err := range p.Stripe.client.V1BillingPortalConfigurations.List(ctx, list).All(ctx) {
			return c, err
		}
		return nil, nil
	})
	switch {
	case isMissing(err):
		return PreflightFinding{CodeNotConfigured, "portal configuration " + q.Configuration + " does not exist in Stripe"}, nil
	case err != nil:
		return accountOrError(err, "portal configurations")
	case configuration == nil:
		return PreflightFinding{CodeNotConfigured, "there is no default portal configuration; " + Remedy(CodeNotConfigured) + ", or name one in the request"}, nil
	case !configuration.Active:
		return PreflightFinding{CodeNotConfigured, "portal configuration " + configuration.ID + " is not active"}, nil
	case !featureOn(configuration.Features, q.Flow):
		return PreflightFinding{CodeFeatureOff, "the feature of flow " + q.Flow + " is off in portal configuration " + configuration.ID}, nil
	case !q.ReturnURL && p.Stripe.returnURL == "" && configuration.DefaultReturnURL == "":
		return PreflightFinding{CodeInvalidRequest, "there is no return_url: not in the request, not in RETURN_URL, and not in portal configuration " + configuration.ID}, nil
	}
	return PreflightFinding{}, nil
}

// featureOn tells whether a flow's feature is on. A session without a flow shows what there is.
func featureOn(f *stripe.BillingPortalConfigurationFeatures, flow string) bool {
	switch {
	case f == nil:
		return flow == ""
	case flow == "payment_method_update":
		return f.PaymentMethodUpdate != nil && f.PaymentMethodUpdate.Enabled
	case flow == "customer_update":
		return f.CustomerUpdate != nil && f.CustomerUpdate.Enabled
	case flow == "subscription_cancel":
		return f.SubscriptionCancel != nil && f.SubscriptionCancel.Enabled
	case flow == "subscription_update", flow == "subscription_update_confirm":
		return f.SubscriptionUpdate != nil && f.SubscriptionUpdate.Enabled
	}
	return true
}

func (p *Preflight) params(q PreflightQuestion) (params stripe.Params) {
	if q.StripeAccount != "" {
		params.SetStripeAccount(q.StripeAccount)
	}
	if p.Stripe.version != "" {
		params.Headers = http.Header{"Stripe-Version": {p.Stripe.version}}
	}
	return params
}

// readsLine is the line of all reads, in the table of the accounts' lines of people, whatever account they are about:
// who asks may name any.
const readsLine = "reads"

// slot waits until a read may be made.
func (p *Preflight) slot(ctx context.Context) error {
	for {
		err := p.Reads.Retry(ctx, readsLine)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errNoSlot) {
			return fmt.Errorf("%w (%w)", ErrNoRead, err)
		}
		if err := sleep(ctx, retryHold/2); err != nil {
			return fmt.Errorf("%w (%w)", ErrNoRead, err)
		}
	}
}

// read asks with a slot for each try. A 429 lowers the pace of reads for all replicas.
func read[T any](ctx context.Context, p *Preflight, get func(context.Context) (T, error)) (T, error) {
	pace := p.Stripe.pace
	retry := failsafe.With(retrypolicy.NewBuilder[T]().
		HandleIf(func(_ T, err error) bool {
			return err != nil && !errors.Is(err, ErrNoRead) && classify(err).Retryable()
		}).
		WithBackoff(pace.firstPause, pace.mostPause).WithJitterFactor(0.3).WithMaxAttempts(preflightTries).ReturnLastFailure().Build())
	var last error // of Stripe's
	return retry.WithContext(ctx).Get(func() (answer T, err error) {
		if err := p.slot(ctx); err != nil {
			return answer, cmp.Or(last, err)
		}
		defer func() { last = err }()
		ctx, cancel := context.WithTimeout(ctx, pace.try)
		defer cancel()
		if answer, err = get(ctx); isRateLimit(err) {
			err = errors.Join(err, p.Reads.Lower(ctx, readsLine))
		}
		return answer, err
	})
}

// accountOrError tells an account that the key has nothing to do with, which is a finding, from a Stripe that could
// not be asked.
func accountOrError(err error, what string) (PreflightFinding, error) {
	var se *stripe.Error
	if errors.As(err, &se) && se.Code == stripe.ErrorCodeAccountInvalid {
		return PreflightFinding{CodeBadKey, "STRIPE_API_KEY has no access to the connected account"}, nil
	}
	if errors.Is(err, ErrNoRead) {
		return PreflightFinding{}, err
	}
	return PreflightFinding{}, &ReadError{what, classify(err)}
}

func isMissing(err error) bool {
	var se *stripe.Error
	return errors.As(err, &se) && se.HTTPStatusCode == http.StatusNotFound && se.Code == stripe.ErrorCodeResourceMissing
}

func isOtherMode(err error) bool {
	var se *stripe.Error
	return isMissing(err) && errors.As(err, &se) && strings.Contains(se.Msg, "a similar object exists in")
}
