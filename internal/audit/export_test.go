package audit

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"latchkey/internal/portal"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

func TestExport(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.opened(2)
	b.issuedRow(`{"customer": "cus_jo", "source": "dunning", "campaign": "c"}`)
	b.seal(3)
	b.exec(`INSERT INTO audit_events (id, at, kind, request_id, detail) VALUES (gen_random_uuid(), now() - interval '2 days', 'request.rejected', E'x,"\n', '{"reason": "<ü>"}')`)
	for name, c := range map[string]struct {
		Export
		rows int
	}{
		"all": {Export{}, 5}, "customer": {Export{Customer: "cus_jo"}, 3}, "campaign": {Export{Campaign: "c"}, 3}, "visitors": {Export{Customer: "cus_jo", Visitors: true}, 3}, "nobody": {Export{Customer: "cus_x"}, 0},
		"since": {Export{Since: time.Now().Add(-time.Hour)}, 4}, "since long ago": {Export{Since: time.Now().Add(-100 * time.Hour)}, 5}, "to come": {Export{Since: time.Now().Add(time.Hour)}, 0},
		"until": {Export{Until: time.Now().Add(-time.Hour)}, 1}, "two days ago": {Export{Since: time.Now().Add(-100 * time.Hour), Until: time.Now().Add(-25 * time.Hour)}, 1},
		"until long ago": {Export{Until: time.Now().Add(-100 * time.Hour)}, 0}, "until soon": {Export{Until: time.Now().Add(3 * time.Hour)}, 5},
	} {
		var asCSV, asJSON bytes.Buffer
		n, err := c.CSV(t.Context(), b.pool, &asCSV)
		records, parseErr := csv.NewReader(&asCSV).ReadAll()
		if err != nil || parseErr != nil || int(n) != c.rows || len(records) != c.rows+1 {
			t.Errorf("%s: %d rows, %v, %v", name, n, err, parseErr)
		}
		if n, err := c.JSONL(t.Context(), b.pool, &asJSON); err != nil || int(n) != c.rows || strings.Count(asJSON.String(), "\n") != c.rows {
			t.Errorf("%s: %d rows, %v", name, n, err)
		}
		dec := json.NewDecoder(&asJSON)
		for i := range c.rows {
			var row map[string]any
			if err := dec.Decode(&row); err != nil || row["id"] != records[i+1][1] || row["kind"] != records[i+1][3] {
				t.Errorf("%s: %v, %v", name, row, err)
			}
			visit := row["kind"] == "link.opened"
			if _, has := row["ip"]; has != (c.Visitors && visit) || has && (row["ip"] != "2001:db8::1" || records[i+1][13] != "Möbius/1.0") {
				t.Errorf("%s: %v", name, row)
			}
			if visit && (row["customer"] != "cus_jo" || row["campaign"] != "c" || row["source"] != "dunning") {
				t.Errorf("%s: %v", name, row)
			}
		}
	}
}

