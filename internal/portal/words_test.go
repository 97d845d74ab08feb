package portal

import (
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/internal/locale"
	"latchkey/internal/locale/localetest"
)

func everyLocale() []string { return newLanguages().locales }

func TestEveryLanguageHasAllWords(t *testing.T) {
	t.Parallel()
	files, err := fs.Sub(localeFiles, "locales")
	if err != nil {
		t.Fatal(err)
	}
	localetest.Check(t, files, map[string]string{"fil reference": "receipts and banks in the Philippines use the English term"})
	if !slices.Equal(locale.All(), slices.Sorted(slices.Values(everyLocale()))) {
		t.Errorf("there are formats for %q, Stripe has %q", locale.All(), everyLocale())
	}
}

// Each language has a form for each category of a whole number, and no other but "other", which may
// be of fractions.
func TestPluralsAreExactlyTheLanguages(t *testing.T) {
	t.Parallel()
	for _, locale := range everyLocale() {
		w := loadWords(locale)
		used := map[string]bool{"other": true}
		for n := range 1001 {
			used[w.Category(n)] = true
		}
		for _, key := range []string{"waiting.seconds", "waiting.minutes"} {
			forms := maps.Clone(w.Messages[key].Plural)
			if locale == "mt" && forms["two"] == forms["few"] {
				delete(forms, "two") // newer CLDR tells 2 from few; the words are the same
			}
			if !slices.Equal(sorted(forms), sorted(used)) {
				t.Errorf("%s %s has the forms %q, want %q", locale, key, sorted(forms), sorted(used))
			}
		}
	}
}

func TestTimeLeftIsHonest(t *testing.T) {
	t.Parallel()
	w := loadWords("en")
	for d, want := range map[time.Duration]string{
		-time.Second: "About 5 seconds left", 0: "About 5 seconds left", time.Millisecond: "About 5 seconds left", 5 * time.Second: "About 5 seconds left",
		5*time.Second + 1: "About 10 seconds left", 55 * time.Second: "About 55 seconds left", 56 * time.Second: "About 1 minute left",
		time.Minute: "About 1 minute left", time.Minute + 1: "About 2 minutes left", 61 * time.Minute: "About 61 minutes left",
	} {
		if got := w.remaining(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	if got := loadWords("pl").remaining(3 * time.Minute); !strings.HasPrefix(got, strings.Split(loadWords("pl").Messages["waiting.minutes"].Plural["few"], "{")[0]) {
		t.Errorf("Polish: %q", got)
	}
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
