// Package testkit gives tests a real Postgres and a real NATS.
//
// One Postgres runs for each test process, from its first use to its end. It
// starts from a copy of a cluster that is made once for each user and version of
// Postgres, without fsync, so it is up in a fraction of a second. Each test gets
// a database of its own, copied inside the server from one that was migrated
// once. NATS runs inside the test process, one server for each call.
//
// Invariants:
//
//  1. Tests share no state: every database and every NATS server has one user.
//  2. A server missing from the machine fails the test and says what to do; it
//     never skips it.
//  3. Servers and their files end with the test process. Where that was killed,
//     the kernel stops the server (Linux), and the next test process on this
//     machine removes the files.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }
package testkit

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"latchkey/internal/stack"
)

// templateDB is what the databases of the tests are copies of.
const templateDB = "testkit_template"

// patience bounds each thing that is asked of a server here; none should take
// anywhere near as long.
const patience = 2 * time.Minute

// Main runs the tests, stops what was started for them, and checks that no
// goroutine is left. It returns the exit code for os.Exit.
func Main(m *testing.M, leaks ...goleak.Option) int {
	flag.Parse()
	// Tests that use servers wait for most of their time: with one for each processor, those idle.
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
			fmt.Fprintln(os.Stderr, "testkit:", err)
			return 1
		}
	}
	code := m.Run()
	if one.pg != nil {
		if err := stopPostgres(one.pg, one.dir); err != nil {
			fmt.Fprintln(os.Stderr, "testkit:", err)
			code = max(code, 1)
		}
	}
	if code != 0 {
		return code // a failed test leaves goroutines behind; they are not the news
	}
	if err := goleak.Find(leaks...); err != nil {
		fmt.Fprintln(os.Stderr, "testkit: goroutines left at the end:", err)
		return 1
	}
	return 0
}

// one is the server of this process.
var one struct {
	start sync.Once
	pg    *stack.Postgres
	dir   string
	err   error

	migrate    sync.Once
	migrateErr error
}

// Postgres returns the URL of the superuser's connection to this process's
// server, for tests that make their own databases. Most want Database.
func Postgres(t testing.TB) (adminURL string) {
	t.Helper()
	one.start.Do(func() { one.pg, one.dir, one.err = startPostgres(settings) })
	if one.err != nil {
		t.Fatalf("testkit: no Postgres for the tests: %v", one.err)
	}
	return one.pg.URL("postgres")
}

// OwnPostgres starts a server for one test, for what can't be asked of the shared one: settings come on top of its.
func OwnPostgres(t testing.TB, change map[string]string) *stack.Postgres {
	t.Helper()
	own := maps.Clone(settings)
	maps.Copy(own, change)
	pg, dir, err := startPostgres(own)
	if err != nil {
		t.Fatalf("testkit: no Postgres for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := stopPostgres(pg, dir); err != nil {
			t.Errorf("testkit: %v", err)
		}
	})
	return pg
}

// Database returns the URL of a fresh database, dropped at the end of the test
// whoever is still connected. migrate is called once in the life of the process,
// on the database that all others are copies of; so a process has one migrate
// function. With nil the database is empty.
func Database(t testing.TB, migrate func(ctx context.Context, url string) error) (url string) {
	t.Helper()
	admin := Postgres(t)
	template := "template1"
	if migrate != nil {
		template = templateDB
		one.migrate.Do(func() { one.migrateErr = makeTemplate(admin, migrate) })
		if one.migrateErr != nil {
			t.Fatalf("testkit: template database: %v", one.migrateErr)
		}
	}
	name := "test_" + strings.ToLower(rand.Text())
	if err := exec(admin, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		t.Fatalf("testkit: database for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := exec(admin, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("testkit: drop the test's database: %v", err)
		}
	})
	return one.pg.URL(name)
}

// makeTemplate migrates the template and closes it: a forgotten connection to it
// would make every later copy fail.
func makeTemplate(admin string, migrate func(context.Context, string) error) error {
	if err := exec(admin, "CREATE DATABASE "+templateDB); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := migrate(ctx, one.pg.URL(templateDB)); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return exec(admin, "ALTER DATABASE "+templateDB+" WITH ALLOW_CONNECTIONS false")
}

func exec(url, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// NATS returns the URL of a fresh NATS server with JetStream, stopped at the end
// of the test.
func NATS(t testing.TB) (url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ns, err := stack.StartNATS(ctx, stack.NATSConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	t.Cleanup(func() {
		if err := ns.Stop(); err != nil {
			t.Errorf("testkit: %v", err)
		}
	})
	return ns.URL()
}

// Cluster starts a Postgres of the test's own in dir, for tests that start and stop one or need a second
// cluster. With a dir that had one before, it goes on with its data, at the same URL.
func Cluster(t testing.TB, dir string) *stack.Postgres {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pg, err := stack.StartPostgres(ctx, clusterConfig(dir, "", settings))
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(pg.Stop(ctx), stack.RemovePostgres(dir)); err != nil {
			t.Errorf("testkit: %v", err)
		}
	})
	return pg
}
