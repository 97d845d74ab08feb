package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats-server/v2/server"

	"latchkey/internal/config"
	"latchkey/internal/testkit"
)

// tlsPostgres is a server with TLS on an address of loopback of its own: the port is every Postgres' one. Linux
// has all of 127.0.0.0/8.
type tlsPostgres struct {
	t     *testing.T
	ca    *testkit.Authority
	host  string
	admin *pgx.Conn // by the socket
}

func newTLSPostgres(t *testing.T) *tlsPostgres {
	t.Helper()
	p := &tlsPostgres{t: t, ca: testkit.NewAuthority(t), host: fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))}
	pg := testkit.OwnPostgres(t, map[string]string{"listen_addresses": p.host})
	var err error
	if p.admin, err = pgx.Connect(t.Context(), pg.URL("postgres")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.admin.Close(context.Background()) })
	p.put("pg_hba.conf", []byte("local all all trust\nhostssl all all 127.0.0.0/8 trust\n"))
	p.give(p.ca.Certificate(t, p.host))
	for _, set := range []string{"ssl_cert_file = 'tls.crt'", "ssl_key_file = 'tls.key'", "ssl = on"} {
		p.exec("ALTER SYSTEM SET " + set)
	}
	p.exec("SELECT pg_reload_conf()")
	return p
}

func (p *tlsPostgres) exec(sql string) {
	p.t.Helper()
	if _, err := p.admin.Exec(p.t.Context(), sql); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
}

// put writes a file of the data folder, as the server's user.
func (p *tlsPostgres) put(name string, content []byte) {
	p.t.Helper()
	p.exec(fmt.Sprintf(`COPY (SELECT unnest(string_to_array($put$%s$put$, E'\n'))) TO PROGRAM 'umask 077; cat > %s'`, content, name))
}

func (p *tlsPostgres) give(cert tls.Certificate) {
	p.t.Helper()
	pem, key := testkit.PEM(p.t, cert)
	p.put("tls.crt", pem)
	p.put("tls.key", key)
}

// answers tells what comes of a connection by the worker's own way.
func (p *tlsPostgres) answers(host string, parameters string) string {
	pool, err := plainPool(p.t.Context(), "postgres://postgres:hushhush@"+host+":5432/postgres?"+parameters)
	if err != nil {
		return err.Error()
	}
	defer pool.Close()
	return "fine"
}

// Postgres has to prove its name, and what is wrong is said with its remedy.
func TestPostgresByTLS(t *testing.T) {
	t.Parallel()
	p, d := newTLSPostgres(t), &deployment{t: t}
	verify := "sslmode=verify-full&sslrootcert=" + p.ca.File(t)
	d.until("a connection by TLS", func() bool { return p.answers(p.host, verify) == "fine" })
	const remedy = "set sslrootcert in DATABASE_URL"
	for name, test := range map[string]struct{ host, parameters, says string }{
		"another authority":  {p.host, "sslmode=verify-full&sslrootcert=" + testkit.NewAuthority(t).File(t), remedy},
		"the system's":       {p.host, "sslmode=verify-full", remedy},
		"plain text refused": {p.host, "sslmode=disable", "no encryption"},
	} {
		if got := p.answers(test.host, test.parameters); got == "fine" || !strings.Contains(got, test.says) || strings.Contains(got, "hushhush") {
			t.Errorf("%s: %s", name, got)
		}
	}
	for name, cert := range map[string]tls.Certificate{"valid for 127.0.0.1": p.ca.Certificate(t, "127.0.0.1"), "expired": p.ca.Expired(t, p.host)} {
		p.give(cert)
		p.exec("SELECT pg_reload_conf()")
		d.until("a certificate that is "+name+" to be refused", func() bool {
			got := p.answers(p.host, verify)
			return strings.Contains(got, name) && strings.Contains(got, remedy)
		})
	}
}

