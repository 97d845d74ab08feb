package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

func TestSealAndVerify(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if v, err := b.verify(Head{}, Head{}); v != (Verified{}) || err != nil {
		t.Errorf("an empty audit: %+v, %v", v, err)
	}
	b.opened(3)
	b.opened(1)
	first := b.seal(4)
	if first.Number != 1 || b.count(`SELECT count(*) FROM published p JOIN audit_events e ON e.id = p.first
		WHERE kind = 'audit.sealed' AND detail = jsonb_build_object('head', $1::text)`, first.String()) != 1 {
		t.Errorf("head %s, and it is not told", first)
	}
	if again := b.seal(0); again != first {
		t.Errorf("nothing happened but the seal itself, and the head is %s", again)
	}
	b.opened(2)
	second := b.seal(3) // with the row that told the first head
	if v, err := b.verify(Head{}, first); err != nil || v != (Verified{Rows: 7, Seals: 2, Head: second, Unsealed: 1, Visitors: 6}) {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := b.verify(first, second); err != nil || v.Rows != 3 || v.Seals != 1 {
		t.Errorf("since the first head: %+v, %v", v, err)
	}
}

// A seal is full at some number of rows, and a Seal goes on to the end. Each head is told, be the last seal full or not.
func TestSealsOfManyRows(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{sealRows, 2*sealRows + 1} {
		b := setup(t)
		b.exec(`INSERT INTO audit_events (id, at, kind, link_id)
			SELECT (left(audit_id_at(now())::text, 14) || right(gen_random_uuid()::text, 22))::uuid, now(), 'link.opened', $1 FROM generate_series(1, $2)`, b.link, rows)
		seals := int64(rows+sealRows-1) / sealRows
		head := b.seal(int64(rows) + seals - 1) // with the rows that told the heads before
		if head.Number != seals || b.count(`SELECT count(*) FROM published`) != int(seals) {
			t.Errorf("%d rows: head %s, %d told", rows, head, b.count(`SELECT count(*) FROM published`))
		}
		if v, err := b.verify(Head{}, Head{}); err != nil || v.Seals != seals || v.Unsealed != 1 {
			t.Errorf("%d rows: %+v, %v", rows, v, err)
		}
	}
}

// Invariant 1: a row whose transaction is slow is in no seal that goes past it.
func TestInvariant1LateCommit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	slow, err := b.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Rollback(context.WithoutCancel(ctx)) }()
	late := uuid.Must(uuid.NewV7())
	if _, err := slow.Exec(ctx, `INSERT INTO audit_events (id, at, kind, link_id) VALUES ($1, now(), 'link.opened', $2)`, late, b.link); err != nil {
		t.Fatal(err)
	}
	b.opened(1) // later, and committed

	b.sealer.patience = time.Minute
	sealed := make(chan Sealed)
	go func() {
		done, err := b.sealer.Seal(ctx)
		if err != nil {
			t.Error(err)
		}
		sealed <- done
	}()
	for b.count(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = $1
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, Lock&0xffffffff) == 0 {
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	if n := b.count(`SELECT count(*) FROM audit_seals`); n != 0 {
		t.Errorf("%d seals while a writer was under way", n)
	}
	if other, err := b.sealer.Seal(ctx); !errors.Is(err, ErrSealing) {
		t.Errorf("another Seal at the same time: %+v, %v", other, err)
	}
	if err := slow.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if done := <-sealed; done.Rows != 2 {
		t.Errorf("sealed %+v, want both rows", done)
	}
	if v, err := b.verify(Head{}, Head{}); err != nil || v.Rows != 2 {
		t.Errorf("%+v, %v", v, err)
	}
}

// A transaction that does not end holds up seals only, and is named.
func TestSealHeldUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	var pid int32
	err := pgx.BeginFunc(ctx, b.owner, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `INSERT INTO audit_events (id, at, kind, link_id) VALUES (gen_random_uuid(), now(), 'link.opened', $1) RETURNING pg_backend_pid()`, b.link).Scan(&pid); err != nil {
			return err
		}
		b.opened(1)
		b.sealer.patience = time.Millisecond
		done, err := b.sealer.Seal(ctx)
		var held *HeldUpError
		if !errors.As(err, &held) || held.PID != pid || done.Rows != 0 {
			t.Errorf("%+v, %v; want to be held up by %d", done, err, pid)
		}
		return pgx.ErrTxCommitRollback // any
	})
	if !errors.Is(err, pgx.ErrTxCommitRollback) {
		t.Fatal(err)
	}
	b.seal(1)
}

