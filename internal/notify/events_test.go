package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/notify"
	"latchkey/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

func setup(t *testing.T) (jetstream.JetStream, jetstream.Stream) {
	t.Helper()
	nc, err := nats.Connect(testkit.NATS(t))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: notify.EventsStream, Subjects: []string{notify.SubjectPrefix + "link.>"}})
	must(t, err)
	return js, stream
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func event(t *testing.T, id, kind string) notify.Event {
	t.Helper()
	at := time.Date(2026, 11, 20, 13, 0, 0, 123456000, time.FixedZone("CET", 3600))
	return notify.NewEvent(id, "https://pay.example.com", kind, "link-1", at, []byte(`{"request_id":"r1"}`))
}

// The wire form is CloudEvents 1.0 in structured mode, name for name.
func TestPublishedFormIsACloudEvent(t *testing.T) {
	t.Parallel()
	js, stream := setup(t)
	must(t, notify.Publish(t.Context(), js, []notify.Event{event(t, "id-1", "link.issued")}))
	msg, err := stream.GetMsg(t.Context(), 1)
	must(t, err)
	var got map[string]any
	must(t, json.Unmarshal(msg.Data, &got))
	want := map[string]any{
		"specversion": "1.0", "id": "id-1", "source": "https://pay.example.com", "type": "latchkey.link.issued", "subject": "link-1",
		"time": "2026-11-20T12:00:00.123456Z", "datacontenttype": "application/json", "data": map[string]any{"request_id": "r1"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("event %v\nwant  %v", got, want)
	}
	if msg.Subject != "portal.events.link.issued" || msg.Header.Get(nats.MsgIdHdr) != "id-1" ||
		!strings.HasPrefix(msg.Header.Get("Content-Type"), "application/cloudevents+json") {
		t.Errorf("subject %s, headers %v", msg.Subject, msg.Header)
	}
}

// Events go out in their order; one that goes out again is stored once.
func TestPublishAgainStoresOnce(t *testing.T) {
	t.Parallel()
	js, stream := setup(t)
	events := []notify.Event{event(t, "1", "link.issued"), event(t, "2", "link.opened"), event(t, "3", "link.revoked")}
	must(t, notify.Publish(t.Context(), js, events))
	must(t, notify.Publish(t.Context(), js, events))
	must(t, notify.Publish(t.Context(), js, nil))
	info, err := stream.Info(t.Context())
	must(t, err)
	if info.State.Msgs != 3 {
		t.Errorf("%d events stored, want 3", info.State.Msgs)
	}
	for i, e := range events {
		msg, err := stream.GetMsg(t.Context(), uint64(i+1))
		must(t, err)
		if msg.Header.Get(nats.MsgIdHdr) != e.ID {
			t.Errorf("event %d is %s, want %s", i, msg.Header.Get(nats.MsgIdHdr), e.ID)
		}
	}
}

// One event without an ack makes the whole publish fail; what was stored of it stays.
func TestPublishNotStored(t *testing.T) {
	t.Parallel()
	js, stream := setup(t)
	// No stream takes session.created here.
	err := notify.Publish(t.Context(), js, []notify.Event{event(t, "1", "link.issued"), event(t, "2", "session.created")})
	if !errors.Is(err, notify.ErrNotStored) || !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("Publish = %v, want ErrNotStored for want of a stream", err)
	}
	info, err := stream.Info(t.Context())
	must(t, err)
	if info.State.Msgs != 1 {
		t.Errorf("%d events stored, want 1", info.State.Msgs)
	}
}

func TestPublishEndsWithItsContext(t *testing.T) {
	t.Parallel()
	js, _ := setup(t)
	// A responder that never answers, as a JetStream that hangs.
	sub, err := js.Conn().SubscribeSync(notify.SubjectPrefix + "session.>")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = sub.NextMsgWithContext(t.Context())
		cancel()
	}()
	err = notify.Publish(ctx, js, []notify.Event{event(t, "1", "session.created")})
	if !errors.Is(err, notify.ErrNotStored) || !errors.Is(err, context.Canceled) {
		t.Errorf("Publish = %v, want ErrNotStored by the context", err)
	}
}

func TestPublishOnAClosedConnection(t *testing.T) {
	t.Parallel()
	js, _ := setup(t)
	js.Conn().Close()
	if err := notify.Publish(t.Context(), js, []notify.Event{event(t, "1", "link.issued")}); !errors.Is(err, notify.ErrNotStored) {
		t.Errorf("Publish = %v, want ErrNotStored", err)
	}
}
