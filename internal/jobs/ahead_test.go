package jobs

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/notify"
)

// Requests behind a campaign's get their links ahead of it, each once, and nothing is done twice when their
// turn comes.
func TestInvariant1AheadOfABacklog(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for i := range 20 {
		w.publish("campaign", campaignRequest(i))
	}
	w.publish("dunning", request("d1"))
	w.publish("support", []byte("no JSON"))
	a := &ahead{intake: w.intake}
	must(t, a.round(w.ctx))
	w.wantTotal(total{links: 1, issued: 1, rejected: 1})
	w.publish("dunning", request("d2"))
	must(t, a.round(w.ctx))
	w.wantTotal(total{links: 2, issued: 2, rejected: 1})
	if n := w.queued(); n != 23 {
		t.Errorf("%d requests are in the stream, want all 23", n)
	}
	w.startIntake(w.intake)
	w.drained()
	w.wantTotal(total{links: 22, issued: 22, rejected: 1})
	if n := w.stored(DeadStream); n != 1 {
		t.Errorf("%d dead letters", n)
	}
	must(t, a.round(w.ctx)) // of an empty stream
	if len(a.places) != 0 {
		t.Errorf("places are kept of subjects that are gone: %v", a.places)
	}
}

// A round that the database does not take is served again.
func TestAheadRepeatsARoundThatFailed(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish("campaign", request("c1"))
	w.publish("campaign", request("c2"))
	w.publish("dunning", request("d1"))
	a := &ahead{intake: w.intake}
	pool := w.workerPool(nil)
	pool.Close()
	working := w.issuer.Pool
	w.issuer.Pool = pool
	if err := a.round(w.ctx); err == nil {
		t.Error("a round without a database ends well")
	}
	w.issuer.Pool = working
	must(t, a.round(w.ctx))
	w.wantTotal(total{links: 1, issued: 1})
}

func TestWhoMayGoAhead(t *testing.T) {
	t.Parallel()
	p := RequestsPrefix
	caughtUp := map[string]place{p + "e": {next: 40, caughtUp: true}, p + "b": {next: 101}}
	for name, c := range map[string]struct {
		subjects map[string]uint64
		places   map[string]place
		want     []string
	}{
		"nobody":                {nil, nil, nil},
		"not the largest":       {map[string]uint64{p + "a": 5}, nil, nil},
		"few before more":       {map[string]uint64{p + "a": 5000, p + "b": 3, p + "c": 2, p + "d": aheadMost, p + "e": aheadMost + 1}, nil, []string{p + "c", p + "b", p + "d"}},
		"many, but all issued":  {map[string]uint64{p + "a": 5000, p + "e": aheadMost + 1}, caughtUp, []string{p + "e"}},
		"deeper subjects count": {map[string]uint64{p + "a.1": 1, p + "a.2": 1, p + "a.3": 1, p + "b": 2}, nil, []string{p + "b"}},
		"and are one pattern":   {map[string]uint64{p + "a": 9, p + "b.x": 1, p + "b.y": 1}, nil, []string{p + "b.>"}},
	} {
		a := &ahead{places: maps.Clone(c.places)}
		if got := a.admitted(jetstream.StreamState{LastSeq: 99, Subjects: c.subjects}); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if _, kept := a.places[p+"b"]; kept && name == "few before more" {
			t.Errorf("%s: a place behind the stream's end is kept", name)
		}
	}
}

// A source that goes on for long, and whose requests stay in the stream until their turn, goes on to be served.
func TestAheadOfALongTrickle(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for i := range aheadMost + 200 {
		_, err := w.js.PublishAsync(RequestsPrefix+"campaign", campaignRequest(i))
		must(t, err)
	}
	a := &ahead{intake: w.intake}
	const n = aheadMost + 100
	for i := range n {
		_, err := w.js.PublishAsync(RequestsPrefix+"dunning.eu", request(fmt.Sprintf("d%d", i)))
		must(t, err)
		if (i+1)%(aheadBatch-100) == 0 || i == n-1 {
			<-w.js.PublishAsyncComplete()
			must(t, a.round(w.ctx))
		}
	}
	w.wantTotal(total{links: n, issued: n})
}

// Intake itself notices the backlog.
func TestIntakeNoticesABacklog(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for i := range aheadBacklog + 2 {
		_, err := w.js.PublishAsync(RequestsPrefix+"campaign", request(fmt.Sprintf("c%d", i)))
		must(t, err)
	}
	<-w.js.PublishAsyncComplete()
	w.serve(w.fetch(1)...)
	if len(w.intake.backlog) != 1 {
		t.Error("a backlog is not noticed")
	}
}

// Intake fetches nothing while publish jobs pile up, and goes on when they are done.
func TestInvariant9IntakePausesWhileJobsPileUp(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.exec(`INSERT INTO river_job (args, kind, max_attempts, queue, state) SELECT '{"rows":[]}', 'publish', 25, 'events', 'available' FROM generate_series(1, $1::int)`, roomJobs)
	w.intake.Room = w.river.Room
	w.startIntake(w.intake)
	w.publish("dunning", request("r1"))
	w.eventually("a pause", func() bool { return strings.Contains(w.logs.String(), "intake pauses") })
	if n := w.queued(); n != 1 {
		t.Errorf("%d requests wait, want 1", n)
	}
	w.exec(`DELETE FROM river_job WHERE args = '{"rows":[]}'`)
	w.drained()
	if log := w.logs.String(); strings.Count(log, "intake pauses") != 1 || strings.Count(log, "intake goes on") != 1 {
		t.Errorf("not told once each:\n%s", w.logs.tail())
	}
}

// The same while this process has too many events at hand.
func TestInvariant9IntakeWaitsForExpress(t *testing.T) {
	t.Parallel()
	w := setup(t)
	e := w.river.express
	e.mu.Lock()
	e.open, e.size = true, roomBytes+1
	e.mu.Unlock()
	ctx, cancel := context.WithCancel(w.ctx)
	waited := make(chan bool)
	go func() { waited <- w.river.Room(ctx) }()
	select {
	case room := <-waited:
		t.Fatalf("room %t, though there is none", room)
	default:
	}
	cancel()
	if <-waited {
		t.Error("a stop makes room")
	}
	go func() { waited <- w.river.Room(w.ctx) }()
	e.put(commit{job: 1, due: time.Now().Add(time.Hour), known: true})
	e.mu.Lock()
	e.size = 0
	e.mu.Unlock()
	e.take(false)
	if !<-waited {
		t.Error("no room, though nothing waits")
	}
	e.mu.Lock()
	e.open = false
	e.mu.Unlock()
	if n := w.stored(notify.EventsStream); n != 0 {
		t.Errorf("%d events", n)
	}
}

func campaignRequest(i int) []byte {
	return fmt.Appendf(nil, `{"id":"c%d","source":"campaign","session":{"customer":"cus_%d"}}`, i, i)
}
