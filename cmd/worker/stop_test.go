package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// SIGTERM during load: no request is lost, no started click is left without an outcome, exit 0.
func TestSIGTERMDuringLoad(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	p := d.serve()
	links := make([]string, 20) // one a person: a link has a limit of its own
	for i := range links {
		links[i] = d.link(request(fmt.Sprintf("clicked-%d", i))).URL
	}
	d.sim.SetLatency(300 * time.Millisecond)

	ctx, stopLoad := context.WithCancel(t.Context())
	defer stopLoad()
	var load sync.WaitGroup
	var sent, redirected atomic.Int64
	load.Go(func() { // requests, beyond the stop
		for i := 0; i < 3000 && ctx.Err() == nil; i++ {
			if _, err := d.producer.Send(ctx, d.message(request(fmt.Sprintf("load-%d", i)))); err == nil {
				sent.Add(1)
			}
		}
	})
	for _, link := range links { // people who press the button until the server is gone
		load.Go(func() {
			for ctx.Err() == nil {
				status, _, _, err := do(ctx, http.MethodPost, link)
				if err != nil {
					return
				}
				if status == http.StatusSeeOther {
					redirected.Add(1)
				}
			}
		})
	}
	d.until("clicks and links", func() bool {
		return len(d.sim.Sessions()) > 40 && d.number(`SELECT count(*) FROM links`) > 100
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.exitInTime(t); code != 0 {
		t.Fatalf("exit %d:\n%s", code, tail(p.out.String()))
	}
	if open := d.number(`SELECT count(*) FROM clicks WHERE outcome IS NULL`); open != 0 {
		t.Errorf("%d started clicks have no outcome", open)
	}
	started, ended := d.number(`SELECT count(*) FROM audit_events WHERE kind = 'click.started'`), d.number(`SELECT count(*) FROM audit_events WHERE kind IN ('session.created', 'session.failed')`)
	if started != ended || started == 0 {
		t.Errorf("%d clicks started, %d outcomes", started, ended)
	}
	if n := d.number(`SELECT sum(sessions_created) FROM links`); n != len(d.sim.Sessions()) {
		t.Errorf("%d sessions counted, Stripe made %d", n, len(d.sim.Sessions()))
	}
	load.Wait()

	d.start() // the next worker takes up what is left
	want := int(sent.Load()) + len(links)
	d.until("every request to become a link", func() bool { return d.number(`SELECT count(*) FROM links`) == want })
	d.eventIDs(t.Context(), d.number(`SELECT count(*) FROM audit_events WHERE kind NOT IN ('click.started', 'click.denied', 'audit.sealed')`))
}

// Two replicas are replaced one by one while requests, creates and presses stream in: no request is lost or doubled, and
// behind a load balancer that goes by readyz, every press comes to the portal.
func TestReplicasAreReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	fleet := &fleet{}
	drains := func(c *Config) { c.HTTPDrainTime = 3 * time.Second }
	replicas := []*instance{d.start(drains), d.start(drains)}
	fleet.set(replicas)
	link := make([]string, 10)
	for i := range link {
		link[i] = tokenOf(d.link(request(fmt.Sprintf("clicked-%d", i))).URL)
	}
	ctx, stopLoad := context.WithCancel(t.Context())
	defer stopLoad()
	var load sync.WaitGroup
	var sent, created, pressed atomic.Int64
	load.Go(func() {
		for ; ctx.Err() == nil; sent.Add(1) {
			if _, err := d.producer.Send(t.Context(), d.message(request(fmt.Sprintf("sent-%d", sent.Load())))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	load.Go(func() {
		for ; ctx.Err() == nil; created.Add(1) {
			m := d.message(request(fmt.Sprintf("created-%d", created.Load())))
			_, err := d.producer.Create(t.Context(), m)
			for err != nil && t.Context().Err() == nil { // as a producer does
				_, err = d.producer.Create(t.Context(), m)
			}
		}
	})
	load.Go(func() {
		for ; ctx.Err() == nil; pressed.Add(1) {
			if status, err := fleet.press(t.Context(), "/l/"+link[pressed.Load()%10]); err != nil || status != http.StatusSeeOther {
				t.Errorf("a press: %d %v", status, err)
				return
			}
		}
	})
	more := func() {
		s, c, p := sent.Load()+30, created.Load()+10, pressed.Load()+10
		d.until("more of each load", func() bool {
			return t.Failed() || sent.Load() >= s && created.Load() >= c && pressed.Load() >= p
		})
	}
	more()
	for i := range replicas {
		if err := replicas[i].stop(); err != nil {
			t.Fatal(err)
		}
		more()
		replicas[i] = d.start(drains)
		fleet.set(replicas)
		more()
	}
	stopLoad()
	load.Wait()
	want := int(sent.Load()+created.Load()) + len(link)
	d.until("every request to become a link", func() bool { return d.number(`SELECT count(*) FROM links`) == want })
	if n := d.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.issued'`); n != want {
		t.Errorf("%d link.issued for %d links", n, want)
	}
	if n := d.number(`SELECT count(*) FROM clicks WHERE outcome IS DISTINCT FROM 'created'`); n != 0 {
		t.Errorf("%d clicks without a session", n)
	}
}

// fleet is a load balancer.
type fleet struct {
	mu       sync.Mutex
	replicas []*instance
}

func (f *fleet) set(replicas []*instance) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replicas = slices.Clone(replicas)
}

// press goes to the first replica that says that it is ready.
func (f *fleet) press(ctx context.Context, path string) (status int, err error) {
	f.mu.Lock()
	replicas := f.replicas
	f.mu.Unlock()
	for _, r := range replicas {
		if ready, _, _, down := do(ctx, http.MethodGet, r.admin+"/readyz"); down == nil && ready == http.StatusOK {
			status, _, _, err = do(ctx, http.MethodPost, r.click+path)
			return status, err
		}
	}
	return 0, errors.New("no replica is ready")
}

// Clicks are served on for HTTP_DRAIN_TIME, each on a connection that ends with it. A hanging Stripe does not hold up
// the stop, not even behind the longest drain: the call is cut and the click's outcome written.
func TestStopCutsAHangingStripe(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	p := d.serve("HTTP_DRAIN_TIME=7s")
	req := request("hang")
	req.Session.Customer = "cus_hang1"
	link := d.link(req)
	var press sync.WaitGroup
	var status int
	press.Go(func() { status, _, _, _ = do(t.Context(), http.MethodPost, link.URL) })
	d.until("the call to Stripe", func() bool { return d.number(`SELECT count(*) FROM clicks`) == 1 && len(d.sim.Calls()) > 0 })
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.until("readyz to say so", func() bool {
		status, _, _ := d.do(http.MethodGet, p.admin+"/readyz")
		return status == http.StatusServiceUnavailable
	})
	resp, err := http.Get(link.URL)
	if err != nil {
		t.Fatalf("a click while the load balancer may not know yet: %v", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("a click while the load balancer may not know yet: %s, the connection ends: %t", resp.Status, resp.Close)
	}
	if code := p.exitInTime(t); code != 0 {
		t.Fatalf("exit %d:\n%s", code, tail(p.out.String()))
	}
	press.Wait()
	if status != http.StatusServiceUnavailable {
		t.Errorf("the customer got %d, want the page that says to try again", status)
	}
	if n := d.number(`SELECT count(*) FROM audit_events WHERE kind = 'session.failed' AND detail->>'code' = 'interrupted'`); n != 1 {
		t.Errorf("%d outcomes", n)
	}
}

// A database that stands still does not hold up the stop either: intake gives its batch back, the
// click is told to try again, and the process ends in time.
func TestStopWhileTheDatabaseStandsStill(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	p := d.serve()
	link := d.link(request("before"))
	release := d.holdLinks()
	if _, err := d.producer.Send(d.soon(), d.message(request("behind the lock"))); err != nil {
		t.Fatal(err)
	}
	var press sync.WaitGroup
	press.Go(func() { _, _, _, _ = do(t.Context(), http.MethodPost, link.URL) })
	d.until("intake and the click to wait for the lock", func() bool {
		return d.number(`SELECT count(*) FROM pg_locks WHERE relation = 'links'::regclass AND NOT granted`) >= 2
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.exitInTime(t); code != 0 {
		t.Errorf("exit %d:\n%s", code, tail(p.out.String()))
	}
	press.Wait()
	release()
	d.start()
	d.until("the request to become a link", func() bool { return d.number(`SELECT count(*) FROM links`) == 2 })
}

// kill -9 under load: the next worker finds every request, and nothing is there twice.
func TestSIGKILLDuringIntake(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	p := d.serve()
	const n = 2000
	for i := range n {
		if _, err := d.producer.Send(t.Context(), d.message(request(fmt.Sprintf("load-%d", i)))); err != nil {
			t.Fatal(err)
		}
		if i == n/2 {
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.exit()
	d.expireRiver()
	d.start()
	d.until("every request to become a link", func() bool { return d.number(`SELECT count(*) FROM links`) == n })
	if rows := d.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.issued'`); rows != n {
		t.Errorf("%d link.issued rows for %d links", rows, n)
	}
	d.eventIDs(t.Context(), n)
}

// expireRiver moves the clock of a killed worker's leadership and jobs, in place of waiting for it.
func (d *deployment) expireRiver() {
	d.t.Helper()
	for _, sql := range []string{
		`UPDATE river_leader SET expires_at = now() - interval '1 minute'`,
		`UPDATE river_job SET attempted_at = attempted_at - interval '1 hour' WHERE state = 'running'`,
	} {
		if _, err := d.pool.Exec(d.t.Context(), sql); err != nil {
			d.t.Fatal(err)
		}
	}
}

func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
