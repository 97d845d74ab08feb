package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/audit"
	"latchkey/internal/contract"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// patience ends a wait for something that will not come any more. Nothing is timed by it.
const patience = 60 * time.Second

// world is a deployment of one's own: a migrated database, a NATS server, and what the worker's
// run makes of them, with nothing started yet.
type world struct {
	t   *testing.T
	ctx context.Context

	url    string        // of the database, as its owner
	owner  *pgxpool.Pool // may do what operators and attackers do
	pool   *pgxpool.Pool // the worker's
	nc     *nats.Conn
	js     jetstream.JetStream
	keys   *portal.Keyring
	river  *River
	store  *portal.Store
	issuer *Issuer
	intake *Intake
	logs   *logBuffer
	log    *slog.Logger

	sealing func() // lets the audit be sealed
}

const testBaseURL = "https://pay.example.com"

func setup(t *testing.T) *world {
	t.Helper()
	return setupOn(t, testkit.NATS(t))
}

// setupOn is setup with a NATS server of the test's own.
func setupOn(t *testing.T, natsURL string) *world {
	t.Helper()
	w := database(t)
	// Without a buffer for reconnects a publish fails at once while the server is away.
	nc, err := nats.Connect(natsURL, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectBufSize(-1))
	must(t, err)
	t.Cleanup(nc.Close)
	w.nc = nc
	w.js, err = jetstream.New(nc)
	must(t, err)
	must(t, EnsureStreams(w.ctx, w.js, true))
	w.river = w.newRiver(w.pool, w.js)
	w.store = portal.NewStore(w.pool, w.river.Publish, time.Now)
	w.issuer = w.newIssuer(w.pool)
	w.intake = NewIntake(w.js, w.issuer, w.log, nil)
	return w
}

// database is setup without NATS, for what needs Postgres only.
func database(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, keys: testKeys(t), logs: &logBuffer{}}
	w.log = slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.url = testkit.Database(t, func(ctx context.Context, url string) error {
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return err
		}
		defer pool.Close()
		_, err = migrations.Up(ctx, pool)
		return err
	})
	var err error
	w.owner, err = pgxpool.New(ctx, w.url)
	must(t, err)
	t.Cleanup(w.owner.Close)
	w.sealing = w.holdSeals()
	w.pool = w.workerPool(nil)
	w.river = w.newRiver(w.pool, nil)
	w.issuer = w.newIssuer(w.pool)
	return w
}

// holdSeals keeps the audit unsealed until the returned function or the end of the test: a seal is an event more, and
// when it comes is not for a test of others to say.
func (w *world) holdSeals() (release func()) {
	w.t.Helper()
	conn, err := pgx.Connect(w.ctx, w.url)
	must(w.t, err)
	release = sync.OnceFunc(func() { _ = conn.Close(context.WithoutCancel(w.ctx)) })
	w.t.Cleanup(release)
	_, err = conn.Exec(w.ctx, `SELECT pg_advisory_lock($1)`, audit.Lock)
	must(w.t, err)
	return release
}

// workerPool opens a pool whose sessions take the worker's role, as worker run does.
func (w *world) workerPool(faults *testkit.Commits) *pgxpool.Pool {
	w.t.Helper()
	cfg, err := pgxpool.ParseConfig(w.url)
	must(w.t, err)
	cfg.MaxConns = 12
	if faults != nil {
		faults.Install(cfg.ConnConfig)
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE "+migrations.AppRole)
		return err
	}
	pool, err := pgxpool.NewWithConfig(w.ctx, cfg)
	must(w.t, err)
	w.t.Cleanup(pool.Close)
	return pool
}

func (w *world) newRiver(pool *pgxpool.Pool, js jetstream.JetStream) *River {
	w.t.Helper()
	r, err := NewRiver(RiverConfig{Pool: pool, JobPool: pool, JetStream: js, Keys: w.keys, BaseURL: testBaseURL, Now: time.Now, Log: w.log})
	must(w.t, err)
	return r
}

