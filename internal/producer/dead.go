package producer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
)

// DeadLetter is a rejected request, as PORTAL_DEAD keeps it. All of it but Sequence, At and Size
// was written by somebody else: it is to be escaped before a terminal sees it.
type DeadLetter struct {
	Sequence        uint64 // in PORTAL_DEAD
	At              time.Time
	Code, Reason    string
	Subject         string      // the request was published to
	RequestSequence string      // of the request in PORTAL_REQUESTS
	Header          nats.Header // the request's own
	Body            []byte
}

// Source is what the request's subject says.
func (l *DeadLetter) Source() string {
	source, _, _ := strings.Cut(strings.TrimPrefix(l.Subject, jobs.RequestsPrefix), ".")
	return source
}

// RequestID is the request's id, or "" where the body has none that can be read.
func (l *DeadLetter) RequestID() string { return jobs.ReadableID(l.Body) }

func newDeadLetter(subject string, header nats.Header, body []byte, seq uint64, at time.Time) *DeadLetter {
	l := &DeadLetter{Sequence: seq, At: at, Code: strings.TrimPrefix(subject, jobs.DeadPrefix), Reason: header.Get(jobs.HeaderReason),
		Subject: header.Get(jobs.HeaderSubject), RequestSequence: header.Get(jobs.HeaderSequence), Header: nats.Header{}, Body: body}
	for name, values := range header {
		switch name {
		case jobs.HeaderReason, jobs.HeaderCode, jobs.HeaderSequence, jobs.HeaderSubject:
		default:
			if !strings.HasPrefix(name, "Nats-") { // JetStream's own of the letter
				l.Header[name] = values
			}
		}
	}
	return l
}

// DeadFilter chooses dead letters; the zero value takes all.
type DeadFilter struct {
	Code, Source string
	Since, Until time.Time // of the rejection; both included
	Limit        int       // the oldest that fit; 0 = no limit
}

func (f DeadFilter) fits(l *DeadLetter) bool {
	return (f.Source == "" || f.Source == l.Source()) && !l.At.Before(f.Since) && (f.Until.IsZero() || !l.At.After(f.Until))
}

// ErrNoLetter is returned for a sequence number under which PORTAL_DEAD has nothing (any more).
var ErrNoLetter = errors.New("there is no such letter; a replay deletes it")

// ErrLettersLost is returned when the connection lost letters on their way here.
var ErrLettersLost = errors.New("the connection to NATS lost some letters on their way; run the command again")

// DeadLetters is the stream of rejected requests.
type DeadLetters struct {
	js     jetstream.JetStream
	stream jetstream.Stream
}

// DeadLetters opens PORTAL_DEAD.
func (c *Client) DeadLetters(ctx context.Context) (*DeadLetters, error) {
	stream, err := c.js.Stream(ctx, jobs.DeadStream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("the stream %s does not exist; start a worker once, it creates it", jobs.DeadStream)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", jobs.DeadStream, err)
	}
	return &DeadLetters{js: c.js, stream: stream}, nil
}

// Count tells how many letters of each code there are.
func (d *DeadLetters) Count(ctx context.Context) (map[string]uint64, error) {
	info, err := d.stream.Info(ctx, jetstream.WithSubjectFilter(jobs.DeadPrefix+">"))
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	counts := make(map[string]uint64, len(info.State.Subjects))
	for subject, n := range info.State.Subjects {
		counts[strings.TrimPrefix(subject, jobs.DeadPrefix)] = n
	}
	return counts, nil
}

// Get reads one letter; the error is ErrNoLetter where there is none.
func (d *DeadLetters) Get(ctx context.Context, seq uint64) (*DeadLetter, error) {
	msg, err := d.stream.GetMsg(ctx, seq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, ErrNoLetter
	case err != nil:
		return nil, fmt.Errorf("read the letter: %w", err)
	}
	return newDeadLetter(msg.Subject, msg.Header, msg.Data, msg.Sequence, msg.Time), nil
}

// readAtOnce bounds what waits here in memory: a letter may have a megabyte.
const readAtOnce = 32

// Each hands over, oldest first, the letters that fit and were there when it was called: what a
// replay adds meanwhile is not among them, so no replay of all of them goes round. An error of
// handle ends it and is returned.
func (d *DeadLetters) Each(ctx context.Context, f DeadFilter, handle func(*DeadLetter) error) (err error) {
	info, err := d.stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	consumer, err := d.reader(ctx, f)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	defer func() {
		// Else the server does it, after a while.
		_ = d.stream.DeleteConsumer(context.WithoutCancel(ctx), consumer.CachedInfo().Name)
	}()
	reading := &reading{filter: f, last: info.State.LastSeq, handle: handle}
	for !reading.done {
		if err := reading.batch(ctx, consumer); err != nil {
			return err
		}
	}
	return nil
}

// reader makes a consumer that lives only as long as somebody reads.
func (d *DeadLetters) reader(ctx context.Context, f DeadFilter) (jetstream.Consumer, error) {
	cfg := jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, InactiveThreshold: 30 * time.Minute}
	if f.Code != "" {
		cfg.FilterSubject = jobs.DeadPrefix + f.Code
	}
	if !f.Since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &f.Since
	}
	return d.stream.CreateConsumer(ctx, cfg)
}

