package notify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"latchkey/internal/mailcatcher"
	"latchkey/internal/testkit"
)

// courier is a Mailer that talks to a script off loopback, over STARTTLS.
type courier struct {
	*Mailer
	script *script
	logs   *bytes.Buffer
}

func newCourier(t *testing.T, s *script, change ...func(*MailerConfig)) *courier {
	t.Helper()
	ca := testkit.NewAuthority(t)
	if s.tls == nil {
		s.tls = ca.Server(t, mailHost)
	}
	if s.offers == nil {
		s.offers = []string{"AUTH PLAIN", "SMTPUTF8", "8BITMIME", "ENHANCEDSTATUSCODES"}
	}
	c := &courier{script: s, logs: &bytes.Buffer{}}
	cfg := MailerConfig{URL: scriptURL, From: "Example <billing@example.com>", TLS: ca.Client(), Log: slog.New(slog.NewTextHandler(c.logs, nil))}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if c.Mailer, err = NewMailer(cfg); err != nil {
		t.Fatal(err)
	}
	c.dial = s.dial
	return c
}

func (c *courier) done(t *testing.T) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if s := c.logs.String(); leaks(s) {
		t.Errorf("a secret is in the log: %s", s)
	}
}

func leaks(s string) bool {
	for _, secret := range []string{scriptPass, "p4ss", recipient, "jo.secret", "says the server", "says%20the"} {
		if strings.Contains(s, secret) {
			return true
		}
	}
	return false
}

func sample(id string) Mail {
	return Mail{DeliveryID: id, To: recipient, Date: time.Date(2026, 11, 3, 10, 0, 0, 0, time.UTC), Subject: "Your payment", Text: "Hello\n", HTML: "<p>Hello</p>"}
}

// send sends with five minutes at hand.
func (c *courier) send(t *testing.T, m Mail) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	err := c.Send(ctx, m)
	if err != nil && leaks(err.Error()) {
		t.Errorf("a secret is in the error: %v", err)
	}
	return err
}

// Invariants 1 and 4: what each answer at each step means for the mail.
func TestAnswers(t *testing.T) {
	t.Parallel()
	server := &MailError{} // stands for ErrMailServer
	tests := []struct {
		verb, answer string
		want         *MailError
	}{
		{"CONNECT", "421 4.3.2", server},
		{"CONNECT", "450 4.3.2", server},
		{"CONNECT", "554 5.3.2", server},
		{"EHLO", "421 4.3.2", server},
		{"EHLO", "451 4.3.0", server},
		{"EHLO", "550 5.7.1", server},
		{"STARTTLS", "421 4.3.2", server},
		{"STARTTLS", "454 4.7.0", server},
		{"STARTTLS", "501 5.5.4", server},
		{"AUTH", "421 4.3.2", server},
		{"AUTH", "454 4.7.0", server},
		{"AUTH", "535 5.7.8", server},
		{"AUTH", "534 5.7.9", server},
		{"MAIL", "421 4.3.2", server},
		{"MAIL", "452 4.3.1", &MailError{Code: 452, EnhancedStatus: "4.3.1", Temporary: true}},
		{"MAIL", "450 4.7.28", &MailError{Code: 450, EnhancedStatus: "4.7.28", Temporary: true}},
		{"MAIL", "550 5.7.1", server}, // names MAIL_FROM alone
		{"MAIL", "530 5.7.0", server},
		{"RCPT", "421 4.7.0", &MailError{Code: 421, EnhancedStatus: "4.7.0", Temporary: true}}, // perhaps this recipient is throttled
		{"RCPT", "450 4.2.1", &MailError{Code: 450, EnhancedStatus: "4.2.1", Temporary: true}},
		{"RCPT", "451 4.7.1", &MailError{Code: 451, EnhancedStatus: "4.7.1", Temporary: true}},
		{"RCPT", "452 4.2.2", &MailError{Code: 452, EnhancedStatus: "4.2.2", Temporary: true}},
		{"RCPT", "550 5.1.1", &MailError{Code: 550, EnhancedStatus: "5.1.1"}},
		{"RCPT", "550-5.1.1 one\r\n550 5.1.1", &MailError{Code: 550, EnhancedStatus: "5.1.1"}},
		{"RCPT", "550", &MailError{Code: 550}},
		{"RCPT", "550 4.1.1", &MailError{Code: 550}}, // of another class than the code
		{"RCPT", "550 5.1.1111", &MailError{Code: 550}},
		{"RCPT", "530 5.7.0", server},
		{"RCPT", "999 9.9.9", server},
		{"RCPT", "250-", server}, // no last line
		{"RCPT", "nonsense", server},
		{"RCPT", "354 5.1.1", server},
		{"DATA", "421 4.3.2", &MailError{Code: 421, EnhancedStatus: "4.3.2", Temporary: true}},
		{"DATA", "451 4.3.0", &MailError{Code: 451, EnhancedStatus: "4.3.0", Temporary: true}},
		{"DATA", "554 5.5.1", &MailError{Code: 554, EnhancedStatus: "5.5.1"}},
		{".", "421 4.3.2", &MailError{Code: 421, EnhancedStatus: "4.3.2", Temporary: true}},
		{".", "451 4.7.1", &MailError{Code: 451, EnhancedStatus: "4.7.1", Temporary: true}},
		{".", "452 4.3.1", &MailError{Code: 452, EnhancedStatus: "4.3.1", Temporary: true}},
		{".", "552 5.3.4", &MailError{Code: 552, EnhancedStatus: "5.3.4"}},
		{".", "554 5.7.1", &MailError{Code: 554, EnhancedStatus: "5.7.1"}},
	}
	for _, test := range tests {
		t.Run(test.verb+" "+test.answer, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{}
				s.set(test.verb, test.answer+" "+serverText)
				c := newCourier(t, s)
				defer c.done(t)
				err := c.send(t, sample("d1"))
				if test.want == server {
					if !errors.Is(err, ErrMailServer) || errors.As(err, new(*MailError)) {
						t.Fatalf("%v is no ErrMailServer", err)
					}
				} else {
					checkMailError(t, err, test.want)
				}
				if got := s.taken(); len(got) > 0 {
					t.Fatal("the script took a mail")
				}
				// What went wrong is past, and with it its effect.
				s.set(test.verb, "")
				if err := c.send(t, sample("d2")); err != nil {
					t.Fatalf("the next mail: %v", err)
				}
			})
		})
	}
}

