package bulk

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"latchkey/internal/jobs"
)

// Options say what a run does. Conn and Input are required.
type Options struct {
	Conn  *nats.Conn // without a buffer for reconnects, so that a publish fails at once while the server is away
	Input Input
	Out   io.Writer                   // nil = links go nowhere but to where rows say
	Pace  func(context.Context) error // waits before each publish; nil = no limit

	Rows     int           // at once between reading and writing; 0 = 16384
	Bytes    int           // of those rows; 0 = 16 MiB
	Unacked  int           // publishes without an ack; 0 = 2048
	Patience time.Duration // until a request that a worker has taken is published again; 0 = 30 s
	Retry    time.Duration // until a publish that failed is done again, at first; 0 = 250 ms
}

// Run is one pass over a file.
type Run struct {
	opts   Options
	js     jetstream.JetStream
	name   string // begins the ids of this run's messages
	window *window

	report report
}

// maxRetry bounds the wait between two tries at publishing.
const maxRetry = 5 * time.Second

// ackTimeout is how long an ack may take before the publish is done again.
const ackTimeout = 10 * time.Second

// New makes a run; Do runs it.
func New(opts Options) (*Run, error) {
	opts.Rows, opts.Bytes, opts.Unacked = cmp.Or(opts.Rows, 16384), cmp.Or(opts.Bytes, 16<<20), cmp.Or(opts.Unacked, 2048)
	opts.Patience, opts.Retry = cmp.Or(opts.Patience, 30*time.Second), cmp.Or(opts.Retry, 250*time.Millisecond)
	r := &Run{opts: opts, name: nuid.Next(), window: newWindow(opts.Rows, opts.Bytes)}
	var err error
	r.js, err = jetstream.New(opts.Conn,
		jetstream.WithPublishAsyncMaxPending(2*opts.Rows+opts.Unacked), // the window is the limit
		jetstream.WithPublishAsyncTimeout(ackTimeout),
		jetstream.WithPublishAsyncAckHandler(r.acked),
		jetstream.WithPublishAsyncErrHandler(r.lost))
	if err != nil {
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return r, nil
}

// Progress may be asked for at any time.
func (r *Run) Progress() Progress {
	p := r.window.progress()
	p.Away = !r.opts.Conn.IsConnected()
	return p
}

// Do runs until each row has its link or error, or ctx ends: that is no error, and the summary says Stopped. An error is
// one that ended the run before its time: the file can't be read on, the output can't be written, the streams are not
// there. The summary is right beside an error too.
func (r *Run) Do(ctx context.Context) (Summary, error) {
	begun := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop, err := r.listen(ctx)
	if err != nil {
		return Summary{}, err
	}
	defer stop()
	defer r.window.stopWith(ctx)()

	var parts sync.WaitGroup
	parts.Go(func() { r.retry(ctx) })
	parts.Go(func() { r.chase(ctx) })
	// Not waited for: it may hang in reading a terminal. What it reads after the stop goes nowhere.
	readErr := make(chan error, 1)
	go func() { readErr <- r.feed(ctx) }()

	written := make(chan error, 1)
	go func() { written <- r.write() }()
	writeErr, ok := awaitOutput(ctx, written)
	cancel()
	parts.Wait()
	if !ok {
		return Summary{Progress: r.Progress(), Elapsed: time.Since(begun), Stopped: true}, errOutputHangs
	}
	var inputErr error
	complete := r.window.complete()
	if complete {
		inputErr = <-readErr
	}
	summary := r.report.summary(r.Progress(), time.Since(begun))
	summary.Stopped = !complete || summary.Unfinished > 0
	return summary, errors.Join(writeErr, inputErr)
}

// outputGrace is what a stop leaves to an output that is slow, such as a pipe that nobody reads.
const outputGrace = 2 * time.Second

var errOutputHangs = errors.New("the output takes nothing more; run the same command again, with an output that does")

// awaitOutput waits for the writing to end; ok is false where that takes too long after a stop.
func awaitOutput(ctx context.Context, written <-chan error) (err error, ok bool) {
	select {
	case err := <-written:
		return err, true
	case <-ctx.Done():
	}
	select {
	case err := <-written:
		return err, true
	case <-time.After(outputGrace):
		return nil, false
	}
}

// feed reads, and publishes. Only the file's end ends the window: after a stop, rows that nobody read are missing.
func (r *Run) feed(ctx context.Context) error {
	for ctx.Err() == nil {
		row, err := r.opts.Input.Read()
		if err != nil {
			r.window.end()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the file can't be read further: %w", err)
		}
		row.offset = r.opts.Input.Offset()
		e, publish, ok := r.window.admit(row, r.opts.Unacked)
		if !ok {
			return nil
		}
		if publish {
			r.publish(ctx, e)
		}
	}
	return nil
}

// publish sends a row's request. Its ack comes to acked or lost.
func (r *Run) publish(ctx context.Context, e *entry) {
	if r.opts.Pace != nil && r.opts.Pace(ctx) != nil {
		return // stopped
	}
	attempt, ok := r.window.sending(e)
	if !ok {
		return
	}
	msg := &nats.Msg{Subject: jobs.RequestsPrefix + e.Source, Data: e.Body, Header: nats.Header{
		nats.MsgIdHdr: {r.name + "." + strconv.FormatInt(e.number, 10) + "." + strconv.Itoa(attempt)}}}
	if _, err := r.js.PublishMsgAsync(msg); err != nil {
		r.window.lost(e.number, err)
	}
}

func (r *Run) acked(_ jetstream.JetStream, msg *nats.Msg, ack *jetstream.PubAck) {
	r.window.acked(r.number(msg), ack.Sequence)
}

func (r *Run) lost(_ jetstream.JetStream, msg *nats.Msg, err error) {
	r.window.lost(r.number(msg), err)
}

// number is the row's, out of the message's id.
func (r *Run) number(msg *nats.Msg) int64 {
	number, _, _ := strings.Cut(msg.Header[nats.MsgIdHdr][0][len(r.name)+1:], ".")
	n, _ := strconv.ParseInt(number, 10, 64)
	return n
}

// retry publishes again what was not stored, and what had to wait behind another row. It waits longer each time, until
// publishing works again.
func (r *Run) retry(ctx context.Context) {
	pause, tried := r.opts.Retry, time.Now()
	for {
		rows, failed, lastAck := r.window.todo()
		if len(rows) == 0 {
			return
		}
		if lastAck.After(tried) {
			pause = r.opts.Retry
		}
		if failed {
			if !sleep(ctx, pause) {
				return
			}
			pause = min(2*pause, maxRetry)
		}
		tried = time.Now()
		for _, e := range rows {
			r.publish(ctx, e)
		}
	}
}

// chase publishes again, as new messages, requests whose answers don't come although a worker has taken them: their
// events may be gone. A request that is still in the queue waits for a worker; so does all behind it.
func (r *Run) chase(ctx context.Context) {
	var queue jetstream.Stream
	for sleep(ctx, r.opts.Patience/10) {
		rows, sequences := r.window.overdue(time.Now(), r.opts.Patience)
		if len(rows) > 0 && queue == nil {
			queue, _ = r.js.Stream(ctx, jobs.RequestsStream) // else at the next look
		}
		for i, e := range rows {
			if queue == nil || !taken(ctx, queue, sequences[i]) {
				break
			}
			r.window.renew(e)
			r.publish(ctx, e)
		}
	}
}

// taken tells whether a request is known to have left the work queue.
func taken(ctx context.Context, queue jetstream.Stream, sequence uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := queue.GetMsg(ctx, sequence)
	return errors.Is(err, jetstream.ErrMsgNotFound)
}

// write hands rows to the output, in order, until all are out or the run is stopped.
func (r *Run) write() error {
	out := newWriter(r.opts)
	err := out.header()
	batch := make([]*entry, 0, outAtOnce)
	for err == nil {
		batch = r.window.take(batch[:0])
		if len(batch) == 0 {
			break
		}
		err = r.rows(out, batch)
	}
	r.window.stop()
	rest := r.window.rest()
	if err == nil {
		err = r.rows(out, rest)
	}
	return err
}

func (r *Run) rows(out *writer, batch []*entry) error {
	for _, e := range batch {
		if e.done {
			explain(e.Row, &e.result)
			r.report.add(e.Row, &e.result)
		}
		if err := out.row(e); err != nil {
			return err
		}
	}
	return out.flush()
}

// writer spells rows into the output.
type writer struct {
	to    *bufio.Writer
	input Input
	line  []byte
}

func newWriter(opts Options) *writer {
	if opts.Out == nil {
		return nil
	}
	return &writer{to: bufio.NewWriterSize(opts.Out, 64<<10), input: opts.Input}
}

func (w *writer) header() error {
	if w == nil {
		return nil
	}
	_, err := w.to.Write(w.input.Header())
	return outputError(err)
}

func (w *writer) row(e *entry) error {
	if w == nil {
		return nil
	}
	w.line = w.input.Append(w.line[:0], e.Row, &e.result)
	_, err := w.to.Write(w.line)
	return outputError(err)
}

func (w *writer) flush() error {
	if w == nil {
		return nil
	}
	return outputError(w.to.Flush())
}

func outputError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the output can't be written: %w", err)
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
