package portal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Store reads and writes what happens to links. What the click path asks of it at the same time
// shares a query or a transaction (group.go).
type Store struct {
	Pool    *pgxpool.Pool
	Publish PublishFunc
	Now     func() time.Time

	links   Group[*linkRead]
	opens   Group[*linkOpen]
	appends Group[AuditEvent]
	starts  Group[*clickStart]
	ends    Group[*clickEnd]

	counting  chan struct{} // holds one while links of campaigns are counted
	countLine chan struct{} // holds that one and those that wait for their turn
	countTime time.Duration // how long that may take
}

// PlannerSettings are what the database sessions of clicks and intake are to run with. They find
// every row by a key; but a plan that was made while a table was empty, or before its statistics
// caught up with a campaign, would read all of it.
var PlannerSettings = map[string]string{"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}

// NewStore returns a store that hands events to publish.
func NewStore(pool *pgxpool.Pool, publish PublishFunc, now func() time.Time) *Store {
	s := &Store{Pool: pool, Publish: publish, Now: now, counting: make(chan struct{}, 1), countLine: make(chan struct{}, 3), countTime: countTime}
	const most = 256 // rows of a transaction
	// Two linger: in a group of theirs each commit has a publish job.
	s.links = Group[*linkRead]{Commit: s.readLinks, Most: most}
	s.opens = Group[*linkOpen]{Commit: s.openLinks, Most: most, Linger: 200 * time.Microsecond}
	s.appends = Group[AuditEvent]{Commit: s.appendTogether, Most: most}
	s.starts = Group[*clickStart]{Commit: s.startClicks, Most: most}
	s.ends = Group[*clickEnd]{Commit: s.endClicks, Most: most, Linger: time.Millisecond}
	return s
}

// Errors of a click's two transactions.
var (
	// ErrDenied is returned by StartClick when the link does not stand a click now: it has expired,
	// was revoked or is used up, another click of it is open, or somebody holds
	// its row at this moment.
	ErrDenied = errors.New("the link does not allow a session now")
	// ErrSwept is returned by EndClick when the sweeper has closed the click: its outcome is
	// written, so whatever Stripe answered counts no more.
	ErrSwept = errors.New("the click was closed by the sweeper")
	// ErrServed is returned by EndClick for a failure when another process, serving the same click,
	// got its session.
	ErrServed = errors.New("the click has its session already")
	// ErrNoClick is returned when no click has the id.
	ErrNoClick = errors.New("no such click")
)

// clickLife is how long a click may be open that does not wait in line: longer than the budget's
// hold, Stripe's deadline and the transactions together. What is open after it has lost its worker.
const clickLife = 60 * time.Second

// Click is one press of the button.
type Click struct {
	ID      uuid.UUID
	Ticket  int64     // its place in the line of its Stripe account; 0 = none
	Waited  bool      // it was in line, or told to come back before Stripe was asked
	Asked   bool      // Stripe may have been asked under its idempotency key, when it was read
	marked  time.Time // asked_at as its slot has written it; zero = it did not
	Until   time.Time // from then on an open click has lost its worker or its person
	Outcome string    // empty while it is open
	Ended   time.Time // zero while it is open
}

// The outcomes of a click that others than Stripe's answer decide on, and that of a session.
const (
	outcomeCreated     = "created"
	outcomeInterrupted = "interrupted"
)

// successor is the click that a page's return begins in place of one that has lost its worker. It is
// always the same, so that it is begun once.
func successor(click uuid.UUID) uuid.UUID { return uuid.NewSHA1(click, []byte("latchkey successor")) }

// linkRead is one call of Link.
type linkRead struct {
	id    uuid.UUID
	keyID byte
	link  *Link
}

// Link reads a link by its id and key, or returns ErrNoLink.
func (s *Store) Link(ctx context.Context, id uuid.UUID, keyID byte) (*Link, error) {
	read := &linkRead{id: id, keyID: keyID}
	if err := s.links.Do(ctx, read); err != nil {
		return nil, err
	}
	if read.link == nil {
		return nil, ErrNoLink
	}
	return read.link, nil
}

func (s *Store) readLinks(ctx context.Context, reads []*linkRead) error {
	ids := make([][16]byte, len(reads))
	for i, r := range reads {
		ids[i] = r.id
	}
	links, err := LoadLinks(ctx, s.Pool, byIDs, ids)
	if err != nil {
		return err
	}
	byID := mapLinks(links)
	for _, r := range reads {
		r.link = byID[r.id].ifOf(r.keyID)
	}
	return nil
}

const byIDs = `id = ANY($1)`

func mapLinks(links []*Link) map[uuid.UUID]*Link {
	byID := make(map[uuid.UUID]*Link, len(links))
	for _, l := range links {
		byID[l.ID] = l
	}
	return byID
}

// linkOpen is one call of Open.
type linkOpen struct {
	id      uuid.UUID
	keyID   byte
	look    func(*Link) map[string]any
	visitor *Visitor
	link    *Link
}

// Open reads a link by its id and key and appends link.opened, with the detail that look finds, and its
// publish job: all in one transaction. It returns ErrNoLink where there is none, and with another error
// the link where that was read. look may be called more than once, and after Open has returned an
// error; those that share a transaction wait for it.
func (s *Store) Open(ctx context.Context, id uuid.UUID, keyID byte, look func(*Link) map[string]any, v *Visitor) (*Link, error) {
	open := &linkOpen{id: id, keyID: keyID, look: look, visitor: v}
	if err := s.opens.Do(ctx, open); err != nil {
		if ctx.Err() != nil { // its transaction may be at work still
			return nil, err
		}
		return open.link, err
	}
	if open.link == nil {
		return nil, ErrNoLink
	}
	return open.link, nil
}

func (s *Store) openLinks(ctx context.Context, opens []*linkOpen) error {
	ids := make([][16]byte, len(opens))
	for i, o := range opens {
		ids[i] = o.id
	}
	var links map[uuid.UUID]*Link
	return s.inTxWithEvents(ctx, len(opens), func(tx *Tx) {
		tx.QueryLater(func(rows pgx.Rows) error {
			got, err := collectLinks(rows)
			links = mapLinks(got)
			return err
		}, selectLinks+byIDs, ids)
	}, func(*Tx) ([]AuditEvent, error) {
		now := s.Now()
		events := make([]AuditEvent, 0, len(opens))
		for _, o := range opens {
			if o.link = links[o.id].ifOf(o.keyID); o.link != nil {
				events = append(events, AuditEvent{Kind: LinkOpened, At: now, LinkID: o.id, RequestID: o.link.RequestID, Detail: o.look(o.link), Visitor: o.visitor, link: o.link})
			}
		}
		return events, nil
	})
}

// inTxWithEvents is a transaction that asks something and appends rows of event kinds, at most n,
// about what the answer tells. The insert of their publish job waits for an answer anyway, so the
// question goes along with it: the busier the machine, the more each round trip costs. The job
// names n ids; those that get no row are passed over. Without any row nothing of it is committed.
func (s *Store) inTxWithEvents(ctx context.Context, n int, ask func(tx *Tx), tell func(tx *Tx) ([]AuditEvent, error)) error {
	ids, err := NewIDs(n)
	if err != nil {
		return err
	}
	errNoRow := errors.New("nothing to write")
	err = InTx(ctx, s.Pool, func(tx *Tx) error {
		ask(tx)
		if err := s.Publish(ctx, tx, ids); err != nil {
			return err
		}
		if err := tx.Await(ctx); err != nil { // mostly it is there
			return err
		}
		events, err := tell(tx)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			return errNoRow
		}
		for i := range events {
			events[i].ID = ids.At(i)
			events[i].At = events[i].At.Truncate(time.Microsecond) // as Postgres keeps it
		}
		if err := InsertAudit(ctx, tx, events); err != nil {
			return err
		}
		tx.HandOver(ids, eventRows(events))
		return nil
	})
	if errors.Is(err, errNoRow) {
		return nil
	}
	return err
}