func checkMailError(t *testing.T, err error, want *MailError) {
	t.Helper()
	var got *MailError
	if !errors.As(err, &got) || errors.Is(err, ErrMailServer) {
		t.Fatalf("%v is no *MailError", err)
	}
	if got.Code != want.Code || got.EnhancedStatus != want.EnhancedStatus || got.Temporary != want.Temporary {
		t.Errorf("got code %d, status %q, temporary %v; want %d, %q, %v", got.Code, got.EnhancedStatus, got.Temporary, want.Code, want.EnhancedStatus, want.Temporary)
	}
	if want.Code != 0 && !strings.Contains(err.Error(), fmt.Sprint(want.Code)) || !strings.Contains(err.Error(), want.EnhancedStatus) {
		t.Errorf("%q does not tell code and status", err)
	}
}

// A server that says nothing, or goes, is the server's fault at every step, and never takes longer than
// the step's limit. The clock is a fake one.
func TestSilence(t *testing.T) {
	t.Parallel()
	limits := map[string]time.Duration{"CONNECT": commandTime, "EHLO": commandTime, "STARTTLS": commandTime, "AUTH": commandTime, "MAIL": commandTime,
		"RCPT": commandTime, "DATA": commandTime, ".": endTime}
	for verb, limit := range limits {
		for _, how := range []string{hang, hangUp} {
			t.Run(verb+" "+how, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := &script{}
					s.set(verb, how, "") // once
					c := newCourier(t, s)
					defer c.done(t)
					began := time.Now()
					err := c.send(t, sample("d1"))
					took := time.Since(began)
					switch before := slices.Contains([]string{"CONNECT", "EHLO", "STARTTLS", "AUTH", "MAIL"}, verb); {
					case before && err != nil:
						t.Errorf("nothing of the mail was said, and yet it was not tried again: %v", err)
					case !before && !(errors.Is(err, ErrMailServer) && errors.Is(err, ErrCutOff)):
						t.Errorf("%v is no ErrCutOff", err)
					case took > limit+c.pace.pause || how == hang && took < limit:
						t.Errorf("it took %v, the step's limit is %v", took, limit)
					}
				})
			})
		}
	}
}

