package portal

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Whatever a click asks of the database is found by a key, on tables that were empty when the plan
// was made, and on ones whose statistics are behind. Looking through all open clicks for one costs
// the more, the more people wait.
func TestClicksFindRowsByKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	plain, limited, renewed := b.link(nil), b.link(maxSessions(1)), b.link(nil)
	b.do("GET", "/l/"+b.token(plain)).want(t, 200, pageConfirm)
	b.post(plain).want(t, 303, "")
	b.post(limited).want(t, 303, "")
	b.post(limited).want(t, 303, "") // the same session again
	b.clock.advance(replayed)
	b.post(limited).want(t, 410, pageUsedUp)
	b.busy("", time.Minute)
	place, _ := b.post(renewed).place(t)
	b.post(renewed).want(t, 200, pageWaiting)                                                                                 // joins the open click
	if _, err := b.owner.Exec(t.Context(), `UPDATE stripe_budget SET slot_at = slot_at - interval '2 minutes'`); err != nil { // a pause
		t.Fatal(err)
	}
	b.do("GET", place).want(t, 303, "")

	plans := b.plans()
	for _, table := range []string{"INSERT INTO audit_events", "INSERT INTO clicks", "UPDATE clicks", "min(c.ticket)", "UPDATE stripe_budget", "FROM links"} {
		if !strings.Contains(fmt.Sprint(plans), table) {
			t.Errorf("no statement was looked at that has %s", table)
		}
	}
	for sql, plan := range plans {
		scans, keys := strings.Count(plan, "Index Scan")+strings.Count(plan, "Index Only Scan"), strings.Count(plan, "Index Cond")
		if strings.Contains(plan, "Seq Scan") || scans != keys {
			t.Errorf("%s\nis planned as\n%s", sql, plan)
		}
	}
}

// plans are the generic plans of what the pool's sessions have prepared so far, by statement.
func (b *bundle) plans() map[string]string {
	b.t.Helper()
	plans := map[string]string{}
	for _, conn := range b.pool.AcquireAllIdle(b.t.Context()) {
		maps.Copy(plans, b.plansOf(conn))
		conn.Release()
	}
	return plans
}

func (b *bundle) plansOf(conn *pgxpool.Conn) map[string]string {
	b.t.Helper()
	if _, err := conn.Exec(b.t.Context(), `SET plan_cache_mode = force_generic_plan`); err != nil {
		b.t.Fatal(err)
	}
	rows, err := conn.Query(b.t.Context(), `SELECT name, statement, cardinality(parameter_types) FROM pg_prepared_statements
		WHERE statement ~* '\m(select|insert|update|delete)\M' AND statement !~ 'pg_prepared_statements'`)
	if err != nil {
		b.t.Fatal(err)
	}
	type prepared struct {
		Name, SQL string
		Params    int
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[prepared])
	if err != nil {
		b.t.Fatal(err)
	}
	plans := map[string]string{}
	for _, p := range all {
		explain := "EXPLAIN EXECUTE " + pgx.Identifier{p.Name}.Sanitize()
		if p.Params > 0 {
			explain += "(NULL" + strings.Repeat(", NULL", p.Params-1) + ")"
		}
		lines, err := conn.Query(b.t.Context(), explain, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			b.t.Fatal(err)
		}
		plan, err := pgx.CollectRows(lines, pgx.RowTo[string])
		if err != nil {
			b.t.Fatalf("%s: %v", explain, err)
		}
		plans[p.SQL] = strings.Join(plan, "\n")
	}
	return plans
}
