package jobs

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/riverqueue/river"

	"latchkey/internal/notify"
	"latchkey/internal/stack"
	"latchkey/internal/testkit"
)

// The crash table of docs/design.md: each write failed; failed, but took effect; and the process
// was killed right after it. Then the fault is lifted and everything adds up.

// givenBack waits until intake has failed to commit.
func (w *world) givenBack() {
	w.t.Helper()
	w.eventually("a failed commit", func() bool { return strings.Contains(w.logs.String(), "could not be committed") })
}

// redeliver makes JetStream deliver again what was not acknowledged, without the ack wait.
func (w *world) redeliver() {
	w.t.Helper()
	must(w.t, w.js.DeleteConsumer(w.ctx, RequestsStream, IntakeConsumer))
	w.startIntake(w.intake)
}

// wantOneEvent starts the jobs and looks for one link.issued, however often it was published.
func (w *world) wantOneEvent() {
	w.t.Helper()
	w.startRiver()
	w.events(1)
	w.eventually("jobs done", func() bool {
		return w.count(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state <> 'completed'`) == 0
	})
	if n := w.stored(notify.EventsStream); n != 1 {
		w.t.Errorf("%d events, want 1", n)
	}
}

func TestInvariant1CommitFails(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*testkit.Commits){
		"before it took effect": func(f *testkit.Commits) { f.Script(testkit.Failed) },
		"after it took effect":  func(f *testkit.Commits) { f.Script(testkit.FailedButTook) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t)
			faults := &testkit.Commits{}
			in := NewIntake(w.js, w.newIssuer(w.workerPool(faults)), w.log, nil)
			fault(faults)
			w.publish("dunning", request("r1"))
			w.startIntake(in)
			w.givenBack()
			w.drained()
			w.wantTotal(total{links: 1, issued: 1})
			w.wantOneEvent()
		})
	}
}

// The worker's rights are taken away, and given back: what could not be committed stayed in the
// work queue.
func TestInvariant1NothingIsAcknowledgedWithoutACommit(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.exec(`REVOKE INSERT ON links FROM latchkey_app`)
	for _, id := range numbered("r%d", 3) {
		w.publish("dunning", request(id))
	}
	w.startIntake(w.intake)
	w.givenBack()
	if n := w.queued(); n != 3 {
		t.Errorf("%d requests left in the queue, want all 3", n)
	}
	w.wantTotal(total{})
	w.exec(`GRANT INSERT ON links TO latchkey_app`)
	w.drained()
	w.wantTotal(total{links: 3, issued: 3})
}

// The database's sessions are ended in the middle of the transaction.
func TestInvariant1BackendsTerminated(t *testing.T) {
	t.Parallel()
	w := setup(t)
	lock, err := w.owner.Begin(w.ctx)
	must(t, err)
	defer func() { _ = lock.Rollback(context.Background()) }()
	_, err = lock.Exec(w.ctx, `LOCK TABLE links IN EXCLUSIVE MODE`)
	must(t, err)
	w.publish("dunning", request("r1"))
	w.startIntake(w.intake)
	w.eventually("a session that was ended", func() bool {
		return w.count(`SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	must(t, lock.Rollback(w.ctx))
	w.givenBack()
	w.drained()
	w.wantTotal(total{links: 1, issued: 1})
}

// Killed between the commit and the ack: the same message is served twice, and adds nothing.
func TestInvariant1RedeliveryAddsNothing(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish("dunning", request("r1"))
	w.publish("dunning", request("r1")) // a repeat by the producer, redelivered as well
	w.publish("dunning", []byte("no JSON"))
	var items []*Item
	for _, msg := range w.fetch(3) {
		meta, err := msg.Metadata()
		must(t, err)
		items = append(items, newItem(msg.Data(), msg.Subject(), meta.Stream, meta.Sequence.Stream, meta.Timestamp))
	}
	must(t, w.issuer.Issue(w.ctx, items))
	want := total{links: 1, issued: 1, duplicates: 1, rejected: 1}
	w.wantTotal(want)
	if n := w.queued(); n != 3 {
		t.Fatalf("%d requests in the queue, want 3", n)
	}
	w.redeliver()
	w.drained()
	w.wantTotal(want)
	if !strings.Contains(w.logs.String(), `"result":"redelivered"`) {
		t.Error("the redelivery was not told from a repeat")
	}
}

func TestAckFails(t *testing.T) {
	t.Parallel()
	for name, delivered := range map[string]bool{"before it took effect": false, "after it took effect": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t)
			w.publish("dunning", request("r1"))
			w.publish("dunning", []byte("no JSON"))
			for _, msg := range w.fetch(2) {
				w.serve(lossyMsg{msg, delivered})
			}
			if n := w.queued(); !delivered && n != 2 {
				t.Errorf("%d requests in the queue, want 2", n)
			}
			w.redeliver()
			w.drained()
			w.wantTotal(total{links: 1, issued: 1, rejected: 1})
			if n := w.stored(DeadStream); n != 1 {
				t.Errorf("%d dead letters, want 1", n)
			}
			w.wantOneEvent()
		})
	}
}

