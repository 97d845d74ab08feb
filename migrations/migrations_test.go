package migrations

import (
	"context"
	"errors"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// open opens a pool; role, if any, is taken by each session.
func open(t *testing.T, url string, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 4
	if change != nil {
		change(cfg)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// setup gives an empty database.
func setup(t *testing.T) (*pgxpool.Pool, string) {
	t.Helper()
	url := testkit.Database(t, nil)
	return open(t, url, nil), url
}

// asApp takes the worker's role as cmd/worker does.
func asApp(cfg *pgxpool.Config) {
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE "+AppRole)
		return err
	}
}

func up(t *testing.T, pool *pgxpool.Pool) []Step {
	t.Helper()
	done, err := Up(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func wantRefused(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	_, err := pool.Exec(t.Context(), sql)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42501" {
		t.Errorf("%s: %v, want it refused", sql, err)
	}
}

func TestUpTwice(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	done := up(t, pool)
	for _, s := range done {
		if !s.Applied || s.Name == "" || s.Version < 1 {
			t.Errorf("step %+v", s)
		}
	}
	all, err := Status(t.Context(), pool)
	if err != nil || !slices.Equal(done, all) {
		t.Errorf("done %+v, status %+v (%v)", done, all, err)
	}
	if last := all[len(all)-1]; last.Line != "latchkey" || last.Name != "00010_search_paths.sql" || all[0].Line != "river" {
		t.Errorf("steps %+v", all)
	}
	if again := up(t, pool); len(again) != 0 {
		t.Errorf("a second Up did %+v", again)
	}
	if err := Check(t.Context(), pool); err != nil {
		t.Error(err)
	}
}

// Of many Ups at once, of one pool or of many, one does all of it and the others nothing.
func TestUpsAtOnce(t *testing.T) {
	t.Parallel()
	for about, pools := range map[string]int{"a pool each": 10, "one pool": 1} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			shared, url := setup(t)
			var (
				wg    sync.WaitGroup
				mu    sync.Mutex
				steps []int
			)
			for range 10 {
				pool := shared
				if pools > 1 {
					pool = open(t, url, nil)
				}
				wg.Go(func() {
					done, err := Up(t.Context(), pool)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					steps = append(steps, len(done))
					mu.Unlock()
				})
			}
			wg.Wait()
			slices.Sort(steps)
			if steps[8] != 0 || steps[9] < 2 {
				t.Errorf("steps done by each: %v", steps)
			}
			if err := Check(t.Context(), shared); err != nil {
				t.Error(err)
			}
		})
	}
}

// DATABASE_URL may ask for a pool of one.
func TestUpWithOneConnection(t *testing.T) {
	t.Parallel()
	_, url := setup(t)
	pool := open(t, url, func(c *pgxpool.Config) { c.MaxConns = 1 })
	if done := up(t, pool); len(done) == 0 {
		t.Error("nothing was done")
	}
	if err := Check(t.Context(), pool); err != nil {
		t.Error(err)
	}
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are still taken", n)
	}
}

func TestCheckOfAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	if err := Check(t.Context(), pool); !errors.Is(err, ErrBehind) || !strings.Contains(err.Error(), "river migration 1") {
		t.Errorf("%v, want ErrBehind", err)
	}
	steps, err := Status(t.Context(), pool)
	if err != nil || len(steps) < 2 || slices.ContainsFunc(steps, func(s Step) bool { return s.Applied }) {
		t.Errorf("status %+v (%v)", steps, err)
	}
	var tables int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&tables); err != nil || tables != 0 {
		t.Errorf("looking made %d tables (%v)", tables, err)
	}
}

