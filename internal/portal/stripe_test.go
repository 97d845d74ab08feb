package portal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"latchkey/internal/stripesim"
)

// stripeOf is a client of a simulator of the test's own.
func stripeOf(t *testing.T, key string) (*Stripe, *stripesim.Sim) {
	t.Helper()
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{})}
	return b.newStripe(StripeConfig{Key: key}, quick), b.sim
}

// linkOf is a link with a customer, as far as Stripe needs it.
func linkOf(customer string) *Link {
	return &Link{ID: uuid.New(), Session: []byte(`{"customer":"` + customer + `","flow_data":{"type":"subscription_update","subscription_update":{"subscription":"sub_1"}}}`)}
}

// trouble is what goes wrong with a call, and what must come of it. code "" means a session.
type trouble struct {
	about    string
	customer string
	faults   []stripesim.Fault
	key      string

	code      SessionCode
	retryable bool
	status    int
	calls     int
	sessions  int
	answered  bool // Stripe's request id is known
}

func refusals() []trouble {
	const no, yes = false, true
	status := func(n int) []stripesim.Fault { return []stripesim.Fault{{Kind: stripesim.FaultStatus, Status: n}} }
	return []trouble{
		{"all is well", "cus_1", nil, "", "", no, 0, 1, 1, yes},
		{"deleted customer", "cus_deleted", nil, "", CodeCustomerGone, no, 400, 1, 0, yes},
		{"unknown customer", "cus_missing", nil, "", CodeCustomerGone, no, 400, 1, 0, yes},
		{"customer of the live mode", "cus_live", nil, "", CodeCustomerGone, no, 400, 1, 0, yes},
		{"customer of the test mode", "cus_test", nil, stripesim.LiveKey, CodeCustomerGone, no, 400, 1, 0, yes},
		{"no default configuration", "cus_noconfig", nil, "", CodeNotConfigured, no, 400, 1, 0, yes},
		{"feature off", "cus_featureoff", nil, "", CodeFeatureOff, no, 400, 1, 0, yes},
		{"another 400", "cus_1", status(400), "", CodeInvalidRequest, no, 400, 1, 0, yes},
		{"402", "cus_1", status(402), "", CodeInvalidRequest, no, 402, 1, 0, yes},
		{"404", "cus_1", status(404), "", CodeInvalidRequest, no, 404, 1, 0, yes},
		{"unknown key", "cus_1", nil, "sk_test_wrong_0123456789", CodeBadKey, no, 401, 1, 0, yes},
		{"key without the permission", "cus_1", nil, stripesim.NoPortalKey, CodeBadKey, no, 403, 1, 0, yes},
		{"session with a URL of script", "cus_badurl", nil, "", CodeBadSessionURL, no, 0, 1, 1, yes},
	}
}

func outages() []trouble {
	const yes = true
	times := func(n int, f stripesim.Fault) (out []stripesim.Fault) {
		for range n {
			out = append(out, f)
		}
		return out
	}
	unsaved := stripesim.Fault{Kind: stripesim.FaultStatus, Status: 503, Unsaved: true}
	cut, garbage := stripesim.Fault{Kind: stripesim.FaultCutAnswer}, stripesim.Fault{Kind: stripesim.FaultGarbage}
	return []trouble{
		{"503 once", "cus_flaky", nil, "", "", false, 0, 2, 1, yes},
		{"503 three times", "cus_1", times(3, unsaved), "", "", false, 0, 4, 1, yes},
		{"503 for good", "cus_503", nil, "", CodeUnavailable, yes, 503, 4, 0, yes},
		{"500, replayed", "cus_500", nil, "", CodeUnavailable, yes, 500, 2, 0, yes},
		{"429 once", "cus_1", times(1, stripesim.Fault{Kind: stripesim.FaultStatus, Status: 429, Reason: "endpoint-rate"}), "", "", false, 0, 2, 1, yes},
		{"429 for good", "cus_429", nil, "", CodeRateLimited, yes, 429, 4, 0, yes},
		{"429 lock_timeout", "cus_429lock", nil, "", CodeRateLimited, yes, 429, 4, 0, yes},
		{"lock_timeout as a 400", "cus_1", times(4, stripesim.Fault{Kind: stripesim.FaultStatus, Status: 400, Code: "lock_timeout", Unsaved: true}), "", CodeRateLimited, yes, 400, 4, 0, yes},
		{"409 for good", "cus_409", nil, "", CodeConflict, yes, 409, 4, 0, yes},
		{"answer cut off once", "cus_dropped", nil, "", "", false, 0, 2, 1, yes},
		{"answer cut off each time", "cus_1", times(4, cut), "", CodeUnavailable, yes, 0, 4, 1, false},
		{"a 200 that is no JSON, once", "cus_1", times(1, garbage), "", "", false, 0, 2, 1, yes},
		{"a 200 that is no JSON, each time", "cus_garbage", nil, "", CodeUnavailable, yes, 0, 4, 1, false},
	}
}

