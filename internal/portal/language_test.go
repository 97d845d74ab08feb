package portal

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestLanguageOfAPage(t *testing.T) {
	t.Parallel()
	l := newLanguages()
	for _, c := range []struct{ session, header, want string }{
		{"", "", "en"}, {"auto", "", "en"}, {"fr", "de", "fr"}, {"auto", "de", "de"}, {"xx", "de", "de"}, {"zh-HK", "en", "zh-HK"},
		{"", "de-AT,de;q=0.9,en;q=0.8", "de"}, {"", "en-US,en;q=0.9", "en"}, {"", "en-GB", "en-GB"}, {"", "en-ZA", "en-GB"}, {"", "en;q=0.5, ja", "ja"},
		{"", "pt-BR,pt;q=0.9", "pt-BR"}, {"", "pt-PT,pt;q=0.9", "pt"}, {"", "pt", "pt"}, {"", "pt-AO", "pt"}, {"", "es-MX", "es-419"}, {"", "es-ES,es;q=0.9", "es"}, {"", "fr-CH", "fr"}, {"", "fr-CA", "fr-CA"},
		{"", "no", "nb"}, {"", "nn-NO", "nb"}, {"", "tl", "fil"}, {"", "zh-CN", "zh"}, {"", "zh-SG", "zh"}, {"", "zh-Hant", "zh-TW"}, {"", "zh-MO", "zh-HK"}, {"", "zh-TW", "zh-TW"},
		{"", "uk", "en"}, {"", "uk, de;q=0.5", "de"}, {"", "ca, es;q=0.5", "es"}, {"", "he", "en"}, {"", "*", "en"}, {"", "de;q=0", "en"}, {"", "xx, qq-QQ;q=0.9, it;q=0.1", "it"},
		{"", "de;q=nonsense, it", "it"}, {"", ",,,;;;===", "en"}, {"", "sv, " + strings.Repeat("x", 9000), "sv"}, {"", strings.Repeat("x", 9000), "en"},
	} {
		for range 2 { // the second time out of the cache
			if got := l.choose(c.session, c.header); got != c.want {
				t.Errorf("session %q, header %.40q: %s, want %s", c.session, c.header, got, c.want)
			}
		}
	}
}

func TestEveryLocaleCanBeAskedFor(t *testing.T) {
	t.Parallel()
	l := newLanguages()
	if len(l.locales) != 46 {
		t.Errorf("%d locales", len(l.locales))
	}
	for _, locale := range l.locales {
		if got := l.choose("", locale); got != locale {
			t.Errorf("Accept-Language: %s gives %s", locale, got)
		}
		if got := l.choose(locale, "en"); got != locale {
			t.Errorf("a session in %s gives %s", locale, got)
		}
	}
}

// Strangers make up headers; what is kept of them stays small.
func TestLanguageCacheIsBounded(t *testing.T) {
	t.Parallel()
	l := newLanguages()
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range maxLanguageCache {
				if got := l.choose("", "de;q=0."+strconv.Itoa(1+i)+", x-"+strconv.Itoa(worker)); got != "de" {
					t.Errorf("got %s", got)
				}
			}
		})
	}
	all.Wait()
	if len(l.known) > maxLanguageCache {
		t.Errorf("%d headers are kept", len(l.known))
	}
}

func FuzzAcceptLanguage(f *testing.F) {
	for _, s := range []string{"", "de", "de-AT,de;q=0.9,en;q=0.8", "*", "en;q=2", "i-klingon", "x-private", "zh-Hant-HK-u-co-stroke", "a,b;q=,c;;", "en-" + strings.Repeat("a-", 100), "\x00\xff,de", "de;q=1e999", strings.Repeat("de,", 200)} {
		f.Add(s)
	}
	l := newLanguages()
	f.Fuzz(func(t *testing.T, header string) {
		got := l.choose("", header)
		if !slices.Contains(l.locales, got) {
			t.Errorf("%q gives %q", header, got)
		}
		if again := l.choose("", header); again != got {
			t.Errorf("%q gives %s, and then %s", header, got, again)
		}
	})
}

func BenchmarkLanguageOfANewHeader(b *testing.B) {
	l := newLanguages()
	b.ReportAllocs()
	for b.Loop() {
		l.match("de-AT,de;q=0.9,en-US;q=0.8,en;q=0.7")
	}
}

func BenchmarkLanguageOfAHostileHeader(b *testing.B) {
	l := newLanguages()
	header := strings.Repeat("zh-Hant-HK-x-a,", 17)
	b.ReportAllocs()
	for b.Loop() {
		l.match(header)
	}
}
