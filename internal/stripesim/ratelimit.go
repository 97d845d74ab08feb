package stripesim

import (
	"sync"
	"time"
)

// limiter lets at most n calls of an account pass in any one second (rule 10):
// a sliding window, so that there is no edge at which 2n could slip through.
type limiter struct {
	mu      sync.Mutex
	n       int
	windows map[string]*window
}

// window remembers when the last n calls passed.
type window struct {
	passed []time.Time
	oldest int
}

// set changes the limit; what passed before is forgotten.
func (l *limiter) set(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n = max(n, 0)
	l.windows = map[string]*window{}
}

func (l *limiter) allow(scope string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == 0 {
		return true
	}
	w := l.windows[scope]
	if w == nil {
		w = &window{passed: make([]time.Time, l.n)}
		l.windows[scope] = w
	}
	if t := w.passed[w.oldest]; !t.IsZero() && now.Sub(t) < time.Second {
		return false
	}
	w.passed[w.oldest] = now
	w.oldest = (w.oldest + 1) % l.n
	return true
}
