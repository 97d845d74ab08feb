package portal

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"latchkey/internal/stripesim"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// testKeys has the first signing key of testdata/token_vectors.json.
const testKeys = "7:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

// quick is a pace at which a test can afford all of Stripe's tries, and no more than that: what
// it bounds are hangs, so that a slow machine fails no test.
var quick = pace{deadline: 30 * time.Second, try: 20 * time.Second, firstPause: time.Millisecond, mostPause: 4 * time.Millisecond, failing: 1000, spared: time.Second}

// bundle is the click path of one test: a database, Stripe, and the server between them.
type bundle struct {
	t      testing.TB
	pool   *pgxpool.Pool // of the worker's role
	owner  *pgxpool.Pool // of the role that migrated
	store  *Store
	budget *Budget
	keys   *Keyring
	sim    *stripesim.Sim
	stripe *Stripe
	click  *ClickServer
	http   *httptest.Server
	reg    *prometheus.Registry
	log    *syncBuffer
	abort  context.CancelFunc

	clock    clock
	queries  atomic.Int64
	commits  testkit.Commits
	onStripe func(*http.Request) // runs before the simulator does; set before the first request
}

// What happens to commits, as tables of tests name it.
type fate = testkit.Fate

const (
	fine          = testkit.Fine
	failed        = testkit.Failed
	failedButTook = testkit.FailedButTook
)

// migrate makes the schema, and the table into which the tests' publish jobs go.
func migrate(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := migrations.Up(ctx, pool); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `CREATE TABLE published (first uuid NOT NULL, last uuid NOT NULL);
		GRANT SELECT, INSERT ON published TO latchkey_app`)
	return err
}

// publish stands for River: the job is a row of the same transaction.
func publish(ctx context.Context, tx *Tx, rows ...IDRange) error {
	for _, r := range rows {
		if _, err := tx.Exec(ctx, `INSERT INTO published VALUES ($1, $2)`, r.First, r.Last); err != nil {
			return err
		}
	}
	return nil
}

func setup(t testing.TB) *bundle {
	t.Helper()
	b := &bundle{t: t, log: &syncBuffer{}, reg: prometheus.NewRegistry()}
	b.clock.set(time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC))
	b.openPools(testkit.Database(t, migrate))
	b.keys = parseKeys(t, testKeys)
	b.store = NewStore(b.pool, publish, b.clock.now)
	b.budget = NewBudget(b.pool, 1000, b.clock.now, b.reg)
	b.sim = stripesim.New(stripesim.Config{Now: b.clock.now})
	b.stripe = b.newStripe(StripeConfig{Key: stripesim.TestKey, Registerer: b.reg}, quick)
	b.click = b.server()
	b.click.Store = b.store
	b.click.Init(b.reg)
	b.http = httptest.NewUnstartedServer(nil)
	b.http.Config = b.click.HTTPServer()
	b.http.Listener = b.click.Listener(b.http.Listener)
	b.http.Start()
	t.Cleanup(b.http.Close)
	b.http.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return b
}

// server is a click server on the bundle's database and Stripe; with Init, as another process
// would run it.
func (b *bundle) server() *ClickServer {
	abort, cancel := context.WithCancel(context.Background())
	b.t.Cleanup(cancel)
	b.abort = cancel
	return (&ClickServer{Keys: b.keys, Store: NewStore(b.pool, publish, b.clock.now), Stripe: b.stripe, Budget: b.budget, Limits: NewLimits(), Detector: NewDetector(),
		Renew: func(context.Context, uuid.UUID, *Visitor) (bool, error) { return true, nil },
		Pages: NewPages(PagesConfig{Brand: "Acme", SupportURL: "https://help.example.com", AllowHTTP: true}),
		Log:   slog.New(slog.NewJSONHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Abort: abort})
}

// openPools opens the worker's pool as cmd/worker does, and the owner's.
func (b *bundle) openPools(url string) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		b.t.Fatal(err)
	}
	cfg.MaxConns = 8
	maps.Copy(cfg.ConnConfig.RuntimeParams, PlannerSettings)
	cfg.ConnConfig.Tracer = queryCounter{&b.queries}
	b.commits.Install(cfg.ConnConfig)
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE "+migrations.AppRole)
		return err
	}
	if b.pool, err = pgxpool.NewWithConfig(b.t.Context(), cfg); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(b.pool.Close)
	if b.owner, err = pgxpool.New(b.t.Context(), url); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(b.owner.Close)
}

// newStripe is a client of a simulator's server of its own.
func (b *bundle) newStripe(cfg StripeConfig, p pace) *Stripe {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.onStripe != nil {
			b.onStripe(r)
		}
		b.sim.ServeHTTP(w, r)
	}))
	b.t.Cleanup(srv.Close)
	cfg.APIBase, cfg.Budget, cfg.Reads = srv.URL, b.budget, NewBudget(b.pool, 400, b.clock.now, nil)
	if b.log != nil {
		cfg.Log = slog.New(slog.NewJSONHandler(b.log, nil))
	}
	if p.failing == 0 {
		p.failing = quick.failing
	}
	s := newStripe(cfg, p)
	b.t.Cleanup(s.Close)
	return s
}

