package mailcatcher

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func nested(depth int) string {
	var b strings.Builder
	for i := range depth {
		fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	return b.String() + "Content-Type: text/plain\r\n\r\ndeep\r\n"
}

func TestMailsOfNoShape(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"empty":            "",
		"no header":        "just text, and no colon",
		"unknown encoding": "Content-Transfer-Encoding: x-rot13\r\n\r\nbody",
		"unknown charset":  "Content-Type: text/plain; charset=x-none\r\n\r\nbody",
		"bad base64":       "Content-Transfer-Encoding: base64\r\n\r\n!!!!",
		"no boundary":      "Content-Type: multipart/mixed\r\n\r\nbody",
		"deep":             nested(5000),
		"many parts":       "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n\r\nx\r\n", 5000),
		"no UTF-8":         "Subject: \xff\xfe\r\n\r\n\xff\x00",
	} {
		c := parse([]byte(raw))
		if len(c.Files) > maxParts {
			t.Errorf("%s: %d files", name, len(c.Files))
		}
		if name == "deep" || name == "many parts" {
			if len(c.Faults) == 0 {
				t.Errorf("%s: no fault is told", name)
			}
		}
	}
	if c := parse([]byte("Content-Type: text/plain; charset=x-none\r\n\r\nbody")); c.Text != "body" || len(c.Faults) == 0 {
		t.Errorf("a text of unknown charset is %+v, want it as it is, and told", c)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(strings.ReplaceAll(decent, "\n", "\r\n")))
	f.Add([]byte(nested(10)))
	f.Add([]byte("Subject: =?utf-8?b?////?=\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := parse(raw)
		if !utf8.ValidString(c.Subject + c.Text + c.HTML) {
			t.Error("text that is no UTF-8")
		}
		if len(c.Files) > maxParts {
			t.Errorf("%d files", len(c.Files))
		}
		text := ""
		for _, s := range links(c.Text) {
			text += s.Text
		}
		if text != c.Text {
			t.Errorf("links lost text: %q became %q", c.Text, text)
		}
	})
}
