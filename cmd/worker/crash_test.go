package main

import (
	"context"
	"encoding/base64"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/audit"
	"latchkey/internal/books"
	"latchkey/internal/jobs"
	"latchkey/internal/mailcatcher"
	"latchkey/internal/stripesim"
	"latchkey/internal/testkit"
)

// crashWrite is a line of the crash table of docs/design.md.
type crashWrite struct {
	name  string
	to    farEnd
	write testkit.Write
	click bool   // it belongs to the press of the button, not to the request
	left  []left // by each of the fates, in their order
}

// left is what a row leaves behind beside what every row does: how often something was done, where that is certain.
type left map[string]int

// farEnd is at the other end of a write.
type farEnd int

const (
	toPostgres farEnd = iota
	toNATS
	toMail
	toWebhook
	toStripe
)

// fate is what befalls a write.
type fate struct {
	name string
	how  testkit.Fate
	kill bool // the worker, by SIGKILL, as soon as the server has answered
	away bool // and its customer does not come back within the minute that a click may be open
}

var fates = []fate{
	{"failed", testkit.Failed, false, false},
	{"failed but took effect", testkit.FailedButTook, false, false},
	{"killed right after", testkit.FailedButTook, true, false},
	{"killed right after, the customer is away", testkit.FailedButTook, true, true},
}

func crashTable() []crashWrite {
	// A redelivery finds the link and adds nothing; an event that is stored twice has one id.
	once := []left{{"repeats": 0}, {"repeats": 0}, {"repeats": 0}}
	return []crashWrite{
		{"intake commit", toPostgres, testkit.CommitOf("intake-commit-"), false, once},
		{"NATS ack", toNATS, testkit.Write{Sent: []string{"PUB $JS.ACK." + jobs.RequestsStream + ".", "+ACK\r\n"}, Answer: "PONG\r\n", Probe: "PING\r\n"}, false, once},
		{"event publish", toNATS, testkit.Write{Sent: []string{"HPUB portal.events.link.issued "}, Answer: `"stream":"PORTAL_EVENTS"`}, false, once},
		{"mail send", toMail, testkit.Write{Sent: []string{"\r\n.\r\n"}, Answer: "250 "}, false,
			[]left{{"mails": 1}, {"mails": 2}, {"mails": 2}}},
		{"webhook post", toWebhook, testkit.Write{Sent: []string{"POST /hook HTTP/1.1\r\n"}, Answer: "HTTP/1.1 204"}, false,
			[]left{{"webhooks": 1}, {"webhooks": 2}, {"webhooks": 2}}},
		{"click.started commit", toPostgres, commitOfRow("click.started"), true,
			[]left{{"presses": 2, "shared": 0}, {"presses": 2, "shared": 1}, {"presses": 2, "shared": 1}, {"presses": 2, "shared": 0, "interrupted": 1}}},
		{"Stripe call", toStripe, testkit.Write{Sent: []string{"POST /v1/billing_portal/sessions HTTP/1.1\r\n"}, Answer: "HTTP/1.1 200"}, true,
			[]left{{"presses": 1, "calls": 1}, {"presses": 1, "calls": 2}, {"presses": 2, "shared": 1, "calls": 2},
				{"presses": 2, "shared": 0, "interrupted": 1, "sessions": 2}}},
		{"outcome commit", toPostgres, commitOfRow("session.created"), true,
			[]left{{"presses": 1, "calls": 1}, {"presses": 1, "calls": 1}, {"presses": 2, "shared": 1, "calls": 2}}},
	}
}

// commitOfRow is the commit of an audit row. Its kind is an element of an array among a statement's parameters, with
// its length in front of it.
func commitOfRow(kind string) testkit.Write {
	return testkit.CommitOf("\x00\x00\x00" + string(rune(len(kind))) + kind)
}

// The crash table: each of eight writes failed; failed, but took effect; and the worker was killed right after it. Then
// the fault is lifted, and everything adds up: the customer, who presses until it opens, is in the portal by the one
// session that the link allows, and the books are in order. The rows of a write share a deployment, one after the
// other: what one leaves behind is in the books of the next.
func TestCrashTableOfAllWrites(t *testing.T) {
	t.Parallel()
	for _, w := range crashTable() {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			c := newCrashing(t)
			for i, left := range w.left {
				t.Run(fates[i].name, func(t *testing.T) {
					defer func(outer *testing.T) { c.d.t = outer }(c.d.t)
					c.d.t = t
					c.run(t, w, fates[i], left)
				})
			}
		})
	}
}

// crashing is a deployment whose worker is a process, and whose every connection goes through a wire of the test's.
type crashing struct {
	t     *testing.T  // of all rows of a write
	d     *deployment // its t is the row's
	js    jetstream.JetStream
	wires map[farEnd]*testkit.Wire
	mails *mailcatcher.Catcher
	hook  *hook
	env   []string
	sent  []string // ids of requests

	worker *process
	killed bool // and no other was started yet
}

