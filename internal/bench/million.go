package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/notify"
	"latchkey/internal/rig"
)

// million sends a campaign of a million rows through 'enqueue bulk' and a fresh worker, once, and holds the most memory
// that each took against what it had taken by the first tenth: it does not grow with the file. Then it has the same file
// looked at before it would go out.
func (b *bench) million(ctx context.Context) error {
	n := 1_000_000
	if b.short {
		n = 5_000
	}
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer sim.close()
	enqueue, err := rig.Build(ctx, b.dir, "latchkey/cmd/enqueue")
	if err != nil {
		return err
	}
	pool, err := b.database(ctx, "million")
	if err != nil {
		return err
	}
	pool.Close() // the worker has its own
	w, err := b.startWorker(ctx, binary, "million", sim.url)
	if err != nil {
		return err
	}
	defer w.Stop()
	in, out := filepath.Join(b.dir, "million.csv"), filepath.Join(b.dir, "million-links.csv")
	if err := writeCampaign(in, n); err != nil {
		return err
	}
	before, err := b.stored(ctx, notify.EventsStream)
	if err != nil {
		return err
	}
	began := time.Now()
	run, err := startBulk(ctx, enqueue, b.ns.URL(), in, "--campaign", "million", "--out", out)
	if err != nil {
		return err
	}
	tenth, all, err := most(run, w, n/10)
	if err != nil {
		return err
	}
	took := time.Since(began)
	if _, err := readLinks(out, n); err != nil {
		return err
	}
	after, err := b.stored(ctx, notify.EventsStream)
	if err != nil {
		return err
	}
	b.goal(true, fmt.Sprintf("campaign of %d, complete and in order", n), fmt.Sprintf("%.0f/s", float64(n)/took.Seconds()), "", "", "shown")
	b.goal(all.bulk < 100, "  memory of enqueue bulk, at most", fmt.Sprintf("%.0f MB", all.bulk),
		fmt.Sprintf("after the first %d: %.0f MB", n/10, tenth.bulk), fmt.Sprintf("%.2f", all.bulk/tenth.bulk), "< 100 MB")
	b.goal(all.worker < 200, "  memory of the worker, at most", fmt.Sprintf("%.0f MB", all.worker),
		fmt.Sprintf("after the first %d: %.0f MB", n/10, tenth.worker), fmt.Sprintf("%.2f", all.worker/tenth.worker), "< 200 MB")
	b.goal(true, "  bytes of JetStream an event", fmt.Sprintf("%d", (after.Bytes-before.Bytes)/(after.Msgs-before.Msgs)), "", "", "shown")
	return b.millionChecked(ctx, enqueue, in)
}

// millionChecked is what 'enqueue bulk --check-stripe' takes: it reads each row, and a worker looks up customers from
// all over the file.
func (b *bench) millionChecked(ctx context.Context, enqueue, in string) error {
	began := time.Now()
	run, err := startBulk(ctx, enqueue, b.ns.URL(), in, "--campaign", "million", "--check-stripe")
	if err != nil {
		return err
	}
	var held float64
	for {
		select {
		case err := <-run.ended:
			b.goal(held < 100, fmt.Sprintf("enqueue bulk --check-stripe of the same file, in %.0f s: memory, at most", time.Since(began).Seconds()),
				fmt.Sprintf("%.0f MB", held), "", "", "< 100 MB")
			return err
		case <-time.After(50 * time.Millisecond):
			held = max(held, rig.Memory(run.cmd.Process.Pid, "VmHWM"))
		}
	}
}

// stored is what a stream holds.
func (b *bench) stored(ctx context.Context, stream string) (jetstream.StreamState, error) {
	s, err := b.js.Stream(ctx, stream)
	if err != nil {
		return jetstream.StreamState{}, err
	}
	return s.CachedInfo().State, nil
}

// peaks are the most that two processes have held, in MB.
type peaks struct{ bulk, worker float64 }

// most watches a campaign to its end: what was held at most until first links were issued, and in all.
func most(run *bulkRun, w *worker, first int) (tenth, all peaks, err error) {
	for {
		select {
		case err := <-run.ended:
			return tenth, all, err
		case <-time.After(50 * time.Millisecond):
			all.bulk = max(all.bulk, rig.Memory(run.cmd.Process.Pid, "VmHWM"))
			all.worker = max(all.worker, rig.Memory(w.Cmd.Process.Pid, "VmHWM"))
			if tenth == (peaks{}) && w.Metric(`latchkey_requests_total{result="issued"}`) >= float64(first) {
				tenth = all
			}
		}
	}
}
