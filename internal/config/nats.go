package config

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/nats-io/nats.go"
)

// NATS is how both binaries reach their server.
type NATS struct {
	URL   string `envconfig:"NATS_URL" default:"nats://127.0.0.1:4222"` // may hold a password
	Creds string `envconfig:"NATS_CREDS"`                               // file
	CA    string `envconfig:"NATS_CA"`                                  // file
}

// Connect dials once and, after that, reconnects for ever. Its error names no password.
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
	nc, err := nats.Connect(c.URL, opts...)
	var parse *url.Error
	if errors.As(err, &parse) {
		return nil, errors.New("NATS_URL is not a URL such as nats://nats:4222") // the cause quotes it
	}
	if err != nil {
		return nil, fmt.Errorf("no connection to NATS, is NATS_URL right and the server up? %w", err)
	}
	return nc, nil
}
