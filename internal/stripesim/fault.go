package stripesim

import (
	"fmt"
	"strings"
	"time"
)

// FaultKind says what goes wrong with a call.
type FaultKind string

// The kinds of Fault.
const (
	FaultLatency    FaultKind = "latency"     // nothing but the latency
	FaultStatus     FaultKind = "status"      // an error answer: Status, Code, Reason, Unsaved
	FaultDropBefore FaultKind = "drop_before" // the connection is cut, no session was made
	FaultDropAfter  FaultKind = "drop_after"  // the session is made and saved, the connection is cut without an answer
	FaultCutAnswer  FaultKind = "cut_answer"  // like drop_after, but amid the answer's body
	FaultHang       FaultKind = "hang"        // no answer until the client leaves, no session was made
	FaultGarbage    FaultKind = "garbage"     // the session is made, the answer is 200 with Body
	FaultURL        FaultKind = "url"         // the session is made, its url is URL
)

// Fault is what shall go wrong with one create call.
type Fault struct {
	Kind FaultKind
	// Latency is waited ahead of the effect and the answer, with any kind.
	Latency time.Duration
	// Status of FaultStatus, 400 to 599.
	Status int
	// Code is the error's code. Default: Stripe's for the status, if it has one.
	// With 429 it may be "lock_timeout".
	Code string
	// Reason is sent as Stripe-Rate-Limited-Reason with 429. None by default.
	Reason string
	// Unsaved means that the error came ahead of the execution, so the
	// idempotency key stays free. Without it a 5xx is saved under the key and
	// replayed, as Stripe does; 429 and 409 never are.
	Unsaved bool
	// Body of FaultGarbage. Default: an HTML page.
	Body string
	// URL of FaultURL.
	URL string
}

func (f Fault) validate() error {
	switch f.Kind {
	case FaultStatus:
		if f.Status < 400 || f.Status > 599 {
			return fmt.Errorf("stripesim: fault %q needs a status from 400 to 599, not %d", f.Kind, f.Status)
		}
	case FaultURL:
		if f.URL == "" {
			return fmt.Errorf("stripesim: fault %q needs a url", f.Kind)
		}
	case FaultLatency, FaultDropBefore, FaultDropAfter, FaultCutAnswer, FaultHang, FaultGarbage:
	default:
		return fmt.Errorf("stripesim: unknown kind of fault %q", f.Kind)
	}
	if f.Latency < 0 {
		return fmt.Errorf("stripesim: latency of a fault is negative: %s", f.Latency)
	}
	return nil
}

// beforeExecution reports whether the fault strikes ahead of the execution, so
// that nothing happens and nothing is saved.
func (f Fault) beforeExecution() bool {
	switch f.Kind {
	case FaultDropBefore, FaultHang:
		return true
	case FaultStatus:
		return f.Unsaved || f.Status == 429 || f.Status == 409
	}
	return false
}

// err is the error that a FaultStatus answers with.
func (f Fault) err(idempotencyKey string) *apiError {
	var e *apiError
	switch {
	case f.Status == 429 && f.Code == "lock_timeout":
		e = errLockTimeout()
	case f.Status == 429:
		e = errRateLimited(f.Reason)
	case f.Status == 409:
		e = errKeyInUse(idempotencyKey)
	case f.Status >= 500:
		e = errAPI(f.Status)
	default:
		e = &apiError{Type: "invalid_request_error", Message: "The simulator was told to refuse this request."}
	}
	e.status, e.reason = f.Status, f.Reason
	if f.Code != "" {
		e.Code = f.Code
	}
	return e
}

// magic is a customer id that stands for a scenario. The ones without a fault
// are looked at by the execution.
type magic struct {
	prefix  string
	meaning string
	fault   *Fault
	once    bool // only the first call of each customer
}

// magics is searched in order: longer prefixes first.
var magics = []magic{
	{prefix: "deleted", meaning: "400 resource_missing: no such customer"},
	{prefix: "missing", meaning: "400 resource_missing: no such customer"},
	{prefix: "live", meaning: "exists in live mode only"},
	{prefix: "test", meaning: "exists in test mode only"},
	{prefix: "noconfig", meaning: "400: no default portal configuration yet"},
	{prefix: "featureoff", meaning: "400: the flow's feature is disabled in the configuration"},
	{prefix: "slow", meaning: "answers after 5 seconds",
		fault: &Fault{Kind: FaultLatency, Latency: 5 * time.Second}},
	{prefix: "hang", meaning: "never answers", fault: &Fault{Kind: FaultHang}},
	{prefix: "409", meaning: "409 idempotency_key_in_use",
		fault: &Fault{Kind: FaultStatus, Status: 409}},
	{prefix: "429lock", meaning: "429 lock_timeout",
		fault: &Fault{Kind: FaultStatus, Status: 429, Code: "lock_timeout"}},
	{prefix: "429", meaning: "429 rate_limit",
		fault: &Fault{Kind: FaultStatus, Status: 429, Reason: "endpoint-rate"}},
	{prefix: "500", meaning: "500, saved under the idempotency key",
		fault: &Fault{Kind: FaultStatus, Status: 500}},
	{prefix: "503", meaning: "503, not saved",
		fault: &Fault{Kind: FaultStatus, Status: 503, Unsaved: true}},
	{prefix: "flaky", meaning: "503 the first time, then a session", once: true,
		fault: &Fault{Kind: FaultStatus, Status: 503, Unsaved: true}},
	{prefix: "dropped", meaning: "the first answer is cut off, its session exists", once: true,
		fault: &Fault{Kind: FaultCutAnswer}},
	{prefix: "garbage", meaning: "200 with a body that is not JSON", fault: &Fault{Kind: FaultGarbage}},
	{prefix: "badurl", meaning: "a session with a javascript: url",
		fault: &Fault{Kind: FaultURL, URL: "javascript:alert(document.domain)"}},
}

// magicOf returns the scenario that a customer id stands for, or nil.
func magicOf(customer string) *magic {
	m := marker(customer)
	for i := range magics {
		if strings.HasPrefix(m, magics[i].prefix) {
			return &magics[i]
		}
	}
	return nil
}

// marker is an id without its prefix ("cus_", "acct_"): where scenarios are named.
func marker(id string) string {
	_, rest, _ := strings.Cut(id, "_")
	return rest
}

// isMissing reports whether the id is one that never exists.
func isMissing(id string) bool {
	m := marker(id)
	return strings.HasPrefix(m, "missing") || strings.HasPrefix(m, "deleted")
}
