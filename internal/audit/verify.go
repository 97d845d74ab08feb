package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// Verified is what a verification found to be as it was sealed.
type Verified struct {
	Rows     int64 // in the seals that it went through
	Seals    int64
	Head     Head  // the newest seal
	Unsealed int64 // rows behind it, which nothing proves yet
	Visitors int64 // rows of audit_visitors that are as they were hashed
	Gone     int64 // sealed rows whose visitor has no row any more: erased, past its retention, or taken away; 0 with a since
	Unproved int64 // rows of audit_visitors that a worker of 0.1.0 wrote, without a salt
}

// BrokenError is the first thing that is not as it was sealed.
type BrokenError struct {
	What   string // "changed", "added", "moved", "removed"; of a seal "changed", "missing"
	Seal   int64
	Sealed time.Time // zero where the seal is missing
	Row    uuid.UUID // uuid.Nil: the seal itself
}

func (e *BrokenError) Error() string {
	switch {
	case e.What == "missing":
		return fmt.Sprintf("the audit is not what it was: seal %d is missing", e.Seal)
	case e.Row == uuid.Nil:
		return fmt.Sprintf("the audit is not what it was: seal %d of %s was %s", e.Seal, e.Sealed.UTC().Format(time.RFC3339), e.What)
	}
	return fmt.Sprintf("the audit is not what it was: row %s was %s after seal %d of %s", e.Row, e.What, e.Seal, e.Sealed.UTC().Format(time.RFC3339))
}

// Errors of a head that the caller kept.
var (
	// ErrNoSuchSeal is returned where the chain ends before the head: it was cut, or the database was restored to an
	// earlier state.
	ErrNoSuchSeal = errors.New("the chain ends before the head that you kept: rows and seals were cut off its end, or the database was restored to an earlier state")
	// ErrOtherSeal is returned where the chain goes another way.
	ErrOtherSeal = errors.New("the chain does not go through the head that you kept: it was made anew, unless the head is mistyped or another database's")
)

// ErrTableGone is returned where the database has some of the audit's tables and not the others.
var ErrTableGone = errors.New("the audit is not what it was: audit_events, audit_seals or audit_visitors was dropped or renamed")

// Finding is a Verify's error for programs.
type Finding struct {
	OK   bool   `json:"ok"`   // false
	What string `json:"what"` // BrokenError.What; "visitor": row's is not as it was hashed; "cut", "other": the head that was kept; "cut": a table too
	Seal int64  `json:"seal,omitempty"`
	Row  string `json:"row,omitempty"`
}

// Found is nil for an error by which nothing is known of the audit.
func Found(err error) *Finding {
	if broken, ok := errors.AsType[*BrokenError](err); ok {
		f := &Finding{What: broken.What, Seal: broken.Seal}
		if broken.Row != uuid.Nil {
			f.Row = broken.Row.String()
		}
		return f
	}
	if visitor, ok := errors.AsType[*VisitorError](err); ok {
		return &Finding{What: "visitor", Row: visitor.Row}
	}
	switch {
	case errors.Is(err, ErrNoSuchSeal), errors.Is(err, ErrTableGone):
		return &Finding{What: "cut"}
	case errors.Is(err, ErrOtherSeal):
		return &Finding{What: "other"}
	}
	return nil
}

// Verify recomputes the chain from behind since on (the zero Head: all of it) and returns a BrokenError for the first
// thing that is not as it was sealed, ErrTableGone, or ErrNoSuchSeal or ErrOtherSeal where the chain does not go through each of since
// and kept. progress, if any, is told the rows done.
//
// It reads on as many connections as there are processors (Connections): seals can be checked apart, each with the hash that
// is stored in the one before.
func Verify(ctx context.Context, db *pgxpool.Pool, since, kept Head, progress func(rows int64)) (Verified, error) {
	v, err := verify(ctx, db, since, kept, progress)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42P01" { // undefined_table
		return v, err
	}
	// Without any, or from before 00005, it is another database, or one that is not migrated.
	var gone bool
	if err := db.QueryRow(ctx, `SELECT to_regclass('audit_seals') IS NOT NULL
		OR EXISTS (SELECT FROM pg_attribute WHERE (attrelid, attname) IN ((to_regclass('audit_events'), 'seq'), (to_regclass('audit_visitors'), 'salt')))`).Scan(&gone); err != nil {
		return v, fmt.Errorf("look for the audit's tables: %w", err)
	}
	if gone {
		return v, ErrTableGone
	}
	return v, err
}

