package jobs

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/riverqueue/river"

	"latchkey/internal/portal"
)

// newBatch is the first item of each request id, by request id, so that two batches with the same ids can't
// deadlock. They, and the others of their ids, count as repeats until insertNew has made their links.
func newBatch(items []*Item) (batch []*Item) {
	seen := make(map[string]bool, len(items))
	for _, item := range items {
		if item.Rejection != nil {
			continue
		}
		item.Repeat = true
		if !seen[item.Link.RequestID] {
			seen[item.Link.RequestID] = true
			batch = append(batch, item)
		}
	}
	slices.SortFunc(batch, func(a, b *Item) int { return cmp.Compare(a.Link.RequestID, b.Link.RequestID) })
	return batch
}

// insertNew makes links, their audit rows and the job that publishes these, for those items whose request id has
// no link yet: they are no repeats any more, once tx has its answers. All of it goes out in one piece with what
// follows, COMMIT mostly, for the job names an audit id for each item, and not each needs to have a row. Only
// deliveries must know which are new, and wait.
func (s *Issuer) insertNew(ctx context.Context, tx *portal.Tx, batch []*Item, now time.Time) error {
	ids, err := portal.NewIDs(len(batch))
	if err != nil {
		return err
	}
	byID := make(map[string]*Item, len(batch))
	deliver := false
	for _, item := range batch {
		byID[item.Link.RequestID] = item
		deliver = deliver || len(item.Request.Deliver) > 0
	}
	var made []portal.EventRow
	s.insertLinks(tx, batch, ids, now, func(rows pgx.Rows) error {
		made, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (portal.EventRow, error) {
			e := portal.EventRow{At: now, Kind: portal.LinkIssued} // its event takes all from the link
			var id string
			err := row.Scan((*[16]byte)(&e.ID), &id)
			if err == nil {
				e.Link, byID[id].Repeat = byID[id].Link, false
				e.LinkID = e.Link.ID
			}
			return e, err
		})
		if err != nil {
			return fmt.Errorf("insert links: %w", err)
		}
		tx.HandOver(ids, made)
		return nil
	})
	if err := s.Publish(ctx, tx, ids); err != nil || !deliver {
		return err
	}
	if err := tx.Await(ctx); err != nil {
		return err
	}
	var deliveries []river.InsertManyParams
	for _, row := range made {
		deliveries = append(deliveries, deliveryJobs(row.ID, byID[row.Link.RequestID].Request)...)
	}
	if len(deliveries) == 0 {
		return nil
	}
	return s.Deliver(ctx, tx, deliveries)
}

// insertLinks writes a link and its audit row for each item whose request id has none, and has read look at the
// audit ids and request ids of those. The audit ids are the first of the range. Whose link it is, and from whom, stands
// in the row too: seals are over the audit, not over links, and links can be deleted (LINK_RETENTION). By jsonb_object:
// jsonb_build_object takes three times as long.
//
// Not by ON CONFLICT: it writes each row twice, in case that another one is quicker, and took a fifth more of
// Postgres' time. Where one is quicker, the whole transaction begins again (lostRace).
func (s *Issuer) insertLinks(tx *portal.Tx, batch []*Item, audit portal.IDRange, now time.Time, read func(pgx.Rows) error) {
	n := len(batch)
	ids, hashes := make(pgtype.FlatArray[[16]byte], n), make([][]byte, n) // ids as bytes: pgx would take a uuid.UUID by its Value, a string
	requests, sources, customers := make([]string, n), make([]string, n), make([]string, n)
	campaigns, accounts, delivers := make([]string, n), make([]string, n), make([]string, n)
	sessions, metadata := make([]string, n), make([]string, n)
	keys, limits := make([]int16, n), make([]int32, n)
	published, expires, roots := make([]time.Time, n), make([]time.Time, n), make(pgtype.FlatArray[[16]byte], n)
	for i, item := range batch {
		l := item.Link
		ids[i], hashes[i], requests[i], sources[i], customers[i] = l.ID, item.hash, l.RequestID, l.Source, l.Customer
		campaigns[i], accounts[i], sessions[i], metadata[i] = l.Campaign, l.StripeAccount, string(l.Session), string(l.Metadata)
		keys[i], limits[i], published[i], expires[i] = int16(l.KeyID), int32(l.MaxSessions), item.Published, l.ExpiresAt
		delivers[i], roots[i] = string(item.deliver), item.renewalOf
	}
	tx.QueryLater(read, `
		WITH made AS (
			INSERT INTO links (id, request_id, request_hash, published_at, source, campaign, stripe_customer, stripe_account,
				session, metadata, key_id, max_sessions, created_at, expires_at, deliver, renewal_of)
			SELECT id, request_id, request_hash, published_at, source, nullif(campaign, ''), customer, nullif(account, ''),
				session::jsonb, metadata::jsonb, key_id, nullif(max_sessions, 0), $1, expires_at,
				nullif(deliver, '')::jsonb, nullif(renewal_of, '00000000-0000-0000-0000-000000000000')
			FROM unnest($3::uuid[], $4::text[], $5::bytea[], $6::timestamptz[], $7::text[], $8::text[], $9::text[], $10::text[],
				$11::text[], $12::text[], $13::smallint[], $14::int[], $15::timestamptz[], $16::text[], $17::uuid[])
				AS t (id, request_id, request_hash, published_at, source, campaign, customer, account,
					session, metadata, key_id, max_sessions, expires_at, deliver, renewal_of)
			WHERE NOT EXISTS (SELECT FROM links l WHERE l.request_id = t.request_id)
				AND NOT EXISTS (SELECT FROM spent_request_ids s WHERE s.request_id = t.request_id)
			RETURNING id, request_id, stripe_customer, source, campaign, stripe_account)
		INSERT INTO audit_events (id, at, kind, link_id, request_id, detail)
		SELECT ($2::text || lpad(to_hex(row_number() OVER () - 1), 4, '0'))::uuid, $1, 'link.issued', id, request_id,
			jsonb_object(ARRAY['customer', stripe_customer, 'source', source] || CASE WHEN campaign IS NOT NULL THEN ARRAY['campaign', campaign] END
				|| CASE WHEN stripe_account IS NOT NULL THEN ARRAY['stripe_account', stripe_account] END)
		FROM made
		RETURNING id, request_id`,
		now, audit.First.String()[:32], ids, requests, hashes, published, sources, given(campaigns), customers, given(accounts),
		sessions, metadata, keys, given(limits), expires, given(delivers), given(roots))
}

// given is a column, or none where no row has a value: unnest fills it up with NULL, which costs less.
func given[S ~[]T, T comparable](column S) S {
	var none T
	if slices.ContainsFunc(column, func(v T) bool { return v != none }) {
		return column
	}
	return S{}
}