// eventRows are rows whose links are at hand.
func eventRows(events []AuditEvent) []EventRow {
	rows := make([]EventRow, len(events))
	for i := range events {
		e := &events[i]
		rows[i] = EventRow{ID: e.ID, At: e.At, Kind: e.Kind, LinkID: e.LinkID, Detail: e.stored, Link: e.link}
	}
	return rows
}

// Denied appends click.denied. click is the open click that the press was answered with, or
// uuid.Nil.
func (s *Store) Denied(ctx context.Context, link *Link, click uuid.UUID, detail map[string]any, v *Visitor) error {
	return s.appends.Do(ctx, AuditEvent{Kind: ClickDenied, At: s.Now(), LinkID: link.ID, RequestID: link.RequestID, ClickID: click, Detail: detail, Visitor: v})
}

func (s *Store) appendTogether(ctx context.Context, events []AuditEvent) error {
	return InTx(ctx, s.Pool, func(tx *Tx) error { return s.appendAll(ctx, tx, events) })
}

// appendAll gives rows their ids and writes them, with one publish job for those of event kinds:
// these come first, so that one range of ids names them.
func (s *Store) appendAll(ctx context.Context, tx *Tx, events []AuditEvent) error {
	ids, err := NewIDs(len(events))
	if err != nil {
		return err
	}
	published, rest := 0, len(events)
	for i := range events {
		if events[i].Kind.published() {
			events[i].ID = ids.At(published)
			published++
		} else {
			rest--
			events[i].ID = ids.At(rest)
		}
	}
	if err := InsertAudit(ctx, tx, events); err != nil || published == 0 {
		return err
	}
	return s.Publish(ctx, tx, IDRange{First: ids.First, Last: ids.At(published - 1)})
}

