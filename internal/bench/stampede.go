package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"latchkey/internal/crowd"
	"latchkey/internal/stripesim"
)

// stripeRate is the STRIPE_RATE of the parts that go by it, and stripeLimit what the simulator
// lets pass in any one second: Stripe's 25, of which the rest is for a process's stutter.
const stripeRate, stripeLimit = 20, 25

var paced = []string{fmt.Sprintf("STRIPE_RATE=%d", stripeRate), "TRUSTED_PROXIES=127.0.0.0/8"}

// stampede has everybody press the button within a second, before two workers.
func (b *bench) stampede(ctx context.Context) error {
	n := 1000
	if b.short {
		n = 100
	}
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer sim.close()
	sim.SetRate(stripeLimit)
	s, err := b.site(ctx, binary, "stampede", n, sim.url, paced...)
	if err != nil {
		return err
	}
	defer s.close()
	second, err := b.startWorker(ctx, binary, "stampede", sim.url, paced...)
	if err != nil {
		return err
	}
	defer second.Stop()
	people, err := s.people(n, s.worker, second)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var failed error
	var all sync.WaitGroup
	for _, p := range people { // the page is read before; what is measured begins with the button
		p.Look(ctx)
	}
	for _, p := range people {
		all.Go(func() {
			time.Sleep(rand.N(time.Second))
			err := p.Press(ctx, 1)
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
		})
	}
	all.Wait()
	if failed != nil {
		return failed
	}
	b.tellStampede(people, sim)
	return nil
}

func (b *bench) tellStampede(people []*crowd.Person, sim *simulator) {
	n := len(people)
	b.tellPeople(fmt.Sprintf("stampede, %d people, two workers, STRIPE_RATE %d", n, stripeRate), people, true)
	waited := 0
	var first, last time.Time
	for _, p := range people {
		if p.Waited() {
			waited++
		}
		if first.IsZero() || p.Pressed.Before(first) {
			first = p.Pressed
		}
		if at := p.Through(); at.After(last) {
			last = at
		}
	}
	b.goal(true, "  saw the waiting page", strconv.Itoa(waited), "", "", "shown")
	most, median := overtaken(people, sim.Sessions())
	b.goal(most < time.Second, "  served after somebody who pressed that much later, at most and median", ms(most)+", "+ms(median), "", "", "< 1 s")
	took, ideal := last.Sub(first), time.Duration(n)*time.Second/stripeRate
	ratio := took.Seconds() / ideal.Seconds()
	b.goal(ratio > 0.85 && ratio < 1.15, "  first press to last redirect", took.Round(time.Millisecond).String(),
		fmt.Sprintf("%d / %d s: %s", n, stripeRate, ideal), fmt.Sprintf("%.2f", ratio), "0.85 to 1.15")
	calls := sim.Calls()
	refused := 0
	for _, c := range calls {
		if c.Status == http.StatusTooManyRequests {
			refused++
		}
	}
	b.goal(refused*100 < len(calls), fmt.Sprintf("  calls that Stripe refused, at %d a second", stripeLimit), strconv.Itoa(refused), fmt.Sprintf("%d calls", len(calls)), "", "< 1 %")
}

// tellPeople prints who is through and who saw an error page, which nobody may.
func (b *bench) tellPeople(what string, people []*crowd.Person, nothingIsDown bool) {
	through := 0
	var errs []crowd.Answer
	kinds := map[string]int{}
	for _, p := range people {
		if !p.Through().IsZero() {
			through++
		}
		for _, a := range p.Errors(nothingIsDown) {
			errs = append(errs, a)
			kinds[a.String()]++
		}
	}
	b.goal(through == len(people), what+": through", fmt.Sprintf("%d of %d", through, len(people)), "", "", "all")
	var listed []string
	for kind, n := range kinds {
		listed = append(listed, fmt.Sprintf("%s: %d", kind, n))
	}
	slices.Sort(listed)
	b.goal(len(errs) == 0, "  error pages", strconv.Itoa(len(errs)), strings.Join(listed, ", "), "", "0")
}

// overtaken is how much later than a person somebody pressed who was served before: the most over
// all people, and the median. Pressed is when the POST was sent, served when Stripe made the
// session.
func overtaken(people []*crowd.Person, sessions []stripesim.Session) (most, mid time.Duration) {
	pressed := map[string]time.Time{}
	for _, p := range people {
		for _, a := range p.Answers {
			if a.Location != "" {
				pressed[a.Location] = p.Pressed
			}
		}
	}
	var latest time.Time // press of those served so far
	var all []time.Duration
	for _, s := range sessions { // in the order in which they were made
		at, ok := pressed[s.URL]
		if !ok {
			continue // nobody was sent there
		}
		if at.After(latest) {
			latest = at
		}
		all = append(all, latest.Sub(at))
	}
	if len(all) == 0 {
		return 0, 0
	}
	return slices.Max(all), median(all)
}

// people are n customers, each with a link and an address of their own.
func (s *site) people(n int, workers ...*worker) ([]*crowd.Person, error) {
	c := &crowd.Crowd{Client: crowd.NewClient()}
	for _, w := range workers {
		c.Origins = append(c.Origins, w.Public)
	}
	people := make([]*crowd.Person, n)
	for i := range people {
		token, err := s.token(i)
		if err != nil {
			return nil, err
		}
		people[i] = &crowd.Person{Crowd: c, Path: "/l/" + token, IP: fmt.Sprintf("198.18.%d.%d", i/250%256, i%250+1)}
	}
	return people, nil
}
