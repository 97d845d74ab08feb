package notify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"

	"latchkey/internal/locale"
	"latchkey/internal/locale/localetest"
	"latchkey/internal/notify"
)

var (
	mailLook = notify.TemplatesConfig{Brand: "Leta & Söhne", LogoURL: "https://cdn.example.com/logo.png?v=1", Color: "#0b7a75", SupportURL: "https://help.example.com/billing"}
	mailLink = notify.MailLink{URL: "https://pay.example.com/l/AQcBogULWVp167olkpzNbPgbsQNgM7Nj-_QxgnpWeefwnKp8", ExpiresAt: time.Date(2026, 11, 30, 23, 30, 0, 0, time.FixedZone("", -3600))}

	builtins = []string{"card_expiring", "generic", "payment_failed", "subscription_ended", "support_link"}
	facts    = map[string]any{"name": "Jo", "amount": "€ 49.00", "card": "Visa •••• 4242", "plan": "Basic"}
)

var loadBuiltins = sync.OnceValues(func() (*notify.Templates, error) { return notify.LoadTemplates(mailLook) })

func builtinMails(t testing.TB) *notify.Templates {
	t.Helper()
	templates, err := loadBuiltins()
	if err != nil {
		t.Fatal(err)
	}
	return templates
}

func render(t testing.TB, templates *notify.Templates, name, tag string, data map[string]any) notify.MailContent {
	t.Helper()
	mail, err := templates.Render(name, tag, mailLink, data)
	if err != nil {
		t.Fatal(err)
	}
	return mail
}

func mailWords(t *testing.T, tag string) *locale.Words {
	t.Helper()
	w, err := locale.Load(os.DirFS("locales"), tag)
	must(t, err)
	return w
}

func TestEveryLanguageHasAllMailWords(t *testing.T) {
	t.Parallel()
	localetest.Check(t, os.DirFS("locales"), map[string]string{})
}

func TestEveryMailInEveryLocale(t *testing.T) {
	t.Parallel()
	templates := builtinMails(t)
	if got := templates.Names(); !slices.Equal(got, builtins) || !templates.Has("generic") || templates.Has("") || templates.Has("mail") {
		t.Fatalf("the templates are %q", got)
	}
	for _, tag := range locale.All() {
		w := mailWords(t, tag)
		for _, name := range builtins {
			for _, data := range []map[string]any{nil, facts} {
				mail, what := render(t, templates, name, tag, data), fmt.Sprintf("%s in %s with %v", name, tag, data)
				if mail.Subject != w.Get(name+".subject") {
					t.Errorf("%s: the subject is %q", what, mail.Subject)
				}
				d := parseMail(t, mail.HTML)
				if d.attrs["html lang"] != tag || !slices.Equal(d.links, []string{mailLink.URL, mailLink.URL, mailLook.SupportURL}) || !slices.Equal(d.sources, []string{mailLook.LogoURL}) {
					t.Errorf("%s: lang %q, links %q, resources %q", what, d.attrs["html lang"], d.links, d.sources)
				}
				if len(mail.HTML) >= 30_000 {
					t.Errorf("%s: %d bytes", what, len(mail.HTML))
				}
				checkSame(t, what, mail, d)
				wants := []string{mailLink.URL, mailLook.SupportURL, mailLook.Brand, w.Date(mailLink.ExpiresAt), w.Get(name + ".button"), w.Get("link.personal")}
				if field := map[string]string{"payment_failed": "amount", "card_expiring": "card", "subscription_ended": "plan"}[name]; data != nil {
					wants = append(wants, fmt.Sprint(data["name"]), fmt.Sprint(data[field]))
					if field == "" {
						wants = slices.Delete(wants, len(wants)-1, len(wants))
					}
				}
				for _, want := range wants {
					if !strings.Contains(mail.Text, want) {
						t.Errorf("%s: the text lacks %q:\n%s", what, want, mail.Text)
					}
				}
				if strings.ContainsAny(mail.Text, "{}") || strings.Contains(mail.HTML, "ZgotmplZ") || strings.Contains(mail.HTML+mail.Text, "no value") {
					t.Errorf("%s has a hole:\n%s", what, mail.Text)
				}
			}
		}
	}
}

