package portal

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"latchkey/internal/stripesim"
	"latchkey/internal/testkit"
)

// checkBooks holds the database against itself and against what Stripe knows, once no click is
// under way and the sweeper has run: everything must add up.
func (b *bundle) checkBooks() {
	b.t.Helper()
	for about, sql := range map[string]string{
		"clicks without an outcome":                  `SELECT count(*) FROM clicks WHERE outcome IS NULL`,
		"clicks without their one click.started row": `SELECT count(*) FROM clicks c WHERE 1 <> (SELECT count(*) FROM audit_events WHERE click_id = c.id AND kind = 'click.started')`,
		"click.started rows of no click":             `SELECT count(*) FROM audit_events e WHERE kind = 'click.started' AND NOT EXISTS (SELECT FROM clicks WHERE id = e.click_id)`,
		"denials that name no click":                 `SELECT count(*) FROM audit_events e WHERE kind = 'click.denied' AND click_id IS NOT NULL AND NOT EXISTS (SELECT FROM clicks WHERE id = e.click_id)`,
		"clicks without their one outcome row": `SELECT count(*) FROM clicks c WHERE 1 <> (SELECT count(*) FROM audit_events WHERE click_id = c.id
			AND kind = CASE outcome WHEN 'created' THEN 'session.created' ELSE 'session.failed' END) OR 1 <> (SELECT count(*) FROM audit_events
			WHERE click_id = c.id AND kind IN ('session.created', 'session.failed'))`,
		"links with reserved uses":    `SELECT count(*) FROM links WHERE sessions_reserved <> 0`,
		"links whose count is wrong":  `SELECT count(*) FROM links l WHERE sessions_created <> (SELECT count(*) FROM clicks WHERE link_id = l.id AND outcome = 'created')`,
		"outcomes before their start": `SELECT count(*) FROM clicks WHERE ended_at < started_at`,
		"events that are not published once": `SELECT count(*) FROM audit_events e WHERE kind NOT IN ('click.started', 'click.denied', 'request.rejected', 'key.retired')
			AND 1 <> (SELECT count(*) FROM published WHERE e.id BETWEEN first AND last)`,
		"publish jobs without a row":        `SELECT count(*) FROM published p WHERE NOT EXISTS (SELECT FROM audit_events e WHERE e.id BETWEEN first AND last)`,
		"rows that are no event, published": `SELECT count(*) FROM audit_events e JOIN published ON e.id BETWEEN first AND last WHERE kind IN ('click.started', 'click.denied', 'key.retired')`,
	} {
		if n := b.number(sql); n != 0 {
			b.t.Errorf("%d %s", n, about)
		}
	}
	for _, session := range b.sim.Sessions() {
		click := strings.TrimPrefix(session.IdempotencyKey, "latchkey_click_")
		if n := b.number(`SELECT count(*) FROM audit_events WHERE click_id = $1 AND kind IN ('click.started', 'session.created', 'session.failed')`, click); n != 2 {
			b.t.Errorf("Stripe's session %s has %d audit rows, want its start and its outcome", session.ID, n)
		}
	}
	if n := b.number(`SELECT count(*) FROM audit_events WHERE kind = 'session.created'`); n > len(b.sim.Sessions()) {
		b.t.Errorf("%d sessions in the audit, %d at Stripe", n, len(b.sim.Sessions()))
	}
}

// dump is every row of every table, by table.
func (b *bundle) dump() map[string]string {
	b.t.Helper()
	rows, err := b.owner.Query(b.t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition`)
	if err != nil {
		b.t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]string{}
	for _, table := range tables {
		var text string
		sql := `SELECT coalesce(string_agg(x::text, E'\n' ORDER BY x::text), '') FROM ` + pgx.Identifier{table}.Sanitize() + ` x`
		if err := b.owner.QueryRow(b.t.Context(), sql).Scan(&text); err != nil {
			b.t.Fatal(err)
		}
		out[table] = text
	}
	return out
}

// Invariant 4: GET and HEAD change nothing but the audit, and never call Stripe.
func TestInvariant4LookingChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	live, limited, expired := b.link(nil), b.link(maxSessions(1)), b.link(nil)
	b.post(limited)
	before, calls := b.dump(), len(b.sim.Calls())
	for _, l := range []*Link{live, limited, expired} {
		for _, method := range []string{"GET", "HEAD"} {
			for _, junk := range []string{"", "/", "%27"} {
				b.do(method, "/l/"+b.token(l)+junk, "User-Agent", "Mozilla/5.0", "Sec-Fetch-User", "?1")
			}
		}
	}
	after := b.dump()
	for _, table := range []string{"audit_events", "audit_visitors", "published"} {
		if len(after[table]) <= len(before[table]) {
			t.Errorf("looking leaves nothing in %s", table)
		}
		delete(before, table)
		delete(after, table)
	}
	if !maps.Equal(before, after) {
		t.Errorf("looking changed something:\nbefore %v\nafter %v", before, after)
	}
	if n := b.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.opened'`); n != 18 || len(b.sim.Calls()) != calls {
		t.Errorf("%d openings in the audit, want 18; %d calls of Stripe", n, len(b.sim.Calls())-calls)
	}
	b.checkBooks()
}

