package portal

import (
	"slices"
	"strings"
	"sync"

	"golang.org/x/text/language"
)

// Bounds of what an Accept-Language header may cost. Browsers stay far below them.
const (
	maxLanguageHeader = 256 // bytes
	maxLanguageRanges = 16
	maxLanguageCache  = 512 // headers
)

// fallbackLocale is for visitors whose language the pages do not speak.
const fallbackLocale = "en"

// languages chooses the locale of a page: the session's, else what the visitor's browser asks for.
type languages struct {
	locales []string
	matcher language.Matcher

	mu    sync.RWMutex
	known map[string]string // header → locale: most visitors send one of a few headers
}

func newLanguages() *languages {
	l := &languages{known: map[string]string{}}
	l.locales = slices.DeleteFunc(slices.Clone(Locales), func(s string) bool { return s == "auto" || s == fallbackLocale })
	l.locales = slices.Insert(l.locales, 0, fallbackLocale) // the matcher's answer where nothing matches
	tags := make([]language.Tag, len(l.locales))
	for i, s := range l.locales {
		tags[i] = language.MustParse(s)
	}
	l.matcher = language.NewMatcher(tags)
	return l
}

// choose gives one of Locales other than auto, whatever it is given.
func (l *languages) choose(session, header string) string {
	if session != "" && session != "auto" && slices.Contains(l.locales, session) {
		return session
	}
	if header == "" {
		return fallbackLocale
	}
	if len(header) > maxLanguageHeader {
		header = header[:maxLanguageHeader]
		header = header[:max(0, strings.LastIndexByte(header, ','))] // what is cut in two is not read
	}
	l.mu.RLock()
	locale, ok := l.known[header]
	l.mu.RUnlock()
	if ok {
		return locale
	}
	locale = l.match(header)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) >= maxLanguageCache {
		clear(l.known) // somebody makes headers up; the usual ones are back at once
	}
	l.known[strings.Clone(header)] = locale
	return locale
}

// match reads the header range by range, because language.ParseAcceptLanguage gives up all of it
// for one that it does not know.
func (l *languages) match(header string) string {
	type wish struct {
		tag    language.Tag
		weight float32
	}
	var wishes []wish
	for part := range strings.SplitSeq(header, ",") {
		if len(wishes) == maxLanguageRanges {
			break
		}
		if tags, weights, err := language.ParseAcceptLanguage(part); err == nil && len(tags) == 1 {
			wishes = append(wishes, wish{tags[0], weights[0]})
		}
	}
	slices.SortStableFunc(wishes, func(a, b wish) int {
		switch {
		case a.weight > b.weight:
			return -1
		case a.weight < b.weight:
			return 1
		}
		return 0
	})
	tags := make([]language.Tag, len(wishes))
	for i, w := range wishes {
		tags[i] = w.tag
	}
	// Low confidence is a neighbour's language, such as Russian for Ukrainian: not ours to choose.
	_, i, confidence := l.matcher.Match(tags...)
	if confidence < language.High {
		return fallbackLocale
	}
	return l.locales[i]
}
