package portal

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func everyLocale() []string { return newLanguages().locales }

// sameAsEnglish are strings that are right although they are English's.
var sameAsEnglish = map[string]string{
	"fil reference": "receipts and banks in the Philippines use the English term",
}

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

// Words that a page lacks would be an empty heading.
func TestEveryLanguageHasAllWords(t *testing.T) {
	t.Parallel()
	for _, locale := range everyLocale() {
		w := loadWords(locale)
		if want, got := sorted(english.text), sorted(w.text); !slices.Equal(want, got) {
			t.Errorf("%s has the keys %q, want %q", locale, got, want)
			continue
		}
		for key, m := range w.text {
			reference := english.text[key]
			if (m.plural == nil) != (reference.plural == nil) {
				t.Errorf("%s %s: a plural or not?", locale, key)
				continue
			}
			forms := maps.Clone(m.plural)
			if forms == nil {
				forms = map[string]string{"": m.text}
			}
			want := placeholders(reference.text + reference.plural["other"])
			for category, form := range forms {
				if got := placeholders(form); !slices.Equal(got, want) {
					t.Errorf("%s %s %s has the holes %q, want %q", locale, key, category, got, want)
				}
				if form != strings.TrimSpace(form) || form == "" || strings.ContainsAny(form, "<>&\"\n\u00a0\u202f") {
					t.Errorf("%s %s: %q is empty or has strange characters", locale, key, form)
				}
			}
			foreign := locale != "en" && !strings.HasPrefix(locale, "en-")
			if foreign && m.plural == nil && m.text == reference.text && sameAsEnglish[locale+" "+key] == "" {
				t.Errorf("%s %s is still English: %q", locale, key, m.text)
			}
		}
	}
}

// What an overlay repeats would stay behind when its parent is mended.
func TestOverlaysHoldOnlyWhatDiffers(t *testing.T) {
	t.Parallel()
	for _, locale := range everyLocale() {
		own, err := readLocale(locale)
		if err != nil {
			t.Fatal(err)
		}
		parent := parentLocale(locale)
		if parent == "" {
			continue
		}
		inherited := loadWords(parent)
		for key, m := range own {
			if p := inherited.text[key]; p.text == m.text && maps.Equal(p.plural, m.plural) {
				t.Errorf("%s.json: %s is what %s says already", locale, key, parent)
			}
		}
	}
}

func TestLocaleFilesAreTheLocales(t *testing.T) {
	t.Parallel()
	files, err := localeFiles.ReadDir("locales")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		tag := strings.TrimSuffix(f.Name(), ".json")
		if !slices.Contains(everyLocale(), tag) {
			t.Errorf("%s is no locale of Stripe's", f.Name())
		}
		b, err := localeFiles.ReadFile("locales/" + f.Name())
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
	if len(formats) != len(everyLocale()) {
		t.Errorf("%d formats for %d locales", len(formats), len(everyLocale()))
	}
}

// The categories are checked against a second implementation of CLDR's rules, and each language has
// a form for each category of a whole number, and no other but "other", which may be of fractions.
func TestPluralsAreExactlyTheLanguages(t *testing.T) {
	t.Parallel()
	for _, locale := range everyLocale() {
		w := loadWords(locale)
		used := map[string]bool{"other": true}
		for n := range 1001 {
			got, want := w.category(n), strings.ToLower(w.format.CardinalPluralRule(float64(n), 0).String())
			if locale == "ro" && n > 1 && n%100 == 1 {
				want = "few" // CLDR: n != 1 and n % 100 = 1..19; the second implementation says 2..19
			}
			if got != want {
				t.Errorf("%s: %d is %q, want %q", locale, n, got, want)
			}
			used[got] = true
		}
		for _, key := range []string{"waiting.seconds", "waiting.minutes"} {
			forms := maps.Clone(w.text[key].plural)
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
	if got := loadWords("pl").remaining(3 * time.Minute); !strings.HasPrefix(got, strings.Split(loadWords("pl").text["waiting.minutes"].plural["few"], "{")[0]) {
		t.Errorf("Polish: %q", got)
	}
}

func TestDatesAreTheReaders(t *testing.T) {
	t.Parallel()
	morning, midnight := time.Date(2026, 11, 16, 9, 5, 0, 0, time.UTC), time.Date(2026, 3, 2, 1, 0, 0, 0, time.FixedZone("", 3600))
	for locale, want := range map[string][4]string{
		"en":     {"November 16, 2026", "9:05 AM", "March 2, 2026", "12:00 AM"},
		"en-GB":  {"16 November 2026", "09:05", "2 March 2026", "00:00"},
		"en-AU":  {"16 November 2026", "9:05 am", "2 March 2026", "12:00 am"},
		"de":     {"16. November 2026", "09:05", "2. März 2026", "00:00"},
		"fr-CA":  {"16 novembre 2026", "09 h 05", "2 mars 2026", "00 h 00"},
		"es-419": {"16 de noviembre de 2026", "09:05", "2 de marzo de 2026", "00:00"},
		"sl":     {"16. november 2026", "09:05", "2. marec 2026", "00:00"},
		"ru":     {"16 ноября 2026 г.", "09:05", "2 марта 2026 г.", "00:00"},
		"lt":     {"2026 m. lapkričio 16 d.", "09:05", "2026 m. kovo 2 d.", "00:00"},
		"mt":     {"16 ta’ Novembru 2026", "09:05", "2 ta’ Marzu 2026", "00:00"},
		"ja":     {"2026年11月16日", "9:05", "2026年3月2日", "0:00"},
		"ko":     {"2026년 11월 16일", "오전 9:05", "2026년 3월 2일", "오전 12:00"},
		"th":     {"16 พฤศจิกายน ค.ศ. 2026", "09:05", "2 มีนาคม ค.ศ. 2026", "00:00"},
		"zh":     {"2026年11月16日", "09:05", "2026年3月2日", "00:00"},
		"zh-HK":  {"2026年11月16日", "上午9:05", "2026年3月2日", "上午12:00"},
	} {
		w := loadWords(locale)
		if got := [4]string{w.date(morning), w.clock(morning), w.date(midnight), w.clock(midnight)}; got != want {
			t.Errorf("%s: %q, want %q", locale, got, want)
		}
	}
	for _, locale := range everyLocale() {
		w := loadWords(locale)
		for hour := range 24 {
			at := time.Date(2026, time.Month(hour%12+1), 16, hour, 45, 0, 0, time.UTC)
			day, clock := w.date(at), w.clock(at)
			if !strings.Contains(day, "2026") || !strings.Contains(day, "16") || !strings.Contains(clock, "45") {
				t.Errorf("%s: %q %q", locale, day, clock)
			}
			if strings.ContainsAny(day+clock, "'\u00a0\u202f") || strings.TrimSpace(clock) != clock {
				t.Errorf("%s: strange characters in %q %q", locale, day, clock)
			}
			if half := w.clock(at.Add(12 * time.Hour)); half == clock {
				t.Errorf("%s: morning and evening are both %q", locale, clock)
			}
		}
	}
}

func placeholders(s string) []string {
	found := placeholder.FindAllString(s, -1)
	slices.Sort(found)
	return found
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
