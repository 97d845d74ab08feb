package portal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Revocation says which links die, by whom and why. Exactly one of the first five is set. A link,
// named by its id or its request's, dies with its chain: who takes a link away means what it was
// renewed to as well, and need not know of it. Of a key's links those die that are live: it has signed
// more than anybody wants to hear of, and what is expired is renewed under another one.
type Revocation struct {
	LinkID    string `json:"link_id,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	Customer  string `json:"customer,omitempty"`
	Campaign  string `json:"campaign,omitempty"`
	KeyID     *byte  `json:"key_id,omitempty"` // 0 is a key's id too
	By        string `json:"by"`
	Reason    string `json:"reason,omitempty"`
}

// ErrRevocation is returned for a revocation that is not complete.
var ErrRevocation = errors.New("name exactly one of link_id, request_id, customer, campaign and key_id, and who revokes in by (reason and by: at most 200 characters)")

// ValidBy tells whether the audit takes who did something, which may not be empty, and why: at most 200 characters each.
func ValidBy(by, reason string) bool {
	return by != "" && utf8.RuneCountInString(by) <= 200 && utf8.RuneCountInString(reason) <= 200 && storable(by+reason)
}

// storable tells whether Postgres takes a text.
func storable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// revokeChunk bounds a transaction; a campaign of 100,000 links takes a few hundred.
const revokeChunk = 500

// where is the condition that chooses the links, of which $1 is the argument and $2 the time.
func (r Revocation) where() (where string, arg any, err error) {
	set := 0
	for condition, value := range map[string]string{chainOf("id"): r.LinkID, chainOf("request_id"): r.RequestID,
		"stripe_customer = $1": r.Customer, "campaign = $1": r.Campaign} {
		if value != "" {
			set++
			where, arg = condition, value
		}
	}
	if r.KeyID != nil {
		set++
		where, arg = "key_id = $1 AND expires_at > $2", int16(*r.KeyID)
	}
	if all := r.RequestID + r.Customer + r.Campaign + r.By + r.Reason; !storable(all) {
		return "", nil, fmt.Errorf("U+0000 and invalid UTF-8 can't be stored: %w", ErrRevocation)
	}
	if set != 1 || !ValidBy(r.By, r.Reason) {
		return "", nil, ErrRevocation
	}
	if r.LinkID != "" {
		id, err := uuid.Parse(r.LinkID)
		if err != nil {
			return "", nil, fmt.Errorf("link_id is not a UUID: %w", ErrRevocation)
		}
		arg = id
	}
	return where, arg, nil
}

// chainOf selects the link that a unique column names, the first one of its chain, and all that
// this was renewed to. Scalar subselects, since an index serves those on both sides of an OR.
func chainOf(column string) string {
	first := `(SELECT coalesce(renewal_of, id) FROM links WHERE ` + column + ` = $1)`
	return `(id = ` + first + ` OR renewal_of = ` + first + `)`
}

// Revoke ends links for ever, effective on their next click on every replica, and returns how
// many it ended; links that were revoked before are not counted. A crash between chunks leaves
// the first ones revoked, and a second call ends the rest.
func (s *Store) Revoke(ctx context.Context, r Revocation) (int, error) {
	where, arg, err := r.where()
	if err != nil {
		return 0, err
	}
	total := 0
	var after uuid.UUID // chunks go by id, each from where the last one ended
	for {
		n, last, err := s.revokeSome(ctx, r, where, arg, after)
		if err != nil {
			return total, err
		}
		if n == 0 {
			return total, nil
		}
		// Until there is none: a chunk may have waited for a renewal, whose new link only the next one sees.
		total, after = total+n, last
	}
}

func (s *Store) revokeSome(ctx context.Context, r Revocation, where string, arg any, after uuid.UUID) (n int, last uuid.UUID, err error) {
	err = InTx(ctx, s.Pool, func(tx *Tx) error {
		now := s.Now()
		rows, err := tx.Query(ctx, `UPDATE links SET revoked_at = $2, revoked_by = $3, revoke_reason = nullif($4, '')
			WHERE id IN (SELECT id FROM links WHERE `+where+` AND id > $5 AND revoked_at IS NULL ORDER BY id LIMIT `+fmt.Sprint(revokeChunk)+` FOR UPDATE)
			RETURNING id, request_id`, arg, now, r.By, r.Reason, after)
		if err != nil {
			return fmt.Errorf("revoke links: %w", err)
		}
		events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e AuditEvent, err error) {
			e.Kind, e.At, e.Detail = LinkRevoked, now, map[string]any{"by": r.By, "reason": r.Reason}
			err = row.Scan(&e.LinkID, &e.RequestID)
			return e, err
		})
		if err != nil || len(events) == 0 {
			return err
		}
		n = len(events)
		for _, e := range events {
			if bytes.Compare(e.LinkID[:], last[:]) > 0 {
				last = e.LinkID
			}
		}
		return s.appendAll(ctx, tx, events)
	})
	return n, last, err
}
