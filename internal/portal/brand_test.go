package portal

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"latchkey/internal/brand"
)

// WCAG 2.2 AA for whatever colour the brand has, in light and dark, as the style itself has it.
func TestEveryColorIsReadable(t *testing.T) {
	t.Parallel()
	property := regexp.MustCompile(`--(\w+):(#\w+)`)
	for rgb := 0; rgb < 1<<24; rgb += 4099 { // a prime: it meets all shades of all three
		c := brand.Color{R: uint8(rgb >> 16), G: uint8(rgb >> 8), B: uint8(rgb)}
		checkContrast(t, property, c)
	}
	for _, s := range []string{"#fff", "#000", "#777", "#ffe600", "#000033", "#f5f6f8", "#1b2030", "#10131c", "#767676", "#777777", "#ff0000", "#00ff00", "#0000ff"} {
		c, err := brand.ParseColor(s)
		if err != nil {
			t.Fatal(err)
		}
		checkContrast(t, property, c)
	}
}

func checkContrast(t *testing.T, property *regexp.Regexp, c brand.Color) {
	t.Helper()
	for name, s := range map[string]brand.Scheme{"light": brand.Light, "dark": brand.Dark} {
		is := map[string]brand.Color{}
		for _, m := range property.FindAllStringSubmatch(schemeCSS(s, c), -1) {
			is[m[1]], _ = brand.ParseColor(m[2])
		}
		for _, pair := range []struct {
			what, of, on string
			least        float64
		}{
			{"the button's text", "on", "fill", brand.TextContrast}, {"the button's edge", "edge", "card", brand.ControlContrast}, {"a link", "link", "card", brand.TextContrast},
			{"text", "text", "card", brand.TextContrast}, {"small text", "soft", "card", brand.TextContrast}, {"the focus ring", "text", "card", brand.ControlContrast},
		} {
			if got := is[pair.of].Contrast(is[pair.on]); got < pair.least {
				t.Errorf("%v in %s: %s has a contrast of %.2f", c, name, pair.what, got)
			}
		}
		if is["fill"] != c {
			t.Errorf("%v in %s: the button is %v", c, name, is["fill"])
		}
	}
}

const svgLogo = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="4"/></svg>`

// images is a host of logos and of what is none.
func images(t *testing.T) *httptest.Server {
	png := "\x89PNG\r\n\x1a\n" + strings.Repeat("x", 50)
	serve := func(contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			_, _ = w.Write([]byte(body))
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/logo.svg", serve("image/svg+xml; charset=utf-8", svgLogo))
	mux.Handle("/logo.png", serve("image/png", png))
	mux.Handle("/logo.webp", serve("image/webp", "RIFF\x00\x00\x00\x00WEBPVP8 "))
	mux.Handle("/full.png", serve("image/png", png+strings.Repeat("x", maxLogo-len(png))))
	mux.Handle("/large.png", serve("image/png", png+strings.Repeat("x", maxLogo-len(png)+1)))
	mux.Handle("/page.svg", serve("image/svg+xml", "<html>sign in</html>"))
	mux.Handle("/svg.png", serve("image/png", svgLogo))
	mux.Handle("/page", serve("text/html", "<html>"))
	mux.Handle("/untyped", serve("", png))
	mux.Handle("/bmp", serve("image/bmp", "BM"))
	mux.Handle("/gone", http.NotFoundHandler())
	mux.Handle("/moved", http.RedirectHandler("/logo.svg", http.StatusFound))
	mux.Handle("/away", http.RedirectHandler("http://192.0.2.1/logo.svg", http.StatusFound))
	mux.Handle("/round", http.RedirectHandler("/round", http.StatusFound))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv
}

func TestFetchLogo(t *testing.T) {
	t.Parallel()
	srv := images(t)
	for path, want := range map[string]string{
		"/logo.svg": "", "/logo.png": "", "/logo.webp": "", "/full.png": "", "/moved": "",
		"/large.png": "larger than 8 KB", "/page.svg": "holds no <svg>", "/svg.png": "right Content-Type", "/page": "must be image/svg+xml",
		"/untyped": "must be image/svg+xml", "/bmp": "must be image/svg+xml", "/gone": "answered 404", "/away": "must be an https URL", "/round": "final URL",
	} {
		logo, err := FetchLogo(t.Context(), srv.URL+path)
		switch {
		case want == "" && (err != nil || !strings.HasPrefix(logo.Type, "image/") || strings.Contains(logo.Type, ";") || len(logo.Body) == 0):
			t.Errorf("%s: %v", path, err)
		case want != "" && (err == nil || logo != nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want an error with %q", path, err, want)
		}
	}
	for _, url := range []string{"http://example.com/logo.svg", "ftp://example.com/x", "logo.svg", ""} {
		if _, err := FetchLogo(t.Context(), url); err == nil {
			t.Errorf("%q is fetched", url)
		}
	}
	from, to := httptest.NewRequest("GET", "https://cdn.example.com/", nil), httptest.NewRequest("GET", "http://127.0.0.1/", nil)
	if err := checkLogoRedirect(to, []*http.Request{from}); err == nil {
		t.Error("a redirect leaves https")
	}
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(hangs.Close)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FetchLogo(ctx, hangs.URL); err == nil {
		t.Error("a stop does not end the fetch")
	}
}

func TestLogoIsServedByTheClickServer(t *testing.T) {
	t.Parallel()
	logo, err := newLogo("image/svg+xml", []byte(svgLogo))
	if err != nil {
		t.Fatal(err)
	}
	p := NewPages(PagesConfig{Brand: "Acme", Logo: logo})
	page := render(t, p, answer{page: pageConfirm, token: "T"})
	doc := parse(t, page.body)
	img := doc.one(t, "img")
	path := attr(img, "src")
	if !regexp.MustCompile(`^/logo-[0-9a-f]{16}$`).MatchString(path) || attr(img, "alt") != "Acme" || strings.Count(textOf(doc.one(t, "body")), "Acme") != 0 {
		t.Errorf("logo at %q:\n%s", path, page.body)
	}
	if csp := page.header.Get("Content-Security-Policy"); !strings.Contains(csp, "img-src 'self';") {
		t.Errorf("the policy keeps the logo out: %s", csp)
	}
	serve := func(p *Pages, method, path string) (reply, bool) {
		w := httptest.NewRecorder()
		p.setHeaders(w.Header())
		ok := p.serveLogo(w, httptest.NewRequest(method, path, nil))
		return reply{w.Code, w.Header(), w.Body.String()}, ok
	}
	r, ok := serve(p, "GET", path)
	if !ok || r.status != 200 || r.body != svgLogo || r.header.Get("Content-Type") != "image/svg+xml" ||
		r.header.Get("Cache-Control") != "public, max-age=31536000, immutable" || r.header.Get("X-Content-Type-Options") != "nosniff" ||
		r.header.Get("Content-Security-Policy") != "default-src 'none'; style-src 'unsafe-inline'; sandbox" {
		t.Errorf("%t %d %v", ok, r.status, r.header)
	}
	if page := render(t, p, answer{page: pageRevoked}); page.header.Get("Cache-Control") != "no-store" {
		t.Error("the logo's headers are on a page")
	}
	for _, no := range [][2]string{{"POST", path}, {"GET", path + "0"}, {"GET", "/logo-"}, {"GET", "/l/x"}} {
		if _, ok := serve(p, no[0], no[1]); ok {
			t.Errorf("%s %s is the logo", no[0], no[1])
		}
	}
	if _, ok := serve(NewPages(PagesConfig{}), "GET", path); ok {
		t.Error("a logo where there is none")
	}
}
