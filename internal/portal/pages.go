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
	"strconv"
	"strings"
	"time"
)

//go:embed pages.html
var pagesHTML string

//go:embed pages.css
var pagesCSS string

// page is one of the answers that a visitor can get. Each has its own status and words; none
// shows anything of the inside.
type page string

const (
	pageConfirm  page = "confirm"
	pageNotFound page = "not_found"
	pageExpired  page = "expired"
	pageRevoked  page = "revoked"
	pageUsedUp   page = "used_up"
	pageOurFault page = "our_fault"
	pageTryAgain page = "try_again"
	pageMethod   page = "method_not_allowed"
	pageTooLarge page = "too_large"

	pageIncomplete page = "incomplete"

	pageWaiting      page = "waiting"
	pageCustomerGone page = "customer_gone"
	pageTooMany      page = "too_many"
	pageRenewed      page = "renewed"
)

// words are a page's status and text.
type words struct {
	Status      int
	Title, Text string
}

var english = map[page]words{
	pageWaiting: {200, "You’re in line", ""}, pageCustomerGone: {502, "gone", ""}, pageTooMany: {429, "many", ""}, pageRenewed: {202, "renewed", ""},
	pageConfirm:    {200, "Your billing page is ready", "Continue to Stripe’s secure billing page to manage your payment details and your plan."},
	pageNotFound:   {404, "This link does not work", "The address may have been cut off on its way to you. Please open it again from the original message."},
	pageExpired:    {410, "This link has expired", "For your security, links to your billing page work for a limited time only. Please ask for a new one."},
	pageRevoked:    {410, "This link is no longer valid", "It was withdrawn. Nothing has changed on your account. If you still need your billing page, please ask for a new link."},
	pageUsedUp:     {410, "This link has been used", "It was made for a limited number of visits, and they have been made. If you still need your billing page, please ask for a new link."},
	pageOurFault:   {502, "Something is wrong on our side", "We could not open your billing page. This is our mistake, not yours, and nothing has changed on your account. Please contact us, and tell us the reference below."},
	pageTryAgain:   {503, "Please try again in a moment", "Your billing page could not be opened just now. Nothing has changed on your account."},
	pageMethod:     {405, "This address is for web browsers", "Please open the link in your browser."},
	pageIncomplete: {400, "That did not arrive in full", "The connection was too slow or broke off. Nothing has changed on your account. Please open the link again."},
	pageTooLarge:   {413, "That was too much", "Please open the link in your browser again."},
}

// Pages renders every answer of the click server.
type Pages struct {
	brand      string
	supportURL string
	csp        string
	tmpl       *template.Template
}

// NewPages prepares the pages. allowHTTP is for a Stripe on loopback only: browsers hold the
// redirect after a form's submission against form-action too, and a session's host is free, so
// the scheme is what can be fixed.
func NewPages(brand, supportURL string, allowHTTP bool) *Pages {
	sum := sha256.Sum256([]byte(pagesCSS))
	action := "'self' https:"
	if allowHTTP {
		action += " http:"
	}
	return &Pages{
		brand:      brand,
		supportURL: supportURL,
		csp: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
			"'; form-action " + action + "; base-uri 'none'; frame-ancestors 'none'",
		tmpl: template.Must(template.New("page").Parse(pagesHTML)),
	}
}

// setHeaders puts on every answer, redirects included, what keeps a link from leaking.
func (p *Pages) setHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Robots-Tag", "noindex, nofollow")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Content-Security-Policy", p.csp)
}

// answer is what a request gets: a redirect, or a page with what it shows.
type answer struct {
	location            string // the session's URL
	page                page
	token               string // where set, the page has a button that POSTs to the link
	expires             time.Time
	reference           string // a click's id, for support and the audit
	retryAfter          int    // seconds
	refresh             int
	locale, flow, place string
	wait                time.Duration
	renewable           bool
}

// write sends an answer in the form that the request asks for.
func (p *Pages) write(w http.ResponseWriter, r *http.Request, a answer) {
	if a.location != "" {
		w.Header().Set("Location", a.location)
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	if a.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(a.retryAfter))
	}
	if a.refresh > 0 {
		v := strconv.Itoa(a.refresh)
		if a.place != "" {
			v += "; url=/l/" + a.token + "/wait/" + a.place
		}
		w.Header().Set("Refresh", v)
	}
	words := english[a.page]
	if words.Status >= 400 && wantsJSON(r) {
		p.writeProblem(w, words, a)
		return
	}
	var body bytes.Buffer
	if err := p.tmpl.Execute(&body, p.data(words, a)); err != nil {
		// Unreachable with our own templates and data; the visitor gets the status all the same.
		http.Error(w, words.Title, words.Status)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(words.Status)
	_, _ = w.Write(body.Bytes()) // net/http drops it for HEAD
}

func (p *Pages) data(words words, a answer) map[string]any {
	data := map[string]any{
		"Brand": p.brand, "SupportURL": p.supportURL, "CSS": template.CSS(pagesCSS),
		"Title": words.Title, "Text": words.Text, "Reference": a.reference,
	}
	if a.token != "" {
		data["Action"] = "/l/" + a.token
		data["Button"] = map[bool]string{true: "Continue to billing", false: "Try again"}[a.page == pageConfirm]
	}
	if !a.expires.IsZero() {
		data["Expires"] = a.expires.UTC().Format("2 January 2006, 15:04 UTC")
	}
	return data
}

// writeProblem answers with RFC 9457 problem details.
func (p *Pages) writeProblem(w http.ResponseWriter, words words, a answer) {
	problem := map[string]any{
		"type":   "about:blank",
		"title":  words.Title,
		"status": words.Status,
		"detail": words.Text,
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
	w.WriteHeader(words.Status)
	_, _ = w.Write(body)
}

// wantsJSON is true where JSON is asked for and HTML is not.
func wantsJSON(r *http.Request) bool {
	accept := strings.ToLower(strings.Join(r.Header.Values("Accept"), ","))
	return strings.Contains(accept, "json") && !strings.Contains(accept, "text/html")
}
