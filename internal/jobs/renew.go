package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"latchkey/internal/portal"
)

// A link and all its renewals, the chain, get at most maxRenewals in any renewalPeriod. Who asks twice
// within renewalAgain, by a double tap or because the answer was lost, gets one.
const (
	maxRenewals   = 3
	renewalPeriod = 24 * time.Hour
	renewalAgain  = time.Minute
)

// errNotRenewed ends the transaction of a renewal that is not to be, with nothing written.
var errNotRenewed = errors.New("the link is not to be renewed")

// Renew makes a new link in place of an expired one: with the same session, deliveries and length
// of life, under a request id of its own. Whoever holds the link may ask, and learns nothing: the
// new link goes where the old one went. renewed is false, with a nil error, where it is not to be
// renewed: not expired, revoked, not delivered by email, renewed within the last minute or three times
// in the last 24 hours, or its session no longer passes intake's checks. v may be nil.
//
// After an error nothing is known to be durable. Asking again is right.
func (s *Issuer) Renew(ctx context.Context, link uuid.UUID, v *portal.Visitor) (renewed bool, err error) {
	now := s.Now().Truncate(time.Microsecond) // what Postgres keeps
	renew := func(tx *portal.Tx) error { return s.renew(ctx, tx, link, v, now) }
	if err = portal.InTx(ctx, s.Pool, renew); portal.RefusesKey(err) {
		if err = s.passOver(ctx, err); err == nil {
			err = portal.InTx(ctx, s.Pool, renew)
		}
	}
	// InTx has committed: durable are the new link, both audit rows and their publish jobs. A
	// crash here means a customer without an answer, whose new link is on its way.
	if errors.Is(err, errNotRenewed) || errors.Is(err, portal.ErrNoLink) {
		return false, nil
	}
	return err == nil, err
}

func (s *Issuer) renew(ctx context.Context, tx *portal.Tx, id uuid.UUID, v *portal.Visitor, now time.Time) error {
	old, err := portal.LoadLink(ctx, tx, id)
	if err != nil {
		return err
	}
	if !old.Renewable || old.StateAt(now) != portal.StateExpired {
		return errNotRenewed
	}
	root, n, err := lockChain(ctx, tx, id, now)
	if err != nil {
		return err
	}
	req, err := s.renewalRequest(ctx, tx, old, fmt.Sprintf("renew_%s_%d", root, n), now)
	if err != nil {
		return err
	}
	item := &Item{Request: req, Published: now, renewalOf: root}
	if err := s.prepare(item, now); err != nil {
		return err
	}
	if err := s.insertNew(ctx, tx, newBatch([]*Item{item}), now); err != nil {
		return err
	}
	if err := tx.Await(ctx); err != nil {
		return err
	}
	if item.Repeat { // ids of producers and of renewals are one namespace
		return fmt.Errorf("renew link %s: a request took the id %s before", id, req.ID)
	}
	return s.appendRenewed(ctx, tx, old, item.Link.ID, v, now)
}

// lockChain holds the chain's first link until the transaction ends, so that presses at the same
// time, on any replica and of any link of the chain, are counted one after the other. It returns
// that link and the number of the next renewal. A chain of which any link was revoked, by itself or
// with its key, is at its end: an older link must not bring back what somebody took away.
func lockChain(ctx context.Context, tx pgx.Tx, link uuid.UUID, now time.Time) (root uuid.UUID, next int, err error) {
	// Presses of a link that somebody holds must not take every connection.
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '500ms'`); err != nil {
		return root, 0, fmt.Errorf("lock the first link of a chain: %w", err)
	}
	err = tx.QueryRow(ctx, `SELECT id FROM links WHERE id = (SELECT coalesce(renewal_of, id) FROM links WHERE id = $1) FOR UPDATE`, link).Scan(&root)
	if errors.Is(err, pgx.ErrNoRows) {
		return root, 0, errNotRenewed
	}
	if err != nil {
		return root, 0, fmt.Errorf("lock the first link of a chain: %w", err)
	}
	// A statement of its own: it sees what those committed who held the lock before.
	var all, recent int
	var revoked, justNow bool
	err = tx.QueryRow(ctx, `SELECT count(renewal_of), count(renewal_of) FILTER (WHERE created_at > $2), bool_or(`+portal.RevokedAt+` IS NOT NULL),
			bool_or(renewal_of IS NOT NULL AND created_at > $3)
		FROM links WHERE id = $1 OR renewal_of = $1`, root, now.Add(-renewalPeriod), now.Add(-renewalAgain)).Scan(&all, &recent, &revoked, &justNow)
	if err != nil {
		return root, 0, fmt.Errorf("count renewals: %w", err)
	}
	if revoked || justNow || recent >= maxRenewals {
		return root, 0, errNotRenewed
	}
	return root, all + 1, nil
}

// renewalRequest is the request that would have made the link, under another id, and checked
// anew: since then a host may have gone from RETURN_URL_HOSTS, or STRIPE_API_VERSION gone back.
// Whether its deliveries are configured is not asked again: they were accepted once.
func (s *Issuer) renewalRequest(ctx context.Context, tx pgx.Tx, old *portal.Link, id string, now time.Time) (*Request, error) {
	req := &Request{
		ID: id, Source: old.Source, Campaign: old.Campaign, StripeAccount: old.StripeAccount,
		// LINK_TTL_MAX may have been lowered, too, which is no reason to refuse.
		ExpiresIn: min(old.ExpiresAt.Sub(old.CreatedAt), s.Rules.TTLMax).String(),
	}
	if old.MaxSessions > 0 {
		req.MaxSessions = &old.MaxSessions
	}
	var deliver []byte
	if err := tx.QueryRow(ctx, `SELECT deliver FROM links WHERE id = $1`, old.ID).Scan(&deliver); err != nil {
		return nil, fmt.Errorf("read a link's deliveries: %w", err)
	}
	err := errors.Join(json.Unmarshal(old.Session, &req.Session), json.Unmarshal(old.Metadata, &req.Metadata), json.Unmarshal(deliver, &req.Deliver))
	if err != nil {
		return nil, fmt.Errorf("decode link %s: %w", old.ID, err)
	}
	if req.check(s.Rules, now) != nil {
		return nil, errNotRenewed
	}
	return req, nil
}

// appendRenewed writes link.renewed, which is about the expired link, and its publish job.
func (s *Issuer) appendRenewed(ctx context.Context, tx *portal.Tx, old *portal.Link, renewal uuid.UUID, v *portal.Visitor, now time.Time) error {
	ids, err := portal.NewIDs(1)
	if err != nil {
		return err
	}
	e := portal.AuditEvent{ID: ids.First, At: now, Kind: portal.LinkRenewed, LinkID: old.ID, RequestID: old.RequestID,
		Detail: map[string]any{"new_link_id": renewal.String()}, Visitor: v}
	if err := portal.InsertAudit(ctx, tx, []portal.AuditEvent{e}); err != nil {
		return err
	}
	return s.Publish(ctx, tx, ids)
}
