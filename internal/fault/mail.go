package main

import (
	"io"
	"net"
	"net/mail"
	"sync"
	"sync/atomic"

	"github.com/emersion/go-smtp"
)

// mailMood is how the mail server behaves.
type mailMood int32

const (
	mailTakes     mailMood = iota
	mailDefers             // 451 to each mail
	mailDrops              // the connection ends amid a mail
	mailForgetful          // the mail is taken, and the connection ends before the answer
)

// mailServer keeps who got a mail, by address and Message-ID.
type mailServer struct {
	mood atomic.Int32
	addr string
	smtp *smtp.Server

	forgets bool // it keeps nothing, since a soak goes on for hours

	mu  sync.Mutex
	got map[string]map[string]int // address → Message-ID → times
}

func startMailServer() (*mailServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m := &mailServer{addr: l.Addr().String(), got: map[string]map[string]int{}}
	m.smtp = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &mailSession{server: m, conn: c}, nil }))
	m.smtp.Domain = "localhost"
	go func() { _ = m.smtp.Serve(l) }()
	return m, nil
}

func (m *mailServer) mails() map[string]map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.got // read when nobody sends any more
}

type mailSession struct {
	server *mailServer
	conn   *smtp.Conn
	to     []string
}

func (s *mailSession) Mail(string, *smtp.MailOptions) error      { return nil }
func (s *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error { s.to = append(s.to, to); return nil }
func (s *mailSession) Reset()                                    { s.to = nil }
func (s *mailSession) Logout() error                             { return nil }
func (s *mailSession) Data(r io.Reader) error {
	switch mailMood(s.server.mood.Load()) {
	case mailDefers:
		_, _ = io.Copy(io.Discard, r)
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "try again later"}
	case mailDrops:
		return s.conn.Conn().Close()
	}
	m, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, m.Body); err != nil {
		return err
	}
	s.server.mu.Lock()
	for _, to := range s.to {
		if s.server.forgets {
			continue
		}
		if s.server.got[to] == nil {
			s.server.got[to] = map[string]int{}
		}
		s.server.got[to][m.Header.Get("Message-ID")]++
	}
	s.server.mu.Unlock()
	if mailMood(s.server.mood.Load()) == mailForgetful {
		return s.conn.Conn().Close()
	}
	return nil
}
