package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
	"latchkey/internal/stripesim"
)

// service measures a worker process as it would be deployed: its start, its memory, the time from
// publish to link.issued, and clicks.
func (b *bench) service(ctx context.Context) error {
	binary, err := b.build(ctx)
	if err != nil {
		return err
	}
	simListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	sim := &http.Server{Handler: stripesim.New(stripesim.Config{}), ReadHeaderTimeout: time.Second}
	go func() { _ = sim.Serve(simListener) }()
	defer func() { _ = sim.Close() }()

	var starts []time.Duration
	var w *worker
	for range b.rounds() {
		if w != nil {
			w.stop()
		}
		if w, err = b.startWorker(ctx, binary, "http://"+simListener.Addr().String()); err != nil {
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
	links, err := b.latency(ctx, client)
	if err != nil {
		return err
	}
	return b.clicks(ctx, links)
}

// latency sends one request at a time on an idle system.
func (b *bench) latency(ctx context.Context, client *producer.Client) (urls []string, err error) {
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
			return nil, err
		}
		began := time.Now()
		link, err := client.SendAndWait(ctx, message)
		cancel()
		if err != nil {
			return nil, err
		}
		took, urls = append(took, time.Since(began)), append(urls, link.URL)
	}
	p50, p99 := quantile(took, 0.5), quantile(took, 0.99)
	b.goal(p50 <= 20*time.Millisecond, fmt.Sprintf("publish to link.issued, idle, %d, p50", n), ms(p50), "", "", "≤ 20 ms")
	b.goal(p99 <= 100*time.Millisecond, "publish to link.issued, idle, p99", ms(p99), "", "", "≤ 100 ms")
	return urls, nil
}

// connections that the load holds open.
const connections = 64

// clicks compares GET and POST with a plain handler that does one SELECT and commits one INSERT.
// Each request goes to another of the links, as people's do.
func (b *bench) clicks(ctx context.Context, links []string) error {
	d := 5 * time.Second
	if b.short {
		d = time.Second
	}
	plain, closePlain, err := b.plainHandler(ctx)
	if err != nil {
		return err
	}
	defer closePlain()
	var rates [3][]float64
	var latencies [3][]time.Duration
	var ratios [3][]float64
	for range b.rounds() {
		for i, target := range []struct {
			method string
			urls   []string
			want   int
		}{{http.MethodGet, []string{plain}, 200}, {http.MethodGet, links, 200}, {http.MethodPost, links, 303}} {
			took, err := load(ctx, target.method, target.urls, target.want, d)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], float64(len(took))/d.Seconds())
			latencies[i] = append(latencies[i], quantile(took, 0.99))
			ratios[i] = append(ratios[i], rates[i][len(rates[i])-1]/rates[0][len(rates[0])-1])
		}
	}
	other := fmt.Sprintf("plain handler, SELECT + INSERT: %.0f/s, p99 %s", median(rates[0]), ms(median(latencies[0])))
	for i, what := range []string{"", "click GET, page and audit row", "click POST, session, two commits"} {
		if what != "" {
			b.goal(true, fmt.Sprintf("%s, %d connections", what, connections), fmt.Sprintf("%.0f/s, p99 %s", median(rates[i]), ms(median(latencies[i]))),
				other, fmt.Sprintf("%.2f", median(ratios[i])), "shown")
		}
	}
	return nil
}

// plainHandler is what most would write: look the link up, write a row, answer.
func (b *bench) plainHandler(ctx context.Context) (url string, closeIt func(), err error) {
	if _, err := b.pool.Exec(ctx, `CREATE TABLE plain_opens (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, link_id uuid NOT NULL, at timestamptz NOT NULL DEFAULT now())`); err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var id [16]byte
		var session []byte
		if err := b.pool.QueryRow(r.Context(), `SELECT id, session FROM links WHERE request_id = 'latency-0'`).Scan(&id, &session); err != nil {
			http.Error(w, "no link", http.StatusNotFound)
			return
		}
		if _, err := b.pool.Exec(r.Context(), `INSERT INTO plain_opens (link_id) VALUES ($1)`, id); err != nil {
			http.Error(w, "no row", http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(session)
	})}
	go func() { _ = srv.Serve(ln) }()
	return "http://" + ln.Addr().String(), func() { _ = srv.Close() }, nil
}

// load sends requests over all connections for a time and returns how long each took.
func load(ctx context.Context, method string, urls []string, want int, d time.Duration) ([]time.Duration, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var people sync.WaitGroup
	end := time.Now().Add(d)
	for person := range connections {
		people.Go(func() {
			var took []time.Duration
			var err error
			for i := person; time.Now().Before(end) && err == nil; i += connections + 1 {
				began := time.Now()
				err = once(ctx, client, method, urls[i%len(urls)], want)
				took = append(took, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	people.Wait()
	return all, failed
}

func once(ctx context.Context, client *http.Client, method, url string, want int) error {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%s answered %d", method, resp.StatusCode)
	}
	return nil
}

// worker is a 'worker run' process.
type worker struct {
	cmd     *exec.Cmd
	started time.Duration // from exec to ready
}

func (b *bench) startWorker(ctx context.Context, binary, stripe string) (*worker, error) {
	public, admin := freePort(), freePort()
	var key [32]byte
	_, _ = rand.Read(key[:])
	w := &worker{cmd: exec.CommandContext(ctx, binary, "run")}
	w.cmd.Env = []string{"DATABASE_URL=" + b.pg.URL("postgres"), "NATS_URL=" + b.ns.URL(), "STRIPE_API_KEY=" + stripesim.TestKey, "STRIPE_API_BASE=" + stripe,
		"LINK_KEYS=" + portal.FormatKey(1, key), "HTTP_ADDR=" + public, "ADMIN_ADDR=" + admin, "LINK_BASE_URL=http://" + public, "LOG_LEVEL=warn"}
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

// rss is the process's resident memory in MB, where /proc tells it.
func (w *worker) rss() float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
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
