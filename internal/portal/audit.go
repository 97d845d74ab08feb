package portal

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Kind is what an audit row tells; docs/events.md describes each.
type Kind string

// The kinds that this version writes. Those before the blank line are also events.
const (
	LinkIssued         Kind = "link.issued"
	LinkDelivered      Kind = "link.delivered"
	LinkDeliveryFailed Kind = "link.delivery_failed"
	LinkOpened         Kind = "link.opened"
	LinkRenewed        Kind = "link.renewed"
	LinkRevoked        Kind = "link.revoked"
	SessionCreated     Kind = "session.created"
	SessionFailed      Kind = "session.failed"
	WebhookDisabled    Kind = "webhook.disabled"
	AuditSealed        Kind = "audit.sealed" // of no link

	RequestDuplicate Kind = "request.duplicate" // published too: as link.issued once more
	RequestRejected  Kind = "request.rejected"
	ClickStarted     Kind = "click.started"
	ClickDenied      Kind = "click.denied"
	AuditErased      Kind = "audit.erased" // of no link
	KeyRetired       Kind = "key.retired"  // of no link
)

// EventKinds are the kinds that are events by themselves.
var EventKinds = []Kind{LinkIssued, LinkDelivered, LinkDeliveryFailed, LinkOpened, LinkRenewed, LinkRevoked, SessionCreated, SessionFailed, WebhookDisabled, AuditSealed}

// published tells whether rows of a kind are events by themselves.
func (k Kind) published() bool { return slices.Contains(EventKinds, k) }

// AuditEvent is a row of audit_events, and where there is a visitor one of audit_visitors.
type AuditEvent struct {
	ID        uuid.UUID
	At        time.Time
	Kind      Kind
	LinkID    uuid.UUID      // uuid.Nil = none
	RequestID string         // empty = none
	ClickID   uuid.UUID      // uuid.Nil = none
	Detail    map[string]any // never a token, a session URL, a key, or a visitor's data
	Visitor   *Visitor

	link   *Link  // as its event needs it; nil = not at hand
	stored []byte // Detail, once the row is written
}

// Visitor is personal data: it stands in a table with a retention of its own.
type Visitor struct {
	IP        netip.Addr
	UserAgent string
}

// IDRange is a run of consecutive audit ids, both ends included. A publish job names its rows by
// one, so that a batch of 500 events costs a job of 100 bytes and one range scan.
type IDRange struct {
	First uuid.UUID `json:"first"`
	Last  uuid.UUID `json:"last"`
}

// NewIDs returns n ≤ 65536 fresh consecutive ids: a UUIDv7 whose last 16 bits count. 58 random
// bits in one millisecond keep the ranges of different writers apart.
func NewIDs(n int) (IDRange, error) {
	first, err := uuid.NewV7()
	if err != nil {
		return IDRange{}, fmt.Errorf("draw audit ids: %w", err)
	}
	first[14], first[15] = 0, 0
	r := IDRange{First: first, Last: first}
	r.Last[14], r.Last[15] = byte((n-1)>>8), byte(n-1)
	return r, nil
}

// At is the i-th id of the range.
func (r IDRange) At(i int) uuid.UUID {
	id := r.First
	id[14], id[15] = byte(i>>8), byte(i)
	return id
}

// Len is how many ids are in the range.
func (r IDRange) Len() int {
	place := func(id uuid.UUID) int { return int(id[14])<<8 | int(id[15]) }
	return place(r.Last) - place(r.First) + 1
}

// FirstID is the least id that NewIDs draws at a time or later. Partitions of audit_events are ranges of ids: a
// bound keeps a query to the months that matter.
func FirstID(t time.Time) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:8], uint64(t.UnixMilli())<<16)
	return id
}

// OneID is the range of a single row.
func OneID(id uuid.UUID) IDRange { return IDRange{First: id, Last: id} }

// PublishFunc makes, in the transaction that writes audit rows, the job that publishes them. It
// is handed down from above, where River lives.
type PublishFunc func(ctx context.Context, tx *Tx, rows ...IDRange) error

