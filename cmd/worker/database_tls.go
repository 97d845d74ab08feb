package main

import (
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/portal"
)

// parseDatabase reads DATABASE_URL. Where it names no sslmode, a server that is not on this machine has to prove
// its name by a certificate. libpq's own default takes plain text from whoever offers no TLS, and the password and
// every link's data would go to who can put himself between.
func parseDatabase(database string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(database)
	if err != nil || os.Getenv("PGSSLMODE") != "" || !leavesMachine(cfg.ConnConfig) {
		return cfg, err
	}
	return pgxpool.ParseConfig(verifyFirst(database))
}

// verifyFirst puts sslmode=verify-full ahead of the settings, of which the last one of a name wins, so that none has to be
// looked for. It is put in as text: what is a password to pgx may be none to net/url (^ # ? { |), which would
// give another one, or another database.
func verifyFirst(database string) string {
	const setting = "sslmode=verify-full"
	_, hosts, isURL := strings.Cut(database, "://")
	if !isURL || !strings.HasPrefix(database, "postgres://") && !strings.HasPrefix(database, "postgresql://") {
		return setting + " " + database
	}
	if i := strings.IndexAny(hosts, "@/"); i >= 0 && hosts[i] == '@' { // where the password ends for pgconn and libpq
		hosts = hosts[i+1:]
	}
	if _, settings, ok := strings.Cut(hosts, "?"); ok {
		return strings.TrimSuffix(database, settings) + setting + "&" + settings
	}
	return database + "?" + setting
}

// exposed tells why a connection to Postgres can be read or changed on its way, or is empty.
func exposed(cfg *pgx.ConnConfig) string {
	for _, way := range ways(cfg) {
		if !local(way.Host) && (way.TLSConfig == nil || way.TLSConfig.InsecureSkipVerify && way.TLSConfig.VerifyPeerCertificate == nil) {
			return "the connection to Postgres need not be encrypted, or nobody checks the server's certificate; set sslmode=verify-full in DATABASE_URL, with sslrootcert for an authority of your own"
		}
	}
	return ""
}

func leavesMachine(cfg *pgx.ConnConfig) bool {
	for _, way := range ways(cfg) {
		if !local(way.Host) {
			return true
		}
	}
	return false
}

// ways are all that pgx tries: each host, and for some values of sslmode each by TLS and without.
func ways(cfg *pgx.ConnConfig) []*pgconn.FallbackConfig {
	return append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...)
}

// local is true for loopback and Unix sockets.
func local(host string) bool { return strings.HasPrefix(host, "/") || portal.IsLoopback(host) }
