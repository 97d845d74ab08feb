package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// full compares stream-to-committed-links on a database with millions of links with the same on a new one, and shows
// what a link takes of the disk and of Postgres' log.
func (b *bench) full(ctx context.Context) error {
	links, n := 5_000_000, 50_000
	if b.short {
		links, n = 20_000, 2000
	}
	if err := jobs.EnsureStreams(ctx, b.js, true); err != nil {
		return err
	}
	large, err := b.planned(ctx, "filled")
	if err != nil {
		return err
	}
	defer large.Close()
	if err := fillLinks(ctx, large, links); err != nil {
		return err
	}
	if err := b.tellSizes(ctx, large, links); err != nil {
		return err
	}
	kinds := []*fullIntake{{what: "a campaign's requests", name: ofCampaign}, {what: "requests with ids all over", name: spread}}
	for round := range b.rounds() {
		for i, kind := range kinds {
			if err := b.fullRound(ctx, kind, large, n); err != nil {
				return err
			}
			if round+i == 0 {
				if err := b.tellJobs(ctx, large, n); err != nil {
					return err
				}
			}
			if _, err := large.Exec(ctx, `TRUNCATE river_job`); err != nil { // nobody works them
				return err
			}
		}
	}
	for _, kind := range kinds {
		toEmpty := ratios(kind.ours, kind.empty)
		b.goal(median(toEmpty) >= 0.8, fmt.Sprintf("intake, stream to committed links, %d on %d: %s", n, links, kind.what), fmt.Sprintf("%.0f/s", median(kind.ours)),
			fmt.Sprintf("on an empty database: %.0f/s", median(kind.empty)), ofRounds("%.2f", toEmpty), "≥ 0.8")
		b.goal(true, "  bytes of Postgres' log a link, most and median", fmt.Sprintf("%.0f, %.0f", slices.Max(kind.wal), median(kind.wal)), "", "", "shown")
	}
	return nil
}

// fullIntake is a kind of requests and what was measured of it, an entry a round.
type fullIntake struct {
	what string
	name namer

	ours, empty []float64
	wal         []float64 // bytes a link
}

// fullRound serves n requests on an empty database, and then on the large one.
func (b *bench) fullRound(ctx context.Context, kind *fullIntake, large *pgxpool.Pool, n int) error {
	empty, err := b.intoEmpty(ctx, kind.name, n)
	if err != nil {
		return err
	}
	before, err := walPosition(ctx, large)
	if err != nil {
		return err
	}
	rate, err := b.intakeRound(ctx, large, n, runLoops, kind.name)
	if err != nil {
		return err
	}
	after, err := walPosition(ctx, large)
	kind.ours, kind.empty = append(kind.ours, rate), append(kind.empty, empty)
	kind.wal = append(kind.wal, (after-before)/float64(n))
	return err
}

// planned makes a database whose sessions plan as a worker's.
func (b *bench) planned(ctx context.Context, name string) (*pgxpool.Pool, error) {
	pool, err := b.database(ctx, name)
	if err != nil {
		return nil, err
	}
	return pool, planAsWorkers(ctx, pool, name)
}

// planAsWorkers has sessions of a pool's database, name, plan as a worker's.
func planAsWorkers(ctx context.Context, pool *pgxpool.Pool, name string) error {
	for setting, value := range portal.PlannerSettings {
		if _, err := pool.Exec(ctx, "ALTER DATABASE "+name+" SET "+setting+" = "+value); err != nil {
			return err
		}
	}
	pool.Reset()
	return nil
}

// intoEmpty is intakeRound on a database of its own, which goes again.
func (b *bench) intoEmpty(ctx context.Context, name namer, n int) (float64, error) {
	const database = "empty"
	pool, err := b.planned(ctx, database)
	if err != nil {
		return 0, err
	}
	rate, err := b.intakeRound(ctx, pool, n, runLoops, name)
	pool.Close()
	if err != nil {
		return 0, err
	}
	_, err = b.pool.Exec(ctx, "DROP DATABASE "+database)
	return rate, err
}

