package portal

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"latchkey/internal/brand"
)

//go:embed pages.html
var pagesHTML string

//go:embed pages.css
var pagesCSS string

// page is one of the answers that a visitor can get. Each has its own status and words; none
// shows anything of the inside.
type page string

const (
	pageConfirm      page = "confirm"
	pageWaiting      page = "waiting"
	pageTryAgain     page = "try_again"
	pageNotFound     page = "not_found"
	pageExpired      page = "expired"
	pageUsedUp       page = "used_up"
	pageRevoked      page = "revoked"
	pageCustomerGone page = "customer_gone"
	pageOurFault     page = "our_fault"
	pageTooMany      page = "too_many"
	pageRenewed      page = "renewed"
	pageMethod       page = "method_not_allowed"
	pageTooLarge     page = "too_large"
	pageIncomplete   page = "incomplete"
	// A limit on tokens that don't work: what its visitor needs to hear is that, not to wait.
	pageTooManyForged page = "too_many_forged"
)

// kind is a page's status, and the prefix of its words in locales/*.json.
type kind struct {
	status int
	words  string
}

var kinds = map[page]kind{
	pageConfirm:       {200, "confirm"},
	pageWaiting:       {200, "waiting"},
	pageTryAgain:      {503, "try_again"},
	pageNotFound:      {404, "not_found"},
	pageExpired:       {410, "expired"},
	pageUsedUp:        {410, "used_up"},
	pageRevoked:       {410, "revoked"},
	pageCustomerGone:  {502, "customer_gone"},
	pageOurFault:      {502, "our_fault"},
	pageTooMany:       {429, "too_many"},
	pageRenewed:       {202, "renewed"},
	pageMethod:        {405, "bad_request"},
	pageTooLarge:      {413, "bad_request"},
	pageIncomplete:    {400, "bad_request"},
	pageTooManyForged: {429, "not_found"},
}

// answer is what a request gets: a redirect, or a page with what it shows.
type answer struct {
	location   string        // the session's URL: 303, all else is ignored
	page       page          //
	locale     string        // the session's locale; "" or "auto" = the visitor's own
	flow       string        // flow_data.type, for confirm's title
	token      string        // where set, the page's button leads to /l/<token>, by POST (confirm) or GET (try_again)
	place      string        // where set (with token), the page comes back by GET of /l/<token>/wait/<place>
	expires    time.Time     // confirm only
	wait       time.Duration // waiting: the honest time left
	reference  string        // a click's id, for support and the audit
	retryAfter int           // seconds, Retry-After (0 = none)
	refresh    int           // seconds until the browser comes back by itself, to place where set (0 = never)
	renewable  bool          // expired: offers a new link by POST to /l/<token>/renew
}

// PagesConfig is what the deployment puts on the pages; all of it may be empty.
type PagesConfig struct {
	Brand      string
	SupportURL string
	Color      string // as brand.ParseColor takes it
	LoginURL   string // Stripe's own login page, offered when sessions can't be made
	AllowHTTP  bool   // Stripe is on loopback: redirects may go to http
	Logo       *Logo
}

// Pages renders every answer of the click server: each page once for each locale, at its first
// use. A request writes what was rendered and fills its holes.
type Pages struct {
	cfg       PagesConfig
	style     string
	headers   map[string][]string // of every answer
	tmpl      *template.Template
	languages *languages
	bodies    sync.Pool // of *bytes.Buffer

	mu       sync.RWMutex
	words    map[string]words
	rendered map[variant]*rendered
}

// variant is one rendering. Its values are bounded (the flow is one of those with a title), and
// so is what is kept.
type variant struct {
	page      page
	locale    string
	flow      string
	button    button
	expires   bool
	reference bool
}

// button is what a page offers to press.
type button int

const (
	noButton    button = iota
	postButton         // the link itself
	placeButton        // the place in the line, by GET
	linkButton         // the link itself, by GET
	renewButton
)

// rendered is a page cut at its holes: text before the first, and then a hole and the text behind
// it in turn.
type rendered struct {
	words    words
	language []string // the value of Content-Language
	status   int
	first    string
	rest     []piece
}

type piece struct{ hole, text string }

var holes = regexp.MustCompile(`\{(?:token|place|wait|reference|date|time)\}`)

