package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"latchkey/internal/crowd"
	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

// request is what was asked for, and what the asker was told.
type request struct {
	id       string
	bodies   [][]byte // of that id; two that differ are a conflict
	sent     int      // tries to publish or to create, however they ended
	promised bool     // JetStream, or the micro service, has confirmed one
	stored   int      // bodies that JetStream has confirmed
	create   bool     // it is for the micro service
	answered uuid.UUID
	code     jobs.Code // that it is rejected with; empty = it is good
	mails    []string  // addresses
	hooks    []string  // paths
	revoked  bool      // a revocation was confirmed
	spared   bool      // nobody presses its button until it is revoked
}

// load asks a deployment for all that a service is asked for, and keeps what it was told.
type load struct {
	d    *deployment
	rand *rand.Rand // of the plan's draws; used by one goroutine

	mu       sync.Mutex
	requests []*request
	byID     map[string]*request
	links    map[uuid.UUID]string   // path of the link
	pressed  map[uuid.UUID]bool     // somebody goes there
	given    map[uuid.UUID][]string // session URLs that people were sent to, by link
	broken   []string               // what was wrong at once
	closed   bool                   // nobody comes any more
	actors   sync.WaitGroup
	stuck    []string // actors who were not through when ctx ended
}

func newLoad(d *deployment) *load {
	return &load{d: d, rand: rand.New(rand.NewPCG(d.plan.seed, 1)), byID: map[string]*request{}, links: map[uuid.UUID]string{}, pressed: map[uuid.UUID]bool{}, given: map[uuid.UUID][]string{}}
}

// run returns when every actor is through with what it does.
func (l *load) run(ctx context.Context) error {
	acts := l.drawAll(ctx) // ahead of the first event: from then on requests are only read
	sub, err := l.d.nc.Subscribe(notify.SubjectPrefix+string(portal.LinkIssued), func(m *nats.Msg) { l.hear(ctx, m.Data) })
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	for _, act := range acts {
		l.act(ctx, act.what, func() {
			if pause(ctx, act.at) {
				act.do()
			}
		})
	}
	l.actors.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("not everybody got through with what they do (%v): %w", l.stuck, ctx.Err())
	}
	return nil
}

// act is what somebody does at a moment of the load.
type act struct {
	at   time.Duration
	what string
	do   func()
}

// drawAll draws all requests, and who does what with them when. People come later, when there are links.
func (l *load) drawAll(ctx context.Context) (acts []act) {
	p := l.d.plan
	bulkAt := between(l.rand, p.load)
	for i := range p.requests {
		r := l.draw(fmt.Sprintf("request-%d-%d", p.seed, i))
		if r.spared = i < p.revoked; r.spared {
			acts = append(acts, act{0, "revoke " + r.id, func() { l.revoke(ctx, r) }})
		}
		acts = append(acts, act{between(l.rand, p.load), "publish " + r.id, func() { l.publish(ctx, r, l.lazy(i)) }})
	}
	for i := range p.bad {
		r := l.bad(i)
		acts = append(acts, act{between(l.rand, p.load), "publish " + r.id, func() { l.publish(ctx, r, false) }})
	}
	for i := range p.creates {
		r := l.draw(fmt.Sprintf("create-%d-%d", p.seed, i))
		r.create = true
		acts = append(acts, act{between(l.rand, p.load), "create " + r.id, func() { l.create(ctx, r) }})
	}
	for i := range p.bulk {
		r := l.draw(fmt.Sprintf("bulk-%d-%d", p.seed, i))
		acts = append(acts, act{bulkAt, "publish " + r.id, func() { l.publish(ctx, r, false) }})
	}
	return append(acts, act{p.load + time.Second, "close", func() { l.edit(func() { l.closed = true }) }})
}

// lazy producers send once and look no further: what they asked for may be there or not.
func (l *load) lazy(i int) bool { return i%5 == 4 }

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// draw makes a good request.
func (l *load) draw(id string) *request {
	source := []string{"dunning", "support", "campaign"}[l.rand.IntN(3)]
	asked := &jobs.Request{ID: id, Source: source, Session: &portal.SessionParams{Customer: "cus_Fault" + strings.ReplaceAll(id, "-", "0")},
		Metadata: map[string]string{"invoice": id}}
	r := &request{id: id}
	if l.rand.IntN(3) == 0 {
		r.mails = []string{id + "@example.com"}
		asked.Deliver = append(asked.Deliver, jobs.Delivery{Channel: jobs.ChannelEmail, To: r.mails[0], Template: "payment_failed", Data: []byte(`{"name": "Jo", "amount": "€ 49.00"}`)})
	}
	if l.rand.IntN(3) == 0 {
		r.hooks = []string{"/link/" + id}
		asked.Deliver = append(asked.Deliver, jobs.Delivery{Channel: jobs.ChannelWebhook, URL: l.d.hooks.url + r.hooks[0]})
	}
	if l.rand.IntN(3) == 0 {
		most := 1 + l.rand.IntN(2)
		asked.MaxSessions = &most
	}
	l.keep(r, asked)
	switch l.rand.IntN(10) {
	case 0, 1: // sent twice
		r.bodies = append(r.bodies, r.bodies[0])
	case 2: // and with other content
		asked.Metadata = map[string]string{"invoice": id, "other": "yes"}
		l.keep(r, asked)
	}
	return r
}

