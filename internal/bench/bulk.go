package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

// bulk measures a campaign as its sender sees it: a file in, the file with links out, by 'enqueue bulk' and a
// worker process; and what somebody else's single requests wait meanwhile.
func (b *bench) bulk(ctx context.Context) error {
	n := 100_000
	if b.short {
		n = 2_000
	}
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer sim.close()
	enqueue, err := b.buildCommand(ctx, "enqueue")
	if err != nil {
		return err
	}
	w, err := b.startWorker(ctx, binary, "postgres", sim.url)
	if err != nil {
		return err
	}
	defer w.stop()
	client, err := producer.New(b.nc)
	if err != nil {
		return err
	}
	var rates []float64
	var singles []time.Duration
	var bulkMB, workerMB float64
	for round := range b.rounds() {
		waiting, done := context.WithCancel(ctx)
		waits := make(chan []time.Duration)
		go func() { waits <- b.singles(waiting, client) }()
		took, mb, err := b.campaign(ctx, enqueue, n, round)
		done()
		singles = append(singles, <-waits...)
		if err != nil {
			return err
		}
		rates, bulkMB, workerMB = append(rates, float64(n)/took.Seconds()), max(bulkMB, mb), max(workerMB, memory(w.cmd.Process.Pid, "VmHWM"))
	}
	rate := median(rates)
	b.goal(rate >= 8000, fmt.Sprintf("campaign, CSV to CSV, %d", n), fmt.Sprintf("%.0f/s", rate), "sessions up front, at Stripe's 25/s", fmt.Sprintf("%.0f", rate/25), "≥ 8,000/s")
	longest := quantile(singles, 1)
	b.goal(longest <= time.Second, fmt.Sprintf("  single requests of another source meanwhile, %d: longest wait, p50", len(singles)), ms(longest)+", "+ms(quantile(singles, 0.5)), "", "", "≤ 1 s")
	b.goal(bulkMB < 100, "  memory of enqueue bulk, at most", fmt.Sprintf("%.0f MB", bulkMB), "", "", "< 100 MB")
	b.goal(workerMB < 200, "  memory of the worker, at most", fmt.Sprintf("%.0f MB", workerMB), "", "", "< 200 MB")
	return nil
}

// campaign runs 'enqueue bulk' on n rows and sees that each has its link, in order.
func (b *bench) campaign(ctx context.Context, enqueue string, n, round int) (took time.Duration, mb float64, err error) {
	in, out := filepath.Join(b.dir, fmt.Sprintf("campaign-%d.csv", round)), filepath.Join(b.dir, fmt.Sprintf("links-%d.csv", round))
	if err := writeCampaign(in, n); err != nil {
		return 0, 0, err
	}
	cmd := exec.CommandContext(ctx, enqueue, "bulk", in, "--campaign", fmt.Sprintf("bench-%d-%d", n, round), "--out", out)
	cmd.Env = append(os.Environ(), "NATS_URL="+b.ns.URL())
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return 0, 0, fmt.Errorf("enqueue bulk: %w\n%s", err, text.Bytes())
			}
			return time.Since(began), mb, checkLinks(out, n)
		case <-time.After(100 * time.Millisecond): // rusage would count the memory of the process that forked it
			mb = max(mb, memory(cmd.Process.Pid, "VmHWM"))
		}
	}
}

func writeCampaign(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, "customer,flow,metadata.invoice")
	for i := range n {
		fmt.Fprintf(w, "cus_Bench%07d,payment_method_update,in_%d\n", i, i)
	}
	return errors.Join(w.Flush(), f.Close())
}

func checkLinks(path string, n int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	r := csv.NewReader(f)
	if _, err := r.Read(); err != nil {
		return err
	}
	for i := 0; ; i++ {
		row, err := r.Read()
		switch {
		case errors.Is(err, io.EOF) && i == n:
			return nil
		case err != nil:
			return fmt.Errorf("%s has %d rows of %d: %w", path, i, n, err)
		case row[0] != fmt.Sprintf("cus_Bench%07d", i) || row[3] == "":
			return fmt.Errorf("%s: row %d is %q", path, i, row)
		}
	}
}

// singles sends a request every 100 ms until ctx ends, and returns what each waited for its link.
func (b *bench) singles(ctx context.Context, client *producer.Client) (waits []time.Duration) {
	for ctx.Err() == nil {
		message, err := producer.NewMessage(&jobs.Request{ID: fmt.Sprintf("single-%d", created.Add(1)), Source: "dunning", Session: &portal.SessionParams{Customer: "cus_Single"}})
		if err == nil {
			asked := time.Now()
			within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			_, err = client.SendAndWait(within, message)
			cancel()
			waits = append(waits, time.Since(asked))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: a single request:", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return waits
}
