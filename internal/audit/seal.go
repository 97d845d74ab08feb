package audit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/portal"
)

// Head is the end of the chain: a seal's number and hash. Who keeps one can show later that nothing below it
// was changed. The zero Head is that of a chain without a seal.
type Head struct {
	Number int64
	Hash   [sha256.Size]byte
}

// String is the number, a colon and the hash in hex.
func (h Head) String() string {
	return strconv.FormatInt(h.Number, 10) + ":" + hex.EncodeToString(h.Hash[:])
}

// ParseHead reads what String wrote.
func ParseHead(s string) (h Head, err error) {
	number, sum, _ := strings.Cut(strings.TrimSpace(s), ":")
	h.Number, err = strconv.ParseInt(number, 10, 64)
	decoded, hexErr := hex.DecodeString(sum)
	if err != nil || hexErr != nil || h.Number < 1 || len(decoded) != len(h.Hash) {
		return Head{}, errors.New("a head is a seal's number, a colon and 64 hex digits, as 'worker audit verify' prints it")
	}
	copy(h.Hash[:], decoded)
	return h, nil
}

// sealRows is the most rows of one seal: what a check that fails can be read anew by, and 240 KB of the seal's own.
const sealRows = 10_000

// hashSeal is SHA-256 over a label, the hash before, the seal's number, last_seq, sealed_at in microseconds since 1970 and
// count of rows (8 bytes each, big endian), and the hash of each row.
func hashSeal(before Head, lastSeq int64, at time.Time, rows []row) Head {
	h := sha256.New()
	h.Write([]byte("latchkey seal 1\n"))
	h.Write(before.Hash[:])
	var fields []byte
	for _, f := range []int64{before.Number + 1, lastSeq, at.UnixMicro(), int64(len(rows))} {
		fields = binary.BigEndian.AppendUint64(fields, uint64(f))
	}
	h.Write(fields)
	for i := range rows {
		h.Write(rows[i].hash[:])
	}
	head := Head{Number: before.Number + 1}
	h.Sum(head.Hash[:0])
	return head
}

// Sealer seals.
type Sealer struct {
	Pool    *pgxpool.Pool // that waits for the disk: a crash must not take a seal back whose head is out
	Publish portal.PublishFunc

	patience time.Duration // with writers that are under way; 0 = settleWait
}

// Sealed is what a Seal did, and the head that it left.
type Sealed struct {
	Rows  int64
	Seals int64
	Head  Head
}

// Lock is the advisory lock that whoever seals holds, so that there is one at a time: "audit" in ASCII.
const Lock int64 = 0x6175646974

// ErrSealing is returned when another process seals just now.
var ErrSealing = errors.New("another process seals the audit just now")

// Seal seals all that was committed when it was called. Each seal is a transaction of its own, which also tells the new
// head, so a crash leaves the first seals, and the next call goes on behind them. It returns ErrSealing, and a
// HeldUpError where a transaction kept it from the end.
func (s *Sealer) Seal(ctx context.Context) (done Sealed, err error) {
	for {
		var n int
		err = portal.InTx(ctx, s.Pool, func(tx *portal.Tx) (err error) {
			n, done.Head, err = s.sealSome(ctx, tx)
			return err
		})
		// InTx has committed: durable are a seal, its audit.sealed row and the job that publishes it.
		if err != nil || n == 0 {
			return done, err
		}
		done.Rows, done.Seals = done.Rows+int64(n), done.Seals+1
		if n < sealRows {
			return done, nil
		}
	}
}

// sealSome makes the next seal, of at most sealRows, and returns how many rows are in it.
func (s *Sealer) sealSome(ctx context.Context, tx *portal.Tx) (int, Head, error) {
	// Each statement has to see what the ones before it waited for, whatever the database's default is.
	_, _ = tx.Exec(ctx, `SET TRANSACTION ISOLATION LEVEL READ COMMITTED`)
	var mine bool
	var now time.Time // the database's: clocks of workers differ, and a seal's time bounds what is in it
	if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1), now()`, Lock).Scan(&mine, &now); err != nil {
		return 0, Head{}, fmt.Errorf("begin to seal: %w", err)
	}
	if !mine {
		return 0, Head{}, ErrSealing
	}
	before, lastSeq, err := head(ctx, tx)
	if err != nil {
		return 0, before, err
	}
	upTo, err := s.settled(ctx, tx)
	if err != nil {
		return 0, before, err
	}
	rows, kinds, err := s.read(ctx, tx, lastSeq, upTo)
	if err != nil || len(rows) == 0 || onlySeals(kinds) {
		return 0, before, err
	}
	if len(rows) == sealRows {
		upTo = rows[len(rows)-1].seq
	}
	made := hashSeal(before, upTo, now, rows)
	ids, marks := make([][16]byte, len(rows)), make([]byte, 0, markBytes*len(rows))
	for i := range rows {
		ids[i], marks = rows[i].id, append(marks, rows[i].hash[:markBytes]...)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO audit_seals (number, last_seq, sealed_at, ids, marks, hash) VALUES ($1, $2, $3, $4, $5, $6)`,
		made.Number, upTo, now, ids, marks, made.Hash[:]); err != nil {
		return 0, before, fmt.Errorf("write a seal: %w", err)
	}
	return len(rows), made, s.tell(ctx, tx, made, now)
}

