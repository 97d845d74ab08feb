package audit

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Export says which rows are wanted; what is empty takes all.
type Export struct {
	Since    time.Time
	Until    time.Time // rows before then
	Customer string
	Campaign string
	Visitors bool // with addresses and user agents, where they are not erased yet
}

// exported is a row as it is handed out.
type exported struct {
	Seq         int64           `json:"seq"`
	ID          uuid.UUID       `json:"id"`
	At          time.Time       `json:"at"`
	Kind        string          `json:"kind"`
	LinkID      *uuid.UUID      `json:"link_id"`
	RequestID   *string         `json:"request_id"`
	ClickID     *uuid.UUID      `json:"click_id"`
	Customer    *string         `json:"customer"`
	Campaign    *string         `json:"campaign"`
	Source      *string         `json:"source"`
	Detail      json.RawMessage `json:"detail"`
	VisitorHash *string         `json:"visitor_hash"`
	IP          *string         `json:"ip,omitempty"`
	UserAgent   *string         `json:"user_agent,omitempty"`
}

// CSV writes the rows in the order of the chain, as CSV (RFC 4180) with a header line, and returns how many. Where the rows
// can't be read, it writes nothing.
func (e Export) CSV(ctx context.Context, db *pgxpool.Pool, to io.Writer) (int64, error) {
	w := csv.NewWriter(to) // which has room for the header
	header := []string{"seq", "id", "at", "kind", "link_id", "request_id", "click_id", "customer", "campaign", "source", "detail", "visitor_hash"}
	if e.Visitors {
		header = append(header, "ip", "user_agent")
	}
	if err := w.Write(header); err != nil {
		return 0, fmt.Errorf("write the export: %w", err)
	}
	n, err := e.each(ctx, db, func(r *exported) error {
		record := []string{strconv.FormatInt(r.Seq, 10), r.ID.String(), r.At.UTC().Format(time.RFC3339Nano), r.Kind, text(r.LinkID), given(r.RequestID),
			text(r.ClickID), given(r.Customer), given(r.Campaign), given(r.Source), string(r.Detail), given(r.VisitorHash)}
		if e.Visitors {
			record = append(record, given(r.IP), given(r.UserAgent))
		}
		return w.Write(record)
	})
	if n == 0 && err != nil {
		return 0, err
	}
	w.Flush()
	if err == nil && w.Error() != nil {
		err = fmt.Errorf("write the export: %w", w.Error())
	}
	return n, err
}

// JSONL writes the rows in the order of the chain, a JSON object a line, and returns how many.
func (e Export) JSONL(ctx context.Context, db *pgxpool.Pool, to io.Writer) (int64, error) {
	buffer := bufio.NewWriter(to)
	w := json.NewEncoder(buffer)
	w.SetEscapeHTML(false)
	n, err := e.each(ctx, db, func(r *exported) error { return w.Encode(r) })
	if flushed := buffer.Flush(); err == nil && flushed != nil {
		err = fmt.Errorf("write the export: %w", flushed)
	}
	return n, err
}

func text(id *uuid.UUID) string {
	if id == nil {
		return ""
	}
	return id.String()
}

