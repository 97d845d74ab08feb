package main

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/audit"
	"latchkey/internal/jobs"
)

// audit measures the proof on a year of audit rows, a partition a month, and what that year costs a click.
func (b *bench) audit(ctx context.Context) error {
	rows, rounds, d := 6_000_000, 7, 2*time.Second
	if b.short {
		rows, rounds, d = 60_000, 1, time.Second
	}
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer sim.close()
	pool, err := b.database(ctx, "year")
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := fillYear(ctx, pool, rows); err != nil {
		return err
	}
	if err := b.sealAndVerify(ctx, pool); err != nil {
		return err
	}
	return b.clicksOnAYear(ctx, binary, sim.url, pool, rows, rounds, d)
}

// fillYear writes audit rows of the last twelve months, of the kinds and sizes that there are, and the visitors of the
// last thirty days.
func fillYear(ctx context.Context, pool *pgxpool.Pool, rows int) error {
	if _, err := pool.Exec(ctx, `SELECT audit_add_months(now() - interval '11 months')`); err != nil {
		return err
	}
	const step = 500_000
	for from := 0; from < rows; from += step {
		if _, err := pool.Exec(ctx, yearOfRows, from, min(from+step, rows)-1, rows); err != nil {
			return err
		}
	}
	if _, err := pool.Exec(ctx, monthOfVisitors); err != nil {
		return err
	}
	return settleTables(ctx, pool)
}

// A row's number is the end of its id, and its visitor's salt is made of it. Four rows are about one link, and ten links are of one
// customer. They come as campaigns bring them: ten thousand links are issued, then all of them are opened, and so on.
const (
	salt      = `substring(sha256(i::text::bytea) FOR 16)`
	userAgent = `'Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1'`

	yearOfRows = `INSERT INTO audit_events (id, at, kind, link_id, request_id, click_id, detail, visitor_hash)
		SELECT (left(audit_id_at(t)::text, 13) || '-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, t,
			(ARRAY['link.issued', 'link.opened', 'click.started', 'session.created'])[step + 1],
			(left(audit_id_at(issued)::text, 13) || '-7000-8000-' || left(md5(link::text), 12))::uuid, 'in_' || md5(link::text),
			CASE WHEN step > 1 THEN gen_random_uuid() END,
			(ARRAY['{"customer": "cus_' || left(md5((link / 10)::text), 14) || '", "source": "dunning", "campaign": "2026-11-card-expiry"}', '{"state": "live", "method": "GET", "signals": [], "verdict": "person"}', '{"signals": [], "verdict": "person"}',
				'{"livemode": true, "session_id": "bps_1PqRsTuVwXyZaBcDeFgHiJkL", "stripe_request_id": "req_AbCdEfGhIjKlMn"}'])[step + 1]::jsonb,
			CASE WHEN step IN (1, 2) THEN sha256(` + salt + ` || substring(inet_send('203.0.113.7') FROM 4) || convert_to(` + userAgent + `, 'UTF8')) END
		FROM generate_series($1::int, $2::int) i, LATERAL (SELECT i / 40000 * 10000 + i % 10000 AS link, i / 10000 % 4 AS step) AS what,
			LATERAL (SELECT date_trunc('month', now()) - interval '11 months' AS start) AS year,
			LATERAL (SELECT start + i * ((now() - start) / $3::int), start + (i / 40000 * 40000 + i % 10000) * ((now() - start) / $3::int)) AS at (t, issued)`

	monthOfVisitors = `INSERT INTO audit_visitors (event_id, at, ip, user_agent, salt)
		SELECT id, at, '203.0.113.7', ` + userAgent + `, ` + salt + `
		FROM (SELECT id, at, ('x' || right(id::text, 12))::bit(48)::bigint AS i FROM audit_events WHERE visitor_hash IS NOT NULL AND at > now() - interval '30 days') e`
)

