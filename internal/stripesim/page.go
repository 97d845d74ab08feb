package stripesim

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
)

//go:embed page.css
var pageCSS string

//go:embed page.html
var pageHTML string

var pages = template.Must(template.New("page").Parse(pageHTML))

// pageCSP allows the page's own style and nothing else.
var pageCSP = func() string {
	sum := sha256.Sum256([]byte(pageCSS))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// page is what page.html shows. View chooses among its blocks.
type page struct {
	View       string // session, expired, unknown, login, index
	CSS        template.CSS
	Lang       string
	Session    Session
	ReturnHost string
	DoneURL    string // after_completion's redirect
	DoneHost   string
	Message    string // after_completion's custom message
	Email      string // login page
	Magics     []magic
}

// Prefix and Meaning show a magic customer id on the index page.
func (m magic) Prefix() string  { return "cus_" + m.prefix + "…" }
func (m magic) Meaning() string { return m.meaning }

func (s *Sim) portalPage(w http.ResponseWriter, r *http.Request) {
	now := s.now()
	// HEAD is a look, not a visit: it does not lengthen the session's life.
	sess, found := s.ledger.visit(r.PathValue("secret"), now, r.Method == http.MethodGet)
	switch {
	case !found:
		writePage(w, http.StatusNotFound, page{View: "unknown"})
	case sess.Expired(now):
		writePage(w, http.StatusGone, page{View: "expired"})
	default:
		lang := sess.Locale
		if lang == "" || lang == "auto" {
			lang = "en"
		}
		writePage(w, http.StatusOK, page{
			View: "session", Lang: lang, Session: sess, ReturnHost: hostOf(sess.ReturnURL),
			DoneURL: sess.doneURL, DoneHost: hostOf(sess.doneURL), Message: sess.message,
		})
	}
}

// loginPage stands for Stripe's no-code login page.
func (s *Sim) loginPage(w http.ResponseWriter, r *http.Request) {
	writePage(w, http.StatusOK, page{View: "login", Email: r.URL.Query().Get("prefilled_email")})
}

func (s *Sim) indexPage(w http.ResponseWriter, _ *http.Request) {
	writePage(w, http.StatusOK, page{View: "index", Magics: magics})
}

func writePage(w http.ResponseWriter, status int, p page) {
	p.CSS = template.CSS(pageCSS)
	if p.Lang == "" {
		p.Lang = "en"
	}
	var b bytes.Buffer
	if err := pages.Execute(&b, p); err != nil {
		http.Error(w, "page could not be rendered", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", pageCSP)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Robots-Tag", "noindex")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

func hostOf(link string) string {
	u, err := url.Parse(link)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(u.Host, "www.")
}
