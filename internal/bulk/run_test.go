package bulk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/testkit"
)

// setup is a server with the streams and no worker: the tests answer in its place.
func setup(t *testing.T) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(testkit.NATS(t), nats.ReconnectBufSize(-1))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	must(t, jobs.EnsureStreams(t.Context(), js, true))
	return nc, js
}

// worker takes each request off the queue and publishes what reply makes of it; tries counts how often
// the id has come.
func worker(t *testing.T, js jetstream.JetStream, reply func(id string, tries int, msg jetstream.Msg) []*nats.Msg) {
	t.Helper()
	consumer, err := js.CreateConsumer(t.Context(), jobs.RequestsStream, jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy})
	must(t, err)
	tries := map[string]int{}
	consuming, err := consumer.Consume(func(msg jetstream.Msg) {
		id := jobs.ReadableID(msg.Data())
		tries[id]++
		for _, answer := range reply(id, tries[id], msg) {
			if _, err := js.PublishMsg(context.Background(), answer); err != nil {
				t.Error(err)
			}
		}
		if err := msg.Ack(); err != nil {
			t.Error(err)
		}
	})
	must(t, err)
	t.Cleanup(func() { consuming.Stop(); <-consuming.Closed() })
}

func linkOf(t *testing.T, id string) *nats.Msg {
	t.Helper()
	inner, err := json.Marshal(jobs.IssuedData{EventData: jobs.EventData{RequestID: id, Source: spring.Source, Campaign: spring.Campaign, Customer: "cus_" + strings.TrimPrefix(id, "r"), Metadata: json.RawMessage("{}")}, URL: "https://x/l/" + id})
	must(t, err)
	body, err := json.Marshal(notify.NewEvent("1", "https://x", string(portal.LinkIssued), "link", time.Now(), inner))
	must(t, err)
	return &nats.Msg{Subject: notify.SubjectPrefix + string(portal.LinkIssued), Header: nats.Header{}, Data: body}
}

func rejection(sequence uint64) *nats.Msg {
	return &nats.Msg{Subject: jobs.DeadPrefix + "expired", Header: nats.Header{jobs.HeaderCode: {"expired"}, jobs.HeaderReason: {"late"},
		jobs.HeaderSequence: {fmt.Sprint(sequence)}}}
}

// file is a CSV of n rows with ids of their own.
func file(t *testing.T, n int) Input {
	t.Helper()
	var b strings.Builder
	b.WriteString("id,customer\n")
	for i := range n {
		fmt.Fprintf(&b, "r%d,cus_%d\n", i, i)
	}
	in, err := Open(strings.NewReader(b.String()), "x.csv", "", spring)
	must(t, err)
	return in
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Answers come in any order, among others', more than once; rows go out in theirs.
func TestOrder(t *testing.T) {
	t.Parallel()
	nc, js := setup(t)
	var held []*nats.Msg // every second answer waits for the next
	worker(t, js, func(id string, _ int, msg jetstream.Msg) []*nats.Msg {
		meta, err := msg.Metadata()
		must(t, err)
		junk := &nats.Msg{Subject: notify.SubjectPrefix + string(portal.LinkIssued), Header: nats.Header{}, Data: []byte(`{"data":{"request_id":"r5"}`)}
		answers := []*nats.Msg{junk, linkOf(t, `another "one"`), linkOf(t, id), linkOf(t, id)}
		if id == "r7" {
			answers = []*nats.Msg{rejection(meta.Sequence.Stream + 1000), rejection(meta.Sequence.Stream)}
		}
		if len(held) == 0 && id != "r99" {
			held = answers
			return nil
		}
		answers, held = append(answers, held...), nil
		return answers
	})
	var out bytes.Buffer
	run, err := New(Options{Conn: nc, Input: file(t, 100), Out: &out, Rows: 20})
	must(t, err)
	s, err := run.Do(soon(t))
	if err != nil || s.Issued != 99 || s.Rejected != 1 || s.Sent != 100 || s.Stopped || len(s.Failures) != 1 || s.Failures[0].Line != 9 {
		t.Errorf("%+v, %v", s, err)
	}
	lines := strings.Split(out.String(), "\n")
	for i, line := range lines[1 : len(lines)-1] {
		want := fmt.Sprintf("r%d,cus_%d,https://x/l/r%d,", i, i, i)
		if i == 7 {
			want = "r7,cus_7,,,,expired: late"
		}
		if !strings.HasPrefix(line, want) {
			t.Errorf("line %d: %s", i, line)
		}
	}
}

// Invariant 5: an answer that got lost is asked for once more, and the others are not.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	nc, js := setup(t)
	var repeats atomic.Int32
	worker(t, js, func(id string, tries int, _ jetstream.Msg) []*nats.Msg {
		if id == "r3" && tries < 3 {
			return nil
		}
		if id != "r3" && tries > 1 {
			repeats.Add(1)
		}
		return []*nats.Msg{linkOf(t, id)}
	})
	run, err := New(Options{Conn: nc, Input: file(t, 10), Patience: 200 * time.Millisecond})
	must(t, err)
	if s, err := run.Do(soon(t)); err != nil || s.Issued != 10 || repeats.Load() != 0 {
		t.Errorf("%+v, %v, %d asked for again", s, err, repeats.Load())
	}
}

