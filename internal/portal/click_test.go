package portal

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

// securityHeaders are on every answer, whatever it is.
var securityHeaders = map[string]string{
	"Cache-Control":                "no-store",
	"Referrer-Policy":              "no-referrer",
	"X-Robots-Tag":                 "noindex, nofollow",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
}

func (r reply) wantHeaders(t *testing.T) {
	t.Helper()
	for name, want := range securityHeaders {
		if got := r.header.Get(name); got != want {
			t.Errorf("%d: %s: %q, want %q", r.status, name, got, want)
		}
	}
	if !strings.HasPrefix(r.header.Get("Content-Security-Policy"), "default-src 'none';") || r.header.Get("Set-Cookie") != "" {
		t.Errorf("%d: headers %v", r.status, r.header)
	}
}

func TestGetShowsAButton(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	r := b.get(l)
	r.want(t, 200, pageConfirm)
	r.wantHeaders(t)
	if !strings.Contains(r.body, `<form method="post" action="/l/`+b.token(l)+`">`) || !strings.Contains(r.body, "November 2, 2026, 10:00\u00a0AM\u00a0UTC") {
		t.Errorf("page:\n%s", r.body)
	}
	h := b.do("HEAD", "/l/"+b.token(l))
	h.wantHeaders(t)
	if h.status != 200 || h.body != "" || h.header.Get("Content-Length") != fmt.Sprint(len(r.body)) {
		t.Errorf("HEAD: %d, %q, %v", h.status, h.body, h.header)
	}
}

func TestPostRedirectsToAFreshSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	for i := range 2 {
		r := b.post(l)
		r.want(t, 303, "")
		r.wantHeaders(t)
		if made := b.sim.Sessions()[i]; r.header.Get("Location") != made.URL || r.body != "" || r.header.Get("Content-Type") != "" {
			t.Errorf("press %d leads to %q with the body %q, want %q", i+1, r.header.Get("Location"), r.body, made.URL)
		}
	}
	if got := b.reload(l); got.SessionsCreated != 2 || got.SessionsReserved != 0 {
		t.Errorf("created %d, reserved %d", got.SessionsCreated, got.SessionsReserved)
	}
	b.checkBooks()
}

// Where the signature is wrong, neither the database nor Stripe is asked.
func TestForgedTokenCostsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.token(b.link(nil))
	flipped := token[:20] + string(tokenAlphabet[(strings.IndexByte(tokenAlphabet, token[20])+1)%64]) + token[21:]
	b.queries.Store(0)
	for _, forged := range []string{flipped, token[:47], token + "A", "x", strings.Repeat("A", 48)} {
		for _, method := range []string{"GET", "HEAD", "POST"} {
			r := b.do(method, "/l/"+forged)
			r.wantHeaders(t)
			if r.status != 404 {
				t.Errorf("%s %s: %d", method, forged, r.status)
			}
		}
	}
	b.do("GET", "/l/"+flipped).want(t, 404, pageNotFound)
	if n := b.queries.Load(); n != 0 || len(b.sim.Calls()) != 0 {
		t.Errorf("%d queries, %d calls of Stripe", n, len(b.sim.Calls()))
	}
	b.get(b.link(nil))
	if b.queries.Load() == 0 {
		t.Error("the counter of queries counts nothing")
	}
}

// A link that is gone fails nobody who shares its transaction, and of a transaction without any link
// nothing is left, no job either.
func TestOpenWithoutLink(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	opens := []*linkOpen{{id: newClickID(), keyID: 7, look: noDetail}, {id: l.ID, keyID: 7, look: noDetail}, {id: l.ID, keyID: 7, look: noDetail}}
	if err := b.store.openLinks(t.Context(), opens); err != nil || opens[0].link != nil || opens[1].link == nil || opens[2].link == nil {
		t.Errorf("%v: %+v", err, opens)
	}
	if n := b.number(`SELECT count(*) FROM audit_events a JOIN published p ON a.id BETWEEN p.first AND p.last WHERE link_id = $1`, l.ID); n != 2 {
		t.Errorf("%d rows that a job publishes", n)
	}
	if _, err := b.store.Open(t.Context(), newClickID(), 7, noDetail, nil); !errors.Is(err, ErrNoLink) {
		t.Error(err)
	}
	if _, err := b.store.StartClick(t.Context(), newClickID(), 7, newClickID(), noDetail, nil); !errors.Is(err, ErrNoLink) {
		t.Error(err)
	}
	if n := b.number(`SELECT count(*) FROM published`); n != 1 {
		t.Errorf("%d jobs", n)
	}
}

