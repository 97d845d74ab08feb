package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/config"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
	"latchkey/internal/rig"
	"latchkey/internal/stack"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

// readiness is what readyz answers.
func (d *deployment) readiness(in *instance) (status int, says map[string]string) {
	d.t.Helper()
	status, body, _ := d.do(http.MethodGet, in.admin+"/readyz")
	if err := json.Unmarshal([]byte(body), &says); err != nil {
		d.t.Fatalf("readyz: %v in %s", err, body)
	}
	return status, says
}

// Started before both servers: it says for what it waits, does what it can with what is there, and is
// ready in the end, without a restart.
func TestStartWaitsForItsServers(t *testing.T) {
	t.Parallel()
	d := deploy(t) // for its simulator and keys
	dir := filepath.Join(t.TempDir(), "pg")
	pg := testkit.Cluster(t, dir)
	d.moveTo(pg)
	code, out := d.command(nil, "tokens", "new", "--name", "t")
	if code != 0 {
		t.Fatalf("tokens new: exit %d\n%s", code, out)
	}
	token := strings.TrimSpace(out)
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.nats = "nats://" + rig.FreePort()

	in := d.launch()
	d.until("readyz to say why it waits for the database", func() bool {
		status, says := d.readiness(in)
		return status == http.StatusServiceUnavailable && strings.HasPrefix(says["database"], "waiting: ") && says["nats"] == "not connected"
	})
	if _, says := d.readiness(in); says["database"] != "waiting: no such file or directory" { // the socket's
		t.Errorf("readyz: %v", says)
	}
	if status, _, _ := d.do(http.MethodGet, in.admin+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
	keys, err := portal.ParseKeys(d.keys)
	if err != nil {
		t.Fatal(err)
	}
	early, err := keys.Sign(keys.SignerID(), uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	if status, page, header := d.do(http.MethodGet, in.click+"/l/"+early); status != http.StatusServiceUnavailable || header.Get("Refresh") == "" {
		t.Errorf("a customer who comes too early: %d\n%s", status, page)
	}

	testkit.Cluster(t, dir)
	d.until("the wait for NATS", func() bool {
		status, says := d.readiness(in)
		return status == http.StatusServiceUnavailable && says["database"] == "ok" && strings.HasPrefix(says["nats"], "waiting: ")
	})
	status, answer := d.api(in, http.MethodPost, "/v1/links", token, mustJSON(t, request("early")))
	var link jobs.IssuedData
	if err := json.Unmarshal([]byte(answer), &link); status != http.StatusCreated || err != nil {
		t.Fatalf("a link without NATS: %d %s", status, answer)
	}
	if status, _, _ := d.do(http.MethodPost, link.URL); status != http.StatusSeeOther {
		t.Errorf("a click without NATS: %d", status)
	}

	startNATSAt(t, d.nats)
	in.untilReady(t)
	if status, says := d.readiness(in); status != http.StatusOK {
		t.Errorf("readyz: %d %v", status, says)
	}
	d.connect()
	if again := d.link(request("early")); again.URL != link.URL {
		t.Error("intake makes another link of the request")
	}
	d.sql(`UPDATE river_job SET state = 'available', scheduled_at = now() WHERE kind = 'publish' AND state = 'scheduled'`) // in place of waiting
	d.eventIDs(t.Context(), 2)                                                                                             // of the link and the click, which waited in Postgres
	if err := in.stop(); err != nil {                                                                                      // before its servers
		t.Error(err)
	}
	for _, line := range strings.Split(in.log.String(), "\n") {
		var entry struct {
			Msg   string
			Tries int
		}
		if json.Unmarshal([]byte(line), &entry) == nil && strings.HasPrefix(entry.Msg, "waiting for a server") && entry.Tries&(entry.Tries-1) != 0 {
			t.Errorf("a line at try %d: the lines are to become fewer", entry.Tries)
		}
	}
}

// moveTo lets the deployment live in another cluster, in a database of its own, migrated.
func (d *deployment) moveTo(pg *stack.Postgres) {
	d.t.Helper()
	d.database = pg.URL("postgres")
	var err error
	if d.pool, err = plainPool(d.t.Context(), d.database); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(d.pool.Close)
	if _, err := migrations.Up(d.t.Context(), d.pool); err != nil {
		d.t.Fatal(err)
	}
}

func startNATSAt(t *testing.T, address string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := net.LookupPort("tcp", u.Port())
	if err != nil {
		t.Fatal(err)
	}
	ns, err := stack.StartNATS(t.Context(), stack.NATSConfig{Dir: t.TempDir(), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Stop() })
}

// connect gives the deployment a producer at the server that it has now.
func (d *deployment) connect() {
	d.t.Helper()
	var err error
	if d.nc, err = (config.NATS{URL: d.nats}).Connect("test"); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(d.nc.Close)
	if d.producer, err = producer.New(d.nc); err != nil {
		d.t.Fatal(err)
	}
}

// A stop that comes while it waits is a stop like any other.
func TestSIGTERMWhileWaiting(t *testing.T) {
	t.Parallel()
	admin := rig.FreePort()
	d := &deployment{t: t, database: "postgres://latchkey@127.0.0.1:1/latchkey", nats: "nats://127.0.0.1:1", keys: "1:" + strings.Repeat("A", 43), simURL: "http://127.0.0.1:1"}
	p := d.exec([]string{"HTTP_ADDR=127.0.0.1:0", "ADMIN_ADDR=" + admin, "LINK_BASE_URL=https://pay.example.com"}, "run")
	d.until("it to wait", func() bool {
		_, body, _, err := do(t.Context(), http.MethodGet, "http://"+admin+"/readyz")
		return err == nil && strings.Contains(body, `"waiting: connection refused"`)
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.exitInTime(t); code != 0 {
		t.Errorf("exit %d:\n%s", code, tail(p.out.String()))
	}
}

// What no waiting mends ends the start with a line that says what to do.
func TestStartEndsOverWhatWaitingCantMend(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.sql(`CREATE ROLE start_outsider LOGIN`)
	t.Cleanup(func() {
		_, _ = d.pool.Exec(context.Background(), `DROP OWNED BY start_outsider; DROP ROLE start_outsider`)
	})
	d.sql(`GRANT SELECT ON latchkey_migrations, river_migration TO start_outsider`)
	for _, test := range []struct {
		what, says string
		change     func(*Config)
	}{
		{"a database that is not there", "does not exist", func(c *Config) { c.DatabaseURL = replacePath(t, c.DatabaseURL, "/nobodys") }},
		{"a user without the role", "GRANT latchkey_app", func(c *Config) { c.DatabaseURL = strings.Replace(c.DatabaseURL, "postgres@", "start_outsider@", 1) }},
		{"a wrong password", "Authorization", func(c *Config) {
			c.NATS.URL = otherNATS(t, &server.Options{Username: "worker", Password: "right", JetStream: true}, "worker:wrong@")
		}},
		{"NATS without JetStream", "enable it for the server", func(c *Config) { c.NATS.URL = otherNATS(t, &server.Options{}, "") }},
		{"the schema of the release before", "run 'worker migrate' first", func(*Config) {
			d.sql(`DELETE FROM latchkey_migrations WHERE version_id = (SELECT max(version_id) FROM latchkey_migrations)`)
		}},
	} {
		t.Run(test.what, func(t *testing.T) {
			d := *d
			d.t = t
			in := d.launch(test.change)
			err := in.untilEnded(t)
			if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want one line with %q", err, test.says)
			}
		})
	}
}

func replacePath(t *testing.T, address, path string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = path
	return u.String()
}

// otherNATS starts a server by options and returns its URL with the user in it.
func otherNATS(t *testing.T, opts *server.Options, user string) string {
	t.Helper()
	opts.Host, opts.Port, opts.NoSigs, opts.StoreDir = "127.0.0.1", server.RANDOM_PORT, true, t.TempDir()
	ns, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	return "nats://" + user + ns.Addr().String()
}

func TestAway(t *testing.T) {
	t.Parallel()
	postgres := func(code string) error { return fmt.Errorf("ping: %w", &pgconn.PgError{Code: code}) }
	for err, want := range map[error]bool{
		nil: false, errors.New("x"): false, context.Canceled: false, errPooled: false,
		postgres("57P03"): true, postgres("53300"): true, postgres("57P01"): true, postgres("08P01"): true,
		postgres("28P01"): false, postgres("28000"): false, postgres("3D000"): false, postgres("42501"): false, postgres("57014"): false,
		context.DeadlineExceeded: true, oneLine{&net.DNSError{Name: "db", IsNotFound: true}}: true,
	} {
		if databaseAway(err) != want {
			t.Errorf("the database, %v: %v", err, !want)
		}
	}
	stream := func(code int, number jetstream.ErrorCode) error {
		return fmt.Errorf("stream: %w", &jetstream.APIError{Code: code, ErrorCode: number})
	}
	for err, want := range map[error]bool{
		nil: false, nats.ErrNoServers: true, nats.ErrAuthorization: false, nats.ErrTimeout: true, context.DeadlineExceeded: true,
		stream(503, 10008): true, stream(503, jetstream.JSErrCodeJetStreamNotEnabledForAccount): false, stream(400, 10025): false,
		jetstream.ErrJetStreamNotEnabled: false,
	} {
		if natsAway(err) != want {
			t.Errorf("NATS, %v: %v", err, !want)
		}
	}
}
