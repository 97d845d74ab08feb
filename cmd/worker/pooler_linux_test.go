package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"latchkey/internal/rig"
	"latchkey/migrations"
)

// findPgBouncer returns the path of PgBouncer. Without one the test is skipped, but never in CI.
func findPgBouncer(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const missing = "no PgBouncer: install it (Debian: apt install pgbouncer)"
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// pgbouncer starts one before the deployment's database, with more settings, and returns its address in
// each pool_mode.
func (d *deployment) pgbouncer(settings string, modes ...string) (urls map[string]string) {
	d.t.Helper()
	program := findPgBouncer(d.t)
	behind, err := pgx.ParseConfig(d.database)
	if err != nil {
		d.t.Fatal(err)
	}
	address := rig.FreePort()
	_, port, _ := strings.Cut(address, ":")
	var ini strings.Builder
	fmt.Fprintln(&ini, "[databases]")
	urls = map[string]string{}
	for _, mode := range modes {
		fmt.Fprintf(&ini, "%s = host=%s port=%d dbname=%s user=%s pool_mode=%s\n", mode, behind.Host, behind.Port, behind.Database, behind.User, mode)
		urls[mode] = (&url.URL{Scheme: "postgres", User: url.User("anybody"), Host: address, Path: "/" + mode, RawQuery: "sslmode=disable"}).String()
	}
	fmt.Fprintf(&ini, "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %s\nunix_socket_dir =\nauth_type = any\ndefault_pool_size = 40\n%s\n", port, settings)
	if os.Geteuid() == 0 { // it refuses to be root, as Postgres does, and the way to that is open to its user only
		fmt.Fprintln(&ini, "user = postgres")
	}
	file := filepath.Join(d.t.TempDir(), "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(ini.String()), 0o644); err != nil {
		d.t.Fatal(err)
	}
	log := &logBuffer{}
	cmd := exec.Command(program, file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var last error
	d.until("PgBouncer to answer", func() bool {
		var conn *pgx.Conn
		if conn, last = pgx.Connect(d.t.Context(), urls[modes[0]]); last == nil {
			_ = conn.Close(d.t.Context())
		}
		return last == nil
	})
	return urls
}

// Behind PgBouncer a worker works where sessions stay, and says why not where they don't: a statement
// under another one's role and settings would not fail, it would do something else.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	urls := d.pgbouncer("", "session", "transaction", "statement")
	for _, mode := range []string{"transaction", "statement"} {
		in := d.launch(func(c *Config) { c.DatabaseURL = urls[mode] })
		err := in.untilEnded(t)
		if err == nil || !strings.Contains(err.Error(), "set pool_mode = session") {
			t.Errorf("%s mode: %v", mode, err)
		}
		for _, args := range [][]string{{"check"}, {"migrate"}} {
			code, out := d.command([]string{"DATABASE_URL=" + urls[mode], "LINK_BASE_URL=" + in.click}, args...)
			if code != 1 || !strings.Contains(out, "set pool_mode = session") {
				t.Errorf("worker %s in %s mode: exit %d\n%s", args[0], mode, code, out)
			}
		}
	}

	in := d.start(func(c *Config) { c.DatabaseURL = urls["session"] })
	link := d.link(request("pooled"))
	if status, _, _ := d.do(http.MethodPost, link.URL); status != http.StatusSeeOther {
		t.Errorf("a click: %d", status)
	}
	d.eventIDs(t.Context(), 2)
	if code, out := d.command([]string{"DATABASE_URL=" + urls["session"], "LINK_BASE_URL=" + in.click}, "check"); code != 0 {
		t.Errorf("worker check in session mode: exit %d\n%s", code, out)
	}
	if err := in.stop(); err != nil { // before PgBouncer
		t.Error(err)
	}
	pool, err := plainPool(t.Context(), urls["session"])
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Errorf("migrate in session mode: %v", err)
	}
}

// With many idle servers in the pooler, the two sessions that are compared are still found not to stay,
// whether it hands out the server used last or the one idle for longest.
func TestIdleServersHideNoTransactionMode(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	for _, settings := range []string{"server_round_robin = 0", "server_round_robin = 1"} {
		address := d.pgbouncer(settings, "transaction")["transaction"]
		d.useServers(address, 10)
		for range 10 {
			if _, err := plainPool(t.Context(), address); !errors.Is(err, errPooled) {
				t.Fatalf("%s: %v", settings, err)
			}
		}
	}
}

// useServers has the pooler open n servers, which are idle then.
func (d *deployment) useServers(address string, n int) {
	d.t.Helper()
	var clients []*pgx.Conn
	for _, sql := range []string{"BEGIN", "COMMIT"} {
		for i := range n {
			if sql == "BEGIN" {
				conn, err := pgx.Connect(d.t.Context(), address)
				if err != nil {
					d.t.Fatal(err)
				}
				d.t.Cleanup(func() { _ = conn.Close(context.Background()) })
				clients = append(clients, conn)
			}
			if _, err := clients[i].Exec(d.t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				d.t.Fatal(err)
			}
		}
	}
}
