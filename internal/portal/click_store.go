package portal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Store writes what happens to links. Each method is one transaction.
type Store struct {
	Pool    *pgxpool.Pool
	Publish PublishFunc
	Now     func() time.Time
}

// Errors of a click's two transactions.
var (
	// ErrDenied is returned by StartClick when the link does not stand a click (any more): it
	// expired, was revoked or used up since it was read.
	ErrDenied = errors.New("the link does not allow a session now")
	// ErrSwept is returned by EndClick when the sweeper has closed the click as interrupted: its
	// outcome is written, so whatever Stripe answered counts no more.
	ErrSwept = errors.New("the click was closed as interrupted")
)

// Opened appends link.opened and its publish job.
func (s *Store) Opened(ctx context.Context, link *Link, detail map[string]any, v *Visitor) error {
	return s.append(ctx, AuditEvent{Kind: LinkOpened, LinkID: link.ID, RequestID: link.RequestID, Detail: detail, Visitor: v})
}

// Denied appends click.denied.
func (s *Store) Denied(ctx context.Context, link *Link, reason string, v *Visitor) error {
	return s.append(ctx, AuditEvent{Kind: ClickDenied, LinkID: link.ID, RequestID: link.RequestID,
		Detail: map[string]any{"reason": reason}, Visitor: v})
}

// append writes one row, and its publish job where its kind is an event.
func (s *Store) append(ctx context.Context, e AuditEvent) error {
	return pgx.BeginFunc(ctx, s.Pool, func(tx pgx.Tx) error { return s.appendTx(ctx, tx, e) })
}

func (s *Store) appendTx(ctx context.Context, tx pgx.Tx, e AuditEvent) error {
	ids, err := NewIDs(1)
	if err != nil {
		return err
	}
	e.ID, e.At = ids.First, s.Now()
	if err := InsertAudit(ctx, tx, []AuditEvent{e}); err != nil {
		return err
	}
	if e.Kind == ClickDenied || e.Kind == ClickStarted {
		return nil // in the audit only
	}
	return s.Publish(ctx, tx, ids)
}

// StartClick reserves a use of the link and commits click.started. When it returns nil the click
// is durable and Stripe may be called; a crash from here on leaves an open click, which Sweep
// closes. ErrDenied means that nothing was written.
func (s *Store) StartClick(ctx context.Context, link *Link, v *Visitor) (uuid.UUID, error) {
	click, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, fmt.Errorf("draw a click id: %w", err)
	}
	err = pgx.BeginFunc(ctx, s.Pool, func(tx pgx.Tx) error {
		now := s.Now()
		// A concurrent click waits here on the row and then sees the counters as they are.
		tag, err := tx.Exec(ctx, `UPDATE links SET sessions_reserved = sessions_reserved + 1
			WHERE id = $1 AND revoked_at IS NULL AND expires_at > $2
			AND (max_sessions IS NULL OR sessions_created + sessions_reserved < max_sessions)`, link.ID, now)
		if err != nil {
			return fmt.Errorf("reserve a use: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return ErrDenied
		}
		if _, err := tx.Exec(ctx, `INSERT INTO clicks (id, link_id, started_at) VALUES ($1, $2, $3)`, click, link.ID, now); err != nil {
			return fmt.Errorf("write the click: %w", err)
		}
		return s.appendTx(ctx, tx, AuditEvent{Kind: ClickStarted, LinkID: link.ID, RequestID: link.RequestID, ClickID: click, Visitor: v})
	})
	return click, err
}

