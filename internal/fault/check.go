package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/audit"
	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/stripesim"
)

// checked counts what was held against the invariants.
type checked struct {
	Requests int `json:"requests"`
	Links    int `json:"links"`
	Events   int `json:"events"`
	Rejected int `json:"rejected"`
	Clicks   int `json:"clicks"`
	Sessions int `json:"sessions"`
	Given    int `json:"given"` // sessions that people were sent to
	Mails    int `json:"mails"`
	Webhooks int `json:"webhooks"`
	Calls    int `json:"calls"`  // to Stripe whose click.started was looked for when they came
	Unseen   int `json:"unseen"` // and those that came while Postgres was away
	Heads    int `json:"heads"`  // of the audit's chain, that events told
}

func (c *checked) add(o checked) {
	c.Requests += o.Requests
	c.Links += o.Links
	c.Events += o.Events
	c.Rejected += o.Rejected
	c.Clicks += o.Clicks
	c.Sessions += o.Sessions
	c.Given += o.Given
	c.Mails += o.Mails
	c.Webhooks += o.Webhooks
	c.Calls += o.Calls
	c.Unseen += o.Unseen
	c.Heads += o.Heads
}

// end is all that there is once a deployment is at rest.
type end struct {
	d *deployment
	l *load

	links     map[uuid.UUID]linkRow
	byRequest map[string]uuid.UUID
	audit     []auditRow
	clicks    map[uuid.UUID]uuid.UUID // click → link
	events    map[string]notify.Event
	letters   []letter
	sessions  []stripesim.Session

	broken []string
	n      checked
}

type linkRow struct {
	request           string
	created, reserved int
	most              *int
	revoked           bool
}

type auditRow struct {
	id, link, click uuid.UUID
	kind            portal.Kind
	request         string
	detail          map[string]any
}

type letter struct {
	id   string // that of the rejection's audit row
	code jobs.Code
	body []byte
}

// check holds what is there against every invariant, by ids, and returns those that are broken.
func (l *load) check(ctx context.Context) ([]string, checked, error) {
	e := &end{d: l.d, l: l, broken: slices.Clone(l.broken)}
	for _, read := range []func(context.Context) error{e.readDatabase, e.readEvents, e.readLetters} {
		if err := read(ctx); err != nil {
			return nil, e.n, err
		}
	}
	e.sessions = l.d.stripe.Sessions()
	e.requests()
	e.published()
	e.sessionsAndClicks()
	e.delivered()
	e.subscribed()
	for _, look := range []func(context.Context) error{e.proof, e.jobs} {
		if err := look(ctx); err != nil {
			return nil, e.n, err
		}
	}
	return e.broken, e.n, e.logs()
}

func (e *end) breaks(format string, args ...any) {
	e.broken = append(e.broken, fmt.Sprintf(format, args...))
}

func (e *end) readDatabase(ctx context.Context) error {
	e.links, e.byRequest, e.clicks = map[uuid.UUID]linkRow{}, map[string]uuid.UUID{}, map[uuid.UUID]uuid.UUID{}
	rows, err := e.d.pool.Query(ctx, `SELECT id, request_id, sessions_created, sessions_reserved, max_sessions, revoked_at IS NOT NULL FROM links`)
	if err != nil {
		return err
	}
	var id, link uuid.UUID
	var row linkRow
	if _, err = pgx.ForEachRow(rows, []any{&id, &row.request, &row.created, &row.reserved, &row.most, &row.revoked}, func() error {
		e.links[id], e.byRequest[row.request] = row, id
		return nil
	}); err != nil {
		return err
	}
	rows, err = e.d.pool.Query(ctx, `SELECT id, coalesce(link_id, '00000000-0000-0000-0000-000000000000'), coalesce(click_id, '00000000-0000-0000-0000-000000000000'), kind, coalesce(request_id, ''), detail FROM audit_events`)
	if err != nil {
		return err
	}
	if e.audit, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (a auditRow, err error) {
		err = r.Scan(&a.id, &a.link, &a.click, &a.kind, &a.request, &a.detail)
		return a, err
	}); err != nil {
		return err
	}
	if rows, err = e.d.pool.Query(ctx, `SELECT id, link_id FROM clicks`); err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, []any{&id, &link}, func() error { e.clicks[id] = link; return nil })
	return err
}