// A database that stopped half-way is behind, and Up goes on from there.
func TestCheckOfAHalfMigratedDatabase(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE links ()`); err != nil { // in the way of ours
		t.Fatal(err)
	}
	done, err := Up(t.Context(), pool)
	if err == nil || !strings.Contains(err.Error(), "own migrations") || len(done) == 0 || done[len(done)-1].Line != "river" {
		t.Fatalf("%v after %+v", err, done)
	}
	if err := Check(t.Context(), pool); !errors.Is(err, ErrBehind) || !strings.Contains(err.Error(), "latchkey migration 1") {
		t.Errorf("%v, want ErrBehind", err)
	}
	if _, err := pool.Exec(t.Context(), `DROP TABLE links`); err != nil {
		t.Fatal(err)
	}
	if rest := up(t, pool); len(rest) != 10 || rest[0].Line != "latchkey" {
		t.Errorf("the second Up did %+v", rest)
	}
	if err := Check(t.Context(), pool); err != nil {
		t.Error(err)
	}
}

func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	pool.Close()
	if err := Check(t.Context(), pool); err == nil || errors.Is(err, ErrBehind) {
		t.Errorf("%v, want another error than ErrBehind", err)
	}
	if _, err := Up(t.Context(), pool); err == nil {
		t.Error("Up of a closed pool did something")
	}
}

// owner makes a role that is no superuser but may create roles, gives it the database, and
// returns its URL.
func owner(t *testing.T) string {
	t.Helper()
	admin := open(t, testkit.Postgres(t), nil)
	role := "owner_of_" + strings.ToLower(t.Name())
	exec := func(sql string) {
		if _, err := admin.Exec(context.Background(), sql); err != nil {
			t.Error(err)
		}
	}
	exec("CREATE ROLE " + role + " LOGIN CREATEROLE")
	t.Cleanup(func() { exec("DROP ROLE " + role) }) // after the database, which it owns
	raw := testkit.Database(t, nil)
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	exec("ALTER DATABASE " + strings.Trim(u.Path, "/") + " OWNER TO " + role)
	u.User = url.User(role)
	if q := u.Query(); q.Has("user") {
		q.Set("user", role)
		u.RawQuery = q.Encode()
	}
	return u.String()
}

// An operator's database user is seldom a superuser. Not parallel, and so ahead of all that are:
// it is this user who has to make the worker's role, which belongs to the whole cluster.
func TestOwnerWithoutSuperuser(t *testing.T) {
	url := owner(t)
	pool := open(t, url, nil)
	var super bool
	if err := pool.QueryRow(t.Context(), `SELECT rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&super); err != nil || super {
		t.Fatalf("superuser: %t (%v)", super, err)
	}
	up(t, pool)
	if again := up(t, pool); len(again) != 0 {
		t.Errorf("a second Up did %+v", again)
	}
	app := open(t, url, asApp)
	if err := Check(t.Context(), app); err != nil {
		t.Errorf("as %s: %v", AppRole, err)
	}
	wantRefused(t, app, `DELETE FROM audit_events`)
	wantRefused(t, pool, `TRUNCATE audit_events`)
}

func TestRightsOfTheWorker(t *testing.T) {
	t.Parallel()
	pool, url := setup(t)
	up(t, pool)
	app := open(t, url, asApp)
	const event = `INSERT INTO audit_events (id, at, kind) VALUES (gen_random_uuid(), now(), 'request.rejected')`
	if _, err := app.Exec(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`UPDATE audit_events SET kind = 'link.issued'`, `DELETE FROM audit_events`, `TRUNCATE audit_events`,
		`UPDATE latchkey_migrations SET is_applied = false`, `DELETE FROM river_migration`, `DROP TABLE river_job`, `CREATE TABLE mine ()`,
		`DROP TRIGGER audit_events_no_change ON audit_events`, `ALTER TABLE audit_events DISABLE TRIGGER ALL`,
	} {
		wantRefused(t, app, sql)
	}
	for _, sql := range []string{`UPDATE audit_events SET kind = 'link.issued'`, `DELETE FROM audit_events`, `TRUNCATE audit_events`} {
		wantRefused(t, pool, sql) // the owner: by the trigger
	}
	if err := Check(t.Context(), app); err != nil {
		t.Error(err)
	}
}

// The worker's role can do all that River does with its tables.
func TestRightsOnRiversTables(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	up(t, pool)
	rows, err := pool.Query(t.Context(), `SELECT relname, has_table_privilege('latchkey_app', oid, 'SELECT, INSERT, UPDATE, DELETE') IS TRUE
		AND has_table_privilege('latchkey_app', oid, 'SELECT') AND has_table_privilege('latchkey_app', oid, 'INSERT')
		AND has_table_privilege('latchkey_app', oid, 'UPDATE') AND has_table_privilege('latchkey_app', oid, 'DELETE')
		FROM pg_class WHERE relname LIKE 'river\_%' AND relkind = 'r' ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	var name string
	var all bool
	if _, err := pgx.ForEachRow(rows, []any{&name, &all}, func() error {
		names = append(names, name)
		if want := name != "river_migration"; all != want {
			t.Errorf("%s: all rights %t, want %t", name, all, want)
		}
		return nil
	}); err != nil || !slices.Contains(names, "river_job") {
		t.Errorf("%v, %v", names, err)
	}
}

// What was open when the release before this one stopped is the sweeper's within a minute.
func TestOpenClicksOfTheReleaseBefore(t *testing.T) {
	t.Parallel()
	pool, _ := setup(t)
	up(t, pool)
	if _, err := pool.Exec(t.Context(), `INSERT INTO links (id, request_id, request_hash, published_at, source, stripe_customer, session, key_id, created_at, expires_at)
		VALUES (gen_random_uuid(), 'r', sha256('x'), now(), 's', 'cus_x', '{}', 1, now(), now() + interval '1 hour');
		INSERT INTO clicks (id, link_id, started_at) SELECT gen_random_uuid(), id, now() FROM links`); err != nil {
		t.Fatal(err)
	}
	var soon bool
	if err := pool.QueryRow(t.Context(), `SELECT open_until BETWEEN now() AND now() + interval '1 minute' AND ticket IS NULL FROM clicks`).Scan(&soon); err != nil || !soon {
		t.Errorf("open_until of a click that names none: soon %t (%v)", soon, err)
	}
}
