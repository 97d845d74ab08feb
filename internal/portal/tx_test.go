package portal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/testkit"
)

// txPool has one connection, so that one which a transaction keeps is missed, and a table t.
func txPool(t *testing.T) (*pgxpool.Pool, *testkit.Commits) {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(testkit.Database(t, migrate))
	if err != nil {
		t.Fatal(err)
	}
	faults := &testkit.Commits{}
	faults.Install(cfg.ConnConfig)
	cfg.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE t (n int PRIMARY KEY)`); err != nil {
		t.Fatal(err)
	}
	return pool, faults
}

func numbers(t *testing.T, pool *pgxpool.Pool) []int {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT n FROM t ORDER BY n`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func add(t *testing.T, tx pgx.Tx, n int) {
	t.Helper()
	if _, err := tx.Exec(t.Context(), `INSERT INTO t VALUES ($1)`, n); err != nil {
		t.Errorf("Exec answers before it is sent: %v", err)
	}
}

// All that a transaction may do, in the order in which it is told.
func TestInTxCommits(t *testing.T) {
	t.Parallel()
	pool, _ := txPool(t)
	err := InTx(t.Context(), pool, func(tx *Tx) error {
		add(t, tx, 1)
		rows, err := tx.Query(t.Context(), `SELECT n FROM t`) // sees what was queued
		if err != nil {
			return err
		}
		if got, err := pgx.CollectRows(rows, pgx.RowTo[int]); !slices.Equal(got, []int{1}) || err != nil {
			t.Errorf("%v, %v", got, err)
		}
		add(t, tx, 2)
		var n int
		if err := tx.QueryRow(t.Context(), `SELECT max(n) FROM t`).Scan(&n); n != 2 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if err := tx.QueryRow(t.Context(), `SELECT n FROM t WHERE n > 2`).Scan(&n); !errors.Is(err, pgx.ErrNoRows) {
			t.Errorf("no row: %v", err)
		}
		if err := tx.QueryRow(t.Context(), `SELECT n FROM t ORDER BY n`).Scan(&n); n != 1 || err != nil { // and drops the second row
			t.Errorf("%d, %v", n, err)
		}
		add(t, tx, 3)
		b := &pgx.Batch{}
		b.Queue(`INSERT INTO t VALUES (4), (5)`)
		b.Queue(`SELECT count(*) FROM t`)
		results := tx.SendBatch(t.Context(), b)
		if tag, err := results.Exec(); tag.RowsAffected() != 2 || err != nil {
			t.Errorf("the batch's first result: %s, %v", tag, err)
		}
		if err := results.QueryRow().Scan(&n); n != 5 || err != nil {
			t.Errorf("the batch's second: %d, %v", n, err)
		}
		if err := results.Close(); err != nil {
			return err
		}
		add(t, tx, 6)
		return nil
	})
	if got := numbers(t, pool); !slices.Equal(got, []int{1, 2, 3, 4, 5, 6}) || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// Whatever fails, nothing of it is there, and the next transaction finds a connection.
func TestInTxFails(t *testing.T) {
	t.Parallel()
	own := errors.New("own")
	unique := func(err error) bool {
		var pg *pgconn.PgError
		return errors.As(err, &pg) && pg.Code == "23505"
	}
	for name, c := range map[string]struct {
		f    func(t *testing.T, tx pgx.Tx) error
		want func(error) bool
	}{
		"by its function":             {func(*testing.T, pgx.Tx) error { return own }, func(err error) bool { return errors.Is(err, own) }},
		"with something unsent":       {func(t *testing.T, tx pgx.Tx) error { t.Helper(); add(t, tx, 1); return own }, func(err error) bool { return errors.Is(err, own) }},
		"at the commit":               {func(t *testing.T, tx pgx.Tx) error { t.Helper(); add(t, tx, 1); add(t, tx, 1); return nil }, unique},
		"though the error is ignored": {ignoresItsError, func(err error) bool { return errors.Is(err, pgx.ErrTxCommitRollback) }},
		"at the next query": {func(t *testing.T, tx pgx.Tx) error {
			t.Helper()
			add(t, tx, 1)
			add(t, tx, 1)
			_, err := tx.Query(t.Context(), `SELECT 1`)
			return err
		}, unique},
		"at the next row": {func(t *testing.T, tx pgx.Tx) error {
			t.Helper()
			add(t, tx, 1)
			add(t, tx, 1)
			var n int
			return tx.QueryRow(t.Context(), `SELECT 1`).Scan(&n)
		}, unique},
		"at the next batch": {func(t *testing.T, tx pgx.Tx) error {
			t.Helper()
			add(t, tx, 1)
			add(t, tx, 1)
			b := &pgx.Batch{}
			b.Queue(`INSERT INTO t VALUES (2)`)
			return tx.SendBatch(t.Context(), b).Close()
		}, unique},
		"while rows are read": {func(t *testing.T, tx pgx.Tx) error {
			t.Helper()
			add(t, tx, 1)
			rows, err := tx.Query(t.Context(), `SELECT 1 / (3 - n) FROM generate_series(1, 5) n`)
			if err != nil {
				return err
			}
			_, err = pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		}, func(err error) bool { var pg *pgconn.PgError; return errors.As(err, &pg) && pg.Code == "22012" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, _ := txPool(t)
			if err := InTx(t.Context(), pool, func(tx *Tx) error { return c.f(t, tx) }); !c.want(err) {
				t.Errorf("%v", err)
			}
			if got := numbers(t, pool); len(got) != 0 {
				t.Errorf("%v were written", got)
			}
			if err := InTx(t.Context(), pool, func(tx *Tx) error { add(t, tx, 7); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
}

// A question asked for later has its answer with the next that waits for one, or by Await.
func TestQueryLater(t *testing.T) {
	t.Parallel()
	pool, _ := txPool(t)
	collect := func(to *[]int) func(pgx.Rows) error {
		return func(rows pgx.Rows) (err error) {
			*to, err = pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		}
	}
	err := InTx(t.Context(), pool, func(tx *Tx) error {
		var before, after []int
		add(t, tx, 1)
		tx.QueryLater(collect(&before), `SELECT n FROM t`)
		add(t, tx, 2)
		tx.QueryLater(collect(&after), `SELECT n FROM t ORDER BY n`)
		var n int
		if err := tx.QueryRow(t.Context(), `SELECT count(*) FROM t`).Scan(&n); n != 2 || err != nil {
			t.Errorf("the next query: %d, %v", n, err)
		}
		if !slices.Equal(before, []int{1}) || !slices.Equal(after, []int{1, 2}) {
			t.Errorf("answers: %v, %v", before, after)
		}
		add(t, tx, 3)
		if err := tx.Await(t.Context()); err != nil || tx.unsent.Len() != 1 {
			t.Errorf("nothing to wait for, but %d statements are left: %v", tx.unsent.Len(), err)
		}
		tx.QueryLater(collect(&after), `SELECT n FROM t ORDER BY n`)
		if err := tx.Await(t.Context()); err != nil || !slices.Equal(after, []int{1, 2, 3}) {
			t.Errorf("awaited: %v, %v", after, err)
		}
		return nil
	})
	if got := numbers(t, pool); !slices.Equal(got, []int{1, 2, 3}) || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// The error is that of the question, or of its reader, and not what was sent behind it says. Only the reader of
// what went along with COMMIT comes too late.
func TestQueryLaterFails(t *testing.T) {
	t.Parallel()
	pool, _ := txPool(t)
	own := errors.New("own")
	read := func(rows pgx.Rows) error {
		rows.Close()
		if rows.Err() != nil {
			return fmt.Errorf("ask: %w", rows.Err())
		}
		return own
	}
	for sql, want := range map[string]string{`SELECT 1`: "own", `SELECT 1 / (SELECT 0)`: "ask: ERROR: division by zero (SQLSTATE 22012)"} {
		for name, next := range map[string]func(tx *Tx) error{
			"the commit": func(*Tx) error { return nil },
			"a query": func(tx *Tx) error {
				rows, err := tx.Query(t.Context(), `SELECT 1`)
				rows.Close()
				return err
			},
			"Await": func(tx *Tx) error { return tx.Await(t.Context()) },
		} {
			err := InTx(t.Context(), pool, func(tx *Tx) error {
				add(t, tx, 1)
				tx.QueryLater(read, sql)
				return next(tx)
			})
			var written []int
			if sql == `SELECT 1` && name == "the commit" {
				written = []int{1}
			}
			if got := numbers(t, pool); err == nil || err.Error() != want || !slices.Equal(got, written) {
				t.Errorf("%s, then %s: %v, and %v are written", sql, name, err, got)
			}
			if _, err := pool.Exec(t.Context(), `DELETE FROM t`); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// ignoresItsError commits a transaction that Postgres has given up: it must not seem to be done.
func ignoresItsError(t *testing.T, tx pgx.Tx) error {
	t.Helper()
	add(t, tx, 1)
	add(t, tx, 1)
	if rows, err := tx.Query(t.Context(), `SELECT 1`); err == nil {
		rows.Close()
		t.Error("the query hides the error of what went before it")
	}
	return nil
}

// A commit that breaks is an error whether it took effect or not, and costs one connection only.
func TestInTxCommitBreaks(t *testing.T) {
	t.Parallel()
	pool, faults := txPool(t)
	for i, fate := range []testkit.Fate{testkit.Failed, testkit.FailedButTook} {
		faults.Script(fate)
		if err := InTx(t.Context(), pool, func(tx *Tx) error { add(t, tx, i); return nil }); !errors.Is(err, testkit.ErrFault) {
			t.Errorf("fate %d: %v", fate, err)
		}
	}
	if got := numbers(t, pool); !slices.Equal(got, []int{1}) {
		t.Errorf("%v were written", got)
	}
}

// A panic, rows left open and an end of the context give the connection back, or close it.
func TestInTxGivesTheConnectionBack(t *testing.T) {
	t.Parallel()
	pool, _ := txPool(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = InTx(t.Context(), pool, func(tx *Tx) error {
			add(t, tx, 1)
			rows, err := tx.Query(t.Context(), `SELECT 1`)
			if err != nil {
				return err
			}
			defer rows.Close()
			panic("of the test")
		})
	}()
	if err := InTx(t.Context(), pool, func(tx *Tx) error {
		add(t, tx, 2)
		_, err := tx.Query(t.Context(), `SELECT generate_series(1, 100000)`) //nolint:sqlclosecheck,rowserrcheck // left open is what is tried
		return err
	}); err == nil {
		t.Error("committed with rows left open")
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := InTx(ctx, pool, func(tx *Tx) error {
		add(t, tx, 3)
		var n int
		if err := tx.QueryRow(ctx, `SELECT 1`).Scan(&n); err != nil {
			return err
		}
		cancel()
		add(t, tx, 4)
		return nil
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if got := numbers(t, pool); len(got) != 0 {
		t.Errorf("%v were written", got)
	}
}
