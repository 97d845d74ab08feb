package main

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/contract"
	"latchkey/internal/interop"
	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// A producer in another language publishes a request and reads the event.
func TestInteropProducer(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.start()
	body := mustJSON(t, &jobs.Request{ID: "in_1", Source: "dunning", Session: &portal.SessionParams{Customer: "cus_1"}, Metadata: map[string]string{"name": "Jö ☂"}})
	event := interop.Node(t, "producer.mjs", []byte(body), "NATS_URL="+d.nats)
	contract.CheckEvent(t, contract.Schema(t, "event.schema.json"), []byte(event))
	var got struct{ Data jobs.IssuedData }
	if err := json.Unmarshal([]byte(event), &got); err != nil {
		t.Fatal(err)
	}
	if status, page, _ := d.do(http.MethodGet, got.Data.URL); status != http.StatusOK || !strings.Contains(page, "<button") {
		t.Errorf("the event's URL answers %d", status)
	}
	if got.Data.RequestID != "in_1" || !strings.Contains(string(got.Data.Metadata), "Jö ☂") {
		t.Errorf("the event tells of %+v", got.Data)
	}
}

// A client in another language uses the micro service: its endpoints, its errors, the standard verbs.
func TestInteropService(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.start()
	type refusal struct{ Code, Error string }
	type endpoint struct {
		Name, Subject string
		Requests      int `json:"num_requests"`
	}
	type verb struct {
		Type, Name string
		Endpoints  []endpoint
	}
	var got struct {
		Created, Status, Revoked, Campaigns json.RawMessage
		Refused, Missing, NoCampaign        refusal
		Ping, Info, Stats                   verb
	}
	out := interop.Node(t, "service.mjs", []byte(mustJSON(t, request("in_1"))), "NATS_URL="+d.nats)
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	for ref, answer := range map[string]json.RawMessage{"event.schema.json#/$defs/link_issued_data": got.Created,
		"service.schema.json#/$defs/status": got.Status, "service.schema.json#/$defs/revoked": got.Revoked,
		"service.schema.json#/$defs/campaigns": got.Campaigns} {
		if err := contract.Validate(contract.Schema(t, ref), answer); err != nil {
			t.Errorf("%s\n%v", answer, err)
		}
	}
	if string(got.Revoked) != `{"revoked":1}` {
		t.Errorf("revoked: %s", got.Revoked)
	}
	if got.Refused.Code != "invalid_field" || !strings.HasPrefix(got.Refused.Error, "$.source") || got.Missing.Code != "not_found" || got.NoCampaign.Code != "not_found" {
		t.Errorf("errors: %+v %+v %+v", got.Refused, got.Missing, got.NoCampaign)
	}
	if got.Ping.Type != "io.nats.micro.v1.ping_response" || got.Ping.Name != "latchkey" {
		t.Errorf("PING: %+v", got.Ping)
	}
	subjects, requests := map[string]string{}, map[string]int{}
	for _, e := range got.Info.Endpoints {
		subjects[e.Name] = e.Subject
	}
	for _, e := range got.Stats.Endpoints {
		requests[e.Name] = e.Requests
	}
	if want := map[string]string{"create": "portal.links.create", "get": "portal.links.get", "revoke": "portal.links.revoke",
		"campaigns-list": "portal.campaigns.list", "campaigns-get": "portal.campaigns.get", "campaigns-check": "portal.campaigns.check"}; !reflect.DeepEqual(subjects, want) {
		t.Errorf("INFO: %+v", got.Info)
	}
	if want := map[string]int{"create": 2, "get": 2, "revoke": 1, "campaigns-list": 1, "campaigns-get": 1, "campaigns-check": 0}; !reflect.DeepEqual(requests, want) {
		t.Errorf("STATS: %+v", got.Stats)
	}
}

// Each kind of event that a click, a refusal and a revocation make is valid, and parses with the official
// CloudEvents SDKs of Go and JavaScript.
func TestInteropEvents(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.start()
	for _, customer := range []string{"cus_1", "cus_deleted1"} {
		req := request("for-" + customer)
		req.Session.Customer = customer
		link := d.link(req)
		d.do(http.MethodHead, link.URL)
		d.do(http.MethodPost, link.URL)
	}
	if _, err := d.producer.Revoke(d.soon(), portal.Revocation{RequestID: "for-cus_1", By: "jo"}); err != nil {
		t.Fatal(err)
	}
	sent := d.sent(7)

	ids := map[string][]string{}
	var messages []map[string]any
	schema := contract.Schema(t, "event.schema.json")
	for _, msg := range sent {
		contract.CheckEvent(t, schema, msg.Data())
		var e cloudevents.Event
		if err := json.Unmarshal(msg.Data(), &e); err != nil {
			t.Fatalf("%s\n%v", msg.Data(), err)
		}
		if err := e.Validate(); err != nil {
			t.Errorf("%s\n%v", msg.Data(), err)
		}
		var data jobs.EventData
		if err := e.DataAs(&data); err != nil || data.LinkID.String() != e.Subject() {
			t.Errorf("%s\ndata %+v (%v)", msg.Data(), data, err)
		}
		ids[e.Type()] = append(ids[e.Type()], e.ID())
		messages = append(messages, map[string]any{"headers": map[string]string{"content-type": msg.Headers().Get("Content-Type")}, "body": string(msg.Data())})
	}
	for typ, want := range map[string]int{"link.issued": 2, "link.opened": 2, "session.created": 1, "session.failed": 1, "link.revoked": 1} {
		if got := len(ids[notify.TypePrefix+typ]); got != want {
			t.Errorf("%d of %s, want %d", got, typ, want)
		}
	}
	var parsed map[string][]string
	if err := json.Unmarshal([]byte(interop.Node(t, "events.mjs", []byte(mustJSON(t, messages)))), &parsed); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(parsed, ids) {
		t.Errorf("the JavaScript SDK reads %v, want %v", parsed, ids)
	}
}

// sent are the first n messages of the events' stream.
func (d *deployment) sent(n int) (msgs []jetstream.Msg) {
	d.t.Helper()
	js, err := jetstream.New(d.nc)
	if err != nil {
		d.t.Fatal(err)
	}
	consumer, err := js.OrderedConsumer(d.soon(), notify.EventsStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		d.t.Fatal(err)
	}
	for len(msgs) < n {
		msg, err := consumer.Next(jetstream.FetchContext(d.soon()))
		if err != nil {
			d.t.Fatalf("%d of %d events: %v", len(msgs), n, err)
		}
		msgs = append(msgs, msg)
	}
	return slices.Clip(msgs)
}
