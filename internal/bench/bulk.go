package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
	"latchkey/internal/rig"
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
	enqueue, err := rig.Build(ctx, b.dir, "latchkey/cmd/enqueue")
	if err != nil {
		return err
	}
	w, err := b.startWorker(ctx, binary, "postgres", sim.url)
	if err != nil {
		return err
	}
	defer w.Stop()
	client, err := producer.New(b.nc)
	if err != nil {
		return err
	}
	var rates []float64
	var last progress
	var singles []time.Duration
	var bulkMB, workerMB float64
	for round := range b.rounds() {
		waiting, done := context.WithCancel(ctx)
		waits := make(chan []time.Duration)
		go func() { waits <- b.singles(waiting, client) }()
		took, mb, issued, err := b.campaign(ctx, enqueue, n, round)
		done()
		singles = append(singles, <-waits...)
		if err != nil {
			return err
		}
		last = issued
		rates, bulkMB, workerMB = append(rates, float64(n)/took.Seconds()), max(bulkMB, mb), max(workerMB, rig.Memory(w.Cmd.Process.Pid, "VmHWM"))
	}
	rate, toSessions := median(rates), make([]float64, len(rates))
	for i := range rates {
		toSessions[i] = rates[i] / sessionsRate
	}
	b.goal(rate >= 8000, fmt.Sprintf("campaign, CSV to CSV, %d", n), fmt.Sprintf("%.0f/s", rate), "sessions up front, at Stripe's 25/s", ofRounds("%.0f", toSessions), "≥ 8,000/s")
	longest := quantile(singles, 1)
	b.goal(longest <= time.Second, fmt.Sprintf("  single requests of another source meanwhile, %d: longest wait, p50", len(singles)), ms(longest)+", "+ms(quantile(singles, 0.5)), "", "", "≤ 1 s")
	b.goal(bulkMB < 100, "  memory of enqueue bulk, at most", fmt.Sprintf("%.0f MB", bulkMB), "", "", "< 100 MB")
	b.goal(workerMB < 200, "  memory of the worker, at most", fmt.Sprintf("%.0f MB", workerMB), "", "", "< 200 MB")
	b.series("links in the sender's file", last.seconds, last.links)
	return nil
}

// progress is how many links the sender's file had by when.
type progress struct{ seconds, links []float64 }

// campaign runs 'enqueue bulk' on n rows and sees that each has its link, in order.
func (b *bench) campaign(ctx context.Context, enqueue string, n, round int) (took time.Duration, mb float64, issued progress, err error) {
	in, out := filepath.Join(b.dir, fmt.Sprintf("campaign-%d.csv", round)), filepath.Join(b.dir, fmt.Sprintf("links-%d.csv", round))
	if err := writeCampaign(in, n); err != nil {
		return 0, 0, progress{}, err
	}
	began := time.Now()
	run, err := startBulk(ctx, enqueue, b.ns.URL(), in, "--campaign", fmt.Sprintf("bench-%d-%d", n, round), "--out", out)
	if err != nil {
		return 0, 0, progress{}, err
	}
	var sizes []float64 // of the file as it grows: rows are as good as equally long, and reading it would take processor time
	for {
		select {
		case err := <-run.ended:
			if err != nil {
				return 0, 0, progress{}, err
			}
			took := time.Since(began)
			_, err = readLinks(out, n)
			return took, mb, issued.scaled(append(sizes, fileSize(out)), took, n), err
		case <-time.After(100 * time.Millisecond): // rusage would count the memory of the process that forked it
			mb = max(mb, rig.Memory(run.cmd.Process.Pid, "VmHWM"))
			issued.seconds, sizes = append(issued.seconds, time.Since(began).Seconds()), append(sizes, fileSize(out+".partial"))
		}
	}
}

