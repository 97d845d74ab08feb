// Package producer is the way in for programs that want links: it publishes requests and hears
// what became of them. It talks to NATS only; a producer's machine needs no database password and
// no Stripe key.
package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// Client publishes requests and asks the micro service. It is safe for concurrent use.
type Client struct {
	nc *nats.Conn
	js jetstream.JetStream
}

// New makes a client on a connection that the caller closes.
func New(nc *nats.Conn) (*Client, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return &Client{nc: nc, js: js}, nil
}

// Message is a request on its way: Body goes out as it is, so that the worker checks what the
// producer wrote and nothing is dropped on the way. ID and Source are those of the body.
type Message struct {
	ID, Source string
	Body       []byte
}

// NewMessage makes the message of a request.
func NewMessage(req *jobs.Request) (Message, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return Message{}, fmt.Errorf("request %q: %w", req.ID, err)
	}
	return Message{ID: req.ID, Source: req.Source, Body: body}, nil
}

// ServiceError is returned when a worker answered with an error, or rejected the request. Code is
// one of the contract's codes of a rejected request, or not_found, bad_request, unavailable.
type ServiceError struct{ Code, Text string }

func (e *ServiceError) Error() string { return e.Code + ": " + e.Text }

// ErrNoWorker is returned when nobody answers.
var ErrNoWorker = errors.New("no worker answers on this NATS server; is 'worker run' up, with the role intake?")

// ErrNoAnswer is returned by SendAndWait when the request is stored and no answer came in time.
var ErrNoAnswer = errors.New("the request is stored, but no worker has answered yet; it will be served when one runs")

// Send stores a request. When it returns nil, JetStream has it; a worker will serve it however
// often either side is restarted.
func (c *Client) Send(ctx context.Context, m Message) (sequence uint64, err error) {
	ack, err := c.js.Publish(ctx, jobs.RequestsPrefix+m.Source, m.Body)
	if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		return 0, fmt.Errorf("the stream %s does not exist; start a worker once, it creates it", jobs.RequestsStream)
	}
	if err != nil {
		return 0, fmt.Errorf("publish request %q: %w", m.ID, err)
	}
	return ack.Sequence, nil
}

