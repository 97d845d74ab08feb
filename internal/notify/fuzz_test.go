package notify

import (
	"context"
	"errors"
	"net/http"
	"net/mail"
	"net/url"
	"strings"
	"testing"
	"time"
)

// FuzzCheckTarget: what is taken for a webhook's target is what net/http will connect to, by TLS, and no
// error has the URL in it, which may hold a secret.
func FuzzCheckTarget(f *testing.F) {
	for _, seed := range []string{"https://hooks.example.com/a?b=c", "http://127.0.0.1:1/", `https://a\@169.254.169.254/`, "https://user:secret@hooks.example.com/", "https://[::ffff:10.0.0.1%25lo]/",
		"https://0x7f.1/", "https://2130706433/", "https://hooks.example.com:99999/", "https:hooks", "//hooks.example.com", "https://a／b/", "https://%31", "https://a b/", "https://hooks.example.com/\r\nX: y", ""} {
		f.Add(seed)
	}
	webhooks, err := NewWebhooks(WebhookConfig{Secrets: []string{secretA}})
	if err != nil {
		f.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel() // nothing is dialled
	f.Fuzz(func(t *testing.T, raw string) {
		refused := webhooks.CheckTarget(raw)
		posted := webhooks.post(cancelled, raw, "evt", time.Now(), []byte("{}"))
		for _, err := range []error{refused, posted} {
			if err != nil && len(raw) > 60 && strings.Contains(err.Error(), raw) {
				t.Fatalf("the error holds its input: %v", err)
			}
		}
		var failed *WebhookError
		if !errors.As(posted, &failed) {
			t.Fatalf("posted: %v", posted)
		}
		if refused != nil {
			return
		}
		req, err := http.NewRequest(http.MethodPost, raw, nil)
		if err != nil {
			t.Fatalf("taken, but no request can be made: %v", err)
		}
		// Whoever else reads the URL sees the host between // and the next of /?; so must net/http.
		_, rest, _ := strings.Cut(raw, "//")
		if end := strings.IndexAny(rest, "/?"); end >= 0 {
			rest = rest[:end]
		}
		if host, err := url.PathUnescape(rest); req.URL.Scheme != "https" || req.URL.User != nil || err != nil || strings.ContainsAny(rest, "@\\ \t\r\n") || host != req.URL.Host && rest != req.URL.Host {
			t.Fatalf("%q is taken, as %#v", raw, req.URL)
		}
	})
}

// FuzzAddress: what is taken for a recipient is one address, and stays one in the command and in the
// header; no error has the address in it.
func FuzzAddress(f *testing.F) {
	for _, seed := range []string{"jo@example.org", `"jo smith"@example.org`, "用户@例子.广告", "jo@faß.example", "jo@example.org, x@example.org", "Jo <jo@example.org>", "jo@[127.0.0.1]", "undisclosed:;",
		"jo@example.org\r\nBcc: x@example.org", "\"\r\n\"@example.org", `"a\"b"@example.org`, "jo@example.org> SIZE=1", "jo\x00@example.org", "(c)jo@example.org", "jo@xn--0.example", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		m := sample("d1")
		m.To = raw
		c, err := testSender(t).compose(m)
		if err != nil {
			if len(raw) > 20 && strings.Contains(err.Error(), raw) {
				t.Fatalf("the error holds its input: %v", err)
			}
			return
		}
		if !strings.HasPrefix(c.to, "<") || !strings.HasSuffix(c.to, ">") || strings.ContainsAny(c.to, "\r\n\x00") || len(c.to) > 322 {
			t.Fatalf("%q becomes %q", raw, c.to)
		}
		header := parseMail(t, c.body).header
		written, err := mail.ParseAddressList(header.Get("To"))
		if err != nil || len(written) != 1 || written[0].Name != "" {
			t.Fatalf("%q becomes the header %q: %v", raw, header.Get("To"), err)
		}
		if command, err := mail.ParseAddress(c.to); err != nil || command.Address != written[0].Address {
			t.Fatalf("%q: the command says %q, the header %q, %v", raw, c.to, written[0].Address, err)
		}
	})
}
