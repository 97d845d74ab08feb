package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/notify"
)

// one request for each code; the first ones make the conflict.
func rejectedRequests() map[Code][]byte {
	return map[Code][]byte{
		InvalidJSON:         []byte("{\"id\":\"r-json\xff\"}"),
		TooLarge:            bytes.Repeat([]byte("x"), MaxRequestBytes+1),
		InvalidField:        request("r-field", "session.locale", "xx"),
		IDConflict:          request("taken", "campaign", "other"),
		Expired:             request("r-expired", "expires_at", "2020-01-01T00:00:00Z"),
		DeliveryUnavailable: request("r-deliver", "deliver", []any{map[string]string{"channel": "email", "to": "jo@example.com"}}),
		ModeMismatch:        request("r-mode", "livemode", true),
	}
}

func TestRejectedRequestsAreDeadLettered(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.issue(request("taken"))
	sequences := map[Code]uint64{}
	for code, body := range rejectedRequests() {
		msg := nats.NewMsg("portal.requests.dunning.eu")
		msg.Header = nats.Header{"Traceparent": {"00-abc"}, "X-Many": {"a", "b"}, "Nats-Msg-Id": {string(code)}, "Latchkey-Code": {"forged"}}
		msg.Data = body
		ack, err := w.js.PublishMsg(w.ctx, msg)
		must(t, err)
		sequences[code] = ack.Sequence
	}
	w.publish("dunning", request("good"))
	w.startIntake(w.intake)
	w.drained()
	w.wantTotal(total{links: 2, issued: 2, rejected: 7})

	dead := map[Code]jetstream.Msg{}
	for _, msg := range w.read(DeadStream, 7) {
		dead[Code(strings.TrimPrefix(msg.Subject(), DeadPrefix))] = msg
	}
	for code, body := range rejectedRequests() {
		t.Run(string(code), func(t *testing.T) { w.checkDeadLetter(t, dead[code], code, body, sequences[code]) })
	}
	consumer, err := w.js.Consumer(w.ctx, RequestsStream, IntakeConsumer)
	must(t, err)
	if info := consumer.CachedInfo(); info.NumAckPending != 0 || info.NumPending != 0 || info.NumRedelivered != 0 {
		t.Errorf("the consumer has %d unacknowledged, %d pending, %d redelivered, want none", info.NumAckPending, info.NumPending, info.NumRedelivered)
	}
}

func (w *world) checkDeadLetter(t *testing.T, msg jetstream.Msg, code Code, body []byte, sequence uint64) {
	if msg == nil {
		t.Fatal("no dead letter")
	}
	if !bytes.Equal(msg.Data(), body) {
		t.Errorf("body %.100q, want the request's own", msg.Data())
	}
	headers := maps.Clone(msg.Headers())
	var reason, requestID string
	must(t, w.owner.QueryRow(w.ctx, `SELECT detail->>'reason', coalesce(request_id, '') FROM audit_events
		WHERE kind = 'request.rejected' AND detail->>'code' = $1 AND id::text = $2 AND link_id IS NULL`,
		code, headers.Get(nats.MsgIdHdr)).Scan(&reason, &requestID))
	delete(headers, nats.MsgIdHdr)
	want := nats.Header{"Traceparent": {"00-abc"}, "X-Many": {"a", "b"}, HeaderCode: {string(code)}, HeaderReason: {reason},
		HeaderSequence: {fmt.Sprint(sequence)}, HeaderSubject: {"portal.requests.dunning.eu"}}
	if fmt.Sprint(headers) != fmt.Sprint(want) || reason == "" {
		t.Errorf("headers %v\nwant   %v", headers, want)
	}
	if known := code != InvalidJSON && code != TooLarge; known != (requestID != "") || known && !bytes.Contains(body, []byte(requestID)) {
		t.Errorf("the audit has request id %q", requestID)
	}
}

func TestSourceMustBeTheSubjects(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish("support", request("wrong"))
	w.publish("dunning.eu.high", request("right"))
	w.serve(w.fetch(2)...)
	w.wantTotal(total{links: 1, issued: 1, rejected: 1})
	if reason := w.read(DeadStream, 1)[0].Headers().Get(HeaderReason); !strings.HasPrefix(reason, "$.source: ") {
		t.Errorf("reason %q", reason)
	}
}

