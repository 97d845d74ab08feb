package notify

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
)

// What a script says in place of an answer.
const (
	hang   = "hang"   // nothing, until the client goes
	hangUp = "hangUp" // the connection is closed
)

// script is an SMTP server that says what it is told. Its connections are pipes, so that it also
// runs under a fake clock.
type script struct {
	tls      *tls.Config // nil = does not offer STARTTLS
	implicit bool        // TLS from the start
	offers   []string    // beside STARTTLS

	mu      sync.Mutex
	down    bool                // connections are refused
	answers map[string][]string // by verb, "CONNECT" and "." among them; the last one stays. Without: yes.
	said    []string            // by clients, the text of mails included
	mails   []string
	dials   int
	open    int
	most    int // open at once
}

const (
	mailHost   = "mail.example.com"
	scriptUser = "courier"
	scriptPass = "p4ss w%rd"
	scriptURL  = "smtp://courier:p4ss%20w%25rd@" + mailHost
	recipient  = "jo.secret@example.org"
	serverText = "rejected <jo.secret@example.org> says the server" // must show up nowhere
)

func (s *script) set(verb string, answers ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers == nil {
		s.answers = map[string][]string{}
	}
	s.answers[verb] = answers
}

func (s *script) refuse(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// heard and taken wait until the script has noted what it was told: they belong into a bubble.
func (s *script) heard() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.said)
}

// count is how many lines of clients begin so.
func (s *script) count(prefix string) int {
	n := 0
	for _, line := range s.heard() {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

func (s *script) taken() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

func (s *script) dialed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

// dial is a Mailer's.
func (s *script) dial(context.Context, string, string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
	if s.down {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	client, server := net.Pipe()
	s.open++
	s.most = max(s.most, s.open)
	go s.serve(server)
	return client, nil
}

// answer is the next one for the verb.
func (s *script) answer(verb, yes string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue := s.answers[verb]
	if len(queue) == 0 {
		return yes
	}
	if len(queue) > 1 {
		s.answers[verb] = queue[1:]
	}
	if queue[0] == "" {
		return yes
	}
	return queue[0]
}

func (s *script) serve(raw net.Conn) {
	stream := raw
	defer func() {
		_ = raw.Close()
		s.mu.Lock()
		s.open--
		s.mu.Unlock()
	}()
	if s.implicit {
		stream = tls.Server(raw, s.tls)
	}
	lines := bufio.NewReader(stream)
	// say returns the code that it answered, and whether the conversation goes on.
	say := func(verb, yes string) (code string, on bool) {
		switch answer := s.answer(verb, yes); answer {
		case hang:
			_, _ = io.Copy(io.Discard, stream)
			return "", false
		case hangUp:
			return "", false
		default:
			_, err := io.WriteString(stream, answer+"\r\n")
			return answer[:3], err == nil && !strings.HasPrefix(answer, "421")
		}
	}
	if _, on := say("CONNECT", "220 ready"); !on {
		return
	}
	for encrypted := s.implicit; ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		s.note(strings.TrimRight(line, "\r\n"))
		verb := strings.ToUpper(strings.Fields(line + " .")[0])
		yes := "250 2.0.0 yes"
		switch verb {
		case "EHLO":
			offers := slices.Clone(s.offers)
			if s.tls != nil && !encrypted {
				offers = append(offers, "STARTTLS")
			}
			yes = "250-" + strings.Join(append([]string{mailHost}, offers...), "\r\n250-")
			i := strings.LastIndex(yes, "250-")
			yes = yes[:i] + "250 " + yes[i+4:]
		case "STARTTLS":
			yes = "220 go ahead"
		case "AUTH":
			yes = "235 2.7.0 welcome"
		case "DATA":
			yes = "354 go ahead"
		case "QUIT":
			yes = "221 bye"
		}
		code, on := say(verb, yes)
		if !on || verb == "QUIT" {
			return
		}
		if verb == "STARTTLS" && code == "220" {
			stream = tls.Server(raw, s.tls)
			lines = bufio.NewReader(stream)
			encrypted = true
		}
		if verb == "DATA" && code == "354" && !s.data(lines, say) {
			return
		}
	}
}

func (s *script) note(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, line)
}

func (s *script) data(lines *bufio.Reader, say func(verb, yes string) (string, bool)) bool {
	var text strings.Builder
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		text.WriteString(strings.TrimPrefix(line, "."))
	}
	code, on := say(".", "250 2.0.0 taken")
	if code == "250" {
		s.mu.Lock()
		s.mails = append(s.mails, text.String())
		s.mu.Unlock()
	}
	return on
}
