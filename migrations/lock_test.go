package migrations

import (
	"testing"
	"time"
)

// A migration that wants two tables, and a click that has the one and wants the other: the click goes first, without an
// error, and the migration gets both behind it.
func TestMigrationsLetOthersGoFirst(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	up(t, pool)
	click, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = click.Rollback(t.Context()) }()
	if _, err := click.Exec(t.Context(), `LOCK TABLE links IN ROW EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	migrated := make(chan error, 1)
	go func() {
		_, err := pool.Exec(t.Context(), `SELECT lock_tables('clicks, links', 'SHARE ROW EXCLUSIVE')`)
		migrated <- err
	}()
	waiting := func() (n int) {
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'links'::regclass`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for began := time.Now(); waiting() == 0; { // so it has clicks
		if time.Since(began) > 5*time.Second {
			t.Fatal("the migration waits for no lock")
		}
	}
	if _, err := click.Exec(t.Context(), `LOCK TABLE clicks IN ROW EXCLUSIVE MODE`); err != nil {
		t.Fatalf("the click: %v", err)
	}
	if err := click.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-migrated; err != nil {
		t.Fatalf("the migration: %v", err)
	}
}
