// Package mailcatcher is an SMTP server that delivers nothing: it keeps the mails
// that it takes and shows them on a web page. `worker dev` sends through it, and
// tests read what was sent.
//
// Whatever reaches it is treated as hostile: a page shows a mail's text escaped,
// and its HTML in a sandboxed frame whose policy runs no script, reaches no other
// page and lets links open in a new window only.
//
// Invariants:
//
//  1. Memory is bounded: a mail over Config.MaxBytes is refused, and the oldest
//     mails go when there are more than Config.Keep or all weigh too much.
//  2. No mail is lost to a fault of the parser: what can't be parsed is shown as
//     its source.
//  3. Nothing in a mail becomes markup of our own pages.
package mailcatcher

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Config sets the limits of a Catcher; the zero value is usable.
type Config struct {
	Keep     int           // mails kept; default 200
	MaxBytes int64         // size of one mail; default 5 MB. All together: 20 times that
	Timeout  time.Duration // of a silent SMTP client; default 1 minute
	Now      func() time.Time
	Log      *slog.Logger // faults of the SMTP server; default none
}

// Mail is one caught mail.
type Mail struct {
	ID       int       `json:"id"`
	From     string    `json:"from"` // of the envelope, as is To
	To       []string  `json:"to"`
	Received time.Time `json:"received_at"`
	Size     int       `json:"size"`
	Content            // of the message itself
	Raw      []byte    `json:"-"`
}

// Catcher keeps mails. Its methods may be called concurrently.
type Catcher struct {
	cfg  Config
	smtp *smtp.Server

	mu        sync.Mutex
	closed    bool
	listeners []net.Listener
	mails     []*Mail // oldest first; a mail is never changed once it is here
	bytes     int64
	lastID    int
	arrived   chan struct{} // closed and replaced at each arrival
}

// New returns a Catcher that listens nowhere yet: see Serve and Handler.
func New(cfg Config) *Catcher {
	cfg.Keep = cmp.Or(cfg.Keep, 200)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 5<<20)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Minute)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Catcher{cfg: cfg, arrived: make(chan struct{})}
	s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		return &session{catcher: c}, nil
	}))
	s.Domain = "localhost"
	s.MaxMessageBytes = cfg.MaxBytes
	s.MaxRecipients = 100
	s.ReadTimeout, s.WriteTimeout = cfg.Timeout, cfg.Timeout
	s.AllowInsecureAuth = true // any password is right: there is nothing to protect
	s.EnableSMTPUTF8 = true
	s.ErrorLog = slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn)
	c.smtp = s
	return c
}

// Serve takes mails on the listener until Close, and then returns nil.
func (c *Catcher) Serve(ln net.Listener) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ln.Close()
	}
	// The SMTP server learns of the listener too late for a Close right now.
	c.listeners = append(c.listeners, ln)
	c.mu.Unlock()
	return c.smtp.Serve(ln)
}

// Close ends Serve and all SMTP connections. The mails can still be read.
func (c *Catcher) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	err := c.smtp.Close()
	for _, ln := range c.listeners {
		if e := ln.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// Mails returns the mails that are kept, newest first.
func (c *Catcher) Mails() []*Mail {
	c.mu.Lock()
	defer c.mu.Unlock()
	mails := slices.Clone(c.mails)
	slices.Reverse(mails)
	return mails
}

// Wait returns the oldest kept mail that matches, waiting for it to arrive as
// long as the context allows.
func (c *Catcher) Wait(ctx context.Context, match func(*Mail) bool) (*Mail, error) {
	for {
		c.mu.Lock()
		i := slices.IndexFunc(c.mails, match)
		var found *Mail
		if i >= 0 {
			found = c.mails[i]
		}
		arrived := c.arrived
		c.mu.Unlock()
		if found != nil {
			return found, nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (c *Catcher) find(id int) *Mail {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := slices.BinarySearchFunc(c.mails, id, func(m *Mail, id int) int { return cmp.Compare(m.ID, id) })
	if !ok {
		return nil
	}
	return c.mails[i]
}

// keep adds a mail and drops the oldest ones beyond the limits (invariant 1).
func (c *Catcher) keep(from string, to []string, raw []byte) {
	m := &Mail{From: from, To: to, Received: c.cfg.Now(), Size: len(raw), Content: parse(raw), Raw: raw}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	m.ID = c.lastID
	c.mails = append(c.mails, m)
	c.bytes += int64(m.Size)
	for len(c.mails) > c.cfg.Keep || len(c.mails) > 1 && c.bytes > 20*c.cfg.MaxBytes {
		c.bytes -= int64(c.mails[0].Size)
		c.mails[0] = nil // the array outlives the slice's start
		c.mails = c.mails[1:]
	}
	close(c.arrived)
	c.arrived = make(chan struct{})
}

// session is one SMTP client's connection.
type session struct {
	catcher *Catcher
	from    string
	to      []string
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error { s.from = from; return nil }
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error   { s.to = append(s.to, to); return nil }
func (s *session) Reset()                                      { s.from, s.to = "", nil }
func (s *session) Logout() error                               { return nil }

func (s *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r) // the server stops it at MaxMessageBytes
	if err != nil {
		return err
	}
	s.catcher.keep(s.from, slices.Clone(s.to), raw)
	return nil
}

func (s *session) AuthMechanisms() []string {
	return []string{sasl.Plain, sasl.Login, "CRAM-MD5"}
}

func (s *session) Auth(mechanism string) (sasl.Server, error) {
	switch mechanism {
	case sasl.Plain:
		return &anyone{ask: []string{""}}, nil
	case sasl.Login:
		return &anyone{ask: []string{"Username:", "Password:"}}, nil
	case "CRAM-MD5":
		return &anyone{ask: []string{"<1.1@localhost>"}}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

// anyone goes through the motions of a mechanism and believes every answer.
type anyone struct {
	ask   []string // challenges that are still to be answered
	begun bool
}

func (a *anyone) Next(response []byte) (challenge []byte, done bool, err error) {
	if a.begun || response != nil { // a first call without one only opens
		a.ask = a.ask[1:]
	}
	a.begun = true
	if len(a.ask) == 0 {
		return nil, true, nil
	}
	return []byte(a.ask[0]), false, nil
}
