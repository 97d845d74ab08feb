package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/config"
	"latchkey/internal/jobs"
	"latchkey/internal/stack"
	"latchkey/internal/testkit"
)

// customers is a CSV of n rows.
func customers(n int) string {
	var b strings.Builder
	b.WriteString("customer;email;data.name;metadata.note\n")
	for i := range n {
		fmt.Fprintf(&b, "cus_%d;;\"Jo; %d\";\"two\nlines\"\n", i, i)
	}
	return b.String()
}

func write(t *testing.T, name, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	check(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// linksOf reads an output.
func linksOf(t *testing.T, text string) (rows []map[string]string) {
	t.Helper()
	r := csv.NewReader(strings.NewReader(text))
	r.Comma = ';'
	records, err := r.ReadAll()
	check(t, err)
	for _, record := range records[1:] {
		row := map[string]string{}
		for i, name := range records[0] {
			row[name] = record[i]
		}
		rows = append(rows, row)
	}
	return rows
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	return string(b)
}

// Each row has its link, in order, and a second run gives the same file.
func TestBulkGivesEachRowItsLinkAndTheSameAgain(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	const n = 3000
	in := write(t, "customers.csv", customers(n))
	out := filepath.Join(t.TempDir(), "links.csv")
	code, stdout, stderr := enqueue(t, d.url, "", "bulk", in, "--campaign", "spring", "--out", out)
	if code != 0 || stdout != "" || !strings.Contains(stderr, "3,000 rows: 3,000 links, 0 rejected, 0 not sent") {
		t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
	}
	first := readFile(t, out)
	links := map[string]bool{}
	for i, row := range linksOf(t, first) {
		if row["customer"] != fmt.Sprintf("cus_%d", i) || row["data.name"] != fmt.Sprintf("Jo; %d", i) || row["metadata.note"] != "two\nlines" ||
			!strings.HasPrefix(row["link_url"], "https://pay.example.com/l/") || row["link_id"] == "" || row["expires_at"] == "" || row["error"] != "" {
			t.Fatalf("row %d: %v", i, row)
		}
		links[row["link_url"]] = true
	}
	if len(links) != n {
		t.Errorf("%d different links", len(links))
	}
	info, err := os.Stat(out)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the links have mode %v", info.Mode())
	}
	code, again, stderr := enqueue(t, d.url, customers(n), "bulk", "-", "--campaign", "spring", "--out", "-")
	if code != 0 || again != first {
		t.Errorf("again: exit %d, the same: %t\n%s", code, again == first, stderr)
	}
	var rows int
	check(t, d.pool.QueryRow(t.Context(), `SELECT count(*) FROM links`).Scan(&rows))
	if rows != n {
		t.Errorf("%d links are in the database", rows)
	}
}

// Rows that can't be sent and rows that the worker refuses are told with their lines, and hold up no other.
func TestBulkTellsBadRows(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	in := "id,customer,locale,max_sessions\n" +
		"a,cus_1,de,\n" +
		"b,cus_2,xx,\n" + // the worker refuses it
		"c,cus_3,de,many\n" +
		"d,cus_4\n" +
		"e,\"cus_5\"x,de,\n" +
		"a,cus_1,de,\n" + // the same again
		"a,cus_1,fr,\n" + // other content
		"f,cus_6,,5\n"
	code, out, stderr := enqueue(t, d.url, in, "bulk", "-", "--campaign", "c", "--out", "-")
	if code != 1 || !strings.Contains(stderr, "8 rows: 3 links, 2 rejected, 3 not sent") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
	for _, want := range []string{"line 3: invalid_field: $.session.locale", "line 4: max_sessions: must be a whole number", "line 5: the row has 2 fields", "line 6: the row can't be read", "line 8: id_conflict"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr lacks %q:\n%s", want, stderr)
		}
	}
	records, err := csv.NewReader(strings.NewReader(out)).ReadAll() // each with as many fields as the first
	check(t, err)
	for i, want := range []bool{true, false, false, false, false, true, false, true} {
		if row := records[i+1]; (row[4] != "") != want || (row[7] == "") != want {
			t.Errorf("row %d: %q", i, row)
		}
	}
	if records[1][4] != records[6][4] {
		t.Errorf("the same row twice: %s and %s", records[1][4], records[6][4])
	}
}

