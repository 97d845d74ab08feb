package notify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail/smtp"
)

// Time limits of the steps; RFC 5321, 4.5.3.2, has minutes, but a worker waits here.
const (
	connectTime = 10 * time.Second
	commandTime = 30 * time.Second
	endTime     = 2 * time.Minute // DATA's text and its answer: servers scan mails meanwhile
	quitTime    = 5 * time.Second
)

// maxAnswer is how many bytes a server may send within a step, a handshake included.
const maxAnswer = 256 << 10

var (
	errTooLong    = errors.New("the server's answer has no end")
	errNoStartTLS = errors.New("the server does not offer STARTTLS, and nothing is sent in the clear but to loopback; use smtps:// or another port")
	errNoAuth     = errors.New("the server offers none of SCRAM-SHA-256, SCRAM-SHA-1, CRAM-MD5, PLAIN and LOGIN")
)

// server is SMTP_URL.
type server struct {
	host, port     string
	user, password string // user "" = no authentication
	tls            *tls.Config
	implicit       bool // smtps
	loopback       bool
}

// String is host:port; it holds neither user nor password.
func (s *server) String() string { return net.JoinHostPort(s.host, s.port) }

// newServer reads SMTP_URL. Its errors quote nothing of it: a password that is not percent-encoded
// can end up in any part.
func newServer(raw string, config *tls.Config) (*server, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "smtp" && u.Scheme != "smtps" || u.Hostname() == "" {
		return nil, errors.New("SMTP_URL: must be smtp://user:password@host:587 or smtps://…:465, with / ? # @ : % in user and password percent-encoded")
	}
	s := &server{host: u.Hostname(), port: u.Port(), implicit: u.Scheme == "smtps", loopback: isLoopback(u.Hostname())}
	s.user = u.User.Username()
	s.password, _ = u.User.Password()
	if s.port == "" {
		s.port = map[bool]string{false: "587", true: "465"}[s.implicit]
	}
	port, err := strconv.Atoi(s.port)
	switch {
	case err != nil || port < 1 || port > 65535:
		return nil, errors.New("SMTP_URL: the port must be from 1 to 65535")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("SMTP_URL: takes nothing behind the port: no path, no parameters; / ? # in user and password must be percent-encoded")
	case (s.user == "") != (s.password == ""):
		return nil, errors.New("SMTP_URL: must hold user and password, or neither")
	case strings.ContainsAny(s.user+s.password, "\x00\r\n"):
		return nil, errors.New("SMTP_URL: user and password must not hold NUL, CR or LF")
	}
	s.tls = &tls.Config{}
	if config != nil {
		s.tls = config.Clone()
	}
	s.tls.ServerName = s.host
	s.tls.MinVersion = max(s.tls.MinVersion, tls.VersionTLS12)
	return s, nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && addr.IsLoopback()
}

// conn is a connection that is ready for a mail.
type conn struct {
	wire  *boundedConn
	smtp  *smtp.Client
	mails int  // begun on it
	dead  bool // not to be used again
	idle  *time.Timer
}

// boundedConn bounds what the server may send in one step.
type boundedConn struct {
	net.Conn
	left int
}

// Read is the Conn's, until the bound.
func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooLong
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// do runs one step within its time and the context's. All errors but the server's answers about the
// mail end the connection.
func (c *conn) do(ctx context.Context, step string, limit time.Duration, own bool, f func() error) error {
	c.wire.left = maxAnswer
	_ = c.wire.SetDeadline(time.Now().Add(limit)) // fails on a closed connection only, and so will f
	stop := context.AfterFunc(ctx, func() { _ = c.wire.Close() })
	err := f()
	if !stop() {
		c.dead = true // being closed, whatever f returned
		if err != nil {
			err = ctx.Err()
		}
	}
	if err == nil {
		return nil
	}
	err = classify(step, err, own)
	var answer *MailError
	if errors.Is(err, ErrMailServer) || errors.As(err, &answer) && answer.Code == 421 {
		c.close()
	}
	return err
}

func (c *conn) close() {
	c.dead = true
	_ = c.wire.Close() // nothing is lost with it
}

// quit takes leave as RFC 5321 asks.
func (c *conn) quit() {
	if !c.dead {
		_ = c.do(context.Background(), "QUIT", quitTime, false, c.smtp.Quit)
	}
	c.close()
}