// EndClick commits a click's outcome: the audit row, the use count and the event's job together.
// cause nil means that the session was made. It may be called again after an error that leaves
// open whether it took effect: the second call then finds its own outcome and adds nothing.
func (s *Store) EndClick(ctx context.Context, link *Link, click uuid.UUID, session Session, cause *SessionError) error {
	outcome, e := "created", AuditEvent{Kind: SessionCreated, Detail: map[string]any{
		"session_id": session.ID, "stripe_request_id": session.RequestID, "livemode": session.Livemode}}
	if cause != nil {
		outcome, e = "failed", AuditEvent{Kind: SessionFailed, Detail: map[string]any{
			"code": cause.Code, "stripe_request_id": cause.RequestID, "retryable": cause.Retryable()}}
	}
	e.LinkID, e.RequestID, e.ClickID = link.ID, link.RequestID, click
	return pgx.BeginFunc(ctx, s.Pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE clicks SET outcome = $2, ended_at = $3 WHERE id = $1 AND outcome IS NULL`, click, outcome, s.Now())
		if err != nil {
			return fmt.Errorf("end the click: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return endedBefore(ctx, tx, click, outcome)
		}
		if _, err := tx.Exec(ctx, `UPDATE links SET sessions_reserved = sessions_reserved - 1, sessions_created = sessions_created + $2
			WHERE id = $1`, link.ID, map[string]int{"created": 1}[outcome]); err != nil {
			return fmt.Errorf("count the session: %w", err)
		}
		return s.appendTx(ctx, tx, e)
	})
}

// endedBefore tells a commit of our own whose answer was lost from the sweeper's: only the
// request that made a click writes created or failed.
func endedBefore(ctx context.Context, tx pgx.Tx, click uuid.UUID, want string) error {
	var outcome string
	if err := tx.QueryRow(ctx, `SELECT outcome FROM clicks WHERE id = $1`, click).Scan(&outcome); err != nil {
		return fmt.Errorf("read the click's outcome: %w", err)
	}
	if outcome != want {
		return ErrSwept
	}
	return nil
}

// Sweep closes clicks that began before a time and have no outcome, as session.failed with code
// interrupted, gives their reserved uses back, and returns how many it closed (at most 500).
// Clicks that another sweep holds are left to it.
func (s *Store) Sweep(ctx context.Context, startedBefore time.Time) (int, error) {
	var closed int
	err := pgx.BeginFunc(ctx, s.Pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			UPDATE clicks c SET outcome = 'interrupted', ended_at = $2
			FROM (SELECT id FROM clicks WHERE outcome IS NULL AND started_at < $1
			      ORDER BY started_at LIMIT 500 FOR UPDATE SKIP LOCKED) open, links l
			WHERE c.id = open.id AND l.id = c.link_id
			RETURNING c.id, l.id, l.request_id`, startedBefore, s.Now())
		if err != nil {
			return fmt.Errorf("close open clicks: %w", err)
		}
		events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e AuditEvent, err error) {
			e.Kind, e.At = SessionFailed, s.Now()
			e.Detail = map[string]any{"code": CodeInterrupted, "stripe_request_id": "", "retryable": true}
			err = row.Scan(&e.ClickID, &e.LinkID, &e.RequestID)
			return e, err
		})
		if err != nil || len(events) == 0 {
			return err
		}
		closed = len(events)
		links := make([]uuid.UUID, len(events))
		for i, e := range events {
			links[i] = e.LinkID
		}
		if _, err := tx.Exec(ctx, `
			UPDATE links l SET sessions_reserved = l.sessions_reserved - n.count
			FROM (SELECT id, count FROM links JOIN (SELECT id, count(*) FROM unnest($1::uuid[]) AS t (id) GROUP BY id) c USING (id)
			      ORDER BY id FOR UPDATE OF links) n -- locked in the order of Revoke, or the two could wait for each other
			WHERE l.id = n.id`, links); err != nil {
			return fmt.Errorf("give reserved uses back: %w", err)
		}
		return s.appendAll(ctx, tx, events)
	})
	if err != nil {
		return 0, err
	}
	return closed, nil
}

// appendAll writes rows of event kinds under one range of ids and with one publish job.
func (s *Store) appendAll(ctx context.Context, tx pgx.Tx, events []AuditEvent) error {
	ids, err := NewIDs(len(events))
	if err != nil {
		return err
	}
	for i := range events {
		events[i].ID = ids.At(i)
	}
	if err := InsertAudit(ctx, tx, events); err != nil {
		return err
	}
	return s.Publish(ctx, tx, ids)
}