func newCrashing(t *testing.T) *crashing {
	t.Helper()
	d := deploy(t)
	d.holdSeals()
	c := &crashing{t: t, d: d, hook: newHook(t)}
	js, err := jetstream.New(d.nc)
	if err != nil {
		t.Fatal(err)
	}
	c.js = js
	var mailAddr string
	c.mails, mailAddr = catch(t)
	pg, err := pgx.ParseConfig(d.database)
	if err != nil {
		t.Fatal(err)
	}
	network, socket := pgconn.NetworkAddress(pg.Host, pg.Port)
	c.wires = map[farEnd]*testkit.Wire{
		toPostgres: testkit.NewWire(t, network, socket),
		toNATS:     testkit.NewWire(t, "tcp", hostOf(t, d.nats)),
		toMail:     testkit.NewWire(t, "tcp", mailAddr),
		toWebhook:  testkit.NewWire(t, "tcp", hostOf(t, c.hook.URL)),
		toStripe:   testkit.NewWire(t, "tcp", hostOf(t, d.simURL)),
	}
	c.env = []string{
		"HTTP_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0", "LINK_BASE_URL=http://localhost", "LOG_LEVEL=debug",
		"DATABASE_URL=postgres://" + pg.User + "@" + c.wires[toPostgres].Addr + "/" + pg.Database + "?sslmode=disable",
		"NATS_URL=nats://" + c.wires[toNATS].Addr, "STRIPE_API_BASE=http://" + c.wires[toStripe].Addr,
		"SMTP_URL=smtp://" + c.wires[toMail].Addr, "MAIL_FROM=billing@example.com", "SMTP_RATE=1000",
		"WEBHOOK_SECRETS=whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 32)), "WEBHOOK_ALLOW_PRIVATE=true",
	}
	c.serve()
	return c
}

// holdSeals keeps the audit unsealed until the end of the test, as the books want it.
func (d *deployment) holdSeals() {
	d.t.Helper()
	conn, err := d.pool.Acquire(d.t.Context()) // lift counts the sessions that are not the pool's
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_ = conn.Conn().Close(context.Background())
		conn.Release()
	})
	if _, err := conn.Exec(d.t.Context(), `SELECT pg_advisory_lock($1)`, audit.Lock); err != nil {
		d.t.Fatal(err)
	}
}

func hostOf(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// hook is a webhook's target; it takes everything.
type hook struct {
	*httptest.Server
	mu  sync.Mutex
	ids []string
}

func newHook(t *testing.T) *hook {
	h := &hook{}
	mux := http.NewServeMux() // no other path: a client of another test may still ask at what was its port
	mux.HandleFunc("POST /hook", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h.mu.Lock()
		h.ids = append(h.ids, r.Header.Get("webhook-id"))
		h.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
	h.Server = httptest.NewServer(mux)
	t.Cleanup(h.Close)
	return h
}

func (h *hook) got() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ids)
}

// run is one row.
func (c *crashing) run(t *testing.T, w crashWrite, f fate, want left) {
	defer func() {
		if t.Failed() {
			t.Logf("the worker's log:\n%s", c.worker.out)
		}
	}()
	id := strings.ToLower(regexp.MustCompile(`\W+`).ReplaceAllString(w.name+"-"+f.name, "-"))
	before := c.counted()
	var kill func()
	if f.kill {
		kill = c.kill
	}
	struck := c.wires[w.to].Break(w.write, f.how, kill)
	c.send(id)
	if !w.click {
		c.await(struck)
		c.lift(w.to == toNATS)
	}
	c.rest()
	presses := c.press(id, f, struck)
	c.rest()
	after := c.counted()
	after["presses"] = presses
	if _, more := want["sessions"]; !more {
		want = maps.Clone(want)
		want["sessions"] = 1 // the one that the link allows
	}
	for what, n := range want {
		if got := after[what] - before[what]; got != n {
			t.Errorf("%d %s, want %d", got, what, n)
		}
	}
	b := books.Books{DB: c.d.pool, JetStream: c.js, Requests: c.sent, Sessions: c.d.sim.Sessions(), Mails: c.mails.Mails(), Webhooks: c.hook.got()}
	if err := b.Check(c.d.soon()); err != nil {
		t.Error(err)
	}
}

func (c *crashing) counted() left {
	c.d.t.Helper()
	return left{"mails": len(c.mails.Mails()), "webhooks": len(c.hook.got()), "sessions": len(c.d.sim.Sessions()), "calls": len(c.d.sim.Calls()),
		"shared":      c.d.number(`SELECT count(*) FROM audit_events WHERE kind = 'click.denied' AND detail->>'reason' = 'shared'`),
		"interrupted": c.d.number(`SELECT count(*) FROM clicks WHERE outcome = 'interrupted'`),
		"repeats":     c.d.number(`SELECT count(*) FROM audit_events WHERE kind = 'request.duplicate'`)}
}

// kill ends the worker; a wire calls it while it holds back the server's answer.
func (c *crashing) kill() {
	_ = c.worker.cmd.Process.Kill()
	c.worker.exit()
	c.killed = true
}