// SendAndWait stores a request and waits, until ctx ends, for its link, or its rejection as a
// *ServiceError. It listens before it sends, so it can't miss an answer.
func (c *Client) SendAndWait(ctx context.Context, m Message) (*jobs.IssuedData, error) {
	type result struct {
		link *jobs.IssuedData
		err  error
	}
	found := make(chan result, 1)
	var sequence uint64 // of the request; a rejection names it, and may come before we know it
	sent := make(chan struct{})
	hear := func(msg *nats.Msg) {
		<-sent
		if link, mine, err := answer(msg, m.ID, sequence); mine {
			select {
			case found <- result{link, err}:
			default: // a repeat
			}
		}
	}
	for _, subject := range []string{notify.SubjectPrefix + string(portal.LinkIssued), jobs.DeadPrefix + ">"} {
		// A callback, not a channel of ours: the client keeps half a million messages for it, and a
		// campaign's links come in bursts.
		sub, err := c.nc.Subscribe(subject, hear)
		if err != nil {
			return nil, fmt.Errorf("listen for the answer: %w", err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	if err := c.nc.FlushWithContext(ctx); err != nil {
		return nil, fmt.Errorf("listen for the answer: %w", err)
	}
	var err error
	sequence, err = c.Send(ctx, m)
	close(sent)
	if err != nil {
		return nil, err
	}
	select {
	case r := <-found:
		return r.link, r.err
	case <-ctx.Done():
		return nil, ErrNoAnswer
	}
}

// answer tells whether a message is the one waited for.
func answer(msg *nats.Msg, requestID string, sequence uint64) (*jobs.IssuedData, bool, error) {
	if code := msg.Header.Get(jobs.HeaderCode); code != "" {
		mine := msg.Header.Get(jobs.HeaderSequence) == strconv.FormatUint(sequence, 10)
		return nil, mine, &ServiceError{Code: code, Text: msg.Header.Get(jobs.HeaderReason)}
	}
	var event notify.Event
	if err := json.Unmarshal(msg.Data, &event); err != nil {
		return nil, false, nil // somebody else's message on our subjects
	}
	link := &jobs.IssuedData{}
	if err := json.Unmarshal(event.Data, link); err != nil || link.RequestID != requestID {
		return nil, false, nil
	}
	return link, true, nil
}

// Create asks for a link and gets it from the commit itself, without the stream.
func (c *Client) Create(ctx context.Context, m Message) (*jobs.IssuedData, error) {
	link := &jobs.IssuedData{}
	return link, c.ask(ctx, jobs.CreateSubject, json.RawMessage(m.Body), link)
}

// Status asks what became of a link, a request or a click.
func (c *Client) Status(ctx context.Context, id string) (*jobs.Status, error) {
	status := &jobs.Status{}
	return status, c.ask(ctx, jobs.GetSubject, jobs.GetRequest{ID: id}, status)
}

// Revoke ends links for ever and returns how many it ended.
func (c *Client) Revoke(ctx context.Context, r portal.Revocation) (int, error) {
	var answer jobs.RevokeResponse
	err := c.ask(ctx, jobs.RevokeSubject, r, &answer)
	return answer.Revoked, err
}

// Campaigns lists at most limit campaigns, the one with the newest link first.
func (c *Client) Campaigns(ctx context.Context, limit int) (*portal.CampaignList, error) {
	list := &portal.CampaignList{}
	return list, c.ask(ctx, jobs.CampaignsSubject, jobs.CampaignsRequest{Limit: limit}, list)
}

// Campaign asks what became of a campaign's links.
func (c *Client) Campaign(ctx context.Context, name string) (*portal.Campaign, error) {
	campaign := &portal.Campaign{}
	return campaign, c.ask(ctx, jobs.CampaignSubject, jobs.CampaignRequest{Campaign: name}, campaign)
}

// CheckCampaign asks what would keep sessions from being made, for at most jobs.MostPreflightQuestions questions.
func (c *Client) CheckCampaign(ctx context.Context, questions []portal.PreflightQuestion) ([]portal.PreflightFinding, error) {
	var check jobs.CampaignCheck
	err := c.ask(ctx, jobs.CampaignCheckSubject, jobs.CampaignCheckRequest{Questions: questions}, &check)
	if err == nil && len(check.Findings) != len(questions) {
		err = errors.New("the worker answered another question; are both of the same version?")
	}
	return check.Findings, err
}

func (c *Client) ask(ctx context.Context, subject string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	msg, err := c.nc.RequestWithContext(ctx, subject, body)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return ErrNoWorker
	case err != nil:
		return fmt.Errorf("ask the worker: %w", err)
	}
	if code := msg.Header.Get(micro.ErrorCodeHeader); code != "" {
		return &ServiceError{Code: code, Text: msg.Header.Get(micro.ErrorHeader)}
	}
	if err := json.Unmarshal(msg.Data, answer); err != nil {
		return fmt.Errorf("the worker's answer can't be read; are both of the same version? %w", err)
	}
	return nil
}

// Watch hands over events as they happen, until ctx ends. Events that happen while the connection
// is lost are handed over once it is back.
func (c *Client) Watch(ctx context.Context, handle func(event notify.Event, raw []byte) error) error {
	consumer, err := c.js.OrderedConsumer(ctx, notify.EventsStream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("the stream %s does not exist; start a worker once, it creates it", notify.EventsStream)
	}
	if err != nil {
		return fmt.Errorf("watch events: %w", err)
	}
	it, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("watch events: %w", err)
	}
	defer it.Stop()
	for {
		msg, err := it.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch events: %w", err)
		}
		var event notify.Event
		if err := json.Unmarshal(msg.Data(), &event); err != nil {
			continue // not one of ours
		}
		if err := handle(event, msg.Data()); err != nil {
			return err
		}
	}
}
