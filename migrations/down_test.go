package migrations

import (
	"testing"

	"github.com/google/uuid"
)

// Down to before the audit's proof and up again, with a row of each kind: nothing that was written by the newest
// version is lost or in the way.
func TestDownAndUpAgain(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	up(t, pool)
	number := func(sql string) (n int) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	const kinds = `'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked', 'session.created', 'session.failed', 'webhook.disabled',
		'audit.sealed', 'request.duplicate', 'request.rejected', 'click.started', 'click.denied', 'audit.erased', 'key.retired'`
	if _, err := pool.Exec(t.Context(), `INSERT INTO audit_events (id, at, kind, link_id, click_id)
		SELECT gen_random_uuid(), now(), kind, CASE WHEN kind NOT IN ('request.rejected', 'audit.sealed', 'audit.erased', 'key.retired') THEN gen_random_uuid() END,
			CASE WHEN kind IN ('click.started', 'session.created', 'session.failed') THEN gen_random_uuid() END
		FROM unnest(ARRAY[`+kinds+`]) kind`); err != nil {
		t.Fatal(err)
	}
	before := number(`SELECT count(DISTINCT kind) FROM audit_events`)
	p, closeDB, err := provider(pool)
	if err != nil {
		t.Fatal(err)
	}
	defer closeDB()
	if _, err := p.DownTo(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	if n := number(`SELECT count(*) FROM audit_events`); n != before {
		t.Errorf("%d rows below, of %d", n, before)
	}
	up(t, pool)
	if n := number(`SELECT count(DISTINCT kind) FROM audit_events`); n != before || n != 16 {
		t.Errorf("%d kinds, of %d", n, before)
	}
}

// A key that was retired before the audit told of it stands there once.
func TestRetiredKeysComeIntoTheAudit(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	up(t, pool)
	p, closeDB, err := provider(pool)
	if err != nil {
		t.Fatal(err)
	}
	defer closeDB()
	for range 2 {
		if _, err := p.DownTo(t.Context(), 9); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), `INSERT INTO retired_keys (id, retired_at, retired_by) VALUES (3, now() - interval '1 day', 'jo') ON CONFLICT DO NOTHING`); err != nil {
			t.Fatal(err)
		}
		up(t, pool)
		var id uuid.UUID
		var by string
		var rows int
		if err := pool.QueryRow(t.Context(), `SELECT id, detail->>'by', count(*) OVER () FROM audit_events
			WHERE kind = 'key.retired' AND detail @> '{"key_id": 3, "reason": ""}' AND at = (SELECT retired_at FROM retired_keys)`).Scan(&id, &by, &rows); err != nil {
			t.Fatal(err)
		}
		if id.Version() != 7 || id.Variant() != uuid.RFC4122 || by != "jo" || rows != 1 {
			t.Errorf("%s by %s, %d rows", id, by, rows)
		}
	}
}
