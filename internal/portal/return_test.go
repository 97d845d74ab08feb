package portal

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
)

// replica is another process on the same database.
func (b *bundle) replica() *httptest.Server {
	srv := httptest.NewServer(b.server().Init(nil))
	b.t.Cleanup(srv.Close)
	return srv
}

func (b *bundle) on(srv *httptest.Server, method, path string) reply {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, srv.URL+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.send(r)
}

// crowd puts people behind everybody who is in line.
func (b *bundle) crowd(people int) {
	b.t.Helper()
	if _, err := b.owner.Exec(b.t.Context(), `UPDATE stripe_budget SET last_ticket = last_ticket + $1, slot_at = clock_timestamp()`, people); err != nil {
		b.t.Fatal(err)
	}
}

// wantLive fails unless a redirect leads to a portal that opens.
func (b *bundle) wantLive(r reply) {
	b.t.Helper()
	r.want(b.t, 303, "")
	rec := httptest.NewRecorder()
	b.sim.ServeHTTP(rec, httptest.NewRequest("GET", r.header.Get("Location"), nil))
	if rec.Code != 200 {
		b.t.Errorf("the portal answers %d", rec.Code)
	}
}

// Whoever reloads at the front of the line, on any replica, keeps the place, and gets the session
// that the dropped answer had.
func TestReloadAtTheFrontOfTheLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := b.replica()
	l := b.link(maxSessions(1))
	b.busy("", time.Hour)
	place, _ := b.post(l).place(t)
	b.busy("", 0)
	asked, release := make(chan struct{}), make(chan struct{})
	var isAsked atomic.Bool
	b.onStripe = func(*http.Request) {
		if isAsked.CompareAndSwap(false, true) {
			close(asked)
			<-release
		}
	}
	first := make(chan reply)
	go func() { first <- b.do("GET", place) }()
	<-asked
	b.crowd(60_000)
	reloaded := b.on(other, "GET", place) // while the first call is still on its way
	close(release)
	dropped := <-first
	b.wantLive(reloaded)
	if dropped.status == 303 && dropped.header.Get("Location") != reloaded.header.Get("Location") {
		t.Error("two sessions were given out")
	}
	if n := len(b.sim.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
	b.wantLive(b.do("GET", place)) // once more, at once
	b.clock.advance(replayed)
	b.do("GET", place).want(t, 410, pageUsedUp)
	b.checkBooks()
}

// A slot that came to nothing, because its answer was lost or its process stops, leaves the place.
func TestSlotThatCameToNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	b.busy("", time.Hour)
	place, _ := b.post(l).place(t)
	b.busy("", 0)
	b.commits.Script(failedButTook)
	r := b.do("GET", place)
	r.want(t, 503, pageTryAgain)
	b.crowd(60_000)
	place, _ = r.place(t)
	b.wantLive(b.do("GET", place))
	b.checkBooks()
}

// A second tap, after the first one's answer was already on its way, spends nothing and leads to the
// same session.
func TestSecondTap(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	first, second := b.post(l), b.post(l)
	b.wantLive(second)
	if first.header.Get("Location") != second.header.Get("Location") || len(b.sim.Sessions()) != 1 {
		t.Error("the second tap got another session")
	}
	if got := b.kinds(l); got != "click.started session.created click.denied" {
		t.Errorf("audit %s", got)
	}
	if row := b.audit(l)[2]; row.Detail["reason"] != "shared" || row.ClickID != b.audit(l)[0].ClickID {
		t.Errorf("the second tap: %+v", row)
	}
	b.clock.advance(replayed)
	b.post(l).want(t, 410, pageUsedUp)
	b.checkBooks()
}

