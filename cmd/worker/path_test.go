package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/stripesim"
)

// The whole path: request → link → page → session → events, each in the audit.
func TestRequestBecomesLinkAndClickBecomesSession(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	w := d.start()
	req := request("in_1-attempt-1")
	req.Metadata = map[string]string{"invoice": "in_1"}
	req.Session.FlowData = &portal.FlowData{Type: "payment_method_update"}
	link := d.link(req)
	if !strings.HasPrefix(link.URL, w.click+"/l/") || link.Customer != "cus_Test123" || string(link.Metadata) != `{"invoice":"in_1"}` {
		t.Fatalf("link.issued: %s", mustJSON(t, link))
	}
	if status, body, _ := d.do(http.MethodGet, link.URL); status != 200 || !strings.Contains(body, `<form method="post"`) {
		t.Fatalf("GET: %d %s", status, body)
	}
	if n := len(d.sim.Calls()); n != 0 {
		t.Fatalf("the page cost %d calls to Stripe", n)
	}
	status, _, header := d.do(http.MethodPost, link.URL)
	session := d.sim.Sessions()[0]
	if status != http.StatusSeeOther || header.Get("Location") != session.URL {
		t.Fatalf("POST: %d to %q, the session is elsewhere", status, header.Get("Location"))
	}
	if session.Customer != "cus_Test123" || session.FlowType != "payment_method_update" || session.ReturnURL != "https://app.example.com/billing" {
		t.Errorf("session: %+v", session.Params)
	}
	if status, body, _ := d.do(http.MethodGet, session.URL); status != 200 || !strings.Contains(strings.ToLower(body), "simulator") {
		t.Errorf("the portal's page: %d", status)
	}
	d.wantTimeline("in_1-attempt-1", "link.issued link.opened click.started session.created")
	if n := d.number(`SELECT sessions_created FROM links`); n != 1 {
		t.Errorf("sessions_created is %d", n)
	}
}

func (d *deployment) wantTimeline(id, want string) {
	d.t.Helper()
	status, err := d.producer.Status(d.soon(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	var kinds []string
	for _, h := range status.Timeline {
		kinds = append(kinds, string(h.Kind))
	}
	if got := strings.Join(kinds, " "); got != want {
		d.t.Errorf("timeline of %s: %s, want %s", id, got, want)
	}
}

// A request published five times, on two workers, with redeliveries: one link, one URL, one
// session for each click.
func TestFivePublicationsOnTwoWorkersMakeOneLink(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	first := d.start()
	d.start(func(c *Config) { c.LinkBaseURL = first.click })
	var mu sync.Mutex
	urls := map[string]bool{}
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			link, err := d.producer.SendAndWait(d.soon(), d.message(request("same")))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			urls[link.URL] = true
		})
	}
	all.Wait()
	if len(urls) != 1 {
		t.Fatalf("%d URLs for one request: %v", len(urls), urls)
	}
	d.redeliver(t)
	repeats := `SELECT count(*) FROM audit_events WHERE kind = 'request.duplicate'`
	d.until("four repeats in the audit", func() bool { return d.number(repeats) == 4 })
	if n := d.number(`SELECT count(*) FROM links WHERE request_id = 'same'`); n != 1 {
		t.Errorf("%d links", n)
	}
	d.until("four repeats in the audit", func() bool {
		return d.number(`SELECT count(*) FROM audit_events WHERE kind = 'request.duplicate'`) == 4
	})
	if n := d.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.issued' AND request_id = 'same'`); n != 1 {
		t.Errorf("%d link.issued rows", n)
	}
	for url := range urls {
		for range 3 {
			if status, _, _ := d.do(http.MethodPost, url); status != http.StatusSeeOther {
				t.Errorf("POST: %d", status)
			}
		}
	}
	if n := len(d.sim.Sessions()); n != 3 {
		t.Errorf("%d sessions for 3 clicks", n)
	}
}

// redeliver makes JetStream deliver a sixth publication again and again, to whichever worker asks:
// the ack wait is cut to 200 ms and the database stands still for longer.
func (d *deployment) redeliver(t *testing.T) {
	t.Helper()
	js, err := jetstream.New(d.nc)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.Consumer(d.soon(), jobs.RequestsStream, jobs.IntakeConsumer)
	if err != nil {
		t.Fatal(err)
	}
	impatient := consumer.CachedInfo().Config
	impatient.AckWait = 200 * time.Millisecond
	if _, err := js.UpdateConsumer(d.soon(), jobs.RequestsStream, impatient); err != nil {
		t.Fatal(err)
	}
	release := d.holdLinks()
	if _, err := d.producer.Send(d.soon(), d.message(request("redelivered"))); err != nil {
		t.Fatal(err)
	}
	d.until("three transactions to wait with the same message", func() bool {
		return d.number(`SELECT count(*) FROM pg_locks WHERE relation = 'links'::regclass AND NOT granted`) >= 3
	})
	release()
	d.until("the message to be acknowledged", func() bool {
		info, err := consumer.Info(t.Context())
		return err == nil && info.NumAckPending == 0 && info.NumPending == 0 && info.NumRedelivered == 0
	})
	if n := d.number(`SELECT count(*) FROM audit_events WHERE request_id = 'redelivered'`); n != 1 {
		t.Errorf("%d audit rows for a request that was redelivered, want its link.issued", n)
	}
}