// markBytes are kept of each row's hash, to tell which one was changed.
const markBytes = 8

// tell writes the head into the audit itself, whose event carries it out.
func (s *Sealer) tell(ctx context.Context, tx *portal.Tx, made Head, now time.Time) error {
	ids, err := portal.NewIDs(1)
	if err != nil {
		return err
	}
	e := portal.AuditEvent{ID: ids.First, At: now, Kind: portal.AuditSealed, Detail: map[string]any{"head": made.String()}}
	if err := portal.InsertAudit(ctx, tx, []portal.AuditEvent{e}); err != nil {
		return err
	}
	return s.Publish(ctx, tx, ids)
}

// onlySeals tells that nothing happened but that a head was told. Sealing that would make another such row, and so
// on for ever.
func onlySeals(kinds map[portal.Kind]bool) bool { return len(kinds) == 1 && kinds[portal.AuditSealed] }

// head is the newest seal, and up to which number it goes.
func head(ctx context.Context, db portal.Querier) (h Head, lastSeq int64, err error) {
	rows, err := db.Query(ctx, `SELECT number, last_seq, hash FROM audit_seals ORDER BY number DESC LIMIT 1`)
	if err != nil {
		return h, 0, fmt.Errorf("read the newest seal: %w", err)
	}
	var sum []byte
	_, err = pgx.ForEachRow(rows, []any{&h.Number, &lastSeq, &sum}, func() error { copy(h.Hash[:], sum); return nil })
	if h.Number == 0 {
		lastSeq = firstSeq
	}
	return h, lastSeq, err
}

// firstSeq is below every number that a row can have, whoever gave it.
const firstSeq = -1 << 63

// read reads the rows of the next seal, and of which kinds they are.
func (s *Sealer) read(ctx context.Context, tx *portal.Tx, after, upTo int64) ([]row, map[portal.Kind]bool, error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM audit_events WHERE seq > $1 AND seq <= $2 ORDER BY seq, id LIMIT $3`, after, upTo, sealRows)
	if err != nil {
		return nil, nil, fmt.Errorf("read the rows to seal: %w", err)
	}
	kinds := map[portal.Kind]bool{}
	list, err := collect(rows, func(values [][]byte) {
		if kind := values[columnKind]; !kinds[portal.Kind(kind)] {
			kinds[portal.Kind(kind)] = true
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the rows to seal: %w", err)
	}
	return list, kinds, nil
}

// HeldUpError is returned where a transaction that has written to the audit does not end.
type HeldUpError struct {
	PID int32 // of its Postgres process; 0 = a prepared transaction
}

func (e *HeldUpError) Error() string {
	if e.PID == 0 {
		return "a prepared transaction holds up the sealing of the audit; see pg_prepared_xacts, and commit it or roll it back"
	}
	return fmt.Sprintf("a transaction of the Postgres process %d holds up the sealing of the audit; see pg_stat_activity, and end it", e.PID)
}

// How often, ever more seldom, and how long a Seal looks whether the writers are through that it found.
const (
	settleFirst = 2 * time.Millisecond
	settleMost  = 250 * time.Millisecond
	settleWait  = 5 * time.Second
)

// settled returns a number up to which every row is committed that ever will be.
//
// A writer locks audit_events before it takes its first number, and frees it behind its commit. So whoever took one of
// the numbers up to last, read first, either held the lock when the holders were read, or was through.
func (s *Sealer) settled(ctx context.Context, tx pgx.Tx) (last int64, err error) {
	if err := tx.QueryRow(ctx, `SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM audit_events_seq`).Scan(&last); err != nil {
		return 0, fmt.Errorf("read the audit's sequence: %w", err)
	}
	waiting, pid, err := writers(ctx, tx, nil)
	if err != nil || len(waiting) == 0 {
		return last, err
	}
	deadline := time.NewTimer(cmp.Or(s.patience, settleWait))
	defer deadline.Stop()
	for pause := settleFirst; len(waiting) > 0; pause = min(2*pause, settleMost) {
		select {
		case <-time.After(pause):
		case <-deadline.C:
			return 0, &HeldUpError{PID: pid}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if waiting, pid, err = writers(ctx, tx, waiting); err != nil {
			return 0, err
		}
	}
	return last, nil
}

// writers are the transactions that hold audit_events to write to it: those among the given ones, or all. A prepared
// one may have been among them under another name.
func writers(ctx context.Context, tx pgx.Tx, among []string) (held []string, pid int32, err error) {
	rows, err := tx.Query(ctx, `SELECT virtualtransaction, coalesce(pid, 0) FROM pg_locks
		WHERE locktype = 'relation' AND relation = 'audit_events'::regclass AND mode = 'RowExclusiveLock'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND pid IS DISTINCT FROM pg_backend_pid() AND ($1::text[] IS NULL OR virtualtransaction = ANY($1) OR pid IS NULL)`, among)
	if err != nil {
		return nil, 0, fmt.Errorf("see who writes to the audit: %w", err)
	}
	var transaction string
	_, err = pgx.ForEachRow(rows, []any{&transaction, &pid}, func() error { held = append(held, transaction); return nil })
	return held, pid, err
}
