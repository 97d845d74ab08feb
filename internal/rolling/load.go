package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

// Each phase of a replacement sees so much more of each kind of load.
const (
	phaseRequests = 300
	phaseCreates  = 100
	phaseClicks   = 100
)

// load is what streams in, and what became of it.
type load struct {
	d       *deployment
	running sync.WaitGroup
	stop    context.CancelFunc
	sent    atomic.Int64 // requests that JetStream acknowledged
	created atomic.Int64 // creates that were answered with a link
	retried atomic.Int64 // tries at them that were not
	clicked atomic.Int64 // presses that came to the portal
	passed  atomic.Int64 // presses that a stopping replica refused, and that the other one took
	again   atomic.Int64 // presses that got the page that tries again by itself, while a migration held a table

	migrating atomic.Bool

	mu     sync.Mutex
	failed []error
	links  []*jobs.IssuedData
}

// begin returns with the load under way. What is asked for when ctx ends is asked to its end.
func (d *deployment) begin(ctx context.Context) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{d: d, stop: cancel}
	l.running.Go(func() { l.publish(ctx) })
	l.running.Go(func() { l.create(ctx) })
	for range 4 {
		l.running.Go(func() { l.click(ctx) })
	}
	return l
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, err)
}

func request(kind string, n int64) (producer.Message, error) {
	return producer.NewMessage(&jobs.Request{ID: fmt.Sprintf("%s-%d", kind, n), Source: "rolling", Session: &portal.SessionParams{Customer: "cus_Rolling"}})
}

// publish sends requests, a few hundred a second: the machine is to have room for the rest.
func (l *load) publish(ctx context.Context) {
	for tick := time.NewTicker(4 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		m, err := request("sent", l.sent.Load())
		if err == nil {
			_, err = l.d.client.Send(context.WithoutCancel(ctx), m)
		}
		if err != nil {
			l.fail(fmt.Errorf("publish: %w", err))
			return
		}
		l.sent.Add(1)
	}
}

// create asks for links as a producer does, which asks again when it gets no answer.
func (l *load) create(ctx context.Context) {
	for ctx.Err() == nil {
		m, err := request("created", l.created.Load())
		if err != nil {
			l.fail(err)
			return
		}
		link, err := l.createOne(context.WithoutCancel(ctx), m)
		if err != nil {
			l.fail(fmt.Errorf("create: %w", err))
			return
		}
		l.mu.Lock()
		l.links = append(l.links, link)
		l.mu.Unlock()
		l.created.Add(1)
	}
}

func (l *load) createOne(ctx context.Context, m producer.Message) (link *jobs.IssuedData, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		link, err = l.d.client.Create(try, m)
		cancel()
		if err == nil {
			return link, nil
		}
		l.retried.Add(1)
	}
	return nil, err
}

// click presses the buttons of links that were created, each link now and then: it has a limit of its own.
func (l *load) click(ctx context.Context) {
	for next := 0; ctx.Err() == nil; next++ {
		l.mu.Lock()
		var link *jobs.IssuedData
		if n := len(l.links); n >= 20 {
			link = l.links[(n-20)+next%20]
		}
		l.mu.Unlock()
		if link == nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err := l.press(context.WithoutCancel(ctx), link.URL); err != nil {
			l.fail(fmt.Errorf("click: %w", err))
			return
		}
		l.clicked.Add(1)
	}
}

var browser = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// press goes on as the page does that comes with a 503, which a migration may bring about and nothing else.
func (l *load) press(ctx context.Context, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	for patience := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		migrating := l.migrating.Load()
		status, err := l.pressOnce(ctx, u.Path)
		migrating = migrating || l.migrating.Load() // it may have begun meanwhile
		switch {
		case err != nil:
			return err
		case status == http.StatusSeeOther:
			return nil
		case status != http.StatusServiceUnavailable || !migrating || time.Now().After(patience):
			return fmt.Errorf("HTTP %d", status)
		}
		l.again.Add(1)
	}
}

func (l *load) pressOnce(ctx context.Context, path string) (status int, err error) {
	for _, r := range l.d.balancer.ready() {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Public+path, nil)
		if err != nil {
			return 0, err
		}
		resp, err := browser.Do(req)
		if notTaken(err) || r.old && errors.Is(err, io.EOF) {
			l.passed.Add(1)
			continue
		}
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	return 0, errors.New("no replica was ready")
}

// notTaken: the listener was closed already, or closed before it took the connection. An old replica's net/http may also
// have taken it and ended it without an answer, in its Shutdown: that is before HTTP_DRAIN_TIME.
func notTaken(err error) bool {
	dial, ok := errors.AsType[*net.OpError](err)
	return ok && (dial.Op == "dial" || errors.Is(err, syscall.ECONNRESET))
}

// balancer knows the replicas, and asks their readyz for each press; a proxy asks more rarely, and learns of a closed
// listener by a refused connection.
type balancer struct {
	mu       sync.Mutex
	replicas []*replica
	turn     int
}

func (b *balancer) add(r *replica) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.replicas = append(b.replicas, r)
}

// ready are those to try, in turns.
func (b *balancer) ready() (ready []*replica) {
	b.mu.Lock()
	b.turn++
	all := append(append([]*replica{}, b.replicas[b.turn%len(b.replicas):]...), b.replicas[:b.turn%len(b.replicas)]...)
	b.mu.Unlock()
	for _, r := range all {
		if r.Ready() {
			ready = append(ready, r)
		}
	}
	return ready
}
