package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
	"latchkey/internal/rig"
)

// workers runs one, two and four workers on the same stream and database. Where they, Postgres, NATS and the load share
// two processors, more of them bring no more: it shows what sharing costs, and what each holds.
func (b *bench) workers(ctx context.Context) error {
	links, n, creates, d, rounds := 10_000, 50_000, 20_000, 2*time.Second, 3
	if b.short {
		links, n, creates, d, rounds = 1000, 2000, 1000, time.Second, 1
	}
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer sim.close()
	if err := jobs.EnsureStreams(ctx, b.js, true); err != nil {
		return err
	}
	client, err := producer.New(b.nc)
	if err != nil {
		return err
	}
	pool, err := b.database(ctx, "workers")
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := fillLinks(ctx, pool, links); err != nil {
		return err
	}
	keys, err := portal.ParseKeys(rig.LinkKeys)
	if err != nil {
		return err
	}
	clicks := &target{what: "click GET", method: http.MethodGet, want: http.StatusOK, site: &site{links: links, pool: pool, keys: keys}}
	fleets := []*fleet{{size: 1}, {size: 2}, {size: 4}}
	for range rounds {
		for _, f := range fleets {
			if err := b.fleetRound(ctx, f, binary, sim.url, clicks, func() error { return b.measure(ctx, f, client, clicks, n, creates, d) }); err != nil {
				return fmt.Errorf("%d workers: %w", f.size, err)
			}
		}
	}
	b.tellWorkers(fleets, n)
	return nil
}

// fleet is a number of workers and what was measured of them, an entry a round.
type fleet struct {
	size    int
	workers []*worker

	intake, creates, clicks []float64 // a second
	connections, memory     []float64 // of each
}

// fleetRound has the workers up while it measures.
func (b *bench) fleetRound(ctx context.Context, f *fleet, binary, stripe string, clicks *target, measure func() error) (err error) {
	f.workers, clicks.origins = nil, nil
	defer func() {
		for _, w := range f.workers {
			w.Stop()
		}
	}()
	for range f.size {
		w, err := b.startWorker(ctx, binary, "workers", stripe)
		if err != nil {
			return err
		}
		f.workers, clicks.origins = append(f.workers, w), append(clicks.origins, w.Public)
	}
	return measure()
}

func (b *bench) measure(ctx context.Context, f *fleet, client *producer.Client, clicks *target, n, creates int, d time.Duration) error {
	rate, err := b.backlog(ctx, n)
	if err != nil {
		return err
	}
	f.intake = append(f.intake, rate)
	if err := settle(ctx, []*site{clicks.site}); err != nil {
		return err
	}
	if _, rate, err = b.create(ctx, client, creates, connections); err != nil {
		return err
	}
	f.creates = append(f.creates, rate)
	if err := settle(ctx, []*site{clicks.site}); err != nil {
		return err
	}
	took, err := clicks.load(ctx, d, 0)
	if err != nil {
		return err
	}
	f.clicks = append(f.clicks, float64(len(took))/d.Seconds())
	var held float64 // each worker has two pools, which stay as large as they became for half an hour
	if err := clicks.site.pool.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'latchkey' AND datname = current_database()`).Scan(&held); err != nil {
		return err
	}
	f.connections = append(f.connections, held/float64(f.size))
	var mb float64
	for _, w := range f.workers {
		mb = max(mb, rig.Memory(w.Cmd.Process.Pid, "VmHWM"))
	}
	f.memory = append(f.memory, mb)
	return settle(ctx, []*site{clicks.site})
}

// backlog publishes n requests while nobody is given any, and returns how fast the workers serve them then.
func (b *bench) backlog(ctx context.Context, n int) (rate float64, err error) {
	stream, err := b.js.Stream(ctx, jobs.RequestsStream)
	if err != nil {
		return 0, err
	}
	if _, err := stream.PauseConsumer(ctx, jobs.IntakeConsumer, time.Now().Add(time.Hour)); err != nil {
		return 0, err
	}
	if err := b.fill(jobs.RequestsPrefix+"bench", n, spread); err != nil {
		return 0, err
	}
	if _, err := stream.ResumeConsumer(ctx, jobs.IntakeConsumer); err != nil {
		return 0, err
	}
	for given := false; !given; { // a pull that waited through the pause may wait on, up to a second
		consumer, err := stream.Consumer(ctx, jobs.IntakeConsumer)
		if err != nil {
			return 0, err
		}
		given = consumer.CachedInfo().NumPending < uint64(n)
	}
	began := time.Now()
	if err := b.untilServed(ctx, nil); err != nil {
		return 0, err
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

func (b *bench) tellWorkers(fleets []*fleet, n int) {
	one := fleets[0]
	for _, row := range []struct {
		what string
		of   func(*fleet) []float64
	}{
		{fmt.Sprintf("intake of a backlog of %d", n), func(f *fleet) []float64 { return f.intake }},
		{fmt.Sprintf("portal.links.create, %d in flight", connections), func(f *fleet) []float64 { return f.creates }},
		{fmt.Sprintf("click GET, %d connections", connections), func(f *fleet) []float64 { return f.clicks }},
	} {
		for _, f := range fleets {
			rate, ratio, other := median(row.of(f)), "", ""
			if f != one {
				other = fmt.Sprintf("one worker: %.0f/s", median(row.of(one)))
				ratio = ofRounds("%.2f", ratios(row.of(f), row.of(one)))
			}
			b.goal(true, fmt.Sprintf("%d workers, %s", f.size, row.what), fmt.Sprintf("%.0f/s", rate), other, ratio, "shown")
		}
	}
	for _, f := range fleets {
		b.goal(true, fmt.Sprintf("%d workers: Postgres connections of each, memory of the largest", f.size),
			fmt.Sprintf("%.1f, %.0f MB", median(f.connections), median(f.memory)), "", "", "shown")
	}
}
