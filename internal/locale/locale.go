// Package locale is what pages and mails share of a language: words from files, a file for each of
// Stripe's locales, CLDR's plurals, and dates and times in the reader's form.
//
// Some locales hold only what differs from another's (Parent). Each user of this package has files of
// its own; package localetest holds them to the same rules.
package locale

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-playground/locales"
	"github.com/go-playground/locales/bg"
	"github.com/go-playground/locales/cs"
	"github.com/go-playground/locales/da"
	"github.com/go-playground/locales/de"
	"github.com/go-playground/locales/el"
	"github.com/go-playground/locales/en"
	"github.com/go-playground/locales/en_CA"
	"github.com/go-playground/locales/en_GB"
	"github.com/go-playground/locales/en_IE"
	"github.com/go-playground/locales/en_IN"
	"github.com/go-playground/locales/en_NZ"
	"github.com/go-playground/locales/en_SG"
	"github.com/go-playground/locales/es"
	"github.com/go-playground/locales/es_419"
	"github.com/go-playground/locales/et"
	"github.com/go-playground/locales/fi"
	"github.com/go-playground/locales/fil"
	"github.com/go-playground/locales/fr"
	"github.com/go-playground/locales/fr_CA"
	"github.com/go-playground/locales/hr"
	"github.com/go-playground/locales/hu"
	"github.com/go-playground/locales/id"
	"github.com/go-playground/locales/it"
	"github.com/go-playground/locales/ja"
	"github.com/go-playground/locales/ko"
	"github.com/go-playground/locales/lt"
	"github.com/go-playground/locales/lv"
	"github.com/go-playground/locales/ms"
	"github.com/go-playground/locales/mt"
	"github.com/go-playground/locales/nb"
	"github.com/go-playground/locales/nl"
	"github.com/go-playground/locales/pl"
	"github.com/go-playground/locales/pt_BR"
	"github.com/go-playground/locales/pt_PT"
	"github.com/go-playground/locales/ro"
	"github.com/go-playground/locales/ru"
	"github.com/go-playground/locales/sk"
	"github.com/go-playground/locales/sl"
	"github.com/go-playground/locales/sv"
	"github.com/go-playground/locales/th"
	"github.com/go-playground/locales/tr"
	"github.com/go-playground/locales/vi"
	"github.com/go-playground/locales/zh"
	"github.com/go-playground/locales/zh_Hant"
	"golang.org/x/text/feature/plural"
	"golang.org/x/text/language"
)

// Words are what is said in one locale, and how it writes numbers and times.
type Words struct {
	Locale   string // a key of formats
	Messages map[string]Message

	tag    language.Tag
	format locales.Translator
}

// Message is a string of a locale's file or, for one with a number in it, an object of strings by
// CLDR plural category.
type Message struct {
	Text   string
	Plural map[string]string
}

// UnmarshalJSON takes either form.
func (m *Message) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		return json.Unmarshal(b, &m.Plural)
	}
	return json.Unmarshal(b, &m.Text)
}

// All lists the locales that there are formats for: Stripe's 46, in the order of their tags.
func All() []string { return slices.Sorted(maps.Keys(formats)) }

// Load reads a locale's file over that of the locale whose words it inherits. The locale is one of
// All; a file that is missing or can't be read is an error that names it.
func Load(files fs.FS, locale string) (*Words, error) {
	w := &Words{Locale: locale, Messages: map[string]Message{}, tag: languageTag(locale), format: formats[locale]()}
	var chain []string
	for tag := locale; tag != ""; tag = Parent(tag) {
		chain = append([]string{tag}, chain...)
	}
	for _, tag := range chain {
		own, err := Read(files, tag)
		if err != nil {
			return nil, err
		}
		maps.Copy(w.Messages, own)
	}
	return w, nil
}

// Read gives what a locale's own file holds, <locale>.json.
func Read(files fs.FS, locale string) (map[string]Message, error) {
	b, err := fs.ReadFile(files, locale+".json")
	if err != nil {
		return nil, err
	}
	var own map[string]Message
	if err := json.Unmarshal(b, &own); err != nil {
		return nil, fmt.Errorf("%s.json: %w", locale, err)
	}
	return own, nil
}