func parseKeys(t testing.TB, s string) *Keyring {
	t.Helper()
	ring, err := ParseKeys(s)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// link inserts a link as intake does; change may be nil.
func (b *bundle) link(change func(*Link)) *Link {
	b.t.Helper()
	id := uuid.Must(uuid.NewV7())
	now := b.clock.now()
	l := &Link{ID: id, RequestID: "req-" + id.String(), Source: "dunning", Customer: "cus_jo",
		Metadata: []byte(`{}`), KeyID: b.keys.SignerID(), CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	if change != nil {
		change(l)
	}
	if l.Session == nil {
		l.Session = []byte(`{"customer":"` + l.Customer + `"}`)
	}
	_, err := b.owner.Exec(b.t.Context(), `INSERT INTO links (id, request_id, request_hash, published_at, source, campaign,
		stripe_customer, stripe_account, session, metadata, key_id, max_sessions, created_at, expires_at)
		VALUES ($1, $2, sha256('x'), $3, $4, nullif($5, ''), $6, nullif($7, ''), $8, $9, $10, nullif($11, 0), $3, $12)`,
		l.ID, l.RequestID, l.CreatedAt, l.Source, l.Campaign, l.Customer, l.StripeAccount, string(l.Session), string(l.Metadata),
		int(l.KeyID), l.MaxSessions, l.ExpiresAt)
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

func customer(id string) func(*Link) { return func(l *Link) { l.Customer = id } }

func maxSessions(n int) func(*Link) { return func(l *Link) { l.MaxSessions = n } }

func (b *bundle) token(l *Link) string {
	b.t.Helper()
	token, err := b.keys.Sign(l.KeyID, l.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return token
}

// reply is an answer of the click server.
type reply struct {
	status int
	header http.Header
	body   string
}

// do sends a request to a path; header comes in pairs.
func (b *bundle) do(method, path string, header ...string) reply {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.http.URL+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return b.send(r)
}

func (b *bundle) send(r *http.Request) reply {
	b.t.Helper()
	resp, err := b.http.Client().Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(body)}
}

func (b *bundle) get(l *Link) reply  { b.t.Helper(); return b.do("GET", "/l/"+b.token(l)) }
func (b *bundle) post(l *Link) reply { b.t.Helper(); return b.do("POST", "/l/"+b.token(l)) }

// want fails the test unless the answer has the status and, if a page is named, shows it in
// English, under whichever title of its own.
func (r reply) want(t testing.TB, status int, p page) {
	t.Helper()
	if r.status != status || p != "" && !r.shows(p) {
		t.Fatalf("got %d, want %d with the page %q; body:\n%s", r.status, status, p, r.body)
	}
}

// english are the words that the tests know a page by.
var english = loadWords("en")

// shows tells whether a body has one of the titles of a page.
func (r reply) shows(p page) bool {
	title := kinds[p].words + ".title"
	for key := range english.Messages {
		if (key == title || strings.HasPrefix(key, title+".")) && strings.Contains(r.body, "<h1>"+english.Get(key)+"</h1>") {
			return true
		}
	}
	return false
}

// reload reads a link anew.
func (b *bundle) reload(l *Link) *Link {
	b.t.Helper()
	got, err := LoadLink(b.t.Context(), b.pool, l.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

// audit reads what a link's audit holds.
func (b *bundle) audit(l *Link) []AuditEvent {
	b.t.Helper()
	rows, err := LoadAudit(b.t.Context(), b.owner, `link_id = $2`, l.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return rows
}

// kinds is the audit of a link by its kinds, in order.
func (b *bundle) kinds(l *Link) string {
	b.t.Helper()
	var out []string
	for _, e := range b.audit(l) {
		out = append(out, string(e.Kind))
	}
	return strings.Join(out, " ")
}

// wantCode fails the test unless a link's last outcome is session.failed with the code.
func (b *bundle) wantCode(l *Link, code SessionCode) {
	b.t.Helper()
	rows := b.audit(l)
	last := rows[len(rows)-1]
	if last.Kind != SessionFailed || last.Detail["code"] != string(code) || last.Detail["retryable"] != (&SessionError{Code: code}).Retryable() {
		b.t.Fatalf("last audit row %s %v, want session.failed with %s", last.Kind, last.Detail, code)
	}
}

// number asks the database, as its owner, for one number.
// hold locks the row of a statement, as somebody's forgotten transaction would, until release.
func (b *bundle) hold(sql string, args ...any) (release func()) {
	b.t.Helper()
	tx, err := b.owner.Begin(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := tx.Exec(b.t.Context(), sql+` FOR UPDATE`, args...); err != nil {
		b.t.Fatal(err)
	}
	return func() {
		b.t.Helper()
		if err := tx.Rollback(b.t.Context()); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bundle) number(sql string, args ...any) (n int) {
	b.t.Helper()
	if err := b.owner.QueryRow(b.t.Context(), sql, args...).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// problem decodes an answer in RFC 9457's form.
func (r reply) problem(t *testing.T) (p struct {
	Type, Title, Detail, Code, Reference string
	Status                               int
}) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, r.body)
	}
	return p
}

// clock is the time of a test, moved by hand.
type clock struct{ at atomic.Pointer[time.Time] }

func (c *clock) set(t time.Time)         { c.at.Store(&t) }
func (c *clock) now() time.Time          { return *c.at.Load() }
func (c *clock) advance(d time.Duration) { c.set(c.now().Add(d)) }

// syncBuffer takes the log of many goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// take returns what was written and forgets it.
func (b *syncBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

// queryCounter counts what is sent to the database.
type queryCounter struct{ n *atomic.Int64 }

func (c queryCounter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}

func (queryCounter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