func verify(ctx context.Context, db *pgxpool.Pool, since, kept Head, progress func(rows int64)) (v Verified, err error) {
	for _, h := range []Head{since, kept} {
		if err := through(ctx, db, h); err != nil {
			return v, err
		}
	}
	if v.Head, _, err = head(ctx, db); err != nil {
		return v, err
	}
	if err := v.chain(ctx, db, since, progress); err != nil {
		return v, err
	}
	if err := v.visitors(ctx, db, since.Number == 0); err != nil {
		return v, err
	}
	err = db.QueryRow(ctx, `SELECT count(*) FROM audit_events WHERE seq > coalesce((SELECT last_seq FROM audit_seals WHERE number = $1), $2)`, v.Head.Number, int64(firstSeq)).Scan(&v.Unsealed)
	if err != nil {
		return v, fmt.Errorf("count rows without a seal: %w", err)
	}
	return v, nil
}

// through looks whether the chain goes through a head.
func through(ctx context.Context, db *pgxpool.Pool, h Head) error {
	if h.Number == 0 {
		return nil
	}
	var sum []byte
	err := db.QueryRow(ctx, `SELECT hash FROM audit_seals WHERE number = $1`, h.Number).Scan(&sum)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrNoSuchSeal
	case err != nil:
		return fmt.Errorf("read seal %d: %w", h.Number, err)
	case !bytes.Equal(sum, h.Hash[:]):
		return ErrOtherSeal
	}
	return nil
}

// seal is a row of audit_seals, and what was stored for the one before it.
type seal struct {
	number   int64
	lastSeq  int64
	at       time.Time
	ids      []uuid.UUID
	marks    []byte
	hash     []byte
	before   Head
	afterSeq int64
}

// A stretch is some seals whose rows are read together.
type stretch struct {
	seals []seal
	done  chan error // nil: all as sealed
	rows  int64
	seen  int64 // rows that had a visitor
}

// stretchRows is about how many rows are read at once, for each connection.
const stretchRows = 20_000

// Connections is how many of its pool's a Verify takes. With fewer it would wait for itself.
func Connections() int32 { return int32(lanes()) + 2 }

// lanes check stretches at the same time.
func lanes() int { return max(2, runtime.GOMAXPROCS(0)) }

