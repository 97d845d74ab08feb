package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"latchkey/internal/crowd"
	"latchkey/internal/stripesim"
)

// newcomers come each second of the outage.
const newcomers = 10

// outage takes Stripe away in three ways, one after the other, while people keep coming; each of
// them leaves the page open and gets through by it.
func (b *bench) outage(ctx context.Context) error {
	lead, each, haste := 10*time.Second, 10*time.Second, 1
	if b.short {
		// Pages are come back to in a tenth of their time, or the part would last half a minute.
		lead, each, haste = time.Second, time.Second, 10
	}
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer func() { sim.close() }()
	n := int((lead + 3*each).Seconds()) * newcomers
	s, err := b.site(ctx, binary, "outage", n, sim.url, append(paced, "LOG_LEVEL=error")...)
	if err != nil {
		return err
	}
	defer s.close()
	people, err := s.people(n, s.worker)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var failed error
	var all sync.WaitGroup
	all.Go(func() {
		tick := time.NewTicker(time.Second / newcomers)
		defer tick.Stop()
		for _, p := range people {
			all.Go(func() {
				p.Look(ctx)
				err := p.Press(ctx, haste)
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, err)
			})
			<-tick.C
		}
	})
	time.Sleep(lead)
	watch := s.worker.watch()
	recovered, err := fail(sim, each)
	all.Wait()
	took := watch.end(people[0].Crowd.Client)
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	b.tellOutage(people, sim, recovered)
	took.tell(b)
	return nil
}

// fail breaks the simulator in each way for a time, and returns when it was mended.
func fail(sim *simulator, each time.Duration) (recovered time.Time, err error) {
	sim.close()
	time.Sleep(each)
	sim.SetOutage(&stripesim.Fault{Kind: stripesim.FaultStatus, Status: http.StatusInternalServerError})
	if err := sim.reopen(); err != nil {
		return time.Time{}, err
	}
	time.Sleep(each)
	sim.SetOutage(&stripesim.Fault{Kind: stripesim.FaultHang})
	time.Sleep(each)
	recovered = time.Now()
	sim.SetOutage(nil)
	return recovered, nil
}

func (b *bench) tellOutage(people []*crowd.Person, sim *simulator, recovered time.Time) {
	b.tellPeople(fmt.Sprintf("outage of Stripe: refused, 500, hanging; %d people a second, %d in all", newcomers, len(people)), people, false)
	var last time.Time
	late := 0
	for _, p := range people {
		if at := p.Through(); at.After(recovered) {
			late++
			if at.After(last) {
				last = at
			}
		}
	}
	b.goal(true, "  recovery to the last redirect", last.Sub(recovered).Round(100*time.Millisecond).String(),
		fmt.Sprintf("%d people / %d s: %.1f s", late, stripeRate, float64(late)/stripeRate), "", "shown")
	attempts := map[string]int{}
	twice := 0
	for _, s := range sim.Sessions() {
		if attempts[s.IdempotencyKey]++; attempts[s.IdempotencyKey] == 2 {
			twice++
		}
	}
	b.goal(twice == 0, "  attempts with two sessions", strconv.Itoa(twice), fmt.Sprintf("%d sessions", len(sim.Sessions())), "", "0")
	var before, after []time.Time
	for _, c := range sim.Calls() {
		if c.At.After(recovered) {
			after = append(after, c.At)
		} else if c.Fault != "" {
			before = append(before, c.At)
		}
	}
	// Slots are a 20th of a second apart, but calls stutter with the machine: the room up to
	// Stripe's limit is for that.
	most := inOneSecond(after)
	b.goal(most <= stripeLimit, fmt.Sprintf("  calls to Stripe in any one second after recovery, STRIPE_RATE %d", stripeRate), strconv.Itoa(most), "", "", fmt.Sprintf("≤ %d", stripeLimit))
	b.goal(true, "  calls to Stripe that failed, refused connections not counted", strconv.Itoa(len(before)), "", "", "shown")
}

// inOneSecond is the most times that a second holds, wherever it begins; times ascend.
func inOneSecond(times []time.Time) (most int) {
	for from, to := 0, 0; to < len(times); to++ {
		for times[to].Sub(times[from]) >= time.Second {
			from++
		}
		most = max(most, to-from+1)
	}
	return most
}

// watch samples what a worker's process holds.
type watch struct {
	worker           *worker
	stop             chan struct{}
	done             sync.WaitGroup
	first, most, now held
}

type held struct{ goroutines, memory float64 }

func (w *worker) held() held {
	return held{w.Metric("go_goroutines"), w.Metric("process_resident_memory_bytes") / (1 << 20)}
}

func (w *worker) watch() *watch {
	h := w.held()
	watch := &watch{worker: w, stop: make(chan struct{}), first: h, most: h}
	watch.done.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-watch.stop:
				return
			}
			h := w.held()
			watch.most = held{max(watch.most.goroutines, h.goroutines), max(watch.most.memory, h.memory)}
		}
	})
	return watch
}

// end stops the watch and looks once more, when the people's connections are closed and their
// goroutines had a moment to end.
func (w *watch) end(people *http.Client) *watch {
	close(w.stop)
	w.done.Wait()
	people.CloseIdleConnections()
	for range 25 {
		if w.now = w.worker.held(); w.now.goroutines <= w.first.goroutines+20 {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	return w
}

func (w *watch) tell(b *bench) {
	b.goal(w.most.goroutines < w.first.goroutines+500, "  goroutines, at most", fmt.Sprintf("%.0f", w.most.goroutines), fmt.Sprintf("before: %.0f", w.first.goroutines), "", "< 500 more")
	b.goal(w.now.goroutines <= w.first.goroutines+20, "  goroutines, in the end", fmt.Sprintf("%.0f", w.now.goroutines), fmt.Sprintf("before: %.0f", w.first.goroutines), "", "≤ 20 more")
	ratio := w.most.memory / w.first.memory
	b.goal(ratio < 1.5, "  memory, at most", fmt.Sprintf("%.0f MB", w.most.memory), fmt.Sprintf("before: %.0f MB", w.first.memory), fmt.Sprintf("%.2f", ratio), "< 1.5")
}
