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

// CSV writes the rows in the order of the chain, as CSV (RFC 4180) with a header line, and returns how many.
func (e Export) CSV(ctx context.Context, db *pgxpool.Pool, to io.Writer) (int64, error) {
	w := csv.NewWriter(to)
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
// and of the database may differ by less.
func (e Export) sql() string {
	visitors := `NULL::text, NULL::text FROM audit_events e`
	if e.Visitors {
		visitors = `host(v.ip), v.user_agent FROM audit_events e LEFT JOIN audit_visitors v ON v.event_id = e.id`
	}
	// Whose link it was says the row that issued it, which is sealed. Only of those by 0.1.0, whose rows say nothing, it is
	// links. An erasure is of no link, and of a customer.
	links, where := ` LEFT JOIN (
			SELECT coalesce(link_id, id) AS about,
				coalesce(detail->>'customer', (SELECT stripe_customer FROM links WHERE id = link_id)) AS customer,
				CASE WHEN detail = '{}' THEN (SELECT campaign FROM links WHERE id = link_id) ELSE detail->>'campaign' END AS campaign,
				coalesce(detail->>'source', (SELECT source FROM links WHERE id = link_id)) AS source
			FROM audit_events WHERE kind IN ('link.issued', 'audit.erased')) l ON l.about = coalesce(e.link_id, e.id) WHERE true`, ""
	if e.Customer != "" {
		where += ` AND l.customer = @customer`
	}
	if e.Campaign != "" {
		where += ` AND l.campaign = @campaign`
	}
	if !e.Since.IsZero() {
		where += ` AND e.at >= @since AND e.seq > coalesce((SELECT last_seq FROM audit_seals
			WHERE sealed_at < @since::timestamptz - interval '1 hour' ORDER BY number DESC LIMIT 1), 0)`
	}
	return `SELECT e.seq, e.id, e.at, e.kind, e.link_id, e.request_id, e.click_id, l.customer, l.campaign, l.source, e.detail::text, e.visitor_hash, ` +
		visitors + links + where + ` ORDER BY e.seq, e.id`
}

func (e Export) args() pgx.NamedArgs {
	return pgx.NamedArgs{"since": e.Since, "customer": e.Customer, "campaign": e.Campaign}
}
