package portal

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func render(t *testing.T, p *Pages, a answer, accept string) reply {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/l/x", nil)
	r.Header.Set("Accept", accept)
	p.setHeaders(w.Header())
	p.write(w, r, a)
	return reply{w.Code, w.Header(), w.Body.String()}
}

func TestEveryPage(t *testing.T) {
	t.Parallel()
	p := NewPages("Acme", "https://help.example.com", false)
	for name, words := range english {
		r := render(t, p, answer{page: name, reference: "ref-1", retryAfter: 7}, "text/html")
		r.want(t, words.Status, name)
		for _, part := range []string{"<!doctype html>", `<html lang="en">`, words.Text, "ref-1", `href="https://help.example.com"`, "Acme", `name="viewport"`} {
			if !strings.Contains(r.body, part) {
				t.Errorf("%s lacks %q:\n%s", name, part, r.body)
			}
		}
		if strings.Contains(strings.ToLower(r.body), "<script") || strings.Contains(r.body, "src=") || strings.Contains(r.body, "<form") {
			t.Errorf("%s has a script, a resource or a button that leads nowhere:\n%s", name, r.body)
		}
		if r.header.Get("Retry-After") != "7" || r.header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%s: headers %v", name, r.header)
		}
		if words.Status < 400 {
			continue
		}
		r = render(t, p, answer{page: name, reference: "ref-1", retryAfter: 7}, "application/json")
		got := r.problem(t)
		if r.status != words.Status || r.header.Get("Content-Type") != "application/problem+json" || r.header.Get("Retry-After") != "7" ||
			got.Status != words.Status || got.Type != "about:blank" || got.Title != words.Title || got.Detail != words.Text || got.Code != string(name) || got.Reference != "ref-1" {
			t.Errorf("%s as JSON: %d %v %+v", name, r.status, r.header, got)
		}
	}
}

func TestWantsJSON(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "text/html": false, "application/json": true, "application/problem+json": true, "Application/JSON; q=0.9": true,
		"text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8": false,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", accept)
		if got := wantsJSON(r); got != want {
			t.Errorf("Accept: %s gives JSON: %t", accept, got)
		}
	}
}

func TestConfirmPage(t *testing.T) {
	t.Parallel()
	expires := time.Date(2026, 11, 16, 10, 30, 0, 0, time.FixedZone("", 3600))
	r := render(t, NewPages("", "", false), answer{page: pageConfirm, token: "TOKEN", expires: expires}, "")
	for _, part := range []string{`<form method="post" action="/l/TOKEN"><button type="submit">Continue to billing</button></form>`,
		"This link works until 16 November 2026, 09:30 UTC."} {
		if strings.Count(r.body, part) != 1 {
			t.Errorf("the page lacks %q:\n%s", part, r.body)
		}
	}
	if strings.Contains(r.body, "Contact support") || strings.Contains(r.body, "brand\"") || strings.Count(r.body, "<button") != 1 {
		t.Errorf("the page shows what is not configured:\n%s", r.body)
	}
	r = render(t, NewPages("", "", false), answer{page: pageTryAgain, token: "TOKEN"}, "")
	if !strings.Contains(r.body, `action="/l/TOKEN"><button type="submit">Try again</button>`) {
		t.Errorf("no way to try again:\n%s", r.body)
	}
}

func TestPagesEscape(t *testing.T) {
	t.Parallel()
	brand := `</title><script>alert(1)</script>"'&`
	r := render(t, NewPages(brand, `javascript:alert(1)//"><script>`, false), answer{page: pageConfirm, token: `"><script>`, reference: "<script>"}, "")
	if strings.Contains(r.body, "<script") || strings.Contains(r.body, `href="javascript:`) || strings.Contains(r.body, `/l/">`) {
		t.Errorf("not escaped:\n%s", r.body)
	}
	if strings.Count(r.body, "&lt;script&gt;alert(1)&lt;/script&gt;") != 2 { // title and text
		t.Errorf("the brand is not shown as it is:\n%s", r.body)
	}
}

// The policy's hash is of exactly what stands in the page's style element, or browsers drop it.
func TestContentSecurityPolicy(t *testing.T) {
	t.Parallel()
	for allowHTTP, action := range map[bool]string{false: "form-action 'self' https:;", true: "form-action 'self' https: http:;"} {
		r := render(t, NewPages("Acme", "", allowHTTP), answer{page: pageConfirm, token: "T"}, "")
		_, style, _ := strings.Cut(r.body, "<style>")
		style, _, _ = strings.Cut(style, "</style>")
		sum := sha256.Sum256([]byte(style))
		csp := r.header.Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none';", "style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "';",
			action, "base-uri 'none'", "frame-ancestors 'none'"} {
			if !strings.Contains(csp, part) {
				t.Errorf("the policy lacks %s: %s", part, csp)
			}
		}
		if strings.Contains(csp, "unsafe") || len(style) < 100 || strings.Contains(style, "url(") || strings.Contains(style, "@import") {
			t.Errorf("policy %s, style of %d bytes", csp, len(style))
		}
		if strings.Contains(r.body, " style=") || strings.Contains(r.body, " onclick=") {
			t.Errorf("what the policy forbids stands in the page:\n%s", r.body)
		}
	}
}