// clickStart is one call of StartClick.
type clickStart struct {
	click   uuid.UUID
	id      uuid.UUID // of the link
	keyID   byte      // of the link, as its token has it
	look    func(*Link) map[string]any
	visitor *Visitor
	link    *Link
	started bool
}

// StartClick reads a link by its id and key, reserves a use of it and commits click.started with the detail
// that look finds (as for Open). When it returns no error the click is durable and Stripe may be
// called; a crash from here on leaves an open click, which the next press of the link joins, or Sweep
// closes. ErrDenied means that nothing was written, and comes with the link: a link has one open
// click at most, which is how presses at the same time, on any replica, come to share one session.
// ErrNoLink is returned where there is no link, and with another error the link where that was read.
func (s *Store) StartClick(ctx context.Context, id uuid.UUID, keyID byte, click uuid.UUID, look func(*Link) map[string]any, v *Visitor) (*Link, error) {
	start := &clickStart{click: click, id: id, keyID: keyID, look: look, visitor: v}
	err := s.starts.Do(ctx, start)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.ConstraintName == "clicks_pkey":
		return start.link, ErrDenied // another return to the same place was quicker
	case err != nil && ctx.Err() != nil: // its transaction may be at work still
		return nil, err
	case err != nil:
		return start.link, err
	case start.link == nil:
		return nil, ErrNoLink
	case !start.started:
		return start.link, ErrDenied
	}
	return start.link, nil
}