// Whose link it was is what was sealed when it was issued, whatever became of it in links. Rows of 0.1.0 say nothing, so
// for them it is what links says.
func TestExportTellsWhatWasSealed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.opened(1)
	b.issuedRow(`{"customer": "cus_jo", "source": "dunning"}`)
	b.seal(2)
	b.exec(`UPDATE links SET stripe_customer = 'cus_other', campaign = 'other', source = 'other'`)
	lines := func(e Export) string {
		var out bytes.Buffer
		if _, err := e.CSV(t.Context(), b.pool, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if out := lines(Export{Customer: "cus_jo"}); strings.Count(out, ",cus_jo,,dunning,") != 2 || strings.Contains(out, "other") {
		t.Error(out)
	}
	if out := lines(Export{Customer: "cus_other"}) + lines(Export{Campaign: "other"}); strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
	b.exec(`DELETE FROM links`)
	jo := b.link
	if out := lines(Export{}); strings.Count(out, ",cus_jo,,dunning,") != 2 {
		t.Error(out)
	}

	b.link = b.newLink("req-old", "cus_al", time.Now().Add(time.Hour))
	b.issuedRow(`{}`)
	b.opened(1)
	// Whoever writes as the worker can add rows: they name nobody else's links, and double no rows.
	for _, link := range []uuid.UUID{b.link, jo} {
		if _, err := b.pool.Exec(t.Context(), `INSERT INTO audit_events (id, at, kind, link_id, detail) VALUES ($1, now() - interval '1 day', 'link.issued', $2, '{"customer": "cus_evil", "campaign": "evil", "source": "evil"}')`,
			portal.FirstID(time.Now().Add(-24*time.Hour)), link); err != nil {
			t.Fatal(err)
		}
		if out := lines(Export{Customer: "cus_evil"}) + lines(Export{Campaign: "evil"}); strings.Count(out, "\n") != 2 {
			t.Error(out)
		}
		if out := lines(Export{}); strings.Count(out, "\n") != 1+b.count(`SELECT count(*) FROM audit_events`) {
			t.Error(out)
		}
		b.tamper(`DELETE FROM audit_events WHERE detail->>'source' = 'evil'`)
	}
	if out := lines(Export{Campaign: "c"}); strings.Count(out, ",cus_al,c,dunning,") != 2 {
		t.Error(out)
	}
}

func TestErase(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.opened(3)
	jo := b.link
	b.link = b.newLink("req-2", "cus_al", time.Now().Add(time.Hour))
	b.opened(2)
	first := b.seal(5)
	if _, err := Erase(t.Context(), b.pool, Erasure{Customer: "cus_jo", By: "al"}); !errors.Is(err, portal.ErrNotOwner) {
		t.Errorf("the worker's role: %v", err)
	}
	for _, want := range []Erased{{Visitors: 3, Links: 1}, {}} {
		if e, err := Erase(t.Context(), b.owner, Erasure{"cus_jo", "al", "ticket 4711"}); err != nil || e != want {
			t.Errorf("%+v, %v, want %+v", e, err, want)
		}
	}
	if b.count(`SELECT count(*) FROM audit_visitors`) != 2 || b.count(`SELECT count(*) FROM links WHERE deliver IS NOT NULL`) != 1 ||
		b.count(`SELECT count(*) FROM links WHERE id = $1 AND request_hash <> sha256('content')`, jo) != 1 {
		t.Error("another customer was erased, or this one's deliveries were not")
	}
	if v, err := b.verify(Head{}, Head{}); err != nil || v.Rows != 5 || v.Visitors != 2 || v.Gone != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	// That it was erased is sealed as the rest is.
	b.seal(3) // with audit.sealed
	if b.count(`SELECT count(*) FROM audit_events WHERE kind = 'audit.erased' AND link_id IS NULL
		AND detail = '{"customer": "cus_jo", "visitors": 3, "links": 1, "by": "al", "reason": "ticket 4711"}'`) != 1 {
		t.Error("no audit.erased")
	}
	var timeline bytes.Buffer
	if n, err := (Export{Customer: "cus_jo"}).CSV(t.Context(), b.pool, &timeline); err != nil || n != 5 || strings.Count(timeline.String(), ",cus_jo,,,") != 2 {
		t.Errorf("erasures are no part of the customer's timeline: %v\n%s", err, &timeline)
	}
	b.opened(1) // behind the head: in no seal, so it neither is gone nor makes up for one that is
	if v, err := b.verify(Head{}, Head{}); err != nil || v.Rows != 8 || v.Visitors != 3 || v.Gone != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := b.verify(first, Head{}); err != nil || v.Rows != 3 || v.Visitors != 3 || v.Gone != 0 { // not counted
		t.Errorf("since the first head: %+v, %v", v, err)
	}
	// One visitor twice does not make up for another that is gone.
	b.exec(`ALTER TABLE audit_visitors DROP CONSTRAINT audit_visitors_pkey`)
	b.exec(`INSERT INTO audit_visitors SELECT v.* FROM audit_visitors v JOIN audit_events e ON e.id = v.event_id WHERE e.link_id = $1 LIMIT 1`, b.link)
	if v, err := b.verify(Head{}, Head{}); err != nil || v.Gone != 3 {
		t.Errorf("%+v, %v", v, err)
	}
}

// The worker's role makes up no operator's doing.
func TestOperatorsRowsTakeTheOwner(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for kind, link := range map[portal.Kind]*uuid.UUID{portal.AuditErased: nil, portal.KeyRetired: nil, portal.LinkOpened: &b.link} {
		_, err := b.pool.Exec(t.Context(), `INSERT INTO audit_events (id, at, kind, link_id) VALUES (gen_random_uuid(), now(), $1, $2)`, kind, link)
		if refused := link == nil; portal.RefusesUser(err) != refused || !refused && err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		_, err = b.owner.Exec(t.Context(), `INSERT INTO audit_events (id, at, kind, link_id) VALUES (gen_random_uuid(), now(), $1, $2)`, kind, link)
		if err != nil {
			t.Errorf("%s, by the owner: %v", kind, err)
		}
		if _, err := b.owner.Exec(t.Context(), `INSERT INTO audit_events (id, at, kind, link_id) VALUES (gen_random_uuid(), now(), $1, $2)`, kind, b.link); (err == nil) != (link != nil) {
			t.Errorf("%s of a link: %v", kind, err)
		}
	}
}

// A temporary table, which the worker's role may make, comes before all others of its name.
func TestTriggersLookAtNoTemporaryTable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.opened(1)
	b.seal(1)
	b.exec(`INSERT INTO retired_keys (id, retired_at, retired_by) VALUES (7, now(), 'jo')`)
	for name, attack := range map[string][2]string{
		"an operator's row": {`CREATE TEMP TABLE pg_class AS SELECT inhrelid AS oid, 'latchkey_app'::regrole::oid AS relowner FROM pg_inherits`,
			`INSERT INTO audit_events (id, at, kind) VALUES (gen_random_uuid(), now(), 'key.retired')`},
		"a link under a retired key": {`CREATE TEMP TABLE retired_keys (id smallint)`,
			`INSERT INTO links (id, request_id, request_hash, published_at, source, stripe_customer, session, key_id, created_at, expires_at)
				VALUES (gen_random_uuid(), 'r', sha256(''), now(), 's', 'cus_jo', '{}', 7, now(), now() + interval '1 day')`},
		"a seal out of its turn": {`CREATE TEMP TABLE audit_seals AS SELECT 8::bigint AS number, 0::bigint AS last_seq`,
			`INSERT INTO public.audit_seals (number, last_seq, sealed_at, ids, marks, hash) VALUES (9, 1, now(), ARRAY[gen_random_uuid()], '12345678', sha256(''))`},
	} {
		err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), attack[0]); err != nil {
				t.Fatal(err)
			}
			_, err := tx.Exec(t.Context(), attack[1])
			return err
		})
		if err == nil || errors.Is(err, pgx.ErrTxCommitRollback) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.opened(2)
	b.exec(`UPDATE audit_visitors SET at = at - interval '31 days' WHERE event_id = (SELECT min(event_id::text)::uuid FROM audit_visitors)`)
	past := time.Now().Add(-50 * time.Hour)
	old, busy := b.newLink("req-old", "cus_jo", past), b.newLink("req-busy", "cus_jo", past)
	// A chain of which the last link lives stays as a whole, and one that has ended goes as a whole.
	root, middle := b.newLink("req-root", "cus_jo", past), b.newLink("req-middle", "cus_jo", past)
	b.exec(`UPDATE links SET renewal_of = $1 WHERE id = ANY($2)`, root, []uuid.UUID{b.link, middle})
	ended := []uuid.UUID{b.newLink("req-ended", "cus_jo", past), b.newLink("req-ended-too", "cus_jo", past)}
	b.exec(`UPDATE links SET renewal_of = $1 WHERE id = $2`, ended[0], ended[1])
	b.exec(`INSERT INTO clicks (id, link_id, started_at, outcome, ended_at) VALUES (gen_random_uuid(), $1, now(), 'created', now()), (gen_random_uuid(), $2, now(), NULL, NULL)`, old, busy)
	live := b.link
	b.link = old
	b.opened(1) // whose visitor nobody would find any more
	b.link = live

	if aged, err := (Retention{}).Age(t.Context(), b.pool); aged != (Aged{}) || err != nil {
		t.Errorf("for ever: %+v, %v", aged, err)
	}
	aged, err := Retention{Visitors: 30 * 24 * time.Hour, Links: 48 * time.Hour}.Age(t.Context(), b.pool)
	if aged != (Aged{Visitors: 1, Links: 3}) || err != nil {
		t.Errorf("%+v, %v", aged, err)
	}
	if b.count(`SELECT count(*) FROM links WHERE id = ANY($1)`, []uuid.UUID{live, root, middle, busy}) != 4 || b.count(`SELECT count(*) FROM links`) != 4 ||
		b.count(`SELECT count(*) FROM spent_request_ids WHERE request_id = 'req-old'`) != 1 {
		t.Error("another link went, or the id of the one that went can be used again")
	}
	if n := b.count(`SELECT count(*) FROM audit_visitors`); n != 1 {
		t.Errorf("%d visitors, want that of the link that stays", n)
	}
	// Whoever has the worker's password can't wipe out the last day.
	for _, age := range []string{"0", "-1000 days"} {
		for _, function := range []string{"delete_old_visitors", "delete_expired_links"} {
			var n int
			err := b.pool.QueryRow(t.Context(), `SELECT `+function+`($1::text::interval, 100)`, age).Scan(&n)
			if err != nil || b.count(`SELECT count(*) FROM links WHERE id = $1`, live) != 1 || b.count(`SELECT count(*) FROM audit_visitors`) != 1 {
				t.Errorf("%s(%s): %d, %v", function, age, n, err)
			}
		}
	}
}

