package testkit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

var migrated atomic.Int32

func migrate(ctx context.Context, url string) error {
	migrated.Add(1)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE TABLE t (n int NOT NULL)")
	return errors.Join(err, conn.Close(ctx))
}

func TestDatabasesAreMigratedOnceAndShareNothing(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			conn, err := pgx.Connect(ctx, testkit.Database(t, migrate))
			if err != nil {
				t.Fatal(err)
			}
			// Left open until after the test on purpose: the drop must not mind.
			t.Cleanup(func() { _ = conn.Close(context.Background()) })
			var rows int
			if err := conn.QueryRow(ctx, "SELECT count(*) FROM t").Scan(&rows); err != nil || rows != 0 {
				t.Fatalf("a fresh database has %d rows (%v), want 0", rows, err)
			}
			if _, err := conn.Exec(ctx, "INSERT INTO t SELECT generate_series(1, 100)"); err != nil {
				t.Fatal(err)
			}
			if n := migrated.Load(); n != 1 {
				t.Errorf("migrated %d times, want once", n)
			}
		})
	}
}

func TestDatabaseIsDroppedWhoeverIsConnected(t *testing.T) {
	t.Parallel()
	var conn *pgx.Conn
	var name string
	t.Run("user", func(t *testing.T) {
		var err error
		if conn, err = pgx.Connect(context.Background(), testkit.Database(t, nil)); err != nil {
			t.Fatal(err)
		}
		name = conn.Config().Database
	})
	defer conn.Close(context.Background())
	admin, err := pgx.Connect(t.Context(), testkit.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	var left int
	if err := admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_database WHERE datname = $1", name).Scan(&left); err != nil || left != 0 {
		t.Errorf("database %s is still there (%v)", name, err)
	}
}

func TestCommitsAreSynchronous(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), testkit.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for setting, want := range map[string]string{
		"fsync": "off", "synchronous_commit": "on", "max_connections": "300",
		"server_encoding": "UTF8", "listen_addresses": "", "data_checksums": "on",
	} {
		var got string
		if err := conn.QueryRow(t.Context(), "SELECT current_setting($1)", setting).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %q (%v), want %q", setting, got, err, want)
		}
	}
}

func TestEachNATSIsItsOwn(t *testing.T) {
	t.Parallel()
	for i := range 2 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			nc, err := nats.Connect(testkit.NATS(t))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			// CreateStream fails where a stream of that name has another shape.
			_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{fmt.Sprintf("s.%d", i)}})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