// Parent is the locale whose words a locale's file adds to, or "".
func Parent(locale string) string {
	switch {
	case locale == "zh-HK":
		return "zh-TW"
	case strings.HasPrefix(locale, "en-"), locale == "es-419", locale == "fr-CA", locale == "pt-BR":
		base, _, _ := strings.Cut(locale, "-")
		return base
	}
	return ""
}

// languageTag takes Stripe's pt as Portugal's, beside pt-BR; alone, it would mean Brazil's.
func languageTag(locale string) language.Tag {
	if locale == "pt" {
		return language.EuropeanPortuguese
	}
	return language.MustParse(locale)
}

// Get is a message without a number; "" where there is none of that key.
func (w *Words) Get(key string) string { return w.Messages[key].Text }

// Number fills n into the plural form that the language wants for it.
func (w *Words) Number(key string, n int) string {
	forms := w.Messages[key].Plural
	text, ok := forms[w.Category(n)]
	if !ok {
		text = forms["other"]
	}
	return strings.Replace(text, "{n}", strconv.Itoa(n), 1)
}

var categories = map[plural.Form]string{
	plural.Zero: "zero", plural.One: "one", plural.Two: "two", plural.Few: "few", plural.Many: "many", plural.Other: "other",
}

// Category is CLDR's plural category of a whole number. (The rules that come with the date formats
// are wrong for Romanian's 101.)
func (w *Words) Category(n int) string {
	return categories[plural.Cardinal.MatchPlural(w.tag, n, 0, 0, 0, 0)]
}

// Date is the long form of a day in UTC.
func (w *Words) Date(t time.Time) string {
	s := w.format.FmtDateLong(t.UTC())
	if w.Locale == "sl" {
		return strings.TrimPrefix(s, "0") // the data's pattern is dd
	}
	return s
}

// Clock is the short form of a time in UTC.
func (w *Words) Clock(t time.Time) string {
	t = t.UTC()
	s := w.format.FmtTimeShort(t)
	switch w.Locale { // where the data is not what CLDR says today
	case "en":
		return strings.ToUpper(s)
	case "ko":
		return strings.NewReplacer("AM", "오전", "PM", "오후").Replace(s)
	case "zh":
		return t.Format("15:04")
	}
	return s
}

// formats are CLDR's data by locale. Two stand in for one whose data lacks am and pm: en_NZ writes
// as en-AU does, zh_Hant as zh-HK does.
var formats = map[string]func() locales.Translator{
	"bg":     bg.New,
	"cs":     cs.New,
	"da":     da.New,
	"de":     de.New,
	"el":     el.New,
	"en":     en.New,
	"en-AU":  en_NZ.New,
	"en-CA":  en_CA.New,
	"en-GB":  en_GB.New,
	"en-IE":  en_IE.New,
	"en-IN":  en_IN.New,
	"en-NZ":  en_NZ.New,
	"en-SG":  en_SG.New,
	"es":     es.New,
	"es-419": es_419.New,
	"et":     et.New,
	"fi":     fi.New,
	"fil":    fil.New,
	"fr":     fr.New,
	"fr-CA":  fr_CA.New,
	"hr":     hr.New,
	"hu":     hu.New,
	"id":     id.New,
	"it":     it.New,
	"ja":     ja.New,
	"ko":     ko.New,
	"lt":     lt.New,
	"lv":     lv.New,
	"ms":     ms.New,
	"mt":     mt.New,
	"nb":     nb.New,
	"nl":     nl.New,
	"pl":     pl.New,
	"pt":     pt_PT.New,
	"pt-BR":  pt_BR.New,
	"ro":     ro.New,
	"ru":     ru.New,
	"sk":     sk.New,
	"sl":     sl.New,
	"sv":     sv.New,
	"th":     th.New,
	"tr":     tr.New,
	"vi":     vi.New,
	"zh":     zh.New,
	"zh-HK":  zh_Hant.New,
	"zh-TW":  zh_Hant.New,
}
