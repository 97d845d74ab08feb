package portal

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// wantDenied fails the test unless Postgres refuses a statement for want of a right.
func wantDenied(t *testing.T, pool *pgxpool.Pool, sql, message string) {
	t.Helper()
	_, err := pool.Exec(t.Context(), sql)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42501" || !strings.Contains(pg.Message, message) {
		t.Errorf("%s: %v, want it refused: %s", sql, err, message)
	}
}

// The audit is append-only: the worker lacks the right, and a trigger refuses everybody else.
func TestAuditIsAppendOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.post(b.link(nil)).want(t, 303, "")
	before := b.dump()["audit_events"]
	for _, sql := range []string{`UPDATE audit_events SET detail = '{}'`, `DELETE FROM audit_events`, `TRUNCATE audit_events`,
		`INSERT INTO audit_events (id, at, kind, link_id, click_id) SELECT id, at, kind, link_id, click_id FROM audit_events ON CONFLICT (id) DO UPDATE SET at = now()`} {
		wantDenied(t, b.owner, sql, "is append-only")
		wantDenied(t, b.pool, sql, "permission denied")
	}
	wantDenied(t, b.pool, `ALTER TABLE audit_events DISABLE TRIGGER ALL`, "must be owner")
	wantDenied(t, b.pool, `DROP TABLE audit_events`, "must be owner")
	if after := b.dump()["audit_events"]; after != before || before == "" {
		t.Errorf("the audit changed:\n%s\n%s", before, after)
	}
}

// The worker's role can do what the store does (all other tests run under it), and no more.
func TestWorkersRole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.post(b.link(nil)).want(t, 303, "")
	for _, sql := range []string{
		`DELETE FROM links`, `DELETE FROM clicks`, `TRUNCATE links CASCADE`,
		`UPDATE links SET expires_at = expires_at + interval '1 year'`, `UPDATE links SET session = '{}'`, `UPDATE links SET max_sessions = NULL`,
		`UPDATE links SET request_id = 'x'`, `UPDATE clicks SET link_id = id`, `UPDATE audit_visitors SET user_agent = ''`, `DELETE FROM audit_visitors`, `INSERT INTO audit_events (id, at, kind, seq) VALUES (gen_random_uuid(), now(), 'request.rejected', 1)`, `SELECT setval('audit_events_seq', 1)`,
		`UPDATE audit_seals SET number = 1`, `DELETE FROM audit_seals`, `DELETE FROM audit_events_others`, `CREATE TABLE mine ()`,
	} {
		wantDenied(t, b.pool, sql, "permission denied")
	}
	var user string
	if err := b.pool.QueryRow(t.Context(), `SELECT current_user`).Scan(&user); err != nil || user != "latchkey_app" {
		t.Errorf("the store's tests run as %s (%v)", user, err)
	}
}

func (b *bundle) insert(events ...AuditEvent) error {
	return pgx.BeginFunc(b.t.Context(), b.pool, func(tx pgx.Tx) error { return InsertAuditOnce(b.t.Context(), tx, events) })
}

