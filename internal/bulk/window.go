package bulk

import (
	"bytes"
	"context"
	"sync"
	"time"
)

// entry is a row in the window.
type entry struct {
	*Row
	result Result
	number int64 // of the row, from 0

	done     bool      // it has its result
	stored   bool      // JetStream has its request
	begun    time.Time // when it was first sent; zero while it waits behind another row of its id
	sentAt   time.Time // when it was last
	attempt  int       // goes into the message's id: a new one is a new message
	sequence []uint64  // in PORTAL_REQUESTS
	behind   *entry    // the next row of the same id
	last     *entry    // of the row under way: the last one behind it
}

// window is what is between input and output. All of it is guarded by one lock; nothing that waits or calls
// NATS is done under it, because NATS calls us under locks of its own.
type window struct {
	maxRows, maxBytes int

	mu      sync.Mutex
	changed sync.Cond
	closed  bool // the run was stopped: rows that come are not taken
	ended   bool // no row follows
	rows    []*entry
	first   int64 // number of rows[0]
	bytes   int

	byID       map[string]*entry // the row of an id that is under way
	bySequence map[uint64]*entry
	early      rejections // of sequences that are nobody's yet: the ack may be on its way
	unacked    int
	failed     []*entry // not stored: to be published again
	retrying   int      // those that retry has in hand
	held       []*entry // were behind another, and are to be published now
	counts     Progress
}

// Progress is how far a run has come.
type Progress struct {
	Rows       int   // read
	Sent       int   // requests that JetStream has stored
	Issued     int   // rows that have their link
	Rejected   int   // rows that the worker refused
	Bad        int   // rows that could not be sent
	Unfinished int   // rows that were read and have no answer, once the run has ended
	Bytes      int64 // of the file, up to the last row in the output

	Unstored   int       // published, or to be published again, and without an ack
	Unanswered int       // stored and without an answer
	AckSince   time.Time // the last ack, or the run's beginning
	AnswerDue  time.Time // the last answer, or when the oldest row was sent, whichever came later
	Trouble    string    // why the last publish failed; empty once one has succeeded since
	Away       bool      // there is no connection to NATS
}

func newWindow(maxRows, maxBytes int) *window {
	now := time.Now()
	w := &window{maxRows: maxRows, maxBytes: maxBytes, byID: map[string]*entry{}, bySequence: map[uint64]*entry{}, early: newRejections(),
		counts: Progress{AckSince: now, AnswerDue: now}}
	w.changed.L = &w.mu
	return w
}

// wait waits for a condition, under the lock, and returns false where the run was stopped before.
func (w *window) wait(ok func() bool) bool {
	for !w.closed && !ok() {
		w.changed.Wait()
	}
	return !w.closed
}

// admit takes a row once there is room, and tells whether it is to be published now. ok is false where the run was
// stopped.
func (w *window) admit(row *Row, maxUnacked int) (e *entry, publish, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	size := weight(row)
	room := func() bool {
		return len(w.rows) < w.maxRows && (len(w.rows) == 0 || w.bytes+size <= w.maxBytes) && w.unacked < maxUnacked
	}
	if !w.wait(room) {
		return nil, false, false
	}
	e = &entry{Row: row, number: w.first + int64(len(w.rows))}
	w.rows = append(w.rows, e)
	w.bytes += size
	w.counts.Rows++
	if row.Err != nil {
		w.counts.Bad++
		w.finish(e, Result{Err: row.Err.Error()})
		return e, false, true
	}
	before := w.byID[row.ID]
	if before == nil {
		w.byID[row.ID] = e
		return e, true, true
	}
	last := before
	if before.last != nil {
		last = before.last
	}
	last.behind, before.last = e, e
	return e, false, true
}

// weight is what a row takes in memory, roughly.
func weight(row *Row) int { return len(row.Raw) + len(row.Body) + 512 }

func (w *window) finish(e *entry, r Result) {
	e.result, e.done = r, true
	w.changed.Broadcast()
}

// answer gives a row its result, and with it those behind it that ask for the same. The next of its id is to be
// published then: elsewhere, since a publish may wait, and this is called by who brings the answers.
func (w *window) answer(e *entry, r Result) {
	w.counts.AnswerDue = time.Now()
	if !e.stored { // the answer was faster than the ack
		e.stored = true
		w.counts.Sent++
	}
	for {
		if r.Err == "" {
			w.counts.Issued++
		} else {
			w.counts.Rejected++
		}
		w.finish(e, r)
		for _, s := range e.sequence {
			delete(w.bySequence, s)
		}
		next := e.behind
		if next == nil {
			delete(w.byID, e.ID)
			return
		}
		next.last = e.last
		if !bytes.Equal(next.Body, e.Body) {
			w.byID[e.ID] = next
			w.held = append(w.held, next)
			return
		}
		e = next
	}
}

// link takes a link to the row of its request.
func (w *window) link(requestID string, r Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.byID[requestID]; e != nil && !e.begun.IsZero() {
		w.answer(e, r)
	}
}

// asked returns the request of this id that is under way, or nil.
func (w *window) asked(requestID []byte) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.byID[string(requestID)]; e != nil {
		return e.Body
	}
	return nil
}

// reject takes a rejection to the row of its place in the stream, or keeps it for the ack that may follow.
func (w *window) reject(sequence uint64, r Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.bySequence[sequence]; e != nil {
		w.answer(e, r)
	} else if w.unstored() > 0 {
		w.early.keep(sequence, r)
	}
}

