package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"latchkey/internal/cli"
	"latchkey/internal/config"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
	"latchkey/internal/rig"
	"latchkey/internal/stripesim"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

// asWorker makes the test binary the worker itself, for tests that need a process to kill.
const asWorker = "LATCHKEY_TEST_AS_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(asWorker) != "" {
		os.Exit(cli.Main(newRoot()))
	}
	os.Exit(testkit.Main(m))
}

// deployment is what one test runs on: a database, a NATS server and a simulator of its own.
type deployment struct {
	t        *testing.T
	database string
	nats     string
	sim      *stripesim.Sim
	simURL   string
	keys     string
	pool     *pgxpool.Pool // of the owner, to look into the database
	producer *producer.Client
	nc       *nats.Conn
}

// patience bounds every wait; nothing should take anywhere near as long.
const patience = time.Minute

func deploy(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{t: t, nats: testkit.NATS(t), sim: stripesim.New(stripesim.Config{})}
	d.database = testkit.Database(t, func(ctx context.Context, url string) error {
		pool, err := plainPool(ctx, url)
		if err != nil {
			return err
		}
		defer pool.Close()
		_, err = migrations.Up(ctx, pool)
		return err
	})
	srv := httptest.NewServer(d.sim)
	t.Cleanup(srv.Close)
	d.simURL = srv.URL
	var key [32]byte
	_, _ = rand.Read(key[:])
	d.keys = portal.FormatKey(7, key)
	var err error
	if d.pool, err = plainPool(t.Context(), d.database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.pool.Close)
	if d.nc, err = (config.NATS{URL: d.nats}).Connect("test"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.nc.Close)
	if d.producer, err = producer.New(d.nc); err != nil {
		t.Fatal(err)
	}
	return d
}

// instance is a worker in this process.
type instance struct {
	click, admin string // origins
	log          *logBuffer
	ready        chan struct{} // closed once it is up
	ended        chan error
	stop         func() error
}

// start runs a worker on free ports until the test ends or stop is called.
func (d *deployment) start(change ...func(*Config)) *instance {
	d.t.Helper()
	in := d.launch(change...)
	in.untilReady(d.t)
	return in
}

// launch is start without the wait for ready.
func (d *deployment) launch(change ...func(*Config)) *instance {
	d.t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			d.t.Fatal(err)
		}
		return l
	}
	l := listeners{public: listen(), admin: listen()}
	cfg := &Config{DatabaseURL: d.database, NATS: config.NATS{URL: d.nats}, ManageStreams: true,
		StripeAPIKey: stripesim.TestKey, StripeAPIBase: d.simURL, LinkBaseURL: "http://" + l.public.Addr().String(), LinkKeys: d.keys,
		AdminAddr: l.admin.Addr().String(), LinkTTL: time.Hour, LinkTTLMax: 24 * time.Hour, StripeRate: 1000, StripeReadRate: 1000, ReturnURL: "https://app.example.com/billing",
		Roles: []string{roleIntake, roleJobs, roleClick}, LogLevel: "debug", LogFormat: "json"}
	for _, f := range change {
		f(cfg)
	}
	var problems config.Problems
	if cfg.validate(&problems); len(problems) > 0 {
		d.t.Fatal(problems)
	}
	in := &instance{click: cfg.LinkBaseURL, admin: "http://" + l.admin.Addr().String(), log: &logBuffer{}, ready: make(chan struct{}), ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.NewJSONHandler(in.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() { in.ended <- run(ctx, cfg, log, l, func() { close(in.ready) }) }()
	in.stop = sync.OnceValue(func() error { cancel(); return <-in.ended })
	d.t.Cleanup(func() {
		if err := in.stop(); err != nil {
			d.t.Errorf("the worker did not stop cleanly: %v", err)
		}
	})
	return in
}

func (in *instance) untilReady(t *testing.T) {
	t.Helper()
	select {
	case <-in.ready:
	case err := <-in.ended:
		in.ended <- err
		t.Fatalf("the worker did not start: %v", err)
	}
}

// untilEnded is what the worker ended with by itself.
func (in *instance) untilEnded(t *testing.T) error {
	t.Helper()
	select {
	case err := <-in.ended:
		in.ended <- nil // for the cleanup
		return err
	case <-time.After(patience):
		t.Fatalf("the worker did not end within %s", patience)
		return nil
	}
}

// logBuffer keeps what a worker logs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func request(id string) *jobs.Request {
	return &jobs.Request{ID: id, Source: "test", Session: &portal.SessionParams{Customer: "cus_Test123"}}
}