// InsertAudit appends rows with fresh ids in the caller's transaction.
func InsertAudit(ctx context.Context, tx pgx.Tx, events []AuditEvent) error {
	return insertAudit(ctx, tx, events, false)
}

// InsertAuditOnce appends rows whose ids are derived from a message, so that a redelivery adds
// nothing: a row whose id is there already is left as it is. (It costs an eighth of intake's rate
// where nothing can be there already.)
func InsertAuditOnce(ctx context.Context, tx pgx.Tx, events []AuditEvent) error {
	return insertAudit(ctx, tx, events, true)
}

func insertAudit(ctx context.Context, tx pgx.Tx, events []AuditEvent, once bool) error {
	if len(events) == 0 {
		return nil
	}
	var onAudit, onVisitors string
	if once {
		onAudit, onVisitors = " ON CONFLICT (id) DO NOTHING", " ON CONFLICT (event_id) DO NOTHING"
	}
	hashes, err := insertVisitors(ctx, tx, events, onVisitors)
	if err != nil {
		return fmt.Errorf("append visitors: %w", err)
	}
	n := len(events)
	var (
		// As bytes: pgx would take a uuid.UUID by its Value, a string, and parse that.
		ids, links, clicks = make([][16]byte, n), make([]*[16]byte, n), make([]*[16]byte, n)
		ats                = make([]time.Time, n)
		kinds, details     = make([]string, n), make([]string, n)
		requests           = make([]*string, n)
	)
	for i := range events {
		e := &events[i]
		e.stored = []byte("{}")
		if len(e.Detail) > 0 {
			var err error
			if e.stored, err = json.Marshal(e.Detail); err != nil {
				return fmt.Errorf("audit detail of %s: %w", e.Kind, err)
			}
		}
		ids[i], ats[i], kinds[i], details[i] = e.ID, e.At, string(e.Kind), string(e.stored)
		links[i], clicks[i] = orNull([16]byte(e.LinkID), [16]byte{}), orNull([16]byte(e.ClickID), [16]byte{})
		requests[i] = orNull(e.RequestID, "")
	}
	if _, err := tx.Exec(ctx, `INSERT INTO audit_events (id, at, kind, link_id, request_id, click_id, detail, visitor_hash)
		SELECT id, at, kind, link_id, request_id, click_id, detail::jsonb, visitor_hash
		FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[], $5::text[], $6::uuid[], $7::text[], $8::bytea[])
			AS t (id, at, kind, link_id, request_id, click_id, detail, visitor_hash)`+onAudit, ids, ats, kinds, links, requests, clicks, details, hashes); err != nil {
		return fmt.Errorf("append audit rows: %w", err)
	}
	return nil
}

// insertVisitors writes the rows' visitors, where there are any, and returns what their rows tell of them: nil
// where no row has one.
func insertVisitors(ctx context.Context, tx pgx.Tx, events []AuditEvent, conflict string) ([][]byte, error) {
	var ids [][16]byte
	var ats []time.Time
	var ips []netip.Addr
	var agents []string
	var salts, hashes [][]byte
	for i := range events {
		v := events[i].Visitor
		if v == nil {
			continue
		}
		salt, agent := make([]byte, visitorSalt), cleanUserAgent(v.UserAgent)
		_, _ = rand.Read(salt) // never fails
		ids, ats = append(ids, events[i].ID), append(ats, events[i].At)
		ips, agents, salts = append(ips, v.IP), append(agents, agent), append(salts, salt)
		if hashes == nil {
			hashes = make([][]byte, len(events))
		}
		hashes[i] = hashVisitor(salt, v.IP, agent)
	}
	if len(ids) == 0 {
		return nil, nil
	}
	_, err := tx.Exec(ctx, `INSERT INTO audit_visitors (event_id, at, ip, user_agent, salt)
			SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::inet[], $4::text[], $5::bytea[])`+conflict, ids, ats, ips, agents, salts)
	return hashes, err
}