func TestBulkTakesJSONLines(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	in := `{"session": {"customer": "cus_1"}, "expires_at": "` + time.Now().Add(30*time.Minute).UTC().Format(time.RFC3339) + `"}
{"id": "x", "source": "dunning", "campaign": "other", "session": {"customer": "cus_2"}}

{"session": {"customer": "cus_3"}, "sesion": 1}
{"session"
{"id": null, "session": {"customer": "cus_4"}}
`
	code, out, stderr := enqueue(t, d.url, in, "bulk", "-", "--campaign", "c", "--out", "-")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 1 || len(lines) != 5 || !strings.Contains(stderr, "line 4: invalid_field: $.sesion") || !strings.Contains(stderr, "line 5: invalid_json") {
		t.Fatalf("exit %d\n%s%s", code, out, stderr)
	}
	for i, want := range []string{`"cus_1"}, "expires_at":`, `{"id": "x", "source": "dunning"`, `"error":"invalid_field`, `{"line":5,"error":"invalid_json`, `{"id": null,`} {
		if !strings.Contains(lines[i], want) || strings.Count(lines[i], `"expires_at"`) > 1 {
			t.Errorf("line %d: %s", i, lines[i])
		}
	}
	var source, campaign string
	check(t, d.pool.QueryRow(t.Context(), `SELECT source, campaign FROM links WHERE request_id = 'x'`).Scan(&source, &campaign))
	if source != "dunning" || campaign != "other" {
		t.Errorf("%s, %s", source, campaign)
	}
	check(t, d.pool.QueryRow(t.Context(), `SELECT source, campaign FROM links WHERE request_id = 'c:cus_4'`).Scan(&source, &campaign))
	if source != "campaign" || campaign != "c" {
		t.Errorf("%s, %s", source, campaign)
	}
}

// A dry run needs no NATS, and finds what the worker would refuse.
func TestBulkDryRun(t *testing.T) {
	t.Parallel()
	const nowhere = "nats://127.0.0.1:1"
	code, out, stderr := enqueue(t, nowhere, "customer,locale,return_url,email\ncus_1,de,https://any.example/,jo@example.com\n", "bulk", "-", "--campaign", "c", "--dry-run", "--out", "-")
	if code != 0 || !strings.Contains(stderr, "1 rows checked, 0 would be rejected") || !strings.HasPrefix(out, "customer,locale,return_url,email,link_url,") {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	bad := "customer,locale,email\n" + strings.Repeat("cus_1,xx,\n", 30) + "cus_1,de,nobody\n"
	code, _, stderr = enqueue(t, nowhere, bad, "bulk", "-", "--campaign", "c", "--dry-run")
	if code != 1 || !strings.Contains(stderr, "line 2: invalid_field: $.session.locale") || strings.Count(stderr, "  line ") != 20 || !strings.Contains(stderr, "… and 11 more") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

func TestBulkSaysWhatIsWrongAtTheStart(t *testing.T) {
	t.Parallel()
	url := testkit.NATS(t)
	file := write(t, "a.csv", "customer\n")
	for _, c := range []struct {
		in, want string
		code     int
		args     []string
	}{
		{"", "names the columns|name the columns", 1, []string{"-", "--campaign", "c"}},
		{"customer\n", "--campaign", 1, []string{"-"}},
		{"customer\n", "start a worker once", 1, []string{"-", "--campaign", "c"}},
		{"custommer\n", "did you mean customer?", 1, []string{"-", "--campaign", "c"}},
		{"", "no such file", 1, []string{"nothing.csv", "--campaign", "c"}},
		{"", "campaign must match", 2, []string{"-", "--campaign", "c d"}},
		{"", "another name", 2, []string{file, "--campaign", "c", "--out", file}},
		{"", "--format", 2, []string{"-", "--format", "xml"}},
	} {
		code, _, stderr := enqueue(t, url, c.in, append([]string{"bulk"}, c.args...)...)
		found := false
		for _, want := range strings.Split(c.want, "|") {
			found = found || strings.Contains(stderr, want)
		}
		if code != c.code || !found || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v of %q: exit %d\n%s", c.args, c.in, code, stderr)
		}
	}
}

// A run that is killed is done again, with other rows answered already: each row has one link, the same one.
func TestBulkAfterKill(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	const n = 10000
	in := write(t, "customers.csv", customers(n))
	out := filepath.Join(t.TempDir(), "links.csv")
	args := []string{"bulk", in, "--campaign", "killed", "--out", out}
	cmd := command(t, d.url, args...)
	check(t, cmd.Start())
	links := func() (count int) {
		check(t, d.pool.QueryRow(t.Context(), `SELECT count(*) FROM links`).Scan(&count))
		return count
	}
	begun := func() bool { // its first rows are in the file
		part, err := os.Stat(out + ".partial")
		return err == nil && part.Size() > 0
	}
	for links() < n/20 || !begun() {
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if _, err := os.Stat(out); err == nil || !begun() {
		t.Errorf("after the kill there is a file that looks whole, or none that is begun: %v", err)
	}
	code, _, stderr := enqueue(t, d.url, "", args...)
	rows := linksOf(t, readFile(t, out))
	if code != 0 || len(rows) != n || links() != n {
		t.Fatalf("exit %d, %d rows, %d links\n%s", code, len(rows), links(), stderr)
	}
	ids, err := d.pool.Query(t.Context(), `SELECT id::text, stripe_customer FROM links`)
	check(t, err)
	of := map[string]string{}
	for ids.Next() {
		var id, customer string
		check(t, ids.Scan(&id, &customer))
		of[customer] = id
	}
	check(t, ids.Err())
	for i, row := range rows {
		if row["customer"] != fmt.Sprintf("cus_%d", i) || row["link_id"] != of[row["customer"]] {
			t.Fatalf("row %d: %v, the database has %s", i, row, of[row["customer"]])
		}
	}
}

// untilItEnds waits for a command that must succeed, and again and again does what brings it on.
func untilItEnds(t *testing.T, cmd *exec.Cmd, stderr fmt.Stringer, hasten func()) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr)
			}
			return
		case <-time.After(100 * time.Millisecond):
			hasten()
		}
	}
}

