package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"latchkey/internal/locale"
)

// mailCommand runs 'worker mail' in a process that has no database, no NATS and no key.
func mailCommand(t *testing.T, env []string, args ...string) (code int, out string) {
	t.Helper()
	d := &deployment{t: t, database: "postgres://nobody@127.0.0.1:1/none", nats: "nats://127.0.0.1:1"}
	return d.command(append([]string{"STRIPE_API_KEY=", "LINK_KEYS="}, env...), append([]string{"mail"}, args...)...)
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMailPreview(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "mail.html")
	code, out := mailCommand(t, []string{"BRAND_NAME=Acme", "SUPPORT_URL=https://help.example.com"}, "preview", "payment_failed", "--locale", "de", "--data", `{"name":"Jo","amount":123456789012345678}`, "--out", file)
	subject, rest, _ := strings.Cut(out, "\n")
	if html, text := read(t, file), read(t, filepath.Join(dir, "mail.txt")); code != 0 || !strings.HasPrefix(text, subject+"\n\n") || !strings.Contains(rest, file) ||
		!strings.Contains(html, `<html lang="de"`) || !strings.Contains(html, "Acme") || !strings.Contains(text, "123456789012345678") || !strings.Contains(text, "https://help.example.com") {
		t.Errorf("exit %d\n%s\n%s", code, out, text)
	}
}

func TestMailPreviewOfAll(t *testing.T) {
	t.Parallel()
	dir, templates := filepath.Join(t.TempDir(), "out", "mails"), t.TempDir()
	for name, content := range map[string]string{"own.subject": "S", "own.txt": "T", "own.html": "<p>H</p>"} {
		if err := os.WriteFile(filepath.Join(templates, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, out := mailCommand(t, []string{"TEMPLATE_DIR=" + templates}, "preview", "--all", "--out", dir)
	if index := filepath.Join(dir, "index.html"); code != 0 || strings.TrimSpace(out) != index {
		t.Fatalf("exit %d\n%s", code, out)
	}
	index := read(t, filepath.Join(dir, "index.html"))
	for _, name := range []string{"payment_failed", "card_expiring", "subscription_ended", "support_link", "generic", "own"} {
		for _, tag := range locale.All() {
			if file := name + "-" + tag + ".html"; strings.Count(index, `src="`+file+`"`) != 1 || read(t, filepath.Join(dir, file)) == "" || read(t, filepath.Join(dir, name+"-"+tag+".txt")) == "" {
				t.Errorf("%s is not in the index", file)
			}
		}
	}
}

func TestMailPreviewTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "x.html")
	bad := t.TempDir()
	if err := os.WriteFile(filepath.Join(bad, "generic.txt"), []byte("a\n{{.Nope}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		env  []string
		args string
		code int
		want string
	}{
		{nil, "", 2, "name a template"},
		{nil, "nope", 2, "card_expiring, generic, payment_failed"},
		{nil, "generic generic", 2, "--help"},
		{nil, "generic --locale tlh", 2, "pt-BR"},
		{nil, "generic --data [1]", 2, "--data must be a JSON object"},
		{nil, "generic --data null", 2, "--data must be a JSON object"},
		{nil, "generic --data {}x", 2, "--data must be a JSON object"},
		{nil, "generic --out mail.txt", 2, "--out is the HTML's file"},
		{nil, "generic --all", 2, "leave TEMPLATE and --locale out"},
		{nil, "--all --locale de", 2, "leave TEMPLATE and --locale out"},
		{nil, "generic --out " + filepath.Join(file, "no", "such.html"), 1, "choose another place"},
		{[]string{"BRAND_COLOR=mauve", "SUPPORT_URL=ftp://x"}, "generic", 1, "BRAND_COLOR"},
		{[]string{"TEMPLATE_DIR=" + bad}, "generic", 1, "generic.txt:2"},
	} {
		args := append([]string{"preview"}, strings.Fields(test.args)...)
		if !strings.Contains(test.args, "--out") {
			args = append(args, "--out", file)
		}
		code, out := mailCommand(t, test.env, args...)
		if code != test.code || !strings.Contains(out, test.want) {
			t.Errorf("%s: exit %d, want %d with %q:\n%s", test.args, code, test.code, test.want, out)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a preview was written")
	}
}
