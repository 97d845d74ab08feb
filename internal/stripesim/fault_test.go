package stripesim_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/internal/stripesim"
)

// serve runs the simulator on a real connection, which faults can cut. The
// client opens a connection for each call, so that net/http repeats nothing.
func serve(t *testing.T, sim http.Handler) (url string, client *http.Client) {
	t.Helper()
	srv := httptest.NewServer(sim)
	t.Cleanup(srv.Close)
	tr := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(tr.CloseIdleConnections)
	return srv.URL, &http.Client{Transport: tr}
}

func post(ctx context.Context, t *testing.T, client *http.Client, base, body, key string) (*http.Response, []byte, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+sessionsPath, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "Bearer "+stripesim.TestKey)
	r.Header.Set("Idempotency-Key", key)
	resp, err := client.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

// A lost answer whose session exists comes back under the same key; a call lost
// on its way left nothing.
func TestDroppedConnections(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind     stripesim.FaultKind
		customer string
		sessions int
	}{
		{kind: stripesim.FaultDropBefore, customer: "cus_1", sessions: 0},
		{kind: stripesim.FaultDropAfter, customer: "cus_1", sessions: 1},
		{kind: stripesim.FaultCutAnswer, customer: "cus_1", sessions: 1},
		{customer: "cus_dropped1", sessions: 1},
	} {
		t.Run(string(tc.kind)+tc.customer, func(t *testing.T) {
			t.Parallel()
			sim, _ := setup(t)
			url, client := serve(t, sim)
			if tc.kind != "" {
				sim.Script(stripesim.Fault{Kind: tc.kind})
			}
			body := form("customer=" + tc.customer)
			if _, b, err := post(t.Context(), t, client, url, body, "k"); err == nil {
				t.Fatalf("the call was answered: %s", b)
			}
			if n := len(sim.Sessions()); n != tc.sessions {
				t.Fatalf("%d sessions, want %d", n, tc.sessions)
			}
			resp, b, err := post(t.Context(), t, client, url, body, "k")
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("retry: %v %s", err, b)
			}
			if replayed := resp.Header.Get("Idempotent-Replayed") == "true"; replayed != (tc.sessions == 1) {
				t.Fatalf("replayed %v", replayed)
			}
			if all := sim.Sessions(); len(all) != 1 || !strings.Contains(string(b), all[0].ID) {
				t.Fatalf("%d sessions, want 1, the answered one", len(all))
			}
			if calls := sim.Calls(); calls[0].Status != 0 || calls[1].Status != 200 {
				t.Fatalf("recorded %d and %d", calls[0].Status, calls[1].Status)
			}
		})
	}
}

func TestOutageLastsUntilItIsEnded(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	sim.SetOutage(&stripesim.Fault{Kind: stripesim.FaultStatus, Status: 503})
	sim.Script(stripesim.Fault{Kind: stripesim.FaultStatus, Status: 500})
	for i, want := range []int{500, 503, 503} {
		if got := create(t, sim, form("customer=cus_1")).status; got != want {
			t.Errorf("call %d: %d, want %d", i, got, want)
		}
	}
	sim.SetOutage(nil)
	mustCreate(t, sim, form("customer=cus_1"))
}

func TestHangEndsWithTheClient(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	finished := make(chan any)
	go func() {
		defer func() { finished <- recover() }()
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, sessionsPath, strings.NewReader(form("customer=cus_hang")))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Authorization", "Bearer "+stripesim.TestKey)
		sim.ServeHTTP(httptest.NewRecorder(), r)
	}()
	cancel()
	if got := <-finished; got != http.ErrAbortHandler {
		t.Fatalf("handler ended with %v", got)
	}
	if len(sim.Sessions()) != 0 {
		t.Fatal("a session was made")
	}
}

// Stripe goes on without a client that hung up: the session exists, and the key
// finds it.
func TestClientThatLeavesDoesNotStopTheExecution(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	sim.SetLatency(time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, sessionsPath, strings.NewReader(form("customer=cus_1")))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "Bearer "+stripesim.TestKey)
	r.Header.Set("Idempotency-Key", "k")
	sim.ServeHTTP(httptest.NewRecorder(), r)
	sim.SetLatency(0)
	if again := mustCreate(t, sim, form("customer=cus_1"), "Idempotency-Key", "k"); again.header.Get("Idempotent-Replayed") != "true" {
		t.Fatal("nothing was saved")
	}
}

func TestLatency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := stripesim.New(stripesim.Config{})
		took := func(customer string) time.Duration {
			start := time.Now() // of the bubble: exact
			mustCreate(t, sim, form("customer="+customer))
			return time.Since(start)
		}
		if d := took("cus_slow1"); d != 5*time.Second {
			t.Errorf("cus_slow took %s", d)
		}
		sim.SetLatency(time.Second)
		sim.Script(stripesim.Fault{Kind: stripesim.FaultLatency, Latency: time.Minute})
		if d := took("cus_1"); d != 61*time.Second {
			t.Errorf("scripted latency took %s", d)
		}
		if d := took("cus_1"); d != time.Second {
			t.Errorf("general latency took %s", d)
		}
	})
}

