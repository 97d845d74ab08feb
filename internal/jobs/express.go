package jobs

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// express publishes the events of this process's commits right behind them, without River: a job that River
// fetches, runs and completes costs more than the events of a small commit. The job is there all the
// same, in the commit, but due only publishLater; express deletes it once the events are stored. Whatever
// express does not do (the process was killed, JetStream is away, too much waits) is so the job's, under the
// same event ids.
type express struct {
	publisher *publisher
	remove    func(ctx context.Context, jobs []int64) error
	log       *slog.Logger

	mu      sync.Mutex
	open    bool
	waiting []commit
	size    int           // bytes of them, roughly
	wake    chan struct{} // holds one: something waits, or nothing is to come any more
	taken   chan struct{} // closed, and made anew, when something waits no more
	cancel  context.CancelFunc
	ended   chan struct{}
}

// commit is what a publish job is for.
type commit struct {
	job    int64
	due    time.Time // of the job
	ranges []portal.IDRange
	rows   []portal.EventRow // of ranges, if known
	known  bool
}

// events is how many a commit has, at most.
func (c *commit) events() (n int) {
	if c.known {
		return len(c.rows)
	}
	for _, r := range c.ranges {
		n += r.Len()
	}
	return n
}

// size is roughly what a commit takes, in bytes, once its rows are read.
func (c *commit) size() int {
	n := 1<<10 + c.events()<<10
	for i := range c.rows {
		n += len(c.rows[i].Detail)
		if l := c.rows[i].Link; l != nil {
			n += len(l.Session) + len(l.Metadata)
		}
	}
	return n
}

const (
	publishLater  = 10 * time.Second // after the commit a publish job is due
	expressLeast  = 5 * time.Second  // what has less left until its job is due is left to that
	expressBytes  = 16 << 20         // commits that wait beyond this are left to their jobs
	expressEvents = 2000             // published together
	expressRemove = 100 * time.Millisecond
	expressStop   = 3 * time.Second
)

func newExpress(p *publisher, remove func(context.Context, []int64) error, log *slog.Logger) *express {
	return &express{publisher: p, remove: remove, log: log, wake: make(chan struct{}, 1), taken: make(chan struct{}), ended: make(chan struct{})}
}

func (e *express) start(ctx context.Context) {
	ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	e.mu.Lock()
	e.open = true
	e.mu.Unlock()
	go e.run(ctx)
}

// stop takes no more commits, and returns when those that wait are published, or after expressStop.
func (e *express) stop() {
	e.mu.Lock()
	open := e.open
	e.open = false
	e.mu.Unlock()
	if !open {
		return
	}
	e.signal()
	defer time.AfterFunc(expressStop, e.cancel).Stop()
	<-e.ended
	e.cancel()
}

func (e *express) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// takes tells whether commits are taken at all.
func (e *express) takes() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.open
}

// put takes a commit, or leaves it to its job.
func (e *express) put(c commit) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if size := c.size(); e.open && e.size+size <= expressBytes {
		e.waiting = append(e.waiting, c)
		e.size += size
		e.signal()
	}
}

// run publishes what waits, together, and deletes jobs in passing.
func (e *express) run(ctx context.Context) {
	defer close(e.ended)
	var done []int64
	var since time.Time // the first of them
	for {
		commits, more := e.take(len(done) > 0)
		if len(done) == 0 {
			since = time.Now()
		}
		done = append(done, e.serve(ctx, commits)...)
		if len(done) > 0 && (!more || time.Since(since) >= expressRemove) {
			e.removeAll(ctx, done)
			done = nil
		}
		if !more {
			return
		}
	}
}

// take waits for commits, not long when hurried, and returns the oldest; more is false once nothing waits and
// nothing is to come.
func (e *express) take(hurried bool) (commits []commit, more bool) {
	timeout := make(<-chan time.Time) // never
	if hurried {
		timeout = time.After(expressRemove)
	}
	select {
	case <-e.wake:
	case <-timeout:
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for events := 0; n < len(e.waiting) && (n == 0 || events+e.waiting[n].events() <= expressEvents); n++ {
		events += e.waiting[n].events()
		e.size -= e.waiting[n].size()
	}
	commits, e.waiting = e.waiting[:n:n], e.waiting[n:]
	close(e.taken)
	e.taken = make(chan struct{})
	if len(e.waiting) > 0 || !e.open {
		e.signal()
	}
	return commits, e.open || len(e.waiting) > 0
}

// removeAll deletes jobs whose events are stored.
func (e *express) removeAll(ctx context.Context, jobs []int64) {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout) // a connection half dead must not stop the publishing
	defer cancel()
	for chunk := range slices.Chunk(jobs, 1000) {
		if err := e.remove(ctx, chunk); err != nil {
			e.log.Warn("publish jobs whose events are stored stay, and publish them again", "jobs", len(jobs), "error", err)
			return
		}
	}
}

// serve publishes the events of commits and returns the jobs that have so become needless.
func (e *express) serve(ctx context.Context, commits []commit) (done []int64) {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil { // its value could hold anything
			e.log.Error("publishing panicked; please report the stack", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			done = nil // their jobs meet it too, each by itself
		}
	}()
	var events []notify.Event
	for _, c := range commits {
		if time.Until(c.due) < expressLeast {
			continue
		}
		made, err := e.events(ctx, c)
		if err != nil { // the job meets it too, and says so
			continue
		}
		events, done = append(events, made...), append(done, c.job)
	}
	if len(events) == 0 {
		return done
	}
	if err := e.publisher.store(ctx, events, nil); err != nil {
		e.log.Warn("events could not be stored at once; their jobs will publish them", "events", len(events), "error", err)
		return nil
	}
	return done
}

// events are those of a commit; an error where one can't be made.
func (e *express) events(ctx context.Context, c commit) (events []notify.Event, err error) {
	rows := c.rows
	if !c.known {
		if rows, err = e.publisher.rows(ctx, c.ranges); err != nil {
			return nil, err
		}
	}
	events, _, err = e.publisher.events(rows)
	return events, err
}
