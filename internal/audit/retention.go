package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// AddMonths makes the partitions of audit_events for this month and the three that follow, where they are missing.
// Rows without a month of their own go to audit_events_others.
func AddMonths(ctx context.Context, db *pgxpool.Pool) error {
	if _, err := db.Exec(ctx, `SELECT audit_add_months()`); err != nil {
		return fmt.Errorf("make the audit's next months: %w", err)
	}
	return nil
}

// Retention is how long what can go is kept; 0 = for ever.
type Retention struct {
	Visitors time.Duration // from the visit on
	Links    time.Duration // from when they expired
}

// Aged is how many rows a call of Age deleted.
type Aged struct{ Visitors, Links int64 }

// ageRows bounds a transaction.
const ageRows = 5000

// Age deletes what is past its retention, some thousand rows at a time, so that nobody waits for it. What a crash
// leaves is the next call's. Of a deleted link its request id stays, which can't be used again; its audit rows stay.
func (r Retention) Age(ctx context.Context, db *pgxpool.Pool, now time.Time) (aged Aged, err error) {
	if r.Visitors > 0 {
		aged.Visitors, err = untilNone(ctx, db, `WITH gone AS (DELETE FROM audit_visitors WHERE event_id IN
			(SELECT event_id FROM audit_visitors WHERE at < $1 ORDER BY at LIMIT $2) RETURNING 1) SELECT count(*) FROM gone`, now.Add(-r.Visitors))
		if err != nil {
			return aged, fmt.Errorf("delete old visitors: %w", err)
		}
	}
	if r.Links > 0 {
		aged.Links, err = untilNone(ctx, db, `SELECT delete_expired_links($1, $2)`, now.Add(-r.Links))
		if err != nil {
			return aged, fmt.Errorf("delete old links: %w", err)
		}
	}
	return aged, nil
}

// untilNone runs a statement that deletes at most ageRows and says how many, until it finds none.
func untilNone(ctx context.Context, db *pgxpool.Pool, sql string, before time.Time) (total int64, err error) {
	for {
		var n int64
		if err := db.QueryRow(ctx, sql, before, ageRows).Scan(&n); err != nil || n == 0 {
			return total, err
		}
		total += n
	}
}