func (w *world) newIssuer(pool *pgxpool.Pool) *Issuer {
	return &Issuer{Pool: pool, Keys: w.keys, BaseURL: testBaseURL, Rules: testRules(), Publish: w.river.Publish, Deliver: w.river.Deliver, Now: time.Now, Log: w.log}
}

// open writes that somebody looked at a link.
func (w *world) open(link *portal.Link, v *portal.Visitor) error {
	_, err := w.store.Open(w.ctx, link.ID, link.KeyID, func(*portal.Link) map[string]any {
		return map[string]any{"verdict": "person", "signals": []string{}, "method": "GET", "state": portal.StateLive}
	}, v)
	return err
}

func (w *world) startClick(store *portal.Store, link *portal.Link, click uuid.UUID, v *portal.Visitor) {
	w.t.Helper()
	_, err := store.StartClick(w.ctx, link.ID, link.KeyID, click, func(*portal.Link) map[string]any { return nil }, v)
	must(w.t, err)
}

// startRiver works jobs until the test ends.
func (w *world) startRiver() {
	w.t.Helper()
	must(w.t, w.river.Start(w.ctx))
	w.t.Cleanup(func() {
		if err := w.river.Stop(context.WithoutCancel(w.ctx)); err != nil {
			w.t.Errorf("stop River: %v", err)
		}
	})
}

// startIntake runs an intake until the returned function or the test ends it.
func (w *world) startIntake(in *Intake) (stop func()) {
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- in.Run(ctx) }()
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("intake: %v", err)
		}
	}
	w.t.Cleanup(stop)
	return stop
}

// publish puts a request on its subject and returns its place in the stream.
func (w *world) publish(source string, body []byte) uint64 {
	w.t.Helper()
	ack, err := w.js.Publish(w.ctx, RequestsPrefix+source, body)
	must(w.t, err)
	return ack.Sequence
}

// fetch takes n messages off the work queue, as intake would, and acknowledges nothing.
func (w *world) fetch(n int) []jetstream.Msg {
	w.t.Helper()
	consumer, err := ensureConsumer(w.ctx, w.js)
	must(w.t, err)
	batch, err := consumer.Fetch(n, jetstream.FetchMaxWait(patience))
	must(w.t, err)
	var msgs []jetstream.Msg
	for msg := range batch.Messages() {
		msgs = append(msgs, msg)
	}
	must(w.t, batch.Error())
	if len(msgs) != n {
		w.t.Fatalf("fetched %d messages, want %d", len(msgs), n)
	}
	return msgs
}

func (w *world) serve(msgs ...jetstream.Msg) { w.intake.serve(w.ctx, w.ctx, w.intake.parse(msgs)) }

// queued is how many requests wait in the work queue, delivered or not.
func (w *world) queued() int { return w.stored(RequestsStream) }

func (w *world) stored(stream string) int {
	w.t.Helper()
	s, err := w.js.Stream(w.ctx, stream)
	must(w.t, err)
	return int(s.CachedInfo().State.Msgs)
}

// eventually waits for a condition and fails the test when it does not come.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.t.Fatalf("%s: not within %s; the log:\n%s", what, patience, w.logs.tail())
		}
	}
}

func (w *world) drained() {
	w.t.Helper()
	w.eventually("empty work queue", func() bool { return w.queued() == 0 })
}

// read returns the first n messages of a stream.
func (w *world) read(stream string, n int) []jetstream.Msg {
	w.t.Helper()
	consumer, err := w.js.OrderedConsumer(w.ctx, stream, jetstream.OrderedConsumerConfig{})
	must(w.t, err)
	it, err := consumer.Messages()
	must(w.t, err)
	defer it.Stop()
	var msgs []jetstream.Msg
	for len(msgs) < n {
		msg, err := it.Next(jetstream.NextContext(w.ctx))
		if err != nil {
			w.t.Fatalf("%s holds %d messages, want %d: %v; the log:\n%s", stream, len(msgs), n, err, w.logs.tail())
		}
		msgs = append(msgs, msg)
	}
	return msgs
}