type reading struct {
	filter          DeadFilter
	last            uint64 // the stream's last letter when the reading began
	handle          func(*DeadLetter) error
	received, given int
	done            bool
}

// batch reads what comes at once. That nothing came is no proof that nothing waits: only the
// consumer knows, and whether all that it sent has arrived.
func (r *reading) batch(ctx context.Context, consumer jetstream.Consumer) error {
	fetched, err := consumer.FetchNoWait(readAtOnce)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	before := r.received
	for msg := range fetched.Messages() {
		r.received++
		if r.done {
			continue // the rest of the batch
		}
		if err := r.take(ctx, msg); err != nil {
			return err
		}
	}
	if err := fetched.Error(); err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	if r.done || r.received > before {
		return ctx.Err()
	}
	info, err := consumer.Info(ctx)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	if info.Delivered.Consumer != uint64(r.received) {
		return ErrLettersLost
	}
	r.done = info.NumPending == 0
	return nil
}

func (r *reading) take(ctx context.Context, msg jetstream.Msg) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	meta, err := msg.Metadata()
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	if meta.Sequence.Stream > r.last {
		r.done = true
		return nil
	}
	letter := newDeadLetter(msg.Subject(), msg.Headers(), msg.Data(), meta.Sequence.Stream, meta.Timestamp)
	if !r.filter.fits(letter) {
		return nil
	}
	r.given++
	r.done = r.given == r.filter.Limit
	return r.handle(letter)
}

// CheckReplay returns why a letter can't be sent again as it is: what the worker would refuse for
// ever is not sent round once more.
func (l *DeadLetter) CheckReplay() error {
	switch {
	case l.Subject == "":
		return fmt.Errorf("it has no header %s, so no worker made it", jobs.HeaderSubject)
	case !publishable(l.Subject):
		return fmt.Errorf("its subject can't be sent to: a source must match [a-z0-9_-]{1,40}; send the body ('show --raw') by 'enqueue link --request -'")
	case len(l.Body) > jobs.MaxRequestBytes:
		return fmt.Errorf("the request has %d bytes, and may have %d", len(l.Body), jobs.MaxRequestBytes)
	case l.RequestID() == "":
		return errors.New("the request has no id that can be read, so a repeat could not be recognised; give it one by --edit, or, where it is no JSON, mend the body ('show --raw') and send it by 'enqueue link --request -'")
	}
	return nil
}

// publishable tells whether a subject is one of requests, of one message, with a valid source.
func publishable(subject string) bool {
	tokens := strings.Split(subject, ".")
	if !strings.HasPrefix(subject, jobs.RequestsPrefix) || !jobs.ValidSource(tokens[2]) {
		return false
	}
	for _, token := range tokens[3:] {
		if token == "" || strings.ContainsAny(token, "*> ") || strings.ContainsFunc(token, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return false
		}
	}
	return true
}

// replayID is the message id of a letter's replay: the same for the same letter with the same
// content, so that JetStream drops the second of two in its window.
func (l *DeadLetter) replayID() string {
	h := sha256.New()
	fmt.Fprintf(h, "latchkey replay %d %d %s\n", l.Sequence, l.At.UnixNano(), l.Subject)
	h.Write(l.Body)
	return fmt.Sprintf("replay-%x", h.Sum(nil)[:16])
}

// Replay sends the request of a letter once more, with the body that the letter has now, and
// deletes the letter once JetStream has stored the request, unless keep is set. sent tells whether
// it is stored, also beside an error; repeat, that it was stored by an earlier replay of the last
// minutes.
//
// However often it is called and wherever it is cut off, a request id gets one link: until the
// request is stored the letter stays; when the answer is lost, or the process ends between the two
// steps, the letter is still there and the next replay's request finds the link.
func (d *DeadLetters) Replay(ctx context.Context, l *DeadLetter, keep bool) (sent, repeat bool, err error) {
	if err := l.CheckReplay(); err != nil {
		return false, false, err
	}
	msg := &nats.Msg{Subject: l.Subject, Header: nats.Header{}, Data: l.Body}
	for name, values := range l.Header {
		msg.Header[name] = values
	}
	// The stream is named, because the ack of another that listens there too is no reason to
	// delete anything.
	ack, err := d.js.PublishMsg(ctx, msg, jetstream.WithMsgID(l.replayID()), jetstream.WithExpectStream(jobs.RequestsStream))
	if err != nil {
		return false, false, fmt.Errorf("send the request: %w", err)
	}
	if keep {
		return true, ack.Duplicate, nil
	}
	if err := d.delete(ctx, l.Sequence); err != nil {
		return true, ack.Duplicate, fmt.Errorf("the request is sent, but the letter could not be deleted (sending it again makes no second link): %w", err)
	}
	return true, ack.Duplicate, nil
}

// delete is content where somebody else was faster.
func (d *DeadLetters) delete(ctx context.Context, seq uint64) error {
	err := d.stream.DeleteMsg(ctx, seq)
	if err == nil {
		return nil
	}
	if _, gone := d.Get(ctx, seq); errors.Is(gone, ErrNoLetter) {
		return nil
	}
	return err
}

// Unreachable tells an error that every other letter would meet too from one that is a letter's
// own.
func Unreachable(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse)
}