// Invariant 6: the context ends a step whose server hangs, and a wait.
func TestContextEnds(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"CONNECT", "STARTTLS", "AUTH", "MAIL", "RCPT", "."} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{}
				s.set(verb, hang)
				c := newCourier(t, s)
				defer c.done(t)
				ctx, cancel := context.WithCancel(t.Context())
				began := time.Now()
				time.AfterFunc(7*time.Second, cancel)
				err := c.Send(ctx, sample("d1"))
				if !errors.Is(err, ErrMailServer) || !errors.Is(err, context.Canceled) {
					t.Errorf("%v is no ErrMailServer that was cancelled", err)
				}
				if took := time.Since(began); took != 7*time.Second {
					t.Errorf("it took %v after 7 s were given", took)
				}
			})
		})
	}
}

// Invariant 5: a mail that may have been taken is sent again under the same Message-ID.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		c := newCourier(t, s)
		defer c.done(t)
		if err := c.send(t, sample("d1")); err != nil {
			t.Fatal(err)
		}
		s.set(".", hangUp, "")
		if err := c.send(t, sample("d1")); !errors.Is(err, ErrMailServer) {
			t.Fatalf("%v is no ErrMailServer", err)
		}
		if err := c.send(t, sample("d1")); err != nil {
			t.Fatal(err)
		}
		for _, mail := range s.taken() {
			if !strings.Contains(mail, "Message-ID: <d1@example.com>\r\n") || !strings.Contains(mail, "Date: Tue, 03 Nov 2026 10:00:00 +0000\r\n") {
				t.Errorf("another Message-ID or Date: %s", mail)
			}
		}
	})
}

// Invariant 2: off loopback nothing is said in the clear, and to nobody who can't prove the name.
func TestNoTrust(t *testing.T) {
	t.Parallel()
	other := func(t *testing.T, host string) *tls.Config { return testkit.NewAuthority(t).Server(t, host) }
	tests := map[string]struct {
		script func(t *testing.T, ca *testkit.Authority) *script
		url    string
		words  string
	}{
		"STARTTLS stripped": {func(*testing.T, *testkit.Authority) *script { return &script{} }, scriptURL, "does not offer STARTTLS"},
		"unknown authority": {func(t *testing.T, _ *testkit.Authority) *script { return &script{tls: other(t, mailHost)} }, scriptURL, "unknown authority"},
		"expired": {func(t *testing.T, ca *testkit.Authority) *script {
			return &script{tls: &tls.Config{Certificates: []tls.Certificate{ca.Expired(t, mailHost)}}}
		}, scriptURL, "expired"},
		"another name": {func(t *testing.T, ca *testkit.Authority) *script {
			return &script{tls: ca.Server(t, "mail.example.net")}
		}, scriptURL,
			"valid for mail.example.net"},
		"TLS 1.1": {func(t *testing.T, ca *testkit.Authority) *script {
			config := ca.Server(t, mailHost)
			config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			return &script{tls: config}
		}, scriptURL, "protocol version"},
		"another name, smtps": {func(t *testing.T, ca *testkit.Authority) *script {
			return &script{tls: ca.Server(t, "mail.example.net"), implicit: true}
		}, "smtps" + strings.TrimPrefix(scriptURL, "smtp"), "valid for mail.example.net"},
		"no AUTH after TLS": {func(t *testing.T, ca *testkit.Authority) *script {
			return &script{tls: ca.Server(t, mailHost), offers: []string{"8BITMIME"}}
		}, scriptURL, "offers none of"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ca := testkit.NewAuthority(t)
				s := test.script(t, ca)
				if s.offers == nil {
					s.offers = []string{"AUTH PLAIN LOGIN CRAM-MD5"}
				}
				m, err := NewMailer(MailerConfig{URL: test.url, From: "billing@example.com", TLS: ca.Client()})
				if err != nil {
					t.Fatal(err)
				}
				m.dial = s.dial
				defer m.Close()
				c := &courier{Mailer: m, script: s}
				err = c.send(t, sample("d1"))
				if !errors.Is(err, ErrMailServer) || !strings.Contains(err.Error(), test.words) {
					t.Errorf("%v does not tell that it is %q", err, test.words)
				}
				if err := m.Check(t.Context()); !errors.Is(err, ErrMailServer) || !strings.Contains(err.Error(), test.words) || leaks(err.Error()) {
					t.Errorf("the check says %v", err)
				}
				if s.count("AUTH")+s.count("MAIL") > 0 {
					t.Errorf("said all the same: %q", s.heard())
				}
			})
		})
	}
}