func (l *load) keep(r *request, asked *jobs.Request) {
	body, err := json.Marshal(asked)
	if err != nil {
		panic(err) // of a request that we made
	}
	r.bodies = append(r.bodies, body)
	if l.byID[r.id] == nil {
		l.byID[r.id] = r
		l.requests = append(l.requests, r)
	}
}

// bad makes a request that can never be served.
func (l *load) bad(i int) *request {
	id := fmt.Sprintf("bad-%d-%d", l.d.plan.seed, i)
	kinds := []struct {
		code jobs.Code
		body string
	}{
		{jobs.InvalidJSON, `{"id": %q, "source": "dunning", "session": {`},
		{jobs.InvalidField, `{"id": %q, "source": "dunning", "session": {"customer": "nobody"}}`},
		{jobs.Expired, `{"id": %q, "source": "dunning", "session": {"customer": "cus_Bad"}, "expires_at": "2020-01-01T00:00:00Z"}`},
		{jobs.ModeMismatch, `{"id": %q, "source": "dunning", "session": {"customer": "cus_Bad"}, "livemode": true}`},
	}
	kind := kinds[l.rand.IntN(len(kinds))]
	r := &request{id: id, code: kind.code, bodies: [][]byte{fmt.Appendf(nil, kind.body, id)}}
	l.byID[id] = r
	l.requests = append(l.requests, r)
	return r
}

// publish sends each body until JetStream confirms it, as producers do; a lazy one tries once.
func (l *load) publish(ctx context.Context, r *request, lazy bool) {
	source := "dunning" // where a bad one can't tell
	var asked struct{ Source string }
	if json.Unmarshal(r.bodies[0], &asked) == nil && asked.Source != "" {
		source = asked.Source
	}
	for _, body := range r.bodies {
		for again := true; again && ctx.Err() == nil; again = !lazy {
			try, cancel := context.WithTimeout(ctx, 2*time.Second)
			l.edit(func() { r.sent++ })
			_, err := l.d.client.Send(try, producer.Message{ID: r.id, Source: source, Body: body})
			cancel()
			if err == nil {
				l.edit(func() { r.promised, r.stored = true, r.stored+1 })
				break
			}
			pause(ctx, 100*time.Millisecond)
		}
	}
}

// create asks the micro service for each body until it has an answer.
func (l *load) create(ctx context.Context, r *request) {
	for _, body := range r.bodies {
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, 5*time.Second)
			l.edit(func() { r.sent++ })
			link, err := l.d.client.Create(try, producer.Message{ID: r.id, Body: body})
			cancel()
			var refused *producer.ServiceError
			if errors.As(err, &refused) && refused.Code == string(jobs.IDConflict) {
				break
			}
			if refused != nil && refused.Code != "unavailable" {
				l.edit(func() {
					l.broken = append(l.broken, fmt.Sprintf("request %s can be served and was refused: %s", r.id, refused))
				})
				break
			}
			if err != nil {
				pause(ctx, 100*time.Millisecond)
				continue
			}
			l.edit(func() {
				if r.promised && r.answered != link.LinkID {
					l.broken = append(l.broken, fmt.Sprintf("request %s was answered with links %s and %s", r.id, r.answered, link.LinkID))
				}
				r.promised, r.answered = true, link.LinkID
			})
			l.visit(ctx, r, link)
			break
		}
	}
}

// hear learns of a link from its event.
func (l *load) hear(ctx context.Context, data []byte) {
	var event notify.Event
	link := &jobs.IssuedData{}
	if json.Unmarshal(data, &event) != nil || json.Unmarshal(event.Data, link) != nil {
		return
	}
	if r := l.byID[link.RequestID]; r != nil {
		l.visit(ctx, r, link)
	}
}