// A token that verifies and names no link looks like a forged one, and tells the operator.
func TestTokenOfALostLink(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lost := &Link{ID: uuid.New(), KeyID: 7}
	b.get(lost).want(t, 404, pageNotFound)
	b.post(lost).want(t, 404, pageNotFound)
	if log := b.log.String(); !strings.Contains(log, lost.ID.String()) || !strings.Contains(log, "names no link") {
		t.Errorf("log: %s", log)
	}
}

func TestLinksThatAreGone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	expired, revoked, used := b.link(nil), b.link(nil), b.link(maxSessions(1))
	b.post(used).want(t, 303, "")
	b.clock.advance(time.Minute)
	if n, err := b.store.Revoke(t.Context(), Revocation{LinkID: revoked.ID.String(), By: "jo"}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	b.clock.set(expired.ExpiresAt.Add(-time.Microsecond))
	b.get(expired).want(t, 200, pageConfirm)
	b.get(revoked).want(t, 410, pageRevoked)
	b.get(used).want(t, 410, pageUsedUp)
	b.clock.set(expired.ExpiresAt)
	calls := len(b.sim.Calls())
	for l, c := range map[*Link]struct {
		p     page
		state string
	}{expired: {pageExpired, "expired"}, revoked: {pageRevoked, "revoked"}} {
		r := b.get(l)
		r.want(t, 410, c.p)
		r.wantHeaders(t)
		if strings.Contains(r.body, "<form") {
			t.Errorf("the page of a dead link has a button:\n%s", r.body)
		}
		b.post(l).want(t, 410, c.p)
		if got := b.do("POST", "/l/"+b.token(l), "Accept", "application/json").problem(t); got.Status != 410 || got.Code != c.state {
			t.Errorf("problem %+v", got)
		}
		rows := b.audit(l)
		if last := rows[len(rows)-1]; last.Kind != ClickDenied || last.Detail["reason"] != c.state {
			t.Errorf("audit %v", last)
		}
		if opened := rows[len(rows)-3]; opened.Kind != LinkOpened || opened.Detail["state"] != c.state {
			t.Errorf("audit %v", opened)
		}
	}
	if len(b.sim.Calls()) != calls {
		t.Error("Stripe was called for a dead link")
	}
	b.checkBooks()
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	for _, c := range []struct{ method, header, value, want string }{
		{"GET", "Accept", "*/*", "person"}, {"HEAD", "Accept", "*/*", "scanner"}, {"GET", "Sec-Purpose", "prefetch;prerender", "scanner"},
		{"GET", "Purpose", "Prefetch", "scanner"}, {"GET", "X-Moz", "prefetch", "scanner"}, {"GET", "X-Purpose", "preview", "scanner"},
	} {
		b.clock.advance(time.Second)
		b.do(c.method, "/l/"+b.token(l), c.header, c.value, "User-Agent", "Mozilla/5.0 (iPhone; CPU iPhone OS 15_0 like Mac OS X)")
		rows := b.audit(l)
		if last := rows[len(rows)-1]; last.Kind != LinkOpened || last.Detail["verdict"] != c.want || last.Detail["method"] != c.method || last.Detail["state"] != "live" {
			t.Errorf("%s %s: %s: %v, want a %s", c.method, c.header, c.value, last.Detail, c.want)
		}
	}
}

