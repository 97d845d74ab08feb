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

// LeastRetention is the shortest that the database's functions go by: whoever has the worker's password can't wipe
// out today.
const LeastRetention = 24 * time.Hour

// Retention is how long what can go is kept, from LeastRetention on; 0 = for ever.
type Retention struct {
	Visitors time.Duration // from the visit on
	Links    time.Duration // from when they expired
}

// Aged is how many rows a call of Age deleted.
type Aged struct{ Visitors, Links int64 }

// ageRows bounds a transaction.
const ageRows = 5000

// Age deletes what is past its retention, by the database's clock, some thousand rows at a time, so that nobody waits for
// it. What a crash leaves is the next call's. Of a deleted link its request id stays, which can't be used again; its audit
// rows stay.
func (r Retention) Age(ctx context.Context, db *pgxpool.Pool) (aged Aged, err error) {
	if r.Visitors > 0 {
		if aged.Visitors, err = untilNone(ctx, db, `SELECT delete_old_visitors($1, $2)`, r.Visitors); err != nil {
			return aged, fmt.Errorf("delete old visitors: %w", err)
		}
	}
	if r.Links > 0 {
		if aged.Links, err = untilNone(ctx, db, `SELECT delete_expired_links($1, $2)`, r.Links); err != nil {
			return aged, fmt.Errorf("delete old links: %w", err)
		}
	}
	return aged, nil
}

// untilNone runs a statement that deletes at most ageRows and says how many, until it finds none.
func untilNone(ctx context.Context, db *pgxpool.Pool, sql string, age time.Duration) (total int64, err error) {
	for {
		var n int64
		if err := db.QueryRow(ctx, sql, age, ageRows).Scan(&n); err != nil || n == 0 {
			return total, err
		}
		total += n
	}
}