func (c trouble) run(t *testing.T) {
	t.Parallel()
	key := c.key
	if key == "" {
		key = stripesim.TestKey
	}
	s, sim := stripeOf(t, key)
	sim.Script(c.faults...)
	click := uuid.New()
	session, err := s.CreateSession(t.Context(), linkOf(c.customer), click)
	calls := sim.Calls()
	if len(calls) != c.calls || len(sim.Sessions()) != c.sessions {
		t.Errorf("%d calls made %d sessions, want %d and %d", len(calls), len(sim.Sessions()), c.calls, c.sessions)
	}
	for _, call := range calls {
		if call.IdempotencyKey != "latchkey_click_"+click.String() {
			t.Errorf("a try went under the key %q", call.IdempotencyKey)
		}
	}
	if c.code == "" {
		if made := sim.Sessions()[0]; err != nil || session.ID != made.ID || session.URL != made.URL || session.RequestID == "" {
			t.Fatalf("%#v, %v; want the session %s", session, err, made.ID)
		}
		return
	}
	var cause *SessionError
	if !errors.As(err, &cause) || cause.Code != c.code || cause.Retryable() != c.retryable || cause.Status != c.status || (cause.RequestID != "") != c.answered {
		t.Fatalf("%v (%#v), want %s, retryable %t, status %d", err, cause, c.code, c.retryable, c.status)
	}
	if session != (Session{}) {
		t.Errorf("an error came with a session: %#v", session)
	}
	c.checkText(t, err, key, sim)
}

// checkText holds an error's text against what must never be in it.
func (c trouble) checkText(t *testing.T, err error, key string, sim *stripesim.Sim) {
	t.Helper()
	text := fmt.Sprintf("%v %+v %s %q", err, err, err, err)
	secrets := []string{key, key[:12], c.customer, "javascript", "No such", "Invalid API Key", "configuration", "//", "permission", "unknown error", "html"}
	for _, s := range sim.Sessions() {
		secrets = append(secrets, s.URL)
	}
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("the error holds %q: %s", secret, text)
		}
	}
	if cause := err.(*SessionError); !strings.Contains(text, string(cause.Code)) || !strings.Contains(text, cause.RequestID) || Remedy(cause.Code) == "" {
		t.Errorf("the error lacks its code or request id: %s", text)
	}
}

// What is missing is a customer only where Stripe says so.
func TestStripeMissesSomethingElse(t *testing.T) {
	t.Parallel()
	s, _ := stripeOf(t, stripesim.TestKey)
	for session, want := range map[string]SessionCode{
		`{"customer":"cus_1","configuration":"bpc_missing"}`:                                                                   CodeInvalidRequest,
		`{"customer":"cus_1","flow_data":{"type":"subscription_update","subscription_update":{"subscription":"sub_missing"}}}`: CodeInvalidRequest,
		`{"customer_account":"acct_missing"}`:                                                                                  CodeCustomerGone,
		`{"customer":7}`:                                                                                                       CodeInvalidRequest, // a row that is not ours
	} {
		_, err := s.CreateSession(t.Context(), &Link{Session: []byte(session)}, uuid.New())
		if cause := (*SessionError)(nil); !errors.As(err, &cause) || cause.Code != want {
			t.Errorf("%s: %v, want %s", session, err, want)
		}
	}
}

