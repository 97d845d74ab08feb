package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
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
			w.stop()
		}
		if w, err = b.startWorker(ctx, binary, "postgres", sim.url); err != nil {
			return err
		}
		starts = append(starts, w.started)
	}
	defer w.stop()
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

// linkKeys is the key of the workers' and the load's links.
var linkKeys = portal.FormatKey(1, [32]byte{'b', 'e', 'n', 'c', 'h'})

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
type worker struct {
	cmd     *exec.Cmd
	public  string        // origin of the click server
	admin   string        // of the internal server
	started time.Duration // from exec to ready
}

// startWorker starts a worker without a Stripe budget to speak of; env changes its settings.
func (b *bench) startWorker(ctx context.Context, binary, database, stripe string, env ...string) (*worker, error) {
	public, admin := freePort(), freePort()
	w := &worker{cmd: exec.CommandContext(ctx, binary, "run"), public: "http://" + public, admin: "http://" + admin}
	w.cmd.Env = append([]string{"DATABASE_URL=" + b.pg.URL(database), "NATS_URL=" + b.ns.URL(), "STRIPE_API_KEY=" + stripesim.TestKey, "STRIPE_API_BASE=" + stripe,
		"STRIPE_RATE=1000000", "LINK_KEYS=" + linkKeys, "HTTP_ADDR=" + public, "ADMIN_ADDR=" + admin, "LINK_BASE_URL=http://" + public, "LOG_LEVEL=warn"}, env...)
	w.cmd.Stderr = os.Stderr
	began := time.Now()
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	for time.Since(began) < 20*time.Second {
		resp, err := http.Get("http://" + admin + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				w.started = time.Since(began)
				return w, nil
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	w.stop()
	return nil, errors.New("the worker was not ready in 20 s")
}

func (w *worker) stop() {
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	_ = w.cmd.Wait()
}

// rss is the process's resident memory in MB.
func (w *worker) rss() float64 { return memory(w.cmd.Process.Pid, "VmRSS") }

// memory is a process's VmRSS or VmHWM (the most it was) in MB, where /proc tells it.
func memory(pid int, what string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), what+":")
	kb, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
	return float64(kb) / 1024
}

func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0"
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
