package portal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// Budget hands out the slots in which Stripe may be called, STRIPE_RATE a second for each Stripe
// account and all replicas together. The state of an account's line (line.go) is a row of
// stripe_budget, which each reservation locks for a moment; times are the database's, so replicas'
// clocks may differ. Concurrent reservations of a process share one transaction.
type Budget struct {
	pool *pgxpool.Pool
	rate float64
	now  func() time.Time // of clicks; slots go by the database's clock

	takes   Group[*take]
	waits   prometheus.Histogram
	inLine  prometheus.Counter
	lowered prometheus.Counter
}

// NewBudget returns a budget of rate calls a second, at least 1.
func NewBudget(pool *pgxpool.Pool, rate float64, now func() time.Time, reg prometheus.Registerer) *Budget {
	b := &Budget{pool: pool, rate: rate, now: now,
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "latchkey_stripe_budget_wait_seconds",
			Help:    "Time that a click's request waited for its slot.",
			Buckets: []float64{.001, .01, .05, .1, .25, .5, 1, 2, 3},
		}),
		inLine:  prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_stripe_budget_waiting_pages_total", Help: "Waiting pages that were shown."}),
		lowered: prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_stripe_budget_lowered_total", Help: "429s of Stripe that lowered the pace."}),
	}
	b.takes = Group[*take]{Commit: b.serve, Most: 256}
	if reg != nil {
		reg.MustRegister(b.waits, b.inLine, b.lowered)
	}
	return b
}

// take is one question to an account's line.
type take struct {
	account string
	click   Click // of a turn
	ask     ask
	turn    turn      // the answer to askTurn; slot false = no slot to askRetry
	marked  time.Time // asked_at as the slot has set it; zero = it did not
	err     error     // of its account alone
}

type ask int

const (
	askTurn  ask = iota // a slot or a place in the line
	askRetry            // a slot soon, or none
	askLower            // Stripe answered 429
)

// Wait returns 0 when the click's slot has come, so that Stripe may be called now. It waits for
// that at most 3 s; where the line is longer it returns at once how long it will take, and the
// click keeps its ticket: asked again when its turn is near, it is served in its turn. What the click's
// row tells of it from then on stands in click too.
func (b *Budget) Wait(ctx context.Context, account string, click *Click) (left time.Duration, err error) {
	began := time.Now()
	for {
		t := &take{account: account, click: *click}
		if err := b.ask(ctx, t); err != nil {
			return 0, err
		}
		if t.turn.slot {
			click.marked = t.marked
			if err := sleep(ctx, t.turn.wait); err != nil {
				return 0, err
			}
			b.waits.Observe(time.Since(began).Seconds())
			return 0, nil
		}
		click.Ticket, click.Waited = t.turn.ticket, true
		if time.Since(began)+t.turn.wait > hold {
			b.inLine.Inc()
			return t.turn.wait, nil
		}
		// A little into the time in which the slot is given, or a moment's rounding would ask twice.
		if err := sleep(ctx, t.turn.wait-early*3/4); err != nil {
			return 0, err
		}
	}
}

// errNoSlot is returned by Retry when the line has no slot soon.
var errNoSlot = errors.New("no slot for another try")

// Retry waits, at most retryHold, for a slot for one more try of a click that has had its own.
func (b *Budget) Retry(ctx context.Context, account string) error {
	if b == nil {
		return nil
	}
	t := &take{account: account, ask: askRetry}
	if err := b.ask(ctx, t); err != nil {
		return err
	}
	if !t.turn.slot {
		return errNoSlot
	}
	return sleep(ctx, t.turn.wait)
}

// Lower halves the pace of an account for all replicas, and from then on raises it slowly.
func (b *Budget) Lower(ctx context.Context, account string) error {
	if b == nil {
		return nil
	}
	b.lowered.Inc()
	return b.ask(ctx, &take{account: account, ask: askLower})
}

func (b *Budget) ask(ctx context.Context, t *take) error {
	if err := b.takes.Do(ctx, t); err != nil {
		return err
	}
	return t.err
}