// NATS is restarted in the middle, twice, and the file of links is whole.
func TestBulkOutlivesNATS(t *testing.T) {
	t.Parallel()
	cfg := stack.NATSConfig{Dir: t.TempDir()}
	ns, err := stack.StartNATS(t.Context(), cfg)
	check(t, err)
	address, err := url.Parse(ns.URL())
	check(t, err)
	cfg.Port, err = strconv.Atoi(address.Port())
	check(t, err)
	t.Cleanup(func() { check(t, ns.Stop()) })
	d := deployOn(t, ns.URL())
	const n = 8000
	out := filepath.Join(t.TempDir(), "links.csv")
	cmd := command(t, d.url, "bulk", write(t, "customers.csv", customers(n)), "--campaign", "restarts", "--out", out)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	check(t, cmd.Start())
	links := func() (count int) {
		check(t, d.pool.QueryRow(t.Context(), `SELECT count(*) FROM links`).Scan(&count))
		return count
	}
	for _, least := range []int{1, n / 4} {
		for links() < least {
			runtime.Gosched()
		}
		check(t, ns.Stop())
		ns, err = stack.StartNATS(context.Background(), cfg)
		check(t, err)
	}
	// What was on its way to the worker when NATS went down is delivered again, after half a minute. Not here.
	untilItEnds(t, cmd, &stderr, func() {
		if c, err := d.js.Consumer(t.Context(), jobs.RequestsStream, jobs.IntakeConsumer); err == nil {
			hasty := c.CachedInfo().Config
			hasty.AckWait = time.Second
			_, _ = d.js.UpdateConsumer(t.Context(), jobs.RequestsStream, hasty)
		}
	})
	seen := map[string]bool{}
	for i, row := range linksOf(t, readFile(t, out)) {
		if row["customer"] != fmt.Sprintf("cus_%d", i) || row["link_url"] == "" {
			t.Fatalf("row %d: %v", i, row)
		}
		seen[row["link_id"]] = true
	}
	if len(seen) != n || links() != n {
		t.Errorf("%d links in the file, %d in the database\n%s", len(seen), links(), stderr.String())
	}
}

