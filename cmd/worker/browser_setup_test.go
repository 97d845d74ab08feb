package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// findChromium returns the path of a browser. Without one the tests are skipped, but never in CI.
func findChromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const missing = "no Chromium: install it (Debian: apt install chromium), or set CHROMIUM to a Chromium's or Chrome's path"
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// startChromium starts the one browser of all browser tests, and ends it with t. Its profile is in
// a folder that chromedp makes and removes, once no process of the browser is there to write to it.
func startChromium(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(findChromium(t)),
		chromedp.NoSandbox, // containers have none, and it sees our own pages only
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-domain-reliability", true),
		chromedp.Flag("no-proxy-server", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"), // it can reach nobody else
		chromedp.Flag("lang", "en-US"),
	)
	// Not t's context: it ends before a cleanup could close the browser in an orderly way.
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, _ = chromedp.NewContext(ctx)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("Chromium does not start: %v", err)
	}
	t.Cleanup(func() {
		in, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := chromedp.Cancel(in); err != nil {
			t.Errorf("Chromium does not stop: %v", err)
		}
	})
	return ctx
}

// tab is a tab with cookies and a cache of its own, and what was seen in it.
type tab struct {
	d   *deployment
	ctx context.Context

	mu        sync.Mutex
	at        string // the address of what is shown
	loads     int    // pages loaded
	loaded    bool   // what is shown
	loader    cdp.LoaderID
	requests  []*network.EventRequestWillBeSent
	loaders   map[network.RequestID]cdp.LoaderID
	received  map[cdp.LoaderID]float64 // bytes of a page with all that belongs to it, headers included
	documents []*network.Response
	problems  []string // what the browser finds wrong with a page
}

// open opens a tab of a desktop's size.
func (d *deployment) open(chromium context.Context) *tab {
	d.t.Helper()
	b := &tab{d: d, loaders: map[network.RequestID]cdp.LoaderID{}, received: map[cdp.LoaderID]float64{}}
	ctx, closeTab := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext(), chromedp.WithListener(b.hear))
	b.ctx = ctx
	d.t.Cleanup(closeTab)
	if err := chromedp.Do(ctx); err != nil { // not by do: its context would be the tab's life
		d.t.Fatalf("open a tab: %v", err)
	}
	set(b, audits.Enable, cdp.Empty{})
	set(b, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true}) // each page is somebody's first
	set(b, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: b.userAgent()})
	// Tabs are open side by side, and each takes itself for the one in front.
	set(b, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	b.desktop()
	return b
}

// userAgent is the one that the browser has with a window: without, it says that it is a machine.
func (b *tab) userAgent() string {
	b.d.t.Helper()
	version, err := chromedp.CallBrowser(b.ctx, browser.GetVersion, cdp.Empty{})
	if err != nil {
		b.d.t.Fatal(err)
	}
	return strings.Replace(version.UserAgent, "HeadlessChrome", "Chrome", 1)
}

// hear is called for each event in turn.
func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *page.EventFrameNavigated:
		if e.Frame.ParentID == "" {
			b.at, b.loader, b.loaded = e.Frame.URL, e.Frame.LoaderID, false
		}
	case *page.EventLoadEventFired:
		b.loads, b.loaded = b.loads+1, true
	case *network.EventRequestWillBeSent:
		b.requests, b.loaders[e.RequestID] = append(b.requests, e), e.LoaderID
	case *network.EventResponseReceived:
		if e.Type == network.ResourceTypeDocument {
			b.documents = append(b.documents, e.Response)
		}
	case *network.EventLoadingFinished:
		b.received[b.loaders[e.RequestID]] += e.EncodedDataLength
	case *network.EventLoadingFailed:
		b.problems = append(b.problems, "a request failed: "+e.ErrorText)
	case *runtime.EventExceptionThrown:
		b.problems = append(b.problems, e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		b.problems = append(b.problems, "the console was written to")
	case *log.EventEntryAdded:
		// A page that is an error says so by its status; that is no news.
		if e.Entry.Source != log.EntrySourceNetwork || !strings.Contains(e.Entry.Text, "responded with a status of") {
			b.problems = append(b.problems, e.Entry.Text)
		}
	case *audits.EventIssueAdded:
		b.hearIssue(e.Issue)
	}
}