// exports measures what an auditor takes away: everything, and one customer's rows among all.
func (b *bench) exports(ctx context.Context, pool *pgxpool.Pool) error {
	began := time.Now()
	all, err := audit.Export{}.JSONL(ctx, pool, io.Discard)
	if err != nil {
		return err
	}
	b.goal(true, "audit rows exported", fmt.Sprintf("%.0f/s", float64(all)/time.Since(began).Seconds()), "", "", noGoal)
	var took []float64
	for range b.rounds() {
		began := time.Now()
		of := audit.Export{Customer: fmt.Sprintf("cus_%.7x", md5.Sum([]byte("7")))}
		if n, err := of.CSV(ctx, pool, io.Discard); err != nil || n != 40 {
			return errors.Join(err, fmt.Errorf("a customer of 10 links has %d rows, not 40", n))
		}
		took = append(took, float64(time.Since(began).Milliseconds()))
	}
	b.goal(true, "  one customer's 40 rows among them", ofRounds("%.0f", took)+" ms", "", "", noGoal)
	return nil
}

func (b *bench) sealAndVerify(ctx context.Context, pool *pgxpool.Pool) error {
	began := time.Now()
	sealed, err := (&audit.Sealer{Pool: pool, Publish: jobs.PublishByJob}).Seal(ctx)
	if err != nil {
		return err
	}
	b.goal(true, fmt.Sprintf("audit rows sealed, %d", sealed.Rows), fmt.Sprintf("%.0f/s", float64(sealed.Rows)/time.Since(began).Seconds()), "", "", noGoal)
	var size float64
	if err := pool.QueryRow(ctx, `SELECT pg_total_relation_size('audit_seals')::float8 / $1`, sealed.Rows).Scan(&size); err != nil {
		return err
	}
	b.goal(true, "  bytes on disk a row, of the seals", fmt.Sprintf("%.0f", size), "", "", noGoal)
	var rates []float64
	for range b.rounds() {
		began := time.Now()
		v, err := audit.Verify(ctx, pool, audit.Head{}, sealed.Head, nil)
		if err != nil || v.Rows != sealed.Rows || v.Visitors == 0 {
			return errors.Join(err, fmt.Errorf("verified %d rows of %d, and %d visitors", v.Rows, sealed.Rows, v.Visitors))
		}
		rates = append(rates, float64(v.Rows)/time.Since(began).Seconds())
	}
	b.goal(median(rates) >= 200_000, "audit rows verified", ofRounds("%.0f", rates)+"/s", "", "", "≥ 200,000/s")
	if err := b.exports(ctx, pool); err != nil {
		return err
	}
	return nil
}

// clicksOnAYear compares clicks on that year with clicks on a new database.
func (b *bench) clicksOnAYear(ctx context.Context, binary, stripe string, pool *pgxpool.Pool, rows, rounds int, d time.Duration) error {
	const links = 10_000
	fresh, err := b.site(ctx, binary, "fresh", links, stripe)
	if err != nil {
		return err
	}
	defer fresh.close()
	if err := fillLinks(ctx, pool, links); err != nil {
		return err
	}
	year := &site{links: links, pool: pool, keys: fresh.keys}
	if year.worker, err = b.startWorker(ctx, binary, "year", stripe); err != nil {
		return err
	}
	defer year.worker.Stop()
	targets := []*target{
		{method: http.MethodGet, site: fresh, want: http.StatusOK}, {method: http.MethodGet, site: year, want: http.StatusOK},
		{method: http.MethodPost, site: fresh, want: http.StatusSeeOther}, {method: http.MethodPost, site: year, want: http.StatusSeeOther},
	}
	for range rounds {
		for _, measure := range []func(*target) error{func(t *target) error { return t.full(ctx, d) }, func(t *target) error { return t.half(ctx, d) }} {
			for _, t := range targets {
				if err := errors.Join(settle(ctx, []*site{fresh, year}), measure(t)); err != nil {
					return err
				}
			}
		}
	}
	for i := 0; i < len(targets); i += 2 {
		empty, full := targets[i], targets[i+1]
		rate, half := ratios(full.rates, empty.rates), ratios(full.halfP50s, empty.halfP50s)
		b.goal(median(rate) >= 0.8, fmt.Sprintf("click %s on a year of %d audit rows in %d months", full.method, rows, 12), fmt.Sprintf("%.0f/s", median(full.rates)),
			fmt.Sprintf("on a new database: %.0f/s", median(empty.rates)), ofRounds("%.2f", rate), "≥ 0.8")
		b.goal(median(half) < 1.25, "  p50 at half load", ms(median(full.halfP50s)), ms(median(empty.halfP50s)), ofRounds("%.2f", half), "< 1.25")
	}
	return nil
}