// visit has people go to a link, once.
func (l *load) visit(ctx context.Context, r *request, link *jobs.IssuedData) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, path, _ := strings.Cut(strings.TrimPrefix(link.URL, "http://"), "/")
	if known, ok := l.links[link.LinkID]; ok && known != "/"+path {
		l.broken = append(l.broken, fmt.Sprintf("link %s has two URLs", link.LinkID))
	}
	l.links[link.LinkID] = "/" + path
	if l.closed || r.spared || l.pressed[link.LinkID] || strings.HasPrefix(r.id, "bulk-") && len(l.links)%4 > 0 {
		return
	}
	l.pressed[link.LinkID] = true
	for range 1 + len(l.pressed)%2 { // at the same time, and on any replica
		l.act(ctx, "person with "+r.id, func() { l.person(ctx, link.LinkID) })
	}
}

// serves presses a live link at each click server: when the faults are over, that leads to the portal. It ends at rest again.
func (l *load) serves(ctx context.Context) error {
	for _, r := range l.d.replicas {
		if !r.clicks() {
			continue
		}
		var link uuid.UUID // one without clicks, whose press can't share an older one's session
		if err := l.d.pool.QueryRow(ctx, `SELECT id FROM links WHERE revoked_at IS NULL AND max_sessions IS NULL AND expires_at > now()
			ORDER BY EXISTS (SELECT FROM clicks WHERE link_id = links.id), id LIMIT 1`).Scan(&link); err != nil {
			return fmt.Errorf("find a live link: %w", err)
		}
		token, err := keyring.Sign(1, link)
		if err != nil {
			return err
		}
		p := &crowd.Person{Crowd: l.crowdAt(r), Path: "/l/" + token}
		patient, cancel := context.WithTimeout(ctx, time.Minute)
		err = p.Press(patient, 1)
		cancel()
		if p.Through().IsZero() {
			l.broken = append(l.broken, fmt.Sprintf("after the faults a press on link %s does not lead to the portal at the replica with %s: %v (%v)", link, r.roles, p.Answers, err))
			continue
		}
		l.given[link] = append(l.given[link], p.Answers[len(p.Answers)-1].Location)
	}
	return l.d.untilDone(ctx)
}

func (l *load) crowd() *crowd.Crowd { return l.crowdAt(l.d.replicas...) }

// crowdAt goes to those of the replicas that serve clicks.
func (l *load) crowdAt(replicas ...*replica) *crowd.Crowd {
	c := &crowd.Crowd{Client: crowd.NewClient()}
	c.Client.Timeout = 30 * time.Second
	for _, r := range replicas {
		if r.clicks() {
			c.Origins = append(c.Origins, "http://"+r.public)
		}
	}
	return c
}

// person opens the link, presses, and presses again where the browser shows its own error page.
func (l *load) person(ctx context.Context, link uuid.UUID) {
	l.mu.Lock()
	path := l.links[link]
	l.mu.Unlock()
	p := &crowd.Person{Crowd: l.crowd(), Path: path}
	p.Look(ctx)
	for tries := 0; tries < 5 && ctx.Err() == nil; tries++ {
		if p.Press(ctx, 10) != nil {
			return
		}
		last := p.Answers[len(p.Answers)-1]
		if last.Status == http.StatusSeeOther {
			l.edit(func() { l.given[link] = append(l.given[link], last.Location) })
			return
		}
		if last.Status != 0 { // a page that leads nowhere: the link is used up, or Stripe refused
			return
		}
		pause(ctx, 300*time.Millisecond)
	}
}

// revoke revokes a link that nobody has pressed, and then presses: that must lead nowhere.
func (l *load) revoke(ctx context.Context, r *request) {
	var link uuid.UUID
	for link == uuid.Nil && ctx.Err() == nil {
		pause(ctx, 200*time.Millisecond)
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := l.d.client.Revoke(try, portal.Revocation{RequestID: r.id, By: "fault suite"})
		var is *jobs.Status
		if err == nil { // perhaps it is not there yet, and perhaps an answer that was lost had revoked it
			is, err = l.d.client.Status(try, r.id)
		}
		cancel()
		if err == nil && is.Link != nil && is.Link.RevokedAt != nil {
			link = is.Link.LinkID
		}
	}
	token, err := keyring.Sign(1, link)
	if err != nil || ctx.Err() != nil {
		return
	}
	l.edit(func() { r.revoked = true })
	p := &crowd.Person{Crowd: l.crowd(), Path: "/l/" + token}
	if p.Press(ctx, 10) == nil && !p.Through().IsZero() {
		l.edit(func() {
			l.broken = append(l.broken, "a press on the link of "+r.id+", which is revoked, led to the portal")
		})
	}
}

// act does it beside the others. Who is not through when ctx ends is told by name.
func (l *load) act(ctx context.Context, name string, do func()) {
	l.actors.Go(func() {
		do()
		if ctx.Err() != nil {
			l.edit(func() { l.stuck = append(l.stuck, name) })
		}
	})
}

func (l *load) edit(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}