func TestMagicCustomers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		id, key          string
		status           int
		typ, code, param string
		message          string
	}{
		{id: "cus_deleted1", status: 400, typ: invalid, code: "resource_missing", param: "customer", message: "No such customer: 'cus_deleted1'"},
		{id: "cus_missing", status: 400, typ: invalid, code: "resource_missing", param: "customer", message: "No such customer: 'cus_missing'"},
		{id: "cus_live1", status: 400, typ: invalid, code: "resource_missing", param: "customer",
			message: "No such customer: 'cus_live1'; a similar object exists in live mode, but a test mode key was used to make this request."},
		{id: "cus_live1", key: stripesim.LiveKey, status: 200},
		{id: "cus_test1", key: stripesim.LiveKey, status: 400, typ: invalid, code: "resource_missing", param: "customer", message: "exists in test mode, but a live mode key"},
		{id: "cus_test1", status: 200},
		{id: "cus_noconfig", status: 400, typ: invalid, message: "your test mode default configuration has not been created"},
		{id: "cus_noconfig", key: stripesim.LiveKey, status: 400, typ: invalid, message: "your live mode default configuration has not been created"},
		{id: "cus_featureoff", status: 400, typ: invalid, message: "feature in the portal configuration is disabled"},
		{id: "cus_409", status: 409, typ: "idempotency_error", code: "idempotency_key_in_use"},
		{id: "cus_429", status: 429, typ: invalid, code: "rate_limit"},
		{id: "cus_429lock", status: 429, typ: invalid, code: "lock_timeout"},
		{id: "cus_500", status: 500, typ: "api_error"},
		{id: "cus_503", status: 503, typ: "api_error"},
		{id: "cus_9s6XKzkNRiz8i3", status: 200},
	} {
		t.Run(tc.id+tc.key, func(t *testing.T) {
			t.Parallel()
			sim, _ := setup(t)
			if tc.key == "" {
				tc.key = stripesim.TestKey
			}
			r := create(t, sim, form("customer="+tc.id), "Authorization", "Bearer "+tc.key)
			r.want(t, tc.status, tc.typ, tc.code, tc.param)
			r.wantMessage(t, tc.message)
			wantReason := map[string]string{"rate_limit": "endpoint-rate"}[tc.code]
			if got := r.header.Get("Stripe-Rate-Limited-Reason"); got != wantReason {
				t.Fatalf("reason %q, want %q", got, wantReason)
			}
		})
	}
}

func TestFlakyOnceForEachCustomer(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	for _, id := range []string{"cus_flaky1", "cus_flaky2"} {
		create(t, sim, form("customer="+id), "Idempotency-Key", id).want(t, 503, "api_error", "", "")
		mustCreate(t, sim, form("customer="+id), "Idempotency-Key", id)
		mustCreate(t, sim, form("customer="+id))
	}
}

func TestAnswersNotToTrust(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	if r := mustCreate(t, sim, form("customer=cus_badurl")); r.object["url"] != "javascript:alert(document.domain)" {
		t.Fatalf("url %v", r.object["url"])
	}
	sim.Script(stripesim.Fault{Kind: stripesim.FaultURL, URL: "http://evil.example/p"})
	if r := mustCreate(t, sim, form("customer=cus_1")); r.object["url"] != "http://evil.example/p" {
		t.Fatalf("url %v", r.object["url"])
	}
	for _, prepare := range []func() string{
		func() string { return "cus_garbage" },
		func() string {
			sim.Script(stripesim.Fault{Kind: stripesim.FaultGarbage, Body: `{"id":`})
			return "cus_1"
		},
	} {
		before := len(sim.Sessions())
		r := create(t, sim, form("customer="+prepare()))
		if r.status != 200 || json.Valid([]byte(r.body)) || len(sim.Sessions()) != before+1 {
			t.Fatalf("status %d: %s", r.status, r.body)
		}
	}
}

// Faults go to calls in order, and not to those that the key or the rate stops.
func TestScriptOrder(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	body := form("customer=cus_1")
	sim.Script(
		stripesim.Fault{Kind: stripesim.FaultStatus, Status: 429, Reason: "global-concurrency"},
		stripesim.Fault{Kind: stripesim.FaultStatus, Status: 429, Code: "lock_timeout"},
		stripesim.Fault{Kind: stripesim.FaultStatus, Status: 402, Code: "other"},
	)
	create(t, sim, body, "Authorization", "Bearer x").want(t, 401, invalid, "", "")
	r := create(t, sim, body)
	r.want(t, 429, invalid, "rate_limit", "")
	if got := r.header.Get("Stripe-Rate-Limited-Reason"); got != "global-concurrency" {
		t.Fatalf("reason %q", got)
	}
	create(t, sim, body).want(t, 429, invalid, "lock_timeout", "")
	create(t, sim, body).want(t, 402, invalid, "other", "")
	mustCreate(t, sim, body)
}

func TestScriptRefusesNonsense(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	for _, f := range []stripesim.Fault{
		{}, {Kind: "explode"}, {Kind: stripesim.FaultStatus}, {Kind: stripesim.FaultStatus, Status: 200},
		{Kind: stripesim.FaultURL}, {Kind: stripesim.FaultLatency, Latency: -1},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v was taken", f)
				}
			}()
			sim.Script(f)
		}()
	}
}
