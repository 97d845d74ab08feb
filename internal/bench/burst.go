package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/internal/crowd"
)

// scanners are mail gateways as they introduce themselves, or don't.
var scanners = []http.Header{
	{"User-Agent": {"Mozilla/5.0 (compatible; BarracudaCentral; +https://www.barracudacentral.org)"}, "Accept": {"*/*"}},
	{"User-Agent": {"python-requests/2.32.3"}, "Accept": {"*/*"}},
	{"User-Agent": {"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"}, "Accept": {"text/html"}},
	{"User-Agent": {""}},
}

const (
	gateways    = 8  // addresses
	gatewayJobs = 4  // links that each of them opens at a time
	scansEach   = 2  // GETs and HEADs of a link
	steady      = 20 // people a second
)

// burst has gateways open a campaign's links while people click theirs.
func (b *bench) burst(ctx context.Context) error {
	scans := 5000
	if b.short {
		scans = 1000
	}
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer sim.close()
	links, patients := scans/scansEach, steady*60 // enough for a minute, most of whom don't come
	s, err := b.site(ctx, binary, "burst", links+patients, sim.url, "TRUSTED_PROXIES=127.0.0.0/8")
	if err != nil {
		return err
	}
	defer s.close()
	everybody, err := s.people(links+patients, s.worker)
	if err != nil {
		return err
	}
	scanned, people := everybody[:links], everybody[links:]
	var over atomic.Bool
	var failed error
	var all sync.WaitGroup
	began := time.Now()
	all.Go(func() { people, failed = come(ctx, people, &over) })
	bad := scan(ctx, scanned)
	took := time.Since(began)
	over.Store(true)
	all.Wait()
	if failed != nil {
		return failed
	}
	b.goal(bad == 0, fmt.Sprintf("burst of %d GET and HEAD from %d gateways: not answered 200", scans, gateways), strconv.Itoa(bad), fmt.Sprintf("%.0f/s", float64(scans)/took.Seconds()), "", "0")
	return b.tellBurst(ctx, s, sim, scanned, people)
}

// come lets people click, 20 a second, until the burst is over, and returns those who did.
func come(ctx context.Context, people []*crowd.Person, over *atomic.Bool) (came []*crowd.Person, failed error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	tick := time.NewTicker(time.Second / steady)
	defer tick.Stop()
	for _, p := range people {
		if over.Load() {
			break
		}
		came = append(came, p)
		all.Go(func() {
			p.Look(ctx)
			err := p.Press(ctx, 1)
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
		})
		<-tick.C
	}
	all.Wait()
	return came, failed
}

// scan opens each link by GET and by HEAD, as much as the gateways can, and returns how many were
// not answered 200.
func scan(ctx context.Context, links []*crowd.Person) (bad int) {
	var next, failed atomic.Int64
	var all sync.WaitGroup
	for job := range gateways * gatewayJobs {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(links) {
					return
				}
				links[i].IP, links[i].Agent = fmt.Sprintf("203.0.113.%d", job%gateways+1), scanners[i%len(scanners)]
				for _, method := range []string{http.MethodHead, http.MethodGet} {
					if links[i].Open(ctx, method).Status != http.StatusOK {
						failed.Add(1)
					}
				}
			}
		})
	}
	all.Wait()
	return int(failed.Load())
}

func (b *bench) tellBurst(ctx context.Context, s *site, sim *simulator, scanned, people []*crowd.Person) error {
	var took []time.Duration
	for _, p := range people {
		for _, a := range p.Answers {
			took = append(took, a.At.Sub(a.Sent))
		}
	}
	var uses, calls int
	if err := s.pool.QueryRow(ctx, `SELECT coalesce(sum(sessions_created + sessions_reserved), 0) FROM links`).Scan(&uses); err != nil {
		return err
	}
	calls = len(sim.Calls())
	b.goal(calls == len(people), "  calls to Stripe", strconv.Itoa(calls), fmt.Sprintf("people: %d", len(people)), "", "theirs only")
	b.goal(uses == len(people), "  uses counted", strconv.Itoa(uses), fmt.Sprintf("people: %d", len(people)), "", "theirs only")
	b.tellPeople(fmt.Sprintf("  people meanwhile, %d a second", steady), people, true)
	p50, p99 := quantile(took, 0.5), quantile(took, 0.99)
	b.goal(p99 < 250*time.Millisecond, fmt.Sprintf("  their %d requests, p50 and p99", len(took)), ms(p50)+", "+ms(p99), "", "", "p99 < 250 ms")
	return nil
}
