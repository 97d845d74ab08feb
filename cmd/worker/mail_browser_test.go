package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"latchkey/internal/brand"
	"latchkey/internal/notify"
)

// mailbox shows mails as a mail client with a browser in it does.
type mailbox struct {
	*httptest.Server
	t     *testing.T
	mails map[string]string // HTML by path
}

func openMailbox(t *testing.T) *mailbox {
	t.Helper()
	var logo bytes.Buffer
	picture := image.NewNRGBA(image.Rect(0, 0, 150, 40)) // but for a stripe it can be seen through
	draw.Draw(picture, image.Rect(0, 12, 150, 28), image.NewUniform(color.NRGBA{0x0b, 0x7a, 0x75, 0xff}), image.Point{}, draw.Src)
	if err := png.Encode(&logo, picture); err != nil {
		t.Fatal(err)
	}
	m := &mailbox{t: t, mails: map[string]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /logo.png", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(logo.Bytes()) })
	mux.HandleFunc("GET /mail/{name}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(m.mails[r.PathValue("name")]))
	})
	m.Server = httptest.NewServer(mux)
	t.Cleanup(m.Close)
	return m
}

// put renders a mail and tells where it is shown.
func (m *mailbox) put(fill, name, tag string, data map[string]any) string {
	m.t.Helper()
	templates, err := notify.LoadTemplates(notify.TemplatesConfig{Brand: "Leta", LogoURL: m.URL + "/logo.png", Color: fill, SupportURL: "https://help.example.com/billing"})
	if err != nil {
		m.t.Fatal(err)
	}
	link := notify.MailLink{URL: "https://pay.example.com/l/AQcBogULWVp167olkpzNbPgbsQNgM7Nj-_QxgnpWeefwnKp8", ExpiresAt: time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)}
	mail, err := templates.Render(name, tag, link, data)
	if err != nil {
		m.t.Fatal(err)
	}
	path := fmt.Sprintf("%d", len(m.mails))
	m.mails[path] = mail.HTML
	return m.URL + "/mail/" + path
}

// Mails in a window of 600 px, light and dark, and in one of 320 px: readable, nothing cut, nothing
// wider than the window, whatever words and colours are in them.
func everyMail(t *testing.T, chromium context.Context) {
	m, b := openMailbox(t), (&deployment{t: t}).open(chromium)
	long := strings.Repeat("unbroken", 250)
	for _, s := range []struct {
		what, fill, name, locale string
		data                     map[string]any
	}{
		{"english", "#0b7a75", "payment_failed", "en", map[string]any{"name": "Jo", "amount": "€ 49.00"}},
		{"german", "#ffe600", "card_expiring", "de", map[string]any{"name": "Jo", "card": "Visa •••• 4242"}},
		{"japanese", "#000033", "subscription_ended", "ja", map[string]any{"name": "田中", "plan": "ベーシック"}},
		{"thai", "#ffffff", "support_link", "th", nil},
		{"korean", "#1b2030", "generic", "ko", nil},
		{"long", "#777777", "payment_failed", "en", map[string]any{"name": long, "subject": long, "button": long, "message": long + "\n\n" + long}},
		{"long-korean", "#777777", "payment_failed", "ko", map[string]any{"amount": long, "message": long}},
	} {
		url := m.put(s.fill, s.name, s.locale, s.data)
		b.do("600 px", chromedp.EmulateViewport(600, 800))
		b.scheme("light")
		b.visit(url)
		light := b.wantReadable(s.what + ", light")
		b.picture("mail-" + s.what + "-light")
		b.scheme("dark")
		dark := b.wantReadable(s.what + ", dark")
		if luminance(dark.Background) > 0.1 || luminance(light.Background) < 0.8 || luminance(dark.Card) > 0.1 {
			t.Errorf("%s: light is %s, dark %s with a card of %s", s.what, light.Background, dark.Background, dark.Card)
		}
		if light.Lang != s.locale || len(light.Buttons) != 1 {
			t.Errorf("%s: in %q, with %d buttons", s.what, light.Lang, len(light.Buttons))
		}
		b.picture("mail-" + s.what + "-dark")
		b.scheme("light")
		b.zoomed()
		b.wantReadable(s.what + ", 320 px")
		b.picture("mail-" + s.what + "-320")
	}
	b.wantOnly(m.URL)
	b.wantCalm()
}

// wantOnly checks that nobody else was asked for anything.
func (b *tab) wantOnly(server string) {
	b.d.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.requests {
		if origin(r.Request.URL) != server {
			b.d.t.Errorf("%s was asked for something", origin(r.Request.URL))
		}
	}
}

// Outlook.com takes the dark style out and marks what it darkened by itself: texts and backgrounds
// then are those of our dark style.
func outlookComInTheDark(t *testing.T, chromium context.Context) {
	m, b := openMailbox(t), (&deployment{t: t}).open(chromium)
	url := m.put("#0b7a75", "payment_failed", "en", nil)
	path := url[strings.LastIndexByte(url, '/')+1:]
	m.mails[path] = strings.Replace(m.mails[path], "<html ", `<html data-ogsc="" data-ogsb="" `, 1)
	b.scheme("light")
	b.visit(url)
	l := b.wantReadable("Outlook.com")
	if rgb := func(c brand.Color) string { return fmt.Sprintf("rgb(%d, %d, %d)", c.R, c.G, c.B) }; l.Card != rgb(brand.Dark.Card) || l.Pieces[0].Color != rgb(brand.Dark.Text) {
		got, _ := json.Marshal(l)
		t.Errorf("it is not dark: %s", got)
	}
}
