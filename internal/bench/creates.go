package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

// creates measures portal.links.create of a worker process that does nothing else: how long an answer
// takes with 16 in flight, and how many a second there are with 64.
func (b *bench) creates(ctx context.Context, client *producer.Client) error {
	n, rounds := 20_000, b.rounds()
	if b.short {
		n = 1_000
	}
	var p50s, p99s, few, many []time.Duration
	var rates []float64
	for range rounds {
		took, _, err := b.create(ctx, client, n/4, 16)
		if err != nil {
			return err
		}
		p50s, p99s = append(p50s, quantile(took, 0.5)), append(p99s, quantile(took, 0.99))
		few = append(few, took...)
		took, rate, err := b.create(ctx, client, n, 64)
		if err != nil {
			return err
		}
		many = append(many, took...)
		rates = append(rates, rate)
	}
	p50, p99, rate := median(p50s), median(p99s), median(rates)
	b.goal(p50 <= 3*time.Millisecond, "portal.links.create, 16 in flight, p50", ms(p50), "", "", "≤ 3 ms")
	b.goal(p99 <= 15*time.Millisecond, "portal.links.create, 16 in flight, p99", ms(p99), "", "", "≤ 15 ms")
	b.goal(rate >= 3000, "portal.links.create, 64 in flight", fmt.Sprintf("%.0f/s", rate), "", "", "≥ 3,000/s")
	b.latencies("16 in flight", few)
	b.latencies("64 in flight", many)
	return nil
}

var created atomic.Int64 // numbers requests

// create asks for n links, so many at a time.
func (b *bench) create(ctx context.Context, client *producer.Client, n, inFlight int) (took []time.Duration, rate float64, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(n))
	began := time.Now()
	for range inFlight {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				message, e := producer.NewMessage(&jobs.Request{ID: fmt.Sprintf("create-%d", created.Add(1)), Source: "bench", Session: &portal.SessionParams{Customer: "cus_Bench"}})
				asked := time.Now()
				if e == nil {
					_, e = client.Create(ctx, message)
				}
				mu.Lock()
				took = append(took, time.Since(asked))
				if e != nil {
					err = e
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return took, float64(n) / time.Since(began).Seconds(), err
}
