package main

import (
	"encoding/base64"
	"fmt"
	"io"
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

	"latchkey/internal/books"
	"latchkey/internal/jobs"
	"latchkey/internal/mailcatcher"
	"latchkey/internal/stripesim"
	"latchkey/internal/testkit"
)

// crashWrite is a line of the crash table of docs/design.md: a write, and for each fate what a run of one request,
// from its message to the customer in the portal, leaves behind.
type crashWrite struct {
	name  string
	to    server
	write testkit.Write
	left  [3]string // failed; failed but took effect; the worker was killed right after
}

// server is at the other end of a write.
type server int

const (
	toPostgres server = iota
	toNATS
	toMail
	toWebhook
	toStripe
)

const fine = "presses 1, mails 1, webhooks 1, denied 0"

// An audit row's kind is an element of an array among a statement's parameters; its length is in front of it.
func rowOf(kind string) testkit.Write {
	return testkit.CommitOf("\x00\x00\x00" + string(rune(len(kind))) + kind)
}

func crashTable() []crashWrite {
	return []crashWrite{
		{"intake commit", toPostgres, testkit.CommitOf("intake-commit-"), [3]string{fine, fine, fine}},
		{"NATS ack", toNATS, testkit.Write{Sent: []string{"PUB $JS.ACK." + jobs.RequestsStream + ".", "+ACK\r\n"}, Answer: "PONG\r\n", Probe: "PING\r\n"},
			[3]string{fine, fine, fine}},
		{"event publish", toNATS, testkit.Write{Sent: []string{"HPUB portal.events.link.issued "}, Answer: `"stream":"PORTAL_EVENTS"`},
			[3]string{fine, fine, fine}},
		{"mail send", toMail, testkit.Write{Sent: []string{"\r\n.\r\n"}, Answer: "250 "},
			[3]string{fine, "presses 1, mails 2, webhooks 1, denied 0", "presses 1, mails 2, webhooks 1, denied 0"}},
		{"webhook post", toWebhook, testkit.Write{Sent: []string{"POST /hook HTTP/1.1\r\n"}, Answer: "HTTP/1.1 204"},
			[3]string{fine, "presses 1, mails 1, webhooks 2, denied 0", "presses 1, mails 1, webhooks 2, denied 0"}},
		{"click.started commit", toPostgres, rowOf("click.started"), [3]string{fine, fine, fine}},
		{"Stripe call", toStripe, testkit.Write{Sent: []string{"POST /v1/billing_portal/sessions HTTP/1.1\r\n"}, Answer: "HTTP/1.1 200"}, [3]string{fine, fine, fine}},
		{"outcome commit", toPostgres, rowOf("session.created"), [3]string{fine, fine, fine}},
	}
}

// The crash table: each of eight writes failed; failed, but took effect; and the worker was killed, by SIGKILL, right
// after it. Then the fault is lifted, and everything adds up: the customer, who pressed as often as it takes, is in the
// portal by the one session that the link allows, and the books are in order. The rows of a write are in one
// deployment, one after the other: what one leaves behind is in the books of the next.
func TestCrashTableOfAllWrites(t *testing.T) {
	t.Parallel()
	for _, w := range crashTable() {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			c := newCrashing(t)
			for i, fate := range []string{"failed", "failed but took effect", "killed right after"} {
				t.Run(fate, func(t *testing.T) {
					defer func(outer *testing.T) { c.t, c.d.t = outer, outer }(c.t)
					c.t, c.d.t = t, t
					c.run(w, i, strings.ReplaceAll(w.name+" "+fate, " ", "-"))
				})
			}
		})
	}
}

// crashing is a deployment whose worker is a process, and whose every connection goes through a wire of the test's.
type crashing struct {
	t     *testing.T
	d     *deployment
	js    jetstream.JetStream
	wires map[server]*testkit.Wire
	mails *mailcatcher.Catcher
	hook  *hook
	env   []string
	sent  []string // ids of requests

	worker *process
	dead   bool
}

func newCrashing(t *testing.T) *crashing {
	t.Helper()
	d := deploy(t)
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
	c.wires = map[server]*testkit.Wire{
		toPostgres: testkit.NewWire(t, network, socket),
		toNATS:     testkit.NewWire(t, "tcp", hostOf(t, d.nats)),
		toMail:     testkit.NewWire(t, "tcp", mailAddr),
		toWebhook:  testkit.NewWire(t, "tcp", hostOf(t, c.hook.URL)),
		toStripe:   testkit.NewWire(t, "tcp", hostOf(t, d.simURL)),
	}
	c.env = []string{
		"DATABASE_URL=postgres://" + pg.User + "@" + c.wires[toPostgres].Addr + "/" + pg.Database + "?sslmode=disable",
		"NATS_URL=nats://" + c.wires[toNATS].Addr, "STRIPE_API_BASE=http://" + c.wires[toStripe].Addr,
		"SMTP_URL=smtp://" + c.wires[toMail].Addr, "MAIL_FROM=billing@example.com", "SMTP_RATE=1000",
		"WEBHOOK_SECRETS=whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 32)), "WEBHOOK_ALLOW_PRIVATE=true",
	}
	c.worker = d.serve(c.env...)
	return c
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
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h.mu.Lock()
		h.ids = append(h.ids, r.Header.Get("webhook-id"))
		h.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) got() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ids)
}

