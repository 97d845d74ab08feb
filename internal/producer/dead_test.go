package producer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
)

const request = `{"id": "a", "source": "test", "session": {"customer": "cus_1"}}`

// letter stores a dead letter, and returns the stream that it is in.
func letter(t *testing.T, client *Client, subject, body string, headers ...string) *DeadLetters {
	t.Helper()
	msg := nats.NewMsg(jobs.DeadPrefix + "expired")
	if subject != "" {
		msg.Header.Set(jobs.HeaderSubject, subject)
	}
	for i := 0; i < len(headers); i += 2 {
		msg.Header.Add(headers[i], headers[i+1])
	}
	msg.Data = []byte(body)
	if _, err := client.js.PublishMsg(t.Context(), msg, jetstream.WithMsgID("of the letter "+subject+body)); err != nil {
		t.Fatal(err)
	}
	dead, err := client.DeadLetters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return dead
}

// requests are the messages that wait for a worker.
func requests(t *testing.T, client *Client) []*jetstream.RawStreamMsg {
	t.Helper()
	stream, err := client.js.Stream(t.Context(), jobs.RequestsStream)
	if err != nil {
		t.Fatal(err)
	}
	var msgs []*jetstream.RawStreamMsg
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		msg, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, msg)
	}
	return msgs
}

// A replay is the request as it came, byte for byte, and nothing of the letter.
func TestReplaySendsWhatCame(t *testing.T) {
	t.Parallel()
	client, _ := setup(t)
	subject := jobs.RequestsPrefix + "test.and.more"
	dead := letter(t, client, subject, request, "Traceparent", "00-1", "X", "1", "X", "2", jobs.HeaderCode, "expired", jobs.HeaderReason, "because", jobs.HeaderSequence, "1")
	l, err := dead.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // the second as after a crash before the letter was deleted
		if sent, repeat, err := dead.Replay(t.Context(), l, i == 0); !sent || repeat != (i == 1) || err != nil {
			t.Errorf("sent %t, repeat %t, %v", sent, repeat, err)
		}
	}
	msgs := requests(t, client)
	if len(msgs) != 1 {
		t.Fatalf("%d requests are stored", len(msgs))
	}
	got := msgs[0]
	id := got.Header.Get(nats.MsgIdHdr)
	got.Header.Del(nats.MsgIdHdr)
	got.Header.Del(nats.ExpectedStreamHdr)
	if got.Subject != subject || string(got.Data) != request || fmt.Sprint(got.Header) != "map[Traceparent:[00-1] X:[1 2]]" || !strings.HasPrefix(id, "replay-") {
		t.Errorf("%s %s %v %s", got.Subject, got.Data, got.Header, id)
	}
	if _, err := dead.Get(t.Context(), 1); !errors.Is(err, ErrNoLetter) {
		t.Errorf("the letter: %v", err)
	}
	// Another person was faster: that is no failure.
	if sent, repeat, err := dead.Replay(t.Context(), l, false); !sent || !repeat || err != nil {
		t.Errorf("sent %t, repeat %t, %v", sent, repeat, err)
	}
}

// Content that was edited is another message, or JetStream would drop it as a repeat.
func TestReplayOfEditedContentIsNoRepeat(t *testing.T) {
	t.Parallel()
	client, _ := setup(t)
	dead := letter(t, client, jobs.RequestsPrefix+"test", request)
	l, err := dead.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{request, strings.ReplaceAll(request, "cus_1", "cus_2")} {
		l.Body = []byte(body)
		if sent, repeat, err := dead.Replay(t.Context(), l, true); !sent || repeat || err != nil {
			t.Errorf("sent %t, repeat %t, %v", sent, repeat, err)
		}
	}
}

