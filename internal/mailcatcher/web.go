package mailcatcher

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

var (
	//go:embed pages.html
	pagesHTML string
	//go:embed pages.css
	pagesCSS string

	pages = template.Must(template.New("").Funcs(template.FuncMap{
		"style": func() template.CSS { return template.CSS(pagesCSS) }, // ours, not a mail's
		"links": links,
		"join":  func(s []string) string { return strings.Join(s, ", ") },
	}).Parse(pagesHTML))

	// pagePolicy is for our own pages: nothing but our style, an empty icon and the
	// mail's frame.
	pagePolicy = "default-src 'none'; style-src '" + sha256Source(pagesCSS) +
		"'; img-src data:; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// mailPolicy is for a mail's HTML, opened in our frame or by itself: an origin of
// its own, no script, no request but pictures (over https only, so that none
// reaches a server of this machine). Its links open in a new window, which is what
// one wants to do with the link in a mail.
const mailPolicy = "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; " +
	"style-src 'unsafe-inline'; img-src data: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

func sha256Source(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Handler serves the pages. All links are relative, so it works below any path
// that http.StripPrefix takes away and that ends in a slash.
//
//	/                 all mails, newest first
//	/mails.json       the same as JSON
//	/mails/{id}       one mail
//	/mails/{id}/html  its HTML part, /mails/{id}/raw its source
func (c *Catcher) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", c.list)
	mux.HandleFunc("GET /mails.json", c.json)
	mux.HandleFunc("GET /mails/{id}", c.one(func(w http.ResponseWriter, m *Mail) { page(w, http.StatusOK, "mail", m) }))
	mux.HandleFunc("GET /mails/{id}/html", c.one(showHTML))
	mux.HandleFunc("GET /mails/{id}/raw", c.one(showRaw))
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		page(w, http.StatusNotFound, "missing", nil)
	})
	return mux
}

func (c *Catcher) list(w http.ResponseWriter, _ *http.Request) {
	page(w, http.StatusOK, "list", c.Mails())
}

func (c *Catcher) json(w http.ResponseWriter, _ *http.Request) {
	mails := c.Mails()
	if mails == nil {
		mails = []*Mail{} // [] and not null
	}
	body, err := json.MarshalIndent(mails, "", "  ")
	if err != nil {
		http.Error(w, "the list can't be shown", http.StatusInternalServerError)
		return
	}
	send(w, http.StatusOK, "application/json", "default-src 'none'; sandbox", append(body, '\n'))
}

// one finds the mail of a path, or shows that there is none.
func (c *Catcher) one(show func(http.ResponseWriter, *Mail)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		m := c.find(id)
		if err != nil || m == nil {
			page(w, http.StatusNotFound, "missing", nil)
			return
		}
		show(w, m)
	}
}

// showHTML sends a mail's HTML as it is; its header is what disarms it. The base
// in front makes plain links open a new window: the frame itself may go nowhere.
func showHTML(w http.ResponseWriter, m *Mail) {
	send(w, http.StatusOK, "text/html; charset=utf-8", mailPolicy,
		[]byte("<!doctype html><base target=\"_blank\">"+m.HTML))
}

func showRaw(w http.ResponseWriter, m *Mail) {
	send(w, http.StatusOK, "text/plain; charset=utf-8", "default-src 'none'; sandbox", m.Raw)
}

func page(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(w, "the page can't be shown", http.StatusInternalServerError)
		return
	}
	send(w, status, "text/html; charset=utf-8", pagePolicy, b.Bytes())
}

func send(w http.ResponseWriter, status int, kind, policy string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Resource-Policy", "same-origin") // mails hold live links
	w.WriteHeader(status)
	_, _ = w.Write(body) // the visitor may be gone
}

// segment is a stretch of text, and whether it is an address to link to.
type segment struct {
	Text string
	Link bool
}

var linkInText = regexp.MustCompile(`https?://[^\s<>"']*[^\s<>"'.,;:!?)\]]`)

// links cuts a text at the addresses in it, so that the page can link them.
func links(text string) []segment {
	var out []segment
	at := 0
	for _, m := range linkInText.FindAllStringIndex(text, -1) {
		out = append(out, segment{Text: text[at:m[0]]}, segment{Text: text[m[0]:m[1]], Link: true})
		at = m[1]
	}
	return append(out, segment{Text: text[at:]})
}
