package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/stripesim"
)

// What a customer sees and does, in Chromium. One browser serves all of them, and ends with them.
func TestInABrowser(t *testing.T) {
	t.Parallel()
	chromium := startChromium(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, context.Context)
	}{
		{"the line goes on by itself", lineGoesOn}, // first those that wait
		{"Stripe comes back", stripeComesBack},
		{"every page", everyPage},
		{"in the customer's language", customersLanguage},
		{"by keyboard alone", keyboardAlone},
		{"every mail", everyMail},
		{"a mail in Outlook.com's dark mode", outlookComInTheDark},
		{"from the mail to the portal and back", mailToPortalAndBack},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, chromium)
		})
	}
}

var button = chromedp.CSS(".button")

// cardFailed is the request of a mail about a payment that failed.
func cardFailed(id string) *jobs.Request {
	req := request(id)
	req.Session.FlowData = &portal.FlowData{Type: "payment_method_update"}
	return req
}

// On a phone: the link, a tap on the button, the portal, and back to the shop. Until the redirect
// nobody but the click server is asked for anything.
func mailToPortalAndBack(t *testing.T, chromium context.Context) {
	d, shop := deploy(t), openShop(t)
	w := d.start(shop.brand)
	link := d.link(cardFailed("in_1-attempt-1"))
	b := d.open(chromium)
	b.phone()
	b.visit(link.URL)
	if l := b.look(); l.Heading != words(t, "en")["confirm.title.payment_method_update"] {
		t.Errorf("the page's heading is %q", l.Heading)
	}
	if n := len(d.sim.Calls()); n != 0 {
		t.Fatalf("the page cost %d calls to Stripe", n)
	}
	b.wantCalm()
	b.arrive(d.simURL, chromedp.Tap(button))
	if at, session := b.location(), d.sim.Sessions()[0]; at != session.URL {
		t.Errorf("the browser is at %s, the session is elsewhere", at)
	}
	b.wantOnlyUntilRedirect(w.click)
	b.wantCalm()
	b.arrive(shop.URL+"/billing", chromedp.Tap(chromedp.CSS("#return")))
	if !slices.Equal(shop.referers, []string{""}) {
		t.Errorf("the shop learned where the customer came from: %q", shop.referers)
	}
	d.wantTimeline("in_1-attempt-1", "link.issued link.opened click.started session.created")
	if n := d.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.opened' AND detail->>'verdict' = 'person'`); n != 1 {
		t.Error("the audit takes a person's browser for a scanner")
	}
}

// wantOnlyUntilRedirect checks that all was asked of the click server until it redirected by 303.
func (b *tab) wantOnlyUntilRedirect(click string) {
	b.d.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.requests {
		if r.RedirectResponse != nil {
			if r.RedirectResponse.Status != http.StatusSeeOther || r.Request.Method != http.MethodGet {
				b.d.t.Errorf("redirected by %d to a %s", r.RedirectResponse.Status, r.Request.Method)
			}
			return
		}
		if origin(r.Request.URL) != click {
			b.d.t.Errorf("the page asked %s for something", origin(r.Request.URL))
		}
	}
	b.d.t.Error("there was no redirect")
}