// scaled turns the file's sizes, the last of which is that in the end, to numbers of links.
func (p progress) scaled(sizes []float64, took time.Duration, n int) progress {
	p.seconds = append(p.seconds, took.Seconds())
	all := sizes[len(sizes)-1]
	for _, size := range sizes {
		p.links = append(p.links, math.Round(size/all*float64(n)))
	}
	return p.thinned(100)
}

// thinned has so many points or few more, the last one among them.
func (p progress) thinned(points int) (few progress) {
	step := 1 + (len(p.seconds)-1)/points
	for i := range p.seconds {
		if i%step == 0 || i == len(p.seconds)-1 {
			few.seconds, few.links = append(few.seconds, p.seconds[i]), append(few.links, p.links[i])
		}
	}
	return few
}

// fileSize is 0 where there is none.
func fileSize(path string) float64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return float64(info.Size())
}

// bulkRun is an 'enqueue bulk' process.
type bulkRun struct {
	cmd   *exec.Cmd
	text  bytes.Buffer // what it says; to be read once it has ended
	ended chan error   // one, with what it said
}

func startBulk(ctx context.Context, enqueue, natsURL string, args ...string) (*bulkRun, error) {
	run := &bulkRun{cmd: exec.CommandContext(ctx, enqueue, append([]string{"bulk"}, args...)...), ended: make(chan error, 1)}
	run.cmd.Env = append(os.Environ(), "NATS_URL="+natsURL)
	run.cmd.Stdout, run.cmd.Stderr = &run.text, &run.text
	if err := run.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		err := run.cmd.Wait()
		if err != nil {
			err = fmt.Errorf("enqueue bulk: %w\n%s", err, run.text.Bytes())
		}
		run.ended <- err
	}()
	return run, nil
}

func writeCampaign(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, strings.Join(campaignColumns, ","))
	for i := range n {
		fmt.Fprintln(w, strings.Join(campaignRow(i), ","))
	}
	return errors.Join(w.Flush(), f.Close())
}

var campaignColumns = []string{"customer", "flow", "metadata.invoice"}

func campaignRow(i int) []string {
	return []string{fmt.Sprintf("cus_Bench%07d", i), "payment_method_update", fmt.Sprintf("in_%d", i)}
}

// issuedLink is a row's link in the output.
type issuedLink struct {
	id  uuid.UUID
	url string
}

// readLinks reads an output, and sees that it has the campaign's rows as they were, in order, each with a link of its
// own whose signature is right.
func readLinks(path string, n int) ([]issuedLink, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	keys, err := portal.ParseKeys(rig.LinkKeys)
	if err != nil {
		return nil, err
	}
	r := csv.NewReader(bufio.NewReaderSize(f, 1<<20))
	header, err := r.Read()
	if want := append(slices.Clone(campaignColumns), "link_url", "link_id", "expires_at", "error"); err != nil || !slices.Equal(header, want) {
		return nil, fmt.Errorf("%s begins with %q: %w", path, header, err)
	}
	links, seen := make([]issuedLink, 0, n), make(map[uuid.UUID]struct{}, n)
	for i := 0; ; i++ {
		row, err := r.Read()
		switch {
		case errors.Is(err, io.EOF) && i == n:
			return links, nil
		case err != nil:
			return nil, fmt.Errorf("%s has %d rows of %d: %w", path, i, n, err)
		case !slices.Equal(row[:3], campaignRow(i)) || row[6] != "":
			return nil, fmt.Errorf("%s: row %d is %q", path, i, row)
		}
		_, token, _ := strings.Cut(row[3], "/l/")
		id, _, err := keys.Verify(token)
		if err != nil || id.String() != row[4] {
			return nil, fmt.Errorf("%s: the link of row %d, %q, is not that of %s: %w", path, i, row[3], row[4], err)
		}
		if _, again := seen[id]; again {
			return nil, fmt.Errorf("%s: the link of row %d, %s, is another row's too", path, i, id)
		}
		seen[id] = struct{}{}
		links = append(links, issuedLink{id, strings.Clone(row[3])})
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
