package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// A batch is what waits, at most intakeBatch. It ends when nothing has followed for intakeLinger,
// and after intakeLingerMax at the latest, so that a trickle is not held up.
const (
	intakeBatch     = 500
	intakeBytes     = 8 << 20 // above the largest message that the stream takes
	intakeWait      = time.Second
	intakeLinger    = time.Millisecond
	intakeLingerMax = 10 * time.Millisecond
	intakeLoops     = 2 // docs/performance.md has the figures of 1 and 4
	// A transaction that waits (a lock, a connection half dead) is given up well within AckWait,
	// or the redelivery would join the wait.
	intakeDeadline = 10 * time.Second
	intakeStop     = 5 * time.Second // what a stop leaves to what is fetched
)

// Intake takes requests off PORTAL_REQUESTS, has them issued, and only then acknowledges them.
type Intake struct {
	JetStream jetstream.JetStream
	Issuer    *Issuer
	Log       *slog.Logger
	Loops     int // batches that are served at the same time; 0 = 2
	// Room returns true once more may be fetched, and false when ctx ends first. Nil = always.
	Room func(ctx context.Context) bool

	metrics *intakeMetrics
	backlog chan struct{} // holds one: there is a backlog
}

// NewIntake makes an intake; reg may be nil.
func NewIntake(js jetstream.JetStream, issuer *Issuer, log *slog.Logger, reg prometheus.Registerer) *Intake {
	return &Intake{JetStream: js, Issuer: issuer, Log: log, metrics: newIntakeMetrics(reg), backlog: make(chan struct{}, 1)}
}

// Run serves requests until ctx ends; what was fetched by then is still served. The streams must
// be there (EnsureStreams).
func (in *Intake) Run(ctx context.Context) error {
	consumer, err := ensureConsumer(ctx, in.JetStream)
	if err != nil && ctx.Err() != nil {
		return nil // stopped before it began, which is a stop like any other
	}
	if err != nil {
		return err
	}
	var loops sync.WaitGroup
	for range cmp.Or(in.Loops, intakeLoops) {
		loops.Go(func() { in.loop(ctx, consumer) })
	}
	loops.Go(func() { (&ahead{intake: in}).run(ctx) })
	loops.Wait()
	return nil
}

// intakeItems are the requests of a batch, and the messages that they came in.
type intakeItems struct {
	items []*Item
	msgs  map[*Item]jetstream.Msg
}

// loop serves batches, while the next one is being fetched and parsed.
func (in *Intake) loop(ctx context.Context, consumer jetstream.Consumer) {
	batches := make(chan intakeItems)
	go func() {
		defer close(batches)
		in.fetchAll(ctx, consumer, batches)
	}()
	// Detached: what was fetched before the stop is served, and given back only if that takes too long.
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(intakeStop, cancel) })()
	for batch := range batches {
		in.serve(serving, ctx, batch)
	}
}

// fetchAll fetches until ctx ends; when fetching fails for good (the consumer was deleted), with a
// new consumer.
func (in *Intake) fetchAll(ctx context.Context, consumer jetstream.Consumer, batches chan<- intakeItems) {
	for ctx.Err() == nil && (in.Room == nil || in.Room(ctx)) {
		err := in.fetch(consumer, batches)
		if err == nil {
			continue
		}
		in.Log.Warn("intake lost its consumer and makes it anew", "error", err)
		if !sleep(ctx, time.Second) {
			return
		}
		if c, err := ensureConsumer(ctx, in.JetStream); err == nil {
			consumer = c
		}
	}
}