// checkSame fails unless what is in one part is in the other. The HTML has the advice to copy the
// address beyond that, and the address of support in a link.
func checkSame(t *testing.T, what string, mail notify.MailContent, d document) {
	t.Helper()
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), "") }
	seen, text := squeeze(d.text+strings.Join(d.links, " ")), squeeze(mail.Text)
	for row := range strings.Lines(mail.Text) {
		if !strings.Contains(seen, squeeze(row)) {
			t.Errorf("%s: the HTML lacks %q", what, row)
		}
	}
	for _, row := range d.rows {
		if !strings.Contains(text, squeeze(row)) && !strings.Contains(mailWords(t, d.attrs["html lang"]).Get("link.copy"), row) {
			t.Errorf("%s: the text lacks %q", what, row)
		}
	}
}

func TestMailLocales(t *testing.T) {
	t.Parallel()
	templates := builtinMails(t)
	english, german := render(t, templates, "generic", "en", nil), render(t, templates, "generic", "de", nil)
	for tag, want := range map[string]notify.MailContent{"": english, "auto": english, "tlh": english, "DE": english, "../en": english, "de": german} {
		if render(t, templates, "", tag, nil) != want {
			t.Errorf("%q is another mail", tag)
		}
	}
	if _, err := templates.Render("of_tomorrow", "de", mailLink, nil); err == nil || !strings.Contains(err.Error(), "payment_failed") {
		t.Errorf("an unknown template: %v, want an error that names those that there are", err)
	}
	if mail := must1(t)(templates.Render("generic", "en", notify.MailLink{URL: mailLink.URL}, nil)); strings.Contains(mail.Text, "works until") || strings.Contains(mail.HTML, "0001") {
		t.Errorf("a link without an end has one:\n%s", mail.Text)
	}
	if !strings.Contains(english.Text, "until December 1, 2026, 12:30 AM UTC.") {
		t.Errorf("the date is another:\n%s", english.Text)
	}
}

func must1(t *testing.T) func(notify.MailContent, error) notify.MailContent {
	return func(m notify.MailContent, err error) notify.MailContent { t.Helper(); must(t, err); return m }
}

func TestMailDataTakesThePlaceOfOurWords(t *testing.T) {
	t.Parallel()
	templates := builtinMails(t)
	data := map[string]any{"name": json.Number("7"), "amount": 49.5, "subject": " Your\r\n offer ", "message": "One.\r\n\r\n\r\n\r\nTwo,\tthree.\u2028Four. ", "button": "Have a look"}
	mail := render(t, templates, "payment_failed", "en", data)
	d := parseMail(t, mail.HTML)
	if mail.Subject != "Your offer" || !strings.Contains(mail.Text, "Hello 7,\n\nOne.\n\nTwo, three.\nFour.\n\nHave a look\nhttps://") {
		t.Errorf("%q\n%s", mail.Subject, mail.Text)
	}
	if d.heading != "Your offer" || !strings.Contains(mail.HTML, "One.<br><br>Two, three.<br>Four.</p>") || strings.Contains(d.text, "49.5") {
		t.Errorf("%q\n%s", d.heading, mail.HTML)
	}
	for _, nothing := range []any{nil, true, false, []any{"x"}, map[string]any{"x": "y"}, "", " \r\n ", "\u202e\x00"} {
		got := render(t, templates, "payment_failed", "en", map[string]any{"name": nothing, "amount": nothing, "subject": nothing, "message": nothing, "button": nothing, "x": nothing})
		if got != render(t, templates, "payment_failed", "en", nil) {
			t.Errorf("%#v is in the mail:\n%s", nothing, got.Text)
		}
	}
	if mail := render(t, templates, "payment_failed", "en", map[string]any{"amount": 1e21, "name": "{amount} {name}"}); !strings.Contains(mail.Text, "Hello {amount} {name},") || !strings.Contains(mail.Text, "of 1000000000000000000000.") {
		t.Errorf("%s", mail.Text)
	}
}

