package stripesim_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/internal/stripesim"
)

// Rule 7.
func TestRule7Replay(t *testing.T) {
	t.Parallel()
	sim, clock := setup(t)
	body := form("customer=cus_1", "locale=de")
	first := mustCreate(t, sim, body, "Idempotency-Key", "k")
	if first.header.Get("Idempotent-Replayed") != "" {
		t.Fatal("the first answer claims to be a replay")
	}
	clock.Advance(24*time.Hour - 1)
	again := mustCreate(t, sim, body, "Idempotency-Key", "k")
	if again.body != first.body || again.header.Get("Idempotent-Replayed") != "true" {
		t.Fatal("not a replay")
	}
	if again.header.Get("Original-Request") != first.header.Get("Request-Id") || again.header.Get("Request-Id") == first.header.Get("Request-Id") {
		t.Fatal("Original-Request must be the first call's id, Request-Id this call's")
	}
	if c := sim.Calls()[1]; !c.Replayed || c.SessionID != first.object["id"] {
		t.Fatalf("record %+v", c)
	}
	// The saved URL may be dead by then: a key is for one click, not for a link.
	if r := do(t, sim, http.MethodGet, path(t, again.object["url"]), ""); r.status != http.StatusGone {
		t.Fatalf("status %d of the replayed URL, want 410", r.status)
	}
	clock.Advance(1)
	if r := mustCreate(t, sim, body, "Idempotency-Key", "k"); r.object["id"] == first.object["id"] {
		t.Fatal("the key outlived 24 hours")
	}
	if n := len(sim.Sessions()); n != 2 {
		t.Fatalf("%d sessions, want 2", n)
	}
	create(t, sim, body, "Idempotency-Key", strings.Repeat("k", 256)).want(t, 400, invalid, "", "")
	mustCreate(t, sim, body, "Idempotency-Key", strings.Repeat("k", 255))
}

// Rule 7: errors of the execution are saved, even when their cause is gone.
func TestRule7SavesErrorsOfTheExecution(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	body := form("customer=cus_1")
	sim.Script(stripesim.Fault{Kind: stripesim.FaultStatus, Status: 500})
	create(t, sim, body, "Idempotency-Key", "a").want(t, 500, "api_error", "", "")
	r := create(t, sim, body, "Idempotency-Key", "a")
	r.want(t, 500, "api_error", "", "")
	if r.header.Get("Idempotent-Replayed") != "true" {
		t.Fatal("the 500 was not replayed")
	}
	sim.DeleteCustomer("cus_1")
	create(t, sim, body, "Idempotency-Key", "b").want(t, 400, invalid, "resource_missing", "customer")
	sim.AddCustomer("cus_1")
	create(t, sim, body, "Idempotency-Key", "b").want(t, 400, invalid, "resource_missing", "customer")
	mustCreate(t, sim, body, "Idempotency-Key", "c")
}

// Rule 8.
func TestRule8OtherParameters(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	body := form("customer=cus_1")
	mustCreate(t, sim, body, "Idempotency-Key", "k")
	r := create(t, sim, form("customer=cus_1", "locale=de"), "Idempotency-Key", "k")
	r.want(t, 400, "idempotency_error", "", "")
	r.wantMessage(t, "other than 'k'")
	create(t, sim, body, "Idempotency-Key", "k", "Stripe-Account", "acct_1").want(t, 400, "idempotency_error", "", "")
	// The other mode is another world.
	mustCreate(t, sim, body, "Idempotency-Key", "k", "Authorization", "Bearer "+stripesim.LiveKey)
}

// Rule 8: while the first call is under way.
func TestRule8InFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim, _ := setup(t)
		body := form("customer=cus_slow")
		done := make(chan reply)
		go func() { done <- create(t, sim, body, "Idempotency-Key", "k") }()
		synctest.Wait()
		create(t, sim, body, "Idempotency-Key", "k").want(t, 409, "idempotency_error", "idempotency_key_in_use", "")
		first := <-done // the bubble's clock jumps over the latency
		if first.status != 200 {
			t.Fatalf("status %d", first.status)
		}
		if r := mustCreate(t, sim, body, "Idempotency-Key", "k"); r.body != first.body {
			t.Fatal("not a replay")
		}
	})
}

func TestOneSessionForConcurrentCalls(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			r := create(t, sim, form("customer=cus_1"), "Idempotency-Key", fmt.Sprint("k", i%4))
			if r.status != 200 && r.status != 409 {
				t.Errorf("status %d", r.status)
			}
		})
	}
	wg.Wait()
	if n, calls := len(sim.Sessions()), len(sim.Calls()); n != 4 || calls != 200 {
		t.Fatalf("%d sessions of %d calls, want 4 of 200", n, calls)
	}
}

// Rule 9.
func TestRule9NotSaved(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	body := form("customer=cus_1")
	for i, refuse := range []func() reply{
		func() reply { return create(t, sim, form("customer=cus_1", "locale=xx"), "Idempotency-Key", "0") },
		func() reply {
			sim.Script(stripesim.Fault{Kind: stripesim.FaultStatus, Status: 429})
			return create(t, sim, body, "Idempotency-Key", "1")
		},
		func() reply {
			sim.Script(stripesim.Fault{Kind: stripesim.FaultStatus, Status: 503, Unsaved: true})
			return create(t, sim, body, "Idempotency-Key", "2")
		},
		func() reply { return create(t, sim, body, "Idempotency-Key", "3", "Authorization", "Bearer x") },
	} {
		if r := refuse(); r.status == 200 {
			t.Fatalf("call %d was not refused", i)
		}
		if r := mustCreate(t, sim, body, "Idempotency-Key", fmt.Sprint(i)); r.header.Get("Idempotent-Replayed") != "" {
			t.Fatalf("call %d was saved", i)
		}
	}
}

// Rule 10.
func TestRule10Rate(t *testing.T) {
	t.Parallel()
	clock := newClock()
	sim := stripesim.New(stripesim.Config{Now: clock.Now, RatePerSecond: 3})
	body := form("customer=cus_1")
	mustCreate(t, sim, body)
	clock.Advance(600 * time.Millisecond)
	mustCreate(t, sim, body)
	mustCreate(t, sim, body)
	r := create(t, sim, body)
	r.want(t, 429, invalid, "rate_limit", "")
	if got := r.header.Get("Stripe-Rate-Limited-Reason"); got != "endpoint-rate" || r.header.Get("Retry-After") != "" {
		t.Fatalf("reason %q", got)
	}
	mustCreate(t, sim, body, "Stripe-Account", "acct_1") // a limit of its own
	clock.Advance(400 * time.Millisecond)
	mustCreate(t, sim, body) // the first one has left the window, no more
	if r := create(t, sim, body); r.status != 429 {
		t.Fatalf("status %d: a fixed window would let this pass", r.status)
	}
	sim.SetRate(0)
	for range 10 {
		mustCreate(t, sim, body)
	}
}

func BenchmarkCreate(b *testing.B) {
	sim := stripesim.New(stripesim.Config{})
	body := form("customer=cus_1", confirm, confirmSub, confirmID)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := httptest.NewRequest(http.MethodPost, sessionsPath, strings.NewReader(body))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Authorization", "Bearer "+stripesim.TestKey)
			sim.ServeHTTP(httptest.NewRecorder(), r)
		}
	})
}