func TestMonths(t *testing.T) {
	t.Parallel()
	b := setup(t)
	months := func() int {
		return b.count(`SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_events'::regclass`)
	}
	if n := months(); n != 5 { // this one, three more, the others
		t.Errorf("%d partitions", n)
	}
	b.exec(`DO $$ BEGIN EXECUTE 'DROP TABLE audit_events_' || to_char(now() AT TIME ZONE 'UTC' + interval '1 month', 'YYYY_MM'); END $$`)
	for range 2 {
		if err := AddMonths(t.Context(), b.pool); err != nil || months() != 5 {
			t.Errorf("%d partitions, %v", months(), err)
		}
	}
	b.opened(1)
	if n := b.count(`SELECT count(*) FROM audit_events WHERE tableoid = ('audit_events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM'))::regclass`); n != 1 {
		t.Errorf("%d rows in this month", n)
	}
	// A month that has rows among the others stays there, and holds up no other month.
	b.exec(`DO $$ BEGIN EXECUTE 'DROP TABLE audit_events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM');
		EXECUTE 'DROP TABLE audit_events_' || to_char(now() AT TIME ZONE 'UTC' + interval '2 months', 'YYYY_MM'); END $$`)
	b.opened(1)
	if err := AddMonths(t.Context(), b.pool); err != nil || months() != 4 {
		t.Errorf("%d partitions, %v", months(), err)
	}
}