// What a stranger slips in before TLS is not taken for the server's (CVE-2011-0411's other side).
func TestInjectedBeforeTLS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		s.set("STARTTLS", "220 go ahead\r\n250-"+mailHost+"\r\n250 AUTH LOGIN")
		c := newCourier(t, s)
		defer c.done(t)
		if err := c.send(t, sample("d1")); err != nil {
			t.Fatal(err)
		}
		if s.count("AUTH PLAIN") != 1 {
			t.Errorf("said %q", s.heard())
		}
	})
}

// An answer without end is cut off.
func TestEndlessAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		s.set("RCPT", strings.Repeat("550-5.1.1 on and on\r\n", maxAnswer/20)+"550 5.1.1 end")
		c := newCourier(t, s)
		defer c.done(t)
		if err := c.send(t, sample("d1")); !errors.Is(err, errTooLong) || !errors.Is(err, ErrMailServer) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSMTPUTF8(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		c := newCourier(t, s)
		mail := sample("d1")
		mail.To = "jö.secret@bücher.example"
		if err := c.send(t, mail); err != nil {
			t.Fatal(err)
		}
		if err := c.send(t, sample("d2")); err != nil {
			t.Fatal(err)
		}
		said := s.heard()
		if !slices.Contains(said, "MAIL FROM:<billing@example.com> BODY=8BITMIME SMTPUTF8") || !slices.Contains(said, "RCPT TO:<jö.secret@xn--bcher-kva.example>") ||
			!slices.Contains(said, "MAIL FROM:<billing@example.com> BODY=8BITMIME") {
			t.Errorf("said %q", said)
		}
		// About this mail's address, and so about the mail.
		s.set("MAIL", "553 5.6.7 "+serverText)
		checkMailError(t, c.send(t, mail), &MailError{Code: 553, EnhancedStatus: "5.6.7"})
		c.done(t)

		plain := &script{offers: []string{"AUTH PLAIN"}}
		c = newCourier(t, plain)
		defer c.done(t)
		checkMailError(t, c.send(t, mail), &MailError{EnhancedStatus: "5.6.7"})
		mail.To = "jo@bücher.example" // needs no SMTPUTF8
		if err := c.send(t, mail); err != nil || plain.count("RCPT TO:<jo@xn--bcher-kva.example>") != 1 {
			t.Errorf("%v; said %q", err, plain.heard())
		}
	})
}

func TestCheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		c := newCourier(t, s)
		defer c.done(t)
		if err := c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.count("AUTH") != 1 || s.count("MAIL") != 1 || s.count("RCPT") != 0 || s.count("QUIT") != 1 {
			t.Errorf("said %q", s.heard())
		}
		for verb, words := range map[string]string{"AUTH": "check user and password of SMTP_URL", "MAIL": "may send as MAIL_FROM"} {
			s.set(verb, "550 5.7.1 "+serverText)
			if err := c.Check(t.Context()); !errors.Is(err, ErrMailServer) || !strings.Contains(err.Error(), words) || leaks(err.Error()) {
				t.Errorf("%s: %v", verb, err)
			}
			s.set(verb, "")
		}
		s.refuse(true)
		if err := c.Check(t.Context()); !errors.Is(err, ErrMailServer) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("got %v", err)
		}
	})
}

