// Package localetest holds the files of one set of words to the rules of all of them.
package localetest

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"latchkey/internal/locale"
)

// Check fails unless there is a file for each locale and no other, each locale has exactly English's
// keys with the same placeholders, and an overlay holds only what differs. Of sameAsEnglish, the keys
// ("fil reference") name strings that are right although they are English's, the values tell why.
func Check(t *testing.T, files fs.FS, sameAsEnglish map[string]string) {
	t.Helper()
	checkFiles(t, files)
	english := load(t, files, "en")
	for _, tag := range locale.All() {
		checkWords(t, english, load(t, files, tag), sameAsEnglish)
		checkOverlay(t, files, tag)
	}
}

func load(t *testing.T, files fs.FS, tag string) *locale.Words {
	t.Helper()
	w, err := locale.Load(files, tag)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// Words that a reader's language lacks would be an empty heading.
func checkWords(t *testing.T, english, w *locale.Words, sameAsEnglish map[string]string) {
	t.Helper()
	if want, got := sorted(english.Messages), sorted(w.Messages); !slices.Equal(want, got) {
		t.Errorf("%s has the keys %q, want %q", w.Locale, got, want)
		return
	}
	foreign := w.Locale != "en" && !strings.HasPrefix(w.Locale, "en-")
	for key, m := range w.Messages {
		reference := english.Messages[key]
		if (m.Plural == nil) != (reference.Plural == nil) {
			t.Errorf("%s %s: a plural or not?", w.Locale, key)
			continue
		}
		forms := maps.Clone(m.Plural)
		if forms == nil {
			forms = map[string]string{"": m.Text}
		}
		want := placeholders(reference.Text + reference.Plural["other"])
		for category, form := range forms {
			if got := placeholders(form); !slices.Equal(got, want) {
				t.Errorf("%s %s %s has the holes %q, want %q", w.Locale, key, category, got, want)
			}
			if form != strings.TrimSpace(form) || form == "" || strings.ContainsAny(french.Replace(form), "<>&\"\n\u00a0\u202f") {
				t.Errorf("%s %s: %q is empty or has strange characters", w.Locale, key, form)
			}
		}
		if foreign && m.Plural == nil && m.Text == reference.Text && sameAsEnglish[w.Locale+" "+key] == "" {
			t.Errorf("%s %s is still English: %q", w.Locale, key, m.Text)
		}
	}
}

// What an overlay repeats would stay behind when its parent is mended.
func checkOverlay(t *testing.T, files fs.FS, tag string) {
	t.Helper()
	parent := locale.Parent(tag)
	if parent == "" {
		return
	}
	own, err := locale.Read(files, tag)
	if err != nil {
		t.Fatal(err)
	}
	inherited := load(t, files, parent)
	for key, m := range own {
		if p := inherited.Messages[key]; p.Text == m.Text && maps.Equal(p.Plural, m.Plural) {
			t.Errorf("%s.json: %s is what %s says already", tag, key, parent)
		}
	}
}

func checkFiles(t *testing.T, files fs.FS) {
	t.Helper()
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range entries {
		if !slices.Contains(locale.All(), strings.TrimSuffix(f.Name(), ".json")) {
			t.Errorf("%s is no locale of Stripe's", f.Name())
		}
		b, err := fs.ReadFile(files, f.Name())
		if err != nil {
			t.Fatal(err)
		}
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(b, &keys); err != nil {
			t.Fatalf("%s: %v", f.Name(), err)
		}
		for key := range keys {
			if n := bytes.Count(b, []byte(`"`+key+`":`)); n != 1 {
				t.Errorf("%s has %s %d times", f.Name(), key, n)
			}
		}
	}
}

// french are the places where French wants a space that does not break.
var french = strings.NewReplacer("\u00a0:", ":", "\u00a0?", "?", "\u00a0!", "!", "«\u00a0", "«", "\u00a0»", "»")

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

func placeholders(s string) []string {
	found := placeholder.FindAllString(s, -1)
	slices.Sort(found)
	return found
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