func (s *Store) startClicks(ctx context.Context, starts []*clickStart) error {
	byClick := map[uuid.UUID]*clickStart{}
	type named struct {
		id    uuid.UUID
		keyID byte
	}
	taken := map[named]bool{}
	var clicks, links [][16]byte
	var keyIDs []int16
	for _, c := range starts {
		c.started = false
		if name := (named{c.id, c.keyID}); !taken[name] { // a second one of the same link finds the first one open
			taken[name], byClick[c.click] = true, c
			clicks, links, keyIDs = append(clicks, c.click), append(links, c.id), append(keyIDs, int16(c.keyID))
		}
	}
	return InTx(ctx, s.Pool, func(tx *Tx) error {
		now := s.Now()
		tx.QueryLater(func(rows pgx.Rows) error {
			got, err := collectLinks(rows)
			byID := mapLinks(got)
			for _, c := range starts {
				c.link = byID[c.id].ifOf(c.keyID)
			}
			return err
		}, selectLinks+byIDs, links)
		// A row that somebody else holds at this moment is passed over, and its press looks again:
		// nobody's press waits for another's link.
		rows, err := tx.Query(ctx, `
			WITH want AS (SELECT * FROM unnest($1::uuid[], $2::uuid[], $5::smallint[]) AS t (click_id, link_id, key)),
			free AS (
				SELECT l.id, w.click_id FROM links l JOIN want w ON w.link_id = l.id AND w.key = l.key_id
				WHERE `+RevokedAt+` IS NULL AND l.expires_at > $3 AND l.sessions_reserved = 0
					AND (l.max_sessions IS NULL OR l.sessions_created < l.max_sessions)
				FOR UPDATE OF l SKIP LOCKED),
			reserved AS (
				UPDATE links l SET sessions_reserved = l.sessions_reserved + 1 FROM free WHERE l.id = free.id
				RETURNING l.id, free.click_id)
			INSERT INTO clicks (id, link_id, started_at, open_until)
			SELECT click_id, id, $3, $4 FROM reserved
			RETURNING id`, clicks, links, now, now.Add(clickLife), keyIDs)
		if err != nil {
			return fmt.Errorf("reserve uses: %w", err)
		}
		made, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return fmt.Errorf("reserve uses: %w", err)
		}
		if err := tx.Await(ctx); err != nil {
			return err
		}
		events := make([]AuditEvent, 0, len(made))
		for _, id := range made {
			c := byClick[id]
			c.started = true
			events = append(events, AuditEvent{Kind: ClickStarted, At: now, LinkID: c.id, RequestID: c.link.RequestID, ClickID: id, Detail: c.look(c.link), Visitor: c.visitor})
		}
		return s.appendAll(ctx, tx, events)
	})
}

// OpenClick returns the open click of a link, or ErrNoClick. One whose worker is gone, or whose
// person did not come back, is closed on the way, so that nobody waits for the sweeper.
func (s *Store) OpenClick(ctx context.Context, link *Link) (Click, error) {
	c, err := s.click(ctx, `link_id = $1 AND outcome IS NULL ORDER BY started_at LIMIT 1`, link.ID)
	if err != nil || s.Now().Before(c.Until) {
		return c, err
	}
	if err := s.CloseOverdue(ctx, link); err != nil {
		return Click{}, err
	}
	return Click{}, ErrNoClick
}

// CloseOverdue closes what is open of a link past its time, as Sweep would.
func (s *Store) CloseOverdue(ctx context.Context, link *Link) error {
	_, err := s.close(ctx, `link_id = $2`, link.ID)
	return err
}

// Click reads a click of a link, or returns ErrNoClick.
func (s *Store) Click(ctx context.Context, link *Link, id uuid.UUID) (Click, error) {
	return s.click(ctx, `id = $1 AND link_id = $2`, id, link.ID)
}

// CreatedSince returns the click of a link that got its session last, if that was later than since,
// or ErrNoClick.
func (s *Store) CreatedSince(ctx context.Context, link *Link, since time.Time) (Click, error) {
	return s.click(ctx, `id = (SELECT click_id FROM audit_events WHERE link_id = $1 AND kind = 'session.created' AND at > $2 AND id >= $3
		ORDER BY at DESC LIMIT 1)`, link.ID, since, FirstID(since.Add(-time.Hour))) // clocks of replicas differ
}

