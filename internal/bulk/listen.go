package bulk

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// listen hears links and rejections from now on. It returns when both consumers are there.
func (r *Run) listen(ctx context.Context) (stop func(), err error) {
	links, err := r.hear(ctx, notify.EventsStream, notify.SubjectPrefix+string(portal.LinkIssued), false, r.heardLink)
	if err != nil {
		return nil, err
	}
	dead, err := r.hear(ctx, jobs.DeadStream, jobs.DeadPrefix+">", true, r.heardDead)
	if err != nil {
		links.Stop()
		return nil, err
	}
	return func() { links.Stop(); dead.Stop() }, nil
}

// heardAtOnce is how many messages may be on their way here: enough for the pace of events, and some megabytes.
const heardAtOnce = 4096

// hear begins at the stream's end by its number: an ordered consumer that asked for new messages only, and was made anew
// before the first came, would leave a gap.
func (r *Run) hear(ctx context.Context, stream, subject string, headersOnly bool, handle jetstream.MessageHandler) (jetstream.ConsumeContext, error) {
	s, err := r.js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("the stream %s does not exist; start a worker once, it creates it", stream)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for answers: %w", err)
	}
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}, HeadersOnly: headersOnly,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: s.CachedInfo().State.LastSeq + 1,
		InactiveThreshold: time.Minute}) // of no use to anybody after us
	if err != nil {
		return nil, fmt.Errorf("listen for answers: %w", err)
	}
	consuming, err := consumer.Consume(handle, jetstream.PullMaxMessages(heardAtOnce))
	if err != nil {
		return nil, fmt.Errorf("listen for answers: %w", err)
	}
	return consuming, nil
}

// issued is what is of interest in a link.issued.
type issued struct {
	Data struct {
		RequestID string `json:"request_id"`
		Source    string `json:"source"`
		Campaign  string `json:"campaign"`
		Customer  string `json:"customer"`
		LinkID    string `json:"link_id"`
		URL       string `json:"url"`
		ExpiresAt string `json:"expires_at"`
	} `json:"data"`
}

func (r *Run) heardLink(msg jetstream.Msg) {
	if id, known := requestID(msg.Data()); known && r.window.asked(id) == nil {
		return // most of a busy stream ends here
	}
	var event issued
	if err := json.Unmarshal(msg.Data(), &event); err != nil || event.Data.URL == "" {
		return // not one of ours
	}
	if !event.answers(r.window.asked([]byte(event.Data.RequestID))) {
		return
	}
	r.window.link(event.Data.RequestID, Result{URL: event.Data.URL, LinkID: event.Data.LinkID, ExpiresAt: event.Data.ExpiresAt})
}

// answers tells whether a link is for a request as the row has it. Another one under the same id, of an earlier file or
// of somebody else, may be served while we wait: its link is another customer's, and ours will be rejected.
func (e *issued) answers(body []byte) bool {
	var request struct {
		Source   string `json:"source"`
		Campaign string `json:"campaign"`
		Session  struct {
			Customer        string `json:"customer"`
			CustomerAccount string `json:"customer_account"`
		} `json:"session"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return false // nor does the worker take it
	}
	d := &e.Data
	return d.Source == request.Source && d.Campaign == request.Campaign && d.Customer == cmp.Or(request.Session.Customer, request.Session.CustomerAccount)
}

// idMark is what stands before the request's id in an event as the worker writes it. A quote within a string has a
// backslash before it, so the mark is never part of one.
var idMark = []byte(`"data":{"request_id":"`)

// requestID finds the request's id without reading the rest. known is false where only reading tells.
func requestID(event []byte) (id []byte, known bool) {
	_, rest, found := bytes.Cut(event, idMark)
	end := bytes.IndexByte(rest, '"')
	if !found || end < 0 || bytes.IndexByte(rest[:end], '\\') >= 0 {
		return nil, false
	}
	return rest[:end], true
}

func (r *Run) heardDead(msg jetstream.Msg) {
	header := msg.Headers()
	sequence, err := strconv.ParseUint(header.Get(jobs.HeaderSequence), 10, 64)
	if err != nil {
		return // no worker made it
	}
	code := header.Get(jobs.HeaderCode)
	r.window.reject(sequence, Result{Code: jobs.Code(code), Err: code + ": " + header.Get(jobs.HeaderReason)})
}