// Who stands between and says that there is no TLS gets nothing but the question for it.
func TestPostgresWithoutTLS(t *testing.T) {
	t.Parallel()
	heard := make(chan string, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all := make([]byte, 0, 1024)
		buf := make([]byte, 1024)
		for {
			n, err := conn.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				heard <- string(all)
				return
			}
			_, _ = conn.Write([]byte("N"))
		}
	}()
	_, err = plainPool(t.Context(), "postgres://u:hushhush@"+l.Addr().String()+"/latchkey?sslmode=verify-full")
	if err == nil || !strings.Contains(err.Error(), "sslmode=disable") {
		t.Errorf("got %v", err)
	}
	if got := <-heard; got != "\x00\x00\x00\x08\x04\xd2\x16\x2f" {
		t.Errorf("it said %q", got)
	}
}

// Off loopback, a DATABASE_URL that says nothing about TLS means all of it.
func TestPostgresTLSIsTheDefault(t *testing.T) {
	t.Parallel()
	for database, safe := range map[string]bool{
		"postgres://u:p@db.example.com/latchkey":                          true,
		"postgresql://u:p@db.example.com/latchkey?pool_max_conns=3":       true,
		"host=db.example.com user=u password=p":                           true,
		"postgres://u:p@127.0.0.1,db.example.com/latchkey":                true,
		"postgres://u:p@127.0.0.1/latchkey":                               true, // nobody listens in
		"postgres://u@/latchkey?host=/run/postgresql":                     true,
		"postgres://u:p@db.example.com/latchkey?sslmode=verify-ca":        true,
		"postgres://u:p@db.example.com/latchkey?sslmode=require":          false,
		"postgres://u:p@db.example.com/latchkey?sslmode=prefer":           false,
		"postgres://u:p@db.example.com/latchkey?sslmode=disable":          false,
		"host=db.example.com sslmode=disable":                             false,
		"postgres://u:p@127.0.0.1,db.example.com/latchkey?sslmode=prefer": false,
		"postgres://u:p@db.example.com/latchkey?ssl=true":                 false, // sslmode=require
		"postgres://u:p@db.example.com/latchkey?":                         true,
		"postgres://u:sslmode@db.example.com/sslmode":                     true,
		"host=db.example.com user=u password=sslmode=disable":             true,
	} {
		cfg, err := poolConfig(database)
		if err != nil {
			t.Errorf("%s: %v", database, err)
			continue
		}
		if got := exposed(cfg.ConnConfig) == ""; got != safe {
			t.Errorf("%s: safe %t", database, got)
		}
		if strings.Contains(database, "?sslmode") || !safe || local(cfg.ConnConfig.Host) && len(cfg.ConnConfig.Fallbacks) == 0 {
			continue
		}
		for _, way := range ways(cfg.ConnConfig) {
			if !local(way.Host) && (way.TLSConfig == nil || way.TLSConfig.ServerName != way.Host) {
				t.Errorf("%s: %s does not have to prove its name", database, way.Host)
			}
		}
	}
}

// What pgx takes as a password is one, whatever net/url would make of it.
func TestPostgresTLSLeavesTheRestAsItIs(t *testing.T) {
	t.Parallel()
	for _, password := range []string{"p^w", "12#x", "a?b", "{x}|y", "sslmode=disable", "p:w", "50%25"} {
		for _, scheme := range []string{"postgres://", "postgresql://"} {
			for _, settings := range []string{"", "?application_name=x", "?application_name=x&pool_max_conns=3"} {
				database := scheme + "latchkey:" + password + "@db.example.com:6543/books" + settings
				cfg, err := parseDatabase(database)
				if err != nil {
					t.Errorf("%s: %v", database, err)
					continue
				}
				c := cfg.ConnConfig
				if c.User != "latchkey" || c.Password != strings.ReplaceAll(password, "%25", "%") || c.Host != "db.example.com" || c.Port != 6543 || c.Database != "books" ||
					settings != "" && c.RuntimeParams["application_name"] != "x" || exposed(c) != "" || c.TLSConfig.ServerName != "db.example.com" {
					t.Errorf("%s: %s with %q at %s:%d/%s, %v; %s", database, c.User, c.Password, c.Host, c.Port, c.Database, c.RuntimeParams, exposed(c))
				}
			}
		}
	}
}