func TestInsertAuditTwice(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	at := b.clock.now()
	ids, err := NewIDs(3)
	if err != nil {
		t.Fatal(err)
	}
	events := []AuditEvent{
		{ID: ids.At(0), At: at, Kind: LinkIssued, LinkID: l.ID, RequestID: l.RequestID, Detail: map[string]any{"a": "ü", "n": 1.5, "null": nil}},
		{ID: ids.At(1), At: at.Add(time.Microsecond), Kind: LinkOpened, LinkID: l.ID, Visitor: &Visitor{netip.MustParseAddr("2001:db8::1"), "curl"}},
		{ID: ids.At(2), At: at.Add(time.Second), Kind: RequestRejected},
	}
	for range 2 {
		if err := b.insert(events...); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadAudit(t.Context(), b.pool, `id BETWEEN $2 AND $3`, ids.First, ids.Last)
	if err != nil {
		t.Fatal(err)
	}
	for i := range events {
		events[i].Visitor, events[i].stored = nil, nil // read from elsewhere, and not at all
		if events[i].Detail == nil {
			events[i].Detail = map[string]any{}
		}
		got[i].At = got[i].At.UTC()
	}
	if !reflect.DeepEqual(got, events) {
		t.Errorf("read back\n%+v, want\n%+v", got, events)
	}
	if n := b.number(`SELECT count(*) FROM audit_visitors WHERE ip = '2001:db8::1' AND user_agent = 'curl' AND event_id = $1`, ids.At(1)); n != 1 {
		t.Errorf("%d visitors", n)
	}
	events[0].Kind, events[0].Detail = LinkRevoked, nil // a row that is there stays as it is
	if err := b.insert(events[0]); err != nil || b.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.issued'`) != 1 {
		t.Errorf("a second row of the same id: %v", err)
	}
	if err := b.insert(); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

// All rows of a call, visitors included, are there or none.
func TestInsertAuditErrors(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	good := AuditEvent{ID: uuid.New(), At: b.clock.now(), Kind: LinkOpened, LinkID: l.ID, Visitor: &Visitor{IP: netip.MustParseAddr("1.2.3.4")}}
	for about, bad := range map[string]AuditEvent{
		"audit_events_kind":      {ID: uuid.New(), At: good.At, Kind: "link.eaten", LinkID: l.ID},
		"audit_events_has_link":  {ID: uuid.New(), At: good.At, Kind: LinkOpened},
		"audit_events_has_click": {ID: uuid.New(), At: good.At, Kind: SessionFailed, LinkID: l.ID},
		"audit detail of":        {ID: uuid.New(), At: good.At, Kind: LinkOpened, LinkID: l.ID, Detail: map[string]any{"f": func() {}}},
	} {
		if err := b.insert(good, bad); err == nil || !strings.Contains(err.Error(), about) {
			t.Errorf("%s: %v", about, err)
		}
	}
	if n := b.number(`SELECT (SELECT count(*) FROM audit_events) + (SELECT count(*) FROM audit_visitors)`); n != 0 {
		t.Errorf("%d rows of failed calls", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := LoadAudit(ctx, b.pool, `true`); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestNewIDs(t *testing.T) {
	t.Parallel()
	seen := map[uuid.UUID]bool{}
	for _, n := range []int{1, 2, 255, 256, 257, 500, 65535, 65536} {
		r, err := NewIDs(n)
		if err != nil {
			t.Fatal(err)
		}
		if r.At(0) != r.First || r.At(n-1) != r.Last || r.First.Version() != 7 || r.Last.Version() != 7 || r.Last.Variant() != uuid.RFC4122 {
			t.Errorf("%d: %s to %s", n, r.First, r.Last)
		}
		last := ""
		for i := range n {
			id := r.At(i)
			if seen[id] || id.String() <= last {
				t.Fatalf("%d: id %d is %s after %s", n, i, id, last)
			}
			seen[id], last = true, id.String()
		}
	}
	id := uuid.New()
	if one := OneID(id); one.First != id || one.Last != id {
		t.Errorf("OneID = %v", one)
	}
}

// The ranges of writers that run at once share no id.
func TestNewIDsOfManyWriters(t *testing.T) {
	t.Parallel()
	found := make(chan IDRange)
	for range 8 {
		go func() {
			for range 500 {
				r, _ := NewIDs(65536)
				found <- r
			}
		}()
	}
	firsts := map[uuid.UUID]bool{}
	for range 8 * 500 {
		r := <-found
		if r.First[14] != 0 || r.First[15] != 0 || r.Last[14] != 0xff || r.Last[15] != 0xff || firsts[r.First] {
			t.Fatalf("%v overlaps", r)
		}
		firsts[r.First] = true
	}
}

func TestCleanUserAgent(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                 "",
		"Mozilla/5.0 (X11; Linux) Straße":  "Mozilla/5.0 (X11; Linux) Straße",
		"a\x00b\nc\td\x7fe\x1bf":           "abcdef",
		"a\xff\xfeb\xc3":                   "ab",
		strings.Repeat("x", 600):           strings.Repeat("x", 512),
		strings.Repeat("ü", 600):           strings.Repeat("ü", 512),
		strings.Repeat("😀", 600):           strings.Repeat("😀", 512),
		"x" + strings.Repeat("😀", 600):     "x" + strings.Repeat("😀", 511), // cut amid a character
		strings.Repeat("x", 1<<20):         strings.Repeat("x", 512),
		strings.Repeat("\x00", 3000) + "x": "",
	} {
		if got := cleanUserAgent(in); got != want {
			t.Errorf("%.40q gives %d characters: %.40q, want %d", in, utf8.RuneCountInString(got), got, utf8.RuneCountInString(want))
		}
	}
}

// explained asks for the plan of what it is given, as a session that has run it often makes it.
type explained struct {
	*pgx.Conn

	plan []string
}

func (e *explained) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if _, err := e.Prepare(ctx, "explained", sql); err != nil {
		return nil, err
	}
	placeholders := make([]string, len(args))
	for i, arg := range args {
		placeholders[i] = fmt.Sprintf("'%s'", arg)
	}
	rows, err := e.Conn.Query(ctx, `EXPLAIN EXECUTE explained (`+strings.Join(placeholders, ", ")+`)`)
	if err != nil {
		return nil, err
	}
	if e.plan, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return nil, err
	}
	return e.Conn.Query(ctx, sql, args...)
}

// Publishing some rows costs what they cost, however many the audit has: a plan that reads all
// links for a few rows is what Postgres makes of an audit that has grown.
func TestEventRowsAreReadByPrimaryKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	for _, sql := range []string{
		`INSERT INTO links SELECT (jsonb_populate_record(l, jsonb_build_object('id', gen_random_uuid(), 'request_id', 'r' || n))).* FROM links l, generate_series(1, 300) n`,
		`INSERT INTO audit_events (id, at, kind, link_id)
			SELECT (left(audit_id_at(now())::text, 14) || right(gen_random_uuid()::text, 22))::uuid, now(), 'link.opened', id FROM links, generate_series(1, 100)`,
		`ANALYZE links, audit_events`,
	} {
		if _, err := b.owner.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	e := AuditEvent{ID: uuid.Must(uuid.NewV7()), At: b.clock.now(), Kind: LinkOpened, LinkID: l.ID, RequestID: l.RequestID}
	if err := b.insert(e); err != nil {
		t.Fatal(err)
	}
	conn, err := b.owner.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `SET plan_cache_mode = force_generic_plan`); err != nil {
		t.Fatal(err)
	}
	db := &explained{Conn: conn.Conn()}
	rows, err := LoadEventRows(t.Context(), db, `e.id BETWEEN $1 AND $2`, e.ID, e.ID)
	if len(rows) != 1 || err != nil {
		t.Errorf("%+v, %v", rows, err)
	}
	if plan := strings.Join(db.plan, "\n"); strings.Contains(plan, "Seq Scan") || !strings.Contains(plan, "links_pkey") {
		t.Errorf("the plan:\n%s", plan)
	}
}
