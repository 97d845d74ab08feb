package jobs

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// An event says the same whether its row was handed over or read: readers may get both.
func TestHandedRowsSayWhatStandsInTheDatabase(t *testing.T) {
	t.Parallel()
	w := setup(t)
	worker := &publishWorker{pool: w.pool, maker: eventMaker{w.keys, testBaseURL}, handed: newHandover(), metrics: newMetrics(nil)}
	var written []portal.IDRange
	w.store.HandOver = func(ids portal.IDRange, rows []portal.EventRow) {
		worker.handed.put(ids, rows)
		written = append(written, ids)
	}
	w.issuer.HandOver = w.store.HandOver
	link := w.issue([]byte(contractRequest))
	must(t, w.open(link, nil))
	for _, cause := range []*portal.SessionError{nil, {Code: "resource_missing", RequestID: "req_<2> \u2028"}} {
		click := uuid.New()
		w.startClick(w.store, link, click, nil)
		must(t, w.store.EndClick(w.ctx, link, click, portal.Session{ID: "bps_1", RequestID: "req_1"}, cause))
	}
	if len(written) != 4 {
		t.Fatalf("%d of 4 commits hand their rows over", len(written))
	}
	for _, ids := range written {
		handed, read := w.onlyEvent(worker, ids), w.onlyEvent(worker, ids)
		if len(worker.handed.rows) > len(written)-1 {
			t.Error("what is taken stays")
		}
		var saysHanded, saysRead any
		must(t, json.Unmarshal(handed.Data, &saysHanded))
		must(t, json.Unmarshal(read.Data, &saysRead))
		handed.Data, read.Data = nil, nil
		if !reflect.DeepEqual(handed, read) || !reflect.DeepEqual(saysHanded, saysRead) {
			t.Errorf("handed: %+v %v\nread:   %+v %v", handed, saysHanded, read, saysRead)
		}
	}
}

func (w *world) onlyEvent(worker *publishWorker, ids portal.IDRange) notify.Event {
	w.t.Helper()
	events, _, cause, err := worker.events(w.ctx, []portal.IDRange{ids})
	must(w.t, err)
	must(w.t, cause)
	if len(events) != 1 {
		w.t.Fatalf("%d events", len(events))
	}
	return events[0]
}

// A process whose jobs others take holds on to a few commits, not to all.
func TestHandoverIsBounded(t *testing.T) {
	t.Parallel()
	h := newHandover()
	row := portal.EventRow{At: time.Now(), Link: &portal.Link{}}
	var ranges []portal.IDRange
	for range handoverMost + 2 {
		ids, err := portal.NewIDs(1)
		must(t, err)
		h.put(ids, []portal.EventRow{row})
		ranges = append(ranges, ids)
	}
	if len(h.rows) != handoverMost || h.take(ranges[1]) != nil || h.take(ranges[2]) == nil {
		t.Errorf("%d kept", len(h.rows))
	}
	for _, size := range []int{handoverBytes, handoverBytes / 3, handoverBytes / 3, handoverBytes / 3} {
		ids, err := portal.NewIDs(1)
		must(t, err)
		h.put(ids, []portal.EventRow{{Link: &portal.Link{Metadata: make([]byte, size)}}})
		ranges = append(ranges, ids)
	}
	large := ranges[len(ranges)-4:]
	if h.size > handoverBytes || h.take(large[0]) != nil || h.take(large[1]) != nil || h.take(large[2]) == nil || h.take(large[3]) == nil {
		t.Errorf("%d bytes kept", h.size)
	}
	if len(h.rows) != 0 || h.size != 0 {
		t.Errorf("%d left, %d bytes", len(h.rows), h.size)
	}
}

// Only a process that works jobs holds on to rows.
func TestHandOverOfAProcess(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.store.HandOver = w.river.HandOver
	link := w.issue([]byte(contractRequest))
	must(t, w.open(link, nil))
	if n := len(w.river.handed.rows); n != 0 {
		t.Errorf("%d commits are kept for nobody", n)
	}
	w.river.works.Store(true) // nobody takes it
	must(t, w.open(link, nil))
	if n := len(w.river.handed.rows); n != 1 {
		t.Errorf("%d commits are kept, want 1", n)
	}
}