// hearIssue is told what the developer tools list under issues. Two are about how one came to a
// page and went on from it, which here goes without a hand.
func (b *tab) hearIssue(issue *audits.InspectorIssue) {
	if g := issue.Details.GenericIssueDetails; g != nil && g.ErrorType == audits.GenericIssueErrorTypeNavigationEntryMarkedSkippable {
		return // Back leaves out a page that went on by itself: as it should
	}
	if issue.Code != audits.InspectorIssueCodeBounceTrackingIssue {
		b.problems = append(b.problems, string(issue.Code))
	}
}

// do runs steps that should take no time.
func (b *tab) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.d.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.d.t.Fatalf("%s: %v", what, err)
	}
}

// set sends a command that has no result of interest.
func set[P, R any](b *tab, command cdp.Command[P, R], params P) {
	b.d.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if _, err := chromedp.Call(ctx, command, params); err != nil {
		b.d.t.Fatalf("%s: %v", command.Method, err)
	}
}

// visit opens a page, whatever its status.
func (b *tab) visit(url string) {
	b.d.t.Helper()
	b.do("open the page", chromedp.Navigate(url))
}

// arrive takes a step that leads to another page, and waits for that page.
func (b *tab) arrive(at string, step chromedp.Action[chromedp.Void]) {
	b.d.t.Helper()
	before := b.count()
	b.do("leave for "+at, step)
	b.wait(at, before)
}

// arrived waits until the browser is somewhere, which may be so already.
func (b *tab) arrived(at string) {
	b.d.t.Helper()
	b.wait(at, 0)
}

func (b *tab) wait(at string, before int) {
	b.d.t.Helper()
	b.d.until("the browser to get to "+at, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.loaded && b.loads > before && strings.HasPrefix(b.at, at)
	})
}

// size is what the shown page took to transfer, with all that belongs to it.
func (b *tab) size() (bytes float64) {
	b.d.t.Helper()
	b.d.until("the page's size", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		bytes = b.received[b.loader]
		return b.loaded && bytes > 0
	})
	return bytes
}

func (b *tab) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.loads
}

func (b *tab) location() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at
}

// last is the newest page's response.
func (b *tab) last() *network.Response {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.documents[len(b.documents)-1]
}

// wantCalm fails where the browser complained about a page: a violation of its policy, an error in
// the console, a request that failed, an issue of the developer tools.
func (b *tab) wantCalm() {
	b.d.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.problems) > 0 {
		b.d.t.Errorf("the browser complains about %s: %q", b.at, b.problems)
	}
}

func (b *tab) desktop() {
	b.do("a desktop's size", chromedp.EmulateViewport(1024, 768))
}

func (b *tab) phone() {
	b.do("a phone's size", chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulatePortrait, chromedp.EmulateMobile, chromedp.EmulateTouch))
}

// zoomed is a desktop at 400 %, and as narrow as WCAG 1.4.10 asks for.
func (b *tab) zoomed() {
	b.do("320 px", chromedp.EmulateViewport(320, 568, chromedp.EmulateScale(4)))
}

func (b *tab) scheme(name string) {
	set(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}})
}

func (b *tab) language(accept string) {
	set(b, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: network.Headers{"Accept-Language": accept}})
}

// looks is how a page is laid out and painted.
type looks struct {
	Lang, Heading, Text       string
	Width, Window             float64 // of the content, and of the window
	Background, Card          string
	Edge                      string // the button's
	Login                     string // where the page sends to log in
	Pieces                    []piece
	Buttons                   []float64 // heights
	Focus, Outline, FocusRing string    // the focused element's text, the style of its outline, and its colour
	Thick                     float64   // the outline
}