func TestMailDataIsCut(t *testing.T) {
	t.Parallel()
	long := func(n int) string { return strings.Repeat("ä", n) }
	mail := render(t, builtinMails(t), "card_expiring", "en", map[string]any{"name": long(101), "card": long(300), "subject": long(201), "button": long(61)})
	if mail.Subject != long(199)+"…" || !strings.Contains(mail.Text, "Hello "+long(99)+"…,\n") || !strings.Contains(mail.Text, "card "+long(99)+"… ") || !strings.Contains(mail.Text, "\n"+long(59)+"…\n") {
		t.Errorf("%q\n%s", mail.Subject, mail.Text)
	}
	whole := render(t, builtinMails(t), "card_expiring", "en", map[string]any{"name": long(100), "subject": long(200), "button": long(60), "message": long(5000)})
	if strings.Contains(whole.Text, "…") {
		t.Errorf("what fits is cut:\n%s", whole.Text)
	}
	mail = render(t, builtinMails(t), "generic", "en", map[string]any{"message": long(5001)})
	if !strings.Contains(mail.Text, "\n"+long(4999)+"…\n") {
		t.Errorf("the message is not cut:\n%s", mail.Text)
	}
	// Gmail shows no more than 102 KB of a mail.
	if mail := render(t, builtinMails(t), "generic", "en", map[string]any{"message": strings.Repeat("'\n", 60_000), "subject": strings.Repeat("'", 999), "name": strings.Repeat("'", 999)}); len(mail.HTML) > 100_000 {
		t.Errorf("the largest mail has %d bytes", len(mail.HTML))
	}
}

var hostile = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `</p></td></table><h1>x</h1><a href="https://evil.example">pay here</a>`,
	`--><b>x</b><!--`, `--!><b>x</b>`, `<![endif]--><b>x</b>`, `<!--[if mso]><b>x</b>`, `]]>`, `</title><script>x</script>`, `</style><style>*{display:none}</style>`, `&lt;b&gt;&#x3c;`,
	"x\r\nBcc: victim@example.com\r\n\r\nbody", "x\nBcc: victim@example.com", "x\rSubject: y", "x\u0085Bcc: y", "x\u2028Bcc: y", "\x00\x1b[31m\x7f\u009b",
	`{{.URL}}{{template "font"}}{{define "mail.html"}}x{{end}}`, `{{"<b>" | outlook}}`, `{{`, `}}`, `{name}{amount}{brand}{date}`, `%s%d%!`, `${x}#{x}<%= x %>`,
	"\u202egnp.exe", "\u2066x\u2069\u200f\u061c", "x\u202d", "\xff\xfe\xc3\x28", "\ufeff\ufffe\uffff", "javascript:alert(1)", "data:text/html,<script>x</script>", "https://evil.example/?a=b&c=d", "//evil.example", "jo@evil.example",
	strings.Repeat("w", 10_000), strings.Repeat("&", 10_000), strings.Repeat("\n", 10_000), strings.Repeat("a\u0301\u0301\u0301", 5000), "👩\u200d👩\u200d👧\u200d👦 می\u200cخواهم",
}

// hostileMail is a template of the operator's that puts a value wherever one may want it.
var hostileMail = map[string]string{
	"own.subject": "Mail for {{.Data.x}}", "own.txt": "{{.URL}} {{.Data.x}}",
	"own.html": `<html lang="en"><title>{{.Data.x}}</title><style>p{color:{{.Data.x}}}</style><p title="{{.Data.x}}" style="color:{{.Data.x}}">{{.Data.x}}</p>` +
		`<!--[if mso]><p title="{{.Data.x}}">{{.Data.x}}</p><![endif]--><!--[if !mso]><!--><a href="{{.URL}}?x={{.Data.x}}">{{.Data.x}}</a><!--<![endif]--><!-- {{.Data.x}} --></html>`,
}

func TestHostileMailData(t *testing.T) {
	t.Parallel()
	templates, own := builtinMails(t), loadFolder(t, hostileMail)
	plains := map[string]document{"own": plain(t, own, "own", "de")}
	for _, name := range builtins {
		plains[name] = plain(t, templates, name, "de")
	}
	for _, value := range hostile {
		data := map[string]any{"<b>": value, value: value}
		for _, key := range []string{"name", "amount", "card", "plan", "subject", "message", "button", "x"} {
			data[key] = value
		}
		for _, name := range builtins {
			checkHarmless(t, templates, name, "de", data, plains[name])
		}
		checkHarmless(t, own, "own", "de", data, plains["own"])
		mail := render(t, templates, "payment_failed", "en", map[string]any{"name": value, "amount": value})
		if m := regexp.MustCompile(`(https?:)?//evil|evil\.example|@evil`).FindString(strings.ReplaceAll(mail.Text, mailLink.URL, "")); m != "" {
			t.Errorf("mail clients make a link of %q", m)
		}
	}
}

// plain is a mail with data that is what it should be.
func plain(t testing.TB, templates *notify.Templates, name, tag string) document {
	t.Helper()
	return parseMail(t, render(t, templates, name, tag, map[string]any{"name": "Jo", "x": "y"}).HTML)
}

