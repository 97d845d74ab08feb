package main

import (
	"net"
	"strings"
	"testing"

	"latchkey/internal/mailcatcher"
)

// catch runs a mail catcher and returns its address.
func catch(t *testing.T) (*mailcatcher.Catcher, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	catcher := mailcatcher.New(mailcatcher.Config{})
	served := make(chan error, 1)
	go func() { served <- catcher.Serve(ln) }()
	t.Cleanup(func() {
		_ = catcher.Close()
		<-served
	})
	return catcher, ln.Addr().String()
}

func TestMailSendTest(t *testing.T) {
	t.Parallel()
	d := &deployment{t: t, database: "postgres://nobody@127.0.0.1:1/none", nats: "nats://127.0.0.1:1"}
	send := func(env []string, args ...string) (int, string) {
		return d.command(append([]string{"STRIPE_API_KEY=", "LINK_KEYS=", "LINK_BASE_URL=https://pay.example.com/"}, env...), append([]string{"mail", "send-test"}, args...)...)
	}
	catcher, addr := catch(t)
	settings := []string{"SMTP_URL=smtp://courier:hunter2@" + addr, "MAIL_FROM=Acme <billing@example.com>", "BRAND_NAME=Acme"}
	code, out := send(settings, "--to", "jo@example.org", "--template", "payment_failed", "--locale", "de")
	if code != 0 || !strings.HasPrefix(out, "taken by "+addr+", Message-ID <test-") {
		t.Errorf("exit %d\n%s", code, out)
	}
	mails := catcher.Mails()
	if len(mails) != 1 {
		t.Fatalf("%d mails were caught", len(mails))
	}
	m := mails[0]
	if m.To[0] != "jo@example.org" || !strings.HasPrefix(m.Subject, "[Test] ") || !strings.Contains(m.HTML, `href="https://pay.example.com/?sample"`) || !strings.Contains(m.Text, "Jo Sample") ||
		!strings.Contains(m.HTML, `lang="de"`) {
		t.Errorf("caught %q to %s\n%s", m.Subject, m.To, m.Text)
	}
	for _, wrong := range []struct {
		env, args []string
		code      int
		words     string
	}{
		{settings, nil, 2, "--to"},
		{settings, []string{"--to", "jo@example.org", "--template", "nonsense"}, 2, "there is no template"},
		{settings, []string{"--to", "jo@example.org", "--locale", "xx"}, 2, "--locale"},
		{settings, []string{"--to", "hunter2 at example.org"}, 1, "5.1.3"},
		{nil, []string{"--to", "jo@example.org"}, 1, "SMTP_URL:"},
		{[]string{settings[0], "MAIL_FROM=hunter2"}, []string{"--to", "jo@example.org"}, 1, "MAIL_FROM:"},
		{[]string{"SMTP_URL=smtp://courier:hunter2@127.0.0.1:1", settings[1]}, []string{"--to", "jo@example.org"}, 1, "connection refused"},
	} {
		code, out := send(wrong.env, wrong.args...)
		if code != wrong.code || !strings.Contains(out, wrong.words) || strings.Contains(out, "hunter2") || strings.Count(out, "\n") > 1 {
			t.Errorf("%s: exit %d\n%s", wrong.args, code, out)
		}
	}
	if n := len(catcher.Mails()); n != 1 {
		t.Errorf("%d mails were caught", n)
	}
}

func TestCheckTriesTheMailServer(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	_, addr := catch(t)
	for _, test := range []struct{ url, line string }{
		{"", "ok    email                  off: SMTP_URL is not set"},
		{"smtp://courier:hunter2@" + addr, "ok    email                  " + addr + ", MAIL_FROM may send"},
		{"smtp://courier:hunter2@127.0.0.1:1", "FAIL  email                  the mail server can't be used: connecting: "},
		{"smtp://courier:hunter2@127.0.0.1:1?x", "FAIL  email                  SMTP_URL: "},
	} {
		_, out := d.command([]string{"LINK_BASE_URL=http://127.0.0.1:1", "SMTP_URL=" + test.url, "MAIL_FROM=billing@example.com"}, "check")
		if !strings.Contains(out, test.line) || strings.Contains(out, "hunter2") {
			t.Errorf("%s is not in:\n%s", test.line, out)
		}
	}
}
