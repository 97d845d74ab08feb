package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/stack"
	"latchkey/internal/testkit"
)

// postgresTool returns a program of the Postgres that the tests run on. Without it the test is skipped (a fetched
// Postgres brings the server only), but never in CI.
func postgresTool(t *testing.T, name string) string {
	t.Helper()
	dir, err := stack.FindPostgres()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if _, err := exec.LookPath(path); err == nil {
		return path
	}
	missing := "no " + name + " beside the server: install Postgres's client programs (Debian: apt install postgresql-client)"
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

func runTool(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(program), err, out)
	}
}

// The steps of docs/operating.md, "Backup", onto a new cluster with an empty NATS: what customers hold works, what had
// ended stays so, and what was open goes on.
func TestDumpAndRestore(t *testing.T) {
	t.Parallel()
	dump, restore, psql := postgresTool(t, "pg_dump"), postgresTool(t, "pg_restore"), postgresTool(t, "psql")
	d := deploy(t)
	before := d.start()
	links := map[string]*jobs.IssuedData{}
	for _, id := range []string{"outstanding", "clicked", "used-up", "revoked"} {
		req := request(id)
		req.Session.Customer = "cus_" + strings.ReplaceAll(id, "-", "")
		if id == "used-up" {
			req.MaxSessions = new(1)
		}
		links[id] = d.link(req)
	}
	for _, id := range []string{"clicked", "used-up"} {
		if status, _, _ := d.do(http.MethodPost, links[id].URL); status != http.StatusSeeOther {
			t.Fatalf("click on %s: %d", id, status)
		}
	}
	if _, err := d.producer.Revoke(d.soon(), portal.Revocation{RequestID: "revoked", By: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := before.stop(); err != nil {
		t.Fatal(err)
	}
	links["waiting"] = d.withOpenJob(t)
	code, out := d.command(nil, "audit", "seal")
	head := regexp.MustCompile(`(?m)^head (\S+)$`).FindStringSubmatch(out)
	if code != 0 || head == nil {
		t.Fatalf("worker audit seal: exit %d\n%s", code, out)
	}
	rows := d.audit()

	file := filepath.Join(t.TempDir(), "latchkey.dump")
	runTool(t, dump, "--format=custom", "--file="+file, d.database)

	pg := testkit.Cluster(t, filepath.Join(t.TempDir(), "pg"))
	for _, sql := range []string{`CREATE ROLE latchkey_app NOLOGIN`, `CREATE ROLE latchkey_owner LOGIN CREATEROLE`, `GRANT latchkey_app TO latchkey_owner`, `CREATE DATABASE latchkey OWNER latchkey_owner`} {
		runTool(t, psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--command="+sql, pg.URL("postgres"))
	}
	d.database = strings.Replace(pg.URL("latchkey"), "postgres@", "latchkey_owner@", 1)
	runTool(t, restore, "--no-owner", "--exit-on-error", "--single-transaction", "--dbname="+d.database, file)
	if code, out := d.command(nil, "migrate"); code != 0 || !strings.Contains(out, "up to date") {
		t.Fatalf("worker migrate: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "audit", "verify", "--head", head[1]); code != 0 || !strings.Contains(out, "as it was sealed") {
		t.Errorf("worker audit verify: exit %d\n%s", code, out)
	}
	d.reopen(pg)
	if restored := d.audit(); restored != rows {
		t.Errorf("the audit was\n%s\nand is\n%s", rows, restored)
	}

	d.nats = testkit.NATS(t) // new and empty
	d.connect()
	after := d.start()
	for _, id := range []string{"outstanding", "clicked", "waiting"} {
		if status, _, _ := d.do(http.MethodPost, after.click+"/l/"+tokenOf(links[id].URL)); status != http.StatusSeeOther {
			t.Errorf("the link %s: %d", id, status)
		}
	}
	for _, id := range []string{"used-up", "revoked"} { // by GET: a press within a minute is a second tap, and gets the session of the first
		if status, _, _ := d.do(http.MethodGet, after.click+"/l/"+tokenOf(links[id].URL)); status != http.StatusGone {
			t.Errorf("the link %s: %d", id, status)
		}
	}
	d.eventIDs(t.Context(), 4) // the three clicks, and the link that waited to be told of
	if n := d.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.issued'`); n != len(links) {
		t.Errorf("%d links were issued, want %d", n, len(links))
	}
	req := request("outstanding")
	req.Session.Customer = "cus_outstanding"
	if again := d.link(req); tokenOf(again.URL) != tokenOf(links["outstanding"].URL) {
		t.Error("the same request gives another link")
	}
	d.auditStaysAppendOnly(t)
	if err := after.stop(); err != nil { // before its servers
		t.Error(err)
	}
}

// withOpenJob makes a link whose event is not published: its process works no jobs.
func (d *deployment) withOpenJob(t *testing.T) *jobs.IssuedData {
	t.Helper()
	in := d.start(func(c *Config) { c.Roles = []string{roleIntake} })
	link, err := d.producer.Create(d.soon(), d.message(request("waiting")))
	if err != nil {
		t.Fatal(err)
	}
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	if n := d.number(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND finalized_at IS NULL`); n == 0 {
		t.Fatal("no job is open, so nothing would be shown of them")
	}
	return link
}

// audit is a line for each row, in order.
func (d *deployment) audit() string {
	d.t.Helper()
	return d.text(`SELECT string_agg(e::text, E'\n' ORDER BY id) FROM audit_events e`)
}

// reopen looks into the restored database as its administrator.
func (d *deployment) reopen(pg *stack.Postgres) {
	d.t.Helper()
	var err error
	if d.pool, err = plainPool(d.t.Context(), pg.URL("latchkey")); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(d.pool.Close)
}

// auditStaysAppendOnly tries the worker's role, which lacks the right, and the owner, whom the trigger refuses.
func (d *deployment) auditStaysAppendOnly(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for _, role := range []string{"latchkey_owner", "latchkey_app"} {
		if _, err := conn.Exec(t.Context(), "SET ROLE "+role); err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{`UPDATE audit_events SET kind = 'link.opened'`, `DELETE FROM audit_events`, `TRUNCATE audit_events`} {
			if _, err := conn.Exec(t.Context(), sql); err == nil {
				t.Errorf("%s may %s", role, sql)
			}
		}
	}
	if _, err := conn.Exec(t.Context(), "SET ROLE latchkey_app; CREATE TABLE own (id int)"); err == nil {
		t.Error("latchkey_app may create tables")
	}
}
