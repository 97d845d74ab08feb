package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"latchkey/internal/producer"
)

// Patches are an operator's, bodies a stranger's: neither makes the tool panic, and what is sent
// after an edit is JSON.
func FuzzEdit(f *testing.F) {
	f.Add(`[{"op":"add","path":"/a/b","value":1}]`, []byte(`{"a":{"b":[1]}}`))
	f.Add(`[{"op":"move","from":"/a","path":"/b/-"},{"op":"test","path":"/b/0","value":null},{"op":"copy","from":"","path":"/c"}]`, []byte(`{"a":null,"b":[1]}`))
	f.Add(`[{"op":"remove","path":""},{"op":"replace","path":"","value":null},{"op":"add","path":"/x","value":1}]`, []byte(` {"a":null} `))
	f.Add(`[{"op":"test","path":"/a"}]`, []byte(`{"a":{"b":1}}`)) // the library panics at it
	f.Fuzz(func(t *testing.T, text string, body []byte) {
		shown, _ := pretty(body)
		if i := strings.IndexFunc(shown, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) }); i >= 0 {
			t.Fatalf("shown: %q", shown[i:])
		}
		patch, err := decodePatch([]byte(text))
		if err != nil {
			return
		}
		l := &producer.DeadLetter{Body: body}
		if (&edit{patch: patch, given: map[string]uint64{}}).apply(l) == nil && !json.Valid(l.Body) {
			t.Fatalf("%q becomes %q", body, l.Body)
		}
	})
}

// A patch that copies what it copied grows without bound, and is stopped.
func TestEditThatGrowsIsStopped(t *testing.T) {
	t.Parallel()
	patch, err := decodePatch([]byte("[" + strings.TrimSuffix(strings.Repeat(`{"op": "copy", "from": "/session", "path": "/session/x"},{"op": "copy", "from": "/session", "path": "/session/y"},`, 20), ",") + "]"))
	if err != nil {
		t.Fatal(err)
	}
	l := &producer.DeadLetter{Body: []byte(body("a", ""))}
	if err := (&edit{patch: patch, given: map[string]uint64{}}).apply(l); err == nil || string(l.Body) != body("a", "") {
		t.Errorf("%v, %d bytes", err, len(l.Body))
	}
}
