package portal

import (
	"embed"
	"io/fs"
	"time"

	"latchkey/internal/locale"
)

// The words of every page, a file for each of Stripe's locales.
//
//go:embed locales/*.json
var localeFiles embed.FS

// words are what the pages say in one locale, and how it writes numbers and times.
type words struct{ *locale.Words }

// loadWords reads a locale's words. The files are part of the program: one that can't be read is a
// mistake that the tests find.
func loadWords(tag string) words {
	files, err := fs.Sub(localeFiles, "locales")
	if err != nil {
		panic(err)
	}
	w, err := locale.Load(files, tag)
	if err != nil {
		panic(err)
	}
	return words{w}
}

// remaining tells a time to wait: honest, so rounded up, and never zero.
func (w words) remaining(d time.Duration) string {
	const step = 5 * time.Second
	if seconds := max(step, (d+step-1)/step*step); seconds < time.Minute {
		return w.Number("waiting.seconds", int(seconds/time.Second))
	}
	return w.Number("waiting.minutes", int((d+time.Minute-1)/time.Minute))
}
