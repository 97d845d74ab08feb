package jobs

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
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
	handed := map[portal.IDRange][]portal.EventRow{}
	publish := func(ctx context.Context, tx *portal.Tx, ids ...portal.IDRange) error {
		tx.AfterCommit(func() {
			if rows, known := tx.HandedOver(ids...); known {
				handed[ids[0]] = rows
			}
		})
		return w.river.Publish(ctx, tx, ids...)
	}
	w.issuer.Publish, w.store.Publish = publish, publish
	link := w.issue([]byte(contractRequest))
	must(t, w.open(link, nil))
	for _, cause := range []*portal.SessionError{nil, {Code: "resource_missing", RequestID: "req_<2> \u2028"}} {
		click := uuid.New()
		w.startClick(w.store, link, click, nil)
		must(t, w.store.EndClick(w.ctx, link, click, portal.Session{ID: "bps_1", RequestID: "req_1"}, cause))
	}
	if len(handed) != 4 {
		t.Fatalf("%d of 4 commits hand their rows over", len(handed))
	}
	p := w.publisher(nil)
	for ids, rows := range handed {
		read, err := p.rows(w.ctx, []portal.IDRange{ids})
		must(t, err)
		fromMemory, fromDatabase := onlyEvent(t, p, rows), onlyEvent(t, p, read)
		var saysHanded, saysRead any
		must(t, json.Unmarshal(fromMemory.Data, &saysHanded))
		must(t, json.Unmarshal(fromDatabase.Data, &saysRead))
		fromMemory.Data, fromDatabase.Data = nil, nil
		if !reflect.DeepEqual(fromMemory, fromDatabase) || !reflect.DeepEqual(saysHanded, saysRead) {
			t.Errorf("handed: %+v %v\nread:   %+v %v", fromMemory, saysHanded, fromDatabase, saysRead)
		}
	}
}

func onlyEvent(t *testing.T, p *publisher, rows []portal.EventRow) notify.Event {
	t.Helper()
	events, _, cause := p.events(rows)
	must(t, cause)
	if len(events) != 1 {
		t.Fatalf("%d events", len(events))
	}
	return events[0]
}

// Where jobs are worked, every kind of commit is published without one of them, and leaves none behind.
func TestInvariant7ExpressPublishesWithoutAJob(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.river.express.start(w.ctx) // and no job is worked
	w.everythingHappens()
	rows := w.eventRows()
	for id := range w.events(len(rows)) {
		if _, ok := rows[id]; !ok {
			t.Errorf("event %s has no row", id)
		}
	}
	w.eventually("no job", func() bool { return w.count(`SELECT count(*) FROM river_job`) == 0 })
	w.river.express.stop()
}

// The process dies between a commit and its publishing, or has more at hand than it may hold: the job does it.
func TestInvariant7WhatExpressDoesNotDoIsItsJobs(t *testing.T) {
	t.Parallel()
	w := setup(t)
	e := w.river.express
	e.mu.Lock()
	e.open, e.size = true, expressBytes // as full as it gets, and nobody works
	e.mu.Unlock()
	w.issue(request("r1"))
	if n := w.count(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state = 'scheduled' AND scheduled_at BETWEEN now() + '1s' AND now() + '11s'`); n != 1 {
		t.Fatalf("%d jobs are due in 10 s, want 1", n)
	}
	if len(e.waiting) != 0 {
		t.Errorf("%d commits are kept", len(e.waiting))
	}
	e.mu.Lock()
	e.open, e.size = false, 0
	e.mu.Unlock()
	w.startRiver()
	w.jobsAreDue()
	w.events(1)
}

// A row whose event can't be made keeps back its own commit, and no other; and a job that is as good as due
// is not run ahead of.
func TestExpressLeavesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for _, id := range []string{"gone", "here", "late"} {
		w.issue(request(id))
	}
	w.exec(`DELETE FROM links WHERE request_id = 'gone'`)
	ranges := map[string]portal.IDRange{}
	for id, row := range w.eventRows() {
		ranges[row.RequestID] = portal.OneID(uuid.MustParse(id))
	}
	later, soon := time.Now().Add(time.Hour), time.Now().Add(expressLeast/2)
	e := newExpress(w.publisher(w.js), nil, w.log)
	done := e.serve(w.ctx, []commit{
		{job: 1, due: later, ranges: []portal.IDRange{ranges["gone"]}},
		{job: 2, due: later, ranges: []portal.IDRange{ranges["here"]}},
		{job: 3, due: soon, ranges: []portal.IDRange{ranges["late"]}},
		{job: 4, due: later, known: true}, // a batch of redeliveries
	})
	if !reflect.DeepEqual(done, []int64{2, 4}) {
		t.Errorf("done with the jobs %v, want 2 and 4", done)
	}
	if n := w.stored(notify.EventsStream); n != 1 {
		t.Errorf("%d events", n)
	}
}

// A stop publishes what waits, and from then on commits have jobs that are due at once.
func TestExpressStops(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.river.express.start(w.ctx)
	for _, id := range []string{"r1", "r2", "r3"} {
		w.issue(request(id))
	}
	w.river.express.stop()
	if events, jobs := w.stored(notify.EventsStream), w.count(`SELECT count(*) FROM river_job`); events != 3 || jobs != 0 {
		t.Errorf("%d events and %d jobs after the stop", events, jobs)
	}
	w.issue(request("r4"))
	if n := w.count(`SELECT count(*) FROM river_job WHERE state = 'available'`); n != 1 {
		t.Errorf("%d jobs wait, want 1", n)
	}
	w.river.express.stop() // again
}

// What is to be read counts as what it will be: a campaign that is sent again, or revoked, is published in
// batches like any other.
func TestExpressCountsWhatIsToBeRead(t *testing.T) {
	t.Parallel()
	ids, err := portal.NewIDs(500)
	must(t, err)
	e := newExpress(nil, nil, nil)
	e.open = true
	for i := range int64(10) {
		e.put(commit{job: i, ranges: []portal.IDRange{ids}})
	}
	if e.size < 10*500<<10 {
		t.Errorf("5,000 events count %d bytes", e.size)
	}
	if commits, more := e.take(false); len(commits) != expressEvents/500 || !more {
		t.Errorf("%d commits at once, more: %t", len(commits), more)
	}
}

// A panic is its commit's, and ends nothing.
func TestExpressSurvivesAPanic(t *testing.T) {
	t.Parallel()
	w := database(t)
	e := newExpress(&publisher{maker: eventMaker{baseURL: testBaseURL}}, nil, w.log) // without keys
	rows := []portal.EventRow{{Kind: portal.LinkIssued, Link: &portal.Link{RequestID: "zebra"}}}
	if done := e.serve(w.ctx, []commit{{job: 1, due: time.Now().Add(time.Hour), rows: rows, known: true}}); done != nil {
		t.Errorf("done with %v", done)
	}
	if log := w.logs.String(); !strings.Contains(log, "publishing panicked") || strings.Contains(log, "zebra") {
		t.Errorf("the log: %s", log)
	}
}