// A session that Stripe made and nobody could write down is not given out once it can have died:
// neither after an outage, nor after a line, nor where no sweeper runs.
func TestDeadSessionsAreNotGivenOut(t *testing.T) {
	t.Parallel()
	for about, wait := range map[string]func(b *bundle, place string) string{
		"an outage": func(b *bundle, place string) string {
			b.stripe.breaker.Open()
			place = b.comeBackFor(7*time.Minute, place)
			b.stripe.breaker.Close()
			return place
		},
		"a line": func(b *bundle, place string) string {
			b.busy("", 20*time.Minute)
			place = b.comeBackFor(7*time.Minute, place)
			b.busy("", 0)
			return place
		},
		"no sweeper": func(b *bundle, place string) string {
			b.clock.advance(10 * time.Minute)
			return place
		},
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.spareForAnHour()
			l := b.link(func(l *Link) { l.ExpiresAt, l.MaxSessions = l.CreatedAt.Add(24*time.Hour), 1 })
			b.commits.Script(fine, fine, failed, failed, failed)
			r := b.post(l)
			r.want(t, 503, pageTryAgain)
			place, _ := r.place(t)
			place = wait(b, place)
			b.wantLive(b.do("GET", place))
			if n := len(b.sim.Sessions()); n != 2 {
				t.Errorf("%d sessions at Stripe, want the lost one and that of the return", n)
			}
			if got := b.reload(l); got.SessionsCreated != 1 || got.SessionsReserved != 0 {
				t.Errorf("%d uses", got.SessionsCreated)
			}
			b.checkBooks()
		})
	}
}

// comeBackFor follows a page's returns for a time, beside the sweeper.
func (b *bundle) comeBackFor(d time.Duration, place string) string {
	b.t.Helper()
	for range d / (10 * time.Second) {
		b.clock.advance(10 * time.Second)
		r := b.do("GET", place)
		if r.status != 200 && r.status != 503 {
			b.t.Fatalf("a return is answered %d", r.status)
		}
		place, _ = r.place(b.t)
		if _, err := b.store.Sweep(b.t.Context()); err != nil {
			b.t.Fatal(err)
		}
	}
	return place
}

// A return to a click that has lost its worker begins another one, once.
func TestReturnAfterTheWorkerWasLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	place := "/l/" + b.token(l) + "/wait/" + b.keys.SignPlace(l.KeyID, l.ID, b.start(l), b.clock.now().Add(placeLife))
	b.sweep(1)
	b.wantLive(b.do("GET", place))
	b.clock.advance(replayed)
	b.do("GET", place).want(t, 200, pageConfirm)
	if got := b.kinds(l); got != "click.started session.failed click.started session.created link.opened" {
		t.Errorf("audit %s", got)
	}
	b.checkBooks()
}

// Whoever is told to come back because Stripe is away keeps a place that is further off, and leaves
// as somebody who left.
func TestSparedInLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.spareForAnHour()
	l, left := b.link(nil), b.link(nil)
	b.busy("", 10*time.Minute)
	place, _ := b.post(l).place(t)
	b.stripe.breaker.Open()
	place, _ = b.do("GET", place).place(t)
	b.clock.advance(50 * time.Second) // nine minutes before the turn
	if n, err := b.store.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	b.stripe.breaker.Close()
	b.do("GET", place).want(t, 200, pageWaiting)

	b.busy("", 0)
	b.stripe.breaker.HalfOpen()
	b.stripe.breaker.TryAcquirePermit()
	a := b.click.serve(t.Context(), &visit{id: left.ID, keyID: left.KeyID, link: left, token: b.token(left)}, Click{ID: b.start(left)})
	if a.page != pageTryAgain {
		t.Errorf("page %v", a.page)
	}
	b.clock.advance(20 * time.Minute)
	b.sweep(2)
	b.wantCode(left, CodeAbandoned)
	b.checkBooks()
}

// A 429 about one object slows down nobody else.
func TestOneCustomersLockSlowsNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.post(b.link(customer("cus_429lock"))).want(t, 503, pageTryAgain)
	if n := b.number(`SELECT count(*) FROM stripe_budget WHERE lowered_to IS NOT NULL`); n != 0 {
		t.Error("the pace was lowered")
	}
	b.post(b.link(customer("cus_429"))).want(t, 503, pageTryAgain)
	var lowered float64
	if err := b.owner.QueryRow(t.Context(), `SELECT lowered_to FROM stripe_budget WHERE account = $1`, "").Scan(&lowered); err != nil || lowered != b.budget.rate/2 {
		t.Errorf("one click lowered the pace to %v (%v), want half of %v", lowered, err, b.budget.rate)
	}
}