// piece is an element with text of its own.
type piece struct {
	Text, Color, Background string
	Left, Right, Cut        float64 // Cut is what does not fit
}

const lookAround = `(() => {
	const style = e => getComputedStyle(e), text = e => e.innerText.trim()
	const under = e => { while (e && style(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement; return style(e || document.body).backgroundColor }
	const root = document.querySelector('main, .pad') // a page's, a mail's
	const pieces = [...root.querySelectorAll('*')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
	const buttons = [...document.querySelectorAll('.button')], focus = document.activeElement
	return {
		Lang: document.documentElement.lang, Heading: text(document.querySelector('h1')), Text: text(root),
		Width: document.documentElement.scrollWidth, Window: innerWidth,
		Background: style(document.body).backgroundColor, Card: under(root),
		Edge: buttons.length ? style(buttons[0]).borderTopColor : '',
		Login: document.querySelector('.also a')?.href || '',
		Pieces: pieces.map(e => { const r = e.getBoundingClientRect(); return {Text: text(e), Color: style(e).color, Background: under(e),
			Left: r.left, Right: r.right, Cut: e.scrollWidth - Math.max(e.clientWidth, Math.ceil(r.width))} }),
		Buttons: buttons.map(e => e.getBoundingClientRect().height),
		Focus: focus === document.body ? '' : text(focus), Outline: style(focus).outlineStyle, FocusRing: style(focus).outlineColor,
		Thick: parseFloat(style(focus).outlineWidth),
	}
})()`

// look measures what is shown. A page that comes back by itself can go away meanwhile; then it
// looks again.
func (b *tab) look() (l looks) {
	b.d.t.Helper()
	b.d.until("a look at "+b.location(), func() bool {
		var err error
		l, err = chromedp.Run(b.ctx, chromedp.Evaluate[looks](lookAround))
		return err == nil
	})
	return l
}

// wantReadable holds a page to WCAG 2.2 AA: 1.4.3 and 1.4.11 (contrast), 1.4.10 (reflow), and to a
// button that a thumb hits.
func (b *tab) wantReadable(how string) looks {
	b.d.t.Helper()
	l := b.look()
	if l.Width > l.Window {
		b.d.t.Errorf("%s: the page is %g px wide, the window %g", how, l.Width, l.Window)
	}
	if len(l.Pieces) < 2 {
		b.d.t.Errorf("%s: the page says too little: %+v", how, l.Pieces)
	}
	for _, p := range l.Pieces {
		if p.Left < 0 || p.Right > l.Window || p.Cut > 0 {
			b.d.t.Errorf("%s: %q lies from %g to %g px in a window of %g, and %g px of it are cut", how, p.Text, p.Left, p.Right, l.Window, p.Cut)
		}
		if c := contrast(p.Color, p.Background); c < 4.5 {
			b.d.t.Errorf("%s: %q has a contrast of %.2f: %s on %s", how, p.Text, c, p.Color, p.Background)
		}
	}
	if l.Edge != "" && contrast(l.Edge, l.Card) < 3 {
		b.d.t.Errorf("%s: the button's edge has a contrast of %.2f: %s on %s", how, contrast(l.Edge, l.Card), l.Edge, l.Card)
	}
	for _, height := range l.Buttons {
		if height < 44 {
			b.d.t.Errorf("%s: the button is %g px high", how, height)
		}
	}
	return l
}

// contrast is WCAG's ratio of two opaque colours as computed styles have them, and 0 of others.
func contrast(a, b string) float64 {
	la, lb := luminance(a), luminance(b)
	if math.IsNaN(la) || math.IsNaN(lb) {
		return 0
	}
	return (max(la, lb) + 0.05) / (min(la, lb) + 0.05)
}

