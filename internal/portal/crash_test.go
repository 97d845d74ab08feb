package portal

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"latchkey/internal/stripesim"
)

// crash is one line of the crash table: what befalls one of a click's three writes, what the
// visitor gets, and what the books say once the sweeper has run.
type crash struct {
	about   string
	commits []fate               // of click.started, of the budget, then of each try at the outcome
	faults  []stripesim.Fault    // of Stripe
	killed  func(*bundle, *Link) // in place of a press: the process ends in the middle of it

	status   int
	swept    int    // clicks that the sweeper had to close
	audit    string // after the sweep
	sessions int    // at Stripe
	created  int    // in the link's count
}

func crashes() []crash {
	const started, made, lost = "click.started", "click.started session.created", "click.started session.failed"
	cut := stripesim.Fault{Kind: stripesim.FaultCutAnswer}
	refused := stripesim.Fault{Kind: stripesim.FaultStatus, Status: 503, Unsaved: true}
	return []crash{
		{about: "nothing", status: 303, audit: made, sessions: 1, created: 1},
		{about: "click.started failed", commits: []fate{failed}, status: 503},
		{about: "click.started failed but took effect", commits: []fate{failedButTook}, status: 503, swept: 1, audit: lost},
		{about: "the slot failed", commits: []fate{fine, failed}, status: 503, swept: 1, audit: lost},
		{about: "the slot failed but took effect", commits: []fate{fine, failedButTook}, status: 503, swept: 1, audit: lost},
		{about: "killed after click.started", killed: killedAfterStart, swept: 1, audit: lost},
		{about: "Stripe failed", faults: []stripesim.Fault{refused, refused, refused, refused}, status: 503, audit: lost},
		{about: "Stripe failed once", faults: []stripesim.Fault{refused}, status: 303, audit: made, sessions: 1, created: 1},
		{about: "Stripe failed but took effect", faults: []stripesim.Fault{cut, cut, cut, cut}, status: 503, audit: lost, sessions: 1},
		{about: "Stripe failed once but took effect", faults: []stripesim.Fault{cut}, status: 303, audit: made, sessions: 1, created: 1},
		{about: "killed after Stripe", killed: killedAfterStripe, swept: 1, audit: lost, sessions: 1},
		{about: "outcome failed once", commits: []fate{fine, fine, failed}, status: 303, audit: made, sessions: 1, created: 1},
		{about: "outcome failed for good", commits: []fate{fine, fine, failed, failed, failed}, status: 503, swept: 1, audit: lost, sessions: 1},
		{about: "outcome failed but took effect", commits: []fate{fine, fine, failedButTook}, status: 303, audit: made, sessions: 1, created: 1},
		{about: "outcome failed, then failed but took effect", commits: []fate{fine, fine, failed, failedButTook}, status: 303, audit: made, sessions: 1, created: 1},
		{about: "refusal failed but took effect", commits: []fate{fine, fine, failedButTook},
			faults: []stripesim.Fault{{Kind: stripesim.FaultStatus, Status: 400}}, status: 502, audit: lost},
		{about: "killed after the outcome", killed: killedAfterOutcome, audit: made, sessions: 1, created: 1},
	}
}

func killedAfterStart(b *bundle, l *Link) { b.start(l) }

func killedAfterStripe(b *bundle, l *Link) {
	b.t.Helper()
	if _, err := b.stripe.CreateSession(b.t.Context(), l, b.start(l)); err != nil {
		b.t.Fatal(err)
	}
}

func killedAfterOutcome(b *bundle, l *Link) {
	b.t.Helper()
	click := b.start(l)
	session, err := b.stripe.CreateSession(b.t.Context(), l, click)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.store.EndClick(b.t.Context(), l, click, session, nil); err != nil {
		b.t.Fatal(err)
	}
}

func noDetail(*Link) map[string]any { return nil }

func (b *bundle) start(l *Link) uuid.UUID {
	b.t.Helper()
	click := newClickID()
	if _, err := b.store.StartClick(b.t.Context(), l.ID, l.KeyID, click, noDetail, nil); err != nil {
		b.t.Fatal(err)
	}
	return click
}

// The crash table: click.started's commit, the call of Stripe and the outcome's commit, each
// failed, failed but taken effect, and the process killed right after it. Then the fault is
// lifted: the sweeper runs, a click works, and everything adds up. All in one database, one after
// the other: what one case leaves behind is in the books of the next.
func TestCrashTable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range crashes() {
		t.Run(c.about, func(t *testing.T) {
			defer func(outer testing.TB) { b.t = outer }(b.t)
			b.t = t
			c.run(t, b)
		})
	}
}