func TestStripeTroubles(t *testing.T) {
	t.Parallel()
	for _, c := range append(refusals(), outages()...) {
		t.Run(c.about, c.run)
	}
}

// A try that hangs is given up, and the next one, under the same key, makes the session.
func TestStripeHangsOnce(t *testing.T) {
	t.Parallel()
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{})}
	p := quick
	p.try = 500 * time.Millisecond
	s := b.newStripe(StripeConfig{Key: stripesim.TestKey}, p)
	b.sim.Script(stripesim.Fault{Kind: stripesim.FaultHang})
	_, err := s.CreateSession(t.Context(), linkOf("cus_1"), uuid.New())
	if calls := b.sim.Calls(); err != nil || len(calls) < 2 || len(b.sim.Sessions()) != 1 || calls[0].IdempotencyKey != calls[1].IdempotencyKey {
		t.Fatalf("%v after %d calls, %d sessions", err, len(b.sim.Calls()), len(b.sim.Sessions()))
	}
}

func TestStripeHangsForGood(t *testing.T) {
	t.Parallel()
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{})}
	s := b.newStripe(StripeConfig{Key: stripesim.TestKey}, pace{deadline: 100 * time.Millisecond, try: 40 * time.Millisecond, firstPause: time.Millisecond, mostPause: time.Millisecond})
	_, err := s.CreateSession(t.Context(), linkOf("cus_hang"), uuid.New())
	var cause *SessionError
	if !errors.As(err, &cause) || cause.Code != CodeTimeout || !cause.Retryable() {
		t.Fatalf("%v, want stripe_timeout", err)
	}
}

// The waiting between tries ends with the click's time, too.
func TestStripePauseEndsWithTheDeadline(t *testing.T) {
	t.Parallel()
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{})}
	s := b.newStripe(StripeConfig{Key: stripesim.TestKey}, pace{deadline: 300 * time.Millisecond, try: time.Second, firstPause: time.Hour, mostPause: 2 * time.Hour})
	_, err := s.CreateSession(t.Context(), linkOf("cus_503"), uuid.New())
	if cause := (*SessionError)(nil); !errors.As(err, &cause) || !cause.Retryable() {
		t.Fatalf("%v, want a retryable error", err)
	}
}

func TestStripeIsCutWhenTheProcessStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{}), onStripe: func(*http.Request) { cancel() }}
	s := b.newStripe(StripeConfig{Key: stripesim.TestKey}, quick)
	_, err := s.CreateSession(ctx, linkOf("cus_hang"), uuid.New())
	if cause := (*SessionError)(nil); !errors.As(err, &cause) || cause.Code != CodeInterrupted || !cause.Retryable() {
		t.Fatalf("%v, want interrupted", err)
	}
}

func TestStripeIsAway(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close() // its port refuses from now on
	s := newStripe(StripeConfig{Key: stripesim.TestKey, APIBase: srv.URL}, quick)
	t.Cleanup(s.Close)
	_, err := s.CreateSession(t.Context(), linkOf("cus_1"), uuid.New())
	if cause := (*SessionError)(nil); !errors.As(err, &cause) || cause.Code != CodeUnavailable || cause.Status != 0 || strings.Contains(err.Error(), srv.URL) {
		t.Fatalf("%v, want stripe_unavailable", err)
	}
}

// A redirect is not followed: it would carry the key to wherever it points.
func TestStripeRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	followed := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			followed = true
		}
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	t.Cleanup(srv.Close)
	s := newStripe(StripeConfig{Key: stripesim.TestKey, APIBase: srv.URL}, quick)
	t.Cleanup(s.Close)
	if _, err := s.CreateSession(t.Context(), linkOf("cus_1"), uuid.New()); err == nil || followed {
		t.Fatalf("%v, followed: %t", err, followed)
	}
}

