package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
	"latchkey/internal/rig"
	"latchkey/internal/stripesim"
)

// service measures a worker process as it would be deployed: its start, its memory, and the time
// from publish to link.issued.
func (b *bench) service(ctx context.Context) error {
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer sim.close()

	var starts []time.Duration
	var w *worker
	for range b.rounds() {
		if w != nil {
			w.Stop()
		}
		if w, err = b.startWorker(ctx, binary, "postgres", sim.url); err != nil {
			return err
		}
		starts = append(starts, w.Started)
	}
	defer w.Stop()
	start := median(starts)
	b.goal(start <= time.Second, "worker run, ready on a migrated database", start.Round(time.Millisecond).String(), "", "", "≤ 1 s")
	time.Sleep(3 * time.Second) // settled: leader elected, first sweep done
	mb := w.rss()
	b.goal(mb < 60, "worker run, memory when idle", fmt.Sprintf("%.0f MB", mb), "", "", "< 60 MB")

	client, err := producer.New(b.nc)
	if err != nil {
		return err
	}
	if err := b.latency(ctx, client); err != nil {
		return err
	}
	return b.creates(ctx, client)
}

// latency sends one request at a time on an idle system.
func (b *bench) latency(ctx context.Context, client *producer.Client) error {
	n := 500
	if b.short {
		n = 50
	}
	var took []time.Duration
	for i := range n {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		message, err := producer.NewMessage(&jobs.Request{ID: fmt.Sprintf("latency-%d", i), Source: "bench", Session: &portal.SessionParams{Customer: "cus_Bench"}})
		if err != nil {
			cancel()
			return err
		}
		began := time.Now()
		_, err = client.SendAndWait(ctx, message)
		cancel()
		if err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	p50, p99 := quantile(took, 0.5), quantile(took, 0.99)
	b.goal(p50 <= 20*time.Millisecond, fmt.Sprintf("publish to link.issued, idle, %d, p50", n), ms(p50), "", "", "≤ 20 ms")
	b.goal(p99 <= 100*time.Millisecond, "publish to link.issued, idle, p99", ms(p99), "", "", "≤ 100 ms")
	return nil
}

// simulator is Stripe, at no latency and without a limit.
type simulator struct {
	*stripesim.Sim
	url string
	srv *http.Server
}

func startSimulator() (*simulator, error) {
	s := &simulator{Sim: stripesim.New(stripesim.Config{})}
	return s, s.listen("127.0.0.1:0")
}

func (s *simulator) listen(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.url, s.srv = "http://"+l.Addr().String(), &http.Server{Handler: s.Sim, ReadHeaderTimeout: time.Second}
	go func(srv *http.Server) { _ = srv.Serve(l) }(s.srv)
	return nil
}

// close cuts every connection, and refuses new ones from then on.
func (s *simulator) close() { _ = s.srv.Close() }

// reopen ends the refusing. It tries for a while: in between, a connection of somebody may have
// taken the port for its own end.
func (s *simulator) reopen() error {
	var err error
	for range 100 {
		if err = s.listen(strings.TrimPrefix(s.url, "http://")); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// worker is a 'worker run' process.
type worker struct{ *rig.Worker }

// startWorker starts a worker without a Stripe budget to speak of; env changes its settings.
func (b *bench) startWorker(ctx context.Context, binary, database, stripe string, env ...string) (*worker, error) {
	w, err := rig.Spawn(ctx, binary, rig.FreePort(), rig.FreePort(), os.Stderr, append([]string{"DATABASE_URL=" + b.pg.URL(database), "NATS_URL=" + b.ns.URL(),
		"STRIPE_API_KEY=" + stripesim.TestKey, "STRIPE_API_BASE=" + stripe, "STRIPE_RATE=1000000", "LOG_LEVEL=warn"}, env...)...)
	if err != nil {
		return nil, err
	}
	return &worker{w}, w.UntilReady()
}

// rss is the process's resident memory in MB.
func (w *worker) rss() float64 { return rig.Memory(w.Cmd.Process.Pid, "VmRSS") }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
