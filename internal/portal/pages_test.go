package portal

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

func render(t testing.TB, p *Pages, a answer, header ...string) reply {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/l/x", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	p.setHeaders(w.Header())
	p.write(w, r, a)
	return reply{w.Code, w.Header(), w.Body.String()}
}

// answers are the pages in all their variants.
func answers() (all []answer) {
	soon := time.Date(2026, 11, 16, 9, 30, 0, 0, time.UTC)
	for p := range kinds {
		all = append(all, answer{page: p})
	}
	for _, flow := range []string{"", "payment_method_update", "customer_update", "subscription_cancel", "subscription_update", "subscription_update_confirm", "of_tomorrow"} {
		all = append(all, answer{page: pageConfirm, token: "TOKEN", expires: soon, flow: flow})
	}
	return append(all,
		answer{page: pageWaiting, token: "TOKEN", place: "PLACE", wait: 23 * time.Second, refresh: 7},
		answer{page: pageTryAgain, token: "TOKEN", place: "PLACE", retryAfter: 5, refresh: 7},
		answer{page: pageTryAgain, token: "TOKEN", retryAfter: 5},
		answer{page: pageExpired, token: "TOKEN", renewable: true},
		answer{page: pageExpired, token: "TOKEN"},
		answer{page: pageOurFault, reference: "0192f5c1-7b1a-7cc3-9a55-0b6f2f5e8d11"},
		answer{page: pageCustomerGone, reference: "0192f5c1-7b1a-7cc3-9a55-0b6f2f5e8d11"})
}

func TestEveryPage(t *testing.T) {
	t.Parallel()
	p := NewPages(PagesConfig{Brand: "Acme", SupportURL: "https://help.example.com"})
	for name, kind := range kinds {
		title, text := english.Get(kind.words+".title"), english.Get(kind.words+".text")
		a := answer{page: name, reference: "ref-1", retryAfter: 7}
		r := render(t, p, a, "Accept", "text/html")
		r.want(t, kind.status, name)
		for _, part := range []string{"<!doctype html>", `<html lang="en" dir="ltr">`, text, `href="https://help.example.com"`, "Acme", `name="viewport"`} {
			if !strings.Contains(r.body, part) {
				t.Errorf("%s lacks %q:\n%s", name, part, r.body)
			}
		}
		if told := strings.Contains(r.body, "ref-1"); told != (name == pageOurFault || name == pageCustomerGone) {
			t.Errorf("%s tells the reference: %t", name, told)
		}
		if strings.Contains(strings.ToLower(r.body), "<script") || strings.Contains(r.body, "src=") || strings.Contains(r.body, "<form") || strings.Contains(r.body, `class="button"`) {
			t.Errorf("%s has a script, a resource or a button that leads nowhere:\n%s", name, r.body)
		}
		if r.header.Get("Retry-After") != "7" || r.header.Get("Refresh") != "" || r.header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%s: headers %v", name, r.header)
		}
		if kind.status < 400 {
			continue
		}
		r = render(t, p, a, "Accept", "application/json")
		got := r.problem(t)
		if r.status != kind.status || r.header.Get("Content-Type") != "application/problem+json" || r.header.Get("Retry-After") != "7" ||
			got.Status != kind.status || got.Type != "about:blank" || got.Title != title || got.Detail != text || got.Code != string(name) || got.Reference != "ref-1" {
			t.Errorf("%s as JSON: %d %v %+v", name, r.status, r.header, got)
		}
	}
}

func TestProblemsSpeakTheVisitorsLanguage(t *testing.T) {
	t.Parallel()
	r := render(t, NewPages(PagesConfig{}), answer{page: pageRevoked}, "Accept", "application/json", "Accept-Language", "de-CH, fr;q=0.5")
	if got := r.problem(t); got.Title != loadWords("de").Get("revoked.title") || got.Code != "revoked" || r.header.Get("Content-Language") != "de" {
		t.Errorf("%v %+v", r.header, got)
	}
}

func TestWantsJSON(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "text/html": false, "application/json": true, "application/problem+json": true, "Application/JSON; q=0.9": true,
		"text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8": false,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", accept)
		if got := wantsJSON(r); got != want {
			t.Errorf("Accept: %s gives JSON: %t", accept, got)
		}
	}
}

func TestConfirmPage(t *testing.T) {
	t.Parallel()
	p := NewPages(PagesConfig{})
	a := answer{page: pageConfirm, token: "TOKEN", expires: time.Date(2026, 11, 16, 10, 30, 0, 0, time.FixedZone("", 3600))}
	r := render(t, p, a)
	for _, part := range []string{`<form method="post" action="/l/TOKEN"><button type="submit" class="button">Continue to billing</button></form>`,
		"This link works until November 16, 2026, 9:30\u00a0AM\u00a0UTC.", "<h1>Your billing page is ready</h1>"} {
		if strings.Count(r.body, part) != 1 {
			t.Errorf("the page lacks %q:\n%s", part, r.body)
		}
	}
	if strings.Contains(r.body, "Contact support") || strings.Contains(r.body, "brand\"") || strings.Count(r.body, "<button") != 1 {
		t.Errorf("the page shows what is not configured:\n%s", r.body)
	}
	for flow, title := range map[string]string{"payment_method_update": "Update your payment method", "subscription_cancel": "Cancel your subscription",
		"subscription_update_confirm": "Change your plan", "of_tomorrow": "Your billing page is ready"} {
		a.flow = flow
		if r := render(t, p, a); !strings.Contains(r.body, "<h1>"+title+"</h1>") {
			t.Errorf("%s: not %q:\n%s", flow, title, r.body)
		}
	}
}