// Nobody is sent to anything but https, or http where Stripe is a simulator on loopback.
func TestSessionURLCheck(t *testing.T) {
	t.Parallel()
	s, sim := stripeOf(t, stripesim.TestKey)
	for raw, ok := range map[string]bool{
		"https://billing.stripe.com/p/session/test_x": true,
		"https://billing.acme.example/p/session/x":    true, // a custom domain
		"http://127.0.0.1:12111/p/session/x":          true,
		"http://billing.stripe.com/p/session/x":       false,
		"javascript:alert(1)":                         false,
		"JavaScript://billing.stripe.com/%0aalert(1)": false,
		"data:text/html,hello":                        false,
		"ftp://billing.stripe.com/x":                  false,
		"//billing.stripe.com/x":                      false,
		"/p/session/x":                                false,
		"billing.stripe.com/p":                        false,
		"https://":                                    false,
		"https://a@b.example/":                        false,
		"https://a.example/\r\nSet-Cookie: a=b":       false,
		"https://a.example\\.stripe.com/":             false,
	} {
		sim.Script(stripesim.Fault{Kind: stripesim.FaultURL, URL: raw})
		got, err := s.CreateSession(t.Context(), linkOf("cus_1"), uuid.New())
		var cause *SessionError
		if ok && (err != nil || got.URL != raw) {
			t.Errorf("%s: %v, want it accepted", raw, err)
		}
		if !ok && (!errors.As(err, &cause) || cause.Code != CodeBadSessionURL || cause.RequestID == "" || strings.Contains(err.Error(), raw)) {
			t.Errorf("%s: %v, want bad_session_url", raw, err)
		}
	}
	real := NewStripe(StripeConfig{Key: stripesim.TestKey})
	t.Cleanup(real.Close)
	if err := real.checkURL("http://127.0.0.1:12111/p/session/x"); err == nil || real.OnLoopback() || !s.OnLoopback() {
		t.Error("of Stripe itself an http URL is accepted")
	}
}

func TestSessionAndStripePrintNoSecret(t *testing.T) {
	t.Parallel()
	session := Session{ID: "bps_1", RequestID: "req_1", URL: "https://billing.stripe.com/p/session/live_secret"}
	js, err := json.Marshal(map[string]any{"session": session})
	if err != nil {
		t.Fatal(err)
	}
	s := NewStripe(StripeConfig{Key: "sk_live_secret"})
	t.Cleanup(s.Close)
	out := string(js) + fmt.Sprintf("%v %+v %#v %s", session, session, session, session) + fmt.Sprintf("%v %+v", s, s)
	if strings.Contains(out, "live_secret") || !strings.Contains(out, "bps_1") {
		t.Errorf("printed as %s", out)
	}
}

func TestKeyMode(t *testing.T) {
	t.Parallel()
	for key, want := range map[string][2]bool{
		"sk_live_x": {true, true}, "rk_live_x": {true, true}, "sk_test_x": {false, true}, "rk_test_x_y": {false, true},
		"": {}, "sk": {}, "sk_live": {}, "whsec_x": {}, "sk_prod_x": {}, "pk_live_x": {}, "foo_test_x": {},
	} {
		if live, known := KeyMode(key); live != want[0] || known != want[1] {
			t.Errorf("%q: live %t, known %t", key, live, known)
		}
	}
}

func TestChecksOfKeyAndConfiguration(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]SessionCode{stripesim.TestKey: "", stripesim.RestrictedKey: "", stripesim.NoPortalKey: CodeBadKey, "sk_test_unknown": CodeBadKey} {
		s, sim := stripeOf(t, key)
		var cause *SessionError
		if err := s.CheckKey(t.Context()); (err == nil) != (want == "") || err != nil && (!errors.As(err, &cause) || cause.Code != want) {
			t.Errorf("%s: %v, want %q", key, err, want)
		}
		if len(sim.Sessions()) != 0 {
			t.Errorf("%s: the check made a session", key)
		}
	}
	s, sim := stripeOf(t, stripesim.TestKey)
	if err := s.CheckConfiguration(t.Context()); err != nil {
		t.Errorf("with a default configuration: %v", err)
	}
	sim.SetDefaultConfiguration(false)
	var cause *SessionError
	if err := s.CheckConfiguration(t.Context()); !errors.As(err, &cause) || cause.Code != CodeNotConfigured {
		t.Errorf("without a default configuration: %v", err)
	}
}
