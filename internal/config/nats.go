package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// NATS is how both binaries reach their server.
type NATS struct {
	Redacted
	URL   string `envconfig:"NATS_URL" default:"nats://127.0.0.1:4222" secret:"true"` // may hold a password
	Creds string `envconfig:"NATS_CREDS"`                                             // file
	CA    string `envconfig:"NATS_CA"`                                                // file
	Inbox string `envconfig:"NATS_INBOX_PREFIX" default:"_INBOX"`                     // where answers come to
}

// Connect dials once and, after that, reconnects for ever. Its error names no password. A certificate is
// always checked: by NATS_CA, which also demands TLS, as tls:// does, else by the system's authorities.
func (c NATS) Connect(name string, more ...nats.Option) (*nats.Conn, error) {
	opts := append([]nats.Option{
		nats.Name(name),
		nats.Timeout(3 * time.Second),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
	}, more...)
	if c.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.Creds))
	}
	if c.CA != "" {
		opts = append(opts, nats.RootCAs(c.CA))
	}
	if c.Inbox != "" {
		if strings.ContainsAny(c.Inbox, "*> ") || strings.HasSuffix(c.Inbox, ".") {
			return nil, errors.New("NATS_INBOX_PREFIX must be a subject without wildcards, such as _INBOX_dunning")
		}
		opts = append(opts, nats.CustomInboxPrefix(c.Inbox))
	}
	nc, err := nats.Connect(c.URL, opts...)
	var parse *url.Error
	if errors.As(err, &parse) {
		return nil, errors.New("NATS_URL is not a URL such as nats://nats:4222") // the cause quotes it
	}
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return nil, fmt.Errorf("the certificate of NATS is not accepted; set NATS_CA to the file of its authority, and name the host in NATS_URL as the certificate does: %w", err)
	}
	if errors.Is(err, nats.ErrSecureConnWanted) {
		return nil, fmt.Errorf("NATS_URL or NATS_CA demands TLS, which the server does not offer; switch it on there: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("no connection to NATS, is NATS_URL right and the server up? %w", err)
	}
	return nc, nil
}

// Exposed tells why a connection can be read or changed on its way, or is empty: nats:// takes plain text where the
// server offers no TLS, and on this machine nobody listens in.
func Exposed(nc *nats.Conn) string {
	if _, err := nc.TLSConnectionState(); err == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(nc.ConnectedAddr())
	if ip, ipErr := netip.ParseAddr(host); err != nil || ipErr == nil && ip.Unmap().IsLoopback() {
		return ""
	}
	return "the connection to NATS is not encrypted; set NATS_URL to tls://… where the network is not yours alone"
}
