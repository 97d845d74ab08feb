package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// job writes a job as River keeps it, and returns its number.
func (d *deployment) job(kind, state string, attempt int, lastError string) (id int) {
	d.t.Helper()
	finalized := "NULL"
	if state == "discarded" || state == "cancelled" || state == "completed" {
		finalized = "now()"
	}
	failure, err := json.Marshal(map[string]any{"at": "2026-11-25T08:00:00Z", "attempt": attempt, "error": lastError, "trace": ""})
	if err != nil {
		d.t.Fatal(err)
	}
	return d.number(`INSERT INTO river_job (args, attempt, errors, finalized_at, kind, max_attempts, queue, state, scheduled_at)
		VALUES ('{"delivery": 7}', $1, ARRAY[$2::jsonb], `+finalized+`, $3, 25, $3, $4, now() + interval '1 hour') RETURNING id`, attempt, string(failure), kind, state)
}

func (d *deployment) stateOf(id int) string {
	d.t.Helper()
	return d.text(fmt.Sprintf(`SELECT state::text || ' ' || attempt || '/' || max_attempts || ' ' || (scheduled_at <= now()) FROM river_job WHERE id = %d`, id))
}

func TestJobsList(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	if code, out := d.command(nil, "jobs", "list"); code != 0 || out != "worker: no job fits (states: available, cancelled, discarded, pending, retryable, running, scheduled)\n" {
		t.Errorf("none: exit %d\n%s", code, out)
	}
	given := d.job("email", "discarded", 25, "550 5.1.1\n\x1b[2J\u009b"+strings.Repeat("x", 400))
	waits := d.job("webhook", "retryable", 3, "no answer in 10s")
	running := d.job("webhook", "running", 1, "")
	d.job("webhook", "completed", 1, "")
	code, out := d.command(nil, "jobs", "list")
	lines := strings.Split(out, "\n")
	if code != 0 || len(lines) != 9 || !strings.HasPrefix(lines[0], "email    discarded  1") || !strings.HasPrefix(lines[1], "webhook  retryable  1") ||
		!strings.HasPrefix(lines[2], "webhook  running    1") || lines[3] != "" {
		t.Fatalf("exit %d\n%s", code, out)
	}
	if !strings.HasPrefix(lines[6], fmt.Sprint(waits)) || !strings.Contains(lines[6], " 3 ") || !strings.HasSuffix(lines[6], "no answer in 10s") {
		t.Errorf("%s", lines[6])
	}
	if !strings.HasPrefix(lines[7], fmt.Sprint(given)) || !strings.Contains(lines[7], " 25 ") || !strings.Contains(lines[7], "550 5.1.1 ?[2J?xxx") || len(lines[7]) > 300 {
		t.Errorf("%q", lines[7])
	}
	code, out = d.command(nil, "jobs", "list", "--state", "running,retryable", "--kind", "webhook", "--queue", "webhook", "--limit", "1")
	if code != 0 || !strings.Contains(out, fmt.Sprintf("\n%d ", running)) || !strings.Contains(out, "worker: the newest 1 of 2") {
		t.Errorf("filters: exit %d\n%s", code, out)
	}
	code, out = d.command(nil, "jobs", "list", "--json", "--kind", "email")
	var job struct {
		ID    int
		Args  struct{ Delivery int }
		Error string
	}
	if err := json.Unmarshal([]byte(out), &job); code != 0 || err != nil || job.ID != given || job.Args.Delivery != 7 || !strings.Contains(job.Error, "\x1b[2J\u009b") || strings.ContainsAny(out, "\x1b\u009b") {
		t.Errorf("exit %d, %v: %q", code, err, out)
	}
	for _, args := range [][]string{{"list", "--state", "dead"}, {"list", "--limit", "0"}, {"list", "--limit", "10001"}, {"retry"}, {"retry", "--all"}, {"retry", "1", "--all", "--kind", "email"}, {"retry", "1", "--kind", "email"},
		{"retry", "--all", "--kind", "email", "--state", "completed"}, {"retry", "x"}, {"cancel"}, {"cancel", "0"}, {"frob"}} {
		if code, out := d.command(nil, append([]string{"jobs"}, args...)...); code != 2 || strings.Count(out, "\n") != 1 {
			t.Errorf("%v: exit %d\n%s", args, code, out)
		}
	}
}

func TestJobsRetry(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	given, waits, ended := d.job("email", "discarded", 25, "x"), d.job("email", "retryable", 3, "x"), d.job("email", "cancelled", 1, "x")
	running, completed, other := d.job("email", "running", 1, ""), d.job("email", "completed", 1, ""), d.job("webhook", "discarded", 25, "x")
	code, out := d.command(nil, "jobs", "retry", "--all", "--kind", "email")
	if code != 0 || strings.Count(out, " retry job=") != 2 || !strings.Contains(out, fmt.Sprintf(`retry job=%d kind=email queue=email was=discarded is=available attempts=25/25 args={"delivery": 7} by=`, given)) || !strings.Contains(out, "worker: retry: 2 done, 0 not") {
		t.Errorf("exit %d\n%s", code, out)
	}
	for id, want := range map[int]string{given: "available 25/26 true", waits: "available 3/25 true", ended: "cancelled 1/25 false", running: "running 1/25 false", completed: "completed 1/25 false", other: "discarded 25/25 false"} {
		if got := d.stateOf(id); got != want {
			t.Errorf("job %d: %s, want %s", id, got, want)
		}
	}
	// One that can't be retried does not stop the rest. A completed one would send its mail again.
	code, out = d.command(nil, "jobs", "retry", fmt.Sprint(running), fmt.Sprint(completed), "999999", fmt.Sprint(ended))
	if code != 1 || !strings.Contains(out, fmt.Sprintf("job %d: is running", running)) || !strings.Contains(out, fmt.Sprintf("job %d: is completed", completed)) || !strings.Contains(out, "job 999999: there is no such job") || !strings.Contains(out, "1 done, 3 not") {
		t.Errorf("exit %d\n%s", code, out)
	}
	for id, want := range map[int]string{ended: "available 1/25 true", running: "running 1/25 false", completed: "completed 1/25 false"} {
		if got := d.stateOf(id); got != want {
			t.Errorf("job %d: %s, want %s", id, got, want)
		}
	}
	if code, out := d.command(nil, "jobs", "retry", "--all", "--kind", "email"); code != 0 || !strings.Contains(out, "no job fits") {
		t.Errorf("none left: exit %d\n%s", code, out)
	}
}