func given(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// each reads the rows one by one: no result is too large.
func (e Export) each(ctx context.Context, db *pgxpool.Pool, do func(*exported) error) (n int64, err error) {
	rows, err := db.Query(ctx, e.sql(), e.args())
	if err != nil {
		return 0, fmt.Errorf("read audit rows: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r exported
		var hash []byte
		if err := rows.Scan(&r.Seq, &r.ID, &r.At, &r.Kind, &r.LinkID, &r.RequestID, &r.ClickID, &r.Customer, &r.Campaign, &r.Source,
			&r.Detail, &hash, &r.IP, &r.UserAgent); err != nil {
			return n, fmt.Errorf("read audit rows: %w", err)
		}
		r.At = r.At.UTC()
		if hash != nil {
			sum := hex.EncodeToString(hash)
			r.VisitorHash = &sum
		}
		if err := do(&r); err != nil {
			return n, fmt.Errorf("write the export: %w", err)
		}
		n++
	}
	if err := rows.Err(); err != nil {
		return n, fmt.Errorf("read audit rows: %w", err)
	}
	return n, nil
}

// sql begins behind the seals that were made an hour before since: what they hold was committed by then. Clocks of workers
// and of the database may differ by less. (No seal tells where until ends: seals can be hours late, and a row told of later.)
//
// Whose link it was says the row that issued it, which is sealed: the first of its kind, since the worker's role can add another one,
// and can't choose its number. Only where that says nothing (0.1.0 wrote it) or is not there, it is links. Both are looked up row by
// row, so that rows come at once and in order, whatever there is; by OFFSET 0 once for each, and for no row that is not
// of the customer or campaign.
func (e Export) sql() string {
	visitors, where := `NULL::text, NULL::text FROM audit_events e`, ` WHERE true`
	if e.Visitors {
		visitors = `host(v.ip), v.user_agent FROM audit_events e LEFT JOIN audit_visitors v ON v.event_id = e.id`
	}
	if e.Customer != "" {
		where += ` AND ` + ofCustomer + ` = @customer AND ` + about("customer", "stripe_customer")
	}
	if e.Campaign != "" {
		where += ` AND ` + ofCampaign + ` = @campaign AND ` + about("campaign", "campaign")
	}
	if !e.Since.IsZero() {
		where += ` AND e.at >= @since AND e.seq > coalesce((SELECT last_seq FROM audit_seals
			WHERE sealed_at < @since::timestamptz - interval '1 hour' ORDER BY number DESC LIMIT 1), 0)`
	}
	if !e.Until.IsZero() {
		where += ` AND e.at < @until`
	}
	return `SELECT e.seq, e.id, e.at, e.kind, e.link_id, e.request_id, e.click_id, ` + ofCustomer + `, ` + ofCampaign + `, ` + ofSource + `, e.detail::text, e.visitor_hash, ` +
		visitors + ` LEFT JOIN LATERAL (SELECT coalesce(` + issued(` AND id >= `+hoursFrom(-1)+` AND id < `+hoursFrom(2)) + `, ` + issued(``) + `) AS detail OFFSET 0) i ON true
		LEFT JOIN LATERAL (SELECT stripe_customer, campaign, source FROM links WHERE id = e.link_id OFFSET 0) l ON i.detail ? 'customer' IS NOT TRUE` + where + ` ORDER BY e.seq, e.id`
}

// issued is the detail of the row that issued e's link. In all months it is looked for only where it does not stand near the link,
// whose id is as old as it is: there can be many.
func issued(near string) string {
	return `(SELECT detail FROM (
			SELECT detail, seq FROM audit_events WHERE link_id = e.link_id AND kind = 'link.issued'` + near + ` OFFSET 0 -- or LIMIT 1 could have it go through all by seq
		) t ORDER BY seq LIMIT 1)`
}

// hoursFrom is the least id of a row in the n-th span of 4.7 hours (2^24 ms) after that of e's link. (An auditor may not call audit_id_at.)
func hoursFrom(n int) string {
	return fmt.Sprintf(`(lpad(to_hex(('x' || left(e.link_id::text, 6))::bit(24)::int + %d), 6, '0') || '00-0000-0000-0000-000000000000')::uuid`, n)
}

// What a row tells of whom it is about. An erasure is of no link, and of a customer.
const (
	ofCustomer = `CASE WHEN e.kind = 'audit.erased' THEN e.detail->>'customer' WHEN i.detail ? 'customer' THEN i.detail->>'customer' ELSE l.stripe_customer END`
	ofCampaign = `CASE WHEN i.detail ? 'customer' THEN i.detail->>'campaign' ELSE l.campaign END`
	ofSource   = `CASE WHEN i.detail ? 'customer' THEN i.detail->>'source' ELSE l.source END`
)

// about keeps what a row is looked up for to those that may be of the customer or campaign: it takes one look at all of the audit.
func about(field, column string) string {
	return `e.id IN (
			WITH told AS MATERIALIZED (SELECT id, link_id FROM audit_events WHERE kind IN ('link.issued', 'audit.erased') AND detail->>'` + field + `' = @` + field + `)
			SELECT id FROM told UNION
			SELECT id FROM audit_events WHERE link_id IN (SELECT link_id FROM told UNION SELECT id FROM links WHERE ` + column + ` = @` + field + `))`
}

func (e Export) args() pgx.NamedArgs {
	return pgx.NamedArgs{"since": e.Since, "until": e.Until, "customer": e.Customer, "campaign": e.Campaign}
}
