package portal

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stripe/stripe-go/v86"
)

// StripeConfig is what the client of Stripe needs.
type StripeConfig struct {
	Key              string       // sk_… or rk_…
	APIBase          string       // empty = Stripe's own
	APIVersion       string       // empty = the SDK's
	DefaultReturnURL string       // for sessions that name none
	Budget           *Budget      // of retries and 429s; nil = none, for a client that creates no sessions
	Reads            *Budget      // that a click's 429 lowers too; nil = none
	Log              *slog.Logger // nil = none
	Registerer       prometheus.Registerer
}

// stripeDeadline bounds one click's conversation with Stripe.
const stripeDeadline = 10 * time.Second

// stripeTries is how often a click asks Stripe at most.
const stripeTries = 4

// pace is how that time is spent. A try that hangs is given up early enough for another one under
// the same idempotency key.
type pace struct {
	deadline, try         time.Duration
	firstPause, mostPause time.Duration // between tries
	failing               uint          // tries within failingTime of which half must fail before Stripe is spared
	spared                time.Duration // how long nobody asks then; after it, one click tries
}

const failingTime = 20 * time.Second

// Ten tries are three clicks' worth: what fails for one customer alone stops no other's.
var stripePace = pace{deadline: stripeDeadline, try: 4 * time.Second, firstPause: 150 * time.Millisecond, mostPause: 1500 * time.Millisecond,
	failing: 10, spared: 5 * time.Second}

// Stripe creates portal sessions. It is safe for concurrent use.
type Stripe struct {
	returnURL string // for sessions that name none
	version   string // Stripe-Version; empty = the SDK's
	pace      pace
	client    *stripe.Client
	budget    *Budget
	reads     *Budget
	log       *slog.Logger
	retry     failsafe.Executor[*stripe.BillingPortalSession]
	breaker   circuitbreaker.CircuitBreaker[*stripe.BillingPortalSession]
	guarded   failsafe.Executor[*stripe.BillingPortalSession] // one try, behind the breaker
	httpOK    bool                                            // session URLs may be http: Stripe itself is on loopback
	http      *http.Client
	duration  *prometheus.HistogramVec
}

// Session is a portal session that Stripe made. URL is a bearer secret: it goes into one
// response and nowhere else, which is why the type prints without it.
type Session struct {
	ID        string
	RequestID string
	Livemode  bool
	URL       string `json:"-"`
}

// String keeps the URL out of logs.
func (s Session) String() string { return "Session(" + s.ID + ")" }

// GoString is String, for %#v.
func (s Session) GoString() string { return s.String() }

// NewStripe returns a client; it does not call Stripe.
func NewStripe(cfg StripeConfig) *Stripe { return newStripe(cfg, stripePace) }

func newStripe(cfg StripeConfig, pace pace) *Stripe {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	transport.DialContext = (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	s := &Stripe{
		returnURL: cfg.DefaultReturnURL,
		version:   cfg.APIVersion,
		pace:      pace,
		budget:    cfg.Budget,
		reads:     cfg.Reads,
		log:       cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		http:      &http.Client{Transport: sized{transport}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		httpOK:    loopbackURL(cfg.APIBase),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "latchkey_stripe_request_duration_seconds",
			Help:    "Time of one try to create a portal session, by result.",
			Buckets: []float64{.025, .05, .1, .2, .4, .8, 1.6, 3.2, 6.4},
		}, []string{"result"}),
	}
	s.policies()
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.duration, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "latchkey_stripe_spared", Help: "1 while this process does not ask Stripe, because half of its tries failed.",
		}, func() float64 {
			if s.breaker.IsClosed() {
				return 0
			}
			return 1
		}))
	}
	backend := &stripe.BackendConfig{
		HTTPClient:        s.http,
		MaxNetworkRetries: stripe.Int64(0), // its own skip 500, 503 and 409, and sleep without looking at the context
		EnableTelemetry:   stripe.Bool(false),
		LeveledLogger:     &stripe.LeveledLogger{Level: stripe.LevelNull}, // at debug it would print session URLs
	}
	if cfg.APIBase != "" {
		backend.URL = stripe.String(strings.TrimRight(cfg.APIBase, "/"))
	}
	s.client = stripe.NewClient(cfg.Key, stripe.WithBackends(stripe.NewBackendsWithConfig(backend)))
	return s
}

// sized names the length of a request's body. stripe-go leaves it open, and net/http would then send
// the body in chunks, behind a goroutine that waits for its first byte.
type sized struct{ *http.Transport }

// RoundTrip is the Transport's.
func (t sized) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength != 0 {
		return t.Transport.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err = errors.Join(err, r.Body.Close()); err != nil {
		return nil, err
	}
	r = r.WithContext(r.Context()) // a copy: the caller's is not ours to change
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return t.Transport.RoundTrip(r)
}

