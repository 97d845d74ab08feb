package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
	"latchkey/internal/producer"
	"latchkey/internal/testkit"
)

// send publishes a request as a producer does.
func (d *deployment) send(t *testing.T, source, body string, headers ...string) {
	t.Helper()
	msg := nats.NewMsg(jobs.RequestsPrefix + source)
	for i := 0; i < len(headers); i += 2 {
		msg.Header.Add(headers[i], headers[i+1])
	}
	msg.Data = []byte(body)
	_, err := d.js.PublishMsg(t.Context(), msg)
	check(t, err)
}

// settled waits until every request that was sent has its link or its letter: intake ends a
// request's delivery only then.
func (d *deployment) settled(t *testing.T) {
	t.Helper()
	stream, err := d.js.Stream(t.Context(), jobs.RequestsStream)
	check(t, err)
	for tick := time.NewTicker(2 * time.Millisecond); ; <-tick.C {
		info, err := stream.Info(t.Context())
		check(t, err)
		if info.State.Msgs == 0 {
			return
		}
	}
}

// letter publishes what a worker of other settings made: a dead letter of a request that this
// deployment would serve.
func (d *deployment) letter(t *testing.T, code, subject, body string) uint64 {
	t.Helper()
	msg := nats.NewMsg(jobs.DeadPrefix + code)
	msg.Header.Set(jobs.HeaderCode, code)
	msg.Header.Set(jobs.HeaderReason, "$.livemode is true and STRIPE_API_KEY's mode is false")
	msg.Header.Set(jobs.HeaderSequence, "1")
	msg.Header.Set(jobs.HeaderSubject, subject)
	msg.Data = []byte(body)
	ack, err := d.js.PublishMsg(t.Context(), msg)
	check(t, err)
	return ack.Sequence
}

// letters are the numbers of those that there are.
func (d *deployment) letters(t *testing.T) []uint64 {
	t.Helper()
	var numbers []uint64
	for _, line := range d.list(t) {
		numbers = append(numbers, line.Sequence)
	}
	return numbers
}

type listed struct {
	Sequence          uint64
	Code, Source      string
	RequestID         string `json:"request_id"`
	Reason, Subject   string
	RequestedSequence uint64 `json:"request_sequence"`
	Bytes             int
}

func (d *deployment) list(t *testing.T, args ...string) []listed {
	t.Helper()
	code, out, stderr := enqueue(t, d.url, "", append([]string{"dead", "list", "--json"}, args...)...)
	if code != 0 {
		t.Fatalf("list: exit %d\n%s", code, stderr)
	}
	var lines []listed
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var line listed
		err := dec.Decode(&line)
		if errors.Is(err, io.EOF) {
			return lines
		}
		check(t, err)
		lines = append(lines, line)
	}
}