// checkHarmless holds a mail to the skeleton of a plain one: no element, attribute, link or
// comment more.
func checkHarmless(t testing.TB, templates *notify.Templates, name, tag string, data map[string]any, want document) {
	t.Helper()
	mail := render(t, templates, name, tag, data)
	if mail.Subject == "" || utf8.RuneCountInString(mail.Subject) > 200 || strings.ContainsFunc(mail.Subject, func(r rune) bool { return strange(r) || r == '\n' }) {
		t.Errorf("%s: the subject is %q", name, mail.Subject)
	}
	for part, text := range map[string]string{"text": mail.Text, "HTML": mail.HTML} {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, strange) || !strings.Contains(text, mailLink.URL) {
			t.Errorf("%s: the %s lacks the link or holds strange characters: %q", name, part, text)
		}
	}
	got := parseMail(t, mail.HTML)
	if !slices.Equal(got.skeleton, want.skeleton) {
		t.Errorf("%s: data changed the HTML's structure: %q\n%q\n%q", name, data, got.skeleton, want.skeleton)
	}
	for i, link := range got.links {
		if link != want.links[i] && !strings.HasPrefix(link, mailLink.URL+"?x=") {
			t.Errorf("%s: data made the link %q", name, link)
		}
	}
}

// strange are characters that no mail should have.
func strange(r rune) bool {
	return r != '\n' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\ufeff' || r == '\u2028' || r == '\u2029'
}

func FuzzRenderData(f *testing.F) {
	for _, value := range hostile {
		b, err := json.Marshal(map[string]any{"name": value, "message": value, "subject": value, "x": value, value: []any{value, 1, nil}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add("payment_failed", "th", b)
	}
	f.Add("own", "zh-HK", []byte(`{"x": 1e999, "amount": -0.0, "name": true}`))
	dir := writeFolder(f, hostileMail)
	look := mailLook
	look.Dir = dir
	templates, err := notify.LoadTemplates(look)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name, tag string, body []byte) {
		if !templates.Has(name) {
			name = "own"
		}
		var data map[string]any
		d := json.NewDecoder(bytes.NewReader(body))
		if len(body)%2 == 0 { // numbers come as either
			d.UseNumber()
		}
		if d.Decode(&data) == nil {
			checkHarmless(t, templates, name, tag, data, plain(t, templates, name, tag))
		}
	})
}

func TestMailLook(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		look    notify.TemplatesConfig
		sources []string
		want    []string
		not     []string
	}{
		{notify.TemplatesConfig{}, nil, []string{"#3d3bc9", "You received this email because"}, []string{"<img", "Contact support"}},
		{notify.TemplatesConfig{Brand: "Acme", LogoURL: "https://cdn.example.com/LOGO.SVG?v=1"}, nil, []string{">Acme</p>", "Acme sent you"}, []string{"<img"}},
		{notify.TemplatesConfig{Brand: "A{brand}<b>", LogoURL: "https://cdn.example.com/logo.webp"}, []string{"https://cdn.example.com/logo.webp"}, []string{`alt="A{brand}&lt;b&gt;"`, "A{brand}&lt;b&gt; sent you"}, []string{">Acme</p>"}},
		{notify.TemplatesConfig{Color: "#fe0", SupportURL: "mailto:help@example.com"}, nil, []string{`href="mailto:help@example.com"`, "background-color:#ffee00;color:#000000", `fillcolor="#ffee00"`}, nil},
	} {
		templates, err := notify.LoadTemplates(test.look)
		must(t, err)
		mail := render(t, templates, "generic", "en", nil)
		if d := parseMail(t, mail.HTML); !slices.Equal(d.sources, test.sources) {
			t.Errorf("%+v: resources %q", test.look, d.sources)
		}
		for _, want := range test.want {
			if !strings.Contains(mail.HTML, want) {
				t.Errorf("%+v: lacks %q:\n%s", test.look, want, mail.HTML)
			}
		}
		for _, not := range test.not {
			if strings.Contains(mail.HTML+mail.Text, not) {
				t.Errorf("%+v: has %q:\n%s", test.look, not, mail.HTML)
			}
		}
	}
}

// Outlook on Windows gets a button of its own, and not the others' beside it.
func TestOutlooksButton(t *testing.T) {
	t.Parallel()
	mail := render(t, builtinMails(t), "generic", "en", map[string]any{"button": `"Go" & see`})
	for _, want := range []string{"<!--[if mso]>\n<v:roundrect ", ` href="` + mailLink.URL + `" style="width:`, "&#34;Go&#34; &amp; see</center>\n</v:roundrect>\n<![endif]-->", "<!--[if !mso]><!-->\n<a class=\"button\"", "</a>\n<!--<![endif]-->"} {
		if strings.Count(mail.HTML, want) != 1 {
			t.Errorf("there is no %q:\n%s", want, mail.HTML)
		}
	}
}