// eachMessage reads a stream from its begin.
func (d *deployment) eachMessage(ctx context.Context, stream string, see func(jetstream.Msg) error) error {
	consumer, err := d.js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	for left := consumer.CachedInfo().NumPending; left > 0; {
		batch, err := consumer.Fetch(int(min(left, 500)), jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return err
		}
		before := left
		for msg := range batch.Messages() {
			if err := see(msg); err != nil {
				return err
			}
			left--
		}
		if left == before {
			return fmt.Errorf("%d messages of %s can't be read: %w", left, stream, batch.Error())
		}
	}
	return nil
}

func (e *end) readEvents(ctx context.Context) error {
	e.events = map[string]notify.Event{}
	return e.d.eachMessage(ctx, notify.EventsStream, func(msg jetstream.Msg) error {
		var event notify.Event
		if err := json.Unmarshal(msg.Data(), &event); err != nil {
			return fmt.Errorf("an event is no JSON: %w", err)
		}
		if id := msg.Headers().Get(nats.MsgIdHdr); id != event.ID {
			e.breaks("event %s has the message id %s", event.ID, id)
		}
		e.events[event.ID] = event
		return nil
	})
}

func (e *end) readLetters(ctx context.Context) error {
	return e.d.eachMessage(ctx, jobs.DeadStream, func(msg jetstream.Msg) error {
		e.letters = append(e.letters, letter{msg.Headers().Get(nats.MsgIdHdr), jobs.Code(msg.Headers().Get(jobs.HeaderCode)), bytes.Clone(msg.Data())})
		return nil
	})
}

// requests: each that was promised has its link or its dead letter, and nobody else has one.
func (e *end) requests() {
	e.rejections()
	for _, r := range e.l.requests {
		link, there := e.byRequest[r.id]
		letters := e.lettersOf(r)
		switch {
		case r.code != "" && there:
			e.breaks("request %s can't be served and has link %s", r.id, link)
		case r.code != "" && r.promised && len(letters) == 0:
			e.breaks("request %s can't be served and has no dead letter", r.id)
		case r.stored == len(r.bodies) && e.codeOf(r) == jobs.IDConflict && len(letters) == 0:
			e.breaks("request %s was confirmed with two contents and has no dead letter", r.id)
		case r.code == "" && r.promised && !there:
			e.breaks("request %s was confirmed and has no link", r.id)
		case there && r.sent == 0:
			e.breaks("request %s was not sent and has link %s", r.id, link)
		case r.answered != uuid.Nil && r.answered != link:
			e.breaks("request %s was answered with link %s and has %s", r.id, r.answered, link)
		case r.revoked && !e.links[link].revoked:
			e.breaks("link %s was revoked, as the caller was told, and is not", link)
		}
		for _, code := range letters {
			if want := e.codeOf(r); code != want {
				e.breaks("request %s has a dead letter %s, want %q", r.id, code, want)
			}
		}
		if len(letters) > r.sent {
			e.breaks("request %s was sent %d times and has %d dead letters", r.id, r.sent, len(letters))
		}
		e.n.Rejected += len(letters)
	}
	for request, link := range e.byRequest {
		if e.l.byID[request] == nil {
			e.breaks("link %s is of request %s, which nobody sent", link, request)
		}
	}
	e.n.Requests, e.n.Links = len(e.l.requests), len(e.links)
}

// rejections: each that came by JetStream has its dead letter, under the id of its audit row; the service has told its
// caller and needs none.
func (e *end) rejections() {
	open := map[string]bool{} // letters whose audit row was not seen yet
	for _, letter := range e.letters {
		open[letter.id] = true
	}
	for _, a := range e.audit {
		if a.kind != portal.RequestRejected {
			continue
		}
		r, id := e.l.byID[a.request], a.id.String()
		if !open[id] && (r == nil || !r.create) {
			e.breaks("the rejection %s of request %q has no dead letter", id, a.request)
		}
		delete(open, id)
	}
	for id := range open {
		e.breaks("dead letter %s has no audit row", id)
	}
}

// codeOf is what a request may be rejected with; empty = nothing.
func (e *end) codeOf(r *request) jobs.Code {
	if r.code == "" && slices.ContainsFunc(r.bodies, func(body []byte) bool { return !bytes.Equal(body, r.bodies[0]) }) {
		return jobs.IDConflict
	}
	return r.code
}

func (e *end) lettersOf(r *request) (codes []jobs.Code) {
	for _, letter := range e.letters {
		if slices.ContainsFunc(r.bodies, func(body []byte) bool { return bytes.Equal(body, letter.body) }) {
			codes = append(codes, letter.code)
		}
	}
	return codes
}