// Somebody who holds one account's row in the budget holds up that account alone.
func TestAHeldAccountHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.busy("acct_a", 0)
	b.busy("acct_b", 0)
	account := func(id string) func(*Link) { return func(l *Link) { l.StripeAccount = id } }
	release := b.hold(`SELECT FROM stripe_budget WHERE account = $1`, "acct_a")
	held := make(chan reply, 1)
	go func() { held <- b.post(b.link(account("acct_a"))) }()
	for b.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 0 && len(held) == 0 {
		runtime.Gosched()
	}
	b.post(b.link(account("acct_b"))).want(t, 303, "") // while the row is held still
	r := <-held
	release()
	r.want(t, 503, pageTryAgain)
	place, _ := r.place(t)
	b.wantLive(b.do("GET", place))
	b.checkBooks()
}

// After a pause in which nobody could ask, whoever holds a ticket and is still to come is called in
// order, ahead of newcomers.
func TestTicketsOutliveAPause(t *testing.T) {
	t.Parallel()
	b := setup(t)
	budget := NewBudget(b.pool, 1, b.clock.now, nil)
	ask := func(click Click) time.Duration {
		t.Helper()
		left, err := budget.Wait(t.Context(), "", &click)
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	if _, err := b.owner.Exec(t.Context(), `INSERT INTO stripe_budget (account, slot_at, last_ticket) VALUES ('', clock_timestamp(), 10)`); err != nil {
		t.Fatal(err)
	}
	var clicks []uuid.UUID
	for range 5 {
		click := b.start(b.link(nil))
		clicks = append(clicks, click)
		if left := ask(Click{ID: click}); left < 9*time.Second {
			t.Fatalf("%s left", left)
		}
	}
	// Nobody asks for a minute; those five are told to come back.
	if _, err := b.owner.Exec(t.Context(), `UPDATE stripe_budget SET slot_at = slot_at - interval '60 seconds'`); err != nil {
		t.Fatal(err)
	}
	b.clock.advance(time.Minute)
	for i, id := range clicks {
		if err := b.store.Keep(t.Context(), Click{ID: id, Ticket: int64(11 + i), Waited: true}, b.clock.now().Add(retryLatest)); err != nil {
			t.Fatal(err)
		}
	}
	if left := ask(Click{ID: b.start(b.link(nil))}); left < 4*time.Second {
		t.Errorf("a newcomer is told %s, ahead of who waited", left)
	}
	if left := ask(Click{ID: clicks[4], Ticket: 15, Waited: true}); left < 3*time.Second || left > 5*time.Second {
		t.Errorf("the last of those who waited is told %s", left)
	}
	if left := ask(Click{ID: clicks[0], Ticket: 11, Waited: true}); left != 0 {
		t.Errorf("the first of them is told %s", left)
	}
}

// Tokens that don't work get 429 beyond a number, with the words that help their visitor; valid links of
// the same address are served.
func TestForgedTokensWithoutEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range forgedBurst {
		b.do("GET", "/l/AQEBohMR").want(t, 404, pageNotFound)
	}
	r := b.do("GET", "/l/AQEBohMR")
	r.want(t, 429, pageTooManyForged)
	if r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	b.get(b.link(nil)).want(t, 200, pageConfirm)
}