// links counts those of a request's id, and all.
func (d *deployment) links(t *testing.T, requestID string) (of, all int) {
	t.Helper()
	check(t, d.pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE request_id = $1), count(*) FROM links`, requestID).Scan(&of, &all))
	return of, all
}

func body(id, more string) string {
	return fmt.Sprintf(`{"id": %q, "source": "dunning", "session": {"customer": "cus_1"}%s}`, id, more)
}

const subject = jobs.RequestsPrefix + "dunning"

func TestRejectedRequestsAreListedAndShown(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	if code, out, stderr := enqueue(t, d.url, "", "dead", "list"); code != 0 || out != "" || stderr != "enqueue: there are no dead letters\n" {
		t.Errorf("none: exit %d, %q %q", code, out, stderr)
	}
	d.send(t, "dunning", body("in_1", `, "sesion": {"a": "<&>"}`), "Traceparent", "00-1", "Nats-Msg-Id", "theirs")
	d.settled(t)
	d.send(t, "support", `{"id": "in_2"`)
	d.settled(t)
	code, out, stderr := enqueue(t, d.url, "", "dead", "list")
	rows := strings.Split(out, "\n")
	if code != 0 || len(rows) != 4 || stderr != "enqueue: 2 letters: invalid_field 1, invalid_json 1\n" {
		t.Fatalf("exit %d\n%s%s", code, out, stderr)
	}
	for i, want := range [][]string{{"LETTER"}, {"1 ", "invalid_field", "dunning", "in_1", "$.sesion"}, {"2 ", "invalid_json", "support", "–"}} {
		for _, w := range want {
			if !strings.Contains(rows[i], w) {
				t.Errorf("row %d lacks %q: %s", i, w, rows[i])
			}
		}
	}
	if lines := d.list(t); len(lines) != 2 || lines[0].RequestID != "in_1" || lines[0].RequestedSequence != 1 || lines[0].Subject != subject || lines[0].Bytes != len(body("in_1", `, "sesion": {"a": "<&>"}`)) || lines[1].Source != "support" {
		t.Errorf("%+v", lines)
	}
	code, out, _ = enqueue(t, d.url, "", "dead", "show", "1")
	for _, want := range []string{"code      invalid_field", "request   in_1", "subject   portal.requests.dunning (message 1 of PORTAL_REQUESTS)", "header    Traceparent: 00-1", "\n{\n  \"id\": \"in_1\",\n", `    "a": "<&>"`} {
		if !strings.Contains(out, want) {
			t.Errorf("show lacks %q: exit %d\n%s", want, code, out)
		}
	}
	if strings.Contains(out, "Nats-") || strings.Contains(out, "header    Latchkey-") {
		t.Errorf("the letter's own headers are shown as the request's:\n%s", out)
	}
	if _, out, _ := enqueue(t, d.url, "", "dead", "show", "--raw", "2"); out != `{"id": "in_2"` {
		t.Errorf("raw: %q", out)
	}
	if code, _, stderr := enqueue(t, d.url, "", "dead", "show", "3"); code != 1 || !strings.Contains(stderr, "no such letter") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("unknown: exit %d\n%s", code, stderr)
	}
}

// On a narrow terminal the reason is on a line of its own, and no line is longer than the terminal.
func TestLettersOnATerminal(t *testing.T) {
	t.Parallel()
	l := &producer.DeadLetter{Sequence: 12, Code: "invalid_field", Subject: subject, Reason: "$.sesion: " + strings.Repeat("x", 300), Body: []byte(body(strings.Repeat("i", 100), ""))}
	for _, c := range []struct{ width, lines, longest int }{{80, 4, 80}, {130, 2, 130}, {0, 2, 464}} {
		var out strings.Builder
		table := letterTable{w: &out, width: c.width}
		check(t, table.print(l))
		longest := 0
		for line := range strings.Lines(out.String()) {
			longest = max(longest, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
		}
		if strings.Count(out.String(), "\n") != c.lines || longest != c.longest || !strings.Contains(out.String(), "$.sesion: xxx") {
			t.Errorf("%d columns: %d characters\n%s", c.width, longest, out.String())
		}
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.letter(t, "expired", subject, body("a", ""))
	d.letter(t, "expired", jobs.RequestsPrefix+"support", body("b", ""))
	d.letter(t, "mode_mismatch", subject, body("c", ""))
	stream, err := d.js.Stream(t.Context(), jobs.DeadStream)
	check(t, err)
	second, err := stream.GetMsg(t.Context(), 2)
	check(t, err)
	at := second.Time.Format(time.RFC3339Nano)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "[1 2 3]"},
		{[]string{"--code", "expired"}, "[1 2]"},
		{[]string{"--source", "dunning"}, "[1 3]"},
		{[]string{"--source", "dunning", "--code", "expired"}, "[1]"},
		{[]string{"--since", at}, "[2 3]"},
		{[]string{"--until", at}, "[1 2]"},
		{[]string{"--since", at, "--until", at}, "[2]"},
		{[]string{"--since", "24h"}, "[1 2 3]"},
		{[]string{"--until", "24h"}, "[]"},
		{[]string{"--limit", "2"}, "[1 2]"},
		{[]string{"--limit", "1", "--source", "support"}, "[2]"},
		{[]string{"--code", "nothing_such"}, "[]"},
	} {
		got := []uint64{}
		for _, line := range d.list(t, c.args...) {
			got = append(got, line.Sequence)
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%v: %v, want %s", c.args, got, c.want)
		}
	}
	if _, _, stderr := enqueue(t, d.url, "", "dead", "list", "--code", "nothing_such"); stderr != "enqueue: no letter fits; there are in all 3 letters: expired 2, mode_mismatch 1\n" {
		t.Errorf("%q", stderr)
	}
	for _, args := range [][]string{{"list", "--code", "a.>"}, {"list", "--source", "A"}, {"list", "--since", "yesterday"}, {"list", "--since", "-1h"}, {"list", "--limit", "-1"},
		{"list", "--since", "1h", "--until", "2h"}, {"show"}, {"show", "x"}, {"show", "0"}, {"replay"}, {"replay", "--all"}, {"replay", "1", "--all"}, {"replay", "1", "--code", "expired"},
		{"replay", "x"}, {"replay", "1", "--edit", "/nowhere"}, {"replay", "1", "--edit", "[{}]"}, {"replay", "1", "--edit", " "}, {"frob"}} {
		if code, _, stderr := enqueue(t, d.url, "null", append([]string{"dead"}, args...)...); code != 2 || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit %d\n%s", args, code, stderr)
		}
	}
	if code, _, stderr := enqueue(t, d.url, "null", "dead", "replay", "1", "--edit", "-"); code != 2 {
		t.Errorf("null is no patch: exit %d\n%s", code, stderr)
	}
}

// Whatever a producer sent, nothing but printable characters and line ends reaches a terminal.
func TestHostileLetters(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	deep := strings.Repeat(`{"a":[`, 4000) + strings.Repeat(`0,`, 5000) + "0" + strings.Repeat("]}", 4000)
	bodies := []string{
		"\x1b[2J\x1b]0;title\x07 not JSON \u009b1A\r\n\u202e",
		"\xff\xfe\x00",
		"{\"id\": \"a\u009b\u202e\", \"x\": \"\x7f\u200b\"}",
		"{\"id\": \"\xff\"}",
		`{"id": "twice", "id": "twice"}`,
		strings.Repeat("[", 200_000),
		`{"id": "long", "x": "` + strings.Repeat("x", jobs.MaxRequestBytes) + `"}`,
		deep,
		"",
		"null",
		`{"source": "dunning", "session": {"customer": "cus_1"}}`,
	}
	for _, body := range bodies {
		d.send(t, "dunning", body, "X-Hostile", "\x1b[2J\u009b\u202e")
	}
	d.send(t, "\u009b2J", body("subject", ""))
	d.settled(t)
	numbers := d.letters(t)
	if len(numbers) != len(bodies)+1 {
		t.Fatalf("letters %v", numbers)
	}
	calm := func(what string, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) }); i >= 0 {
				t.Errorf("%s: %q", what, text[i:min(len(text), i+20)])
			}
			if len(text) > 2<<20 {
				t.Errorf("%s: %d bytes", what, len(text))
			}
		}
	}
	_, out, stderr := enqueue(t, d.url, "", "dead", "list")
	calm("list", out, stderr)
	_, out, stderr = enqueue(t, d.url, "", "dead", "list", "--json")
	calm("list --json", out, stderr)
	for _, n := range numbers {
		number := fmt.Sprint(n)
		code, out, stderr := enqueue(t, d.url, "", "dead", "show", number)
		if code != 0 {
			t.Errorf("show %s: exit %d\n%s", number, code, stderr)
		}
		calm("show "+number, out, stderr)
	}
	for _, n := range numbers[:2] {
		if _, raw, _ := enqueue(t, d.url, "", "dead", "show", "--raw", fmt.Sprint(n)); !slices.Contains(bodies, raw) {
			t.Errorf("no producer sent %q", raw)
		}
	}
	// Not one can be served, so not one is sent round once more.
	var code int
	if code, out, stderr = enqueue(t, d.url, "", "dead", "replay", "--all", "--yes"); code != 1 || out != "" || strings.Count(stderr, "enqueue: letter ") != len(numbers) || !strings.Contains(stderr, "0 letters sent again, 12 not") {
		t.Errorf("replay: exit %d\n%s%s", code, out, stderr)
	}
	calm("replay", stderr)
	if after := d.letters(t); fmt.Sprint(after) != fmt.Sprint(numbers) {
		t.Errorf("letters after: %v", after)
	}
}

func TestReplayServesTheRequestAndDeletesItsLetter(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	n := d.letter(t, "mode_mismatch", subject, body("in_1", ""))
	if code, out, stderr := enqueue(t, d.url, "", "dead", "replay", fmt.Sprint(n), "--dry-run"); code != 0 || !strings.Contains(out, "would be sent to "+subject+"  in_1") || !strings.Contains(stderr, "1 letter would be") {
		t.Errorf("dry run: exit %d\n%s%s", code, out, stderr)
	}
	d.settled(t)
	if _, all := d.links(t, "in_1"); all != 0 || len(d.letters(t)) != 1 {
		t.Fatalf("a dry run made %d links, letters %v", all, d.letters(t))
	}
	code, out, stderr := enqueue(t, d.url, "", "dead", "replay", fmt.Sprint(n), "--keep")
	if code != 0 || out != "letter 1  sent again  in_1\n" || stderr != "enqueue: 1 letter sent again\n" {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	if code, out, _ = enqueue(t, d.url, "", "dead", "replay", fmt.Sprint(n)); code != 0 || out != "letter 1  was sent a moment ago  in_1\n" {
		t.Errorf("again: exit %d\n%s", code, out)
	}
	d.settled(t)
	if of, all := d.links(t, "in_1"); of != 1 || all != 1 || len(d.letters(t)) != 0 {
		t.Errorf("links %d of %d, letters %v", of, all, d.letters(t))
	}
	if code, _, stderr := enqueue(t, d.url, "", "dead", "replay", fmt.Sprint(n)); code != 1 || !strings.Contains(stderr, "letter 1: there is no such letter") {
		t.Errorf("a letter that is gone: exit %d\n%s", code, stderr)
	}
}

// What is still wrong becomes a new letter, and a replay of all does not meet it again.
func TestReplayOfAllDoesNotGoRound(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	for i := range 3 {
		d.send(t, "dunning", body(fmt.Sprint("in_", i), `, "sesion": 1`), "Traceparent", "00-1")
	}
	d.settled(t)
	if code, out, stderr := enqueue(t, d.url, "", "dead", "replay", "--all", "--yes"); code != 0 || strings.Count(out, "sent again") != 3 {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	d.settled(t)
	if got := d.letters(t); fmt.Sprint(got) != "[4 5 6]" {
		t.Errorf("letters %v", got)
	}
	if _, out, _ := enqueue(t, d.url, "", "dead", "show", "4"); !strings.Contains(out, "Traceparent: 00-1") {
		t.Errorf("the new letter:\n%s", out)
	}
	if code, out, stderr := enqueue(t, d.url, "", "dead", "replay", "--all", "--code", "expired"); code != 0 || out != "" || !strings.Contains(stderr, "no letter fits") {
		t.Errorf("none fits: exit %d\n%s%s", code, out, stderr)
	}
}

func TestEdit(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.send(t, "dunning", body("typo", `, "sesion": 1`))
	d.settled(t)
	d.send(t, "dunning", body("fine", `, "metadata": {"a": null}`))
	d.settled(t)
	d.send(t, "dunning", `{"source": "dunning", "session": {"customer": "cus_1"}}`)
	d.settled(t)
	remove := `[{"op": "remove", "path": "/sesion"}]`
	code, out, _ := enqueue(t, d.url, "", "dead", "replay", "1", "--edit", remove, "--dry-run")
	if code != 0 || !strings.Contains(out, "{\n  \"id\": \"typo\",\n") || strings.Contains(out, "sesion") {
		t.Errorf("dry run: exit %d\n%s", code, out)
	}
	// A patch that fits one of three leaves the other two as they are.
	code, out, stderr := enqueue(t, d.url, remove, "dead", "replay", "--all", "--yes", "--edit", "-")
	if code != 1 || out != "letter 1  sent again  typo\n" || strings.Count(stderr, "the patch does not fit") != 2 || !strings.Contains(stderr, "1 letter sent again, 2 not") {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	file := filepath.Join(t.TempDir(), "fix.json")
	check(t, os.WriteFile(file, []byte(`[{"op": "add", "path": "/id", "value": "given <é>"}]`), 0o600))
	if code, out, stderr := enqueue(t, d.url, "", "dead", "replay", "3", "--edit", file); code != 0 || !strings.Contains(out, "given <é>") {
		t.Errorf("an id by edit: exit %d\n%s%s", code, out, stderr)
	}
	d.settled(t)
	for _, id := range []string{"typo", "given <é>"} {
		if of, _ := d.links(t, id); of != 1 {
			t.Errorf("%s has %d links", id, of)
		}
	}
	if got := d.letters(t); fmt.Sprint(got) != "[2]" {
		t.Errorf("letters %v", got)
	}
	// The id of a link that there is, with other content.
	if code, _, stderr := enqueue(t, d.url, "", "dead", "replay", "2", "--edit", `[{"op":"replace","path":"/id","value":"typo"},{"op":"replace","path":"/metadata/a","value":"b"}]`); code != 0 {
		t.Errorf("exit %d\n%s", code, stderr)
	}
	d.settled(t)
	if lines := d.list(t); len(lines) != 1 || lines[0].Code != "id_conflict" || lines[0].RequestID != "typo" {
		t.Errorf("%+v", lines)
	}
	if of, all := d.links(t, "typo"); of != 1 || all != 2 {
		t.Errorf("%d links, %d in all", of, all)
	}
}

// One patch that gives an id gives every letter the same one.
func TestEditGivesNoTwoLettersOneID(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	for _, customer := range []string{"cus_1", "cus_2"} {
		d.letter(t, "invalid_field", subject, `{"source": "dunning", "session": {"customer": "`+customer+`"}}`)
	}
	code, _, stderr := enqueue(t, d.url, "", "dead", "replay", "1", "2", "--edit", `[{"op": "add", "path": "/id", "value": "x"}]`)
	if code != 1 || !strings.Contains(stderr, "letter 2: the patch gives it the id that letter 1 got") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
	if got := d.letters(t); fmt.Sprint(got) != "[2]" {
		t.Errorf("letters %v", got)
	}
}

func TestAThousandLetters(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	const n = 1000
	for i := range n {
		msg := nats.NewMsg(subject)
		msg.Data = []byte(body(fmt.Sprint("in_", i), `, "sesion": 1`))
		_, err := d.js.PublishMsgAsync(msg)
		check(t, err)
	}
	<-d.js.PublishAsyncComplete()
	d.settled(t)
	code, out, stderr := enqueue(t, d.url, "", "dead", "list")
	if code != 0 || strings.Count(out, "\n") != n+1 || stderr != "enqueue: 1000 letters: invalid_field 1000\n" {
		t.Fatalf("list: exit %d, %d lines\n%s", code, strings.Count(out, "\n"), stderr)
	}
	code, out, stderr = enqueue(t, d.url, "", "dead", "replay", "--all", "--since", "1h", "--edit", `[{"op": "remove", "path": "/sesion"}]`)
	if code != 0 || strings.Count(out, "sent again") != n || stderr != "enqueue: 1000 letters sent again\n" {
		t.Fatalf("replay: exit %d, %d lines\n%s", code, strings.Count(out, "\n"), stderr)
	}
	d.settled(t)
	if _, all := d.links(t, ""); all != n || len(d.letters(t)) != 0 {
		t.Errorf("%d links, %d letters", all, len(d.letters(t)))
	}
}

// proxy stands between enqueue and NATS. From the first time that cut fits what either side sends,
// nothing passes any more, and met is closed.
type proxy struct {
	url string
	met chan struct{}
}

func newProxy(t *testing.T, to string, fromServer bool, cut string) *proxy {
	t.Helper()
	target, err := url.Parse(to)
	check(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	p := &proxy{url: "nats://" + l.Addr().String(), met: make(chan struct{})}
	var met sync.Once
	var conns sync.WaitGroup
	pass := func(from, to net.Conn, watched bool) {
		var seen []byte
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				_ = to.Close()
				return
			}
			if seen = append(seen, buf[:n]...); watched && bytes.Contains(seen, []byte(cut)) {
				met.Do(func() { close(p.met) })
			}
			select {
			case <-p.met: // swallowed
			default:
				_, _ = to.Write(buf[:n])
			}
		}
	}
	conns.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			behind, err := net.Dial("tcp", target.Host)
			if err != nil {
				_ = client.Close()
				continue
			}
			conns.Go(func() { pass(client, behind, !fromServer) })
			conns.Go(func() { pass(behind, client, fromServer) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Wait()
	})
	return p
}

// The process is killed, by SIGKILL, when the request is stored and the letter not yet deleted:
// the letter is there, and its next replay makes no second link.
func TestReplayKilledBetweenPublishAndDelete(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.letter(t, "mode_mismatch", subject, body("in_1", ""))
	p := newProxy(t, d.url, false, "$JS.API.STREAM.MSG.DELETE."+jobs.DeadStream)
	cmd := command(t, p.url, "dead", "replay", "1")
	check(t, cmd.Start())
	<-p.met
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
	d.settled(t)
	if of, _ := d.links(t, "in_1"); of != 1 || len(d.letters(t)) != 1 {
		t.Fatalf("%d links, letters %v", of, d.letters(t))
	}
	// JetStream's own dedupe may have forgotten by then: only the request's id is left.
	d.forget(t)
	if code, out, stderr := enqueue(t, d.url, "", "dead", "replay", "1"); code != 0 || !strings.Contains(out, "sent again") {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	d.settled(t)
	if of, all := d.links(t, "in_1"); of != 1 || all != 1 || len(d.letters(t)) != 0 {
		t.Errorf("%d links, %d in all, letters %v", of, all, d.letters(t))
	}
}

// forget makes PORTAL_REQUESTS anew, which knows no message id any more.
func (d *deployment) forget(t *testing.T) {
	t.Helper()
	check(t, d.js.DeleteStream(t.Context(), jobs.RequestsStream))
	check(t, jobs.EnsureStreams(t.Context(), d.js, true))
}

// The request is stored and the answer lost: the command says that it does not know, the letter is
// there, and its next replay makes no second link.
func TestReplayWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.letter(t, "mode_mismatch", subject, body("in_1", ""))
	d.letter(t, "mode_mismatch", subject, body("in_2", ""))
	p := newProxy(t, d.url, true, `"stream":"`+jobs.RequestsStream+`"`)
	code, out, stderr := enqueue(t, p.url, "", "dead", "replay", "1", "2")
	if code != 1 || out != "" || !strings.Contains(stderr, "can be sent again") || !strings.Contains(stderr, "0 letters sent again, 1 not") {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	d.settled(t)
	if of, all := d.links(t, "in_1"); of != 1 || all != 1 || len(d.letters(t)) != 2 {
		t.Fatalf("%d links, %d in all, letters %v", of, all, d.letters(t))
	}
	if code, out, stderr := enqueue(t, d.url, "", "dead", "replay", "1", "2"); code != 0 || strings.Count(out, "\n") != 2 {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	d.settled(t)
	if of, all := d.links(t, "in_1"); of != 1 || all != 2 || len(d.letters(t)) != 0 {
		t.Errorf("%d links, %d in all, letters %v", of, all, d.letters(t))
	}
}

// The permissions that docs/dead-letters.md gives are enough.
func TestPermissionsOfTheDocs(t *testing.T) {
	t.Parallel()
	as, nc := natsOfTheDocs(t, "dead-letters.md")
	js, err := jetstream.New(nc)
	check(t, err)
	d := &deployment{url: as("reader"), js: js}
	d.letter(t, "expired", subject, body("a", ""))
	for _, args := range [][]string{{"list"}, {"show", "1"}} {
		for _, user := range []string{"reader", "operator"} {
			if code, out, stderr := enqueue(t, as(user), "", append([]string{"dead"}, args...)...); code != 0 || !strings.Contains(out, "expired") || strings.Contains(stderr, "ermission") {
				t.Errorf("%s as %s: exit %d\n%s%s", args, user, code, out, stderr)
			}
		}
	}
	if code, _, stderr := enqueue(t, as("reader"), "", "dead", "replay", "1"); code != 1 || !strings.Contains(stderr, "may not send") {
		t.Errorf("a reader replays: exit %d\n%s", code, stderr)
	}
	if got := d.letters(t); len(got) != 1 {
		t.Errorf("letters %v", got)
	}
	if code, out, stderr := enqueue(t, as("operator"), "", "dead", "replay", "--all", "--yes"); code != 0 || strings.Contains(stderr, "ermission") {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	if got := d.letters(t); len(got) != 0 {
		t.Errorf("letters %v", got)
	}
	stream, err := js.Stream(t.Context(), jobs.DeadStream)
	check(t, err)
	if n := stream.CachedInfo().State.Consumers; n != 0 {
		t.Errorf("%d consumers are left", n)
	}
}

func TestDeadWithoutAWorker(t *testing.T) {
	t.Parallel()
	if code, _, stderr := enqueue(t, testkit.NATS(t), "", "dead", "list"); code != 1 || !strings.Contains(stderr, "start a worker once") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("no stream: exit %d\n%s", code, stderr)
	}
}