// connect opens a connection, encrypts it and authenticates. What comes before TLS is believed by
// nobody: it is read again after the handshake, and no credential is sent in the clear, but to loopback.
func (s *server) connect(ctx context.Context, dial dialer) (*conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dialing, done := context.WithTimeout(ctx, connectTime)
	defer done()
	raw, err := dial(dialing, "tcp", s.String())
	if err != nil {
		return nil, classify(stepConnect, err, false)
	}
	c := &conn{wire: &boundedConn{Conn: raw}}
	if err := s.open(ctx, c); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

func (s *server) open(ctx context.Context, c *conn) error {
	var stream net.Conn = c.wire
	if s.implicit {
		encrypted := tls.Client(c.wire, s.tls)
		if err := c.do(ctx, stepTLS, connectTime, false, func() error { return encrypted.HandshakeContext(ctx) }); err != nil {
			return err
		}
		stream = encrypted
	}
	err := c.do(ctx, stepHello, commandTime, false, func() (err error) {
		if c.smtp, err = smtp.NewClient(stream, s.host); err != nil {
			return err
		}
		return c.smtp.Hello(ownName(c.wire))
	})
	if err != nil {
		return err
	}
	if !s.implicit {
		if err := s.startTLS(ctx, c); err != nil {
			return err
		}
	}
	if s.user == "" {
		return nil
	}
	return c.do(ctx, stepAuth, commandTime, false, func() error {
		mechanism := s.mechanism(c.smtp)
		if mechanism == nil {
			return errNoAuth
		}
		return c.smtp.Auth(mechanism)
	})
}

// ownName is for EHLO: a full host name or else, as RFC 5321, 4.1.4, asks, the address.
func ownName(c net.Conn) string {
	if name, err := os.Hostname(); err == nil && strings.Contains(name, ".") && isASCII(name) && !strings.ContainsAny(name, " \r\n") {
		return name
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	switch {
	case !ok:
		return "localhost"
	case local.IP.To4() != nil:
		return fmt.Sprintf("[%s]", local.IP)
	}
	return fmt.Sprintf("[IPv6:%s]", local.IP)
}

func (s *server) startTLS(ctx context.Context, c *conn) error {
	offered, _ := c.smtp.Extension("STARTTLS")
	if !offered && s.loopback {
		return nil
	}
	return c.do(ctx, stepStartTLS, commandTime, false, func() error {
		if !offered {
			return errNoStartTLS
		}
		return c.smtp.StartTLS(s.tls.Clone())
	})
}

// mechanism is the best that the server offers, nil if there is none. The PLUS variants of SCRAM are left out:
// what they bind to, a certificate, is verified already, and they fail behind proxies that end TLS.
func (s *server) mechanism(c *smtp.Client) smtp.Auth {
	_, offer := c.Extension("AUTH")
	offered := map[string]bool{}
	for _, name := range strings.Fields(strings.ToUpper(offer)) {
		offered[name] = true
	}
	switch {
	case offered["SCRAM-SHA-256"]:
		return smtp.ScramSHA256Auth(s.user, s.password)
	case offered["SCRAM-SHA-1"]:
		return smtp.ScramSHA1Auth(s.user, s.password)
	case offered["CRAM-MD5"]:
		return smtp.CRAMMD5Auth(s.user, s.password)
	case offered["PLAIN"]:
		return smtp.PlainAuth("", s.user, s.password, s.host, s.loopback)
	case offered["LOGIN"]:
		return smtp.LoginAuth(s.user, s.password, s.host, s.loopback)
	}
	return nil
}

// begin opens a transaction. A connection that was used before is reset, which also tells whether it
// still lives. It says nothing of the mail but whether it needs SMTPUTF8.
func (c *conn) begin(ctx context.Context, from string, utf8 bool) error {
	if c.mails > 0 {
		if err := c.do(ctx, stepReset, commandTime, false, c.smtp.Reset); err != nil {
			return unsaid(err)
		}
	}
	c.mails++
	if offered, _ := c.smtp.Extension("SMTPUTF8"); utf8 && !offered {
		return &MailError{EnhancedStatus: "5.6.7"}
	}
	c.smtp.SkipSMTPUTF8(!utf8)
	return unsaid(c.do(ctx, stepMail, commandTime, utf8, func() error { return c.smtp.Mail(from) }))
}

// unsaid marks a failure of the server as one that came before anything of the mail was said.
func unsaid(err error) error {
	var s *serverError
	if errors.As(err, &s) {
		s.again = true
	}
	return err
}

// deliver says the rest of the transaction. It returns nil once the server has taken the mail. An error
// at stepEnd that is not the server's answer leaves open whether it has.
func (c *conn) deliver(ctx context.Context, m *composed) error {
	if err := c.do(ctx, stepRcpt, commandTime, true, func() error { return c.smtp.Rcpt(m.to) }); err != nil {
		return err
	}
	var data io.WriteCloser
	err := c.do(ctx, stepData, commandTime, true, func() (err error) { data, err = c.smtp.Data(); return err })
	if err != nil {
		return err
	}
	return c.do(ctx, stepEnd, endTime, true, func() error {
		if _, err := data.Write(m.body); err != nil {
			return err
		}
		return data.Close()
	})
}
