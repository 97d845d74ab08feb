package portal

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"latchkey/internal/stripesim"
)

// busy makes the line of an account so long that whoever comes now, or came last, has a turn in d.
func (b *bundle) busy(account string, d time.Duration) {
	b.t.Helper()
	n := int64(d.Seconds() * b.budget.rate)
	_, err := b.owner.Exec(b.t.Context(), `INSERT INTO stripe_budget AS b (account, slot_at, head) VALUES ($1, clock_timestamp(), 1 - $2::bigint)
		ON CONFLICT (account) DO UPDATE SET slot_at = clock_timestamp(), head = b.last_ticket + 1 - $2`, account, n)
	if err != nil {
		b.t.Fatal(err)
	}
}

// spareForAnHour gives the server a client whose breaker, once open, stays so for an hour.
func (b *bundle) spareForAnHour() {
	p := quick
	p.spared = time.Hour
	b.stripe = b.newStripe(StripeConfig{Key: stripesim.TestKey}, p)
	b.click.Stripe = b.stripe
}

// place reads the URL to which a page comes back by itself.
func (r reply) place(t testing.TB) (path string, seconds int) {
	t.Helper()
	after, path, ok := strings.Cut(r.header.Get("Refresh"), "; url=")
	seconds, err := strconv.Atoi(after)
	if !ok || err != nil || !strings.HasPrefix(path, "/l/") || !strings.Contains(path, "/wait/") {
		t.Fatalf("status %d, Refresh %q, want seconds and a place", r.status, r.header.Get("Refresh"))
	}
	return path, seconds
}

func TestWaitingPage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	b.busy("", time.Hour)
	r := b.post(l)
	r.want(t, 200, pageWaiting)
	r.wantHeaders(t)
	place, seconds := r.place(t)
	if seconds < 8 || seconds > 10 {
		t.Errorf("comes back after %d s", seconds)
	}
	if n := b.number(`SELECT count(*) FROM clicks WHERE outcome IS NULL AND ticket = 1 AND link_id = $1`, l.ID); n != 1 || b.kinds(l) != "click.started" {
		t.Errorf("%d clicks in line; audit %s", n, b.kinds(l))
	}

	// Nobody loses their place: by reloading the page, by pressing again, or by opening the link.
	b.do("GET", place).want(t, 200, pageWaiting)
	again := b.post(l)
	again.want(t, 200, pageWaiting)
	b.get(l).want(t, 200, pageConfirm)
	if n := b.number(`SELECT last_ticket FROM stripe_budget`); n != 1 || len(b.sim.Calls()) != 0 {
		t.Errorf("%d tickets, %d calls of Stripe", n, len(b.sim.Calls()))
	}

	// Machines that open the place's URL get nothing.
	b.busy("", 0)
	b.do("HEAD", place).want(t, 200, "")
	b.do("GET", place, "Sec-Purpose", "prefetch").want(t, 200, pageConfirm)
	if len(b.sim.Calls()) != 0 {
		t.Error("Stripe was called")
	}

	b.do("GET", place).want(t, 303, "")
	if got := b.kinds(l); got != "click.started click.denied link.opened link.opened link.opened session.created" {
		t.Errorf("audit %s", got)
	}
	b.checkBooks()
	// A place serves once: the history of the browser holds it.
	b.clock.advance(replayed)
	b.do("GET", place).want(t, 410, pageUsedUp)
	secondPlace, _ := again.place(t)
	b.do("GET", secondPlace).want(t, 410, pageUsedUp)
}

func TestPlacesThatAreNone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, other := b.link(nil), b.link(nil)
	b.busy("", time.Hour)
	place, _ := b.post(l).place(t)
	b.busy("", 0)
	_, own, _ := strings.Cut(place, "/wait/")
	for about, path := range map[string]string{
		"another link's": "/l/" + b.token(other) + "/wait/" + own,
		"cut off":        place[:len(place)-1],
		"longer":         place + "A",
		"changed":        place[:len(place)-1] + string('A'+('B'-place[len(place)-1])&1),
		"a token":        "/l/" + b.token(l) + "/wait/" + b.token(l),
		"empty":          "/l/" + b.token(l) + "/wait/",
	} {
		if r := b.do("GET", path); r.status != 200 || r.header.Get("Refresh") != "" {
			t.Errorf("%s: %d", about, r.status)
		}
	}
	b.clock.advance(placeLife)
	b.do("GET", place).want(t, 410, pageExpired) // the link's life is an hour too
	if len(b.sim.Calls()) != 0 {
		t.Error("Stripe was called")
	}
}