// tlsNATS is a server with a certificate; nil is one without TLS.
func tlsNATS(t *testing.T, config *tls.Config) (addr string) {
	t.Helper()
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, TLS: config != nil, TLSConfig: config, TLSTimeout: 10, Username: "u", Password: "hushhush"})
	if err != nil {
		t.Fatal(err)
	}
	go ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(patience) {
		t.Fatal("NATS is not ready")
	}
	return ns.Addr().String()
}

// Who waits for NATS, and then finds somebody else there, says so and ends: waiting mends nothing.
func TestNATSComesBackAsAnother(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ca := testkit.NewAuthority(t)
	other := tlsNATS(t, ca.Server(t, "nats.example.com"))
	var there atomic.Bool
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if there.Load() {
				go passOn(conn, other)
			} else {
				_ = conn.Close()
			}
		}
	}()
	cfg := &Config{NATS: config.NATS{URL: "tls://u:hushhush@" + l.Addr().String(), CA: ca.File(t)}}
	b := &backends{cfg: cfg}
	if b.nats, err = connectNATS(cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	if err := b.ensureStreams(t.Context()); !natsAway(err) {
		t.Errorf("while it is away: %v", err)
	}
	there.Store(true)
	(&deployment{t: t}).until("the certificate to be the error", func() bool {
		err = b.ensureStreams(t.Context())
		return !natsAway(err)
	})
	if err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "hushhush") {
		t.Error(err)
	}
}

func passOn(conn net.Conn, to string) {
	defer conn.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	go func() { _, _ = io.Copy(server, conn); _ = server.Close() }()
	_, _ = io.Copy(conn, server)
}

// A server that refuses our certificate tells it by an alert, which is no failure of the network. (Where it hangs up
// before the alert is read, it can't be told from one.)
func TestARefusedCertificateIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	demands := ca.Server(t, "127.0.0.1")
	demands.ClientAuth, demands.ClientCAs = tls.RequireAndVerifyClientCert, ca.Client().RootCAs
	l, err := tls.Listen("tcp", "127.0.0.1:0", demands)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	refused := make(chan net.Conn, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			_ = conn.(*tls.Conn).Handshake()
			refused <- conn
		}
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), ca.Client())
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	_ = (<-refused).Close()
	if err = fmt.Errorf("ping: %w", err); natsAway(err) || databaseAway(err) || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("%v is waited for", err)
	}
}

// PgBouncer names the database and the user, which readyz tells to everybody.
func TestReadyzNamesNoUser(t *testing.T) {
	t.Parallel()
	if got := plainly(fmt.Errorf("ping: %w", &pgconn.PgError{Code: "08P01", Message: "server login failed: FATAL password authentication failed for user \"latchkey\""})); strings.Contains(got, "latchkey") {
		t.Error(got)
	}
}

func TestNATSByTLS(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	file := ca.File(t)
	expired := &tls.Config{Certificates: []tls.Certificate{ca.Expired(t, "127.0.0.1")}}
	for name, test := range map[string]struct {
		server *tls.Config
		scheme string
		ca     string
		says   string // empty: it is fine
	}{
		"right":               {ca.Server(t, "127.0.0.1"), "tls", file, ""},
		"the server wants it": {ca.Server(t, "127.0.0.1"), "nats", file, ""},
		"another authority":   {ca.Server(t, "127.0.0.1"), "tls", testkit.NewAuthority(t).File(t), "set NATS_CA"},
		"the system's":        {ca.Server(t, "127.0.0.1"), "nats", "", "set NATS_CA"},
		"another name":        {ca.Server(t, "nats.example.com"), "tls", file, "name the host in NATS_URL as the certificate does"},
		"expired":             {expired, "tls", file, "expired"},
		"no TLS there":        {nil, "tls", "", "demands TLS"},
		"no TLS there, a CA":  {nil, "nats", file, "demands TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc, err := config.NATS{URL: test.scheme + "://u:hushhush@" + tlsNATS(t, test.server), CA: test.ca}.Connect("test")
			if err == nil {
				defer nc.Close()
			}
			switch {
			case (test.says == "") != (err == nil), err != nil && (!strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "hushhush")):
				t.Errorf("got %v, want %q", err, test.says)
			case err == nil && config.Exposed(nc) != "":
				t.Error(config.Exposed(nc))
			}
		})
	}
}
