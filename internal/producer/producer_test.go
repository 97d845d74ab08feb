package producer

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// setup is a server with the streams and no worker: the tests answer in its place.
func setup(t *testing.T) (*Client, *nats.Conn) {
	t.Helper()
	nc, err := nats.Connect(testkit.NATS(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	client, err := New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := jobs.EnsureStreams(t.Context(), client.js, true); err != nil {
		t.Fatal(err)
	}
	return client, nc
}

// worker answers each stored request by what reply makes of it.
func worker(t *testing.T, nc *nats.Conn, reply func(seq string, body []byte) []*nats.Msg) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.CreateConsumer(t.Context(), jobs.RequestsStream, jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	consuming, err := consumer.Consume(func(msg jetstream.Msg) {
		for _, m := range reply("1", msg.Data()) {
			if err := nc.PublishMsg(m); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(consuming.Stop)
}

func issued(t *testing.T, requestID, url string) *nats.Msg {
	t.Helper()
	data := jobs.IssuedData{EventData: jobs.EventData{RequestID: requestID, Metadata: json.RawMessage("{}")}, URL: url}
	inner, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(notify.NewEvent("1", "https://pay.example.com", string(portal.LinkIssued), "link", time.Now(), inner))
	if err != nil {
		t.Fatal(err)
	}
	msg := nats.NewMsg(notify.SubjectPrefix + string(portal.LinkIssued))
	msg.Data = body
	return msg
}

func rejected(seq string) *nats.Msg {
	msg := nats.NewMsg(jobs.DeadPrefix + "invalid_field")
	msg.Header.Set(jobs.HeaderCode, "invalid_field")
	msg.Header.Set(jobs.HeaderReason, "$.x: is no field")
	msg.Header.Set(jobs.HeaderSequence, seq)
	return msg
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// The answer waited for is the one of this request: others' links and rejections, and what is no
// event at all, pass by.
func TestSendAndWaitTakesItsOwnAnswer(t *testing.T) {
	t.Parallel()
	client, nc := setup(t)
	worker(t, nc, func(string, []byte) []*nats.Msg {
		noise := nats.NewMsg(notify.SubjectPrefix + string(portal.LinkIssued))
		noise.Data = []byte("not JSON")
		return []*nats.Msg{noise, issued(t, "another", "https://wrong"), rejected("77"), issued(t, "mine", "https://right")}
	})
	link, err := client.SendAndWait(soon(t), Message{ID: "mine", Source: "test", Body: []byte("{}")})
	if err != nil || link.URL != "https://right" {
		t.Errorf("%v, %+v", err, link)
	}
}

func TestSendAndWaitTellsTheRejection(t *testing.T) {
	t.Parallel()
	client, nc := setup(t)
	worker(t, nc, func(seq string, _ []byte) []*nats.Msg { return []*nats.Msg{rejected(seq)} })
	_, err := client.SendAndWait(soon(t), Message{ID: "mine", Source: "test", Body: []byte("{}")})
	var service *ServiceError
	if !errors.As(err, &service) || service.Code != "invalid_field" || service.Text != "$.x: is no field" {
		t.Errorf("%v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	client, _ := setup(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.SendAndWait(ctx, Message{ID: "mine", Source: "test", Body: []byte("{}")}); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("no worker: %v", err)
	}
	if _, err := client.Status(soon(t), "mine"); !errors.Is(err, ErrNoWorker) {
		t.Errorf("no micro service: %v", err)
	}
}