func (c crash) run(t *testing.T, b *bundle) {
	before := len(b.sim.Sessions())
	l := b.link(maxSessions(2))
	b.commits.Script(c.commits...)
	b.sim.Script(c.faults...)
	if c.killed != nil {
		c.killed(b, l)
	} else if r := b.post(l); r.status != c.status {
		t.Errorf("answered %d, want %d", r.status, c.status)
	}
	b.sweep(c.swept)
	if got := b.kinds(l); got != c.audit {
		t.Errorf("audit %q, want %q", got, c.audit)
	}
	if c.swept > 0 {
		b.wantCode(l, CodeInterrupted)
	}
	made := len(b.sim.Sessions()) - before
	if now := b.reload(l); now.SessionsCreated != c.created || now.SessionsReserved != 0 || made != c.sessions {
		t.Errorf("created %d, reserved %d, at Stripe %d; want %d, 0, %d", now.SessionsCreated, now.SessionsReserved, made, c.created, c.sessions)
	}
	b.checkBooks()
	b.post(l).want(t, 303, "")
	b.sweep(0)
	b.checkBooks()
}

// GET's one write, failed and failed but taken effect: the visitor tries again, the audit is whole.
func TestCrashOfOpened(t *testing.T) {
	t.Parallel()
	for fate, want := range map[fate]string{failed: "link.opened", failedButTook: "link.opened link.opened"} {
		b := setup(t)
		l := b.link(nil)
		b.commits.Script(fate)
		b.get(l).want(t, 503, pageTryAgain)
		b.get(l).want(t, 200, pageConfirm)
		if got := b.kinds(l); got != want {
			t.Errorf("audit %q, want %q", got, want)
		}
		b.checkBooks()
	}
}

// EndClick may be called again after an error that leaves open whether it took effect.
func TestEndClickTwice(t *testing.T) {
	t.Parallel()
	b := setup(t)
	refusal := &SessionError{Code: CodeCustomerGone, RequestID: "req_1", Status: 400}
	for outcome, cause := range map[string]*SessionError{"click.started session.created": nil, "click.started session.failed": refusal} {
		l := b.link(nil)
		click := b.start(l)
		for i := range 3 {
			if err := b.store.EndClick(t.Context(), l, click, Session{ID: "bps_1"}, cause); err != nil {
				t.Errorf("call %d: %v", i+1, err)
			}
		}
		if got := b.kinds(l); got != outcome {
			t.Errorf("audit %q, want %q", got, outcome)
		}
	}
	if n := b.number(`SELECT sum(sessions_created + 10 * sessions_reserved) FROM links`); n != 1 {
		t.Errorf("counters %d", n)
	}
}

// An outcome that comes after the sweeper's adds nothing, and the visitor gets no session.
func TestSweptClickEndsLate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	click := b.start(l)
	b.sweep(1)
	for _, cause := range []*SessionError{nil, {Code: CodeUnavailable}} {
		if err := b.store.EndClick(t.Context(), l, click, Session{ID: "bps_1"}, cause); !errors.Is(err, ErrSwept) {
			t.Errorf("%v, want ErrSwept", err)
		}
	}
	if got := b.kinds(l); got != "click.started session.failed" {
		t.Errorf("audit %q", got)
	}
	b.checkBooks()
	b.post(l).want(t, 303, "") // its use was given back
}

// A click that is swept while Stripe is asked gets no session: its outcome is written.
func TestSweptWhileStripeIsAsked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	var once sync.Once
	b.onStripe = func(*http.Request) {
		once.Do(func() {
			b.clock.advance(time.Minute)
			if n, err := b.store.Sweep(context.Background()); n != 1 || err != nil {
				t.Errorf("swept %d (%v)", n, err)
			}
		})
	}
	if r := b.post(l); r.status != 503 || r.header.Get("Location") != "" {
		t.Errorf("%d, Location %q", r.status, r.header.Get("Location"))
	}
	b.wantCode(l, CodeInterrupted)
	b.checkBooks()
	b.post(l).want(t, 303, "")
}