// Invariant 1 by chance: whoever commits, rolls back or takes long, what is sealed is whole.
func TestSealWhileManyWrite(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.sealer.patience = time.Minute
	var writers sync.WaitGroup
	for range 6 {
		writers.Go(func() {
			for n := range 60 {
				tx, err := b.pool.Begin(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				for range 1 + rand.IntN(3) {
					if _, err := tx.Exec(t.Context(), `INSERT INTO audit_events (id, at, kind, link_id) VALUES ($1, now(), 'link.opened', $2)`, uuid.Must(uuid.NewV7()), b.link); err != nil {
						t.Error(err)
					}
				}
				end := tx.Commit
				if n%5 == 0 {
					end = tx.Rollback
				}
				if err := end(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	through := make(chan struct{})
	go func() { writers.Wait(); close(through) }()
	for writing := true; writing; {
		select {
		case <-through:
			writing = false // and once more
		default:
		}
		if _, err := b.sealer.Seal(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	v, err := b.verify(Head{}, Head{})
	if all := b.count(`SELECT count(*) FROM audit_events`); err != nil || v.Seals < 1 || int(v.Rows+v.Unsealed) != all || v.Unsealed != 1 {
		t.Errorf("%+v of %d rows, %v", v, all, err)
	}
}

// The hashes are what docs/audit.md says, computed from binary COPY.
func TestHashesAreThoseOfBinaryCopy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.opened(2)
	b.exec(`INSERT INTO audit_events (id, at, kind, detail) VALUES (gen_random_uuid(), now(), 'request.rejected', '{"reason": "ü", "code": 1.50}')`)
	head := b.seal(3)
	conn, err := b.owner.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var out bytes.Buffer
	if _, err := conn.Conn().PgConn().CopyTo(t.Context(), &out, `COPY (SELECT seq, id, at, kind, link_id, request_id, click_id, detail::text, visitor_hash
		FROM audit_events WHERE seq <= (SELECT last_seq FROM audit_seals WHERE number = 1) ORDER BY seq) TO STDOUT (FORMAT binary)`); err != nil {
		t.Fatal(err)
	}
	var at time.Time
	var lastSeq int64
	if err := conn.QueryRow(t.Context(), `SELECT last_seq, sealed_at FROM audit_seals`).Scan(&lastSeq, &at); err != nil {
		t.Fatal(err)
	}
	stream := out.Bytes()[11+4+4:] // signature, flags, length of the header's extension
	in := append([]byte("latchkey seal 1\n"), make([]byte, 32)...)
	for _, f := range []int64{1, lastSeq, at.UnixMicro(), 3} {
		in = binary.BigEndian.AppendUint64(in, uint64(f))
	}
	for range 3 {
		if fields := binary.BigEndian.Uint16(stream); fields != 9 {
			t.Fatalf("%d fields", fields)
		}
		end := 2
		for range 9 {
			length := int32(binary.BigEndian.Uint32(stream[end:]))
			end += 4 + int(max(0, length))
		}
		sum := sha256.Sum256(stream[2:end])
		in, stream = append(in, sum[:]...), stream[end:]
	}
	if sum := sha256.Sum256(in); sum != head.Hash {
		t.Errorf("computed %x, sealed %x", sum, head.Hash)
	}
}

// The worker's role can't choose a row's place, nor change a seal.
func TestWorkersRights(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.opened(1)
	b.seal(1)
	for _, sql := range []string{
		`INSERT INTO audit_events (id, at, kind, seq) VALUES (gen_random_uuid(), now(), 'request.rejected', 1)`,
		`SELECT setval('audit_events_seq', 1)`, `UPDATE audit_seals SET last_seq = 0`, `DELETE FROM audit_seals`, `TRUNCATE audit_seals`,
		`INSERT INTO audit_seals (number, last_seq, sealed_at, ids, marks, hash) SELECT 2, 9223372036854775807, now(), ids, marks, hash FROM audit_seals`,
		`INSERT INTO audit_seals (number, last_seq, sealed_at, ids, marks, hash) SELECT 3, last_seq + 1, now(), ids, marks, hash FROM audit_seals`,
		`SELECT audit_add_months('-infinity')`, `DELETE FROM audit_visitors`, `DELETE FROM links`, `DELETE FROM spent_request_ids`,
	} {
		if _, err := b.pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("the worker may %s", sql)
		}
	}
	for _, sql := range []string{`UPDATE audit_seals SET last_seq = 0`, `DELETE FROM audit_seals`, `TRUNCATE audit_seals`, `TRUNCATE audit_events_others`} {
		if _, err := b.owner.Exec(t.Context(), sql); err == nil {
			t.Errorf("the owner may %s with the triggers on", sql)
		}
	}
}

func TestParseHead(t *testing.T) {
	t.Parallel()
	h := Head{Number: 42, Hash: sha256.Sum256([]byte("x"))}
	if got, err := ParseHead(" " + h.String() + "\n"); got != h || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "42", "42:", "0:" + h.String()[3:], "-1:" + h.String()[3:], h.String() + "00", "x:" + h.String()[3:]} {
		if got, err := ParseHead(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}
