package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"latchkey/internal/crowd"
	"latchkey/internal/portal"
	"latchkey/internal/stripesim"
)

// people are n customers with a link each, before these workers.
func (d *deployment) people(n int, origins ...string) []*crowd.Person {
	d.t.Helper()
	c := &crowd.Crowd{Origins: origins, Client: crowd.NewClient()}
	d.t.Cleanup(c.Client.CloseIdleConnections)
	people := make([]*crowd.Person, n)
	d.all(n, func(i int) {
		req := request(fmt.Sprintf("person-%d", i))
		req.Campaign = "spring"
		req.Session.Customer = fmt.Sprintf("cus_Person%d", i)
		link, err := d.producer.SendAndWait(d.soon(), d.message(req))
		if err != nil {
			d.t.Errorf("request %s: %v", req.ID, err)
			return
		}
		u, err := url.Parse(link.URL)
		if err != nil {
			d.t.Error(err)
			return
		}
		people[i] = &crowd.Person{Crowd: c, Path: u.Path, IP: fmt.Sprintf("198.18.0.%d", i+1)}
	})
	if d.t.Failed() {
		d.t.FailNow()
	}
	return people
}

// all does something n times, some of it at the same time.
func (d *deployment) all(n int, do func(i int)) {
	d.t.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(n, 16) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	all.Wait()
}

const trusted = "TRUSTED_PROXIES=127.0.0.0/8"