// Sweep takes what is old enough, 500 at a time, and leaves the rest alone.
func TestSweepBounds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	for range 2 { // as if 501 clicks had been left open, of the two links
		l = b.link(nil)
		b.start(l)
	}
	_, err := b.owner.Exec(t.Context(), `WITH c AS (INSERT INTO clicks (id, link_id, started_at, open_until)
			SELECT gen_random_uuid(), $1, started_at, open_until FROM clicks, generate_series(1, 499) WHERE link_id = $1 RETURNING id, link_id, started_at),
		a AS (INSERT INTO audit_events (id, at, kind, link_id, click_id) SELECT gen_random_uuid(), started_at, 'click.started', link_id, id FROM c)
		UPDATE links SET sessions_reserved = 500 WHERE id = $1`, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	b.clock.advance(clickLife - time.Microsecond)
	young := b.start(b.link(nil))
	if n, err := b.store.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("a moment before their time: %d, %v", n, err)
	}
	b.clock.advance(time.Microsecond)
	b.sweepNow(500, 1, 0)
	if n := b.number(`SELECT count(*) FROM clicks WHERE outcome IS NULL AND id = $1`, young); n != 1 {
		t.Error("a young click was swept")
	}
	b.sweep(1)
	b.checkBooks()
}

// Sweep locks links in the order in which Revoke does, or the two could wait for each other.
func TestSweepLocksLinksInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var first *Link // by its id; the last in the table
	for i := range 20 {
		first = b.link(func(l *Link) { l.ID[0] = byte(200 - i) })
		b.start(first)
	}
	b.clock.advance(time.Minute)
	release := b.hold(`SELECT FROM links WHERE id = $1`, first.ID)
	swept := make(chan error)
	go func() { _, err := b.store.Sweep(t.Context()); swept <- err }()
	for b.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 0 {
		runtime.Gosched()
	}
	if _, err := b.owner.Exec(t.Context(), `SELECT FROM links WHERE id <> $1 FOR UPDATE NOWAIT`, first.ID); err != nil {
		t.Errorf("while it waits for the first link, it holds another: %v", err)
	}
	release()
	if err := <-swept; err != nil {
		t.Error(err)
	}
	b.checkBooks()
}

func (b *bundle) sweepNow(want ...int) {
	b.t.Helper()
	for _, want := range want {
		if n, err := b.store.Sweep(b.t.Context()); n != want || err != nil {
			b.t.Errorf("swept %d (%v), want %d", n, err, want)
		}
	}
}

// Sweeps, ends and revocations of the same links at once neither fail nor count twice.
func TestSweepsEndsAndRevocationsAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	type open struct {
		link  *Link
		click uuid.UUID
	}
	var clicks []open
	for range 90 {
		l := b.link(func(l *Link) { l.Campaign = "c" })
		clicks = append(clicks, open{l, b.start(l)})
	}
	b.clock.advance(time.Minute)
	errs := make(chan error)
	n := 0
	do := func(f func() error) { n++; go func() { errs <- f() }() }
	for range 3 {
		do(func() error { _, err := b.store.Sweep(t.Context()); return err })
		do(func() error {
			_, err := b.store.Revoke(t.Context(), Revocation{Campaign: "c", By: "jo"})
			return err
		})
	}
	for _, c := range clicks {
		do(func() error {
			err := b.store.EndClick(t.Context(), c.link, c.click, Session{ID: "bps_1"}, nil)
			if errors.Is(err, ErrSwept) {
				return nil
			}
			return err
		})
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	b.sweepNow(0)
	if n := b.number(`SELECT sum(sessions_reserved) FROM links`); n != 0 {
		t.Errorf("%d uses are still reserved", n)
	}
	if n := b.number(`SELECT count(*) FROM audit_events WHERE kind IN ('session.created', 'session.failed')`); n != len(clicks) {
		t.Errorf("%d outcomes of %d clicks", n, len(clicks))
	}
}

// Sweep's own commit, failed and failed but taken effect: it counts nothing that may not be, and
// the next sweep finds what is left.
func TestCrashOfSweep(t *testing.T) {
	t.Parallel()
	for fate, left := range map[fate]int{failed: 1, failedButTook: 0} {
		b := setup(t)
		b.start(b.link(nil))
		b.clock.advance(time.Minute)
		b.commits.Script(fate)
		if n, err := b.store.Sweep(t.Context()); n != 0 || err == nil {
			t.Errorf("%d, %v", n, err)
		}
		b.sweepNow(left)
		b.checkBooks()
	}
}