// policies are how tries follow each other, and when there are none.
func (s *Stripe) policies() {
	s.retry = failsafe.With(retrypolicy.NewBuilder[*stripe.BillingPortalSession]().
		HandleIf(func(_ *stripe.BillingPortalSession, err error) bool { return worthAnotherTry(err) }).
		WithBackoff(s.pace.firstPause, s.pace.mostPause).
		WithJitterFactor(0.3).
		WithMaxAttempts(stripeTries).
		ReturnLastFailure().
		Build())
	s.breaker = circuitbreaker.NewBuilder[*stripe.BillingPortalSession]().
		HandleIf(func(_ *stripe.BillingPortalSession, err error) bool { return err != nil && isAway(classify(err).Code) }).
		WithFailureRateThreshold(0.5, s.pace.failing, failingTime).
		WithSuccessThreshold(1).
		WithDelay(s.pace.spared).
		OnOpen(func(e circuitbreaker.StateChangedEvent) {
			if e.OldState != circuitbreaker.ClosedState { // the one that tried found it no better
				return
			}
			s.log.Error("Stripe does not answer; clicks get a page that tries again by itself, and one of them asks Stripe now and then", "every", s.pace.spared.String())
		}).
		OnClose(func(circuitbreaker.StateChangedEvent) { s.log.Info("Stripe answers again") }).
		Build()
	s.guarded = failsafe.With(s.breaker)
}

// isAway tells the failures that are Stripe's own from its answers.
func isAway(code SessionCode) bool { return code == CodeUnavailable || code == CodeTimeout }

// Spared tells that Stripe failed too often just now and is not to be asked for a moment, or that
// one click is finding out whether it answers again.
func (s *Stripe) Spared() bool {
	return s.breaker.IsOpen() && s.breaker.RemainingDelay() > 0 || s.breaker.IsHalfOpen()
}

// ErrSpared is returned by CreateSession when Stripe was not asked at all: the click may stay open
// and be served later.
var ErrSpared = errors.New("Stripe is spared")

// Close drops idle connections.
func (s *Stripe) Close() { s.http.CloseIdleConnections() }

// CreateSession makes the session of one click attempt. The click's id is the idempotency key of
// all its tries, so that a lost answer is asked for again and never becomes a second session; the
// next click has another key, or Stripe would replay an expired URL for 24 h. The first try's slot
// is the caller's; each further one takes a slot of the budget. The error is a *SessionError, or
// ErrSpared. It returns within 10 s, or when ctx ends.
func (s *Stripe) CreateSession(ctx context.Context, link *Link, click uuid.UUID) (Session, error) {
	ctx, cancel := context.WithTimeout(ctx, s.pace.deadline)
	defer cancel()
	params, err := s.params(link, click)
	if err != nil {
		return Session{}, &SessionError{Code: CodeInvalidRequest, err: err}
	}
	var last error // of the tries that reached Stripe
	slowed := false
	got, err := s.retry.WithContext(ctx).GetWithExecution(func(exec failsafe.Execution[*stripe.BillingPortalSession]) (*stripe.BillingPortalSession, error) {
		if last != nil {
			if err := s.budget.Retry(exec.Context(), link.StripeAccount); err != nil {
				return nil, noTry{err}
			}
		}
		session, err := s.guarded.WithContext(exec.Context()).Get(func() (*stripe.BillingPortalSession, error) { return s.try(exec.Context(), params) })
		if errors.Is(err, circuitbreaker.ErrOpen) {
			return nil, noTry{err}
		}
		last = err
		if !slowed {
			slowed = s.slowDown(ctx, link, err)
		}
		return session, err
	})
	if errors.As(err, new(noTry)) {
		if last == nil {
			return Session{}, ErrSpared
		}
		err = last
	}
	if err != nil {
		return Session{}, classify(err)
	}
	return s.session(got)
}

// noTry is why a try was not made: Stripe is spared, or the budget has no slot soon.
type noTry struct{ error }

// slowDown tells the budget of a 429, unless it is about one object that others are busy with: that
// concerns one customer. It reports whether it did.
func (s *Stripe) slowDown(ctx context.Context, link *Link, err error) bool {
	if !isRateLimit(err) {
		return false
	}
	s.log.Warn("Stripe's rate limit was hit; the pace is lowered for all replicas", "stripe_request_id", classify(err).RequestID,
		"hint", "lower STRIPE_RATE if this comes again, or see what else uses this Stripe account")
	// Reads count against the same limit of Stripe's, and nobody waits for them on a page.
	if err := errors.Join(s.budget.Lower(ctx, link.StripeAccount), s.reads.Lower(ctx, readsLine)); err != nil {
		s.log.Warn("the pace could not be lowered", "error", err)
	}
	return true
}