// A hundred people press at once, before two worker processes, while Stripe lets half as much again
// pass as STRIPE_RATE: all of them get through, in their order, and Stripe refuses none.
func TestStampede(t *testing.T) {
	t.Parallel()
	const n, rate = 100, 20
	d := deploy(t)
	first := d.serve(trusted, fmt.Sprintf("STRIPE_RATE=%d", rate))
	second := d.serve(trusted, fmt.Sprintf("STRIPE_RATE=%d", rate))
	people := d.people(n, first.http, second.http)
	// Less than two workers would call that each kept a budget of its own, and room for half a
	// second in which a busy machine lets nobody run. The bench has Stripe's real limit.
	d.sim.SetRate(rate * 3 / 2)
	var crowded sync.WaitGroup
	for i, p := range people {
		crowded.Go(func() {
			if err := p.Press(d.soon(), 1); err != nil {
				t.Errorf("person %d: %v", i, err)
			}
		})
	}
	crowded.Wait()
	waited := 0
	for i, p := range people {
		if errs := p.Errors(true); len(errs) > 0 || p.Through().IsZero() || p.Presses != 1 {
			t.Errorf("person %d, %d presses: %v, on the way %v", i, p.Presses, errs, p.Answers)
		}
		if p.Waited() {
			waited++
		}
	}
	if waited == 0 {
		t.Error("nobody saw the waiting page: this was no stampede")
	}
	calls, refused := d.sim.Calls(), 0
	for _, c := range calls {
		if c.Status == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused > len(calls)/100 {
		t.Errorf("Stripe refused %d of %d calls", refused, len(calls))
	}
	for i, by := range d.displaced() {
		if by > rate {
			t.Errorf("session %d of those who waited was made %d places out of the order of the tickets", i, by)
		}
	}
	d.wantBooks(n)
}

// tickets are those of everybody who was in line, by idempotency key.
func (d *deployment) tickets() map[string]int64 {
	d.t.Helper()
	rows, err := d.pool.Query(d.t.Context(), `SELECT 'latchkey_click_' || id, ticket FROM clicks WHERE ticket > 0`)
	if err != nil {
		d.t.Fatal(err)
	}
	tickets := map[string]int64{}
	var key string
	var ticket int64
	if _, err := pgx.ForEachRow(rows, []any{&key, &ticket}, func() error { tickets[key] = ticket; return nil }); err != nil {
		d.t.Fatal(err)
	}
	return tickets
}

// displaced is for each session of somebody with a ticket, in the order in which Stripe made them,
// how many places off its ticket's it is.
func (d *deployment) displaced() (places []int) {
	d.t.Helper()
	tickets := d.tickets()
	inOrder := slices.Sorted(maps.Values(tickets))
	for _, s := range d.sim.Sessions() {
		if ticket, ok := tickets[s.IdempotencyKey]; ok {
			off := slices.Index(inOrder, ticket) - len(places)
			places = append(places, max(off, -off))
		}
	}
	if len(places) != len(tickets) {
		d.t.Errorf("%d sessions for %d tickets", len(places), len(tickets))
	}
	return places
}

// wantBooks checks that each of n clicks has its click.started and its session.created, and that
// uses and sessions are as many.
func (d *deployment) wantBooks(n int) {
	d.t.Helper()
	for what, sql := range map[string]string{
		"clicks":                     `SELECT count(*) FROM clicks`,
		"clicks with one start":      `SELECT count(*) FROM (SELECT FROM audit_events WHERE kind = 'click.started' GROUP BY click_id HAVING count(*) = 1) c`,
		"clicks with one session":    `SELECT count(*) FROM (SELECT FROM audit_events WHERE kind = 'session.created' GROUP BY click_id HAVING count(*) = 1) c`,
		"rows of starts":             `SELECT count(*) FROM audit_events WHERE kind = 'click.started'`,
		"rows of outcomes":           `SELECT count(*) FROM audit_events WHERE kind IN ('session.created', 'session.failed')`,
		"uses":                       `SELECT sum(sessions_created) FROM links`,
		"links without reserved use": `SELECT count(*) FROM links WHERE sessions_reserved = 0`,
	} {
		if got := d.number(sql); got != n {
			d.t.Errorf("%s: %d, want %d", what, got, n)
		}
	}
	if got := len(d.sim.Sessions()); got != n {
		d.t.Errorf("Stripe made %d sessions, want %d", got, n)
	}
}

// Stripe loses answers, hangs, answers 500, refuses connections, while people leave their pages
// open: when it is back, all of them get through, no attempt has two sessions, and the books add up.
func TestOutage(t *testing.T) {
	t.Parallel()
	const n = 20
	d := deploy(t)
	stripe := d.gate()
	w := d.start(func(c *Config) { c.TrustedProxyCIDRs = []string{"127.0.0.0/8"} })
	people := d.people(n, w.click)

	d.sim.SetOutage(&stripesim.Fault{Kind: stripesim.FaultDropAfter})
	d.all(2, func(i int) { people[i].Step(t.Context()) }) // two: too few to have Stripe spared
	lost := len(d.sim.Sessions())
	for _, fault := range []stripesim.Fault{{Kind: stripesim.FaultHang}, {Kind: stripesim.FaultStatus, Status: http.StatusInternalServerError}} {
		d.sim.SetOutage(&fault)
		before := len(d.sim.Calls())
		d.comeBackUntil(people, "Stripe to be asked in vain: "+string(fault.Kind), func() bool { return len(d.sim.Calls()) > before })
	}
	stripe.refuse()
	d.comeBackUntil(people, "a refused connection", func() bool { return stripe.refused.Load() > 0 })
	for i, p := range people {
		if p.Done() {
			t.Errorf("person %d has nothing to come back from, while Stripe is away: %v", i, p.Answers)
		}
	}
	d.sim.SetOutage(nil)
	stripe.accept()
	d.comeBackUntil(people, "everybody to get through", func() bool {
		return !slices.ContainsFunc(people, func(p *crowd.Person) bool { return !p.Done() })
	})

	for i, p := range people {
		if errs := p.Errors(false); len(errs) > 0 || p.Through().IsZero() {
			t.Errorf("person %d: %v, on the way %v", i, errs, p.Answers)
		}
	}
	keys := map[string]int{}
	for _, s := range d.sim.Sessions() {
		if keys[s.IdempotencyKey]++; keys[s.IdempotencyKey] > 1 {
			t.Errorf("%d sessions for %s", keys[s.IdempotencyKey], s.IdempotencyKey)
		}
	}
	if got := len(keys); lost != 2 || got != n+lost {
		t.Errorf("%d sessions, want one for each of %d people and the %d whose answer was lost", got, n, lost)
	}
	d.sweep()
	for what, sql := range map[string]string{
		"uses":                     `SELECT sum(sessions_created) FROM links`,
		"sessions in the audit":    `SELECT count(*) FROM audit_events WHERE kind = 'session.created'`,
		"links with all uses back": `SELECT count(*) FROM links WHERE sessions_reserved = 0`,
	} {
		if got := d.number(sql); got != n {
			t.Errorf("%s: %d, want %d", what, got, n)
		}
	}
	if got := d.number(`SELECT count(*) FROM (SELECT FROM audit_events WHERE click_id IS NOT NULL AND kind <> 'click.denied' GROUP BY click_id
		HAVING count(*) FILTER (WHERE kind = 'click.started') <> 1 OR count(*) FILTER (WHERE kind IN ('session.created', 'session.failed')) <> 1) c`); got != 0 {
		t.Errorf("%d clicks without exactly one start and one outcome", got)
	}
}

// gate stands before the simulator and can refuse connections. It resets them: a port that nobody
// listens on could be anybody's by the time that it is wanted back.
type gate struct {
	net.Listener
	server   *httptest.Server
	refusing atomic.Bool
	refused  atomic.Int64
}

// gate puts one before the simulator for the workers to come.
func (d *deployment) gate() *gate {
	g := &gate{server: httptest.NewUnstartedServer(d.sim)}
	g.Listener, g.server.Listener = g.server.Listener, g
	g.server.Start()
	d.t.Cleanup(g.server.Close)
	d.simURL = g.server.URL
	return g
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil || !g.refusing.Load() {
			return c, err
		}
		g.refused.Add(1)
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

func (g *gate) refuse() { g.refusing.Store(true); g.server.CloseClientConnections() }
func (g *gate) accept() { g.refusing.Store(false) }

// comeBackUntil has everybody who is not through come back, four times a second in place of the
// seconds that their pages say.
func (d *deployment) comeBackUntil(people []*crowd.Person, what string, met func() bool) {
	d.t.Helper()
	ctx := d.soon()
	tick := time.NewTicker(time.Second / 4)
	defer tick.Stop()
	for {
		var round sync.WaitGroup
		for _, p := range people {
			if !p.Done() {
				round.Go(func() { p.Step(ctx) })
			}
		}
		round.Wait()
		if met() {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			d.t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}

// sweep closes what is open, as if its time were over.
func (d *deployment) sweep() {
	d.t.Helper()
	if _, err := d.pool.Exec(d.t.Context(), `UPDATE clicks SET open_until = now() - interval '1 second' WHERE outcome IS NULL`); err != nil {
		d.t.Fatal(err)
	}
	publish := func(context.Context, *portal.Tx, ...portal.IDRange) error { return nil }
	if _, err := portal.NewStore(d.pool, publish, time.Now).Sweep(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
}

// Mail gateways open every link, many at a time, by GET and HEAD: each gets its page, Stripe hears
// nothing, and nothing is used up.
func TestScannerBurst(t *testing.T) {
	t.Parallel()
	const links, each, gateways = 100, 50, 7
	d := deploy(t)
	w := d.start(func(c *Config) { c.TrustedProxyCIDRs = []string{"127.0.0.0/8"} })
	scanned := d.people(links, w.click)
	agents := []string{"python-requests/2.32.3", "Mozilla/5.0 (compatible; BarracudaCentral; +https://www.barracudacentral.org)", ""}
	d.all(links, func(i int) {
		for j := range each {
			scanned[i].IP = fmt.Sprintf("203.0.113.%d", (i+j)%gateways+1)
			scanned[i].Agent = http.Header{"User-Agent": {agents[j%len(agents)]}, "Accept": {"*/*"}}
			scanned[i].Open(t.Context(), []string{http.MethodHead, http.MethodGet}[j%2])
		}
	})
	for i, p := range scanned {
		for _, a := range p.Answers {
			if a.Status != http.StatusOK || a.Refresh > 0 {
				t.Errorf("link %d: %v", i, a)
			}
		}
		if len(p.Answers) != each {
			t.Errorf("link %d: %d answers", i, len(p.Answers))
		}
	}
	if n := len(d.sim.Calls()); n != 0 {
		t.Errorf("%d calls to Stripe", n)
	}
	if n := d.number(`SELECT count(*) FROM links WHERE sessions_created + sessions_reserved > 0`); n != 0 {
		t.Errorf("%d links were used", n)
	}
	if n := d.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.opened'`); n != links*each {
		t.Errorf("%d opens in the audit, want %d", n, links*each)
	}
}