// visitorSalt is how many random bytes keep a visitor's hash from being guessed: there are few addresses.
const visitorSalt = 16

// hashVisitor is what stands in the audit, and so in its proof, for a visitor's data. With the salt erased it tells
// nothing. Its form is SHA-256 over the salt, the address behind its length in one byte, and the user agent.
func hashVisitor(salt []byte, ip netip.Addr, agent string) []byte {
	addr := ip.AsSlice()
	in := append(append(salt[:len(salt):len(salt)], byte(len(addr))), addr...)
	sum := sha256.Sum256(append(in, agent...))
	return sum[:]
}

// LoadAudit reads rows in the order in which they happened. The condition is ours.
func LoadAudit(ctx context.Context, db Querier, where string, args ...any) ([]AuditEvent, error) {
	rows, err := db.Query(ctx, `SELECT id, at, kind, coalesce(link_id, $1), coalesce(request_id, ''), coalesce(click_id, $1), detail
		FROM audit_events WHERE `+where+` ORDER BY at, id`, append([]any{uuid.Nil}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("read audit rows: %w", err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e AuditEvent, err error) {
		err = row.Scan(&e.ID, &e.At, &e.Kind, &e.LinkID, &e.RequestID, &e.ClickID, &e.Detail)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read audit rows: %w", err)
	}
	return events, nil
}

// EventRow is an audit row as its event tells it: with its detail as JSON, and of its link what events
// hold.
type EventRow struct {
	ID     uuid.UUID
	At     time.Time
	Kind   Kind
	LinkID uuid.UUID // uuid.Nil = it is about none
	Detail []byte    // JSON object
	Link   *Link     // ID, RequestID, Source, Campaign, Customer, Metadata, KeyID and ExpiresAt; nil = there is no such link
}

// RequestID is that of the row's link; empty where there is none.
func (e *EventRow) RequestID() string {
	if e.Link == nil {
		return ""
	}
	return e.Link.RequestID
}

// LoadEventRows reads rows in the order in which they happened. The condition is ours, on the
// columns of audit_events, named e.
func LoadEventRows(ctx context.Context, db Querier, where string, args ...any) ([]EventRow, error) {
	// OFFSET 0 keeps the planner to one look by primary key for each row: between two ids it expects
	// a fixed share of the table, and as that grows it would rather read all links.
	rows, err := db.Query(ctx, `SELECT e.id, e.at, e.kind, coalesce(e.link_id, '00000000-0000-0000-0000-000000000000'), e.detail, l.id IS NOT NULL, coalesce(l.request_id, ''), coalesce(l.source, ''),
			coalesce(l.campaign, ''), coalesce(l.stripe_customer, ''), l.metadata, coalesce(l.key_id, 0), coalesce(l.expires_at, e.at)
		FROM audit_events e LEFT JOIN LATERAL (SELECT * FROM links WHERE id = e.link_id OFFSET 0) l ON true
		WHERE `+where+` ORDER BY e.at, e.id`, args...)
	if err != nil {
		return nil, fmt.Errorf("read event rows: %w", err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e EventRow, err error) {
		l, found, key := &Link{}, false, int16(0)
		err = row.Scan((*[16]byte)(&e.ID), &e.At, (*string)(&e.Kind), (*[16]byte)(&e.LinkID), &e.Detail, &found, &l.RequestID, &l.Source,
			&l.Campaign, &l.Customer, &l.Metadata, &key, &l.ExpiresAt)
		if found {
			l.ID, l.KeyID, e.Link = e.LinkID, byte(key), l
		}
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read event rows: %w", err)
	}
	return events, nil
}

func orNull[T comparable](v, none T) *T {
	if v == none {
		return nil
	}
	return &v
}

// cleanUserAgent makes a header that a stranger wrote fit its column: valid UTF-8 without
// controls, at most 512 characters.
func cleanUserAgent(s string) string {
	if len(s) > 4*512 {
		s = s[:4*512]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 512 {
		s = string(r[:512])
	}
	return s
}