// ofNoLink are the kinds that can be about no link.
var ofNoLink = []portal.Kind{portal.RequestRejected, portal.AuditSealed, portal.WebhookDisabled}

// published: an event for each audit row of an event's kind, under its id, and no other. link.issued once for a link.
func (e *end) published() {
	due, issued := map[string]portal.Kind{}, map[uuid.UUID]int{}
	for _, a := range e.audit {
		switch {
		case a.kind == portal.RequestDuplicate: // published as link.issued once more
			due[a.id.String()] = portal.LinkIssued
		case slices.Contains(portal.EventKinds, a.kind):
			due[a.id.String()] = a.kind
		}
		if a.kind == portal.LinkIssued {
			issued[a.link]++
		}
		if _, there := e.links[a.link]; !there && !slices.Contains(ofNoLink, a.kind) {
			e.breaks("audit row %s (%s) is of link %s, which is not there", a.id, a.kind, a.link)
		}
	}
	for id, kind := range due {
		event, there := e.events[id]
		switch {
		case !there:
			e.breaks("audit row %s (%s) has no event", id, kind)
		case event.Kind() != string(kind):
			e.breaks("audit row %s (%s) has an event %s", id, kind, event.Kind())
		}
	}
	for id := range e.events {
		if _, there := due[id]; !there {
			e.breaks("event %s has no audit row", id)
		}
	}
	for link := range e.links {
		if issued[link] != 1 {
			e.breaks("link %s has %d rows of link.issued", link, issued[link])
		}
	}
	e.n.Events = len(e.events)
}

// sessionsAndClicks: whatever Stripe made has its click, begun ahead of the call and ended once; what people were given
// is in the audit, and within the link's limit.
func (e *end) sessionsAndClicks() {
	started, outcomes, made, created := map[uuid.UUID]int{}, map[uuid.UUID]int{}, map[string]uuid.UUID{}, map[uuid.UUID]int{}
	for _, a := range e.audit {
		switch a.kind {
		case portal.ClickStarted:
			started[a.click]++
		case portal.SessionFailed:
			outcomes[a.click]++
		case portal.SessionCreated:
			outcomes[a.click]++
			created[a.link]++
			id, _ := a.detail["session_id"].(string)
			if other, twice := made[id]; twice {
				e.breaks("session %s is the outcome of clicks %s and %s", id, other, a.click)
			}
			made[id] = a.click
		}
	}
	for click := range e.clicks {
		if started[click] != 1 || outcomes[click] != 1 {
			e.breaks("click %s has %d rows of click.started and %d outcomes", click, started[click], outcomes[click])
		}
	}
	byURL, known := map[string]stripesim.Session{}, map[string]bool{}
	for _, s := range e.sessions {
		byURL[s.URL], known[s.ID] = s, true
		click, err := clickOf(s.IdempotencyKey)
		if err != nil || started[click] != 1 || outcomes[click] != 1 {
			e.breaks("session %s is of click %s, which has %d rows of click.started and %d outcomes (%v)", s.ID, click, started[click], outcomes[click], err)
		}
	}
	for id, click := range made {
		if !known[id] {
			e.breaks("click %s has session %s, which Stripe has not made", click, id)
		}
	}
	for id, link := range e.links {
		if link.created != created[id] || link.reserved != 0 {
			e.breaks("link %s counts %d sessions and %d reserved, the audit %d", id, link.created, link.reserved, created[id])
		}
		if link.most != nil && created[id] > *link.most {
			e.breaks("link %s has %d sessions, of %d at most", id, created[id], *link.most)
		}
	}
	for link, urls := range e.l.given {
		distinct := map[string]bool{}
		for _, url := range urls {
			s := byURL[url]
			if click, there := made[s.ID]; !there || e.clicks[click] != link {
				e.breaks("a person with link %s was sent to session %q, which is not in the audit as that link's", link, s.ID)
			}
			distinct[s.ID] = true
		}
		if most := e.links[link].most; most != nil && len(distinct) > *most {
			e.breaks("people with link %s were sent to %d sessions, of %d at most", link, len(distinct), *most)
		}
		e.n.Given += len(distinct)
	}
	for _, click := range e.d.stripe.uncovered {
		e.breaks("Stripe was asked for click %s ahead of the commit of its click.started", click)
	}
	e.n.Clicks, e.n.Sessions, e.n.Calls, e.n.Unseen = len(e.clicks), len(e.sessions), e.d.stripe.witnessed, e.d.stripe.unseen
}

