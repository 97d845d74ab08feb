package portal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"time"
)

// Color is an opaque sRGB colour.
type Color struct{ R, G, B uint8 }

// defaultColor is the button's where the brand names none.
var defaultColor = Color{0x3d, 0x3b, 0xc9}

// ParseColor reads #rgb or #rrggbb.
func ParseColor(s string) (Color, error) {
	if len(s) == 4 {
		s = string([]byte{s[0], s[1], s[1], s[2], s[2], s[3], s[3]})
	}
	if len(s) == 7 && s[0] == '#' {
		if n, err := strconv.ParseUint(s[1:], 16, 32); err == nil {
			return Color{uint8(n >> 16), uint8(n >> 8), uint8(n)}, nil
		}
	}
	return Color{}, errors.New("must be a colour like #3d3bc9 or #39c")
}

func (c Color) String() string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }

// luminance is WCAG's relative luminance.
func (c Color) luminance() float64 {
	linear := func(v uint8) float64 {
		s := float64(v) / 255
		if s <= 0.04045 {
			return s / 12.92
		}
		return math.Pow((s+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(c.R) + 0.7152*linear(c.G) + 0.0722*linear(c.B)
}

// contrast is WCAG's ratio of two colours, 1 to 21.
func (c Color) contrast(other Color) float64 {
	a, b := c.luminance(), other.luminance()
	return (max(a, b) + 0.05) / (min(a, b) + 0.05)
}

// mix goes from c to other, all the way at 1.
func (c Color) mix(other Color, share float64) Color {
	between := func(a, b uint8) uint8 { return uint8(math.Round(float64(a) + (float64(b)-float64(a))*share)) }
	return Color{between(c.R, other.R), between(c.G, other.G), between(c.B, other.B)}
}

var black, white = Color{}, Color{255, 255, 255}

// WCAG 2.2 AA: of text (1.4.3), and of what makes a control recognizable (1.4.11).
const (
	textContrast    = 4.5
	controlContrast = 3
)

// scheme is the palette of light or dark. What is fixed in it is readable in itself; palette adds
// the brand's colour to it.
type scheme struct{ back, card, text, soft, line Color }

var (
	light = scheme{back: Color{0xf5, 0xf6, 0xf8}, card: white, text: Color{0x1a, 0x1f, 0x36}, soft: Color{0x4f, 0x56, 0x6b}, line: Color{0xe3, 0xe8, 0xee}}
	dark  = scheme{back: Color{0x10, 0x13, 0x1c}, card: Color{0x1b, 0x20, 0x30}, text: Color{0xee, 0xf0, 0xf6}, soft: Color{0xb3, 0xba, 0xcb}, line: Color{0x31, 0x38, 0x4d}}
)

// label is what reads on c: white where it can, as people expect on a button, else black, which
// then has at least 4.6.
func (c Color) label() Color {
	if c.contrast(white) >= textContrast {
		return white
	}
	return black
}

// edge outlines a button of colour c: c itself where that stands out from the card, else the
// nearest shade of it that does. The brand's own colour stays in the button's face.
func (s scheme) edge(c Color) Color {
	for share := 0.0; share < 1; share += 0.05 {
		if e := c.mix(s.text, share); e.contrast(s.card) >= controlContrast {
			return e
		}
	}
	return s.text
}

// link is c where it can be read as text, else the colour of text.
func (s scheme) link(c Color) Color {
	if c.contrast(s.card) >= textContrast {
		return c
	}
	return s.text
}

// css are the scheme's custom properties, which pages.css uses.
func (s scheme) css(c Color) string {
	return fmt.Sprintf(":root{--back:%v;--card:%v;--text:%v;--soft:%v;--line:%v;--fill:%v;--on:%v;--edge:%v;--link:%v}",
		s.back, s.card, s.text, s.soft, s.line, c, c.label(), s.edge(c), s.link(c))
}

// palette is the style's beginning: the brand's colour as light and dark need it.
func palette(c Color) string {
	return ":root{color-scheme:light dark}" + light.css(c) + "@media (prefers-color-scheme:dark){" + dark.css(c) + "}\n"
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