// What was there before the chain is sealed as it was, and its visitors are proved.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	url := testkit.Database(t, nil)
	b := &bundle{t: t, owner: open(t, url, ``)}
	b.upTo(4)
	b.link = b.newLink("req-1", "cus_jo", time.Now().Add(time.Hour))
	b.exec(`INSERT INTO audit_events (id, at, kind, link_id, request_id, detail) SELECT
		(lpad(to_hex((extract(epoch FROM now() - n * interval '20 days') * 1000)::bigint), 12, '0') || '7000800000000000000' || n)::uuid,
		now() - n * interval '20 days', 'link.opened', $1, 'req-1', '{"verdict": "person"}' FROM generate_series(0, 3) n`, b.link)
	b.exec(`INSERT INTO audit_visitors (event_id, at, ip, user_agent) SELECT id, at, '2001:db8::1', 'Möbius' FROM audit_events`)
	if _, err := migrations.Up(t.Context(), b.owner); err != nil {
		t.Fatal(err)
	}
	b.pool = open(t, url, `SET ROLE latchkey_app`)
	b.exec(`CREATE TABLE published (first uuid NOT NULL); GRANT INSERT ON published TO latchkey_app`)
	b.sealer = &Sealer{Pool: b.pool, Publish: publish}
	b.seal(4)
	v, err := b.verify(Head{}, Head{})
	if err != nil || v.Rows != 4 || v.Visitors != 4 || v.Unproved != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if b.count(`SELECT count(*) FROM audit_events_others`) != 0 || b.count(`SELECT count(*) FROM audit_events a JOIN audit_events b ON a.id < b.id AND a.seq >= b.seq`) != 0 {
		t.Error("rows are in no month, or not in their order")
	}
	// A worker of the release before goes on writing.
	b.exec(`INSERT INTO audit_events (id, at, kind, link_id, request_id, click_id, detail) VALUES (gen_random_uuid(), now(), 'link.opened', $1, 'req-1', NULL, '{}')`, b.link)
}

// upTo migrates to one of our versions.
func (b *bundle) upTo(version int64) {
	b.t.Helper()
	db := stdlib.OpenDBFromPool(b.owner)
	defer func() { _ = db.Close() }()
	p, err := goose.NewProvider(goose.DialectPostgres, db, os.DirFS("../../migrations"), goose.WithTableName("latchkey_migrations"), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := p.UpTo(b.t.Context(), version); err != nil {
		b.t.Fatal(err)
	}
}