// Each way in which Stripe refuses has its page, and its outcome in the audit.
func TestStripesRefusalsAsPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for id, c := range map[string]struct {
		status int
		p      page
		code   SessionCode
	}{
		"cus_deleted":  {502, pageCustomerGone, CodeCustomerGone},
		"cus_noconfig": {502, pageOurFault, CodeNotConfigured},
		"cus_badurl":   {502, pageOurFault, CodeBadSessionURL},
		"cus_503":      {503, pageTryAgain, CodeUnavailable},
		"cus_429":      {503, pageTryAgain, CodeRateLimited},
	} {
		l := b.link(customer(id))
		r := b.post(l)
		r.want(t, c.status, c.p)
		r.wantHeaders(t)
		b.wantCode(l, c.code)
		rows := b.audit(l)
		reference := rows[len(rows)-1].ClickID.String()
		if ours := c.status == 502; strings.Contains(r.body, reference) != ours || strings.Contains(r.body, "/wait/") == ours || (r.header.Get("Retry-After") == "") != ours {
			t.Errorf("%s: Retry-After %q, page:\n%s", id, r.header.Get("Retry-After"), r.body)
		}
		if rows[len(rows)-1].Detail["stripe_request_id"] == "" || strings.Contains(r.body, "cus_") || strings.Contains(r.body, "Stripe ") {
			t.Errorf("%s: audit %v, page:\n%s", id, rows[len(rows)-1].Detail, r.body)
		}
		got := b.do("POST", "/l/"+b.token(l), "Accept", "application/json").problem(t)
		if got.Status != c.status || got.Code != string(c.p) || (got.Reference == "") != (c.status == 503) {
			t.Errorf("%s: problem %+v", id, got)
		}
		if got := b.reload(l); got.SessionsCreated != 0 || got.SessionsReserved != 0 {
			t.Errorf("%s: created %d, reserved %d", id, got.SessionsCreated, got.SessionsReserved)
		}
	}
	b.checkBooks()
}

func TestDatabaseIsAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.token(b.link(nil))
	b.pool.Close()
	for _, method := range []string{"GET", "POST"} {
		r := b.do(method, "/l/"+token)
		r.want(t, 503, pageTryAgain)
		r.wantHeaders(t)
		if r.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", method)
		}
	}
	if len(b.sim.Calls()) != 0 || strings.Contains(b.log.String(), token) {
		t.Errorf("%d calls of Stripe; log:\n%s", len(b.sim.Calls()), b.log)
	}
}

// The visitor stands in the side table alone.
func TestVisitorRow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.click.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	l := b.link(maxSessions(1))
	for i, method := range []string{"GET", "POST", "POST"} { // opened, started, denied
		b.clock.advance(time.Second)
		b.do(method, "/l/"+b.token(l), "X-Forwarded-For", "6.6.6.6, 203.0.113.77", "User-Agent", "Mozilla/5.0 (visitor\x80)")
		if n := b.number(`SELECT count(*) FROM audit_visitors v JOIN audit_events e ON e.id = v.event_id AND e.at = v.at
			WHERE ip = '203.0.113.77' AND user_agent = 'Mozilla/5.0 (visitor)'`); n != i+1 {
			t.Errorf("%d visitors after %s", n, method)
		}
	}
	if n := b.number(`SELECT count(*) FROM audit_events e WHERE e::text ~ '203\.0\.113\.77|6\.6\.6\.6|Mozilla'`); n != 0 {
		t.Errorf("%d audit rows hold the visitor", n)
	}
	if log := b.log.String(); strings.Contains(log, "203.0.113.77") || strings.Contains(log, "Mozilla") {
		t.Errorf("the log holds the visitor:\n%s", log)
	}
}

// A panic is answered, and neither it nor the log shows a token.
func TestPanicIsAnswered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	token := b.token(l)
	b.store.Now = func() time.Time { panic("at /l/" + token) }
	r := b.get(l)
	r.want(t, 503, pageTryAgain)
	r.wantHeaders(t)
	if log := b.log.String(); !strings.Contains(log, "click_test.go") || strings.Contains(log, token) || strings.Contains(r.body, "goroutine") {
		t.Errorf("log:\n%s", log)
	}
	b.store.Now = b.clock.now
	b.get(l).want(t, 200, pageConfirm) // the connections of before are given back
	if n := b.pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are still taken", n)
	}
}