// run is one row.
func (c *crashing) run(w crashWrite, fate int, id string) {
	c.t.Helper()
	before := c.counted()
	how, then := testkit.FailedButTook, func() {}
	switch fate {
	case 0:
		how = testkit.Failed
	case 2:
		then = c.kill
	}
	struck := c.wires[w.to].Break(w.write, how, then)
	c.send(id)
	if w.to != toStripe && !strings.HasPrefix(w.name, "click") && !strings.HasPrefix(w.name, "outcome") {
		c.await(struck)
		c.lift(w.to == toNATS)
	}
	c.rest()
	presses := c.press(id)
	c.await(struck)
	c.rest()
	after := c.counted()
	left := fmt.Sprintf("presses %d", presses)
	for _, what := range []string{"mails", "webhooks", "denied"} {
		left += fmt.Sprintf(", %s %d", what, after[what]-before[what])
	}
	if left != w.left[fate] {
		c.t.Errorf("left behind: %s; want %s", left, w.left[fate])
	}
	if n := after["sessions"] - before["sessions"]; n != 1 {
		c.t.Errorf("%d sessions at Stripe, want the one that the link allows", n)
	}
	b := books.Books{DB: c.d.pool, JetStream: c.js, Requests: c.sent, Sessions: c.d.sim.Sessions(), Mails: c.mails.Mails(), Webhooks: c.hook.got()}
	if err := b.Check(c.d.soon()); err != nil {
		c.t.Error(err)
	}
	if c.t.Failed() {
		c.t.Logf("the worker's log:\n%s", c.worker.out)
	}
}

func (c *crashing) counted() map[string]int {
	c.t.Helper()
	return map[string]int{"mails": len(c.mails.Mails()), "webhooks": len(c.hook.got()), "sessions": len(c.d.sim.Sessions()),
		"denied": c.d.number(`SELECT count(*) FROM audit_events WHERE kind = 'click.denied'`)}
}

// kill ends the worker; it is called by a wire, which holds back the answer meanwhile.
func (c *crashing) kill() {
	_ = c.worker.cmd.Process.Kill()
	c.worker.exit()
	c.dead = true
}

func (c *crashing) await(struck <-chan struct{}) {
	c.t.Helper()
	select {
	case <-struck:
	case <-c.d.soon().Done():
		c.t.Fatalf("the write was not seen:\n%s", c.worker.out)
	}
}

// lift starts the next worker where this one was killed, with the clocks of leadership, jobs and acknowledgements moved.
func (c *crashing) lift(redeliver bool) {
	c.t.Helper()
	if redeliver || c.dead { // as after the ack wait, a consumer made anew gets what was not acknowledged
		if err := c.js.DeleteConsumer(c.d.soon(), jobs.RequestsStream, jobs.IntakeConsumer); err != nil {
			c.t.Fatal(err)
		}
	}
	if c.dead {
		c.dead = false
		c.d.expireRiver()
		c.worker = c.d.serve(c.env...)
	}
}

// rest waits for it; jobs that are due later, in 10 s or by a schedule of days, are due at once.
func (c *crashing) rest() {
	c.t.Helper()
	err := books.AwaitRest(c.d.soon(), c.d.pool, c.js, func() error {
		_, err := c.d.pool.Exec(c.t.Context(), `UPDATE river_job SET state = 'available', scheduled_at = now() WHERE state IN ('scheduled', 'retryable')`)
		return err
	})
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.worker.out)
	}
}

// send publishes a request for a link that stands one session, to be sent by mail and by webhook.
func (c *crashing) send(id string) {
	c.t.Helper()
	req := request(id)
	one := 1
	req.MaxSessions = &one
	req.Deliver = []jobs.Delivery{{Channel: jobs.ChannelEmail, To: id + "@example.com", Template: "generic"}, {Channel: jobs.ChannelWebhook, URL: "http://" + c.wires[toWebhook].Addr + "/hook"}}
	if _, err := c.d.producer.Send(c.d.soon(), c.d.message(req)); err != nil {
		c.t.Fatal(err)
	}
	c.sent = append(c.sent, id)
}

var linkInMail = regexp.MustCompile(`http://[^/\s]+(/l/[\w-]+)`)

// press is the customer, who follows the link in the mail and presses the button until the portal is there.
func (c *crashing) press(id string) (presses int) {
	c.t.Helper()
	mail, err := c.mails.Wait(c.d.soon(), func(m *mailcatcher.Mail) bool { return m.To[0] == id+"@example.com" })
	if err != nil {
		c.t.Fatal(err)
	}
	link := linkInMail.FindStringSubmatch(mail.Text)
	for link != nil && presses < 5 {
		presses++
		status, _, header, err := do(c.d.soon(), http.MethodPost, c.worker.http+link[1])
		if status == http.StatusSeeOther {
			sessions := c.d.sim.Sessions()
			if where := header.Get("Location"); !slices.ContainsFunc(sessions, func(s stripesim.Session) bool { return s.URL == where }) {
				c.t.Errorf("the button leads elsewhere than to a portal session")
			}
			return presses
		}
		if err != nil {
			c.lift(false)
		}
	}
	c.t.Fatalf("no portal after %d presses:\n%s", presses, c.worker.out)
	return presses
}