// Two that served the same click end it at once, one with a session and one without: it is
// counted once, as made, and the other learns that it came too late.
func TestEndClickBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	click := b.start(l)
	ends := make([]*clickEnd, 4)
	for i := range ends {
		outcome, kind := "failed", SessionFailed
		if i > 1 {
			outcome, kind = "created", SessionCreated
		}
		ends[i] = &clickEnd{click: click, link: l, outcome: outcome, event: AuditEvent{Kind: kind, LinkID: l.ID, RequestID: l.RequestID, ClickID: click}}
	}
	if err := b.store.endClicks(t.Context(), ends); err != nil {
		t.Fatal(err)
	}
	for i, e := range ends {
		if e.ended != "created" {
			t.Errorf("%d: ended %q", i, e.ended)
		}
	}
	if got := b.kinds(l); got != "click.started session.created" {
		t.Errorf("audit %q", got)
	}
	if n := b.number(`SELECT sessions_created + 10 * sessions_reserved FROM links`); n != 1 {
		t.Errorf("counters %d", n)
	}
}

// While Stripe works on a call of the same click, its outcome is not known: whoever gets the 409
// writes none, whether it began the click or joined it, and comes back for the same one.
func TestConflictIsNoOutcome(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(customer("cus_409"))
	click := b.start(l)
	joined := b.post(l)
	back, _ := joined.place(t)
	for _, r := range []reply{joined, b.do("GET", back)} {
		r.want(t, 503, pageTryAgain)
		place, _ := r.place(t)
		_, own, _ := strings.Cut(place, "/wait/")
		if got, _, err := b.keys.VerifyPlace(own, l.KeyID, l.ID, b.clock.now()); err != nil || got != click {
			t.Errorf("the page comes back for click %s (%v), want %s", got, err, click)
		}
	}
	if got := b.kinds(l); got != "click.started click.denied" {
		t.Errorf("audit %q", got)
	}
	fresh := b.link(customer("cus_409"))
	b.post(fresh).want(t, 503, pageTryAgain)
	if got := b.kinds(fresh); got != "click.started" {
		t.Errorf("audit %q", got)
	}
	b.sweep(2)
	b.checkBooks()
}

// A failure of a click whose session another process got meanwhile changes nothing, and begins no
// second click.
func TestServedByAnotherProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	click := b.start(l)
	session, err := b.stripe.CreateSession(t.Context(), l, click)
	if err == nil {
		err = b.store.EndClick(t.Context(), l, click, session, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := b.store.EndClick(t.Context(), l, click, Session{}, &SessionError{Code: CodeTimeout}); !errors.Is(err, ErrServed) {
		t.Errorf("%v, want ErrServed", err)
	}
	fails := *l
	fails.Session = []byte("?")
	a := b.click.serve(t.Context(), &visit{id: l.ID, keyID: l.KeyID, link: &fails, token: b.token(l)}, Click{ID: click})
	if got, _, err := b.keys.VerifyPlace(a.place, l.KeyID, l.ID, b.clock.now()); a.page != pageTryAgain || err != nil || got != click {
		t.Errorf("page %v for click %s (%v), want a return for %s", a.page, got, err, click)
	}
	back := b.do("GET", "/l/"+b.token(l)+"/wait/"+a.place)
	back.want(t, 303, "")
	if got := back.header.Get("Location"); got != session.URL {
		t.Error("the return leads to another session")
	}
	if got := b.kinds(l); got != "click.started session.created click.denied" {
		t.Errorf("audit %q", got)
	}
}

// Somebody's forgotten transaction on one link holds up that link alone.
func TestALinkThatIsHeldHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	held, other := b.link(nil), b.link(nil)
	clicks := map[*Link]uuid.UUID{held: b.start(held), other: b.start(other)}
	release := b.hold(`SELECT FROM links WHERE id = $1`, held.ID)
	group := []*groupCall[*clickEnd]{}
	for l, click := range clicks {
		group = append(group, &groupCall[*clickEnd]{done: make(chan error, 1), item: &clickEnd{click: click, link: l, outcome: "failed",
			event: AuditEvent{Kind: SessionFailed, LinkID: l.ID, RequestID: l.RequestID, ClickID: click}}})
	}
	b.store.ends.serve(group)
	for _, call := range group {
		if err := <-call.done; (err != nil) != (call.item.link == held) {
			t.Errorf("the end of a click, of the held link %t: %v", call.item.link == held, err)
		}
	}
	b.post(other).want(t, 303, "")
	release()
	b.post(held).want(t, 303, "")
	b.checkBooks()
}