func (s *Stripe) session(got *stripe.BillingPortalSession) (Session, error) {
	session := Session{ID: got.ID, Livemode: got.Livemode, URL: got.URL}
	if got.LastResponse != nil {
		session.RequestID = got.LastResponse.RequestID
	}
	if err := s.checkURL(got.URL); err != nil {
		return Session{}, &SessionError{Code: CodeBadSessionURL, RequestID: session.RequestID, err: err}
	}
	return session, nil
}

func (s *Stripe) try(ctx context.Context, params *stripe.BillingPortalSessionCreateParams) (*stripe.BillingPortalSession, error) {
	ctx, cancel := context.WithTimeout(ctx, s.pace.try)
	defer cancel()
	began := time.Now()
	p := *params // stripe-go writes the context into it
	session, err := s.client.V1BillingPortalSessions.Create(ctx, &p)
	result := "ok"
	if err != nil {
		result = string(classify(err).Code)
	}
	s.duration.WithLabelValues(result).Observe(time.Since(began).Seconds())
	return session, err
}

// params puts a link's session on the wire form of stripe-go. links.session holds Stripe's names
// and stripe-go's parameters carry them as JSON tags, so one decodes into the other; what this
// SDK does not type yet goes in as extra parameters.
func (s *Stripe) params(link *Link, click uuid.UUID) (*stripe.BillingPortalSessionCreateParams, error) {
	p := &stripe.BillingPortalSessionCreateParams{}
	if err := json.Unmarshal(link.Session, p); err != nil {
		return nil, fmt.Errorf("session of link %s: %w", link.ID, err)
	}
	if p.ReturnURL == nil && s.returnURL != "" {
		p.ReturnURL = stripe.String(s.returnURL)
	}
	p.SetIdempotencyKey("latchkey_click_" + click.String())
	if link.StripeAccount != "" {
		p.SetStripeAccount(link.StripeAccount)
	}
	version := s.version
	own, err := decodeSession(link.Session)
	if err != nil {
		return nil, fmt.Errorf("session of link %s: %w", link.ID, err)
	}
	if a := own.AfterExpiration; a != nil {
		p.AddExtra("after_expiration[type]", a.Type)
		if a.CustomerLogin != nil && a.CustomerLogin.ExpiresAt != nil {
			p.AddExtra("after_expiration[customer_login][expires_at]", strconv.FormatInt(*a.CustomerLogin.ExpiresAt, 10))
		}
		if version == "" {
			version = AfterExpirationVersion
		}
	}
	if version != "" {
		p.Headers = http.Header{"Stripe-Version": {version}}
	}
	return p, nil
}

// checkURL refuses to redirect a customer anywhere but to https (http where Stripe itself is a
// simulator on loopback). The host is free: accounts have custom domains.
func (s *Stripe) checkURL(raw string) error {
	u, err := ParseWebURL(raw)
	if err == nil && (u.Scheme == "https" || s.httpOK) {
		return nil
	}
	return errors.New("the session's URL is not an https URL")
}

// OnLoopback tells whether Stripe is a simulator on this machine, so that session URLs may be
// http.
func (s *Stripe) OnLoopback() bool { return s.httpOK }

// KeyMode reads the mode off a key's form: sk_live_…, rk_test_….
func KeyMode(key string) (live, known bool) {
	parts := strings.SplitN(key, "_", 3)
	if len(parts) < 3 || parts[0] != "sk" && parts[0] != "rk" {
		return false, false
	}
	return parts[1] == "live", parts[1] == "live" || parts[1] == "test"
}

// CheckKey asks Stripe whether the key may create portal sessions, without creating one: it leaves
// the customer out, and Stripe looks at the key before the parameters. The error is a
// *SessionError.
func (s *Stripe) CheckKey(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stripeDeadline)
	defer cancel()
	_, err := s.client.V1BillingPortalSessions.Create(ctx, &stripe.BillingPortalSessionCreateParams{})
	if cause := classify(err); err != nil && cause.Code != CodeInvalidRequest {
		return cause
	}
	return nil
}

// CheckConfiguration asks Stripe whether a default portal configuration exists. The error is a
// *SessionError.
func (s *Stripe) CheckConfiguration(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stripeDeadline)
	defer cancel()
	params := &stripe.BillingPortalConfigurationListParams{IsDefault: stripe.Bool(true)}
	params.Limit = stripe.Int64(1)
	for _, err := range s.client.V1BillingPortalConfigurations.List(ctx, params).All(ctx) {
		if err != nil {
			return classify(err)
		}
		return nil
	}
	return &SessionError{Code: CodeNotConfigured, err: errors.New("no default portal configuration")}
}

func loopbackURL(raw string) bool {
	u, err := ParseWebURL(raw)
	return err == nil && IsLoopback(u.Hostname())
}