// Who waits in line is served although the link has expired meanwhile; who is revoked is not.
func TestLinksThatEndInLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	short := b.link(func(l *Link) { l.ExpiresAt = l.CreatedAt.Add(time.Minute) })
	revoked := b.link(nil)
	b.busy("", time.Hour)
	shortPlace, _ := b.post(short).place(t)
	revokedPlace, _ := b.post(revoked).place(t)
	if _, err := b.store.Revoke(t.Context(), Revocation{LinkID: revoked.ID.String(), By: "jo"}); err != nil {
		t.Fatal(err)
	}
	b.clock.advance(2 * time.Minute)
	b.busy("", 0)
	b.do("GET", shortPlace).want(t, 303, "")
	b.do("GET", revokedPlace).want(t, 410, pageRevoked)
	b.clock.advance(2 * time.Hour)
	b.sweep(1)
	b.wantCode(revoked, CodeAbandoned)
	b.checkBooks()
}

// A person who does not come back loses the place, and the use that it held.
func TestAbandonedPlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	b.busy("", time.Minute)
	place, _ := b.post(l).place(t)
	b.clock.advance(time.Minute + noShow - time.Second)
	b.sweepNow(0)
	b.clock.advance(2 * time.Second)
	b.sweepNow(1)
	b.wantCode(l, CodeAbandoned)
	b.checkBooks()
	b.do("GET", place).want(t, 200, pageConfirm)
	b.busy("", 0)
	b.post(l).want(t, 303, "")
}

// Each account has a line of its own.
func TestBudgetIsPerAccount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.busy("acct_busy", time.Hour)
	busy := b.link(func(l *Link) { l.StripeAccount = "acct_busy" })
	free := b.link(func(l *Link) { l.StripeAccount = "acct_free" })
	b.post(busy).want(t, 200, pageWaiting)
	b.post(free).want(t, 303, "")
	b.post(b.link(nil)).want(t, 303, "")
}

// Somebody's forgotten transaction on one click does not hold up the line.
func TestBudgetWaitsForNoClick(t *testing.T) {
	t.Parallel()
	b := setup(t)
	held := b.link(nil)
	click := b.start(held)
	release := b.hold(`SELECT FROM clicks WHERE id = $1`, click)
	b.busy("", time.Hour)
	if left, err := b.budget.Wait(t.Context(), "", &Click{ID: click}); left < time.Minute || err != nil {
		t.Errorf("%s, %v", left, err)
	}
	release()
	if n := b.number(`SELECT count(*) FROM clicks WHERE ticket IS NOT NULL`); n != 0 {
		t.Error("the held click has a ticket")
	}
}

// Two processes that ask at the same time are given different slots, at the rate of both together.
func TestBudgetOfTwoProcesses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const each, rate = 50, 100
	budgets := []*Budget{NewBudget(b.pool, rate, b.clock.now, nil), NewBudget(b.pool, rate, b.clock.now, nil)}
	b.busy("", 0)
	var before, after time.Time
	slotAt := func(at *time.Time) {
		if err := b.owner.QueryRow(t.Context(), `SELECT slot_at FROM stripe_budget WHERE account = ''`).Scan(at); err != nil {
			t.Fatal(err)
		}
	}
	slotAt(&before)
	errs := make(chan error)
	for i := range 2 * each {
		click := b.start(b.link(nil))
		go func() {
			left, err := budgets[i%2].Wait(t.Context(), "", &Click{ID: click})
			if left > 0 {
				t.Errorf("%s left of a line of one second", left)
			}
			errs <- err
		}()
	}
	for range 2 * each {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	slotAt(&after)
	if d := after.Sub(before); d < 2*each*time.Second/rate {
		t.Errorf("%d slots at %d a second took only %s", 2*each, rate, d)
	}
	if n := b.number(`SELECT last_ticket FROM stripe_budget`); n != 2*each {
		t.Errorf("%d tickets", n)
	}
}

// A 429 costs its person a moment and slows down everybody, whatever replica they are on.
func TestRateLimitLowersThePace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.sim.Script(stripesim.Fault{Kind: stripesim.FaultStatus, Status: 429, Reason: "endpoint-rate"})
	l := b.link(func(l *Link) { l.StripeAccount = "acct_1" })
	b.post(l).want(t, 303, "")
	if n := b.number(`SELECT count(*) FROM stripe_budget WHERE account = 'acct_1' AND lowered_to = 500`); n != 1 {
		t.Error("the pace was not lowered")
	}
	if n := b.number(`SELECT count(*) FROM stripe_budget WHERE account = $1 AND lowered_to = 200`, readsLine); n != 1 {
		t.Error("reads go on at their pace")
	}
	if n := testutil.ToFloat64(b.budget.lowered); n != 1 {
		t.Errorf("one 429 counts %v times", n)
	}
	if log := b.log.String(); !strings.Contains(log, "lower STRIPE_RATE") {
		t.Errorf("log:\n%s", log)
	}
	b.checkBooks()
}