// serve answers questions, those to one account in one transaction, in the order of their coming.
// Somebody who holds an account's row holds up that account, for lock_timeout and no longer.
func (b *Budget) serve(ctx context.Context, takes []*take) error {
	slices.SortStableFunc(takes, func(x, y *take) int { return cmp.Compare(x.account, y.account) })
	for len(takes) > 0 {
		n := 1
		for n < len(takes) && takes[n].account == takes[0].account {
			n++
		}
		err := InTx(ctx, b.pool, func(tx *Tx) error { return b.serveAccount(ctx, tx, takes[:n]) })
		if err != nil {
			err = fmt.Errorf("stripe budget: %w", err)
		}
		for _, t := range takes[:n] {
			t.err = err
		}
		takes = takes[n:]
	}
	return nil
}

func (b *Budget) serveAccount(ctx context.Context, tx pgx.Tx, takes []*take) error {
	l, now, err := lockLine(ctx, tx, takes[0].account)
	if err != nil {
		return err
	}
	if l.paused(now) && l.head <= l.last {
		if l.expected, err = b.expected(ctx, tx, takes[0].account, l.head); err != nil {
			return err
		}
	}
	var turns []*take // of clicks whose rows are to tell it
	for _, t := range takes {
		switch t.ask {
		case askLower:
			l.lower(now, b.rate)
		case askRetry:
			wait, ok := l.retry(now, b.rate)
			t.turn = turn{wait: wait, slot: ok}
		case askTurn:
			t.turn = l.take(now, t.click.Ticket, b.rate)
			if !t.turn.slot || t.click.Waited || t.click.Asked { // else it never had to wait, and its row says all that it should
				turns = append(turns, t)
			}
		}
	}
	_, err = tx.Exec(ctx, `UPDATE stripe_budget SET slot_at = $2, head = $3, last_ticket = $4, 
			lowered_to = nullif($5, 0::float8), lowered_at = CASE WHEN $5 > 0 THEN $6::timestamptz END WHERE account = $1`,
		takes[0].account, l.slotAt, l.head, l.last, l.loweredTo, l.loweredAt)
	if err != nil || len(turns) == 0 {
		return err
	}
	return b.write(ctx, tx, turns)
}

// write keeps the turns in the clicks' rows. A slot does not take the ticket away: where nothing comes
// of it, since its worker stops or the answer is lost, the next question finds the place. What
// Stripe may have been asked for before keeps its end.
//
// A click without a ticket may have been asked for since it started. Who joins it can only assume so
// (asked_at = started_at), until whoever started it is put in line; a slot makes it certain.
//
// Everybody waits for the account's row, which so waits for nobody: a click whose row is held at this
// moment is put off.
func (b *Budget) write(ctx context.Context, tx pgx.Tx, turns []*take) error {
	n := len(turns)
	clicks, tickets, slots, asked, untils := make([][16]byte, n), make([]int64, n), make([]bool, n), make([]bool, n), make([]time.Time, n)
	for i, t := range turns {
		clicks[i], tickets[i], slots[i], asked[i], untils[i] = t.click.ID, t.turn.ticket, t.turn.slot, t.click.Asked, b.openUntil(t.turn)
	}
	now := b.now().Add(time.Microsecond).Truncate(time.Microsecond) // as Postgres keeps it, and not started_at
	rows, err := tx.Query(ctx, `UPDATE clicks c SET ticket = least(nullif(c.ticket, 0), t.ticket), kept_until = NULL,
			asked_at = CASE
				WHEN t.slot AND (c.asked_at = c.started_at OR t.asked AND c.asked_at IS NULL AND c.ticket IS NULL) THEN c.started_at - interval '1 microsecond'
				WHEN t.slot THEN coalesce(c.asked_at, $6)
				WHEN t.asked AND c.asked_at IS NULL AND c.ticket IS NULL THEN c.started_at
				WHEN NOT t.asked AND c.asked_at = c.started_at THEN NULL
				ELSE c.asked_at END,
			open_until = CASE
				WHEN t.asked AND c.asked_at IS NULL AND c.ticket IS NULL THEN c.open_until
				WHEN c.asked_at IS NULL OR NOT t.asked AND NOT t.slot AND c.asked_at = c.started_at THEN t.until
				ELSE c.open_until END
		FROM (SELECT t.* FROM unnest($1::uuid[], $2::bigint[], $3::bool[], $4::bool[], $5::timestamptz[]) AS t (id, ticket, slot, asked, until)
		      CROSS JOIN LATERAL (SELECT FROM clicks WHERE id = t.id OFFSET 0 FOR UPDATE SKIP LOCKED) c) t -- by primary key
		WHERE c.id = t.id RETURNING c.id, c.asked_at`, clicks, tickets, slots, asked, untils, now)
	if err != nil {
		return err
	}
	written := map[uuid.UUID]*time.Time{}
	var id uuid.UUID
	var askedAt *time.Time
	if _, err := pgx.ForEachRow(rows, []any{&id, &askedAt}, func() error { written[id] = askedAt; return nil }); err != nil {
		return err
	}
	for _, t := range turns {
		switch at, ok := written[t.click.ID]; {
		case !ok && t.turn.slot: // without its mark, nobody would know that Stripe was asked
			t.turn.slot, t.turn.wait = false, putOff
		case t.turn.slot && at != nil && at.Equal(now):
			t.marked = *at
		}
	}
	return nil
}

