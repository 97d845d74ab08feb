package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/config"
	"latchkey/internal/jobs"
)

// natsOfTheDocs starts a server with the accounts that a page shows, and makes the streams as its user worker. as is
// the URL of a user.
func natsOfTheDocs(t *testing.T, page string) (as func(user string) string, worker *nats.Conn) {
	t.Helper()
	docs, err := os.ReadFile("../../docs/" + page)
	check(t, err)
	_, block, _ := strings.Cut(string(docs), "```\naccounts {")
	block, _, found := strings.Cut(block, "```")
	if !found {
		t.Fatalf("docs/%s has no block of permissions", page)
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	block = strings.ReplaceAll(block, `"…"`, `"pw"`)
	conf := "port: -1\nhost: 127.0.0.1\njetstream {store_dir: " + strconv.Quote(t.TempDir()) + "}\naccounts {" + block
	check(t, os.WriteFile(file, []byte(conf), 0o600))
	opts, err := server.ProcessConfigFile(file)
	check(t, err)
	opts.NoSigs, opts.NoLog = true, true
	ns, err := server.NewServer(opts)
	check(t, err)
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(time.Minute) {
		t.Fatal("NATS does not start")
	}
	as = func(user string) string { return "nats://" + user + ":pw@" + ns.Addr().String() }
	worker, err = config.NATS{URL: as("worker")}.Connect("test")
	check(t, err)
	t.Cleanup(worker.Close)
	js, err := jetstream.New(worker)
	check(t, err)
	check(t, jobs.EnsureStreams(t.Context(), js, true))
	return as, worker
}

// account is a connection of a user of docs/configuration.md, with the inbox that the page gives it.
func account(t *testing.T, as func(string) string, user string) *nats.Conn {
	t.Helper()
	nc, err := config.NATS{URL: as(user), Inbox: "_INBOX_" + user}.Connect("test", nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	check(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// refuses tells whether the server refuses what a user does on a connection of its own.
func refuses(t *testing.T, as func(string) string, user string, do func(*nats.Conn) error) bool {
	t.Helper()
	nc := account(t, as, user)
	check(t, do(nc))
	check(t, nc.FlushTimeout(time.Minute)) // the server's -ERR comes ahead of its PONG
	return errors.Is(nc.LastError(), nats.ErrPermissionViolation)
}

// The accounts of docs/configuration.md can do what they are for, and nothing else: a producer that leaks its password
// can neither send as another one nor hear a link.
func TestAccountsOfTheDocs(t *testing.T) {
	t.Parallel()
	as, worker := natsOfTheDocs(t, "configuration.md")
	for _, endpoint := range []string{"create", "get"} { // the service's permissions are asked for, not what it answers
		_, err := worker.Subscribe("portal.links."+endpoint, func(m *nats.Msg) { _ = m.Respond([]byte("https://pay.example.com/l/x")) })
		check(t, err)
	}
	check(t, worker.Flush())
	publish := func(subject string) func(*nats.Conn) error {
		return func(nc *nats.Conn) error { return nc.Publish(subject, []byte("{}")) }
	}
	listen := func(subject string) func(*nats.Conn) error {
		return func(nc *nats.Conn) error { _, err := nc.SubscribeSync(subject); return err }
	}
	mayNot := map[string][]string{
		"dunning": {"portal.requests.support", "portal.events.link.issued", "portal.dead.expired", "portal.links.create", "portal.links.get", "portal.links.revoke", "portal.campaigns.check",
			"$JS.API.STREAM.PURGE.PORTAL_REQUESTS", "$JS.API.STREAM.MSG.GET.PORTAL_EVENTS", "$JS.API.CONSUMER.CREATE.PORTAL_EVENTS.x", "$JS.API.CONSUMER.MSG.NEXT.PORTAL_REQUESTS.latchkey-intake", "$JS.ACK.PORTAL_REQUESTS.latchkey-intake.1.1.1.1.0"},
		"support": {"portal.requests.support", "portal.links.revoke", "portal.events.link.issued", "portal.campaigns.list", "$JS.API.STREAM.MSG.GET.PORTAL_EVENTS", "$JS.API.STREAM.DELETE.PORTAL_EVENTS"},
		"reader": {"portal.requests.dunning", "portal.links.create", "portal.events.link.issued", "portal.dead.expired", "$JS.API.STREAM.PURGE.PORTAL_EVENTS", "$JS.API.STREAM.MSG.DELETE.PORTAL_EVENTS", "$JS.API.STREAM.UPDATE.PORTAL_EVENTS",
			"$JS.API.CONSUMER.CREATE.PORTAL_REQUESTS.x", "$JS.API.CONSUMER.CREATE.PORTAL_DEAD.x"},
	}
	for user, subjects := range mayNot {
		for _, subject := range subjects {
			if !refuses(t, as, user, publish(subject)) {
				t.Errorf("%s may publish on %s", user, subject)
			}
		}
		for _, subject := range []string{">", "portal.>", "portal.events.link.issued", "portal.requests.>", "portal.dead.>", "portal.links.create", "_INBOX.>", "_INBOX_worker.>", "$SRV.>"} {
			if !refuses(t, as, user, listen(subject)) {
				t.Errorf("%s hears %s", user, subject)
			}
		}
	}
	cmd := command(t, as("dunning"), "link", "--source", "dunning", "--customer", "cus_1")
	cmd.Env = append(cmd.Env, "NATS_INBOX_PREFIX=_INBOX_dunning")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the producer can't send: %v\n%s", err, out)
	}
	for _, endpoint := range []string{"portal.links.create", "portal.links.get"} {
		if answer, err := account(t, as, "support").Request(endpoint, []byte("{}"), time.Minute); err != nil || len(answer.Data) == 0 {
			t.Errorf("support asks %s: %v", endpoint, err)
		}
	}
	check(t, worker.Publish("portal.events.link.issued", []byte(`{"url":"x"}`)))
	js, err := jetstream.New(account(t, as, "reader"))
	check(t, err)
	stream, err := js.Stream(t.Context(), "PORTAL_EVENTS")
	check(t, err)
	consumer, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "mail"})
	check(t, err)
	msg, err := consumer.Next(jetstream.FetchMaxWait(time.Minute))
	check(t, err)
	check(t, msg.DoubleAck(t.Context()))
}