// NewPages prepares the pages. AllowHTTP is for a Stripe on loopback only: browsers hold the
// redirect after a form's submission against form-action too, and a session's host is free, so
// the scheme is what can be fixed.
func NewPages(cfg PagesConfig) *Pages {
	color, err := brand.ParseColor(cfg.Color)
	if err != nil { // none: the configuration was checked
		color = brand.Default
	}
	p := &Pages{
		cfg: cfg, style: palette(color) + pagesCSS, languages: newLanguages(),
		tmpl:  template.Must(template.New("page").Parse(pagesHTML)),
		words: map[string]words{}, rendered: map[variant]*rendered{},
		bodies: sync.Pool{New: func() any { return new(bytes.Buffer) }},
	}
	sum := sha256.Sum256([]byte(p.style))
	csp := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; "
	if cfg.Logo != nil {
		csp += "img-src 'self'; "
	}
	csp += "form-action 'self' https:"
	if cfg.AllowHTTP {
		csp += " http:"
	}
	p.headers = map[string][]string{
		"Cache-Control":                {"no-store"},
		"Referrer-Policy":              {"no-referrer"},
		"X-Robots-Tag":                 {"noindex, nofollow"},
		"X-Content-Type-Options":       {"nosniff"},
		"X-Frame-Options":              {"DENY"},
		"Cross-Origin-Opener-Policy":   {"same-origin"},
		"Cross-Origin-Resource-Policy": {"same-origin"},
		"Permissions-Policy":           {"camera=(), geolocation=(), microphone=()"},
		"Content-Security-Policy":      {csp + "; base-uri 'none'; frame-ancestors 'none'"},
	}
	return p
}

// setHeaders puts on every answer, redirects included, what keeps a link from leaking. The values
// are shared by all answers: Set replaces one, and Add would find it full.
func (p *Pages) setHeaders(h http.Header) {
	for name, value := range p.headers {
		h[name] = value
	}
}

var (
	varyLanguage = []string{"Accept-Language"}
	typeHTML     = []string{"text/html; charset=utf-8"}
)

// write sends an answer in the form and the language that the request asks for.
func (p *Pages) write(w http.ResponseWriter, r *http.Request, a answer) {
	h := w.Header()
	if a.location != "" {
		h.Set("Location", a.location)
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	if a.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(a.retryAfter))
	}
	if a.refresh > 0 {
		refresh := strconv.Itoa(a.refresh)
		if a.place != "" {
			refresh += "; url=/l/" + a.token + "/wait/" + a.place
		}
		h.Set("Refresh", refresh)
	}
	page := p.page(p.variant(a, p.languages.choose(a.locale, r.Header.Get("Accept-Language"))))
	h["Vary"], h["Content-Language"] = varyLanguage, page.language
	if page.status >= 400 && wantsJSON(r) {
		writeProblem(w, page, a)
		return
	}
	body := p.bodies.Get().(*bytes.Buffer)
	defer p.bodies.Put(body)
	body.Reset()
	page.fill(body, a)
	h["Content-Type"] = typeHTML
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(page.status)
	_, _ = w.Write(body.Bytes()) // net/http drops it for HEAD
}

// variant tells which rendering an answer is.
func (p *Pages) variant(a answer, locale string) variant {
	v := variant{page: a.page, locale: locale}
	switch a.page {
	case pageConfirm:
		v.expires = !a.expires.IsZero()
		switch a.flow {
		case "payment_method_update", "customer_update", "subscription_cancel", "subscription_update":
			v.flow = a.flow
		case "subscription_update_confirm":
			v.flow = "subscription_update"
		}
		if a.token != "" {
			v.button = postButton
		}
	case pageWaiting, pageTryAgain:
		switch {
		case a.token != "" && a.place != "":
			v.button = placeButton
		case a.token != "" && a.page == pageTryAgain:
			v.button = linkButton
		}
	case pageExpired:
		if a.renewable && a.token != "" {
			v.button = renewButton
		}
	case pageOurFault, pageCustomerGone:
		v.reference = a.reference != ""
	}
	return v
}