// Invariant 5: when Stripe is called, click.started is committed: another session sees it.
func TestInvariant5StartedBeforeStripe(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	calls := 0
	b.onStripe = func(r *http.Request) {
		calls++
		click := strings.TrimPrefix(r.Header.Get("Idempotency-Key"), "latchkey_click_")
		var audit, open, reserved int
		err := b.owner.QueryRow(context.Background(), `SELECT
			(SELECT count(*) FROM audit_events WHERE kind = 'click.started' AND click_id = $1 AND link_id = $2),
			(SELECT count(*) FROM clicks WHERE id = $1 AND link_id = $2 AND outcome IS NULL),
			(SELECT sessions_reserved FROM links WHERE id = $2)`, click, l.ID).Scan(&audit, &open, &reserved)
		if err != nil || audit != 1 || open != 1 || reserved != 1 {
			t.Errorf("when Stripe was called: %d click.started, %d open clicks, %d reserved (%v)", audit, open, reserved, err)
		}
	}
	b.post(l).want(t, 303, "")
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	b.checkBooks()
}

// Invariant 5: outcome, use count and event job commit together: without the job there is none.
func TestInvariant5OutcomeCommitsAsOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	b.store.Publish = func(context.Context, *Tx, ...IDRange) error { return testkit.ErrFault }
	b.post(l).want(t, 503, pageTryAgain)
	if got := b.kinds(l); got != "click.started" {
		t.Errorf("audit: %s", got)
	}
	if now := b.reload(l); now.SessionsCreated != 0 || now.SessionsReserved != 1 {
		t.Errorf("created %d, reserved %d", now.SessionsCreated, now.SessionsReserved)
	}
	b.store.Publish = publish
	b.sweep(1)
	b.wantCode(l, CodeInterrupted)
	b.checkBooks()
}

// sweep moves the clock past what a click may take, and closes open ones.
func (b *bundle) sweep(want int) {
	b.t.Helper()
	// A sweep passes over rows that are held, and Postgres holds those of a transaction whose
	// connection was broken until it has noticed.
	for b.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL`) > 0 {
	}
	b.clock.advance(5 * time.Minute)
	if n, err := b.store.Sweep(b.t.Context()); n != want || err != nil {
		b.t.Fatalf("swept %d clicks (%v), want %d", n, err, want)
	}
}

// Invariant 6: a session's URL is in the one Location header, and nowhere else; and so is the
// token nowhere but in the page's button.
func TestInvariant6SessionURLIsNowhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	good, dropped, bad := b.link(nil), b.link(customer("cus_dropped")), b.link(customer("cus_badurl"))
	var secrets []string
	for _, l := range []*Link{good, dropped, bad} {
		b.get(l)
		secrets = append(secrets, b.token(l))
		if r := b.post(l); strings.Contains(r.body, "/p/session/") || strings.Contains(r.body, "javascript:") {
			t.Errorf("a page shows the session's URL:\n%s", r.body)
		}
	}
	b.commits.Script(failed)
	b.get(good)                                          // logs an error of the database
	b.commits.Script(fine, fine, failed, failed, failed) // and an outcome that can't be written
	b.post(good).want(t, 503, "")
	b.sweep(1)
	for _, s := range b.sim.Sessions() {
		secrets = append(secrets, s.URL, s.URL[strings.LastIndex(s.URL, "/")+1:])
	}
	families, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := json.Marshal(families)
	if err != nil {
		t.Fatal(err)
	}
	places := b.dump()
	places["log"], places["metrics"] = b.log.String(), string(metrics)
	for place, text := range places {
		for _, secret := range append(secrets, stripesim.TestKey, "/p/session/", "javascript:") {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %q:\n%s", place, secret, text)
			}
		}
	}
	if len(secrets) != 3+2*4 || !strings.Contains(places["log"], "the outcome of a click could not be written") || !strings.Contains(places["log"], "portal session created") {
		t.Errorf("not all was tried: %d secrets, log:\n%s", len(secrets), places["log"])
	}
	b.checkBooks()
}

// No click has two starts or two outcomes, whoever writes them.
func TestAClickHasOneOutcome(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	b.post(l)
	rows := b.audit(l)
	for _, kind := range []Kind{ClickStarted, SessionCreated, SessionFailed} {
		ids, err := NewIDs(1)
		if err != nil {
			t.Fatal(err)
		}
		err = pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
			return InsertAudit(t.Context(), tx, []AuditEvent{{ID: ids.First, At: b.clock.now(), Kind: kind, LinkID: l.ID, ClickID: rows[0].ClickID}})
		})
		if err == nil || !strings.Contains(err.Error(), "_click_") {
			t.Errorf("a second %s: %v", kind, err)
		}
	}
}
