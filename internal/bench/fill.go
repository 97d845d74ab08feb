package main

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/audit"
	"latchkey/internal/jobs"
)

// filledLinks writes links as intake makes them: the ids of links and audit rows ascend with time, those of requests
// and customers are spread, so that each new one goes to another place of its index.
const filledLinks = `WITH made AS (INSERT INTO links (id, request_id, request_hash, published_at, source, campaign, stripe_customer, session, metadata, key_id, created_at, expires_at)
		SELECT ('01970000' || lpad(to_hex(i), 8, '0') || '70008000' || substr(md5(i::text), 1, 8))::uuid, 'in_' || md5(i::text), sha256(i::text::bytea), now(), 'bench', 'bench-2026',
			'cus_B' || substr(md5(i::text), 1, 13), jsonb_build_object('customer', 'cus_B' || substr(md5(i::text), 1, 13), 'return_url', 'https://app.example.com/billing'),
			jsonb_build_object('invoice', 'in_' || i), 1, now(), now() + interval '30 days'
		FROM generate_series($1::int, $2::int) i RETURNING id, request_id, stripe_customer, source, campaign)
	INSERT INTO audit_events (id, at, kind, link_id, request_id, detail)
	SELECT ('01970001' || substr(replace(id::text, '-', ''), 9, 8) || '7000800000000000')::uuid, now(), 'link.issued', id, request_id,
		jsonb_build_object('customer', stripe_customer, 'source', source, 'campaign', campaign) FROM made`

// fillLinks writes that many links with their audit rows, by SQL: what is measured is what comes on top of them.
func fillLinks(ctx context.Context, pool *pgxpool.Pool, links int) error {
	const step = 100_000
	var next atomic.Int64
	var writers sync.WaitGroup
	failed := make(chan error, runtime.NumCPU())
	for range runtime.NumCPU() {
		writers.Go(func() {
			for from := int(next.Add(step)) - step; from < links; from = int(next.Add(step)) - step {
				if _, err := pool.Exec(ctx, filledLinks, from, min(from+step, links)-1); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	writers.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}
	// Or the workers would have millions of rows to seal while they are measured.
	if _, err := (&audit.Sealer{Pool: pool, Publish: jobs.PublishByJob}).Seal(ctx); err != nil {
		return err
	}
	return settleTables(ctx, pool)
}

// settleTables does what autovacuum and time do.
func settleTables(ctx context.Context, pool *pgxpool.Pool) error {
	for _, sql := range []string{`VACUUM ANALYZE links, audit_events, audit_visitors, clicks`, `CHECKPOINT`} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// filledID is the id of the n-th of these links.
func filledID(n uint64) (uuid.UUID, error) {
	return uuid.Parse(fmt.Sprintf("01970000%08x70008000%s", n, md5Of(strconv.FormatUint(n, 10))[:8]))
}

// spread names requests as fillLinks does.
func spread(fill, i int) (id, customer string) {
	sum := md5Of(fmt.Sprintf("%d-%d", fill, i))
	return "in_" + sum, "cus_B" + sum[:13] // without the B some would be customers of whom the simulator makes errors
}

// ofCampaign names requests as 'enqueue bulk' does: ids of a campaign lie side by side, customers are spread.
func ofCampaign(fill, i int) (id, customer string) {
	_, customer = spread(fill, i)
	return fmt.Sprintf("bench-%d:%s", fill, customer), customer
}

func md5Of(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

// walPosition is how many bytes the server has written to its log so far.
func walPosition(ctx context.Context, pool *pgxpool.Pool) (bytes float64, err error) {
	err = pool.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8`).Scan(&bytes)
	return bytes, err
}
