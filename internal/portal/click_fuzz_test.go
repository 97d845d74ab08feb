package portal

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"latchkey/internal/stripesim"
)

// clickFuzz is what FuzzClick holds its answers to. Nothing of F may be called while it runs.
type clickFuzz struct {
	*bundle
	calls   atomic.Int64 // of Stripe
	tokens  map[string]string
	live    string // TOKEN: the token of a link that works
	allowed []int
}

func newClickFuzz(f *testing.F) *clickFuzz {
	c := &clickFuzz{bundle: setup(f), allowed: []int{200, 202, 303, 400, 404, 405, 410, 413, 429}}
	c.onStripe = func(*http.Request) { c.calls.Add(1) }
	forYears := func(l *Link) { l.ExpiresAt = l.CreatedAt.AddDate(100, 0, 0) }
	live, other := c.link(forYears), c.link(forYears)
	expired := c.link(nil)
	end := c.clock.now().AddDate(50, 0, 0)
	c.live = c.token(live)
	c.tokens = map[string]string{
		"TOKEN": c.live, "EXPIRED": c.token(expired),
		"OWN": c.keys.SignPlace(live.KeyID, live.ID, c.start(live), end), "FOREIGN": c.keys.SignPlace(other.KeyID, other.ID, c.start(other), end),
	}
	c.clock.advance(2 * time.Hour)
	return c
}

// request puts tokens where the input says so, and the marker where a stranger could have it echoed.
// It returns nil for what is no request at all.
func (c *clickFuzz) request(method, path, query, name, value string) *http.Request {
	for word, token := range c.tokens {
		path = strings.ReplaceAll(path, word, token)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query + marker}
	r.RemoteAddr = "203.0.113.9:1"
	r.Header.Set("User-Agent", "Mozilla/5.0 "+marker)
	if name != "" {
		r.Header[http.CanonicalHeaderKey(name)] = []string{value + marker}
	}
	return r
}

// mayAsk tells, without the code under test, whether a request may cost a call of Stripe: who presses the
// button of a link that works, or comes back to a place of it.
func (c *clickFuzz) mayAsk(r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, "/l/"+c.live)
	if !ok {
		return false
	}
	return r.Method == http.MethodPost || r.Method == http.MethodGet && strings.HasPrefix(rest, "/wait/"+c.tokens["OWN"])
}

func (c *clickFuzz) serve(t *testing.T, r *http.Request) {
	c.clock.advance(time.Minute) // so that no limit is reached, and each press is a click of its own
	calls, queries := c.calls.Load(), c.queries.Load()
	w := httptest.NewRecorder()
	c.click.ServeHTTP(w, r)
	if !slices.Contains(c.allowed, w.Code) {
		t.Errorf("status %d", w.Code)
	}
	for name, want := range securityHeaders {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if !strings.HasPrefix(w.Header().Get("Content-Security-Policy"), "default-src 'none';") || len(w.Header().Values("Set-Cookie")) > 0 {
		t.Errorf("headers %v", w.Header())
	}
	if asked := c.calls.Load() > calls; asked && !c.mayAsk(r) {
		t.Error("it cost a call of Stripe")
	}
	if !strings.Contains(r.URL.Path, c.live) && !strings.Contains(r.URL.Path, c.tokens["EXPIRED"]) && c.queries.Load() > queries {
		t.Error("no token, and yet a query")
	}
	location := w.Header().Get("Location")
	if (location != "") != (w.Code == http.StatusSeeOther) {
		t.Errorf("status %d to %q", w.Code, location)
	}
	if location != "" && !slices.ContainsFunc(c.sim.Sessions(), func(s stripesim.Session) bool { return s.URL == location }) {
		t.Errorf("redirected to %q, which is no session's", location)
	}
	for name, values := range w.Header() {
		if strings.Contains(name+strings.Join(values, ""), marker) {
			t.Errorf("%s has what a stranger wrote", name)
		}
	}
	if strings.Contains(w.Body.String(), marker) {
		t.Error("the page has what a stranger wrote")
	}
}

// FuzzClick sends whatever to the whole click path, with a database and Stripe behind it: only a
// press of a link that works, or a return to its own place, costs a session, and the session's URL is
// where the redirect leads; each answer has its headers, and none has anything that a stranger wrote.
func FuzzClick(f *testing.F) {
	for _, seed := range [][5]string{
		{"GET", "/l/TOKEN", "", "", ""}, {"HEAD", "/l/TOKEN%27)", "utm_source=x", "Accept", "application/json"}, {"POST", "/l/TOKEN", "", "Sec-Fetch-Mode", "navigate"},
		{"GET", "/l/TOKEN/wait/OWN", "", "", ""}, {"GET", "/l/TOKEN/wait/FOREIGN", "", "", ""}, {"POST", "/l/TOKEN/wait/OWN", "", "", ""}, {"HEAD", "/l/TOKEN/wait/OWN/", "", "", ""},
		{"POST", "/l/TOKEN/renew", "", "", ""}, {"POST", "/l/EXPIRED/renew/", "", "", ""}, {"GET", "/l/EXPIRED", "", "Accept-Language", "de-AT,de;q=0.9"}, {"POST", "/l/EXPIRED", "", "", ""},
		{"POST", "/l/xTOKEN", "", "", ""}, {"POST", "/l/TOKENx", "", "", ""}, {"POST", "//l/TOKEN", "", "X-HTTP-Method-Override", "POST"}, {"POST", "/l/FOREIGN", "", "", ""},
		{"GET", "/robots.txt", "", "", ""}, {"GET", "/logo-0123456789abcdef", "", "", ""}, {"PUT", "/l/TOKEN", "", "X-Forwarded-For", "1.2.3.4"}, {"GET", "/l/\x00\xff", "", "Host", "example.net"},
		{"POST", "/l/TOKEN/../TOKEN", "return_url=https://example.net", "Referer", "https://example.net/"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4])
	}
	c := newClickFuzz(f)
	f.Fuzz(func(t *testing.T, method, path, query, name, value string) {
		r := c.request(method, path, query, name, value)
		c.serve(t, r)
		if log := c.log.take(); strings.Contains(log, "panic") || strings.Contains(log, marker) {
			t.Fatal(log)
		}
	})
}

// FuzzVerifyPlace: what is taken for a place of a link was given out for it, to the letter, and is not over.
func FuzzVerifyPlace(f *testing.F) {
	ring := parseKeys(f, testKeys)
	now := time.Unix(1_800_000_000, 0)
	link, other := uuid.MustParse("019f3d2a-0000-7000-8000-000000000001"), uuid.MustParse("019f3d2a-0000-7000-8000-000000000002")
	place := ring.SignPlace(7, link, other, now.Add(placeLife))
	token, err := ring.Sign(7, link)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", place, place[1:], place + "A", token, ring.SignPlace(7, other, other, now.Add(placeLife)), ring.SignPlace(7, link, other, now), strings.Repeat("A", placeLen), strings.Repeat("\n", placeLen)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		click, end, err := ring.VerifyPlace(s, 7, link, now)
		if err == nil && (ring.SignPlace(7, link, click, end) != s || !now.Before(end)) {
			t.Fatalf("%q is taken for a place of click %s, until %s", s, click, end)
		}
		if _, _, err := ring.VerifyPlace(s, 7, other, now); err == nil && s == place {
			t.Fatal("the place of a link works with another one")
		}
	})
}