func writeFolder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func loadFolder(t *testing.T, files map[string]string) *notify.Templates {
	t.Helper()
	look := mailLook
	look.Dir = writeFolder(t, files)
	templates, err := notify.LoadTemplates(look)
	must(t, err)
	return templates
}

func TestOperatorsTemplates(t *testing.T) {
	t.Parallel()
	templates := loadFolder(t, map[string]string{
		"generic.subject": "\ufeffNews from {{.Brand}}\r\n\r\nfor {{or .Data.name \"you\"}}\n", "generic.pt.txt": "PT {{.URL}}\r\n", "generic.pt-BR.txt": "BR {{.URL}}", "generic.en.txt": "EN {{.URL}}",
		"offer.subject": "{{.Subject}}", "offer.txt": "{{.Message}} {{.Data.code}} {{.URL}}", "offer.html": `<p style="color:{{.Color.Label}}">{{.Greeting}} {{.Data.code}}</p>`, "offer.zh-TW.html": "<b>{{.Locale}}</b>",
		".keep": "", "generic.txt~": "{{", "#generic.txt#": "{{", "generic.txt.swp": "{{", "offer.html.bak": "{{",
	})
	if want := slices.Sorted(slices.Values(append([]string{"offer"}, builtins...))); !slices.Equal(templates.Names(), want) {
		t.Errorf("the templates are %q", templates.Names())
	}
	for tag, want := range map[string]string{"pt": "PT", "pt-BR": "BR", "en-GB": "EN", "en": "EN", "": "EN", "es": render(t, builtinMails(t), "generic", "es", nil).Text[:20]} {
		mail := render(t, templates, "generic", tag, nil)
		if !strings.HasPrefix(mail.Text, want) || mail.Subject != "News from Leta & Söhne for you" || mail.HTML != render(t, builtinMails(t), "generic", tag, nil).HTML {
			t.Errorf("%s: %q\n%s", tag, mail.Subject, mail.Text)
		}
	}
	w := mailWords(t, "en")
	mail := render(t, templates, "offer", "en", map[string]any{"code": "<X>", "name": "Jo"})
	if mail.Subject != w.Get("generic.subject") || mail.Text != w.Get("generic.text")+" <X> "+mailLink.URL+"\n" || mail.HTML != `<p style="color:#ffffff">Hello Jo, &lt;X&gt;</p>` {
		t.Errorf("%+v", mail)
	}
	if mail := render(t, templates, "offer", "zh-HK", nil); mail.HTML != "<b>zh-HK</b>" {
		t.Errorf("zh-HK does not have zh-TW's template: %s", mail.HTML)
	}
	if render(t, templates, "payment_failed", "de", facts) != render(t, builtinMails(t), "payment_failed", "de", facts) {
		t.Error("another template changed")
	}
}

func TestBadTemplatesStopTheStart(t *testing.T) {
	t.Parallel()
	whole := map[string]string{"a.subject": "x", "a.txt": "x", "a.html": "x"}
	for _, test := range []struct {
		file, content string
		want          []string
	}{
		{"a.txt", "one\n{{.Nope}}", []string{"a.txt:2", "Nope"}},
		{"a.html", "one\n\n<p>{{.Nope}}", []string{"a.html:3", "Nope"}},
		{"a.html", "<p>\n{{if}}", []string{"a.html:2"}},
		{"a.html", "<p>\n<a href='{{if .Brand}}x'{{end}}>", []string{"a.html:2"}},
		{"a.html", `{{outlook "<b>"}}`, []string{"a.html:1", "is no conditional comment"}},
		{"a.subject", "{{end}}", []string{"a.subject:1"}},
		{"a.subject", "{{.Data.title}}", []string{"part subject", "template a in", "is empty"}}, // of requests that have no title
		{"a.pt-BR.txt", "{{if eq .Locale \"pt-BR\"}}\n{{index .Lines 9}}{{end}}", []string{"a.pt-BR.txt:2"}},
		{"a.txt", `x{{if .Data.name}}{{len .Data.subject | index .Lines}}{{end}}`, []string{"a.txt:1"}}, // with data only
		{"a.txt", "\xff", []string{"a.txt", "UTF-8"}},
		{"b.html", "x", []string{"template b lacks", "add b.subject"}},
		{"c.de.txt", "x", []string{"template c lacks", "add c.subject"}},
		{"generic.xx.txt", "x", []string{`"generic.xx.txt"`, "NAME.LOCALE.PART"}},
		{"generic.auto.txt", "x", []string{`"generic.auto.txt"`}},
		{"generic.text", "x", []string{`"generic.text"`}},
		{"Generic.txt", "x", []string{`"Generic.txt"`}},
		{"a.b.c.txt", "x", []string{`"a.b.c.txt"`}},
		{"README", "x", []string{`"README"`}},
	} {
		files := map[string]string{test.file: test.content}
		for name, content := range whole {
			if _, ok := files[name]; !ok {
				files[name] = content
			}
		}
		_, err := notify.LoadTemplates(notify.TemplatesConfig{Dir: writeFolder(t, files)})
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %q: %v, want an error of one line", test.file, test.content, err)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s %q: %v, want an error with %q", test.file, test.content, err, want)
			}
		}
	}
	if _, err := notify.LoadTemplates(notify.TemplatesConfig{Dir: filepath.Join(t.TempDir(), "gone")}); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// A template that fails with what a request holds gives an error without that, and no mail.