// Retries take slots too: where there is none soon, the click fails instead of calling Stripe.
func TestRetriesKeepToTheBudget(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.onStripe = func(*http.Request) { // Stripe's other calls took the next seconds' slots
		if _, err := b.owner.Exec(context.Background(), `UPDATE stripe_budget SET slot_at = clock_timestamp() + interval '2.9 seconds'`); err != nil {
			t.Error(err)
		}
	}
	l := b.link(customer("cus_500"))
	b.post(l).want(t, 503, pageTryAgain)
	b.wantCode(l, CodeUnavailable)
	if n := len(b.sim.Calls()); n != 1 {
		t.Errorf("%d calls of Stripe", n)
	}
	b.checkBooks()
}

// While Stripe is down the breaker spares it: no click is begun, the page comes back by itself,
// and once Stripe answers it is served as if it had been pressed then.
func TestStripeIsSpared(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := quick
	p.failing, p.spared = 2, time.Hour // the 500, and its replay
	b.stripe = b.newStripe(StripeConfig{Key: stripesim.TestKey}, p)
	b.click.Stripe = b.stripe
	down := b.link(customer("cus_500"))
	r := b.post(down)
	r.want(t, 503, pageTryAgain)
	failed, _ := r.place(t)
	calls := len(b.sim.Calls())

	l := b.link(maxSessions(1))
	r = b.post(l)
	r.want(t, 503, pageTryAgain)
	place, seconds := r.place(t)
	if seconds < 5 || seconds > 15 || r.header.Get("Retry-After") != strconv.Itoa(seconds) {
		t.Errorf("comes back after %d s, Retry-After %s", seconds, r.header.Get("Retry-After"))
	}
	b.do("GET", place).want(t, 503, pageTryAgain)
	if rows := b.audit(l); len(rows) != 1 || rows[0].Kind != ClickDenied || rows[0].Detail["reason"] != "spared" || len(b.sim.Calls()) != calls {
		t.Errorf("audit %+v, %d calls of Stripe", rows, len(b.sim.Calls())-calls)
	}

	b.stripe.breaker.HalfOpen() // somebody else finds out whether Stripe answers again
	b.do("GET", place).want(t, 503, pageTryAgain)
	if n := b.number(`SELECT count(*) FROM clicks WHERE link_id = $1`, l.ID); n != 0 {
		t.Errorf("%d clicks", n)
	}
	b.stripe.breaker.Close()
	b.do("GET", place).want(t, 303, "")
	if got := b.kinds(l); got != "click.denied click.started session.created" {
		t.Errorf("audit %s", got)
	}
	b.clock.advance(replayed)
	b.do("GET", place).want(t, 410, pageUsedUp)
	b.do("GET", failed).want(t, 503, pageTryAgain) // a new attempt, under a key of its own
	if got := b.kinds(down); got != "click.started session.failed click.started session.failed" {
		t.Errorf("audit %s", got)
	}
	if log := b.log.String(); !strings.Contains(log, "Stripe does not answer") || !strings.Contains(log, "Stripe answers again") {
		t.Errorf("log:\n%s", log)
	}
	b.checkBooks()
}

// A click that is begun when the breaker opens stays open, in its place: Stripe was not asked, so
// nothing failed.
func TestSparedAfterTheClickBegan(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.spareForAnHour()
	l := b.link(maxSessions(1))
	b.busy("", time.Minute)
	place, _ := b.post(l).place(t)
	click, err := b.store.OpenClick(t.Context(), l)
	if err != nil || click.Ticket == 0 {
		t.Fatalf("%+v, %v", click, err)
	}
	b.busy("", 0)
	b.stripe.breaker.HalfOpen()
	b.stripe.breaker.TryAcquirePermit() // somebody else is trying, since this one looked
	a := b.click.serve(t.Context(), &visit{id: l.ID, keyID: l.KeyID, link: l, token: b.token(l)}, click)
	if a.page != pageTryAgain {
		t.Errorf("page %v", a.page)
	}
	b.do("GET", place).want(t, 503, pageTryAgain)
	if kept, err := b.store.OpenClick(t.Context(), l); err != nil || kept.ID != click.ID || kept.Ticket != click.Ticket || kept.Asked || b.kinds(l) != "click.started" {
		t.Errorf("the click is %+v (%v), want %+v; audit %s", kept, err, click, b.kinds(l))
	}
	b.stripe.breaker.Close()
	b.do("GET", place).want(t, 303, "")
	b.checkBooks()
}

