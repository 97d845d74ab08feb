package locale

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// load gives a locale without words.
func load(t *testing.T, locale string) *Words {
	t.Helper()
	files := fstest.MapFS{}
	for _, tag := range All() {
		files[tag+".json"] = &fstest.MapFile{Data: []byte(`{}`)}
	}
	w, err := Load(files, locale)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestLoadInherits(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{"zh-TW.json": {Data: []byte(`{"a": "parent", "b": "parent", "n": {"other": "{n} of it"}}`)}, "zh-HK.json": {Data: []byte(`{"b": "own"}`)},
		"de.json": {Data: []byte(`{"a": `)}, "fr-CA.json": {Data: []byte(`{}`)}}
	w, err := Load(files, "zh-HK")
	if err != nil || w.Get("a") != "parent" || w.Get("b") != "own" || w.Get("c") != "" || w.Number("n", 3) != "3 of it" {
		t.Errorf("%+v %v", w, err)
	}
	for locale, want := range map[string]string{"de": "de.json", "fr-CA": "fr.json", "es": "es.json"} {
		if _, err := Load(files, locale); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error of %s", locale, err, want)
		}
	}
	for _, tag := range All() {
		if parent := Parent(tag); parent != "" && (!slices.Contains(All(), parent) || Parent(parent) != "") {
			t.Errorf("%s inherits from %s", tag, parent)
		}
	}
}

// The categories are checked against a second implementation of CLDR's rules.
func TestCategoriesAreCLDRs(t *testing.T) {
	t.Parallel()
	for _, locale := range All() {
		w := load(t, locale)
		for n := range 1001 {
			got, want := w.Category(n), strings.ToLower(w.format.CardinalPluralRule(float64(n), 0).String())
			if locale == "ro" && n > 1 && n%100 == 1 {
				want = "few" // CLDR: n != 1 and n % 100 = 1..19; the second implementation says 2..19
			}
			if got != want {
				t.Errorf("%s: %d is %q, want %q", locale, n, got, want)
			}
		}
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
		w := load(t, locale)
		if got := [4]string{w.Date(morning), w.Clock(morning), w.Date(midnight), w.Clock(midnight)}; got != want {
			t.Errorf("%s: %q, want %q", locale, got, want)
		}
	}
	for _, locale := range All() {
		w := load(t, locale)
		for hour := range 24 {
			at := time.Date(2026, time.Month(hour%12+1), 16, hour, 45, 0, 0, time.UTC)
			day, clock := w.Date(at), w.Clock(at)
			if !strings.Contains(day, "2026") || !strings.Contains(day, "16") || !strings.Contains(clock, "45") {
				t.Errorf("%s: %q %q", locale, day, clock)
			}
			if strings.ContainsAny(day+clock, "'\u00a0\u202f") || strings.TrimSpace(clock) != clock {
				t.Errorf("%s: strange characters in %q %q", locale, day, clock)
			}
			if half := w.Clock(at.Add(12 * time.Hour)); half == clock {
				t.Errorf("%s: morning and evening are both %q", locale, clock)
			}
		}
	}
}
