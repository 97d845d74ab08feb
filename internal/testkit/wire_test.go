package testkit_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"

	"latchkey/internal/testkit"
)

// lineServer answers each line with "done" and keeps it.
type lineServer struct {
	addr string
	mu   sync.Mutex
	got  []string
}

func newLineServer(t *testing.T) *lineServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &lineServer{addr: l.Addr().String()}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return s
}

func (s *lineServer) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	for lines := bufio.NewReader(conn); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		s.mu.Lock()
		s.got = append(s.got, strings.TrimSpace(line))
		s.mu.Unlock()
		if _, err := io.WriteString(conn, "done\n"); err != nil {
			return
		}
	}
}

func (s *lineServer) lines() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.got, ", ")
}

// say sends pieces on a connection of their own, and returns what came back until the other side ended it, or until
// as many answers came as pieces that end a line.
func say(t *testing.T, addr string, pieces ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	answers := bufio.NewReader(conn)
	var all strings.Builder
	for _, piece := range pieces {
		if _, err := io.WriteString(conn, piece); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if strings.HasSuffix(piece, "\n") {
			answer, _ := answers.ReadString('\n')
			all.WriteString(answer)
		}
	}
	return all.String()
}

// A write is found across pieces and on any connection, fails as it was told, once, and all else passes.
func TestWireBreaksOneWrite(t *testing.T) {
	t.Parallel()
	pay := testkit.Write{Sent: []string{"begin", "pay\n"}, Answer: "done\n"}
	probed := pay
	probed.Answer, probed.Probe = "done\ndone\n", "probe\n"
	for _, c := range []struct {
		name     string
		write    testkit.Write
		fate     testkit.Fate
		answered string // to the one that is broken
		got      string // by the server, in the end
	}{
		{"failed", pay, testkit.Failed, "done\n", "pay, begin, pay, begin, pay"},
		{"failed but took effect", pay, testkit.FailedButTook, "done\n", "pay, begin, pay, pay, begin, pay"},
		{"with a probe", probed, testkit.FailedButTook, "done\n", "pay, begin, pay, probe, pay, begin, pay"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newLineServer(t)
			w := testkit.NewWire(t, "tcp", s.addr)
			told := false
			struck := w.Break(c.write, c.fate, func() { told = true })
			if got := say(t, w.Addr, "pay\n"); got != "done\n" {
				t.Errorf("a write that is another one was answered %q", got)
			}
			if got := say(t, w.Addr, "begin\n", "p", "ay\n"); got != c.answered {
				t.Errorf("answered %q, want %q", got, c.answered)
			}
			<-struck
			if !told {
				t.Error("the test was not told ahead of the cut")
			}
			if got := say(t, w.Addr, "pay\n"); got != "done\n" {
				t.Errorf("after the fault, answered %q", got)
			}
			if got := say(t, w.Addr, "begin\n", "pay\n"); got != "done\ndone\n" {
				t.Errorf("it struck a second time: %q", got)
			}
			if got := s.lines(); got != c.got {
				t.Errorf("the server got %q, want %q", got, c.got)
			}
		})
	}
}