// fetch asks once for a batch and hands on what comes, until the request is filled or has expired.
// A request always runs to its end, at most intakeWait, so a stop leaves no message on its way to
// nobody. (Not Consumer.Messages: with a limit of bytes, its buffer has no place for the server's
// notices beside the messages, and drops messages that then wait for their redelivery.)
func (in *Intake) fetch(consumer jetstream.Consumer, batches chan<- intakeItems) error {
	// Bytes too: messages of a megabyte, five hundred at once, are more than the server keeps for
	// a client before it cuts the connection, and events and answers go over the same one.
	fetched, err := consumer.Fetch(intakeBatch, jetstream.FetchMaxBytes(intakeBytes), jetstream.FetchMaxWait(intakeWait))
	if err != nil {
		return fmt.Errorf("fetch requests: %w", err)
	}
	for batch := collect(fetched.Messages()); len(batch) > 0; batch = collect(fetched.Messages()) {
		batches <- in.parse(batch)
	}
	return fetched.Error()
}

// collect waits for one message and takes along what follows close behind it. It returns nothing
// once the request has ended.
func collect(msgs <-chan jetstream.Msg) []jetstream.Msg {
	first, ok := <-msgs
	if !ok {
		return nil
	}
	batch := []jetstream.Msg{first}
	deadline := time.Now().Add(intakeLingerMax)
	gap := time.NewTimer(intakeLinger)
	defer gap.Stop()
	for len(batch) < intakeBatch {
		select {
		case msg, ok := <-msgs:
			if !ok {
				return batch
			}
			batch = append(batch, msg)
			gap.Reset(min(intakeLinger, time.Until(deadline)))
		case <-gap.C:
			return batch
		}
	}
	return batch
}

// parse makes a batch's items, so that Postgres and this process work at the same time.
func (in *Intake) parse(batch []jetstream.Msg) intakeItems {
	b := intakeItems{make([]*Item, 0, len(batch)), make(map[*Item]jetstream.Msg, len(batch))}
	now := in.Issuer.Now()
	for _, msg := range batch {
		meta, err := msg.Metadata()
		if err != nil { // not from JetStream: nothing to acknowledge either
			in.Log.Error("a message without JetStream's metadata", "error", err)
			continue
		}
		in.backlogged(meta.NumPending)
		item := newItem(msg.Data(), msg.Subject(), meta.Stream, meta.Sequence.Stream, meta.Timestamp)
		in.Issuer.parseAhead(item, now)
		b.items = append(b.items, item)
		b.msgs[item] = msg
	}
	return b
}

// serve issues a batch and then tells JetStream. Until the commit nothing is acknowledged; after
// it, a lost acknowledgement means a redelivery that finds the link.
func (in *Intake) serve(ctx, stop context.Context, batch intakeItems) {
	var served []*Item
	failed := false
	issuing, cancel := context.WithTimeout(ctx, intakeDeadline)
	defer cancel()
	for _, part := range in.Issuer.issueApart(issuing, batch.items) {
		if part.err != nil {
			in.giveBack(part, batch.msgs)
			failed = true
			continue
		}
		in.metrics.count(part.items)
		served = append(served, part.items...)
	}
	in.settle(ctx, served, batch.msgs)
	if failed {
		sleep(stop, time.Second) // the database is away: fetch no faster than it may come back
	}
}

// giveBack asks for redelivery, later with each try.
func (in *Intake) giveBack(p part, msgs map[*Item]jetstream.Msg) {
	in.metrics.failed.Inc()
	in.Log.Error("requests could not be committed, or not all, and go back to JetStream", "requests", len(p.items), "error", p.err)
	for _, item := range p.items {
		msg := msgs[item]
		delay := 30 * time.Second
		if meta, err := msg.Metadata(); err == nil && meta.NumDelivered < 6 {
			delay = time.Second << (meta.NumDelivered - 1)
		}
		if err := msg.NakWithDelay(delay); err != nil {
			in.Log.Warn("a request will be redelivered after its ack wait", "error", err)
		}
	}
}

