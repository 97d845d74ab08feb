package mailcatcher

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/smtp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start returns a serving catcher and its SMTP address.
func start(t *testing.T, cfg Config) (c *Catcher, addr string) {
	t.Helper()
	c = New(cfg)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- c.Serve(ln) }()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return c, ln.Addr().String()
}

func deliver(t *testing.T, addr, mail string) {
	t.Helper()
	auth := smtp.PlainAuth("", "any", "thing", "127.0.0.1")
	mail = strings.ReplaceAll(mail, "\n", "\r\n")
	if err := smtp.SendMail(addr, auth, "shop@example.com", []string{"jo@example.com", "al@example.com"}, []byte(mail)); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, c *Catcher, path string) (status int, header http.Header, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	c.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code, w.Header(), w.Body.String()
}

func contains(t *testing.T, what, body string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(body, want) {
			t.Errorf("%s lacks %q:\n%s", what, want, body)
		}
	}
}

func lacks(t *testing.T, what, body string, unwanted ...string) {
	t.Helper()
	for _, s := range unwanted {
		if strings.Contains(body, s) {
			t.Errorf("%s holds %q:\n%s", what, s, body)
		}
	}
}

const decent = `From: Shop <shop@example.com>
To: Jo <jo@example.com>
Subject: =?utf-8?q?Zahlung_=E2=82=AC_49?=
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=outer

--outer
Content-Type: multipart/alternative; boundary=inner

--inner
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Gr=FC=DFe, see https://pay.example.com/l/abc?x=1&y=2.
--inner
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: base64

PGEgaHJlZj0iaHR0cHM6Ly9wYXkuZXhhbXBsZS5jb20vbC9hYmMiPlBheTwvYT4=
--inner--
--outer
Content-Type: application/pdf
Content-Disposition: attachment; filename="in<voice>.pdf"

%PDF
--outer--
`

func TestMailGoesRound(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 20, 15, 0, 0, time.UTC)
	c, addr := start(t, Config{Now: func() time.Time { return at }})
	deliver(t, addr, decent)
	m, err := c.Wait(t.Context(), func(m *Mail) bool { return m.Subject == "Zahlung € 49" })
	if err != nil {
		t.Fatal(err)
	}
	if m.From != "shop@example.com" || len(m.To) != 2 || !m.Received.Equal(at) || len(m.Faults) != 0 {
		t.Errorf("got %+v", m)
	}
	if !strings.HasPrefix(m.Text, "Grüße, see") || m.HTML != `<a href="https://pay.example.com/l/abc">Pay</a>` {
		t.Errorf("text %q, html %q", m.Text, m.HTML)
	}
	if len(m.Files) != 1 || m.Files[0] != (File{Name: "in<voice>.pdf", Type: "application/pdf", Size: 4}) {
		t.Errorf("files %+v", m.Files)
	}

	_, _, body := get(t, c, "/")
	contains(t, "the list", body, "Zahlung € 49", `href="mails/1"`, "jo@example.com, al@example.com", "1 mail,")
	_, _, body = get(t, c, "/mails/1")
	contains(t, "the mail", body, "Zahlung € 49", "Grüße", "in&lt;voice&gt;.pdf", `src="1/html"`,
		`<a href="https://pay.example.com/l/abc?x=1&amp;y=2" target="_blank" rel="noopener noreferrer">https://pay.example.com/l/abc?x=1&amp;y=2</a>.`)
	_, _, body = get(t, c, "/mails/1/html")
	contains(t, "the HTML part", body, m.HTML)
	_, h, body := get(t, c, "/mails/1/raw")
	contains(t, "the source", body, "Subject: =?utf-8?q?Zahlung")
	if got := h.Get("Content-Type"); got != "text/plain; charset=utf-8" {
		t.Errorf("the source is %s", got)
	}

	_, h, body = get(t, c, "/mails.json")
	var list []Mail
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list) != 1 || list[0].Subject != m.Subject || list[0].Text != m.Text {
		t.Errorf("JSON %v: %s", err, body)
	}
	if got := h.Get("Content-Type"); got != "application/json" {
		t.Errorf("the list is %s", got)
	}
}

func TestPagesWithoutMail(t *testing.T) {
	t.Parallel()
	c := New(Config{})
	status, _, body := get(t, c, "/")
	contains(t, "the empty list", body, "No mail yet")
	if status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	if _, _, body := get(t, c, "/mails.json"); body != "[]\n" {
		t.Errorf("JSON %q", body)
	}
	for _, path := range []string{"/mails/1", "/mails/x", "/mails/1/html", "/mails/-1/raw", "/other"} {
		if status, _, _ := get(t, c, path); status != http.StatusNotFound {
			t.Errorf("%s: status %d", path, status)
		}
	}
}

