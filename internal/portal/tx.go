package portal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// InTx runs f in a transaction and commits it when f returns nil. What needs no answer is sent
// together with the next statement that does: BEGIN goes with the first one, and what f leaves
// unsent goes with COMMIT. On a busy machine each round trip waits twice for a processor, and those
// waits, not the disk, were most of a click's time.
//
// So an error of tx.Exec is returned by the next Query or by the commit, and its command tag is
// empty. After an error nothing of f is durable, but for an error of the commit itself, after
// which it may be.
func InTx(ctx context.Context, pool *pgxpool.Pool, f func(tx *Tx) error) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer conn.Release() // closes a connection whose transaction is open still
	tx := &Tx{conn: conn.Conn(), unsent: &pgx.Batch{}}
	tx.unsent.Queue("begin")
	if err = cmp.Or(f(tx), tx.failed); err == nil {
		err = tx.Commit(ctx)
	}
	err = cmp.Or(tx.failed, err) // the first that failed: what was sent behind it only says so
	if err != nil {
		_ = tx.Rollback(ctx)
		return err
	}
	for _, f := range tx.committed {
		f()
	}
	return nil
}

// Tx is InTx's transaction, as far as our code and River's insert use a pgx.Tx.
type Tx struct {
	conn   *pgx.Conn
	unsent *pgx.Batch
	later  int   // QueryLaters among the unsent
	failed error // of what reads the answer of one

	committed []func()
	handed    map[IDRange][]EventRow
}

// AfterCommit has f called once the transaction is committed for sure. A crash, or a commit whose answer was
// lost, comes between.
func (tx *Tx) AfterCommit(f func()) { tx.committed = append(tx.committed, f) }

// HandOver keeps the event rows of a range of ids, which this transaction writes, for who publishes them, so
// that they need not be read again.
func (tx *Tx) HandOver(ids IDRange, rows []EventRow) {
	if tx.handed == nil {
		tx.handed = map[IDRange][]EventRow{}
	}
	tx.handed[ids] = rows
}

// HandedOver are the rows of ranges, if all were handed over.
func (tx *Tx) HandedOver(ranges ...IDRange) (rows []EventRow, ok bool) {
	for _, r := range ranges {
		handed, ok := tx.handed[r]
		if !ok {
			return nil, false
		}
		rows = append(rows, handed...)
	}
	return rows, true
}

// QueryLater sends a query along with the next one that waits for an answer, or with COMMIT, before which read gets
// its rows. An error of either is InTx's; one of read comes too late to keep a COMMIT from taking effect that was sent
// along.
func (tx *Tx) QueryLater(read func(pgx.Rows) error, sql string, args ...any) {
	tx.later++
	tx.unsent.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		err := read(rows)
		tx.failed = cmp.Or(tx.failed, err)
		return err
	})
}

// Await returns when each QueryLater has its answer: at once, where one that waits was sent since.
func (tx *Tx) Await(ctx context.Context) error {
	if tx.later > 0 {
		if err := tx.SendBatch(ctx, &pgx.Batch{}).Close(); err != nil {
			return err
		}
	}
	return tx.failed
}

// Exec sends nothing yet.
func (tx *Tx) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	tx.unsent.Queue(sql, args...)
	return pgconn.CommandTag{}, nil
}

// SendBatch sends a batch behind what is unsent. Its results are the batch's own.
func (tx *Tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	before := tx.unsent
	tx.unsent, tx.later = &pgx.Batch{}, 0
	queued := before.QueuedQueries
	before.QueuedQueries = slices.Concat(queued, b.QueuedQueries)
	results := tx.conn.SendBatch(ctx, before)
	for _, q := range queued { // an error stays in the results, and is what they answer from here on
		if q.Fn != nil {
			_ = q.Fn(results)
		} else {
			_, _ = results.Exec()
		}
	}
	return results
}

// Query sends a query behind what is unsent.
func (tx *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	b := &pgx.Batch{}
	b.Queue(sql, args...)
	results := tx.SendBatch(ctx, b)
	rows, err := results.Query()
	if err != nil {
		_ = results.Close()
		return rows, err
	}
	return &batchRows{Rows: rows, results: results}, nil
}

// QueryRow sends a query behind what is unsent.
func (tx *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := tx.Query(ctx, sql, args...)
	return &batchRow{rows, err}
}

// Commit sends what is unsent, and COMMIT.
func (tx *Tx) Commit(ctx context.Context) error {
	b := &pgx.Batch{}
	var tag pgconn.CommandTag
	b.Queue("commit").Exec(func(t pgconn.CommandTag) error { tag = t; return nil })
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	if tag.String() == "ROLLBACK" { // Postgres' answer to the commit of a transaction that has failed
		return pgx.ErrTxCommitRollback
	}
	return nil
}

// Rollback drops what is unsent, and ends the transaction where one was begun.
func (tx *Tx) Rollback(ctx context.Context) error {
	tx.unsent = &pgx.Batch{}
	if tx.conn.IsClosed() || tx.conn.PgConn().TxStatus() == 'I' {
		return nil
	}
	_, err := tx.conn.Exec(ctx, "rollback")
	return err
}

// Conn is the connection; a statement sent on it overtakes what is unsent.
func (tx *Tx) Conn() *pgx.Conn { return tx.conn }

// Begin is not supported: nothing here needs a savepoint.
func (tx *Tx) Begin(context.Context) (pgx.Tx, error) { return nil, errors.ErrUnsupported }

// CopyFrom is not supported: COPY can't be sent along with other statements.
func (tx *Tx) CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error) {
	return 0, errors.ErrUnsupported
}

// Prepare is not supported: pgx prepares and keeps each statement that it sends.
func (tx *Tx) Prepare(context.Context, string, string) (*pgconn.StatementDescription, error) {
	return nil, errors.ErrUnsupported
}

// LargeObjects can't be used.
func (tx *Tx) LargeObjects() pgx.LargeObjects { return pgx.LargeObjects{} }

// batchRows gives the connection free with the last row.
type batchRows struct {
	pgx.Rows
	results pgx.BatchResults
}

// Next closes the rows behind the last one.
func (r *batchRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

// Close may be called more than once. Its error, if any, is the rows' Err.
func (r *batchRows) Close() {
	r.Rows.Close()
	_ = r.results.Close()
}

// batchRow is the first row of a query.
type batchRow struct {
	rows pgx.Rows
	err  error
}

// Scan returns pgx.ErrNoRows where there is none.
func (r *batchRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		return cmp.Or(r.rows.Err(), pgx.ErrNoRows)
	}
	err := r.rows.Scan(dest...)
	r.rows.Close()
	return cmp.Or(err, r.rows.Err())
}