func TestNoHalfMail(t *testing.T) {
	t.Parallel()
	templates := loadFolder(t, map[string]string{"a.subject": "x", "a.txt": "x", "a.html": `<p>begun {{if eq .Data.kind "secret"}}{{index .Lines 9}}{{end}}</p>`})
	mail, err := templates.Render("a", "de", mailLink, map[string]any{"kind": "secret", "name": "Jo Secret"})
	if err == nil || mail != (notify.MailContent{}) || !strings.Contains(err.Error(), "a.html:1") || strings.Contains(strings.ToLower(err.Error()), "jo secret") {
		t.Errorf("%+v, %v", mail, err)
	}
}

// outlooks are comments that Outlook on Windows reads, to where HTML lets a comment end.
var outlooks = regexp.MustCompile(`(?s)<!--\[if mso\]>(.*?)(?:-->|--!>)`)

// document is what a mail client makes of a mail's HTML.
type document struct {
	skeleton       []string // elements with the names of their attributes, and comments; line breaks left out
	links, sources []string // href of elements, src
	rows           []string // texts that are shown
	heading, text  string
	attrs          map[string]string // "element attribute", of the last one
}

func parseMail(t testing.TB, source string) document {
	t.Helper()
	root, err := html.Parse(strings.NewReader(source))
	if err != nil {
		t.Fatal(err)
	}
	d := document{attrs: map[string]string{}}
	for n := range root.Descendants() {
		switch n.Type {
		case html.ElementNode:
			d.element(n)
		case html.CommentNode:
			d.skeleton = append(d.skeleton, "comment")
		case html.TextNode:
			if p := n.Parent; shown(n) && strings.TrimSpace(n.Data) != "" {
				d.rows = append(d.rows, strings.TrimSpace(n.Data))
				if p.Data == "h1" {
					d.heading += n.Data
				}
			}
		}
	}
	d.text = strings.Join(d.rows, " ")
	// Not of the parsed comments: this parser takes what is escaped in one for markup.
	for _, m := range outlooks.FindAllStringSubmatch(source, -1) {
		inside := parseMail(t, m[1])
		d.skeleton = append(d.skeleton, inside.skeleton...)
		for _, link := range inside.links {
			if link != mailLink.URL {
				t.Errorf("Outlook gets the link %q", link)
			}
		}
	}
	return d
}

func (d *document) element(n *html.Node) {
	if n.Data == "br" {
		return
	}
	names := []string{n.Data}
	for _, a := range n.Attr {
		names = append(names, a.Key)
		d.attrs[n.Data+" "+a.Key] = a.Val
		switch a.Key {
		case "href":
			d.links = append(d.links, a.Val)
		case "src", "background", "srcset", "poster", "data":
			d.sources = append(d.sources, a.Val)
		}
	}
	d.skeleton = append(d.skeleton, strings.Join(names, " "))
}

// shown tells whether a text is in the body and not hidden.
func shown(n *html.Node) bool {
	for p := n.Parent; p != nil; p = p.Parent {
		if slices.Contains([]string{"head", "style", "script"}, p.Data) {
			return false
		}
		for _, a := range p.Attr {
			if a.Key == "style" && strings.Contains(a.Val, "display:none") {
				return false
			}
		}
	}
	return true
}