// generator is a file without end.
type generator struct {
	Input
	size int
	read atomic.Int64
}

func (g *generator) Read() (*Row, error) {
	n := g.read.Add(1)
	id := fmt.Sprintf("g%d", n)
	return &Row{Line: int(n), Raw: make([]byte, g.size), ID: id, Source: "campaign", Body: []byte(`{"id":"` + id + `","source":"campaign","campaign":"spring","session":{"customer":"cus_` + id + `"}}`)}, nil
}
func (g *generator) Offset() int64 { return g.read.Load() }

func stored(t *testing.T, js jetstream.JetStream) int {
	t.Helper()
	s, err := js.Stream(t.Context(), jobs.RequestsStream)
	must(t, err)
	return int(s.CachedInfo().State.Msgs)
}

// Invariant 7: without answers reading pauses, and a stop ends it.
func TestReadingPauses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ rows, bytes, size, want int }{{rows: 50, want: 50}, {rows: 50, bytes: 10 << 10, size: 5 << 10, want: 1}, {rows: 50, bytes: 12 << 10, size: 5 << 10, want: 2}} {
		nc, js := setup(t)
		in := &generator{size: c.size}
		run, err := New(Options{Conn: nc, Input: in, Rows: c.rows, Bytes: c.bytes})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan Summary)
		go func() {
			s, err := run.Do(ctx)
			if err != nil {
				t.Error(err)
			}
			done <- s
		}()
		for run.Progress().Sent < c.want {
			runtime.Gosched()
		}
		cancel()
		s := <-done
		for stored(t, js) < c.want { // they are on their way
			runtime.Gosched()
		}
		if s.Unfinished != c.want || !s.Stopped || in.read.Load() != int64(c.want)+1 || stored(t, js) != c.want {
			t.Errorf("%+v: %+v, %d read", c, s, in.read.Load())
		}
	}
}

// The pace is asked before each request, and nothing goes out without it.
func TestPace(t *testing.T) {
	t.Parallel()
	nc, js := setup(t)
	tokens := 5
	ctx, cancel := context.WithCancel(t.Context())
	run, err := New(Options{Conn: nc, Input: &generator{}, Pace: func(ctx context.Context) error {
		if tokens == 0 {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}
		tokens--
		return nil
	}})
	must(t, err)
	if s, err := run.Do(ctx); err != nil || s.Rows != 6 || !s.Stopped {
		t.Errorf("%+v, %v", s, err)
	}
	for stored(t, js) < 5 { // they are on their way
		runtime.Gosched()
	}
	if n := stored(t, js); n != 5 {
		t.Errorf("%d requests are stored", n)
	}
}

