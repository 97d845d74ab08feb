package cli

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

const hostile = "a\x1b[2J\u009b1A\u202eb\r\x7f\u200b\U000e0001é\t"

func TestWhatAStrangerWroteMovesNoCursor(t *testing.T) {
	t.Parallel()
	if got := Printable(hostile + "\n\xff"); got != "a?[2J?1A?b????é??\ufffd" {
		t.Errorf("%q", got)
	}
	if got := Escape([]byte(hostile + "\n\xff")); got != `a\u001b[2J\u009b1A\u202eb\u000d\u007f\u200b\udb40\udc01é\u0009`+"\n"+`\xff` {
		t.Errorf("%q", got)
	}
	// JSON that is escaped says the same.
	text, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	var back string
	if err := json.Unmarshal([]byte(Escape(text)), &back); err != nil || back != hostile {
		t.Errorf("%v: %q", err, back)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in, want string
		n        int
	}{{"abc", "abc", 0}, {"abc", "abc", 3}, {"äöü", "äö…"[:2] + "…", 2}, {"abc", "…", 1}, {"", "", 1}} {
		if got := Cut(c.in, c.n); got != c.want {
			t.Errorf("Cut(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
	if Width(&strings.Builder{}) != 0 {
		t.Error("a builder has a width")
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if Width(file) != 0 {
		t.Error("a file that is no terminal has a width")
	}
}