// events returns the first n events by their id.
func (w *world) events(n int) map[string]notify.Event {
	w.t.Helper()
	byID := map[string]notify.Event{}
	schema := contract.Schema(w.t, "event.schema.json")
	for _, msg := range w.read(notify.EventsStream, n) {
		var e notify.Event
		must(w.t, json.Unmarshal(msg.Data(), &e))
		contract.CheckEvent(w.t, schema, msg.Data())
		if id := msg.Headers().Get(nats.MsgIdHdr); id != e.ID {
			w.t.Errorf("Nats-Msg-Id %q of event %q", id, e.ID)
		}
		if msg.Subject() != notify.SubjectPrefix+strings.TrimPrefix(e.Type, notify.TypePrefix) {
			w.t.Errorf("event of type %s on subject %s", e.Type, msg.Subject())
		}
		byID[e.ID] = e
	}
	return byID
}

// count runs a query that counts, as the owner.
func (w *world) count(sql string, args ...any) (n int) {
	w.t.Helper()
	must(w.t, w.owner.QueryRow(w.ctx, sql, args...).Scan(&n))
	return n
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.owner.Exec(w.ctx, sql, args...)
	must(w.t, err)
}

// total is how many rows say that something happened.
type total struct{ links, issued, duplicates, rejected int }

func (w *world) total() (n total) {
	w.t.Helper()
	must(w.t, w.owner.QueryRow(w.ctx, `SELECT (SELECT count(*) FROM links),
		count(*) FILTER (WHERE kind = 'link.issued'), count(*) FILTER (WHERE kind = 'request.duplicate'),
		count(*) FILTER (WHERE kind = 'request.rejected') FROM audit_events`).Scan(&n.links, &n.issued, &n.duplicates, &n.rejected))
	return n
}

func (w *world) wantTotal(want total) {
	w.t.Helper()
	if got := w.total(); got != want {
		w.t.Errorf("the database holds %+v, want %+v", got, want)
	}
}

// issue makes the link of a request.
func (w *world) issue(body []byte) *portal.Link {
	w.t.Helper()
	item := newTestItem(body)
	must(w.t, w.issuer.Issue(w.ctx, []*Item{item}))
	if item.Rejection != nil {
		w.t.Fatal(item.Rejection)
	}
	return item.Link
}

// newTestItem is a request as a message of its own.
func newTestItem(body []byte) *Item {
	return &Item{Body: body, Published: time.Now(), MessageID: uuid.Must(uuid.NewV7())}
}

func testKeys(t testing.TB) *portal.Keyring {
	t.Helper()
	keys, err := portal.ParseKeys(portal.FormatKey(7, [32]byte{1, 2, 3}))
	must(t, err)
	return keys
}

func testRules() Rules {
	return Rules{
		Session: portal.SessionRules{ReturnURLHosts: []string{"app.example.com"}},
		TTL:     336 * time.Hour, TTLMax: 2160 * time.Hour,
		Livemode: false, LivemodeKnown: true,
	}
}

// request is the smallest valid one with an id, and with fields put in by dotted path: a nil
// value takes the field out.
func request(id string, fields ...any) []byte {
	doc := map[string]any{"id": id, "source": "dunning", "session": map[string]any{"customer": "cus_9s6XKzkNRiz8i3"}}
	for i := 0; i < len(fields); i += 2 {
		put(doc, strings.Split(fields[i].(string), "."), fields[i+1])
	}
	body, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return body
}

func put(doc map[string]any, path []string, value any) {
	if len(path) == 1 {
		if doc[path[0]] = value; value == nil {
			delete(doc, path[0])
		}
		return
	}
	sub, _ := doc[path[0]].(map[string]any)
	sub = maps.Clone(sub)
	if sub == nil {
		sub = map[string]any{}
	}
	doc[path[0]] = sub
	put(sub, path[1:], value)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func numbered(format string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf(format, i)
	}
	return ids
}
