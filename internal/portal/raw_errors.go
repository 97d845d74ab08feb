package portal

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// net/http answers what it can't read as a request by itself, before any handler: 400, 431, 501 and
// 505 straight to the connection, in one write and with nothing but these headers, and an unknown
// Expect by a 417 of its own. Such an answer, too, can stand in a browser at an address with a
// token in it, so the listener sees to its headers. (OPTIONS * is the third of its kind;
// http.Server.DisableGeneralOptionsHandler gives that to the handler.)
const rawErrorHeaders = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// Listener wraps the public server's listener, so that the answers that net/http makes without the
// handler have our headers and say nothing of the inside.
func (s *ClickServer) Listener(l net.Listener) net.Listener {
	headers := http.Header{}
	s.Pages.setHeaders(headers)
	return hardenListener(l, headers)
}

func hardenListener(l net.Listener, headers http.Header) net.Listener {
	var lines bytes.Buffer
	if err := headers.Write(&lines); err != nil {
		panic(fmt.Errorf("write to memory: %w", err))
	}
	return &hardListener{l, lines.String()}
}

type hardListener struct {
	net.Listener
	headers string // as they stand on the wire
}

func (l *hardListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &hardConn{Conn: conn, headers: l.headers}, nil
}

// hardConn rewrites a raw answer. Only the first write of an answer is looked at: what a handler
// writes later is its body, whatever it says, and its first write is a head with a Date, which a
// raw one lacks. Where one answer ends shows in net/http's clearing the write deadline, which it
// does after each that a handler gave (and after nothing else; a release of Go that didn't would
// fail TestRawErrorAfterAnAnswer, and until then leave raw answers as they are).
type hardConn struct {
	net.Conn
	headers   string
	answering atomic.Bool
}

func (c *hardConn) Write(b []byte) (int, error) {
	if c.answering.Load() || bytes.HasPrefix(b, []byte("HTTP/1.1 100 Continue\r\n")) {
		return c.Conn.Write(b)
	}
	c.answering.Store(true)
	hardened, ok := c.harden(b)
	if !ok {
		return c.Conn.Write(b)
	}
	if _, err := c.Conn.Write(hardened); err != nil {
		return 0, err
	}
	return len(b), nil
}

// harden returns what to write in place of an answer's first bytes, if they are net/http's own.
func (c *hardConn) harden(b []byte) ([]byte, bool) {
	line, rest, ok := bytes.Cut(b, []byte("\r\n"))
	if !ok || len(line) < len("HTTP/1.1 400") || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return nil, false
	}
	status, err := strconv.Atoi(string(line[9:12]))
	switch {
	case err != nil || status < 400:
		return nil, false
	case bytes.HasPrefix(b[len(line):], []byte(rawErrorHeaders)):
		// The reason and the body would name what could not be read.
		body := http.StatusText(status) + "\n"
		return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\n%sContent-Length: %d%s%s", status, http.StatusText(status),
			c.headers, len(body), rawErrorHeaders, body), true
	case status == http.StatusExpectationFailed: // no page of ours has this status
		return fmt.Appendf(nil, "%s\r\n%s%s", line, c.headers, rest), true
	}
	return nil, false
}

// SetWriteDeadline takes note of the end of an answer.
func (c *hardConn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		c.answering.Store(false)
	}
	return c.Conn.SetWriteDeadline(t)
}

// CloseWrite lets net/http close its half of the connection first, so that a client that is still
// sending gets to read why it was refused.
func (c *hardConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
