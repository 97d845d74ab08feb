package portal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Retiring a key ends every link that it signed, and keeps new ones from being made under it: a trigger of the
// database refuses those, so that no replica's LINK_KEYS and no older binary matters. Who makes links holds the key's
// lock, shared, to the commit; who retires the key takes it alone. So each link is either there before the key is
// retired, or is refused.
//
// From that commit on the links are dead on every replica, because whoever reads a link looks whether its key is
// retired (RevokedAt). Then Revoke writes it down link by link, which may take minutes and be begun again.

// keyLock is the class of the keys' advisory locks, as the trigger links_key_not_retired has it.
const keyLock = 1801812339

// retireWait is how long RetireKey waits for transactions that make links. Others that make some wait behind it.
const retireWait = 5 * time.Second

// ErrRetireBusy is returned when a transaction that makes links does not end, or somebody has locked audit_events.
// Nothing is retired.
var ErrRetireBusy = fmt.Errorf("no lock within %.0f s: a transaction that makes links of this key has not ended, or audit_events is locked, pg_stat_activity names who; nothing was done, try again", retireWait.Seconds())

// RetireKey closes a signing key for ever and revokes its live links. It returns how many it revoked. After an error
// the key may be retired and some of the links not be revoked yet, though dead; a second call revokes the rest.
func (s *Store) RetireKey(ctx context.Context, id byte, by, reason string) (revoked int, err error) {
	r := Revocation{KeyID: &id, By: by, Reason: reason}
	if _, _, err := r.where(); err != nil {
		return 0, err
	}
	err = InTx(ctx, s.Pool, func(tx *Tx) error {
		_, _ = tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = %d`, retireWait.Milliseconds()))
		_, _ = tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, $2)`, keyLock, int32(id))
		return insertRetired(ctx, tx, id, s.Now(), by, reason)
	})
	switch {
	case waitsForLock(err):
		return 0, ErrRetireBusy
	case RefusesUser(err):
		return 0, ErrNotOwner
	case err != nil:
		return 0, fmt.Errorf("retire key %d: %w", id, err)
	}
	// InTx has committed: the key's links are dead, and no other is made. After a crash here a second call revokes them.
	if revoked, err = s.Revoke(ctx, r); err != nil {
		return revoked, fmt.Errorf("key %d is retired and its links are dead, but only %d of them are written down as revoked; do the same again for the rest: %w", id, revoked, err)
	}
	return revoked, nil
}

// insertRetired writes that a key is retired, and by whom into the audit, if it was not before.
func insertRetired(ctx context.Context, tx *Tx, id byte, now time.Time, by, reason string) error {
	ids, err := NewIDs(1)
	if err != nil {
		return err
	}
	// One statement, which goes out with the COMMIT: who makes links waits for no answer of ours.
	_, _ = tx.Exec(ctx, `WITH made AS (
			INSERT INTO retired_keys (id, retired_at, retired_by, reason) VALUES ($1, $2, $3, nullif($4, '')) ON CONFLICT (id) DO NOTHING RETURNING id)
		INSERT INTO audit_events (id, at, kind, detail) SELECT $5, $2, 'key.retired', jsonb_build_object('key_id', id, 'by', $3::text, 'reason', $4::text) FROM made`,
		int16(id), now, by, reason, ids.First)
	return nil
}

// RefusesKey tells that the database refused links because their key is retired.
func RefusesKey(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.ConstraintName == "links_key_not_retired"
}

// RetiredKeys are the ids of the keys that were retired.
func RetiredKeys(ctx context.Context, db Querier) ([]byte, error) {
	rows, err := db.Query(ctx, `SELECT id FROM retired_keys`)
	if err != nil {
		return nil, fmt.Errorf("read the retired keys: %w", err)
	}
	ids, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (byte, error) {
		var id int16
		err := row.Scan(&id)
		return byte(id), err
	})
	if err != nil {
		return nil, fmt.Errorf("read the retired keys: %w", err)
	}
	return ids, nil
}

// KeyUse tells what a signing key is still needed for.
type KeyUse struct {
	ID          byte       `json:"id"`
	Live        int        `json:"live_links"`      // neither expired nor revoked
	LastExpires *time.Time `json:"last_expires_at"` // of those; null = nothing needs the key
	Issued      int        `json:"issued"`          // links that it ever signed
	RetiredAt   *time.Time `json:"retired_at"`      // null = it is not retired
	RetiredBy   string     `json:"retired_by,omitempty"`
	Reason      string     `json:"reason,omitempty"`
}

// KeyUses tells of each key that signed a link or was retired, by id. It reads all links, some seconds for millions: an
// index for it would cost each new link more than this is worth.
func KeyUses(ctx context.Context, db Querier, now time.Time) ([]KeyUse, error) {
	rows, err := db.Query(ctx, `
		SELECT coalesce(l.key_id, r.id), coalesce(l.live, 0), l.last_expires, coalesce(l.issued, 0),
			r.retired_at, coalesce(r.retired_by, ''), coalesce(r.reason, '')
		FROM (SELECT key_id, count(*) AS issued, count(*) FILTER (WHERE revoked_at IS NULL AND expires_at > $1) AS live,
		             max(expires_at) FILTER (WHERE revoked_at IS NULL AND expires_at > $1) AS last_expires
		      FROM links GROUP BY key_id) l
		FULL JOIN retired_keys r ON r.id = l.key_id ORDER BY 1`, now)
	if err != nil {
		return nil, fmt.Errorf("count the links of keys: %w", err)
	}
	uses, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (u KeyUse, err error) {
		var id int16
		err = row.Scan(&id, &u.Live, &u.LastExpires, &u.Issued, &u.RetiredAt, &u.RetiredBy, &u.Reason)
		u.ID = byte(id)
		return u, err
	})
	if err != nil {
		return nil, fmt.Errorf("count the links of keys: %w", err)
	}
	return uses, nil
}

// LiveOf counts the live links of those of some keys that are not retired.
func LiveOf(ctx context.Context, db Querier, ids []byte, now time.Time) (n int, err error) {
	keys := make([]int16, len(ids))
	for i, id := range ids {
		keys[i] = int16(id)
	}
	rows, err := db.Query(ctx, `SELECT count(*) FROM links WHERE key_id = ANY($1) AND `+RevokedAt+` IS NULL AND expires_at > $2`, keys, now)
	if err == nil {
		n, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
	}
	if err != nil {
		return 0, fmt.Errorf("count the links of keys: %w", err)
	}
	return n, nil
}