// More jobs than a page, and by hand only where it was by hand.
func TestJobsRetryOfMany(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	const n = 250
	d.sql(`INSERT INTO river_job (args, attempt, finalized_at, kind, max_attempts, queue, state)
		SELECT '{}', 25, now(), 'webhook', 25, 'webhook', CASE WHEN i % 2 = 0 THEN 'discarded' ELSE 'cancelled' END::river_job_state FROM generate_series(1, $1::int) i`, 2*n)
	if code, out := d.command(nil, "jobs", "retry", "--all", "--kind", "webhook"); code != 0 || !strings.Contains(out, fmt.Sprintf("%d done", n)) {
		t.Errorf("exit %d\n%s", code, out)
	}
	if got := d.number(`SELECT count(*) FROM river_job WHERE state = 'cancelled'`); got != n {
		t.Errorf("%d are cancelled", got)
	}
	if code, out := d.command(nil, "jobs", "retry", "--all", "--kind", "webhook", "--state", "cancelled"); code != 0 || !strings.Contains(out, fmt.Sprintf("%d done", n)) {
		t.Errorf("exit %d\n%s", code, out)
	}
	if got := d.number(`SELECT count(*) FROM river_job WHERE state = 'available'`); got != 2*n {
		t.Errorf("%d are available", got)
	}
}

func TestJobsCancel(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	waits, running, given := d.job("email", "scheduled", 0, ""), d.job("email", "running", 1, ""), d.job("email", "discarded", 25, "x")
	code, out := d.command(nil, "jobs", "cancel", fmt.Sprint(waits), fmt.Sprint(running), fmt.Sprint(given))
	if code != 1 || !strings.Contains(out, fmt.Sprintf("cancel job=%d kind=email queue=email was=scheduled is=cancelled", waits)) || !strings.Contains(out, fmt.Sprintf("cancel job=%d kind=email queue=email was=running is=running", running)) ||
		!strings.Contains(out, fmt.Sprintf("job %d: is discarded", given)) || !strings.Contains(out, "2 done, 1 not") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if got := d.stateOf(waits); !strings.HasPrefix(got, "cancelled") {
		t.Errorf("job %d: %s", waits, got)
	}
	if n := d.number(`SELECT count(*) FROM river_job WHERE id = $1 AND metadata ? 'cancel_attempted_at'`, running); n != 1 {
		t.Errorf("the running job was not asked to stop")
	}
}

// A publish job that gave up is put to work, and a real worker publishes its event after all.
func TestJobsRetryIsWorked(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	w := d.start(func(c *Config) { c.Roles = []string{roleIntake} })
	if _, err := d.producer.Create(d.soon(), d.message(request("r"))); err != nil { // it said that it is ready
		t.Fatal(err)
	}
	d.sql(`UPDATE river_job SET state = 'discarded', attempt = max_attempts, finalized_at = now() WHERE kind = 'publish'`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if code, out := d.command(nil, "jobs", "retry", "--all", "--kind", "publish"); code != 0 || !strings.Contains(out, "was=discarded") {
		t.Fatalf("exit %d\n%s", code, out)
	}
	d.start(func(c *Config) { c.Roles = []string{roleJobs} })
	d.until("the job is completed", func() bool {
		return d.number(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state = 'completed'`) == 1
	})
	if got := d.eventIDs(d.soon(), 1); len(got) != 1 {
		t.Errorf("events %v", got)
	}
}

// DATABASE_URL alone, and the worker's role: what the role may not, the command may not.
func TestJobsNeedsTheDatabaseAloneAndTheWorkersRole(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	id := d.job("email", "discarded", 25, "x")
	bare := []string{"STRIPE_API_KEY=", "LINK_BASE_URL=", "LINK_KEYS=", "NATS_URL=nats://127.0.0.1:1"}
	if code, out := d.command(bare, "jobs", "retry", fmt.Sprint(id)); code != 0 {
		t.Errorf("exit %d\n%s", code, out)
	}
	// The role is of the whole cluster, the right is this database's.
	d.sql(`REVOKE UPDATE ON river_job FROM latchkey_app`)
	if code, out := d.command(bare, "jobs", "cancel", fmt.Sprint(id)); code != 1 || !strings.Contains(out, "permission denied") || strings.Count(out, "\n") != 1 {
		t.Errorf("without the right: exit %d\n%s", code, out)
	}
	if code, out := d.command([]string{"DATABASE_URL="}, "jobs", "list"); code != 1 || !strings.Contains(out, "DATABASE_URL: is required") {
		t.Errorf("no database: exit %d\n%s", code, out)
	}
}