// click reads the click that a condition of ours selects.
func (s *Store) click(ctx context.Context, where string, args ...any) (c Click, err error) {
	var ended *time.Time
	err = s.Pool.QueryRow(ctx, `SELECT id, coalesce(ticket, 0), ticket IS NOT NULL, asked_at IS NOT NULL OR ticket IS NULL, open_until, coalesce(outcome, ''), ended_at
		FROM clicks WHERE `+where, args...).Scan(&c.ID, &c.Ticket, &c.Waited, &c.Asked, &c.Until, &c.Outcome, &ended)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Click{}, ErrNoClick
	case err != nil:
		return Click{}, fmt.Errorf("read a click: %w", err)
	case ended != nil:
		c.Ended = *ended
	}
	return c, nil
}

// Keep leaves a click open, with its place in the line, that Stripe was not asked for although its
// turn had come: its person is told to come back until then. One that Stripe may have been asked for,
// before or by somebody else meanwhile, keeps its own end, or its session could have died by the time
// it is asked for again.
func (s *Store) Keep(ctx context.Context, click Click, until time.Time) error {
	if click.Asked {
		return nil
	}
	_, err := s.Pool.Exec(ctx, `UPDATE clicks SET open_until = greatest(open_until, $2), kept_until = $3, ticket = coalesce(ticket, 0), asked_at = NULL
		WHERE id = $1 AND outcome IS NULL AND asked_at IS NOT DISTINCT FROM $4 AND (ticket IS NOT NULL OR $5)`,
		click.ID, until.Add(noShow), until, orNull(click.marked, time.Time{}), !click.Waited)
	if err != nil {
		return fmt.Errorf("keep a click open: %w", err)
	}
	return nil
}

// clickEnd is one call of EndClick.
type clickEnd struct {
	click   uuid.UUID
	link    *Link
	outcome string
	event   AuditEvent
	ended   string // the outcome that stands in the database
}

// EndClick commits a click's outcome: the audit row, the use count and the event's job together.
// cause nil means that the session was made. It may be called again after an error that leaves
// open whether it took effect, and by another press that shared the session: the later call then
// finds the same outcome and adds nothing.
func (s *Store) EndClick(ctx context.Context, link *Link, click uuid.UUID, session Session, cause *SessionError) error {
	end := &clickEnd{click: click, link: link, outcome: outcomeCreated, event: AuditEvent{Kind: SessionCreated, Detail: map[string]any{
		"session_id": session.ID, "stripe_request_id": session.RequestID, "livemode": session.Livemode}}}
	if cause != nil {
		end.outcome, end.event = "failed", AuditEvent{Kind: SessionFailed, Detail: map[string]any{
			"code": cause.Code, "stripe_request_id": cause.RequestID, "retryable": cause.Retryable()}}
	}
	end.event.LinkID, end.event.RequestID, end.event.ClickID, end.event.link = link.ID, link.RequestID, click, link
	if err := s.ends.Do(ctx, end); err != nil {
		return err
	}
	switch end.ended {
	case end.outcome:
		return nil
	case outcomeCreated:
		return ErrServed
	default:
		return ErrSwept
	}
}