// A phone that lost its connection has still pressed the button.
func TestClickSurvivesItsVisitor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	ctx, leave := context.WithCancel(t.Context())
	b.onStripe = func(*http.Request) { leave() }
	b.click.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "POST", "/l/"+b.token(l), nil))
	if got := b.kinds(l); got != "click.started session.created" {
		t.Errorf("audit: %s", got)
	}
	b.checkBooks()
}

// A process that stops cuts the call and writes the click down as interrupted.
func TestStopCutsTheCall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(customer("cus_hang"))
	b.onStripe = func(*http.Request) { b.abort() }
	b.post(l).want(t, 503, pageTryAgain)
	b.wantCode(l, CodeInterrupted)
	b.checkBooks()
}

// Presses of one link at the same time share sessions: everybody is redirected, a limited link
// gives no use too many, and each press stands in the audit.
func TestManyHandsOnOneLink(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{0, 1} {
		b := setup(t)
		l := b.link(maxSessions(limit))
		got := b.pressAtOnce(l, 20)
		made := len(b.sim.Sessions())
		if limit == 0 && got[303] != 20 || limit == 1 && (got[303]+got[410] != 20 || made != 1) {
			t.Errorf("limit %d: answers %v, %d sessions", limit, got, made)
		}
		if now := b.reload(l); now.SessionsCreated != made || now.SessionsReserved != 0 {
			t.Errorf("created %d, reserved %d, Stripe made %d", now.SessionsCreated, now.SessionsReserved, made)
		}
		if n := b.number(`SELECT count(*) FROM audit_events WHERE kind IN ('click.started', 'click.denied')`); n != 20 {
			t.Errorf("%d of 20 presses are in the audit", n)
		}
		b.checkBooks()
	}
}

// A press on another process, while Stripe is being asked, gets the same session and uses up
// nothing.
func TestPressesOnTwoProcessesShareASession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	other := b.server().Init(nil)
	var second *httptest.ResponseRecorder
	b.onStripe = func(*http.Request) {
		if second == nil {
			second = httptest.NewRecorder()
			other.ServeHTTP(second, httptest.NewRequest("POST", "/l/"+b.token(l), nil))
		}
	}
	first := b.post(l)
	first.want(t, 303, "")
	if second.Code != 303 || second.Header().Get("Location") != first.header.Get("Location") || len(b.sim.Sessions()) != 1 {
		t.Errorf("the second answered %d, %d sessions", second.Code, len(b.sim.Sessions()))
	}
	if got := b.kinds(l); got != "click.started click.denied session.created" {
		t.Errorf("audit %q", got)
	}
	if row := b.audit(l)[1]; row.Detail["reason"] != "shared" || row.ClickID != b.audit(l)[0].ClickID {
		t.Errorf("the second press: %+v", row)
	}
	b.checkBooks()
	b.clock.advance(replayed)
	b.post(l).want(t, 410, pageUsedUp)
}

// pressAtOnce posts n times at once and counts the answers by status.
func (b *bundle) pressAtOnce(l *Link, n int) map[int]int {
	b.t.Helper()
	statuses, token := make(chan int, n), b.token(l)
	for range n {
		go func() {
			w := httptest.NewRecorder()
			b.click.ServeHTTP(w, httptest.NewRequest("POST", "/l/"+token, nil))
			statuses <- w.Code
		}()
	}
	got := map[int]int{}
	for range n {
		got[<-statuses]++
	}
	return got
}

// A click that its worker left open is taken up by the next press: same click, same session.
func TestPressAfterACrashTakesTheClickUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	click := b.start(l)
	if _, err := b.stripe.CreateSession(t.Context(), l, click); err != nil { // and then the worker dies
		t.Fatal(err)
	}
	b.get(l).want(t, 200, pageConfirm)
	b.post(l).want(t, 303, "")
	if n := len(b.sim.Sessions()); n != 1 {
		t.Errorf("%d sessions for one attempt", n)
	}
	b.checkBooks()
}