// delivered: one outcome for each delivery that was asked for, and what is told to be delivered has come. Nothing that
// the suite does makes a delivery fail for good.
func (e *end) delivered() {
	outcomes, failed := map[uuid.UUID]map[string]int{}, map[uuid.UUID][]any{}
	for _, a := range e.audit {
		if a.kind != portal.LinkDelivered && a.kind != portal.LinkDeliveryFailed {
			continue
		}
		if outcomes[a.link] == nil {
			outcomes[a.link] = map[string]int{}
		}
		outcomes[a.link][fmt.Sprint(a.detail["channel"])]++
		if a.kind == portal.LinkDeliveryFailed {
			failed[a.link] = append(failed[a.link], a.detail)
		}
	}
	mails := e.d.mail.mails()
	for id, link := range e.links {
		r := e.l.byID[link.request]
		if r == nil {
			continue // told above
		}
		got := outcomes[id]
		if got[jobs.ChannelEmail] != len(r.mails) || got[jobs.ChannelWebhook] != len(r.hooks) {
			e.breaks("link %s asks for %d mails and %d webhooks and has the outcomes %v", id, len(r.mails), len(r.hooks), got)
		}
		if link.revoked { // and then not delivered any more, where that was quicker
			continue
		}
		if len(failed[id]) > 0 {
			e.breaks("deliveries of link %s were given up: %v", id, failed[id])
		}
		for _, to := range r.mails {
			if len(mails[to]) != 1 {
				e.breaks("the mail of link %s came under %d Message-IDs, want 1", id, len(mails[to]))
			}
			e.n.Mails++
		}
		for _, path := range r.hooks {
			if e.d.hooks.ids(path) != 1 {
				e.breaks("the webhook of link %s came under %d ids, want 1", id, e.d.hooks.ids(path))
			}
			e.n.Webhooks++
		}
	}
}

// subscribed: who subscribes to all events gets all.
func (e *end) subscribed() {
	for id, event := range e.events {
		if !e.d.hooks.has(everything, id) {
			e.breaks("event %s (%s) did not come to the subscription", id, event.Kind())
		}
		e.n.Webhooks++
	}
}

// proof: the audit is as it was sealed, and its chain goes through each head that an event has told.
func (e *end) proof(ctx context.Context) error {
	heads := []audit.Head{{}}
	for id, event := range e.events {
		if event.Kind() != string(portal.AuditSealed) {
			continue
		}
		var told struct{ Head string }
		if err := json.Unmarshal(event.Data, &told); err != nil {
			return fmt.Errorf("event %s: %w", id, err)
		}
		head, err := audit.ParseHead(told.Head)
		if err != nil {
			return fmt.Errorf("event %s: %w", id, err)
		}
		heads = append(heads, head)
	}
	e.n.Heads = len(heads) - 1
	for _, head := range heads {
		if _, err := audit.Verify(ctx, e.d.pool, audit.Head{}, head, nil); err != nil {
			e.breaks("the audit, held against head %s: %v", head, err)
		}
	}
	return nil
}

func (e *end) jobs(ctx context.Context) error {
	n, err := number(ctx, e.d.pool, `SELECT count(*) FROM river_job WHERE state IN ('discarded', 'cancelled') AND queue <> 'maintenance'`)
	if n > 0 {
		e.breaks("%d jobs gave up", n)
	}
	return err
}

// logs: no worker panicked, and none wrote what opens a customer's portal.
func (e *end) logs() error {
	secrets := map[string]string{stripeKey: "the Stripe key", strings.TrimPrefix(webhookSecret, "whsec_"): "the webhook secret"}
	for _, s := range e.sessions {
		if _, secret, found := strings.Cut(s.URL, "/p/session/"); found {
			secrets[secret] = "a session's URL"
		}
	}
	for id := range e.links {
		if token, err := keyring.Sign(1, id); err == nil {
			secrets[token] = "a link's token"
		}
	}
	for i := range e.d.replicas {
		log, err := os.ReadFile(e.d.logFile(i))
		if err != nil {
			return err
		}
		for _, word := range []string{"panic: ", "fatal error: ", "goroutine 1 ["} {
			if bytes.Contains(log, []byte(word)) {
				e.breaks("the log of replica %d has a %q", i, word)
			}
		}
		for secret, what := range secrets {
			if bytes.Contains(log, []byte(secret)) {
				e.breaks("the log of replica %d has %s", i, what)
			}
		}
	}
	return nil
}
