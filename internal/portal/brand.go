package portal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"latchkey/internal/brand"
)

// schemeCSS are a scheme's custom properties, which pages.css uses.
func schemeCSS(s brand.Scheme, c brand.Color) string {
	return fmt.Sprintf(":root{--back:%v;--card:%v;--text:%v;--soft:%v;--line:%v;--fill:%v;--on:%v;--edge:%v;--link:%v}",
		s.Back, s.Card, s.Text, s.Soft, s.Line, c, c.Label(), s.Edge(c), s.Link(c))
}

// palette is the style's beginning: the brand's colour as light and dark need it.
func palette(c brand.Color) string {
	return ":root{color-scheme:light dark}" + schemeCSS(brand.Light, c) + "@media (prefers-color-scheme:dark){" + schemeCSS(brand.Dark, c) + "}\n"
}

// Logo is the brand's, fetched once and served by the click server itself: a page with a
// third party's image would tell that party who opens it.
type Logo struct {
	Type string // its Content-Type
	Body []byte
	path string // of the click server, named by content so that browsers may keep it
}

// maxLogo leaves the pages under 15 KB in all, logo included.
const maxLogo = 8 << 10

// logoTimeout bounds what a logo's host that hangs adds to the start.
const logoTimeout = 5 * time.Second

// FetchLogo gets the logo from https (http for loopback only). Its errors say what to do.
func FetchLogo(ctx context.Context, url string) (*Logo, error) {
	if _, err := ParseWebURL(url); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, logoTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("logo: %w", err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: checkLogoRedirect}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the logo can't be fetched; is its host up and reachable from here? %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the logo's host answered %d; the URL must give the image to anybody", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxLogo+1))
	if err != nil {
		return nil, fmt.Errorf("the logo can't be read to its end: %w", err)
	}
	return newLogo(resp.Header.Get("Content-Type"), body)
}

func checkLogoRedirect(r *http.Request, via []*http.Request) error {
	switch {
	case len(via) > 3:
		return errors.New("more than 3 redirects; give the logo's final URL")
	case r.URL.Scheme != "https" && via[0].URL.Scheme == "https":
		return errors.New("a redirect away from https; give the logo's final URL")
	}
	_, err := ParseWebURL(r.URL.String())
	return err
}

// newLogo checks that the image is what it is said to be: browsers are told not to sniff.
func newLogo(contentType string, body []byte) (*Logo, error) {
	if len(body) > maxLogo {
		return nil, fmt.Errorf("the logo is larger than %d KB; make it smaller (an SVG, or a PNG of 80 pixels' height): pages stay under 15 KB in all", maxLogo>>10)
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		mediaType = ""
	}
	switch mediaType {
	case "image/svg+xml":
		if !bytes.Contains(body, []byte("<svg")) {
			return nil, errors.New("the logo is sent as image/svg+xml but holds no <svg>; give the URL of the image itself")
		}
	case "image/png", "image/jpeg", "image/webp", "image/gif":
		if is := http.DetectContentType(body); is != mediaType {
			return nil, fmt.Errorf("the logo is sent as %s but is %s; let its host send the right Content-Type", mediaType, is)
		}
	default:
		return nil, fmt.Errorf("the logo's Content-Type is %.100q; it must be image/svg+xml, image/png, image/jpeg, image/webp or image/gif", contentType)
	}
	return &Logo{Type: mediaType, Body: body, path: fmt.Sprintf("/logo-%x", sha256.Sum256(body))[:len("/logo-")+16]}, nil
}

// serveLogo answers a request for the logo, and false where it is for something else. An SVG can
// hold a script: opened by itself, it runs nothing and reaches nothing.
func (p *Pages) serveLogo(w http.ResponseWriter, r *http.Request) bool {
	if p.cfg.Logo == nil || r.URL.Path != p.cfg.Logo.path || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	h := w.Header()
	h.Set("Content-Type", p.cfg.Logo.Type)
	h.Set("Content-Length", strconv.Itoa(len(p.cfg.Logo.Body)))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
	_, _ = w.Write(p.cfg.Logo.Body) // net/http drops it for HEAD
	return true
}