// The dead letter can't be stored: the request stays in the queue until it can.
func TestDeadLetterFails(t *testing.T) {
	t.Parallel()
	w := setup(t)
	must(t, w.js.DeleteStream(w.ctx, DeadStream))
	w.publish("dunning", []byte("no JSON"))
	w.publish("dunning", request("r1"))
	w.publish("dunning", []byte("no JSON either"))
	w.serve(w.fetch(3)...)
	w.eventually("the rejected ones alone in the queue", func() bool { return w.queued() == 2 })
	must(t, EnsureStreams(w.ctx, w.js, true))
	w.redeliver()
	w.drained()
	w.wantTotal(total{links: 1, issued: 1, rejected: 2})
	if n := w.stored(DeadStream); n != 2 {
		t.Errorf("%d dead letters, want 2", n)
	}
}

func wantSnooze(t *testing.T, err error) {
	t.Helper()
	var snooze *river.JobSnoozeError
	if !errors.As(err, &snooze) {
		t.Errorf("Work = %v, want a snooze", err)
	}
}

func TestInvariant7PublishFails(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.issue(request("r1"))
	must(t, w.js.DeleteStream(w.ctx, notify.EventsStream))
	wantSnooze(t, w.work(w.js, w.rowRanges()...))
	must(t, EnsureStreams(w.ctx, w.js, true))
	w.wantOneEvent()
}

func TestInvariant7PublishAckLost(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.issue(request("r1"))
	lossy := &lossyJetStream{JetStream: w.js}
	lossy.lose.Store(1)
	wantSnooze(t, w.work(lossy, w.rowRanges()...))
	first := w.events(1)
	// A stream made anew does not know the ids that it would drop repeats by: now a reader has to.
	must(t, w.js.DeleteStream(w.ctx, notify.EventsStream))
	must(t, EnsureStreams(w.ctx, w.js, true))
	must(t, w.work(lossy, w.rowRanges()...))
	second := w.events(1)
	for id := range first {
		if _, ok := second[id]; !ok {
			t.Errorf("published again under another id: %v, then %v", sortedKeys(first), sortedKeys(second))
		}
	}
}

// Killed after the publish and before the job was completed: River works the job once more.
func TestInvariant7KilledAfterPublish(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.issue(request("r1"))
	must(t, w.work(w.js, w.rowRanges()...))
	w.events(1)
	w.wantOneEvent()
}

// restartable is a NATS server that keeps its port and its streams over a restart.
type restartable struct {
	t   *testing.T
	cfg stack.NATSConfig
	ns  *stack.NATS
}

func newRestartable(t *testing.T) *restartable {
	t.Helper()
	r := &restartable{t: t, cfg: stack.NATSConfig{Dir: t.TempDir()}}
	r.start()
	t.Cleanup(func() { _ = r.ns.Stop() })
	u, err := url.Parse(r.ns.URL())
	must(t, err)
	_, port, err := net.SplitHostPort(u.Host)
	must(t, err)
	r.cfg.Port, err = strconv.Atoi(port)
	must(t, err)
	return r
}

func (r *restartable) start() {
	r.t.Helper()
	ns, err := stack.StartNATS(context.Background(), r.cfg)
	must(r.t, err)
	r.ns = ns
}

func (r *restartable) stop() { r.t.Helper(); must(r.t, r.ns.Stop()) }

func TestInvariant7PublishWhileNATSIsDown(t *testing.T) {
	t.Parallel()
	server := newRestartable(t)
	w := setupOn(t, server.ns.URL())
	w.startRiver()
	server.stop()
	w.eventually("disconnected", func() bool { return !w.nc.IsConnected() })
	w.issue(request("r1"))
	w.jobsAreDue()
	w.eventually("a snoozed job", func() bool {
		return w.count(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state <> 'completed' AND (metadata->>'snoozes')::int >= 1`) == 1
	})
	server.start()
	w.eventually("connected", w.nc.IsConnected)
	rows := w.eventRows()
	for id := range w.events(1) {
		if _, ok := rows[id]; !ok {
			t.Errorf("event %s has no row", id)
		}
	}
	w.eventually("done by the first attempt that counts", func() bool {
		return w.count(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state = 'completed' AND attempt = 1`) == 1
	})
}

// jobsAreDue puts forward the publish jobs that express has left to themselves.
func (w *world) jobsAreDue() {
	w.t.Helper()
	w.exec(`UPDATE river_job SET state = 'available', scheduled_at = now() WHERE kind = 'publish' AND state = 'scheduled'`)
}

// Intake lives on over a restart of the server, with what was in the queue before and after.
func TestIntakeSurvivesANATSRestart(t *testing.T) {
	t.Parallel()
	server := newRestartable(t)
	w := setupOn(t, server.ns.URL())
	w.startIntake(w.intake)
	w.publish("dunning", request("before"))
	w.drained()
	server.stop()
	w.eventually("disconnected", func() bool { return !w.nc.IsConnected() })
	server.start()
	w.eventually("published", func() bool {
		_, err := w.js.Publish(w.ctx, RequestsPrefix+"dunning", request("after"), jetstream.WithMsgID("after"))
		return err == nil
	})
	w.drained()
	w.wantTotal(total{links: 2, issued: 2})
}