// opened gives each tenth link a look at its page and a press with its session, so that there are rows to measure.
const opened = `WITH seen AS (SELECT id, request_id, substr(replace(id::text, '-', ''), 9, 8) AS i FROM links WHERE right(id::text, 1) IN ('0', '8')),
	rows AS (INSERT INTO audit_events (id, at, kind, link_id, request_id, click_id, detail)
		SELECT (e.prefix || i || '7000800000000000')::uuid, now(), e.kind, id, request_id, CASE WHEN e.clicked THEN ('01970005' || i || '7000800000000000')::uuid END, e.detail::jsonb
		FROM seen, (VALUES ('01970002', 'link.opened', false, '{"state": "live", "method": "GET", "signals": [], "verdict": "person"}'),
			('01970003', 'click.started', true, '{"signals": [], "verdict": "person"}'),
			('01970004', 'session.created', true, '{"livemode": true, "session_id": "bps_1PqRsTuVwXyZaBcDeFgHiJkL", "stripe_request_id": "req_AbCdEfGhIjKlMn"}')) AS e (prefix, kind, clicked, detail)
		RETURNING id, kind),
	visitors AS (INSERT INTO audit_visitors (event_id, at, ip, user_agent)
		SELECT id, now(), '203.0.113.7', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1'
		FROM rows WHERE kind <> 'session.created')
	INSERT INTO clicks (id, link_id, started_at, outcome, ended_at) SELECT ('01970005' || i || '7000800000000000')::uuid, id, now(), 'created', now() FROM seen`

// auditSize is that of all months: a partitioned table has no size of its own.
const auditSize = `(SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('audit_events'))`

// tellSizes shows what rows take, with their indexes, and the indexes of links by themselves.
func (b *bench) tellSizes(ctx context.Context, pool *pgxpool.Pool, links int) error {
	var audit float64 // before there are rows of other kinds
	if err := pool.QueryRow(ctx, `SELECT `+auditSize+`::float8 / $1`, links).Scan(&audit); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, opened); err != nil {
		return err
	}
	if err := settleTables(ctx, pool); err != nil {
		return err
	}
	var link, heap, opens, visitor, click float64
	if err := pool.QueryRow(ctx, `SELECT pg_total_relation_size('links')::float8 / (SELECT count(*) FROM links), pg_table_size('links')::float8 / (SELECT count(*) FROM links),
			`+auditSize+`::float8 / (SELECT count(*) FROM audit_events),
			pg_total_relation_size('audit_visitors')::float8 / (SELECT count(*) FROM audit_visitors),
			pg_total_relation_size('clicks')::float8 / (SELECT count(*) FROM clicks)`).Scan(&link, &heap, &opens, &visitor, &click); err != nil {
		return err
	}
	rows, err := pool.Query(ctx, `SELECT format('%s %s', c.relname, round(pg_relation_size(c.oid)::numeric / $1, 1))
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'links'::regclass ORDER BY pg_relation_size(c.oid) DESC`, links)
	if err != nil {
		return err
	}
	indexes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	b.goal(true, fmt.Sprintf("bytes on disk with indexes, of %d: a link, of that without indexes", links), fmt.Sprintf("%.0f, %.0f", link, heap), "indexes: "+strings.Join(indexes, ", "), "", "shown")
	b.goal(true, "  an audit row of link.issued, of all kinds; a visitor; a click", fmt.Sprintf("%.0f, %.0f; %.0f; %.0f", audit, opens, visitor, click), "", "", "shown")
	return nil
}

// tellJobs shows what the publish jobs of a round take, which nobody worked.
func (b *bench) tellJobs(ctx context.Context, pool *pgxpool.Pool, n int) error {
	var jobs int
	var size float64
	if err := pool.QueryRow(ctx, `SELECT count(*), pg_total_relation_size('river_job')::float8 / greatest(count(*), 1) FROM river_job`).Scan(&jobs, &size); err != nil {
		return err
	}
	b.goal(true, fmt.Sprintf("  publish jobs for %d links; bytes each", n), fmt.Sprintf("%d; %.0f", jobs, size), "", "", "shown")
	return nil
}