// A read that hangs, as that of a terminal does, keeps no stop from ending the run.
func TestStopWhileReading(t *testing.T) {
	t.Parallel()
	nc, _ := setup(t)
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	go func() { _, _ = io.WriteString(w, "customer\n") }()
	in, err := Open(r, "x.csv", "", spring)
	must(t, err)
	run, err := New(Options{Conn: nc, Input: in})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := run.Do(ctx); err == nil && !s.Stopped {
		t.Errorf("%+v, %v", s, err)
	}
}

type fullDisk struct{}

var errFull = errors.New("the disk is full")

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestOutputThatFails(t *testing.T) {
	t.Parallel()
	nc, js := setup(t)
	worker(t, js, func(id string, _ int, _ jetstream.Msg) []*nats.Msg { return []*nats.Msg{linkOf(t, id)} })
	run, err := New(Options{Conn: nc, Input: &endlessFile{file(t, 1)}, Out: fullDisk{}})
	must(t, err)
	if s, err := run.Do(soon(t)); !errors.Is(err, errFull) || !s.Stopped {
		t.Errorf("%+v, %v", s, err)
	}
}

// endlessFile has a header and rows of a generator.
type endlessFile struct{ Input }

var endlessRows generator

func (*endlessFile) Read() (*Row, error) { return endlessRows.Read() }

// Invariant 4, and a rejection that is faster than the ack.
func TestRejectionFindsItsRow(t *testing.T) {
	t.Parallel()
	w := newWindow(10, 1<<20)
	admit := func(id, body string) *entry {
		e, publish, ok := w.admit(&Row{ID: id, Body: []byte(body)}, 100)
		if publish {
			w.sending(e)
		}
		if !ok {
			t.Fatal("no room")
		}
		return e
	}
	first := admit("a", "1")
	w.reject(7, Result{Err: "early"})
	w.reject(8, Result{Err: "another's"})
	w.acked(first.number, 7)
	if !first.done || first.result.Err != "early" {
		t.Errorf("before the ack: %+v", first)
	}
	// Stored twice: the rejection may name either place.
	for _, names := range []uint64{20, 21} {
		e := admit(fmt.Sprint("b", names), "1")
		w.lost(e.number, errFull)
		w.sending(e)
		w.acked(e.number, 20)
		w.unacked++ // the first ack comes after all
		w.acked(e.number, 21)
		w.reject(names, Result{Err: "late"})
		if !e.done || len(w.bySequence) != 0 {
			t.Errorf("%d: %+v", names, e)
		}
	}
}

// Invariant 6.
func TestRowsOfOneID(t *testing.T) {
	t.Parallel()
	w := newWindow(10, 1<<20)
	var entries []*entry
	for i, body := range []string{"1", "1", "2", "2", "1"} {
		e, publish, _ := w.admit(&Row{ID: "a", Body: []byte(body)}, 100)
		if publish != (i == 0) {
			t.Errorf("row %d is published: %t", i, publish)
		}
		entries = append(entries, e)
	}
	done := func() (n int) {
		for _, e := range entries {
			if e.done {
				n++
			}
		}
		return n
	}
	w.link("a", Result{URL: "of what was never sent"})
	if done() != 0 {
		t.Error("a link for a request that was not sent")
	}
	w.sending(entries[0])
	w.link("a", Result{URL: "u"})
	if rows, failed, _ := w.todo(); done() != 2 || len(rows) != 1 || rows[0] != entries[2] || failed {
		t.Fatalf("%d are done, %v is next", done(), rows)
	}
	w.link("a", Result{URL: "u"}) // a repeat of the first's answer
	if done() != 2 {
		t.Error("the answer to another row was taken")
	}
	w.sending(entries[2])
	w.acked(entries[2].number, 5)
	w.reject(5, Result{Err: "id_conflict"})
	if rows, _, _ := w.todo(); done() != 4 || rows[0] != entries[4] || entries[3].result.Err == "" {
		t.Errorf("%d are done", done())
	}
	w.sending(entries[4])
	w.link("a", Result{URL: "u"})
	if done() != 5 || len(w.byID) != 0 || len(w.bySequence) != 0 {
		t.Errorf("%d are done, %v", done(), w.byID)
	}
}

func TestEarlyRejectionsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRejections()
	for i := range uint64(3 * maxEarly) {
		r.keep(i, Result{})
	}
	if len(r.bySequence) > maxEarly || len(r.order) > maxEarly {
		t.Errorf("%d are kept", len(r.bySequence))
	}
	if _, ok := r.take(3*maxEarly - 1); !ok {
		t.Error("the last is gone")
	}
}

func TestRequestIDIsFoundWithoutDecoding(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		id    string
		known bool
	}{{"plain", true}, {`a "quoted" one`, false}, {`{"data":{"request_id":"x"`, false}, {"ü", true}, {"a<b", false}} {
		if id, known := requestID(linkOf(t, c.id).Data); known != c.known || known && string(id) != c.id {
			t.Errorf("%q: %q, %t", c.id, id, known)
		}
	}
}

// Invariant 2: a link of another request under the same id is another customer's, and no row's.
func TestLinkOfAnothersRequest(t *testing.T) {
	t.Parallel()
	nc, js := setup(t)
	worker(t, js, func(id string, _ int, msg jetstream.Msg) []*nats.Msg {
		meta, err := msg.Metadata()
		must(t, err)
		if id != "r3" {
			return []*nats.Msg{linkOf(t, id)}
		}
		others := linkOf(t, id)
		others.Data = bytes.Replace(others.Data, []byte("cus_3"), []byte("cus_other"), 1)
		return []*nats.Msg{others, rejection(meta.Sequence.Stream)}
	})
	run, err := New(Options{Conn: nc, Input: file(t, 10)})
	must(t, err)
	if s, err := run.Do(soon(t)); err != nil || s.Issued != 9 || s.Rejected != 1 || s.Failures[0].Line != 5 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A stop does not wait for an output that nobody reads.
func TestStopBesideAnOutputThatHangs(t *testing.T) {
	t.Parallel()
	nc, js := setup(t)
	worker(t, js, func(id string, _ int, _ jetstream.Msg) []*nats.Msg { return []*nats.Msg{linkOf(t, id)} })
	ctx, stop := context.WithCancel(soon(t))
	out := &hangingOutput{begun: stop, ended: make(chan struct{})}
	t.Cleanup(func() { close(out.ended) })
	run, err := New(Options{Conn: nc, Input: file(t, 10), Out: out})
	must(t, err)
	if s, err := run.Do(ctx); !errors.Is(err, errOutputHangs) || !s.Stopped {
		t.Errorf("%+v, %v", s, err)
	}
}

// hangingOutput tells that a write has begun, which lasts until ended.
type hangingOutput struct {
	begun func()
	ended chan struct{}
}

func (o *hangingOutput) Write(p []byte) (int, error) {
	o.begun()
	<-o.ended
	return len(p), nil
}

// What is about to be sent again is not stored, and no try postpones when the answer was due.
func TestProgressOfWhatIsSentAgain(t *testing.T) {
	t.Parallel()
	w := newWindow(10, 1<<20)
	e, _, _ := w.admit(&Row{ID: "a", Body: []byte("{}")}, 10)
	w.sending(e)
	due := w.progress().AnswerDue
	w.lost(0, io.ErrUnexpectedEOF)
	if rows, failed, _ := w.todo(); len(rows) != 1 || !failed || w.progress().Unstored != 1 {
		t.Errorf("%d rows, failed: %t, %d unstored", len(rows), failed, w.progress().Unstored)
	}
	w.sending(e)
	w.acked(0, 1)
	if now := w.progress().AnswerDue; !now.Equal(due) {
		t.Errorf("the answer was due at %v, and now at %v", due, now)
	}
	w.renew(e)
	if rows, _ := w.overdue(e.sentAt.Add(3*time.Minute), 2*time.Minute); len(rows) != 0 {
		t.Error("the second try comes as soon as the first")
	}
	if rows, _ := w.overdue(e.sentAt.Add(5*time.Minute), 2*time.Minute); len(rows) != 1 {
		t.Error("no second try")
	}
}
