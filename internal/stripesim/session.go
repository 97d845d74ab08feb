package stripesim

import (
	"crypto/rand"
	"net/url"
	"sync"
	"time"
)

// Stripe's lives of a session (rule 11).
const (
	unvisitedLife = 5 * time.Minute
	visitedLife   = time.Hour
)

// maxKept is how many sessions and calls are remembered; beyond it the oldest go.
const maxKept = 1_000_000

// Session is a portal session as the simulator remembers it.
type Session struct {
	ID              string     `json:"id"`
	URL             string     `json:"url"` // as answered
	Customer        string     `json:"customer,omitempty"`
	CustomerAccount string     `json:"customer_account,omitempty"`
	Configuration   string     `json:"configuration"`
	Account         string     `json:"account,omitempty"` // connected account, of Stripe-Account
	FlowType        string     `json:"flow_type,omitempty"`
	Locale          string     `json:"locale,omitempty"`
	ReturnURL       string     `json:"return_url,omitempty"` // the configuration's default where none was sent
	Livemode        bool       `json:"livemode"`
	Created         time.Time  `json:"created"`
	Visited         time.Time  `json:"visited,omitzero"`       // first visit; zero: none yet
	LastActivity    time.Time  `json:"last_activity,omitzero"` // last visit
	IdempotencyKey  string     `json:"idempotency_key,omitempty"`
	RequestID       string     `json:"request_id"` // of the call that made it
	Params          url.Values `json:"params"`     // as received

	doneURL string // after_completion's redirect
	message string // after_completion's custom_message
}

// Expired reports whether the session's URL is dead at that time.
func (s Session) Expired(at time.Time) bool {
	if s.Visited.IsZero() {
		return at.Sub(s.Created) >= unvisitedLife
	}
	return at.Sub(s.LastActivity) >= visitedLife
}

// Call is a create call as the simulator remembers it.
type Call struct {
	At             time.Time  `json:"at"`
	RequestID      string     `json:"request_id"`
	Status         int        `json:"status"`                    // 0: no answer, or none yet
	ErrorCode      string     `json:"error_code,omitempty"`      // code of the error body
	SessionID      string     `json:"session_id,omitempty"`      // session made or replayed, answered or not
	IdempotencyKey string     `json:"idempotency_key,omitempty"` // header
	Replayed       bool       `json:"replayed,omitempty"`        // the answer was a saved one
	Account        string     `json:"account,omitempty"`         // Stripe-Account
	Version        string     `json:"version,omitempty"`         // Stripe-Version as sent
	Auth           string     `json:"auth"`                      // "bearer sk_test", "basic rk_live", "none": never the key
	Fault          FaultKind  `json:"fault,omitempty"`           // what went wrong on purpose
	Params         url.Values `json:"params"`                    // as received
}

// ledger remembers sessions and calls.
type ledger struct {
	mu       sync.Mutex
	sessions []*Session
	bySecret map[string]*Session
	secrets  []string // of sessions, by index
	calls    []*Call
}

func (l *ledger) init() { l.bySecret = map[string]*Session{} }

func (l *ledger) addSession(secret string, s *Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sessions) >= maxKept {
		// A tenth at a time, so that the copying costs little for each session.
		cut := maxKept / 10
		for _, old := range l.secrets[:cut] {
			delete(l.bySecret, old)
		}
		l.sessions = append([]*Session(nil), l.sessions[cut:]...)
		l.secrets = append([]string(nil), l.secrets[cut:]...)
	}
	l.sessions = append(l.sessions, s)
	l.secrets = append(l.secrets, secret)
	l.bySecret[secret] = s
}

// visit looks a session up; a visit of a living one is activity.
func (l *ledger) visit(secret string, at time.Time, activity bool) (s Session, found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.bySecret[secret]
	if p == nil {
		return Session{}, false
	}
	if activity && !p.Expired(at) {
		if p.Visited.IsZero() {
			p.Visited = at
		}
		p.LastActivity = at
	}
	return *p, true
}

// addCall remembers the call at its arrival; edit completes it.
func (l *ledger) addCall(c *Call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.calls) >= maxKept {
		l.calls = append([]*Call(nil), l.calls[maxKept/10:]...)
	}
	l.calls = append(l.calls, c)
}

func (l *ledger) edit(c *Call, change func(*Call)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(c)
}

func (l *ledger) allSessions() []Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return copyAll(l.sessions)
}

func (l *ledger) allCalls() []Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return copyAll(l.calls)
}

func copyAll[T any](in []*T) []T {
	out := make([]T, len(in))
	for i, p := range in {
		out[i] = *p
	}
	return out
}

// newID returns an id in Stripe's style: 24 random characters after the prefix.
func newID(prefix string) string { return prefix + rand.Text()[:24] }
