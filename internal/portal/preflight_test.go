package portal

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"latchkey/internal/stripesim"
)

func preflightOf(t *testing.T, key string) (*Preflight, *stripesim.Sim) {
	t.Helper()
	stripe, sim := stripeOf(t, key)
	return &Preflight{Stripe: stripe}, sim
}

func TestPreflightFindings(t *testing.T) {
	t.Parallel()
	p, sim := preflightOf(t, stripesim.TestKey)
	sim.DisableFeature("subscription_cancel")
	sim.SetDefaultReturnURL("")
	customer := func(id string) PreflightQuestion { return PreflightQuestion{Customer: id} }
	flow := func(flow string) PreflightQuestion { return PreflightQuestion{Flow: flow, ReturnURL: true} }
	cases := []struct {
		question PreflightQuestion
		code     SessionCode
		says     string
	}{
		{customer("cus_1"), "", ""},
		{customer("cus_missing"), CodeCustomerGone, "does not exist"},
		{customer("cus_deleted"), CodeCustomerGone, "deleted"},
		{customer("cus_live"), CodeCustomerGone, "other mode"},
		{PreflightQuestion{Customer: "cus_1", StripeAccount: "acct_1"}, "", ""},
		{PreflightQuestion{Customer: "cus_1", StripeAccount: "acct_missing"}, CodeBadKey, "connected account"},
		{flow(""), "", ""},
		{flow("payment_method_update"), "", ""},
		{flow("customer_update"), "", ""},
		{flow("subscription_update_confirm"), "", ""},
		{flow("subscription_cancel"), CodeFeatureOff, "subscription_cancel is off"},
		{PreflightQuestion{Configuration: "bpc_1", Flow: "subscription_cancel", ReturnURL: true}, CodeFeatureOff, "bpc_1"},
		{PreflightQuestion{Configuration: "bpc_1", ReturnURL: true}, "", ""},
		{PreflightQuestion{Configuration: "bpc_missing", ReturnURL: true}, CodeNotConfigured, "bpc_missing does not exist"},
		{PreflightQuestion{}, CodeInvalidRequest, "no return_url"},
	}
	var questions []PreflightQuestion
	for _, c := range cases {
		questions = append(questions, c.question)
	}
	findings, err := p.Ask(t.Context(), questions)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		if f := findings[i]; f.Code != c.code || !strings.Contains(f.Problem, c.says) || (f.Code == "") != (f.Problem == "") {
			t.Errorf("%+v: %+v, want %q, %q", c.question, f, c.code, c.says)
		}
	}
	sim.SetDefaultConfiguration(false)
	findings, err = p.Ask(t.Context(), []PreflightQuestion{flow("payment_method_update")})
	if err != nil || findings[0].Code != CodeNotConfigured || !strings.Contains(findings[0].Problem, "save a default configuration") {
		t.Errorf("without a default configuration: %+v, %v", findings, err)
	}
	if n := len(sim.Sessions()); n != 0 {
		t.Errorf("a preflight made %d sessions", n)
	}
}

// Where Stripe can't be asked, nothing is said about the customers.
func TestPreflightCannotAsk(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		key, says string
		code      SessionCode
		down      bool
	}{
		"no permission": {stripesim.NoPortalKey, "give the restricted key this permission", CodeBadKey, false},
		"wrong key":     {"sk_test_wrong_0123456789", "STRIPE_API_KEY", CodeBadKey, false},
		"down":          {stripesim.TestKey, "may later", CodeUnavailable, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := preflightOf(t, c.key)
			if c.down {
				p.Stripe = newStripe(StripeConfig{Key: c.key, APIBase: "http://127.0.0.1:1"}, quick)
				defer p.Stripe.Close()
			}
			for _, q := range []PreflightQuestion{{Customer: "cus_1"}, {}} {
				_, err := p.Ask(t.Context(), []PreflightQuestion{q})
				var unread *ReadError
				var cause *SessionError
				if !errors.As(err, &unread) || !errors.As(err, &cause) || cause.Code != c.code || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%+v: %v", q, err)
				}
				if strings.Contains(err.Error(), c.key) {
					t.Errorf("the error shows the key: %v", err)
				}
			}
			if p.Stripe.Spared() {
				t.Error("a preflight opened the breaker of people's clicks")
			}
		})
	}
}

// Where no slot can be had, Stripe is not to blame, and is not asked again and again.
func TestPreflightWithoutASlot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &Preflight{Stripe: b.stripe, Reads: NewBudget(b.pool, 1000, b.clock.now, nil)}
	var tries atomic.Int32
	p.Reads.takes.Commit = func(context.Context, []*take) error { tries.Add(1); return errors.New("away") }
	_, err := p.Ask(t.Context(), []PreflightQuestion{{Customer: "cus_1"}})
	if !errors.Is(err, ErrNoRead) || errors.As(err, new(*ReadError)) || tries.Load() != 1 {
		t.Errorf("after %d tries: %v", tries.Load(), err)
	}
}

// Where Stripe answered before there was no slot for another try, its answer is the reason.
func TestPreflightWithoutASecondSlot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &Preflight{Stripe: b.stripe, Reads: NewBudget(b.pool, 1000, b.clock.now, nil)}
	p.Stripe = newStripe(StripeConfig{Key: stripesim.TestKey, APIBase: "http://127.0.0.1:1"}, quick)
	defer p.Stripe.Close()
	tries := 0
	p.Reads.takes.Commit = func(_ context.Context, takes []*take) error {
		if tries++; tries > 1 {
			return errors.New("away")
		}
		takes[0].turn.slot = true
		return nil
	}
	_, err := p.Ask(t.Context(), []PreflightQuestion{{Customer: "cus_1"}})
	if !errors.As(err, new(*ReadError)) || errors.Is(err, ErrNoRead) {
		t.Errorf("%v", err)
	}
}

// A 429 is asked again, and lowers the pace of reads alone.
func TestPreflightIsSlowedDown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &Preflight{Stripe: b.stripe, Reads: NewBudget(b.pool, 1000, b.clock.now, nil)}
	var reads atomic.Int32
	b.onStripe = func(*http.Request) {
		switch reads.Add(1) {
		case 1:
			b.sim.SetRate(1) // which this one uses up
		case 3:
			b.sim.SetRate(0)
		}
	}
	findings, err := p.Ask(t.Context(), []PreflightQuestion{{Customer: "cus_1"}, {Customer: "cus_2"}})
	if err != nil || findings[0].Code != "" || findings[1].Code != "" {
		t.Errorf("%+v, %v", findings, err)
	}
	if n := b.number(`SELECT count(*) FROM stripe_budget WHERE account = 'reads' AND lowered_at IS NOT NULL`); n != 1 {
		t.Error("the pace of reads was not lowered")
	}
	if n := reads.Load(); n != 3 {
		t.Errorf("%d reads, want a third one for the one that was refused", n)
	}
	if n := b.number(`SELECT count(*) FROM stripe_budget WHERE account = ''`); n != 0 {
		t.Error("reads took slots of people")
	}
}
