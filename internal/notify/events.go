package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Subjects and types of events are a prefix and the audit row's kind.
const (
	EventsStream  = "PORTAL_EVENTS"
	SubjectPrefix = "portal.events."
	TypePrefix    = "latchkey."
)

// contentType is that of an event, on a subject and in a webhook. In small letters: the JavaScript SDK of
// CloudEvents compares it as text.
const contentType = "application/cloudevents+json; charset=utf-8"

// Event is a CloudEvent (https://github.com/cloudevents/spec, 1.0.2, structured content mode).
type Event struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject,omitempty"` // the link's id; empty = it is about none
	Time            time.Time       `json:"time"`
	DataContentType string          `json:"datacontenttype"`
	Data            json.RawMessage `json:"data"`
}

// NewEvent makes the event of an audit row; data is a JSON object.
func NewEvent(id, source, kind, subject string, at time.Time, data []byte) Event {
	return Event{SpecVersion: "1.0", ID: id, Source: source, Type: TypePrefix + kind, Subject: subject,
		Time: at.UTC(), DataContentType: "application/json", Data: data}
}

// Kind is the audit row's kind that the event tells.
func (e *Event) Kind() string { return e.Type[len(TypePrefix):] }

// ErrNotStored is returned when JetStream did not confirm every event. Some may be stored:
// publishing all of them again is right.
var ErrNotStored = errors.New("JetStream did not store every event")

// ackWait bounds how long one batch waits for its acks.
const ackWait = 10 * time.Second

// Publish stores events and returns nil once JetStream has acknowledged each. They go out
// together and are acknowledged together: a round trip for a batch, not for an event.
func Publish(ctx context.Context, js jetstream.JetStream, events []Event) error {
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	acks := make([]jetstream.PubAckFuture, 0, len(events))
	for i := range events {
		body, err := json.Marshal(&events[i])
		if err != nil {
			return fmt.Errorf("event %s: %w", events[i].ID, err)
		}
		msg := nats.NewMsg(SubjectPrefix + events[i].Kind())
		msg.Header.Set("Content-Type", contentType)
		msg.Data = body
		ack, err := js.PublishMsgAsync(msg, jetstream.WithMsgID(events[i].ID))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotStored, err)
		}
		acks = append(acks, ack)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("%w: %w", ErrNotStored, err)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNotStored, ctx.Err())
		}
	}
	return nil
}
