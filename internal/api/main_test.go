package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// patience ends a wait for something that will not come any more. Nothing is timed by it.
const patience = time.Minute

// world is the API over a migrated database of its own, under the worker's role.
type world struct {
	t       *testing.T
	ctx     context.Context
	owner   *pgxpool.Pool
	pool    *pgxpool.Pool // the worker's
	clock   *clock
	service *jobs.Service
	metrics *prometheus.Registry
	logs    *logBuffer
	api     *Server
	http    *httptest.Server
	seen    map[string]bool // what was answered, as "POST /v1/links 201"
	mu      sync.Mutex      // of seen
}

func setup(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, clock: &clock{now: time.Now()}, metrics: prometheus.NewRegistry(), logs: &logBuffer{}, seen: map[string]bool{}}
	url := testkit.Database(t, func(ctx context.Context, url string) error {
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return err
		}
		defer pool.Close()
		_, err = migrations.Up(ctx, pool)
		return err
	})
	var err error
	w.owner, err = pgxpool.New(ctx, url)
	must(t, err)
	t.Cleanup(w.owner.Close)
	cfg, err := pgxpool.ParseConfig(url)
	must(t, err)
	maps.Copy(cfg.ConnConfig.RuntimeParams, portal.PlannerSettings)
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE "+migrations.AppRole)
		return err
	}
	w.pool, err = pgxpool.NewWithConfig(ctx, cfg)
	must(t, err)
	t.Cleanup(w.pool.Close)

	log := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	keys, err := portal.ParseKeys(portal.FormatKey(7, [32]byte{1, 2, 3}))
	must(t, err)
	const base = "https://pay.example.com"
	river, err := jobs.NewRiver(jobs.RiverConfig{Pool: w.pool, JobPool: w.pool, Keys: keys, BaseURL: base, Now: w.clock.Now, Log: log})
	must(t, err)
	rules := jobs.Rules{Session: portal.SessionRules{ReturnURLHosts: []string{"app.example.com"}}, TTL: time.Hour, TTLMax: 2160 * time.Hour, LivemodeKnown: true}
	issuer := &jobs.Issuer{Pool: w.pool, Keys: keys, BaseURL: base, Rules: rules, Publish: river.Publish, Now: w.clock.Now}
	w.service = jobs.NewService(issuer, portal.NewStore(w.pool, river.Publish, w.clock.Now), log)
	w.serve(w.service)
	return w
}

// serve starts an API of a service, in place of the one there was: another replica.
func (w *world) serve(service *jobs.Service) {
	w.metrics = prometheus.NewRegistry()
	w.api = New(Config{Service: service, Log: service.Log, Metrics: w.metrics, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	w.http = httptest.NewServer(w.api)
	w.t.Cleanup(w.http.Close)
}

// token makes a token; of no scopes means of all.
func (w *world) token(name string, scopes []Scope, sources ...string) string {
	w.t.Helper()
	if scopes == nil {
		scopes = Scopes()
	}
	secret, err := NewToken(w.ctx, w.owner, name, scopes, sources, w.clock.Now())
	must(w.t, err)
	return secret
}

// reply is an answer of the API.
type reply struct {
	t      *testing.T
	status int
	header http.Header
	body   string
}

// do sends a request and holds the answer against the contract. Headers come in pairs of name and value.
func (w *world) do(method, path, token, body string, headers ...string) reply {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.ctx, method, w.http.URL+path, strings.NewReader(body))
	must(w.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if req.Header.Del(headers[i]); headers[i+1] != "" {
			req.Header.Add(headers[i], headers[i+1])
		}
	}
	resp, err := w.http.Client().Do(req)
	must(w.t, err)
	raw, err := io.ReadAll(resp.Body)
	must(w.t, err)
	must(w.t, resp.Body.Close())
	w.holds(req, resp, raw)
	return reply{w.t, resp.StatusCode, resp.Header, string(raw)}
}

// create makes a link and returns its data.
func (w *world) create(token, body string) *jobs.IssuedData {
	w.t.Helper()
	issued := &jobs.IssuedData{}
	w.do("POST", "/v1/links", token, body).want(201, "").into(issued)
	return issued
}

// want checks the status and, where code is not empty, the problem's code.
func (r reply) want(status int, code string) reply {
	r.t.Helper()
	if r.status != status {
		r.t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if status < 400 {
		return r
	}
	var p details
	r.into(&p)
	if p.Code != code || p.Status != status || p.Type != "/problems/"+code || p.Title == "" || p.Detail == "" || r.header.Get("Content-Type") != "application/problem+json" {
		r.t.Errorf("want the problem %s, got %v %s", code, r.header, r.body)
	}
	return r
}

func (r reply) into(v any) reply {
	r.t.Helper()
	if err := json.Unmarshal([]byte(r.body), v); err != nil {
		r.t.Fatalf("%v in %s", err, r.body)
	}
	return r
}

// request is a body; source support unless given.
func request(id string, source ...string) string {
	return fmt.Sprintf(`{"id":%q,"source":%q,"session":{"customer":"cus_9s6XKzkNRiz8i3"}}`, id, append(source, "support")[0])
}

func (w *world) count(sql string, args ...any) (n int) {
	w.t.Helper()
	must(w.t, w.owner.QueryRow(w.ctx, sql, args...).Scan(&n))
	return n
}

// clock stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