// One that is open past its time is closed on the way, without waiting for the sweeper: Stripe's
// answer to its key could be a session that has died.
func TestPressLongAfterACrashBeginsAnew(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	b.start(l)
	b.clock.advance(clickLife)
	b.post(l).want(t, 303, "")
	if got := b.kinds(l); got != "click.started session.failed click.started session.created" {
		t.Errorf("audit %q", got)
	}
	b.checkBooks()
}

// A link that dies between the press and the reservation is denied for what it died of.
func TestLinkChangesUnderTheClick(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	if _, err := b.store.Revoke(t.Context(), Revocation{LinkID: l.ID.String(), By: "jo"}); err != nil {
		t.Fatal(err)
	}
	v := &visit{r: httptest.NewRequest("POST", "/", nil), id: l.ID, keyID: l.KeyID, link: l, token: b.token(l), visitor: &Visitor{IP: netip.IPv6Loopback()}}
	if got := b.click.press(t.Context(), v); got.page != pageRevoked {
		t.Errorf("%+v", got)
	}
	short := b.link(nil)
	v.id, v.link, v.token, v.at = short.ID, short, b.token(short), b.clock.now()
	b.clock.advance(short.ExpiresAt.Sub(v.at))
	if got := b.click.press(t.Context(), v); got.page != pageExpired {
		t.Errorf("%+v", got)
	}
	if len(b.sim.Calls()) != 0 {
		t.Error("Stripe was called")
	}
}

// A press that waited for another one's answer gets it only where its own link is good for it.
func TestFollow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	got := answer{location: "https://billing.example.com/p/session/x"}
	revoke := func(l *Link) {
		if _, err := b.store.Revoke(t.Context(), Revocation{LinkID: l.ID.String(), By: "jo"}); err != nil {
			t.Fatal(err)
		}
	}
	use := func(l *Link) { b.post(l).want(t, 303, "") }
	for name, c := range map[string]struct {
		before func(*Link)
		late   time.Duration // when it came
		first  served
		want   page // pageConfirm stands for what the next one to act gets
		reason string
	}{
		"live":                                  {first: served{answer: got, click: newClickID()}, reason: "shared"},
		"used up by the first":                  {before: use, first: served{answer: got, click: newClickID()}, reason: "shared"},
		"revoked meanwhile":                     {before: revoke, first: served{answer: got, click: newClickID()}, want: pageRevoked, reason: "revoked"},
		"expired when it came":                  {late: 1000 * time.Hour, first: served{answer: got, click: newClickID()}, want: pageExpired, reason: "expired"},
		"dead for the first":                    {before: revoke, first: served{dead: StateRevoked}, want: pageRevoked, reason: "revoked"},
		"expired for the first":                 {late: 1000 * time.Hour, first: served{dead: StateExpired}, want: pageExpired, reason: "expired"},
		"nothing was served":                    {want: pageConfirm},
		"revoked, and the first was not served": {before: revoke, want: pageRevoked, reason: "revoked"},
	} {
		l := b.link(maxSessions(1))
		if c.before != nil {
			c.before(l)
		}
		rows := len(b.audit(l))
		v := &visit{r: httptest.NewRequest("POST", "/", nil), id: l.ID, keyID: l.KeyID, token: b.token(l), at: b.clock.now().Add(c.late), visitor: &Visitor{IP: netip.IPv6Loopback()}}
		v.look = func(*Link) map[string]any { return map[string]any{} }
		a := b.click.follow(t.Context(), v, c.first, func() served { return served{answer: answer{page: pageConfirm}} })
		if a.page != c.want || c.want == "" && a.location != got.location {
			t.Errorf("%s: %+v", name, a)
		}
		if c.reason == "" {
			continue
		}
		if after := b.audit(l)[rows:]; len(after) != 1 || after[0].Kind != ClickDenied || after[0].Detail["reason"] != c.reason {
			t.Errorf("%s: audit %+v", name, after)
		}
	}
}