// The same for a click that Stripe was spared of at first, and asked for at its return.
func TestDeadSessionAfterBeingSpared(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.spareForAnHour()
	l := b.link(nil)
	b.stripe.breaker.HalfOpen()
	b.stripe.breaker.TryAcquirePermit()
	a := b.click.serve(t.Context(), &visit{id: l.ID, keyID: l.KeyID, link: l, token: b.token(l)}, Click{ID: b.start(l)})
	b.stripe.breaker.Close()
	place := "/l/" + b.token(l) + "/wait/" + a.place
	b.commits.Script(fine, failed, failed, failed)
	r := b.do("GET", place)
	r.want(t, 503, pageTryAgain)
	place, _ = r.place(t)
	b.clock.advance(10 * time.Minute)
	b.wantLive(b.do("GET", place))
	if n := len(b.sim.Sessions()); n != 2 {
		t.Errorf("%d sessions at Stripe", n)
	}
	b.checkBooks()
}

// What one replica has written of a call is not undone by another one that was spared, and read the
// click before.
func TestKeepLeavesAnothersCall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.spareForAnHour()
	l := b.link(func(l *Link) { l.ExpiresAt, l.MaxSessions = l.CreatedAt.Add(24*time.Hour), 1 })
	b.busy("", time.Hour)
	place, _ := b.post(l).place(t)
	b.busy("", 0)
	stale, err := b.store.OpenClick(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	asks := stale
	if left, err := b.budget.Wait(t.Context(), "", &asks); left != 0 || err != nil {
		t.Fatal(left, err)
	}
	if _, err := b.stripe.CreateSession(t.Context(), l, stale.ID); err != nil { // and its process dies
		t.Fatal(err)
	}
	if err := b.store.Keep(t.Context(), stale, b.clock.now().Add(retryLatest)); err != nil {
		t.Fatal(err)
	}
	b.stripe.breaker.Open()
	place = b.comeBackFor(7*time.Minute, place)
	b.stripe.breaker.Close()
	b.wantLive(b.do("GET", place))
	b.checkBooks()
}

// A second tap on another replica that asks the line before the first one does costs nobody the place.
func TestTwoTapsInLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(func(l *Link) { l.ExpiresAt, l.MaxSessions = l.CreatedAt.Add(24*time.Hour), 1 })
	b.busy("", 10*time.Minute)
	first := Click{ID: b.start(l)}
	second, err := b.store.OpenClick(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	for _, click := range []*Click{&second, &first} {
		if left, err := b.budget.Wait(t.Context(), "", click); left < 9*time.Minute || err != nil {
			t.Fatal(left, err)
		}
	}
	place := "/l/" + b.token(l) + "/wait/" + b.keys.SignPlace(l.KeyID, l.ID, first.ID, b.clock.now().Add(placeLife))
	place = b.comeBackFor(5*time.Minute, place)
	b.busy("", 0)
	b.wantLive(b.do("GET", place))
	if got := b.kinds(l); got != "click.started session.created" {
		t.Errorf("audit %s", got)
	}
	b.checkBooks()
}

// A slot is not used where its click's row could not tell of it.
func TestNoSlotWithoutItsMark(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	b.busy("", time.Hour)
	b.post(l).want(t, 200, pageWaiting)
	b.busy("", 0)
	click, err := b.store.OpenClick(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	release := b.hold(`SELECT FROM clicks WHERE id = $1`, click.ID)
	held := click
	left, err := b.budget.Wait(t.Context(), "", &held)
	release()
	if left == 0 || err != nil {
		t.Errorf("%s, %v", left, err)
	}
	if left, err := b.budget.Wait(t.Context(), "", &click); left != 0 || err != nil || click.marked.IsZero() {
		t.Errorf("%s, %v, marked %s", left, err, click.marked)
	}
}

// A return to an overdue click whose row is held asks a few times, not without end.
func TestOverdueClickThatIsHeld(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	id := b.start(l)
	place := "/l/" + b.token(l) + "/wait/" + b.keys.SignPlace(l.KeyID, l.ID, id, b.clock.now().Add(placeLife))
	b.clock.advance(clickLife)
	release := b.hold(`SELECT FROM clicks WHERE id = $1`, id)
	b.do("GET", place).want(t, 503, pageTryAgain)
	release()
	b.wantLive(b.do("GET", place))
	b.checkBooks()
}