// sending notes that a row is on its way; attempt tells its messages apart. ok is false where there is no need any more.
func (w *window) sending(e *entry) (attempt int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.done || w.closed {
		return 0, false
	}
	w.unacked++
	e.sentAt = time.Now()
	if e.begun.IsZero() {
		e.begun = e.sentAt
	}
	return e.attempt, true
}

// acked notes where a row's request is stored.
func (w *window) acked(number int64, sequence uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unacked--
	w.counts.AckSince, w.counts.Trouble = time.Now(), ""
	w.changed.Broadcast()
	r, rejected := w.early.take(sequence)
	e := w.at(number)
	if e == nil || e.done {
		return
	}
	if !e.stored {
		e.stored = true
		w.counts.Sent++
	}
	e.sequence = append(e.sequence, sequence)
	w.bySequence[sequence] = e
	if rejected {
		w.answer(e, r)
	}
}

// lost notes that a publish failed, or that nobody knows.
func (w *window) lost(number int64, cause error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unacked--
	w.counts.Trouble = cause.Error()
	if e := w.at(number); e != nil && !e.done {
		w.failed = append(w.failed, e)
	}
	w.changed.Broadcast()
}

// at is the row of a number, or nil where it has left the window.
func (w *window) at(number int64) *entry {
	if i := number - w.first; i >= 0 && i < int64(len(w.rows)) {
		return w.rows[i]
	}
	return nil
}

// todo waits for rows that are to be published and were not just read: tries that failed, and rows that were behind
// another. lastAck tells whether publishing has worked since.
func (w *window) todo() (rows []*entry, failed bool, lastAck time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.retrying = 0
	if !w.wait(func() bool { return len(w.failed)+len(w.held) > 0 }) {
		return nil, false, time.Time{}
	}
	rows, failed = append(w.held, w.failed...), len(w.failed) > 0
	w.held, w.failed, w.retrying = nil, nil, len(w.failed)
	return rows, failed, w.counts.AckSince
}

// unstored is how many messages are without an ack, or about to be sent again; some may count twice.
func (w *window) unstored() int { return w.unacked + len(w.failed) + w.retrying }

// overdue are the stored rows that have waited for their answer for longer than patience, which doubles with each try, up
// to 16 times: each costs the worker a row in its audit. Oldest first, each with its last place in the stream.
func (w *window) overdue(now time.Time, patience time.Duration) (rows []*entry, sequences []uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.rows {
		if !e.done && len(e.sequence) > 0 && now.Sub(e.sentAt) > patience<<min(e.attempt, 4) {
			rows, sequences = append(rows, e), append(sequences, e.sequence[len(e.sequence)-1])
		}
	}
	return rows, sequences
}

// renew makes the next publish of a row a message of its own.
func (w *window) renew(e *entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e.attempt++
}

// end says that no row follows.
func (w *window) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.changed.Broadcast()
}

// complete tells whether the file has been read to its end, or as far as it can be.
func (w *window) complete() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

// stop ends all waiting.
func (w *window) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.changed.Broadcast()
}

// outAtOnce is how many rows are written between two looks at the window.
const outAtOnce = 512

// take removes the rows that are done from the window's beginning. It waits for the first, and returns none once all
// are out, or the run was stopped.
func (w *window) take(out []*entry) []*entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	ready := func() bool { return len(w.rows) > 0 && w.rows[0].done }
	w.wait(func() bool { return ready() || w.ended && len(w.rows) == 0 })
	for ready() && len(out) < outAtOnce {
		out = append(out, w.pop())
	}
	return out
}

// rest removes all rows, once the run has been stopped.
func (w *window) rest() (out []*entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.rows) > 0 {
		e := w.pop()
		if !e.done {
			w.counts.Unfinished++
			e.result.Err = "not sent; run the same command again"
			if !e.begun.IsZero() { // an ack on its way, or one that got lost, makes no difference: it may be served
				e.result.Err = "sent, and not answered yet; run the same command again"
			}
		}
		out = append(out, e)
	}
	return out
}

func (w *window) pop() *entry {
	e := w.rows[0]
	w.rows[0] = nil
	w.rows = w.rows[1:]
	w.first++
	w.bytes -= weight(e.Row)
	w.counts.Bytes = e.offset
	w.changed.Broadcast()
	return e
}

func (w *window) progress() Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.counts
	p.Unstored, p.Unanswered = w.unstored(), len(w.bySequence)
	if len(w.rows) > 0 && w.rows[0].begun.After(p.AnswerDue) {
		p.AnswerDue = w.rows[0].begun
	}
	return p
}

// stopWith stops the window when ctx ends; the returned function undoes that.
func (w *window) stopWith(ctx context.Context) func() bool { return context.AfterFunc(ctx, w.stop) }

// rejections keeps the last few that were nobody's.
type rejections struct {
	bySequence map[uint64]Result
	order      []uint64
}

const maxEarly = 16384

func newRejections() rejections { return rejections{bySequence: map[uint64]Result{}} }

func (r *rejections) keep(sequence uint64, result Result) {
	if len(r.order) >= maxEarly {
		half := len(r.order) / 2
		for _, s := range r.order[:half] {
			delete(r.bySequence, s)
		}
		r.order = append(r.order[:0], r.order[half:]...)
	}
	r.bySequence[sequence] = result
	r.order = append(r.order, sequence)
}

func (r *rejections) take(sequence uint64) (Result, bool) {
	result, ok := r.bySequence[sequence]
	delete(r.bySequence, sequence)
	return result, ok
}
