package jobs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"latchkey/internal/portal"
)

// Issuer turns checked requests into links: one transaction for a batch of any origin.
type Issuer struct {
	Pool    *pgxpool.Pool
	Keys    *portal.Keyring
	BaseURL string // LINK_BASE_URL, without a slash at its end
	Rules   Rules
	Publish portal.PublishFunc
	Deliver DeliverFunc // may be nil where Rules know no channel
	Now     func() time.Time
}

// Item is one request on its way to a link. Issue fills in the lower half.
type Item struct {
	Body      []byte
	Source    string    // what the subject says; empty where there is none
	Published time.Time // when the request was stored: a redelivery has the same, a repeat another
	MessageID uuid.UUID // derived from the message, so that a redelivery has the same

	Request   *Request
	Link      *portal.Link // the link, made now or before
	Rejection *Rejection   // set instead of Link where the request can never be served
	Repeat    bool         // the link was there before

	parsed     bool // by the caller, while others are being committed
	hash       []byte
	deliver    []byte    // JSON of Request.Deliver; empty = none
	renewalOf  uuid.UUID // first link of the chain that a renewal belongs to; uuid.Nil = not a renewal
	redelivery bool
	refuse     *Rejection // set once the database refused the item
}

// messageID derives the id of the audit row that a message may need (request.rejected,
// request.duplicate) from its place in the stream. Its first 48 bits are the time, as in any
// UUIDv7.
func messageID(stream string, seq uint64, stored time.Time) uuid.UUID {
	var in [16]byte
	binary.BigEndian.PutUint64(in[:8], seq)
	binary.BigEndian.PutUint64(in[8:], uint64(stored.UnixNano()))
	sum := sha256.Sum256(append([]byte("latchkey message "+stream+" "), in[:]...))
	id := uuid.UUID(sum[:16])
	ms := uint64(stored.UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id
}

// Issue serves a batch. When it returns nil, one transaction has committed for each item a link
// with its audit row and the jobs of its event and its deliveries, or finds that they are there already, or the audit row
// of its rejection: the items may be acknowledged. After an error nothing is known to be
// durable, and serving the same items again is right: what did take effect is found.
func (s *Issuer) Issue(ctx context.Context, items []*Item) error {
	return s.issue(ctx, items, func(*portal.Tx) error { return nil })
}

// issueAtOnce is Issue for callers who wait: it does not wait long for a request id that another transaction
// holds, or one frozen process would hold up everybody.
func (s *Issuer) issueAtOnce(ctx context.Context, items []*Item) error {
	return s.issue(ctx, items, func(tx *portal.Tx) error {
		_, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '500ms'`)
		return err
	})
}

func (s *Issuer) issue(ctx context.Context, items []*Item, begin func(*portal.Tx) error) error {
	now := s.Now().Truncate(time.Microsecond) // what Postgres keeps
	for _, item := range items {
		if !item.parsed {
			s.parse(item, now)
		}
		item.parsed = false // another try parses anew
	}
	for try := 1; ; try++ {
		err := portal.InTx(ctx, s.Pool, func(tx *portal.Tx) error {
			if err := begin(tx); err != nil {
				return err
			}
			return s.write(ctx, tx, items, now)
		})
		// InTx has committed: durable are links, audit rows and jobs. A crash here means a redelivery,
		// which adds nothing.
		if try == raceTries || !lostRace(err) {
			return err
		}
	}
}

// raceTries are for transactions that lost a race; whoever won it has committed, so one more mostly does.
const raceTries = 3

// lostRace tells that a request id was new when its link was about to be made, and was not a moment later.
func lostRace(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == "links_request_id_key"
}

// write makes the rows and jobs of a batch, in two round trips where all of it is new: the job that publishes
// the new links' events goes along with the links, before it is known which of them are new. Not each id
// that it names needs to have a row.
func (s *Issuer) write(ctx context.Context, tx *portal.Tx, items []*Item, now time.Time) error {
	ids, err := portal.NewIDs(len(items))
	if err != nil {
		return err
	}
	if s.insertLinks(tx, items, now) > 0 {
		if err := s.Publish(ctx, tx, ids); err != nil {
			return err
		}
		if err := tx.Await(ctx); err != nil {
			return err
		}
	}
	if err := s.findRepeats(ctx, tx, items); err != nil {
		return err
	}
	return s.appendAudit(ctx, tx, items, ids, now)
}

// part is a run of items that shared a transaction.
type part struct {
	items []*Item
	err   error
}

// issueApart serves items in one transaction, and, where the database refuses a value that our
// checks let through, each in its own, so that one bad request holds up no other and is rejected.
func (s *Issuer) issueApart(ctx context.Context, log *slog.Logger, items []*Item) []part {
	err := s.Issue(ctx, items)
	if err == nil || !portal.RefusesValue(err) || lostRace(err) {
		return []part{{items, err}}
	}
	if len(items) == 1 {
		return []part{{items, s.reject(ctx, log, items[0], err)}}
	}
	var parts []part
	for i := range items {
		parts = append(parts, s.issueApart(ctx, log, items[i:i+1])...)
	}
	return parts
}

// reject writes the rejection of an item that the database refused by itself.
func (s *Issuer) reject(ctx context.Context, log *slog.Logger, item *Item, refused error) error {
	log.Error("the database refuses a request that passed its checks; please report the SQLSTATE", "error", refused)
	item.refuse = &Rejection{InvalidField, "$: the database refuses a value of it"}
	return s.Issue(ctx, []*Item{item})
}

// parse checks a request and prepares its link.
func (s *Issuer) parse(item *Item, now time.Time) {
	item.Link, item.Rejection, item.Repeat, item.redelivery = nil, nil, false, false
	req, err := ParseRequest(item.Body, s.Rules, now)
	item.Request = req
	if err == nil && item.refuse != nil {
		err = item.refuse
	}
	if err == nil && item.Source != "" && req.Source != item.Source {
		err = field("$.source", "must be the token behind "+RequestsPrefix+" in the subject", "another source")
	}
	if err == nil {
		err = s.prepare(item, now)
	}
	if err != nil && !errors.As(err, &item.Rejection) {
		item.Rejection = &Rejection{InvalidField, "$: can't be stored"}
	}
	if item.expired() { // perhaps it was served while its time had not come
		item.hash, _ = req.hash()
	}
}

func (i *Item) expired() bool { return i.Rejection != nil && i.Rejection.Code == Expired }

// prepare makes the link of an item whose request has passed its checks.
func (s *Issuer) prepare(item *Item, now time.Time) error {
	req := item.Request
	var err error
	if item.hash, err = req.hash(); err != nil {
		return err
	}
	session, err := json.Marshal(req.Session)
	if err != nil {
		return err
	}
	metadata := []byte("{}")
	if len(req.Metadata) > 0 {
		if metadata, err = json.Marshal(req.Metadata); err != nil {
			return err
		}
	}
	item.deliver = nil
	if len(req.Deliver) > 0 {
		if item.deliver, err = json.Marshal(req.Deliver); err != nil {
			return err
		}
	}
	expires, err := req.Expiry(s.Rules, now)
	if err != nil {
		return err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	item.Link = &portal.Link{
		ID: id, RequestID: req.ID, Source: req.Source, Campaign: req.Campaign,
		Customer: req.Session.CustomerID(), StripeAccount: req.StripeAccount,
		Session: session, Metadata: metadata, KeyID: s.Keys.SignerID(), CreatedAt: now, ExpiresAt: expires,
	}
	if req.MaxSessions != nil {
		item.Link.MaxSessions = *req.MaxSessions
	}
	return nil
}

// insertLinks writes one row for each request id that has none, and marks the other items as
// repeats, once tx has its answer; it returns how many rows it tries. Rows go in by request id, so that two
// batches with the same ids can't deadlock.
func (s *Issuer) insertLinks(tx *portal.Tx, items []*Item, now time.Time) (tried int) {
	byID := map[string]*Item{} // the first of each id in this batch
	var batch []*Item
	for _, item := range items {
		if item.Rejection != nil {
			continue
		}
		item.Repeat = true
		if byID[item.Link.RequestID] == nil {
			byID[item.Link.RequestID] = item
			batch = append(batch, item)
		}
	}
	if len(batch) == 0 {
		return 0
	}
	slices.SortFunc(batch, func(a, b *Item) int { return cmp.Compare(a.Link.RequestID, b.Link.RequestID) })
	n := len(batch)
	ids, hashes := make([][16]byte, n), make([][]byte, n) // ids as bytes: pgx would take a uuid.UUID by its Value, a string
	requests, sources, customers := make([]string, n), make([]string, n), make([]string, n)
	campaigns, accounts := make([]string, n), make([]string, n)
	sessions, metadata := make([]string, n), make([]string, n)
	delivers, roots := make([]string, n), make([]*[16]byte, n)
	keys, limits := make([]int16, n), make([]int32, n)
	published, expires := make([]time.Time, n), make([]time.Time, n)
	for i, item := range batch {
		l := item.Link
		ids[i], hashes[i], requests[i], sources[i], customers[i] = l.ID, item.hash, l.RequestID, l.Source, l.Customer
		campaigns[i], accounts[i], sessions[i], metadata[i] = l.Campaign, l.StripeAccount, string(l.Session), string(l.Metadata)
		keys[i], limits[i], published[i], expires[i] = int16(l.KeyID), int32(l.MaxSessions), item.Published, l.ExpiresAt
		delivers[i] = string(item.deliver)
		if item.renewalOf != uuid.Nil {
			roots[i] = (*[16]byte)(&item.renewalOf)
		}
	}
	// Not ON CONFLICT: it writes each row twice, in case that another one is quicker, and took a fifth more of
	// Postgres' time. Where one is quicker, the whole transaction begins again (lostRace).
	tx.QueryLater(func(rows pgx.Rows) error {
		made, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("insert links: %w", err)
		}
		for _, id := range made {
			byID[id].Repeat = false
		}
		return nil
	}, `
		INSERT INTO links (id, request_id, request_hash, published_at, source, campaign, stripe_customer, stripe_account,
			session, metadata, key_id, max_sessions, created_at, expires_at, deliver, renewal_of)
		SELECT id, request_id, request_hash, published_at, source, nullif(campaign, ''), customer, nullif(account, ''),
			session::jsonb, metadata::jsonb, key_id, nullif(max_sessions, 0), $1, expires_at,
			nullif(deliver, '')::jsonb, renewal_of
		FROM unnest($2::uuid[], $3::text[], $4::bytea[], $5::timestamptz[], $6::text[], $7::text[], $8::text[], $9::text[],
			$10::text[], $11::text[], $12::smallint[], $13::int[], $14::timestamptz[], $15::text[], $16::uuid[])
			AS t (id, request_id, request_hash, published_at, source, campaign, customer, account,
				session, metadata, key_id, max_sessions, expires_at, deliver, renewal_of)
		WHERE NOT EXISTS (SELECT FROM links l WHERE l.request_id = t.request_id)
		RETURNING request_id`,
		now, ids, requests, hashes, published, sources, campaigns, customers, accounts,
		sessions, metadata, keys, limits, expires, delivers, roots)
	return n
}

// findRepeats reads the links that were there before (or came from this batch's first item of the
// same id) and sorts repeats into redeliveries, duplicates and conflicts. An expired request that
// has its link is a repeat like any other: time alone turns no served request into a rejected one.
func (s *Issuer) findRepeats(ctx context.Context, tx pgx.Tx, items []*Item) error {
	var ids []string
	for _, item := range items {
		if item.Repeat || item.expired() {
			ids = append(ids, item.Request.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	links, err := portal.LoadLinks(ctx, tx, `request_id = ANY($1)`, ids)
	if err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT request_id, request_hash, published_at FROM links WHERE request_id = ANY($1)`, ids)
	if err != nil {
		return fmt.Errorf("read earlier requests: %w", err)
	}
	type origin struct {
		hash      []byte
		published time.Time
	}
	origins := map[string]origin{}
	var id string
	var o origin
	if _, err := pgx.ForEachRow(rows, []any{&id, &o.hash, &o.published}, func() error { origins[id] = o; return nil }); err != nil {
		return fmt.Errorf("read earlier requests: %w", err)
	}
	byID := map[string]*portal.Link{}
	for _, l := range links {
		byID[l.RequestID] = l
	}
	for _, item := range items {
		first, served := origins[item.Request.ID]
		if !item.Repeat && !(item.expired() && served) {
			continue
		}
		item.Link, item.Rejection, item.Repeat = byID[item.Request.ID], nil, true
		if !slices.Equal(first.hash, item.hash) {
			item.Link, item.Repeat = nil, false
			item.Rejection = &Rejection{IDConflict, "$.id was used before, by a request with other content; a new request needs a new id"}
			continue
		}
		item.redelivery = first.published.Equal(item.Published.Truncate(time.Microsecond))
	}
	return nil
}

var noDetail = []byte("{}")

// appendAudit writes the batch's audit rows, those of new links under ids, a job for each delivery of a new
// link, and one that publishes the events of repeats.
func (s *Issuer) appendAudit(ctx context.Context, tx *portal.Tx, items []*Item, ids portal.IDRange, now time.Time) error {
	var fresh, derived []portal.AuditEvent
	var rows []portal.EventRow // of fresh
	var repeats []portal.IDRange
	var deliver []river.InsertManyParams
	for _, item := range items {
		e := portal.AuditEvent{ID: item.MessageID, At: now, RequestID: item.Request.ID}
		switch {
		case item.Rejection != nil:
			e.Kind = portal.RequestRejected
			e.Detail = map[string]any{"code": item.Rejection.Code, "reason": item.Rejection.Reason}
		case item.redelivery:
			continue
		case item.Repeat:
			// The producer asked again, so it hears again: the row's event is link.issued once more.
			e.Kind, e.LinkID = portal.RequestDuplicate, item.Link.ID
			repeats = append(repeats, portal.OneID(e.ID))
		default:
			e.Kind, e.LinkID, e.ID = portal.LinkIssued, item.Link.ID, ids.At(len(fresh))
			fresh = append(fresh, e)
			rows = append(rows, portal.EventRow{ID: e.ID, At: now, Kind: e.Kind, LinkID: e.LinkID, Detail: noDetail, Link: item.Link})
			deliver = append(deliver, deliveryJobs(e.ID, item.Request)...)
			continue
		}
		derived = append(derived, e)
	}
	tx.HandOver(ids, rows) // none, where none is new
	if len(deliver) > 0 {
		if err := s.Deliver(ctx, tx, deliver); err != nil {
			return err
		}
	}
	if len(repeats) > 0 {
		if err := s.Publish(ctx, tx, repeats...); err != nil {
			return err
		}
	}
	// By id, as links go in by request id: the ids of rejections and duplicates are the messages'
	// own, and two workers that serve the same ones in another order must not wait for each other.
	slices.SortFunc(derived, func(a, b portal.AuditEvent) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return errors.Join(portal.InsertAudit(ctx, tx, fresh), portal.InsertAuditOnce(ctx, tx, derived))
}

// IssuedData is the data of link.issued, and the answer to a synchronous create.
type IssuedData struct {
	EventData
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Issued is that data of an item that has a link.
func (s *Issuer) Issued(link *portal.Link) (*IssuedData, error) {
	return issuedData(s.Keys, s.BaseURL, link)
}

func issuedData(keys *portal.Keyring, baseURL string, link *portal.Link) (*IssuedData, error) {
	token, err := keys.Sign(link.KeyID, link.ID)
	if err != nil {
		return nil, err
	}
	return &IssuedData{EventData: newEventData(link), URL: baseURL + "/l/" + token, ExpiresAt: link.ExpiresAt.UTC()}, nil
}
