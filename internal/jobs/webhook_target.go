package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"latchkey/internal/portal"
)

// disableAfter is how long a target may fail without a success between, before nothing is sent to it any
// more. A pause between failures that is longer than the schedule's longest says nothing of that time: the
// count begins anew.
const (
	disableAfter = 5 * 24 * time.Hour
	failurePause = 25 * time.Hour
)

// targetID is what a target is known by: its URL can hold a secret.
func targetID(target string) []byte {
	id := sha256.Sum256([]byte(target))
	return id[:]
}

// targetDisabled tells whether nothing is sent to a target any more.
func (s *deliveries) targetDisabled(ctx context.Context, target string) (disabled bool, err error) {
	err = s.pool.QueryRow(ctx, `SELECT disabled_at IS NOT NULL FROM webhook_targets WHERE id = $1`, targetID(target)).Scan(&disabled)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the state of a webhook's target: %w", err)
	}
	return disabled, nil
}

// FailingTarget is a target of webhooks that took nothing since a time.
type FailingTarget struct {
	Host     string
	Since    time.Time
	Disabled bool // nothing is sent to it any more
}

// FailingTargets lists them, those that are disabled first.
func FailingTargets(ctx context.Context, db portal.Querier) ([]FailingTarget, error) {
	rows, err := db.Query(ctx, `SELECT host, failing_since, disabled_at IS NOT NULL FROM webhook_targets WHERE failing_since IS NOT NULL ORDER BY disabled_at, host LIMIT 20`)
	if err != nil {
		return nil, fmt.Errorf("read the webhooks' targets: %w", err)
	}
	targets, err := pgx.CollectRows(rows, pgx.RowToStructByPos[FailingTarget])
	if err != nil {
		return nil, fmt.Errorf("read the webhooks' targets: %w", err)
	}
	return targets, nil
}

// targetWorks ends a target's failing. A target that never failed has no row.
func (s *deliveries) targetWorks(ctx context.Context, target string) error {
	_, err := s.pool.Exec(ctx, `UPDATE webhook_targets SET failing_since = NULL, disabled_at = NULL WHERE id = $1 AND failing_since IS NOT NULL`, targetID(target))
	return err
}

// targetFails notes that a target took no event. One that has failed for disableAfter, or is gone, is
// disabled, which is an event of the link whose delivery was the last straw.
func (s *deliveries) targetFails(ctx context.Context, target string, row portal.EventRow, gone bool) error {
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	now, host := s.now(), strings.ToLower(u.Hostname())
	return portal.InTx(ctx, s.pool, func(tx *portal.Tx) error {
		var since time.Time
		var disabled bool
		err := tx.QueryRow(ctx, `INSERT INTO webhook_targets AS t (id, host, failing_since, last_failed_at) VALUES ($1, $2, $3, $3)
			ON CONFLICT (id) DO UPDATE SET last_failed_at = $3,
				failing_since = CASE WHEN t.last_failed_at < $4 THEN $3 ELSE coalesce(t.failing_since, $3) END
			RETURNING failing_since, disabled_at IS NOT NULL`, targetID(target), host, now, now.Add(-failurePause)).Scan(&since, &disabled)
		if err != nil || disabled || !gone && now.Sub(since) < disableAfter {
			return err
		}
		if err := durable(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE webhook_targets SET disabled_at = $2 WHERE id = $1`, targetID(target), now); err != nil {
			return err
		}
		s.log.Error("a webhook's target is disabled: nothing is sent to it any more", "host", host, "failing_since", since)
		return s.appendDisabled(ctx, tx, row, now, map[string]any{
			"endpoint": hex.EncodeToString(targetID(target)), "host": host, "failing_since": since.UTC().Format(time.RFC3339)})
	})
}

func (s *deliveries) appendDisabled(ctx context.Context, tx *portal.Tx, row portal.EventRow, now time.Time, detail map[string]any) error {
	ids, err := portal.NewIDs(1)
	if err != nil {
		return err
	}
	e := portal.AuditEvent{ID: ids.First, At: now, Kind: portal.WebhookDisabled, LinkID: row.LinkID, RequestID: row.RequestID(), Detail: detail}
	if err := portal.InsertAudit(ctx, tx, []portal.AuditEvent{e}); err != nil {
		return err
	}
	return s.publish(ctx, tx, ids)
}
