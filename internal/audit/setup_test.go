package audit

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/portal"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// bundle is a database with an audit, and a sealer.
type bundle struct {
	t      testing.TB
	owner  *pgxpool.Pool
	pool   *pgxpool.Pool // of the worker's role
	sealer *Sealer
	link   uuid.UUID // of cus_jo, campaign c
}

func migrate(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := migrations.Up(ctx, pool); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `CREATE TABLE published (first uuid NOT NULL); GRANT SELECT, INSERT ON published TO latchkey_app`)
	return err
}

// publish stands for River: the job is a row of the same transaction.
func publish(ctx context.Context, tx *portal.Tx, rows ...portal.IDRange) error {
	_, err := tx.Exec(ctx, `INSERT INTO published VALUES ($1)`, rows[0].First)
	return err
}

func open(t testing.TB, url, settings string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 12
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, settings)
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func setup(t testing.TB) *bundle {
	t.Helper()
	url := testkit.Database(t, migrate)
	b := &bundle{t: t, owner: open(t, url, ``), pool: open(t, url, `SET ROLE latchkey_app`)}
	b.sealer = &Sealer{Pool: b.pool, Publish: publish}
	b.link = b.newLink("req-1", "cus_jo", time.Now().Add(time.Hour))
	return b
}

func (b *bundle) newLink(request, customer string, expires time.Time) uuid.UUID {
	b.t.Helper()
	id := uuid.Must(uuid.NewV7())
	b.exec(`INSERT INTO links (id, request_id, request_hash, published_at, source, campaign, stripe_customer, session, key_id, created_at, expires_at, deliver)
		VALUES ($1, $2, sha256('content'), now(), 'dunning', 'c', $3, '{}', 1, $4::timestamptz - interval '1 day', $4, '[{"channel": "email", "to": "jo@example.com"}]')`,
		id, request, customer, expires)
	return id
}

func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.owner.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

// tamper does as the owner what the triggers are there to refuse.
func (b *bundle) tamper(sql string, args ...any) {
	b.t.Helper()
	err := pgx.BeginFunc(b.t.Context(), b.owner, func(tx pgx.Tx) error {
		if _, err := tx.Exec(b.t.Context(), `SET LOCAL session_replication_role = replica`); err != nil {
			return err
		}
		_, err := tx.Exec(b.t.Context(), sql, args...)
		return err
	})
	if err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

func (b *bundle) count(sql string, args ...any) (n int) {
	b.t.Helper()
	if err := b.owner.QueryRow(b.t.Context(), sql, args...).Scan(&n); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// opened appends n rows of visits in one transaction, and returns their ids.
func (b *bundle) opened(n int) []uuid.UUID {
	b.t.Helper()
	ids, err := portal.NewIDs(n)
	if err != nil {
		b.t.Fatal(err)
	}
	events := make([]portal.AuditEvent, n)
	list := make([]uuid.UUID, n)
	for i := range events {
		list[i] = ids.At(i)
		events[i] = portal.AuditEvent{ID: list[i], At: time.Now(), Kind: portal.LinkOpened, LinkID: b.link, RequestID: "req-1", Detail: map[string]any{"verdict": "person", "n": i},
			Visitor: &portal.Visitor{IP: netip.MustParseAddr("2001:db8::1"), UserAgent: "Möbius/1.0"}}
	}
	err = portal.InTx(b.t.Context(), b.pool, func(tx *portal.Tx) error { return portal.InsertAudit(b.t.Context(), tx, events) })
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// issuedRow appends the link's link.issued.
func (b *bundle) issuedRow(detail string) {
	b.t.Helper()
	b.exec(`INSERT INTO audit_events (id, at, kind, link_id, request_id, detail) VALUES ($1, now(), 'link.issued', $2, 'req-1', $3)`, uuid.Must(uuid.NewV7()), b.link, detail)
}

func (b *bundle) seal(rows int64) Head {
	b.t.Helper()
	done, err := b.sealer.Seal(b.t.Context())
	if err != nil || done.Rows != rows {
		b.t.Fatalf("sealed %+v (%v), want %d rows", done, err, rows)
	}
	return done.Head
}

func (b *bundle) verify(since, kept Head) (Verified, error) {
	b.t.Helper()
	return Verify(b.t.Context(), b.pool, since, kept, nil)
}