// chain checks the seals behind since, in stretches, several at a time, and looks at what they came to in their order.
func (v *Verified) chain(ctx context.Context, db *pgxpool.Pool, since Head, progress func(int64)) error {
	work, order := make(chan *stretch), make(chan *stretch, lanes())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(work)
		defer close(order)
		return stretches(ctx, db, since, v.Head.Number, func(s *stretch) error {
			for _, to := range []chan *stretch{order, work} {
				select {
				case to <- s:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	})
	for range lanes() {
		group.Go(func() error {
			for s := range work {
				s.done <- s.check(ctx, db)
			}
			return nil
		})
	}
	group.Go(func() error {
		for s := range order {
			select {
			case err := <-s.done:
				if err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
			v.Rows, v.Seals, v.Gone = v.Rows+s.rows, v.Seals+int64(len(s.seals)), v.Gone+s.seen
			if progress != nil {
				progress(v.Rows)
			}
		}
		return nil
	})
	return group.Wait()
}

// stretches reads the seals behind since, up to a number, and hands them on.
func stretches(ctx context.Context, db *pgxpool.Pool, since Head, upTo int64, hand func(*stretch) error) error {
	before, afterSeq := since, int64(firstSeq)
	if since.Number > 0 {
		if err := db.QueryRow(ctx, `SELECT last_seq FROM audit_seals WHERE number = $1`, since.Number).Scan(&afterSeq); err != nil {
			return fmt.Errorf("read seal %d: %w", since.Number, err)
		}
	}
	rows, err := db.Query(ctx, `SELECT number, last_seq, sealed_at, ids, marks, hash FROM audit_seals WHERE number > $1 AND number <= $2 ORDER BY number`, since.Number, upTo)
	if err != nil {
		return fmt.Errorf("read seals: %w", err)
	}
	defer rows.Close()
	s := &stretch{done: make(chan error, 1)}
	for rows.Next() {
		next := seal{before: before, afterSeq: afterSeq}
		if err := rows.Scan(&next.number, &next.lastSeq, &next.at, &next.ids, &next.marks, &next.hash); err != nil {
			return fmt.Errorf("read seals: %w", err)
		}
		before, afterSeq = Head{Number: next.number}, next.lastSeq
		copy(before.Hash[:], next.hash)
		s.seals, s.rows = append(s.seals, next), s.rows+int64(len(next.ids))
		if s.rows < stretchRows {
			continue
		}
		if err := hand(s); err != nil {
			return err
		}
		s = &stretch{done: make(chan error, 1)}
	}
	if err := rows.Err(); err != nil || len(s.seals) == 0 {
		return err
	}
	return hand(s)
}

// check reads the rows of a stretch and recomputes its seals.
func (s *stretch) check(ctx context.Context, db *pgxpool.Pool) error {
	first, last := &s.seals[0], &s.seals[len(s.seals)-1]
	rows, err := db.Query(ctx, `SELECT `+columns+` FROM audit_events WHERE seq > $1 AND seq <= $2 ORDER BY seq, id`, first.afterSeq, last.lastSeq)
	if err != nil {
		return fmt.Errorf("read audit rows: %w", err)
	}
	list, err := collect(rows, func(values [][]byte) {
		if values[columnVisitorHash] != nil {
			s.seen++
		}
	})
	if err != nil {
		return fmt.Errorf("read audit rows: %w", err)
	}
	for i := range s.seals {
		sealed := &s.seals[i]
		n := 0
		for n < len(list) && list[n].seq <= sealed.lastSeq {
			n++
		}
		if err := sealed.check(ctx, db, list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// check compares a seal with the rows that are there now.
func (s *seal) check(ctx context.Context, db *pgxpool.Pool, rows []row) error {
	if s.number != s.before.Number+1 {
		return &BrokenError{What: "missing", Seal: s.before.Number + 1}
	}
	now := hashSeal(s.before, s.lastSeq, s.at, rows)
	if bytes.Equal(now.Hash[:], s.hash) {
		return nil
	}
	return s.broken(ctx, db, rows)
}

// broken names what is not as it was sealed.
func (s *seal) broken(ctx context.Context, db *pgxpool.Pool, rows []row) error {
	broken := &BrokenError{What: "changed", Seal: s.number, Sealed: s.at}
	if len(s.marks) != markBytes*len(s.ids) { // a CHECK holds that, which was dropped
		return broken
	}
	for i := range max(len(rows), len(s.ids)) {
		switch {
		case i < len(rows) && !slices.Contains(s.ids, rows[i].id):
			broken.Row, broken.What = rows[i].id, "added"
			return broken
		case i >= len(rows) || rows[i].id != s.ids[i]:
			broken.Row, broken.What = s.ids[i], "removed"
			var elsewhere bool
			if err := db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM audit_events WHERE id = $1)`, s.ids[i]).Scan(&elsewhere); err != nil {
				return fmt.Errorf("look for audit row %s: %w", s.ids[i], err)
			}
			if elsewhere {
				broken.What = "moved"
			}
			return broken
		case !bytes.Equal(rows[i].hash[:markBytes], s.marks[i*markBytes:(i+1)*markBytes]):
			broken.Row = s.ids[i]
			return broken
		}
	}
	return broken // each row is as it was marked, so it is the seal
}

// visitors looks whether what is left of visitors' data is what was hashed, and takes it off those that the chain, if it
// was read whole, has hashes of.
func (v *Verified) visitors(ctx context.Context, db *pgxpool.Pool, whole bool) error {
	// inet_send is family, bits, is_cidr, length, address.
	rows, err := db.Query(ctx, `SELECT count(*), count(*) FILTER (WHERE salt IS NULL AND e.visitor_hash IS NULL AND e.id IS NOT NULL),
			min(v.event_id::text) FILTER (WHERE NOT (salt IS NULL AND e.visitor_hash IS NULL AND e.id IS NOT NULL)
				AND sha256(salt || substring(inet_send(ip) FROM 4) || convert_to(user_agent, 'UTF8')) IS DISTINCT FROM e.visitor_hash)
		FROM audit_visitors v LEFT JOIN audit_events e ON e.id = v.event_id`)
	if err != nil {
		return fmt.Errorf("read visitors: %w", err)
	}
	var all, sealed int64
	var other *string
	if _, err := pgx.ForEachRow(rows, []any{&all, &v.Unproved, &other}, func() error { return nil }); err != nil {
		return fmt.Errorf("read visitors: %w", err)
	}
	if other != nil {
		return &VisitorError{Row: *other}
	}
	v.Visitors = all - v.Unproved
	if !whole {
		v.Gone = 0
		return nil
	}
	// EXISTS, so that a row which is there twice stands for itself alone.
	err = db.QueryRow(ctx, `SELECT count(*) FROM audit_events e WHERE visitor_hash IS NOT NULL
		AND seq <= (SELECT last_seq FROM audit_seals WHERE number = $1) AND EXISTS (SELECT FROM audit_visitors WHERE event_id = e.id)`, v.Head.Number).Scan(&sealed)
	if err != nil {
		return fmt.Errorf("count visitors: %w", err)
	}
	v.Gone -= sealed
	return nil
}

// VisitorError is returned where a row of audit_visitors is not what was hashed into the row of audit_events.
type VisitorError struct{ Row string }

func (e *VisitorError) Error() string {
	return fmt.Sprintf("the audit is not what it was: the visitor of audit row %s was changed or added, or that row was removed", e.Row)
}