func (c *crashing) await(struck <-chan struct{}) {
	c.d.t.Helper()
	select {
	case <-struck:
	case <-c.d.soon().Done():
		c.d.t.Fatal("the write never came")
	}
}

// lift moves the clocks that follow the fault, and starts another worker where this one was killed.
func (c *crashing) lift(acks bool) {
	c.d.t.Helper()
	if acks || c.killed { // a consumer made anew delivers what was not acknowledged, as this one would after its ack wait
		if err := c.js.DeleteConsumer(c.d.soon(), jobs.RequestsStream, jobs.IntakeConsumer); err != nil {
			c.d.t.Fatal(err)
		}
	}
	if c.killed {
		c.killed = false
		// Postgres still does what it was sent: a fetch of jobs behind the moved clock would leave them running.
		c.d.until("the killed worker's database sessions to end", func() bool {
			all := c.d.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'`)
			return all == int(c.d.pool.Stat().TotalConns()) // the test's own
		})
		c.d.expireRiver()
		c.serve()
	}
}

var readyAt = regexp.MustCompile(`"msg":"ready".*"http":"([^"]+)"`)

// serve starts a worker that outlives the row. It takes any port and says which: one that was chosen ahead could be
// another test's by then.
func (c *crashing) serve() {
	defer func(row *testing.T) { c.d.t = row }(c.d.t)
	c.d.t = c.t
	c.worker = c.d.exec(c.env, "run")
	c.d.until("the worker process to be ready", func() bool {
		at := readyAt.FindStringSubmatch(c.worker.out.String())
		if at != nil {
			c.worker.http = "http://" + at[1]
		}
		return at != nil
	})
}

// rest waits until nothing is under way. What is due in 10 s, or by a schedule of days, is due after a second, in which
// the worker publishes by itself and removes the job, if it does.
func (c *crashing) rest() {
	c.d.t.Helper()
	err := books.AwaitRest(c.d.soon(), c.d.pool, c.js, func() error {
		return c.exec(`UPDATE river_job SET state = 'available', scheduled_at = now()
			WHERE (state IN ('scheduled', 'retryable') OR state = 'available' AND scheduled_at > now()) AND created_at < now() - interval '1 second'`)
	})
	if err != nil {
		c.d.t.Fatal(err)
	}
}

func (c *crashing) exec(sql string) error {
	_, err := c.d.pool.Exec(c.d.t.Context(), sql)
	return err
}

// send publishes a request for a link that stands one session, to be sent by mail and by webhook.
func (c *crashing) send(id string) {
	c.d.t.Helper()
	req := request(id)
	one := 1
	req.MaxSessions = &one
	req.Deliver = []jobs.Delivery{{Channel: jobs.ChannelEmail, To: id + "@example.com", Template: "generic"}, {Channel: jobs.ChannelWebhook, URL: "http://" + c.wires[toWebhook].Addr + "/hook"}}
	if _, err := c.d.producer.Send(c.d.soon(), c.d.message(req)); err != nil {
		c.d.t.Fatal(err)
	}
	c.sent = append(c.sent, id)
}

var linkInMail = regexp.MustCompile(`http://[^/\s]+(/l/[\w-]+)`)

// press is the customer, who takes the link from the mail and presses the button until it opens the portal.
func (c *crashing) press(id string, f fate, struck <-chan struct{}) (presses int) {
	c.d.t.Helper()
	mail, err := c.mails.Wait(c.d.soon(), func(m *mailcatcher.Mail) bool { return m.To[0] == id+"@example.com" })
	if err != nil {
		c.d.t.Fatalf("the mail with the link: %v", err)
	}
	link := linkInMail.FindStringSubmatch(mail.Text)
	if link == nil {
		c.d.t.Fatal("no link in the mail")
	}
	for range 3 {
		presses++
		status, _, header, err := do(c.d.soon(), http.MethodPost, c.worker.http+link[1])
		if err != nil { // the worker was killed
			c.await(struck)
			c.leave(f)
			c.lift(false)
		}
		if status == http.StatusSeeOther {
			c.await(struck)
			c.wantPortal(header.Get("Location"))
			return presses
		}
	}
	c.d.t.Fatalf("no portal after %d presses", presses)
	return 0
}

// leave is the minute after which an open click has lost its worker, if the customer is away for so long.
func (c *crashing) leave(f fate) {
	c.d.t.Helper()
	if !f.away {
		return
	}
	if err := c.exec(`UPDATE clicks SET open_until = now() - interval '1 second' WHERE outcome IS NULL`); err != nil {
		c.d.t.Fatal(err)
	}
	defer c.rest() // the next worker sweeps as it starts
	c.lift(false)
}

func (c *crashing) wantPortal(url string) {
	c.d.t.Helper()
	if !slices.ContainsFunc(c.d.sim.Sessions(), func(s stripesim.Session) bool { return s.URL == url }) {
		c.d.t.Error("the button leads elsewhere than to a portal session")
	}
}