// On loopback, where nobody listens in, a plain server will do, with whatever it can.
func TestPlainServerOnLoopback(t *testing.T) {
	t.Parallel()
	catcher := mailcatcher.New(mailcatcher.Config{})
	addr := serve(t, catcher.Serve, catcher.Close)
	m, err := NewMailer(MailerConfig{URL: "smtp://courier:secret@" + addr, From: "billing@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Send(t.Context(), sample("d1")); err != nil {
		t.Fatal(err)
	}
	got, err := catcher.Wait(t.Context(), func(*mailcatcher.Mail) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if got.From != "billing@example.com" || !slices.Equal(got.To, []string{recipient}) || got.Subject != "Your payment" || len(got.Faults) > 0 {
		t.Errorf("caught %+v", got)
	}
}

func serve(t *testing.T, serve func(net.Listener) error, stop func() error) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serve(ln) }()
	t.Cleanup(func() {
		if err := cmp.Or(stop(), <-served); err != nil && !errors.Is(err, smtp.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// strict is a go-smtp server that knows one user by PLAIN.
type strict struct{ smtp.Session }

func (strict) AuthMechanisms() []string { return []string{sasl.Plain} }
func (strict) Logout() error            { return nil }

func (strict) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != scriptUser || password != scriptPass {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}

func (strict) Mail(string, *smtp.MailOptions) error { return nil }
func (strict) Reset()                               {}

// Both ways to TLS, against another implementation of the protocol, with a password that had to be encoded.
func TestBothWaysToTLS(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	for _, scheme := range []string{"smtp", "smtps"} {
		for _, password := range []string{"p4ss%20w%25rd", "wrong"} {
			t.Run(scheme+" "+password, func(t *testing.T) {
				t.Parallel()
				server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return strict{}, nil }))
				server.TLSConfig = ca.Server(t, "127.0.0.1")
				server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
				listen := server.Serve
				if scheme == "smtps" {
					listen = func(ln net.Listener) error { return server.Serve(tls.NewListener(ln, server.TLSConfig)) }
				}
				addr := serve(t, listen, server.Close)
				m, err := NewMailer(MailerConfig{URL: scheme + "://courier:" + password + "@" + addr, From: "billing@example.com", TLS: ca.Client()})
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				err = m.Check(t.Context())
				if password == "wrong" {
					if !errors.Is(err, ErrMailServer) || !strings.Contains(err.Error(), "535 5.7.8") {
						t.Errorf("got %v", err)
					}
				} else if err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestMailerConfig(t *testing.T) {
	t.Parallel()
	good := []struct{ url, server string }{
		{"smtp://mail.example.com", "mail.example.com:587"},
		{"smtps://mail.example.com", "mail.example.com:465"},
		{"smtp://u:p%40ss%2F%3F%23@mail.example.com:25/", "mail.example.com:25"},
		{"smtps://u:p@[2001:db8::1]:2465", "[2001:db8::1]:2465"},
	}
	for _, test := range good {
		m, err := NewMailer(MailerConfig{URL: test.url, From: "Büro <billing@bücher.example>"})
		if err != nil {
			t.Errorf("%s: %v", test.url, err)
			continue
		}
		if m.Server() != test.server || m.MessageID("d1") != "d1@xn--bcher-kva.example" {
			t.Errorf("%s: server %s, %s", test.url, m.Server(), m.MessageID("d1"))
		}
	}
	const from = "billing@example.com"
	bad := []struct{ url, from, name string }{
		{"", from, "SMTP_URL"},
		{"mail.example.com:587", from, "SMTP_URL"},
		{"http://u:hunter2@mail.example.com", from, "SMTP_URL"},
		{"smtp://u:hunter2@", from, "SMTP_URL"},
		{"smtp://u:hunter2@mail.example.com:0", from, "SMTP_URL"},
		{"smtp://u:hunter2@mail.example.com:65536", from, "SMTP_URL"},
		{"smtp://u:hunter2@mail.example.com:smtp", from, "SMTP_URL"},
		{"smtp://u:hunter2@mail.example.com?tls=off", from, "SMTP_URL"},
		{"smtp://u:hunter2@mail.example.com?", from, "SMTP_URL"},
		{"smtp://u:hunter2@mail.example.com/x", from, "SMTP_URL"},
		{"smtp://u:hunter2@mail.example.com#x", from, "SMTP_URL"},
		{"smtp://u:hunter2/x@mail.example.com", from, "SMTP_URL"},
		{"smtp://u:1/hunter2@mail.example.com", from, "SMTP_URL"},
		{"smtp://u:1#hunter2@mail.example.com", from, "SMTP_URL"},
		{"smtp://u:hunter2%zz@mail.example.com", from, "SMTP_URL"},
		{"smtp://u:hunter2%00@mail.example.com", from, "SMTP_URL"},
		{"smtp://hunter2@mail.example.com", from, "SMTP_URL"},
		{"smtp://mail.example.com", "", "MAIL_FROM"},
		{"smtp://mail.example.com", "hunter2", "MAIL_FROM"},
		{"smtp://mail.example.com", "hunter2@", "MAIL_FROM"},
		{"smtp://mail.example.com", "hünter2@example.com", "MAIL_FROM"},
		{"smtp://mail.example.com", "a@example.com, hunter2@example.com", "MAIL_FROM"},
		{"smtp://mail.example.com", "hunter2@example.com\r\nBcc: x@example.com", "MAIL_FROM"},
	}
	for _, test := range bad {
		_, err := NewMailer(MailerConfig{URL: test.url, From: test.from})
		if err == nil || !strings.HasPrefix(err.Error(), test.name+":") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q, %q: %v", test.url, test.from, err)
		}
	}
	if _, err := NewMailer(MailerConfig{URL: good[0].url, From: from, Rate: -1}); err == nil || !strings.HasPrefix(err.Error(), "SMTP_RATE:") {
		t.Errorf("a negative rate: %v", err)
	}
}