// Two customers in a line, at a session a second. Nobody touches the page, and one of the browsers
// runs no scripts. A reload keeps the place.
func lineGoesOn(t *testing.T, chromium context.Context) {
	d, shop := deploy(t), openShop(t)
	w := d.start(shop.brand, func(c *Config) { c.StripeRate = 1 })
	scripts, plain := d.open(chromium), d.open(chromium)
	set(plain, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	for i, b := range []*tab{scripts, plain} {
		b.visit(d.link(cardFailed(fmt.Sprintf("r%d", i))).URL)
	}
	d.busy("", 12*time.Second)
	for _, b := range []*tab{scripts, plain} {
		b.arrive(w.click, chromedp.Click(button))
		refresh, _ := b.last().Headers["Refresh"].(string)
		if b.last().Status != 200 || !strings.Contains(refresh, "/wait/") {
			t.Fatalf("pressed in a line: %d, Refresh %q", b.last().Status, refresh)
		}
	}
	if l := scripts.look(); l.Heading != words(t, "en")["waiting.title"] || !strings.Contains(l.Text, "seconds left") {
		t.Errorf("the waiting page: %+v", l)
	}
	tickets := `SELECT string_agg(ticket::text, ' ' ORDER BY ticket) FROM clicks`
	before := d.text(tickets)
	scripts.do("reload", chromedp.Reload())
	if after := d.text(tickets); before != "1 2" || after != before {
		t.Errorf("tickets %q, and after a reload %q", before, after)
	}
	for _, b := range []*tab{scripts, plain} {
		b.arrived(d.simURL)
		b.wantCalm()
	}
	if n := len(d.sim.Sessions()); n != 2 {
		t.Errorf("%d sessions for 2 customers", n)
	}
}

// Stripe fails a customer's press; the page offers Stripe's own login, tries again by itself, and
// ends on the portal.
func stripeComesBack(t *testing.T, chromium context.Context) {
	d := deploy(t)
	login := d.simURL + "/p/login/test_1"
	w := d.start(openShop(t).brand, func(c *Config) { c.PortalLoginURL = login })
	b := d.open(chromium)
	b.visit(d.link(cardFailed("r1")).URL)
	outage := stripesim.Fault{Kind: stripesim.FaultStatus, Status: 503, Unsaved: true}
	d.sim.Script(outage, outage, outage, outage) // all tries of one press
	b.arrive(w.click, chromedp.Click(button))
	if r := b.last(); r.Status != 503 || r.Headers["Retry-After"] == nil {
		t.Errorf("while Stripe is away: %d, %v", r.Status, r.Headers)
	}
	if l := b.look(); l.Heading != words(t, "en")["try_again.title"] || l.Login != login {
		t.Errorf("the page says %q and offers to log in at %q", l.Heading, l.Login)
	}
	b.arrived(d.simURL)
	if b.location() != d.sim.Sessions()[0].URL {
		t.Errorf("the browser is at %s", b.location())
	}
	b.wantCalm()
}

// Without a mouse: what can be pressed is reached in the order of reading, shows that it is, and
// Enter presses it.
func keyboardAlone(t *testing.T, chromium context.Context) {
	d := deploy(t)
	w := d.start(openShop(t).brand)
	en := words(t, "en")
	b := d.open(chromium)
	b.visit(d.link(cardFailed("r1")).URL)
	d.busy("", 3*time.Minute)
	b.tabTo(en["confirm.button"])
	b.tabTo(en["support"])
	b.do("back", chromedp.KeyEvent(kb.Tab, chromedp.KeyModifiers(chromedp.ModifierShift)))
	b.wantFocus(en["confirm.button"])
	b.arrive(w.click, chromedp.KeyEvent(kb.Enter))
	b.tabTo(en["waiting.button"])
	b.tabTo(en["support"])
	b.do("back", chromedp.KeyEvent(kb.Tab, chromedp.KeyModifiers(chromedp.ModifierShift)))
	d.sql(`UPDATE stripe_budget SET slot_at = clock_timestamp()`)
	b.arrive(d.simURL, chromedp.KeyEvent(kb.Enter))
	b.wantCalm()
}

// tabTo presses Tab and wants the focus on what is called so.
func (b *tab) tabTo(name string) {
	b.d.t.Helper()
	b.do("Tab", chromedp.KeyEvent(kb.Tab))
	b.wantFocus(name)
}

func (b *tab) wantFocus(name string) {
	b.d.t.Helper()
	l := b.look()
	if l.Focus != name {
		b.d.t.Errorf("the focus is on %q, want %q", l.Focus, name)
	}
	if l.Outline == "none" || l.Thick < 2 || contrast(l.FocusRing, l.Card) < 3 {
		b.d.t.Errorf("the focus on %q can't be seen: outline %s of %g px, %s on %s", name, l.Outline, l.Thick, l.FocusRing, l.Card)
	}
}

// The session's locale decides, and else the browser.
func customersLanguage(t *testing.T, chromium context.Context) {
	d := deploy(t)
	w := d.start(openShop(t).brand)
	b := d.open(chromium)
	b.phone()
	for i, c := range []struct{ locale, session, browser string }{
		{locale: "de", browser: "de-AT,de;q=0.9,en;q=0.5"},
		{locale: "ja", browser: "ja"},
		{locale: "pt-BR", browser: "pt-BR,pt;q=0.9"},
		{locale: "de", session: "de", browser: "ja"},
		{locale: "ja", session: "ja", browser: "en-US"},
		{locale: "pt-BR", session: "pt-BR", browser: "de"},
		{locale: "ja", session: "auto", browser: "ja,en;q=0.5"},
	} {
		req := cardFailed(fmt.Sprintf("r%d", i))
		req.Session.Locale = c.session
		said := words(t, c.locale)
		b.language(c.browser)
		d.sql(`DELETE FROM stripe_budget`)
		b.visit(d.link(req).URL)
		b.wantWords(c.locale, said["confirm.title.payment_method_update"], said["confirm.text"], said["confirm.button"], said["support"])
		if c.session == "" {
			b.picture("confirm-" + c.locale)
		}
		d.busy("", 3*time.Minute)
		b.arrive(w.click, chromedp.Tap(button))
		b.wantWords(c.locale, said["waiting.title"], said["waiting.text"], said["waiting.button"])
		if c.session == "" {
			b.picture("waiting-" + c.locale)
		}
	}
	b.wantCalm()
}

func (b *tab) wantWords(locale string, texts ...string) {
	b.d.t.Helper()
	l := b.wantReadable(locale)
	if l.Lang != locale {
		b.d.t.Errorf("the page's lang is %q, want %q", l.Lang, locale)
	}
	for _, text := range texts {
		if text == "" || !strings.Contains(l.Text, text) {
			b.d.t.Errorf("the page in %s lacks %q: %s", locale, text, l.Text)
		}
	}
}

// shown is a page and the way to it.
type shown struct {
	name  string
	words string // of its heading
	get   func(b *tab)
}

// Each page in a desktop's window, light and dark, and in a phone's of 320 px, which is a desktop's
// at 400 % too: readable, nothing cut, and with all that belongs to it under 15 KB.
func everyPage(t *testing.T, chromium context.Context) {
	d := deploy(t)
	w := d.start(openShop(t).brand, func(c *Config) { c.PortalLoginURL = d.simURL + "/p/login/test_1" })
	en := words(t, "en")
	b := d.open(chromium)
	for _, s := range everyWay(d, w.click) {
		b.desktop()
		b.scheme("light")
		s.get(b)
		light := b.wantReadable(s.name + ", light")
		if light.Heading != en[s.words] {
			t.Errorf("%s: the page says %q, want %q", s.name, light.Heading, en[s.words])
		}
		if size := b.size(); size < 1000 || size >= 15_000 {
			t.Errorf("%s: %g bytes with all that belongs to it", s.name, size)
		}
		b.picture(s.name + "-light")
		b.scheme("dark")
		dark := b.wantReadable(s.name + ", dark")
		if luminance(dark.Background) > 0.1 || luminance(light.Background) < 0.8 || light.Pieces[0].Color == dark.Pieces[0].Color {
			t.Errorf("%s: light is %s, dark %s", s.name, light.Background, dark.Background)
		}
		b.picture(s.name + "-dark")
		b.scheme("light")
		b.zoomed()
		b.wantReadable(s.name + ", 320 px")
		b.picture(s.name + "-320")
	}
	b.wantCalm()
}

// everyWay are the ways to each page, in an order in which none is in another's.
func everyWay(d *deployment, click string) []shown {
	visit := func(id string, prepare ...string) func(*tab) {
		return func(b *tab) {
			link := d.link(cardFailed(id))
			for _, statement := range prepare {
				d.sql(statement, link.LinkID)
			}
			b.visit(link.URL)
		}
	}
	press := func(req *jobs.Request, prepare func()) func(*tab) {
		return func(b *tab) {
			b.visit(d.link(req).URL)
			prepare()
			b.arrive(click, chromedp.Click(button))
		}
	}
	of := func(customer string) *jobs.Request {
		req := cardFailed(customer)
		req.Session.Customer = customer
		return req
	}
	elsewhere := of("cus_Waits1")
	elsewhere.StripeAccount = "acct_Elsewhere1" // a line of its own
	const expire = `UPDATE links SET created_at = now() - interval '2 days', expires_at = now() - interval '1 day' WHERE id = $1`
	const mailed = `UPDATE links SET deliver = '[{"channel":"email","to":"jo@example.com"}]' WHERE id = $1`
	outage := stripesim.Fault{Kind: stripesim.FaultStatus, Status: 503, Unsaved: true}
	return []shown{
		{"confirm", "confirm.title.payment_method_update", visit("confirm")},
		{"confirm_any", "confirm.title", func(b *tab) { b.visit(d.link(request("any")).URL) }},
		{"not_found", "not_found.title", func(b *tab) { b.visit(click + "/l/forged") }},
		{"expired", "expired.title", visit("expired", expire)},
		{"expired_renew", "expired.title", visit("renewable", expire, mailed)},
		{"renewed", "renewed.title", func(b *tab) {
			visit("renewed", expire, mailed)(b)
			b.arrive(click, chromedp.Click(button))
		}},
		{"used_up", "used_up.title", visit("used", `UPDATE links SET max_sessions = 1, sessions_created = 1 WHERE id = $1`)},
		{"revoked", "revoked.title", visit("revoked", `UPDATE links SET revoked_at = now(), revoked_by = 'test' WHERE id = $1`)},
		{"customer_gone", "customer_gone.title", press(of("cus_deleted1"), func() {})},
		{"our_fault", "our_fault.title", press(of("cus_noconfig1"), func() {})},
		{"bad_request", "bad_request.title", func(b *tab) {
			// A body that is too large is the one bad request that a page can make a browser send.
			b.visit("about:blank")
			b.arrive(click, chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`(() => {
				const form = document.createElement('form'), text = document.createElement('textarea')
				form.method = 'post'
				form.action = %q
				text.name = 'a'
				text.value = 'a'.repeat(70000)
				form.append(text)
				document.body.append(form)
				form.submit()
			})()`, d.link(cardFailed("large")).URL)))
		}},
		{"too_many", "too_many.title", func(b *tab) {
			url := d.link(cardFailed("often")).URL
			b.visit(url)
			for b.last().Status != http.StatusTooManyRequests { // a look comes free every half a second
				for range 150 {
					d.do(http.MethodGet, url)
				}
				b.visit(url)
			}
		}},
		{"waiting", "waiting.title", press(elsewhere, func() { d.busy("acct_Elsewhere1", 10*time.Minute) })},
		// The last one: from here on Stripe is away.
		{"try_again", "try_again.title", press(of("cus_Outage1"), func() { d.sim.Script(slices.Repeat([]stripesim.Fault{outage}, 100)...) })},
	}
}