// A repeat is told from a redelivery: it is audited, and answered by link.issued under another id.
func TestRepeatsAreAnsweredAgain(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.startRiver()
	second := NewIntake(w.js, w.newIssuer(w.workerPool(nil)), w.log, nil)
	w.startIntake(w.intake)
	w.startIntake(second)
	for range 5 {
		w.publish("dunning", request("r1"))
	}
	w.drained()
	w.wantTotal(total{links: 1, issued: 1, duplicates: 4})
	events := w.events(5)
	if len(events) != 5 {
		t.Errorf("%d event ids, want 5", len(events))
	}
	urls := map[string]bool{}
	for _, e := range events {
		var data IssuedData
		must(t, json.Unmarshal(e.Data, &data))
		urls[data.URL] = true
		if e.Type != "latchkey.link.issued" {
			t.Errorf("event of type %s", e.Type)
		}
	}
	if len(urls) != 1 {
		t.Errorf("URLs %v, want one", urls)
	}
}

// A value that passes our checks and not the database's is rejected alone; the rest of its batch
// is served.
func TestOneRefusedValueHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.exec(`ALTER TABLE links ADD CONSTRAINT no_zebra CHECK (request_id <> 'zebra')`)
	for _, id := range []string{"a", "b", "zebra", "c", "b"} {
		w.publish("dunning", request(id))
	}
	w.serve(w.fetch(5)...)
	w.wantTotal(total{links: 3, issued: 3, duplicates: 1, rejected: 1})
	msg := w.read(DeadStream, 1)[0]
	if msg.Subject() != "portal.dead.invalid_field" || !bytes.Equal(msg.Data(), request("zebra")) || msg.Headers().Get(HeaderReason) == "" {
		t.Errorf("dead letter on %s: %s", msg.Subject(), msg.Data())
	}
	if !strings.Contains(w.logs.String(), "SQLSTATE 23514") {
		t.Error("the log does not say what the database refused")
	}
	w.drained()
}

func TestIntakeMakesItsConsumerAnew(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.startIntake(w.intake)
	w.publish("dunning", request("r1"))
	w.drained()

	must(t, w.js.DeleteConsumer(w.ctx, RequestsStream, IntakeConsumer))
	w.publish("dunning", request("r2"))
	w.drained()

	must(t, w.js.DeleteStream(w.ctx, RequestsStream))
	must(t, EnsureStreams(w.ctx, w.js, true))
	w.publish("dunning", request("r3"))
	w.drained()
	w.wantTotal(total{links: 3, issued: 3})
}

// A stop in the middle of a flood serves and acknowledges what was fetched; the next worker does
// the rest, and no request is served twice.
func TestIntakeStopsBetweenRequests(t *testing.T) {
	t.Parallel()
	w := setup(t)
	const n = 1500
	for _, id := range numbered("r%d", n) {
		_, err := w.js.PublishAsync(RequestsPrefix+"dunning", request(id))
		must(t, err)
	}
	select {
	case <-w.js.PublishAsyncComplete():
	case <-w.ctx.Done():
		t.Fatal(w.ctx.Err())
	}
	stop := w.startIntake(w.intake)
	w.eventually("some are served", func() bool { return w.queued() < n })
	stop()
	served := w.total().links
	w.eventually("what was served, and no more, left the queue", func() bool { return served+w.queued() == n })
	w.redeliver()
	w.drained()
	w.wantTotal(total{links: n, issued: n})
	if strings.Contains(w.logs.String(), `"result":"redelivered"`) {
		t.Error("a request was served by both")
	}
}

func TestIntakeNeedsItsStream(t *testing.T) {
	t.Parallel()
	w := setup(t)
	must(t, w.js.DeleteStream(w.ctx, RequestsStream))
	if err := w.intake.Run(w.ctx); err == nil {
		t.Error("intake runs without a stream")
	}
}

// What became of requests is told to the events' readers as soon as it is committed, with no
// reader there as well as with one.
func TestBatchIsOneJob(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for _, id := range numbered("r%d", 50) {
		w.publish("dunning", request(id))
	}
	w.serve(w.fetch(50)...)
	if n := w.count(`SELECT count(*) FROM river_job WHERE kind = 'publish'`); n != 1 {
		t.Errorf("%d publish jobs for a batch, want 1", n)
	}
	w.startRiver()
	if events := w.events(50); len(events) != 50 {
		t.Errorf("%d events", len(events))
	}
	if n := w.stored(notify.EventsStream); n != 50 {
		t.Errorf("%d events stored, want 50", n)
	}
}

// Requests as large as the stream takes, more of them than a NATS server keeps for one client
// (64 MB): they are fetched a few at a time and rejected, and the connection lives.
func TestLargeMessagesDoNotCutTheConnection(t *testing.T) {
	t.Parallel()
	w := setup(t)
	body := []byte(strings.Repeat("x", 950_000))
	const n = 100
	for range n {
		w.publish("test", body)
	}
	w.startIntake(w.intake)
	w.drained()
	if dead := w.stored(DeadStream); dead != n {
		t.Errorf("%d dead letters of %d requests", dead, n)
	}
	if reconnects := w.nc.Stats().Reconnects; reconnects != 0 {
		t.Errorf("the connection was cut %d times", reconnects)
	}
}