// Postgres crashes in the middle, twice, and recovers: each row has one link, and each link one audit row.
func TestBulkOutlivesPostgres(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := stack.PostgresConfig{Dir: filepath.Join(dir, "pg"), Template: filepath.Join(os.TempDir(), "latchkey-clusters-"+strconv.Itoa(os.Getuid()))}
	pg, err := stack.StartPostgres(t.Context(), cfg)
	check(t, err)
	t.Cleanup(func() {
		check(t, pg.Stop(context.Background()))
		check(t, stack.RemovePostgres(cfg.Dir))
	})
	check(t, migrate(t.Context(), pg.URL("postgres")))
	d := deployWith(t, testkit.NATS(t), pg.URL("postgres"))
	const n = 4000
	out := filepath.Join(dir, "links.csv")
	cmd := command(t, d.url, "bulk", write(t, "customers.csv", customers(n)), "--campaign", "crashes", "--out", out)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	check(t, cmd.Start())
	count := func(table string) (rows int) {
		_ = d.pool.QueryRow(t.Context(), `SELECT count(*) FROM `+table).Scan(&rows) // none while the server is away
		return rows
	}
	for _, least := range []int{1, n / 4} {
		for count("links") < least {
			runtime.Gosched()
		}
		check(t, syscall.Kill(pg.Pid(), syscall.SIGQUIT)) // an immediate shutdown: what is not in the log is lost
		<-pg.Done()
		_ = pg.Stop(t.Context()) // says that it had ended
		pg, err = stack.StartPostgres(context.Background(), cfg)
		check(t, err)
	}
	// A commit of which the crash kept the news has its events published by its job, ten seconds later. Not here.
	untilItEnds(t, cmd, &stderr, func() {
		_, err := d.pool.Exec(t.Context(), `UPDATE river_job SET state = 'available', scheduled_at = now() WHERE kind = 'publish' AND state = 'scheduled'`)
		check(t, err)
	})
	seen := map[string]bool{}
	for i, row := range linksOf(t, readFile(t, out)) {
		if row["customer"] != fmt.Sprintf("cus_%d", i) || row["link_url"] == "" {
			t.Fatalf("row %d: %v", i, row)
		}
		seen[row["link_id"]] = true
	}
	if links, issued := count("links"), count("audit_events WHERE kind = 'link.issued'"); len(seen) != n || links != n || issued != n {
		t.Errorf("%d links in the file, %d in the database with %d audit rows\n%s", len(seen), links, issued, stderr.String())
	}
}

// Ctrl-C or --timeout ends a run that waits for a worker: what is there is put in its place, and what to do is said.
func TestBulkStops(t *testing.T) {
	t.Parallel()
	url := testkit.NATS(t)
	nc, err := config.NATS{URL: url}.Connect("test")
	check(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	check(t, err)
	check(t, jobs.EnsureStreams(t.Context(), js, true))
	in := write(t, "customers.csv", customers(10))
	for _, interrupt := range []bool{true, false} {
		out := filepath.Join(t.TempDir(), "links.csv")
		args := []string{"bulk", in, "--campaign", "stopped", "--out", out}
		if !interrupt {
			args = append(args, "--timeout", "3s") // in which NATS confirms, on a busy machine too
		}
		before := stored(t, js)
		cmd := command(t, url, args...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		check(t, cmd.Start())
		for stored(t, js) < before+10 {
			runtime.Gosched()
		}
		if interrupt {
			check(t, cmd.Process.Signal(os.Interrupt))
		}
		err := cmd.Wait()
		for _, want := range []string{"10 without an answer yet", "run the same command again"} {
			if err == nil || !strings.Contains(stderr.String(), want) {
				t.Errorf("%v\n%s", err, stderr.String())
			}
		}
		if !interrupt && !strings.Contains(stderr.String(), "is 'worker run' up") {
			t.Errorf("what it waited for is not said:\n%s", stderr.String())
		}
		if _, err := os.Stat(out); err == nil {
			t.Error("a file that is not complete has the name of one that is")
		}
		rows := linksOf(t, readFile(t, out+".partial"))
		if len(rows) != 10 || !strings.Contains(rows[9]["error"], "run the same command again") {
			t.Errorf("%v", rows)
		}
	}
}

func stored(t *testing.T, js jetstream.JetStream) int {
	t.Helper()
	s, err := js.Stream(t.Context(), jobs.RequestsStream)
	check(t, err)
	return int(s.CachedInfo().State.Msgs)
}