// Nothing that bears a token, a session URL or a key stands in a log line at debug level, a row
// of any table, or a metric; the whole path is run first, its failures included.
func TestSecretsStandNowhere(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.keepJobs()
	w := d.start(func(c *Config) { c.LogLevel = "debug" })
	var secrets []string
	for i, customer := range []string{"cus_Fine", "cus_deleted1", "cus_noconfig1", "cus_flaky1", "cus_dropped1", "cus_badurl1", "cus_featureoff1"} {
		req := request(fmt.Sprintf("r%d", i))
		req.Session.Customer = customer
		link := d.link(req)
		secrets = append(secrets, tokenOf(link.URL))
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPost, http.MethodPut} {
			d.do(method, link.URL+"?utm=1")
		}
		d.do(http.MethodGet, link.URL[:len(link.URL)-1]) // forged
		d.link(req)                                      // a repeat
	}
	bad := request("bad")
	bad.Metadata = map[string]string{"note": strings.Repeat("sk_live_leaked", 50)}
	if _, err := d.producer.SendAndWait(d.soon(), d.message(bad)); err == nil {
		t.Error("a value of 700 characters was accepted")
	}
	if _, err := d.producer.Revoke(d.soon(), portal.Revocation{Customer: "cus_Fine", By: "test"}); err != nil {
		t.Fatal(err)
	}
	for _, s := range d.sim.Sessions() {
		secrets = append(secrets, s.URL, tokenOf(s.URL))
	}
	_, key, _ := strings.Cut(d.keys, ":")
	secrets = append(secrets, key, stripesim.TestKey, "sk_live_leaked")

	_, metrics, _ := d.do(http.MethodGet, w.admin+"/metrics")
	if !strings.Contains(metrics, "latchkey_clicks_total") {
		t.Error("the metrics are not there to be searched")
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	haystacks := map[string]string{"log": w.log.String(), "metrics": metrics}
	for table, rows := range d.dump() {
		haystacks[table] = rows
	}
	if len(haystacks["kept_jobs"]) == 0 || len(haystacks["audit_events"]) == 0 || len(haystacks["log"]) == 0 {
		t.Fatal("nothing to search")
	}
	for place, text := range haystacks {
		for i, secret := range secrets {
			if strings.Contains(text, secret) {
				at := strings.Index(text, secret)
				t.Errorf("secret %d stands in %s: …%s", i, place, text[max(0, at-200):at])
			}
		}
	}
}

// keepJobs keeps the jobs that are deleted, in the table kept_jobs.
func (d *deployment) keepJobs() {
	d.t.Helper()
	d.sql(`CREATE TABLE kept_jobs (LIKE river_job)`)
	d.sql(`CREATE FUNCTION keep_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN INSERT INTO kept_jobs VALUES (OLD.*); RETURN OLD; END $$`)
	d.sql(`CREATE TRIGGER keep_job BEFORE DELETE ON river_job FOR EACH ROW EXECUTE FUNCTION keep_job()`)
}

// dump is every row of every table, as text.
func (d *deployment) dump() map[string]string {
	d.t.Helper()
	rows, err := d.pool.Query(d.t.Context(), `SELECT tablename FROM pg_tables WHERE schemaname = 'public'`)
	if err != nil {
		d.t.Fatal(err)
	}
	var tables []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			d.t.Fatal(err)
		}
		tables = append(tables, name)
	}
	out := map[string]string{}
	for _, table := range tables {
		var text *string
		if err := d.pool.QueryRow(d.t.Context(), `SELECT string_agg(t::text, E'\n') FROM `+table+` t`).Scan(&text); err != nil {
			d.t.Fatal(err)
		}
		if text != nil {
			out[table] = *text
		}
	}
	return out
}

// Every event of the path reaches PORTAL_EVENTS under its audit row's id (invariant 7, whole path).
func TestEveryAuditRowOfAnEventKindIsPublished(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.start()
	for i := range 20 {
		link := d.link(request(fmt.Sprintf("r%d", i)))
		d.do(http.MethodGet, link.URL)
		d.do(http.MethodPost, link.URL)
	}
	if _, err := d.producer.Revoke(d.soon(), portal.Revocation{Customer: "cus_Test123", By: "test"}); err != nil {
		t.Fatal(err)
	}
	published := d.eventIDs(t.Context(), 20*4)
	rows, err := d.pool.Query(t.Context(), `SELECT id::text FROM audit_events WHERE kind NOT IN ('click.started', 'click.denied', 'audit.sealed')`)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		if n++; !published[id] {
			t.Errorf("audit row %s was not published", id)
		}
	}
	if n != 80 || len(published) != 80 {
		t.Errorf("%d rows and %d events, want 80 of each", n, len(published))
	}
}

func (d *deployment) eventIDs(ctx context.Context, n int) map[string]bool {
	d.t.Helper()
	js, err := jetstream.New(d.nc)
	if err != nil {
		d.t.Fatal(err)
	}
	consumer, err := js.OrderedConsumer(ctx, "PORTAL_EVENTS", jetstream.OrderedConsumerConfig{})
	if err != nil {
		d.t.Fatal(err)
	}
	it, err := consumer.Messages()
	if err != nil {
		d.t.Fatal(err)
	}
	defer it.Stop()
	ids := map[string]bool{}
	for len(ids) < n {
		msg, err := it.Next(jetstream.NextMaxWait(patience))
		if err != nil {
			d.t.Fatalf("%d of %d events: %v", len(ids), n, err)
		}
		if strings.HasSuffix(msg.Subject(), "."+string(portal.AuditSealed)) {
			continue // when there is one is not the path's to say
		}
		ids[msg.Headers().Get("Nats-Msg-Id")] = true
	}
	return ids
}