func luminance(color string) float64 {
	var rgb [3]float64
	if n, err := fmt.Sscanf(color, "rgb(%g, %g, %g)", &rgb[0], &rgb[1], &rgb[2]); n != 3 || err != nil {
		return math.NaN()
	}
	for i, v := range rgb {
		if v /= 255; v <= 0.04045 {
			rgb[i] = v / 12.92
		} else {
			rgb[i] = math.Pow((v+0.055)/1.055, 2.4)
		}
	}
	return 0.2126*rgb[0] + 0.7152*rgb[1] + 0.0722*rgb[2]
}

// picture keeps a screenshot where somebody wants to look at them.
func (b *tab) picture(name string) {
	b.d.t.Helper()
	dir := os.Getenv("LATCHKEY_SCREENSHOTS")
	if dir == "" {
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.d.t.Fatal(err)
	}
	var png []byte
	b.d.until("the screenshot "+name, func() (done bool) { // again, where the page went on by itself
		var err error
		png, err = chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
		return err == nil
	})
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		b.d.t.Fatal(err)
	}
}

// shop is the business whose customers click: where they come back to, and where its logo is.
type shop struct {
	*httptest.Server
	mu       sync.Mutex
	referers []string // of visits to /billing
}

const shopLogo = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 150 40" width="150" height="40">` +
	`<circle cx="20" cy="20" r="16" fill="#0b7a75"/><path d="M13 21l5 5 10-11" fill="none" stroke="#fff" stroke-width="4"/>` +
	`<path d="M48 12v16h12M66 12h12M66 20h9M66 28h12M66 12v16M86 12h14M93 12v16M106 28l7-16 7 16M109 23h8" fill="none" stroke="#123" stroke-width="3"/></svg>`

func openShop(t *testing.T) *shop {
	s := &shop{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /logo.svg", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "image/svg+xml")
		_, _ = w.Write([]byte(shopLogo))
	})
	mux.HandleFunc("GET /billing", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.referers = append(s.referers, r.Referer())
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(`<!doctype html><html lang="en"><title>Welcome back</title><h1>Welcome back</h1>`))
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// brand puts the shop on the pages.
func (s *shop) brand(c *Config) {
	c.BrandName, c.BrandColor, c.BrandLogoURL = "Leta", "#0b7a75", s.URL+"/logo.svg"
	c.SupportURL = "https://help.example.com/billing"
	c.ReturnURL = s.URL + "/billing"
}

// sql runs a statement as the owner of the database.
func (d *deployment) sql(statement string, args ...any) {
	d.t.Helper()
	if _, err := d.pool.Exec(d.t.Context(), statement, args...); err != nil {
		d.t.Fatalf("%s: %v", statement, err)
	}
}

// text runs a query that answers with one string.
func (d *deployment) text(sql string) (s string) {
	d.t.Helper()
	if err := d.pool.QueryRow(d.t.Context(), sql).Scan(&s); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// busy makes the next slot of the Stripe budget lie in the future, as a line of others would.
func (d *deployment) busy(account string, ahead time.Duration) {
	d.t.Helper()
	d.sql(`INSERT INTO stripe_budget (account, slot_at) VALUES ($1, clock_timestamp() + $2)
		ON CONFLICT (account) DO UPDATE SET slot_at = excluded.slot_at`, account, ahead)
}

// words are the strings of a locale's file over those of the one that it inherits.
func words(t *testing.T, locale string) map[string]string {
	t.Helper()
	all := map[string]string{}
	base, _, _ := strings.Cut(locale, "-")
	for _, name := range slices.Compact([]string{base, locale}) {
		var own map[string]any
		b, err := os.ReadFile(filepath.Join("..", "..", "internal", "portal", "locales", name+".json"))
		if err == nil {
			err = json.Unmarshal(b, &own)
		}
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range own {
			if s, ok := value.(string); ok { // the others have numbers in them
				all[key] = s
			}
		}
	}
	return all
}

// origin is scheme and host of a URL.
func origin(url string) string {
	scheme, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	return cmp.Or(scheme, "?") + "://" + host
}