func (d *deployment) message(req *jobs.Request) producer.Message {
	d.t.Helper()
	m, err := producer.NewMessage(req)
	if err != nil {
		d.t.Fatal(err)
	}
	return m
}

// link asks for a link and waits for it.
func (d *deployment) link(req *jobs.Request) *jobs.IssuedData {
	d.t.Helper()
	link, err := d.producer.SendAndWait(d.soon(), d.message(req))
	if err != nil {
		d.t.Fatalf("request %s: %v", req.ID, err)
	}
	return link
}

// soon is a context for one question.
func (d *deployment) soon() context.Context {
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	d.t.Cleanup(cancel)
	return ctx
}

var noRedirect = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport: &http.Transport{DisableKeepAlives: true}}

// do sends a request as a browser would and returns status, body and headers.
func do(ctx context.Context, method, url string) (int, string, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, "", nil, err
	}
	resp, err := noRedirect.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), resp.Header, err
}

func (d *deployment) do(method, url string) (int, string, http.Header) {
	d.t.Helper()
	status, body, header, err := do(d.t.Context(), method, url)
	if err != nil {
		d.t.Fatal(err)
	}
	return status, body, header
}

// number runs a query that answers with one number.
func (d *deployment) number(sql string, args ...any) (n int) {
	d.t.Helper()
	if err := d.pool.QueryRow(d.t.Context(), sql, args...).Scan(&n); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// holdLinks makes the database stand still for whoever touches links, until release or the end of
// the test.
func (d *deployment) holdLinks() (release func()) {
	d.t.Helper()
	lock, err := d.pool.Begin(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	release = func() { _ = lock.Rollback(context.Background()) } // a second time it does nothing
	d.t.Cleanup(release)
	if _, err := lock.Exec(d.t.Context(), `LOCK TABLE links`); err != nil {
		d.t.Fatal(err)
	}
	return release
}

// until waits for a condition that something else brings about.
func (d *deployment) until(what string, met func() bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			d.t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}

// process is a worker of its own, to be signalled.
type process struct {
	cmd   *exec.Cmd
	out   *logBuffer
	http  string
	admin string
}

// exec starts the worker's binary (this test's) with arguments, under the deployment's settings.
func (d *deployment) exec(env []string, args ...string) *process {
	d.t.Helper()
	p := &process{cmd: exec.CommandContext(d.t.Context(), os.Args[0], args...), out: &logBuffer{}}
	p.cmd.Env = append([]string{asWorker + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"DATABASE_URL=" + d.database, "NATS_URL=" + d.nats, "STRIPE_API_KEY=" + stripesim.TestKey, "STRIPE_API_BASE=" + d.simURL,
		"LINK_KEYS=" + d.keys, "RETURN_URL=https://app.example.com/billing", "STRIPE_RATE=1000", "STRIPE_READ_RATE=1000", "HTTP_DRAIN_TIME=0s"}, env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// serve starts 'worker run' as a process, with further settings, and waits until it is ready.
func (d *deployment) serve(env ...string) *process {
	d.t.Helper()
	public, admin := rig.FreePort(), rig.FreePort()
	p := d.exec(append([]string{"HTTP_ADDR=" + public, "ADMIN_ADDR=" + admin, "LINK_BASE_URL=http://" + public, "LOG_LEVEL=debug"}, env...), "run")
	p.http, p.admin = "http://"+public, "http://"+admin
	defer func() {
		if d.t.Failed() {
			d.t.Log(tail(p.out.String()))
		}
	}()
	d.until("the worker process to be ready", func() bool {
		status, _, _, err := do(d.t.Context(), http.MethodGet, "http://"+admin+"/readyz")
		return err == nil && status == http.StatusOK
	})
	return p
}

// exit waits for the process and returns its exit code.
func (p *process) exit() int {
	var exit *exec.ExitError
	if err := p.cmd.Wait(); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// exitInTime is exit within the 15 s that a stop may take.
func (p *process) exitInTime(t *testing.T) int {
	t.Helper()
	late := time.AfterFunc(15*time.Second, func() { _ = p.cmd.Process.Kill() })
	code := p.exit()
	if !late.Stop() {
		t.Errorf("the stop took more than 15 s:\n%s", tail(p.out.String()))
	}
	return code
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func tokenOf(url string) string { return url[strings.LastIndex(url, "/")+1:] }
