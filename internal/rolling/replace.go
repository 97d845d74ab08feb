package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// replace goes from two replicas of one release to two of the next, under load, and counts.
func (d *deployment) replace(ctx context.Context, before, after string) error {
	if err := d.migrate(ctx, before); err != nil {
		return err
	}
	var old []*replica
	for range 2 {
		r, err := d.start(ctx, before, true)
		if err != nil {
			return err
		}
		old = append(old, r)
	}
	l := d.begin(ctx)
	err := l.phases(ctx, old, after)
	l.stop()
	l.running.Wait()
	if err := errors.Join(append(l.failed, err)...); err != nil {
		for _, r := range d.replicas {
			err = fmt.Errorf("%w%s", err, r.lastLines())
		}
		return err
	}
	return l.count(ctx)
}

func (l *load) phases(ctx context.Context, old []*replica, after string) error {
	if err := l.phase(ctx, "two old replicas"); err != nil {
		return err
	}
	l.migrating.Store(true)
	err := l.d.migrate(ctx, after)
	l.migrating.Store(false)
	if err != nil {
		return err
	}
	if err := l.phase(ctx, "two old replicas on the new schema"); err != nil {
		return err
	}
	for i, what := range []string{"an old and a new replica", "two new replicas"} {
		if err := old[i].end(); err != nil {
			return err
		}
		if _, err := l.d.start(ctx, after, false); err != nil {
			return err
		}
		if err := l.phase(ctx, what); err != nil {
			return err
		}
	}
	return nil
}

// phase lets so much more come in, all of it served.
func (l *load) phase(ctx context.Context, what string) error {
	sent, created, clicked := l.sent.Load()+phaseRequests, l.created.Load()+phaseCreates, l.clicked.Load()+phaseClicks
	err := until(ctx, time.Minute, what+" to serve their part of the load", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.failed) > 0 || l.sent.Load() >= sent && l.created.Load() >= created && l.clicked.Load() >= clicked
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) > 0 {
		return fmt.Errorf("with %s", what)
	}
	return nil
}

// count waits until nothing is open, and compares.
func (l *load) count(ctx context.Context) error {
	want := int(l.sent.Load() + l.created.Load())
	for _, c := range []struct {
		what, sql string
		want      int
	}{
		{"links, one for each request", `SELECT count(*) FROM links`, want},
		{"requests with a link", `SELECT count(DISTINCT request_id) FROM links`, want},
		{"link.issued", `SELECT count(*) FROM audit_events WHERE kind = 'link.issued'`, want},
		{"clicks without an outcome", `SELECT count(*) FROM clicks WHERE outcome IS NULL`, 0},
		{"clicks that failed", `SELECT count(*) FROM audit_events WHERE kind = 'session.failed'`, 0},
		{"sessions counted", `SELECT sum(sessions_created) FROM links`, len(l.d.sim.Sessions())},
		{"jobs that gave up", `SELECT count(*) FROM river_job WHERE state = 'discarded' AND queue <> 'maintenance'`, 0},
	} {
		if err := l.d.untilCount(ctx, c.what, c.sql, c.want); err != nil {
			return err
		}
	}
	events, err := l.d.untilPublished(ctx)
	if err != nil {
		return err
	}
	if err := l.sameLinks(ctx); err != nil {
		return err
	}
	fmt.Printf("  %d requests and %d creates became a link each (%d creates were asked for again), %d clicks came to the portal (%d passed on by the load balancer, %d by the page that tries again), %d events were published: none was lost\n",
		l.sent.Load(), l.created.Load(), l.retried.Load(), l.clicked.Load(), l.passed.Load(), l.again.Load(), events)
	return nil
}

func (d *deployment) untilCount(ctx context.Context, what, sql string, want int) error {
	got, err := -1, error(nil)
	if waited := until(ctx, time.Minute, what, func() bool {
		err = d.pool.QueryRow(ctx, sql).Scan(&got)
		return err != nil || got == want
	}); waited != nil {
		return fmt.Errorf("%s: %d, want %d", what, got, want)
	}
	return err
}

// untilPublished returns the number of events once each audit row of an event kind is in PORTAL_EVENTS.
func (d *deployment) untilPublished(ctx context.Context) (n int, err error) {
	js, err := jetstream.New(d.nc)
	if err != nil {
		return 0, err
	}
	consumer, err := js.OrderedConsumer(ctx, "PORTAL_EVENTS", jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return 0, err
	}
	rows, err := d.pool.Query(ctx, `SELECT id::text FROM audit_events WHERE kind LIKE 'link.%' OR kind LIKE 'session.%'`)
	if err != nil {
		return 0, err
	}
	open := map[string]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return 0, err
		}
		open[id] = true
	}
	n = len(open)
	messages, err := consumer.Messages()
	if err != nil {
		return 0, err
	}
	defer messages.Stop()
	for len(open) > 0 {
		m, err := messages.Next(jetstream.NextMaxWait(time.Minute)) // the job of a killed publish comes again within that
		if err != nil {
			return 0, fmt.Errorf("%d of %d events are not published: %w", len(open), n, err)
		}
		delete(open, m.Headers().Get("Nats-Msg-Id"))
	}
	return n, nil
}

// sameLinks asks again for some links that old replicas made.
func (l *load) sameLinks(ctx context.Context) error {
	for i := range 10 {
		m, err := request("created", int64(i))
		if err != nil {
			return err
		}
		again, err := l.createOne(ctx, m)
		if err != nil {
			return err
		}
		if again.URL != l.links[i].URL {
			return errors.New("the new release gives another link for a request of the old one")
		}
	}
	return nil
}