// A page that comes back to its open click does so although somebody else found the link dead.
func TestComeBackBehindAPressOfADeadLink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &ClickServer{}
		release, answered := make(chan struct{}), make(chan answer, 1)
		id := newClickID()
		go func() {
			_, _, _ = s.presses.Do(id.String(), func() (any, error) {
				<-release
				return served{dead: StateExpired}, nil
			})
		}()
		synctest.Wait()
		go func() {
			answered <- s.together(t.Context(), &visit{id: id}, func() served { return served{answer: answer{page: pageWaiting}, click: id} })
		}()
		synctest.Wait() // it waits for the press
		close(release)
		if a := <-answered; a.page != pageWaiting {
			t.Errorf("%+v", a)
		}
	})
}

// Whatever goes wrong, its page is in the link's language where the link could be read.
func TestErrorPagesSpeakTheLinksLanguage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(func(l *Link) { l.Session = []byte(`{"customer": "cus_1", "locale": "de"}`) })
	for _, method := range []string{"GET", "POST"} {
		b.commits.Script(failed)
		got := b.do(method, "/l/"+b.token(l), "Accept-Language", "en")
		if got.status != 503 || !strings.Contains(got.body, `lang="de"`) {
			t.Errorf("%s: %d %s", method, got.status, got.body)
		}
	}
}

// Revoked and expired links are told so, whether Stripe is away or not.
func TestDeadLinkWhileStripeIsSpared(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	if _, err := b.store.Revoke(t.Context(), Revocation{LinkID: l.ID.String(), By: "jo"}); err != nil {
		t.Fatal(err)
	}
	b.spareForAnHour()
	b.stripe.breaker.Open()
	b.post(l).want(t, 410, pageRevoked)
	b.post(b.link(nil)).want(t, 503, pageTryAgain)
}

func TestClickMetrics(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.post(b.link(nil)).want(t, 303, "")
	b.post(b.link(customer("cus_deleted"))).want(t, 502, "")
	b.do("PROPFIND", "/stranger").want(t, 405, "")
	got := map[string]float64{}
	families, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			got[name] = m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"latchkey_http_requests_total POST 303": 1, "latchkey_http_requests_total POST 502": 1, "latchkey_http_requests_total other 405": 1,
		"latchkey_clicks_total created": 1, "latchkey_clicks_total customer_gone": 1,
	} {
		if got[name] != want {
			t.Errorf("%s = %v, want %v; all: %v", name, got[name], want, got)
		}
	}
	if _, ok := got["latchkey_stripe_request_duration_seconds customer_gone"]; !ok {
		t.Errorf("no time of Stripe's refusals: %v", got)
	}
}

// The URL of the redirect is that of a living session.
func TestTheRedirectLeadsToThePortal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, err := http.NewRequestWithContext(t.Context(), "GET", b.post(b.link(nil)).header.Get("Location"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if portal := b.send(r); portal.status != 200 || b.sim.Sessions()[0].Visited.IsZero() {
		t.Errorf("the portal answers %d", portal.status)
	}
}

// A renewal is answered alike whatever became of it, unless nothing could be written.
func TestRenewAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	b.clock.advance(2 * time.Hour)
	path := "/l/" + b.token(l) + "/renew"
	for _, renewed := range []bool{true, false} {
		b.click.Renew = func(context.Context, uuid.UUID, *Visitor) (bool, error) { return renewed, nil }
		b.do("POST", path).want(t, 202, pageRenewed)
	}
	b.click.Renew = func(context.Context, uuid.UUID, *Visitor) (bool, error) { return false, errors.New("no database") }
	r := b.do("POST", path)
	r.want(t, 503, pageTryAgain)
	if r.header.Get("Refresh") != "5" || !strings.Contains(r.body, `href="/l/`+b.token(l)+`"`) || strings.Contains(r.body, "no database") {
		t.Errorf("Refresh %q, body:\n%s", r.header.Get("Refresh"), r.body)
	}
	b.do("GET", path).want(t, 410, pageExpired) // what the refresh asks for
}