// Invariant 3.
func TestHostileMailStaysText(t *testing.T) {
	t.Parallel()
	c, addr := start(t, Config{})
	const script = `<script>alert(1)</script>`
	deliver(t, addr, `From: "<img src=x onerror=alert(1)>" <x@example.com>
Subject: `+script+`
X-`+"`"+`'">: `+script+`
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/plain

`+script+` javascript:alert(1) https://x.example/"onmouseover="alert(1)
--b
Content-Type: text/html

</iframe>`+script+`<base href="https://evil.example/"><meta http-equiv="refresh" content="0;url=https://evil.example/">
--b
Content-Type: `+"application/"+`x; name="`+script+`"
Content-Disposition: attachment; filename="../../`+script+`"

x
--b--
`)
	for _, path := range []string{"/", "/mails/1"} {
		_, h, body := get(t, c, path)
		lacks(t, path, body, "<script", "<img", `href="javascript`, `" onmouseover`, `"onmouseover`)
		contains(t, path, body, "&lt;script&gt;")
		contains(t, path+" policy", h.Get("Content-Security-Policy"), "default-src 'none'", "frame-ancestors 'none'")
	}
	// The HTML part is sent as it is: only its policy keeps it from running.
	_, h, body := get(t, c, "/mails/1/html")
	contains(t, "the HTML part", body, script)
	policy := h.Get("Content-Security-Policy")
	contains(t, "its policy", policy, "sandbox", "default-src 'none'", "base-uri 'none'", "form-action 'none'")
	lacks(t, "its policy", policy, "allow-scripts", "allow-same-origin", "allow-top-navigation", "allow-forms", "script-src")
	for _, path := range []string{"/", "/mails/1", "/mails/1/html", "/mails/1/raw", "/mails.json"} {
		_, h, _ := get(t, c, path)
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Security-Policy") == "" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: header %v", path, h)
		}
	}
}

// The policy allows the style by its hash; a browser hashes what is in the tags.
func TestStyleMatchesItsHash(t *testing.T) {
	t.Parallel()
	_, h, body := get(t, New(Config{}), "/")
	_, rest, _ := strings.Cut(body, "<style>")
	style, _, _ := strings.Cut(rest, "</style>")
	contains(t, "the policy", h.Get("Content-Security-Policy"), sha256Source(style))
}

// Invariant 1.
func TestOldAndHeavyMailsGo(t *testing.T) {
	t.Parallel()
	c, addr := start(t, Config{Keep: 2, MaxBytes: 1000})
	for i := range 4 {
		deliver(t, addr, fmt.Sprintf("Subject: number %d\n\nx\n", i))
	}
	mails := c.Mails()
	if len(mails) != 2 || mails[0].Subject != "number 3" || mails[1].Subject != "number 2" {
		t.Errorf("kept %v", mails)
	}
	if status, _, _ := get(t, c, "/mails/1"); status != http.StatusNotFound {
		t.Errorf("a mail that went is still shown: %d", status)
	}
	err := smtp.SendMail(addr, nil, "a@example.com", []string{"b@example.com"},
		[]byte("Subject: heavy\r\n\r\n"+strings.Repeat("heavy\r\n", 1000)))
	if err == nil {
		t.Error("a mail over the limit was taken")
	}

	c = New(Config{Keep: 1000, MaxBytes: 1000})
	for range 100 {
		c.keep("", nil, make([]byte, 900))
	}
	if n := len(c.Mails()); n != 22 {
		t.Errorf("%d mails of 900 bytes are kept, want 20 times 1000 bytes", n)
	}
}

func TestAnyAuthIsRight(t *testing.T) {
	t.Parallel()
	c, addr := start(t, Config{})
	for i, auth := range []smtp.Auth{
		nil, smtp.PlainAuth("", "u", "p", "127.0.0.1"), smtp.CRAMMD5Auth("u", "p"), login{}, login{early: true},
	} {
		if err := smtp.SendMail(addr, auth, "a@example.com", []string{"b@example.com"}, []byte("Subject: s\r\n\r\n")); err != nil {
			t.Errorf("auth %d: %v", i, err)
		}
	}
	if n := len(c.Mails()); n != 5 {
		t.Errorf("%d mails, want 5", n)
	}
}

// login is AUTH LOGIN, which net/smtp lacks; early sends the name at once.
type login struct{ early bool }

func (l login) Start(*smtp.ServerInfo) (string, []byte, error) {
	if l.early {
		return "LOGIN", []byte("user"), nil
	}
	return "LOGIN", nil, nil
}

func (l login) Next(challenge []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	return challenge, nil // any answer is right
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(Config{}).Wait(ctx, func(*Mail) bool { return true }); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestCloseBeforeServe(t *testing.T) {
	t.Parallel()
	c := New(Config{})
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Serve(ln); err != nil {
		t.Fatal(err)
	}
	if _, err := ln.Accept(); err == nil {
		t.Error("the listener is still open")
	}
}
