// Package books tells whether everything adds up, once a fault is lifted and all has come to rest: what producers
// sent, links, clicks, the audit, events, Stripe's sessions, mails and webhooks. Only tests import it.
//
// What must hold, whatever failed on the way (the numbers are those of docs/design.md's invariants):
//
//   - a request has one link, and no link is of no request; the stream of requests is drained, and nothing is a
//     dead letter (1, 2);
//   - a click has its click.started and one outcome, and the counts of its link follow from them (5);
//   - a session at Stripe has its click, and one in the audit is at Stripe (5);
//   - each row of an event kind has its event, and no event is of no row (7);
//   - a delivery has one outcome, and what the audit says was delivered has arrived, under one id however often (7).
package books

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
	"latchkey/internal/mailcatcher"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/stripesim"
)

// Books are what everybody says who took part.
type Books struct {
	DB        *pgxpool.Pool // of the owner
	JetStream jetstream.JetStream
	Requests  []string            // the id of each request that JetStream took and that can be served
	Sessions  []stripesim.Session // that Stripe made
	Mails     []*mailcatcher.Mail
	Webhooks  []string // the webhook-id of each post that a target took
}

// AwaitRest returns once nothing is under way any more. Until then it calls nudge, now and then, which is to move
// the clocks of what would take hours.
func AwaitRest(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream, nudge func() error) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for busy := "a question"; ; {
		now, err := underWay(ctx, db, js)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("no rest: %s: %w", busy, ctx.Err())
		case err != nil || now == "":
			return err
		}
		busy = now
		if err := nudge(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// underWay names something that is; empty = nothing.
func underWay(ctx context.Context, db *pgxpool.Pool, js jetstream.JetStream) (string, error) {
	var open []string
	err := db.QueryRow(ctx, `SELECT array_agg(what) FROM (
		SELECT concat_ws(' ', 'job', id, kind, state, 'attempt', attempt, 'of', attempted_at, 'due', scheduled_at) what FROM river_job
			WHERE state NOT IN ('completed', 'cancelled', 'discarded') AND kind <> 'sweep'
		UNION ALL SELECT 'click ' || id FROM clicks WHERE outcome IS NULL) o`).Scan(&open)
	if err != nil || len(open) > 0 {
		return fmt.Sprintf("%d open: %q", len(open), open[:min(len(open), 5)]), err
	}
	consumer, err := js.Consumer(ctx, jobs.RequestsStream, jobs.IntakeConsumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return "intake has no consumer", nil
	}
	if err != nil {
		return "", err
	}
	if info := consumer.CachedInfo(); info.NumPending > 0 || info.NumAckPending > 0 {
		return fmt.Sprintf("requests (%d pending, %d not acknowledged)", info.NumPending, info.NumAckPending), nil
	}
	return "", nil
}

// Check returns all that does not add up, or nil.
func (b *Books) Check(ctx context.Context) error {
	return errors.Join(b.checkRows(ctx), b.checkSessions(ctx), b.checkStreams(ctx), b.checkEvents(ctx), b.checkDeliveries(ctx))
}

// breach finds what must not be, in the database alone.
type breach struct {
	about, sql string
	args       []any
}

// breaches each name what is wrong.
func (b *Books) breaches() []breach {
	return []breach{
		{"requests without their one link", `SELECT r FROM unnest($1::text[]) r WHERE 1 <> (SELECT count(*) FROM links WHERE request_id = r)`, []any{b.Requests}},
		{"links of no request", `SELECT request_id FROM links WHERE renewal_of IS NULL AND request_id <> ALL ($1)`, []any{b.Requests}},
		{"links without their one link.issued", `SELECT request_id FROM links l
			WHERE 1 <> (SELECT count(*) FROM audit_events WHERE link_id = l.id AND kind = 'link.issued')`, nil},
		{"rejected requests", `SELECT coalesce(request_id, 'without id') FROM audit_events WHERE kind = 'request.rejected'`, nil},
		{"clicks without their one click.started", `SELECT id::text FROM clicks c
			WHERE 1 <> (SELECT count(*) FROM audit_events WHERE click_id = c.id AND kind = 'click.started')`, nil},
		{"clicks without their one outcome", `SELECT id::text FROM clicks c WHERE outcome IS NULL
			OR 1 <> (SELECT count(*) FROM audit_events WHERE click_id = c.id AND kind IN ('session.created', 'session.failed'))
			OR 1 <> (SELECT count(*) FROM audit_events WHERE click_id = c.id
				AND kind = CASE outcome WHEN 'created' THEN 'session.created' ELSE 'session.failed' END)`, nil},
		{"audit rows of a click that is none", `SELECT id::text FROM audit_events e WHERE click_id IS NOT NULL
			AND NOT EXISTS (SELECT FROM clicks WHERE id = e.click_id AND link_id = e.link_id)`, nil},
		{"links with reserved uses", `SELECT request_id FROM links WHERE sessions_reserved <> 0`, nil},
		{"links whose count is not their sessions in the audit", `SELECT request_id FROM links l WHERE sessions_created
			<> (SELECT count(*) FROM audit_events WHERE link_id = l.id AND kind = 'session.created')`, nil},
		{"jobs that were given up", `SELECT kind || ' ' || id FROM river_job WHERE state IN ('cancelled', 'discarded') AND kind <> 'sweep'`, nil},
		{"deliveries without their one outcome", `SELECT l.request_id || ' ' || c.channel FROM links l, (VALUES ('email'), ('webhook')) c (channel)
			WHERE (SELECT count(*) FROM jsonb_array_elements(coalesce(l.deliver, '[]')) d WHERE d->>'channel' = c.channel)
				<> (SELECT count(*) FROM audit_events e WHERE e.link_id = l.id AND e.kind IN ('link.delivered', 'link.delivery_failed')
					AND e.detail->>'channel' = c.channel)`, nil},
	}
}

func (b *Books) checkRows(ctx context.Context) error {
	var all []error
	for _, breach := range b.breaches() {
		found, err := b.texts(ctx, breach.sql, breach.args...)
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("%d %s: %.10q", len(found), breach.about, found)
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// texts are the values of a query's one column.
func (b *Books) texts(ctx context.Context, sql string, args ...any) ([]string, error) {
	rows, err := b.DB.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// checkSessions holds the audit against Stripe, which knows a click by its idempotency key. A session whose click
// failed is one that nobody got; one that the audit counts must be there.
func (b *Books) checkSessions(ctx context.Context) error {
	clicks, err := b.texts(ctx, `SELECT id::text FROM clicks`)
	if err != nil {
		return err
	}
	created, err := b.texts(ctx, `SELECT coalesce(detail->>'session_id', '') FROM audit_events WHERE kind = 'session.created'`)
	if err != nil {
		return err
	}
	var all []error
	made := map[string]bool{}
	for _, s := range b.Sessions {
		made[s.ID] = true
		if click := strings.TrimPrefix(s.IdempotencyKey, "latchkey_click_"); !slices.Contains(clicks, click) {
			all = append(all, fmt.Errorf("session %s was made for a click %q that is none", s.ID, click))
		}
	}
	for _, id := range created {
		if !made[id] {
			all = append(all, fmt.Errorf("the audit has a session %q that Stripe did not make", id))
		}
	}
	return errors.Join(all...)
}

// checkStreams sees that intake has nothing left, and has given up nothing.
func (b *Books) checkStreams(ctx context.Context) error {
	var all []error
	for _, name := range []string{jobs.RequestsStream, jobs.DeadStream} {
		stream, err := b.JetStream.Stream(ctx, name)
		if err != nil {
			return err
		}
		if n := stream.CachedInfo().State.Msgs; n != 0 {
			all = append(all, fmt.Errorf("%d messages in %s", n, name))
		}
	}
	return errors.Join(all...)
}

// checkEvents holds the rows of event kinds against the events, repeats dropped.
func (b *Books) checkEvents(ctx context.Context) error {
	want, err := b.texts(ctx, `SELECT id::text FROM audit_events WHERE kind = ANY ($1) OR kind = $2`, portal.EventKinds, portal.RequestDuplicate)
	if err != nil {
		return err
	}
	events, err := b.eventIDs(ctx)
	if err != nil {
		return err
	}
	return compare("event", "audit row", events, want, want)
}

// eventIDs are the ids of all events, by which a reader drops repeats.
func (b *Books) eventIDs(ctx context.Context) (ids []string, err error) {
	consumer, err := b.JetStream.OrderedConsumer(ctx, notify.EventsStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	for left := consumer.CachedInfo().NumPending; left > 0; left-- {
		msg, err := consumer.Next()
		if err != nil {
			return nil, fmt.Errorf("%d events can't be read: %w", left, err)
		}
		var event notify.Event
		if err := json.Unmarshal(msg.Data(), &event); err != nil {
			return nil, err
		}
		ids = append(ids, event.ID)
	}
	return ids, nil
}

// checkDeliveries holds what the audit says was delivered against what arrived. The row of a delivery's outcome has
// its id, which is in the Message-ID; a webhook has that of the event that it is. What was given up may have arrived
// all the same, if each of its answers was lost.
func (b *Books) checkDeliveries(ctx context.Context) error {
	const ended = `SELECT id::text FROM audit_events WHERE detail->>'channel' = 'email' AND kind `
	mails, err := b.texts(ctx, ended+`= 'link.delivered'`)
	if err != nil {
		return err
	}
	anyMail, err := b.texts(ctx, ended+`IN ('link.delivered', 'link.delivery_failed')`)
	if err != nil {
		return err
	}
	webhooks, err := b.texts(ctx, `SELECT id::text FROM audit_events e WHERE kind = 'link.issued' AND EXISTS (SELECT FROM audit_events
		WHERE link_id = e.link_id AND kind = 'link.delivered' AND detail->>'channel' = 'webhook')`)
	if err != nil {
		return err
	}
	anyEvent, err := b.texts(ctx, `SELECT id::text FROM audit_events`)
	if err != nil {
		return err
	}
	return errors.Join(compare("mail", "delivery", messageIDs(b.Mails), mails, anyMail), compare("webhook", "event", b.Webhooks, webhooks, anyEvent))
}

// messageIDs are what stands before the @.
func messageIDs(mails []*mailcatcher.Mail) (ids []string) {
	for _, m := range mails {
		for _, f := range m.Header {
			if strings.EqualFold(f.Name, "Message-Id") {
				id, _, _ := strings.Cut(strings.Trim(f.Value, "<>"), "@")
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// compare wants each id that must be there, whatever number of times, and none but those that may.
func compare(what, of string, got, must, may []string) error {
	var all []error
	for _, id := range must {
		if !slices.Contains(got, id) {
			all = append(all, fmt.Errorf("%s %s has no %s", of, id, what))
		}
	}
	for _, id := range got {
		if !slices.Contains(may, id) {
			all = append(all, fmt.Errorf("%s %s is of no %s", what, id, of))
		}
	}
	return errors.Join(all...)
}
