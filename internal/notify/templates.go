package notify

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"latchkey/internal/brand"
	"latchkey/internal/locale"
)

// DefaultTemplate is the one of a request that names none.
const DefaultTemplate = "generic"

var builtin = []string{"payment_failed", "card_expiring", "subscription_ended", "support_link", DefaultTemplate}

// The layout that the built-in mails share, and their words, a file for each of Stripe's locales.
//
//go:embed templates/mail.* locales/*.json
var mailFiles embed.FS

// TemplatesConfig is the operator's part of the mails; all of it may be empty.
type TemplatesConfig struct {
	Dir        string // TEMPLATE_DIR: files as docs/email.md has them
	Brand      string // a name, one line
	LogoURL    string // an image that mail clients fetch; an SVG is not shown by most, then mails have the name
	Color      string // of the button, as brand.ParseColor takes it
	SupportURL string // https or mailto
}

// Templates are the built-in mails and the operator's, parsed. It may be used concurrently.
type Templates struct {
	look  MailView // what is the same in each mail
	words map[string]*locale.Words
	mails map[string]map[string]parts // by name and locale
}

// MailView is what a template shows: text, never markup. Templates name its fields, so they are part of
// what docs/email.md promises.
type MailView struct {
	Locale string // a BCP 47 tag, for lang

	Subject   string // and the heading: data's subject, or ours
	Preheader string // the message's beginning, on one line
	Greeting  string
	Message   string // the main paragraph, with line breaks: data's message, or ours
	Button    string // the button's label: data's button, or ours
	URL       string // of the link
	Date      string // the day on which the link ends, in UTC and the locale's long form
	Time      string // when on that day, in UTC and the locale's short form
	Until     string // a sentence with Date and Time
	Copy      string // asks to copy the address where the button does not work
	Personal  string // asks not to forward the mail
	SentBy    string // why there is a mail
	Support   string // the label of SupportURL

	SupportURL  string       // "" where there is none
	Brand, Logo string       // a name, and an image's URL; each can be ""
	Color       brand.Color  // the button's, with Label for what is written on it
	Light, Dark brand.Scheme // the colours of everything else

	Data map[string]string // the strings and numbers of the request's data; a missing one is ""
}

// Lines are the message's lines; an empty one is between paragraphs.
func (m MailView) Lines() []string { return strings.Split(m.Message, "\n") }

// MailLink is the link that a mail is about.
type MailLink struct {
	URL       string
	ExpiresAt time.Time
}

// MailContent is a rendered mail.
type MailContent struct {
	Subject string // one line without control characters, not encoded
	Text    string // lines end in \n, and may be long
	HTML    string
}

// template is one of text/template or html/template.
type template interface {
	Execute(w io.Writer, data any) error
}

// parts are a mail's templates by the names of their files: subject, txt and html.
type parts map[string]template

// LoadTemplates parses all templates and executes each in every locale, with and without data. An
// error names the file, and where there is one the line.
func LoadTemplates(cfg TemplatesConfig) (*Templates, error) {
	t := &Templates{look: look(cfg), words: map[string]*locale.Words{}, mails: map[string]map[string]parts{}}
	words, err := fs.Sub(mailFiles, "locales")
	if err != nil {
		return nil, err
	}
	for _, tag := range locale.All() {
		if t.words[tag], err = locale.Load(words, tag); err != nil {
			return nil, fmt.Errorf("words of mails: %w", err)
		}
	}
	files, err := readTemplates(cfg.Dir)
	if err != nil {
		return nil, err
	}
	for file := range files {
		if t.mails[file.name] != nil {
			continue
		}
		if t.mails[file.name], err = files.resolve(file.name); err != nil {
			return nil, err
		}
	}
	return t, t.try()
}

// look is what the deployment puts on every mail.
func look(cfg TemplatesConfig) MailView {
	color, err := brand.ParseColor(cfg.Color)
	if err != nil { // none: the configuration was checked
		color = brand.Default
	}
	m := MailView{Brand: line(cfg.Brand, maxSubject), Logo: cfg.LogoURL, SupportURL: cfg.SupportURL, Color: color, Light: brand.Light, Dark: brand.Dark}
	if u, err := url.Parse(cfg.LogoURL); err != nil || strings.EqualFold(path.Ext(u.Path), ".svg") {
		m.Logo = ""
	}
	return m
}

// try renders every mail in every locale, so that a template's mistake is the start's.
func (t *Templates) try() error {
	link := MailLink{URL: "https://pay.example.com/l/token", ExpiresAt: time.Now()}
	full := map[string]any{"name": "Jo", "amount": "€ 49.00", "card": "Visa 4242", "plan": "Basic", "subject": "A subject", "message": "Two\nlines", "button": "A button"}
	for _, name := range t.Names() {
		for _, tag := range locale.All() {
			for _, data := range []map[string]any{nil, full} {
				if _, err := t.Render(name, tag, link, data); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Has tells whether there is a template of that name.
func (t *Templates) Has(name string) bool { return t.mails[name] != nil }

// Names lists all templates, in alphabetical order.
func (t *Templates) Names() []string { return slices.Sorted(maps.Keys(t.mails)) }

// Render makes a mail of the request's data. The name "" is DefaultTemplate; a locale that is none
// of Stripe's, auto or "", is English. It returns a whole mail or an error, which holds nothing of
// data.
func (t *Templates) Render(name, tag string, link MailLink, data map[string]any) (MailContent, error) {
	name = cmp.Or(name, DefaultTemplate)
	w, ok := t.words[tag]
	if !ok {
		w = t.words["en"]
	}
	mail, ok := t.mails[name][w.Locale]
	if !ok {
		return MailContent{}, fmt.Errorf("there is no mail template %q; there are %s", name, strings.Join(t.Names(), ", "))
	}
	m := t.look
	m.Locale, m.URL, m.Data = w.Locale, link.URL, values(data)
	if !link.ExpiresAt.IsZero() {
		m.Date, m.Time = w.Date(link.ExpiresAt), w.Clock(link.ExpiresAt)
	}
	m.say(name, w)
	out := map[string]string{}
	for part, tmpl := range mail {
		text, err := execute(tmpl, m)
		if err != nil {
			return MailContent{}, fmt.Errorf("mail template %s in %s, part %s: %w", name, w.Locale, part, err)
		}
		out[part] = text
	}
	return MailContent{Subject: line(out["subject"], maxSubject), Text: strings.TrimSpace(out["txt"]) + "\n", HTML: out["html"]}, nil
}

func execute(tmpl template, m MailView) (string, error) {
	var b bytes.Buffer
	if err := tmpl.Execute(&b, m); err != nil {
		return "", err
	}
	if strings.TrimSpace(b.String()) == "" {
		return "", errors.New("it is empty; write what it shall say where data has nothing")
	}
	return b.String(), nil
}