// putOff is when a click is asked about again whose row was held.
const putOff = early

// expected is the lowest ticket of an account from head on whose person was told to come back because
// Stripe was away, and is still to come.
func (b *Budget) expected(ctx context.Context, tx pgx.Tx, account string, head int64) (ticket int64, err error) {
	err = tx.QueryRow(ctx, `SELECT coalesce(min(c.ticket), 0) FROM clicks c JOIN links l ON l.id = c.link_id
		WHERE c.outcome IS NULL AND c.kept_until > $1 AND c.asked_at IS NULL AND c.ticket >= $2 AND coalesce(l.stripe_account, '') = $3`,
		b.now().Add(-pause), head, account).Scan(&ticket)
	return ticket, err
}

// noShow is how long a place is kept for a person whose turn has come.
const noShow = 30 * time.Second

func (b *Budget) openUntil(t turn) time.Time {
	if t.slot {
		return b.now().Add(clickLife)
	}
	return b.now().Add(t.wait + noShow)
}

// lockLine reads an account's row, makes it where there is none, and holds it until the
// transaction ends.
func lockLine(ctx context.Context, tx pgx.Tx, account string) (l line, now time.Time, err error) {
	read := func() error {
		batch := &pgx.Batch{}
		// What a crash of Postgres loses here is a moment of pacing, not worth a disk's wait
		// under a lock that everybody wants.
		batch.Queue(`SET LOCAL synchronous_commit = off`)
		batch.Queue(`SET LOCAL lock_timeout = '500ms'`)
		batch.Queue(`SELECT slot_at, head, last_ticket, coalesce(lowered_to, 0), coalesce(lowered_at, slot_at)
			FROM stripe_budget WHERE account = $1 FOR UPDATE`, account).QueryRow(func(row pgx.Row) error {
			return row.Scan(&l.slotAt, &l.head, &l.last, &l.loweredTo, &l.loweredAt)
		})
		batch.Queue(`SELECT clock_timestamp()`).QueryRow(func(row pgx.Row) error { return row.Scan(&now) }) // once the lock is there
		return tx.SendBatch(ctx, batch).Close()
	}
	if err = read(); !errors.Is(err, pgx.ErrNoRows) {
		return l, now, err
	}
	if _, err = tx.Exec(ctx, `INSERT INTO stripe_budget (account, slot_at) VALUES ($1, now()) ON CONFLICT DO NOTHING`, account); err != nil {
		return l, now, err
	}
	return l, now, read()
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
