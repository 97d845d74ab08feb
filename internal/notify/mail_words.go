package notify

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"latchkey/internal/locale"
)

// How long a value of a request's data may be, in characters; what is longer is cut, with an
// ellipsis. Every value but these is held to maxMessage.
const (
	maxFact    = 100 // name, amount, card, plan
	maxSubject = 200
	maxButton  = 60
	maxMessage = 5000
)

// preheader is how much of the message mail clients get to show in their list.
const preheader = 150

// facts are the fields of data that a built-in template has a sentence for, its words being
// <template>.text.<field>.
var facts = map[string]string{"payment_failed": "amount", "card_expiring": "card", "subscription_ended": "plan"}

// values are data's strings and numbers, with nothing in them but text. What else a request's data
// holds has no way into a mail.
func values(data map[string]any) map[string]string {
	clean := make(map[string]string, len(data))
	for key, v := range data {
		switch v := v.(type) {
		case string:
			clean[key] = paragraph(v, maxMessage)
		case json.Number:
			clean[key] = paragraph(v.String(), maxMessage)
		case float64:
			clean[key] = strconv.FormatFloat(v, 'f', -1, 64)
		case int:
			clean[key] = strconv.Itoa(v)
		}
	}
	return clean
}

// say fills in what a mail says: data's own words where there are some, else the template's.
func (m *MailView) say(template string, w *locale.Words) {
	if w.Get(template+".subject") == "" {
		template = DefaultTemplate // one of the operator's
	}
	fact := func(key string) string { return unlinked(line(m.Data[key], maxFact)) }
	choose := func(own, key string) string {
		if own != "" {
			return own
		}
		return w.Get(template + key)
	}
	m.Subject = choose(line(m.Data["subject"], maxSubject), ".subject")
	m.Button = choose(line(m.Data["button"], maxButton), ".button")
	m.Message = choose(m.Data["message"], ".text")
	if field, ok := facts[template]; ok && m.Data["message"] == "" && fact(field) != "" {
		m.Message = fill(w.Get(template+".text."+field), field, fact(field))
	}
	m.Preheader = line(m.Message, preheader)
	m.Greeting = w.Get("greeting")
	if name := fact("name"); name != "" {
		m.Greeting = fill(w.Get("greeting.name"), "name", name)
	}
	m.SentBy = w.Get("footer.sent")
	if m.Brand != "" {
		m.SentBy = fill(w.Get("footer.sent_by"), "brand", m.Brand)
	}
	if m.Date != "" {
		m.Until = fill(fill(w.Get("link.works_until"), "date", m.Date), "time", m.Time)
	}
	m.Personal, m.Copy, m.Support = w.Get("link.personal"), w.Get("link.copy"), w.Get("footer.support")
}

// fill puts a value into its hole. What looks like a hole in the value is text.
func fill(text, hole, value string) string { return strings.Replace(text, "{"+hole+"}", value, 1) }

// line makes a text one line, of at most limit characters.
func line(s string, limit int) string {
	return cut(singleSpaced(harmless(s)), limit)
}

// paragraph keeps a text's line breaks, with no more than one empty line in a row.
func paragraph(s string, limit int) string {
	rows := strings.Split(harmless(s), "\n")
	for i := range rows {
		rows[i] = singleSpaced(rows[i])
	}
	return cut(strings.Trim(emptyLines.ReplaceAllLiteralString(strings.Join(rows, "\n"), "\n\n"), "\n"), limit)
}

var emptyLines = regexp.MustCompile(`\n{3,}`)

// singleSpaced joins with single spaces. No-break spaces stay: amounts have them.
func singleSpaced(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '\n' }), " ")
}

// harmless takes out what is not text: control characters, bytes that are not UTF-8, and the marks
// that turn the direction of writing, by which a text can be made to read as another. Each break of
// a line becomes a newline, each tab a space.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r == '\n', r == '\v', r == '\f', r == '\u0085', r == '\u2028', r == '\u2029':
			return '\n'
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), unicode.Is(unicode.Noncharacter_Code_Point, r), r == '\ufeff':
			return -1
		}
		return r
	}, lineEnds.Replace(strings.ToValidUTF8(s, "\ufffd")))
}

var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

// cut ends a text that is too long with an ellipsis, which counts.
func cut(s string, limit int) string {
	count := 0
	end := 0 // of the text's first limit-1 characters
	for i := range s {
		if count == limit-1 {
			end = i
		}
		if count++; count > limit {
			return strings.TrimRight(s[:end], " \n") + "…"
		}
	}
	return s
}

// unlinked keeps mail clients from making a link of a fact that looks like an address, by spaces of
// no width inside it. Customers choose their names, and a mail of yours with their link in it is
// what some are after.
func unlinked(s string) string {
	var b strings.Builder
	last := ' '
	for _, r := range s {
		if strings.ContainsRune(".:/@", last) && (r == '/' || unicode.IsLetter(r)) {
			b.WriteRune('\u200b')
		}
		b.WriteRune(r)
		last = r
	}
	return b.String()
}