func (s *Store) endClicks(ctx context.Context, ends []*clickEnd) error {
	clicks, outcomes := make([][16]byte, len(ends)), make([]string, len(ends))
	for i, e := range ends {
		clicks[i], outcomes[i] = e.click, e.outcome
		e.ended = ""
	}
	now := s.Now()
	events := make([]AuditEvent, 0, len(ends))
	return s.inTxWithEvents(ctx, len(ends), func(tx *Tx) {
		_, _ = tx.Exec(ctx, `SET LOCAL lock_timeout = '500ms'`)
		tx.QueryLater(func(rows pgx.Rows) error {
			var id uuid.UUID
			var outcome string
			_, err := pgx.ForEachRow(rows, []any{&id, &outcome}, func() error {
				i := slices.IndexFunc(ends, func(e *clickEnd) bool { return e.click == id && e.outcome == outcome })
				ends[i].ended, ends[i].event.At = outcome, now
				events = append(events, ends[i].event)
				return nil
			})
			if err != nil {
				return fmt.Errorf("end clicks: %w", err)
			}
			return nil
		}, `
			WITH want AS (SELECT DISTINCT ON (id) * FROM unnest($1::uuid[], $2::text[]) AS t (id, outcome) ORDER BY id, outcome), -- created before failed
			open AS (
				SELECT w.id, w.outcome FROM want w
				CROSS JOIN LATERAL (SELECT outcome FROM clicks WHERE id = w.id OFFSET 0 FOR UPDATE) c -- by primary key
				WHERE c.outcome IS NULL),
			ended AS (
				UPDATE clicks c SET outcome = open.outcome, ended_at = $3 FROM open WHERE c.id = open.id
				RETURNING c.id, c.link_id, c.outcome),
			counted AS (
				UPDATE links l SET sessions_reserved = l.sessions_reserved - n.ended, sessions_created = l.sessions_created + n.made
				FROM (SELECT l.id, e.ended, e.made FROM links l
				      JOIN (SELECT link_id, count(*) AS ended, count(*) FILTER (WHERE outcome = 'created') AS made FROM ended GROUP BY 1) e
				      ON e.link_id = l.id ORDER BY l.id FOR UPDATE OF l) n
				WHERE l.id = n.id)
			SELECT id, outcome FROM ended`, clicks, outcomes, now)
	}, func(tx *Tx) ([]AuditEvent, error) {
		if len(events) < len(ends) {
			return events, endedBefore(ctx, tx, ends)
		}
		return events, nil
	})
}

// endedBefore reads the outcomes that were there already: one of a commit of our own whose answer
// was lost or of a press that shared the session, or the sweeper's.
func endedBefore(ctx context.Context, tx pgx.Tx, ends []*clickEnd) error {
	clicks := make([][16]byte, len(ends))
	for i, e := range ends {
		clicks[i] = e.click
	}
	rows, err := tx.Query(ctx, `SELECT id, outcome FROM clicks WHERE id = ANY($1)`, clicks)
	if err != nil {
		return fmt.Errorf("read outcomes: %w", err)
	}
	var id uuid.UUID
	var outcome string
	_, err = pgx.ForEachRow(rows, []any{&id, &outcome}, func() error {
		for _, e := range ends {
			if e.click == id {
				e.ended = outcome
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read outcomes: %w", err)
	}
	return nil
}

// Sweep closes clicks that are open past their time, gives their reserved uses back, and returns
// how many it closed (at most 500): as session.failed with code interrupted, or abandoned where
// the person left the line. Clicks that another sweep holds are left to it.
func (s *Store) Sweep(ctx context.Context) (int, error) { return s.close(ctx, "true") }

// close sweeps the clicks that a condition of ours selects.
func (s *Store) close(ctx context.Context, where string, args ...any) (int, error) {
	var closed int
	err := InTx(ctx, s.Pool, func(tx *Tx) error {
		now := s.Now()
		rows, err := tx.Query(ctx, `
			UPDATE clicks c SET outcome = CASE WHEN c.asked_at IS NOT NULL OR c.ticket IS NULL THEN 'interrupted' ELSE 'abandoned' END, ended_at = $1
			FROM (SELECT id FROM clicks WHERE outcome IS NULL AND open_until <= $1 AND `+where+`
			      ORDER BY open_until LIMIT 500 FOR UPDATE SKIP LOCKED) open, links l
			WHERE c.id = open.id AND l.id = c.link_id
			RETURNING c.id, l.id, l.request_id, c.outcome`, append([]any{now}, args...)...)
		if err != nil {
			return fmt.Errorf("close open clicks: %w", err)
		}
		events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e AuditEvent, err error) {
			var code SessionCode // the outcomes interrupted and abandoned are codes too
			err = row.Scan(&e.ClickID, &e.LinkID, &e.RequestID, &code)
			e.Kind, e.At = SessionFailed, now
			e.Detail = map[string]any{"code": code, "stripe_request_id": "", "retryable": true}
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
