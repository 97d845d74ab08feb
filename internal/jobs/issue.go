package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

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
	Log     *slog.Logger
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

// Issue serves a batch. When it returns nil, there is durably for each item a link with its audit row and the jobs of
// its event and its deliveries, or the audit row of its rejection: the items may be acknowledged. After an error
// nothing is known to be durable (new links are committed before repeats and rejections are), and serving the same
// items again is right: what did take effect is found.
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
		// A link lives from its commit, not from when it was parsed, which a slow database puts far apart.
		if !item.parsed || item.Link != nil && now.Sub(item.Link.CreatedAt) > parsedAhead {
			s.parse(item, now)
		}
		item.parsed = false // another try parses anew
	}
	if err := s.issueNew(ctx, items, begin, now); err != nil {
		return err
	}
	return s.issueRest(ctx, items, begin, now)
}

// issueNew makes the links of those request ids that have none.
func (s *Issuer) issueNew(ctx context.Context, items []*Item, begin func(*portal.Tx) error, now time.Time) error {
	for try := 1; ; try++ {
		batch := newBatch(items)
		if len(batch) == 0 {
			return nil
		}
		err := portal.InTx(ctx, s.Pool, func(tx *portal.Tx) error {
			if err := begin(tx); err != nil {
				return err
			}
			return s.insertNew(ctx, tx, batch, now)
		})
		// InTx has committed: durable are links, audit rows and jobs. A crash here means a redelivery,
		// which adds nothing.
		if portal.RefusesKey(err) {
			if err := s.passOver(ctx, err); err != nil {
				return err
			}
			for _, item := range batch {
				item.Link.KeyID = s.Keys.SignerID()
			}
		} else if !lostRace(err) {
			return err
		}
		if try == raceTries {
			return err
		}
	}
}

// passOver has the process sign by the next of its keys, once the database has refused one that is retired. It
// returns an error where none is left.
func (s *Issuer) passOver(ctx context.Context, refused error) error {
	retired, err := portal.RetiredKeys(ctx, s.Pool)
	if err != nil {
		return err
	}
	if !s.Keys.Retire(retired...) {
		return fmt.Errorf("every key of LINK_KEYS is retired; put a fresh one first, 'worker keys new' prints one: %w", refused)
	}
	s.Log.Warn("the first key of LINK_KEYS is retired; links are signed by another one, put that first", "key", s.Keys.SignerID())
	return nil
}

// issueRest answers what got no link by issueNew: repeats and rejected requests. It is a transaction of its own, so
// that a batch of new requests, as most are, needs to wait for no answer before its commit.
func (s *Issuer) issueRest(ctx context.Context, items []*Item, begin func(*portal.Tx) error, now time.Time) error {
	var rest []*Item
	for _, item := range items {
		if item.Repeat || item.Rejection != nil {
			rest = append(rest, item)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return portal.InTx(ctx, s.Pool, func(tx *portal.Tx) error {
		if err := begin(tx); err != nil {
			return err
		}
		if err := s.findRepeats(ctx, tx, rest); err != nil {
			return err
		}
		return s.appendRest(ctx, tx, rest, now)
	})
	// InTx has committed: durable are the audit rows, and the publish job of repeats. After a crash before that, a
	// redelivery finds what issueNew made, and comes here again.
}

// raceTries are for transactions that lost a race; whoever won it has committed, so one more mostly does.
const raceTries = 3

// lostRace tells that a request id was new when its link was about to be made, and was not a moment later.
func lostRace(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == "links_request_id_key"
}

// part is a run of items that shared a transaction.
type part struct {
	items []*Item
	err   error
}

// issueApart serves items in one transaction, and, where the database refuses a value that our
// checks let through, each in its own, so that one bad request holds up no other and is rejected.
func (s *Issuer) issueApart(ctx context.Context, items []*Item) []part {
	err := s.Issue(ctx, items)
	if err == nil || !portal.RefusesValue(err) || lostRace(err) {
		return []part{{items, err}}
	}
	if len(items) == 1 {
		return []part{{items, s.reject(ctx, items[0], err)}}
	}
	var parts []part
	for i := range items {
		parts = append(parts, s.issueApart(ctx, items[i:i+1])...)
	}
	return parts
}

// reject writes the rejection of an item that the database refused by itself.
func (s *Issuer) reject(ctx context.Context, item *Item, refused error) error {
	s.Log.Error("the database refuses a request that passed its checks; please report the SQLSTATE", "error", refused)
	item.refuse = &Rejection{InvalidField, "$: the database refuses a value of it"}
	return s.Issue(ctx, []*Item{item})
}

// parsedAhead is how long before its transaction a request may be parsed.
const parsedAhead = time.Second

// parseAhead is parse for an item that is issued right after, by a caller who has time while others are being
// committed.
func (s *Issuer) parseAhead(item *Item, now time.Time) {
	s.parse(item, now.Truncate(time.Microsecond)) // what Postgres keeps
	item.parsed = true
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
		spelt, _ := req.spell()
		item.hash = spelt.hash
	}
}

func (i *Item) expired() bool { return i.Rejection != nil && i.Rejection.Code == Expired }

// prepare makes the link of an item whose request has passed its checks.
func (s *Issuer) prepare(item *Item, now time.Time) error {
	req := item.Request
	spelt, err := req.spell()
	if err != nil {
		return err
	}
	item.hash, item.deliver = spelt.hash, spelt.deliver
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
		Session: spelt.session, Metadata: spelt.metadata, KeyID: s.Keys.SignerID(), CreatedAt: now, ExpiresAt: expires,
	}
	if req.MaxSessions != nil {
		item.Link.MaxSessions = *req.MaxSessions
	}
	return nil
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
			item.Rejection = &Rejection{IDConflict, "$.id was used before, by a request with other content, or one whose link or deliveries were deleted since; a new request needs a new id"}
			continue
		}
		item.redelivery = first.published.Equal(item.Published.Truncate(time.Microsecond))
	}
	return nil
}

// appendRest writes the audit rows of repeats and of rejected requests, and the job that publishes those of repeats.
func (s *Issuer) appendRest(ctx context.Context, tx *portal.Tx, items []*Item, now time.Time) error {
	var events []portal.AuditEvent
	var repeats []portal.IDRange
	for _, item := range items {
		e := portal.AuditEvent{ID: item.MessageID, At: now, RequestID: item.Request.ID}
		switch {
		case item.Rejection != nil:
			e.Kind = portal.RequestRejected
			e.Detail = map[string]any{"code": item.Rejection.Code, "reason": item.Rejection.Reason}
		case item.redelivery:
			continue
		default:
			// The producer asked again, so it hears again: the row's event is link.issued once more.
			e.Kind, e.LinkID = portal.RequestDuplicate, item.Link.ID
			repeats = append(repeats, portal.OneID(e.ID))
		}
		events = append(events, e)
	}
	// By id, as links go in by request id: these ids are the messages' own, and two workers that serve the same ones
	// in another order must not wait for each other.
	slices.SortFunc(events, func(a, b portal.AuditEvent) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	if err := portal.InsertAuditOnce(ctx, tx, events); err != nil || len(repeats) == 0 {
		return err
	}
	return s.Publish(ctx, tx, repeats...)
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