// settle acknowledges requests that have their link, then dead-letters the rejected ones. Durable
// by now are links and the rejections' audit rows.
func (in *Intake) settle(ctx context.Context, items []*Item, msgs map[*Item]jetstream.Msg) {
	var rejected []*Item
	for _, item := range items {
		if item.Rejection != nil {
			rejected = append(rejected, item)
			continue
		}
		if in.Log.Enabled(ctx, slog.LevelDebug) {
			in.Log.Debug("request served", "request_id", item.Request.ID, "link_id", item.Link.ID, "result", item.result())
		}
		if err := msgs[item].Ack(); err != nil {
			in.Log.Warn("the acknowledgement was lost; the redelivery will find the link", "request_id", item.Request.ID, "error", err)
		}
	}
	for i, item := range rejected {
		err := in.reject(ctx, item, msgs[item])
		if err == nil {
			continue
		}
		back := rejected[i : i+1]
		if nobodyAnswers(err) {
			back = rejected[i:] // without a try each: a stop must not wait for all of them
		}
		in.Log.Error("dead letters can't be stored; the requests go back to JetStream", "requests", len(back), "error", err)
		in.retryLater(back, msgs)
		if len(back) > 1 {
			return
		}
	}
}

// nobodyAnswers tells an error that the next message will meet too from one that is the message's
// own, such as its size.
func nobodyAnswers(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrConnectionClosed) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse)
}

// reject stores the dead letter and then ends the request's delivery.
func (in *Intake) reject(ctx context.Context, item *Item, msg jetstream.Msg) error {
	log := in.Log.With("request_id", item.Request.ID)
	if err := in.deadLetter(ctx, item, msg); err != nil {
		return err
	}
	log.Warn("request rejected", "code", item.Rejection.Code, "reason", item.Rejection.Reason)
	if err := msg.TermWithReason(string(item.Rejection.Code)); err != nil {
		log.Warn("the termination was lost; the redelivery will be dead-lettered under the same id", "error", err)
	}
	return nil
}

func (in *Intake) retryLater(items []*Item, msgs map[*Item]jetstream.Msg) {
	for _, item := range items {
		if err := msgs[item].NakWithDelay(5 * time.Second); err != nil {
			in.Log.Warn("a request will be redelivered after its ack wait", "error", err)
		}
	}
}

// Headers of a dead letter, beside the request's own.
const (
	HeaderReason   = "Latchkey-Reason"
	HeaderCode     = "Latchkey-Code"
	HeaderSequence = "Latchkey-Sequence" // of the request in PORTAL_REQUESTS
	HeaderSubject  = "Latchkey-Subject"  // it was published to
)

// deadLetter stores the request as it came. The audit row's id goes along as Nats-Msg-Id, so a
// redelivery's dead letter is dropped as a repeat.
func (in *Intake) deadLetter(ctx context.Context, item *Item, msg jetstream.Msg) error {
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	dead := nats.NewMsg(DeadPrefix + string(item.Rejection.Code))
	for k, v := range msg.Headers() {
		if !strings.HasPrefix(k, "Nats-") { // JetStream's own: an expected sequence, a dedupe id
			dead.Header[k] = v
		}
	}
	dead.Header.Set(HeaderReason, item.Rejection.Reason)
	dead.Header.Set(HeaderCode, string(item.Rejection.Code))
	dead.Header.Set(HeaderSequence, strconv.FormatUint(meta.Sequence.Stream, 10))
	dead.Header.Set(HeaderSubject, msg.Subject())
	dead.Data = msg.Data()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = in.JetStream.PublishMsg(ctx, dead, jetstream.WithMsgID(item.MessageID.String()))
	return err
}

// ReadableID is the id in a request's body, or "" where the body is no JSON as a request must be,
// or holds no valid id. The rest of the body may break any rule.
func ReadableID(body []byte) string {
	var head struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(body, &head); err != nil || !validID(head.ID) {
		return ""
	}
	return head.ID
}

// newItem is the item of a message that a stream holds.
func newItem(body []byte, subject, stream string, sequence uint64, stored time.Time) *Item {
	source, _, _ := strings.Cut(strings.TrimPrefix(subject, RequestsPrefix), ".")
	return &Item{Body: body, Source: source, Published: stored, MessageID: messageID(stream, sequence, stored)}
}

// sleep waits, and returns false where ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