// A letter says itself where it goes, and anybody may have written it.
func TestReplayGoesToRequestsOnly(t *testing.T) {
	t.Parallel()
	client, _ := setup(t)
	prefix := jobs.RequestsPrefix
	for _, subject := range []string{"", "$JS.API.STREAM.DELETE." + jobs.RequestsStream, "portal.links.revoke", "portal.requests", prefix, prefix + "*", prefix + ">", prefix + "test.*", prefix + "test.>",
		prefix + "test.", prefix + "test..a", prefix + "Test", prefix + "test.a b", prefix + "test.\u009b", "x." + prefix + "test"} {
		l := &DeadLetter{Subject: subject, Body: []byte(request)}
		if err := l.CheckReplay(); err == nil {
			t.Errorf("%q may be replayed", subject)
		}
		dead := letter(t, client, subject, request)
		if sent, _, err := dead.Replay(t.Context(), l, false); sent || err == nil {
			t.Errorf("%q was sent, %v", subject, err)
		}
	}
	if msgs := requests(t, client); len(msgs) != 0 {
		t.Errorf("%d requests are stored", len(msgs))
	}
	for _, body := range []string{"", "null", "[]", `{"id": 1}`, `{"id": ""}`, `{"ID": "a"}`, `{"id": "a", "id": "a"}`, `{"id": "a"} {}`, `{"id": "a\u0000"}`, `{"id": "` + strings.Repeat("x", 201) + `"}`} {
		l := &DeadLetter{Subject: prefix + "test", Body: []byte(body)}
		if err := l.CheckReplay(); err == nil || l.RequestID() != "" {
			t.Errorf("%s has the id %q, %v", body, l.RequestID(), err)
		}
	}
}

// The letter stays where the request may not be stored.
func TestReplayWithoutAnAckKeepsTheLetter(t *testing.T) {
	t.Parallel()
	client, _ := setup(t)
	dead := letter(t, client, jobs.RequestsPrefix+"test", request)
	l, err := dead.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	// Another stream listens there in place of ours, and acknowledges.
	if err := client.js.DeleteStream(t.Context(), jobs.RequestsStream); err != nil {
		t.Fatal(err)
	}
	if _, err := client.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"portal.requests.>"}}); err != nil {
		t.Fatal(err)
	}
	if sent, _, err := dead.Replay(t.Context(), l, false); sent || err == nil {
		t.Errorf("another stream's ack: sent %t, %v", sent, err)
	}
	if err := client.js.DeleteStream(t.Context(), "OTHER"); err != nil {
		t.Fatal(err)
	}
	if sent, _, err := dead.Replay(t.Context(), l, false); sent || !Unreachable(err) {
		t.Errorf("no stream: sent %t, %v", sent, err)
	}
	if _, err := dead.Get(t.Context(), 1); err != nil {
		t.Errorf("the letter: %v", err)
	}
}

// Others delete and add letters while somebody reads.
func TestEachGivesWhatWasThere(t *testing.T) {
	t.Parallel()
	client, _ := setup(t)
	var dead *DeadLetters
	const n = 5 * readAtOnce
	for i := range n {
		dead = letter(t, client, jobs.RequestsPrefix+"test", fmt.Sprint(i))
	}
	var got []uint64
	err := dead.Each(soon(t), DeadFilter{}, func(l *DeadLetter) error {
		if len(got) == 0 { // the end goes, and more comes
			for seq := uint64(n - readAtOnce); seq <= n; seq++ {
				if err := dead.delete(t.Context(), seq); err != nil {
					return err
				}
			}
			letter(t, client, jobs.RequestsPrefix+"test", "later")
		}
		got = append(got, l.Sequence)
		return nil
	})
	if err != nil || len(got) != n-readAtOnce-1 || !slices.IsSorted(got) || got[len(got)-1] != n-readAtOnce-1 {
		t.Errorf("%v: %d letters, %v", err, len(got), got)
	}
	stop := errors.New("enough")
	if err := dead.Each(soon(t), DeadFilter{}, func(*DeadLetter) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an error of the caller: %v", err)
	}
	ctx, cancel := context.WithCancel(soon(t))
	if err := dead.Each(ctx, DeadFilter{}, func(*DeadLetter) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if err := dead.Each(soon(t), DeadFilter{Since: time.Now().Add(time.Hour)}, func(*DeadLetter) error { return stop }); err != nil {
		t.Errorf("of the future: %v", err)
	}
	consumers := dead.stream.ListConsumers(t.Context())
	for c := range consumers.Info() {
		t.Errorf("the consumer %s is left", c.Name)
	}
}
