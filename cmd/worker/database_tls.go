package main

import (
	"net/url"
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
	if err != nil || strings.Contains(database, "sslmode") || os.Getenv("PGSSLMODE") != "" || !leavesMachine(cfg.ConnConfig) {
		return cfg, err
	}
	u, err := url.Parse(database)
	if err != nil || !strings.HasPrefix(u.Scheme, "postgres") { // a connection string
		return pgxpool.ParseConfig(database + " sslmode=verify-full")
	}
	query := u.Query()
	query.Set("sslmode", "verify-full")
	u.RawQuery = query.Encode()
	return pgxpool.ParseConfig(u.String())
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