// page gives a rendering, and makes it at its first use.
func (p *Pages) page(v variant) *rendered {
	p.mu.RLock()
	r := p.rendered[v]
	p.mu.RUnlock()
	if r != nil {
		return r
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.words[v.locale]
	if !ok {
		w = loadWords(v.locale)
		p.words[v.locale] = w
	}
	r = p.render(v, w)
	p.rendered[v] = r
	return r
}

// render executes the template and cuts the page at its holes.
func (p *Pages) render(v variant, w words) *rendered {
	var page strings.Builder
	if err := p.tmpl.Execute(&page, p.data(v, w)); err != nil {
		panic(fmt.Errorf("render %s in %s: %w", v.page, v.locale, err)) // our own template, our own data
	}
	html := page.String()
	r := &rendered{words: w, language: []string{w.Locale}, status: kinds[v.page].status, first: html}
	for i, at := range holes.FindAllStringIndex(html, -1) {
		next := piece{hole: html[at[0]+1 : at[1]-1], text: html[at[1]:]}
		if i == 0 {
			r.first = html[:at[0]]
		} else {
			last := &r.rest[i-1]
			last.text = last.text[:len(last.text)-len(html)+at[0]]
		}
		r.rest = append(r.rest, next)
	}
	return r
}

// data is what the template shows.
func (p *Pages) data(v variant, w words) map[string]any {
	name := kinds[v.page].words
	title := w.Get(name + ".title")
	if v.flow != "" {
		title = w.Get(name + ".title." + v.flow)
	}
	data := map[string]any{
		"Locale": w.Locale, "Title": title, "Text": w.Get(name + ".text"), "Wait": v.page == pageWaiting,
		"CSS": template.CSS(p.style), "Brand": withoutHoles(p.cfg.Brand), "SupportURL": p.cfg.SupportURL, "Support": w.Get("support"),
	}
	if p.cfg.Logo != nil {
		data["Logo"] = p.cfg.Logo.path
	}
	if v.page == pageExpired {
		data["More"] = w.Get("expired.ask")
	}
	switch v.button {
	case postButton:
		data["Post"] = map[string]string{"Label": w.Get(name + ".button")}
	case placeButton:
		data["Get"] = map[string]any{"Label": w.Get(name + ".button"), "Place": true}
	case linkButton:
		data["Get"] = map[string]any{"Label": w.Get(name + ".button")}
	case renewButton:
		data["More"] = w.Get("expired.renew")
		data["Post"] = map[string]string{"Label": w.Get(name + ".button"), "Below": "/renew"}
	}
	if v.expires {
		data["Expires"] = unbrokenTime(w.Get("confirm.expires"))
	}
	if v.reference {
		data["Reference"] = w.Get("reference")
	}
	if v.page == pageTryAgain && p.cfg.LoginURL != "" {
		data["Login"] = map[string]string{"URL": p.cfg.LoginURL, "Label": w.Get("try_again.login")}
	}
	return data
}

// unbrokenTime keeps the time's parts and its zone on one line: "1:26" without its "AM UTC" is
// another time.
func unbrokenTime(text string) string {
	before, rest, _ := strings.Cut(text, "{time}")
	unit, after, _ := strings.Cut(rest, "UTC")
	return before + "{time}" + unbroken(unit) + "UTC" + after
}

func unbroken(s string) string { return strings.ReplaceAll(s, " ", "\u00a0") }

// withoutHoles lets a brand's braces be braces.
func withoutHoles(s string) template.HTML {
	return template.HTML(strings.ReplaceAll(template.HTMLEscapeString(s), "{", "&#123;"))
}

// fill puts an answer's values, escaped, into the holes.
func (r *rendered) fill(body *bytes.Buffer, a answer) {
	body.WriteString(r.first)
	for _, p := range r.rest {
		body.WriteString(template.HTMLEscapeString(r.value(p.hole, a)))
		body.WriteString(p.text)
	}
}

func (r *rendered) value(hole string, a answer) string {
	switch hole {
	case "token":
		return a.token
	case "place":
		return a.place
	case "wait":
		return r.words.remaining(a.wait)
	case "date":
		return r.words.Date(a.expires)
	case "time":
		return unbroken(r.words.Clock(a.expires))
	}
	return a.reference
}

// writeProblem answers with RFC 9457 problem details.
func writeProblem(w http.ResponseWriter, page *rendered, a answer) {
	name := kinds[a.page].words
	problem := map[string]any{
		"type":   "about:blank",
		"title":  page.words.Get(name + ".title"),
		"status": page.status,
		"detail": page.words.Get(name + ".text"),
		"code":   string(a.page),
	}
	if a.reference != "" {
		problem["reference"] = a.reference
	}
	body, err := json.Marshal(problem)
	if err != nil {
		panic(fmt.Errorf("marshal strings: %w", err))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(page.status)
	_, _ = w.Write(body)
}

// wantsJSON is true where JSON is asked for and HTML is not.
func wantsJSON(r *http.Request) bool {
	accept := strings.ToLower(strings.Join(r.Header.Values("Accept"), ","))
	return strings.Contains(accept, "json") && !strings.Contains(accept, "text/html")
}