// A browser that does not come back by itself offers its user the same by hand.
func TestPagesThatComeBack(t *testing.T) {
	t.Parallel()
	p := NewPages(PagesConfig{LoginURL: "https://billing.stripe.com/p/login/x"})
	there := `href="/l/TOKEN/wait/PLACE"`
	r := render(t, p, answer{page: pageWaiting, token: "TOKEN", place: "PLACE", wait: 90 * time.Second, refresh: 7})
	if !strings.Contains(r.body, there) || !strings.Contains(r.body, `role="status">About 2 minutes left</p>`) || r.header.Get("Refresh") != "7; url=/l/TOKEN/wait/PLACE" || strings.Contains(r.body, "<form") {
		t.Errorf("waiting: %v\n%s", r.header, r.body)
	}
	if strings.Contains(r.body, "billing.stripe.com") {
		t.Error("who waits is sent to the login page")
	}
	r = render(t, p, answer{page: pageTryAgain, token: "TOKEN", place: "PLACE", refresh: 7})
	if !strings.Contains(r.body, there) || strings.Contains(r.body, "<form") || !strings.Contains(r.body, `href="https://billing.stripe.com/p/login/x"`) {
		t.Errorf("try again, with a place: %v\n%s", r.header, r.body)
	}
	r = render(t, p, answer{page: pageTryAgain, token: "TOKEN", refresh: 7})
	if !strings.Contains(r.body, `<a class="button" href="/l/TOKEN">Try again</a>`) || strings.Contains(r.body, "<form") || r.header.Get("Refresh") != "7" {
		t.Errorf("try again, without a place: %v\n%s", r.header, r.body)
	}
}

func TestExpiredPageOffersANewLinkWhereItCan(t *testing.T) {
	t.Parallel()
	p := NewPages(PagesConfig{})
	ask, form := english.Get("expired.ask"), `<form method="post" action="/l/TOKEN/renew">`
	if r := render(t, p, answer{page: pageExpired, token: "TOKEN", renewable: true}); !strings.Contains(r.body, form) || strings.Contains(r.body, ask) {
		t.Errorf("renewable:\n%s", r.body)
	}
	if r := render(t, p, answer{page: pageExpired, token: "TOKEN"}); strings.Contains(r.body, "<form") || !strings.Contains(r.body, ask) {
		t.Errorf("not renewable:\n%s", r.body)
	}
}

func TestPagesEscape(t *testing.T) {
	t.Parallel()
	brand := `</title><script>alert(1)</script>"'&{token}`
	p := NewPages(PagesConfig{Brand: brand, SupportURL: `javascript:alert(1)//"><script>`, Logo: &Logo{path: "/logo-0"}})
	for _, a := range answers() {
		a.token, a.place, a.reference = `"><script>`, `'"><script>`, "<script>"
		r := render(t, p, a)
		if strings.Contains(r.body, "<script") || strings.Contains(r.body, `href="javascript:`) || strings.Contains(r.body, `/l/">`) {
			t.Errorf("not escaped:\n%s", r.body)
		}
		doc := parse(t, r.body)
		if title := textOf(doc.one(t, "title")); !strings.HasSuffix(title, " · "+brand) {
			t.Errorf("the title is %q", title)
		}
		if alt := attr(doc.one(t, "img"), "alt"); alt != brand {
			t.Errorf("the logo's text is %q", alt)
		}
	}
	if body := render(t, NewPages(PagesConfig{Brand: brand}), answer{page: pageRevoked}).body; textOf(parse(t, body).class("brand")) != brand {
		t.Errorf("the brand is not shown as it is:\n%s", body)
	}
}

// The policy's hash is of exactly what stands in the page's style element, or browsers drop it.
func TestContentSecurityPolicy(t *testing.T) {
	t.Parallel()
	for allowHTTP, action := range map[bool]string{false: "form-action 'self' https:;", true: "form-action 'self' https: http:;"} {
		r := render(t, NewPages(PagesConfig{Brand: "Acme", Color: "#fe0", AllowHTTP: allowHTTP}), answer{page: pageConfirm, token: "T"})
		_, style, _ := strings.Cut(r.body, "<style>")
		style, _, _ = strings.Cut(style, "</style>")
		sum := sha256.Sum256([]byte(style))
		csp := r.header.Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none';", "style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "';",
			action, "base-uri 'none'", "frame-ancestors 'none'"} {
			if !strings.Contains(csp, part) {
				t.Errorf("the policy lacks %s: %s", part, csp)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "img-src") || len(style) < 100 || strings.Contains(style, "url(") || strings.Contains(style, "@import") {
			t.Errorf("policy %s, style of %d bytes", csp, len(style))
		}
		if strings.Contains(r.body, " style=") || strings.Contains(r.body, " onclick=") {
			t.Errorf("what the policy forbids stands in the page:\n%s", r.body)
		}
	}
}