// A tab that is forgotten while Stripe fails asks for an hour, not for ever.
func TestTryingAgainEnds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(func(l *Link) { customer("cus_503")(l); l.ExpiresAt = l.CreatedAt.Add(24 * time.Hour) })
	place, _ := b.post(l).place(t)
	for range 3 {
		b.clock.advance(placeLife / 4)
		r := b.do("GET", place)
		r.want(t, 503, pageTryAgain)
		place, _ = r.place(t)
	}
	b.clock.advance(placeLife / 4)
	calls := len(b.sim.Calls())
	b.do("GET", place).want(t, 200, pageConfirm)
	if n := len(b.sim.Calls()); n != calls {
		t.Errorf("%d more calls of Stripe", n-calls)
	}
	b.checkBooks()
}

// Whoever waits in line and meets a limit comes back by themselves, into the same place.
func TestLimitInLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	b.busy("", time.Hour)
	place, _ := b.post(l).place(t)
	for range lookBurst {
		b.click.Limits.Visit(netip.MustParseAddr("203.0.113.9"), l.ID, "GET", b.clock.now())
	}
	r := b.do("GET", place)
	r.want(t, 429, pageTooMany)
	after, _ := strconv.Atoi(r.header.Get("Retry-After"))
	if refresh, err := strconv.Atoi(r.header.Get("Refresh")); err != nil || after < 1 || refresh < after {
		t.Errorf("Refresh %q, Retry-After %q", r.header.Get("Refresh"), r.header.Get("Retry-After"))
	}
	if r := b.get(l); r.status != 429 || r.header.Get("Refresh") != "" {
		t.Errorf("another look: %d, Refresh %q", r.status, r.header.Get("Refresh"))
	}
}

// The database is away when the button is pressed: the page comes back by itself, and its click
// begins once, however often it does.
func TestReturnAfterTheDatabaseWasAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	b.commits.Script(failed)
	place, _ := b.post(l).place(t)
	if got := b.kinds(l); got != "" {
		t.Errorf("audit %s", got)
	}
	b.do("GET", place).want(t, 303, "")
	b.clock.advance(replayed)
	b.do("GET", place).want(t, 200, pageConfirm)
	if got := b.kinds(l); got != "click.started session.created link.opened" {
		t.Errorf("audit %s", got)
	}
	b.checkBooks()
}

// One whose start took effect is found open, and served under its own key.
func TestReturnAfterALostStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, commits := range [][]fate{{failedButTook}, {fine, failed}, {fine, failedButTook}, {fine, fine, failed, failed, failed}} {
		l := b.link(maxSessions(1))
		before := len(b.sim.Sessions())
		b.commits.Script(commits...)
		place, _ := b.post(l).place(t)
		b.do("GET", place).want(t, 303, "")
		if got, made := b.kinds(l), len(b.sim.Sessions())-before; got != "click.started session.created" || made != 1 {
			t.Errorf("%v: audit %s, %d sessions", commits, got, made)
		}
		b.checkBooks()
	}
}

// A panic about one item fails nobody but it.
func TestGroupServesApartWhatPanics(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	calls := make([]*groupCall[*linkOpen], 3)
	for i := range calls {
		open := &linkOpen{id: l.ID, keyID: l.KeyID, look: noDetail}
		if i == 1 {
			open.look = func(*Link) map[string]any { panic("of the test") }
		}
		calls[i] = &groupCall[*linkOpen]{open, make(chan error, 1)}
	}
	b.store.opens.serve(calls)
	for i, c := range calls {
		if err := <-c.done; errors.Is(err, errPanicked) != (i == 1) || i != 1 && err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	if n := b.number(`SELECT count(*) FROM audit_events`); n != 2 {
		t.Errorf("%d rows", n)
	}
}

// Rows of one group that the database refuses don't take the others with them.
func TestGroupServesApartWhatTheDatabaseRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	held, release := make(chan struct{}), make(chan struct{})
	b.store.Publish = func(ctx context.Context, tx *Tx, rows ...IDRange) error {
		held <- struct{}{}
		<-release
		return publish(ctx, tx, rows...)
	}
	errs := make(chan error)
	open := func(detail string) {
		go func() {
			_, err := b.store.Open(t.Context(), l.ID, l.KeyID, func(*Link) map[string]any { return map[string]any{"x": detail} }, nil)
			errs <- err
		}()
	}
	open("first") // keeps the worker busy, so the next rows wait for each other
	<-held
	for _, detail := range []string{"good", "bad \x00", "good"} {
		open(detail)
	}
	for {
		b.store.opens.mu.Lock()
		n := len(b.store.opens.waiting)
		b.store.opens.mu.Unlock()
		if n == 3 {
			break
		}
	}
	b.store.Publish = publish
	close(release)
	refused := 0
	for range 4 {
		if err := <-errs; RefusesValue(err) {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if n := b.number(`SELECT count(*) FROM audit_events`); refused != 1 || n != 3 {
		t.Errorf("%d refused, %d rows", refused, n)
	}
}