// Every page in every language, as a parser of HTML and a screen reader see it.
func TestEveryPageInEveryLanguage(t *testing.T) {
	t.Parallel()
	p := NewPages(PagesConfig{Brand: "Acme", SupportURL: "https://help.example.com", LoginURL: "https://billing.stripe.com/p/login/x",
		Logo: &Logo{Body: make([]byte, maxLogo), path: "/logo-0123456789abcdef"}})
	largest := 0
	for _, locale := range p.languages.locales {
		for _, a := range answers() {
			a.locale = locale
			r := render(t, p, a, "Accept-Language", "de")
			checkPage(t, fmt.Sprintf("%s %s", locale, a.page), r, a)
			largest = max(largest, len(r.body))
		}
	}
	if largest+maxLogo > 15<<10 {
		t.Errorf("a page of %d bytes, and a logo of %d", largest, maxLogo)
	}
	t.Logf("the largest page has %d bytes", largest)
}

func checkPage(t *testing.T, about string, r reply, a answer) {
	t.Helper()
	doc := parse(t, r.body)
	h1 := textOf(doc.one(t, "h1"))
	root := doc.one(t, "html")
	if attr(root, "lang") != a.locale || attr(root, "dir") != "ltr" || r.header.Get("Content-Language") != a.locale || r.header.Get("Vary") != "Accept-Language" {
		t.Errorf("%s: language %v, %v", about, root.Attr, r.header)
	}
	if title := textOf(doc.one(t, "title")); h1 == "" || title != h1+" · Acme" {
		t.Errorf("%s: heading %q, title %q", about, h1, title)
	}
	if attr(doc.one(t, "img"), "alt") != "Acme" || doc.one(t, "main") == nil {
		t.Errorf("%s: no name, or no landmark", about)
	}
	for _, n := range doc.all("p", "a", "button", "code") {
		if strings.TrimSpace(textOf(n)) == "" && len(slices.Collect(n.ChildNodes())) == 0 {
			t.Errorf("%s: an empty <%s>:\n%s", about, n.Data, r.body)
		}
	}
	if body := textOf(doc.one(t, "body")); strings.ContainsAny(body, "{}<>") || strings.Contains(body, "\u202f") {
		t.Errorf("%s: a hole is open, or the text is strange: %s", about, body)
	}
}

type document struct{ root *html.Node }

func parse(t testing.TB, body string) document {
	t.Helper()
	root, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return document{root}
}

func (d document) all(names ...string) (nodes []*html.Node) {
	for n := range d.root.Descendants() {
		if n.Type == html.ElementNode && slices.Contains(names, n.Data) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func (d document) one(t testing.TB, name string) *html.Node {
	t.Helper()
	nodes := d.all(name)
	if len(nodes) != 1 {
		t.Fatalf("%d elements <%s>", len(nodes), name)
	}
	return nodes[0]
}

func (d document) class(name string) *html.Node {
	for n := range d.root.Descendants() {
		if n.Type == html.ElementNode && attr(n, "class") == name {
			return n
		}
	}
	return &html.Node{}
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func textOf(n *html.Node) string {
	var b strings.Builder
	for c := range n.Descendants() {
		if c.Type == html.TextNode {
			b.WriteString(c.Data)
		}
	}
	return b.String()
}

func BenchmarkConfirmPage(b *testing.B) {
	p := NewPages(PagesConfig{Brand: "Acme", SupportURL: "https://help.example.com"})
	r := httptest.NewRequest("GET", "/l/x", nil)
	r.Header.Set("Accept-Language", "de-AT,de;q=0.9,en;q=0.8")
	w := httptest.NewRecorder()
	a := answer{page: pageConfirm, token: "AQcBkxGvb3l2sYQ0Yk9tZWdhLWxvbmctdG9rZW4", flow: "payment_method_update", expires: time.Date(2026, 11, 16, 9, 5, 0, 0, time.UTC)}
	b.ReportAllocs()
	for b.Loop() {
		w.Body.Reset()
		p.setHeaders(w.Header())
		p.write(w, r, a)
	}
}

// What the first visitor of each language waits for.
func BenchmarkFirstPageOfALanguage(b *testing.B) {
	b.ReportAllocs()
	p := NewPages(PagesConfig{Brand: "Acme"})
	for b.Loop() {
		clear(p.words)
		clear(p.rendered)
		p.page(variant{page: pageConfirm, locale: "fr-CA", button: postButton, expires: true})
	}
}

func BenchmarkNewPages(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		NewPages(PagesConfig{Brand: "Acme"})
	}
}
