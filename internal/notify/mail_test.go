package notify

import (
	"bytes"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"
)

// parsed is a mail as another library reads it.
type parsed struct {
	header     message.Header
	names      []string
	text, html string
}

func parseMail(t testing.TB, raw []byte) parsed {
	t.Helper()
	checkWire(t, raw)
	entity, err := message.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v in %q", err, raw)
	}
	p := parsed{header: entity.Header}
	for fields := entity.Header.Fields(); fields.Next(); {
		p.names = append(p.names, fields.Key())
	}
	slices.Sort(p.names)
	parts := entity.MultipartReader()
	if parts == nil {
		p.text = readAll(t, entity.Body)
		return p
	}
	for i := 0; ; i++ {
		part, err := parts.NextPart()
		if err == io.EOF {
			return p
		}
		if err != nil {
			t.Fatal(err)
		}
		kind, params, err := part.Header.ContentType()
		if err != nil || !strings.EqualFold(params["charset"], "utf-8") {
			t.Errorf("part %d: %v, charset %q", i, err, params["charset"])
		}
		switch body := readAll(t, part.Body); {
		case i == 0 && kind == "text/plain":
			p.text = body
		case i == 1 && kind == "text/html":
			p.html = body
		default:
			t.Errorf("part %d is %s", i, kind)
		}
	}
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// checkWire holds a message to RFC 5322: lines of at most 998 bytes that end with CRLF, no NUL, and a
// header whose continued lines are not empty. In ASCII but for an address that needs SMTPUTF8.
func checkWire(t testing.TB, raw []byte) {
	t.Helper()
	header, _, _ := strings.Cut(string(raw), "\r\n\r\n")
	for i, line := range strings.Split(strings.TrimSuffix(string(raw), "\r\n"), "\r\n") {
		if len(line) > 998 || strings.ContainsAny(line, "\r\n\x00") {
			t.Errorf("line %d has %d bytes, or CR, LF or NUL: %.100q", i, len(line), line)
		}
	}
	for i, line := range strings.Split(header, "\r\n") {
		if strings.TrimSpace(line) == "" || line == "Subject:" || len(line) > 78 && !strings.ContainsAny(line, "<") {
			t.Errorf("line %d of the header is empty or not folded: %q", i, line)
		}
	}
}

func testSender(t testing.TB) *sender {
	t.Helper()
	s, err := newSender(`"Zoë, of Bücher" <billing@bücher.example>`)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var plainFields = []string{"Auto-Submitted", "Content-Type", "Date", "From", "Message-Id", "Mime-Version", "Subject", "To", "X-Auto-Response-Suppress"}

func TestCompose(t *testing.T) {
	t.Parallel()
	mail := sample("0192-d1")
	mail.To = "jö@bücher.example"
	mail.Date = time.Date(2026, 11, 3, 12, 0, 0, 0, time.FixedZone("", 2*3600))
	mail.Subject = "Ihre Zahlung über 49,00 € ist fehlgeschlagen – bitte prüfen Sie Ihre Karte"
	mail.Text = ".\n..dots\n\nHällo\t\n" + strings.Repeat("x", 3000) + "\nend \n"
	mail.HTML = "<p title=\"" + strings.Repeat("é ", 1500) + "\">\x00 &amp; ="
	mail.ListUnsubscribe = "https://pay.example.com/u/abc?x=1"
	c, err := testSender(t).compose(mail)
	if err != nil {
		t.Fatal(err)
	}
	got := parseMail(t, c.body)
	for name, want := range map[string]string{
		"Date": "Tue, 03 Nov 2026 10:00:00 +0000", "Message-Id": "<0192-d1@xn--bcher-kva.example>", "Subject": mail.Subject, "Mime-Version": "1.0",
		"To": "<jö@xn--bcher-kva.example>", "From": "Zoë, of Bücher <billing@xn--bcher-kva.example>",
		"Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All",
		"List-Unsubscribe": "<https://pay.example.com/u/abc?x=1>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
	} {
		if value, err := got.header.Text(name); err != nil || value != want {
			t.Errorf("%s is %q, %v; want %q", name, value, err, want)
		}
	}
	if want := strings.ReplaceAll(mail.Text, "\n", "\r\n"); got.text != want {
		t.Errorf("text is %.200q", got.text)
	}
	if got.html != mail.HTML {
		t.Errorf("HTML is %.200q", got.html)
	}
	if kind, _, _ := got.header.ContentType(); kind != "multipart/alternative" || len(got.names) != len(plainFields)+2 {
		t.Errorf("%s with %q", kind, got.names)
	}
	if c.to != "<jö@xn--bcher-kva.example>" || !c.utf8 {
		t.Errorf("to %s, SMTPUTF8 %v", c.to, c.utf8)
	}
}

// Invariant 3, against what is known to break mailers.
func TestNoInjection(t *testing.T) {
	t.Parallel()
	evil := []string{"a\r\nBcc: x@example.com", "a\nBcc: x@example.com", "a\rBcc: x@example.com", "a\r\n\r\n<script>", "a\x00b", "a\u0085Bcc: x\u2028y\x0b\x0cz",
		"\xff\xfe\r\nBcc: x", strings.Repeat(" ", 400) + "x", "x" + strings.Repeat("\t ", 400) + "y", strings.Repeat("a ", 2000), strings.Repeat("ä", 3000),
		strings.Repeat("w", 3000), "=?utf-8?q?=0D=0ABcc:_x?=", "--x\r\n\r\n.\r\nQUIT\r\n"}
	for _, s := range evil {
		mail := sample("d1")
		mail.Subject, mail.Text, mail.HTML = s, s, s
		c, err := testSender(t).compose(mail)
		if err != nil {
			t.Fatal(err)
		}
		got := parseMail(t, c.body)
		if !slices.Equal(got.names, plainFields) {
			t.Errorf("%q: fields %q", s, got.names)
		}
		subject, err := got.header.Text("Subject")
		if err != nil || strings.ContainsAny(subject, "\r\n\x00\u0085\u2028") || subject != headerLine(s) {
			t.Errorf("%q: subject %q, %v", s, subject, err)
		}
		if lineEnds := strings.NewReplacer("\r\n", "\n", "\r", "\n"); lineEnds.Replace(got.text) != lineEnds.Replace(strings.ToValidUTF8(s, "\uFFFD")) {
			t.Errorf("%q: text %q", s, got.text)
		}
		mail = sample("d1")
		mail.To = s
		checkUnsendable(t, mail, "5.1.3")
		mail.To = "jo@example.org" + s
		checkUnsendable(t, mail, "5.1.3")
		mail = sample("d1")
		mail.ListUnsubscribe = "https://example.com/ " + s
		checkUnsendable(t, mail, "5.6.0")
	}
}

func checkUnsendable(t *testing.T, mail Mail, status string) {
	t.Helper()
	_, err := testSender(t).compose(mail)
	if err == nil {
		t.Errorf("To %q, List-Unsubscribe %q: taken", mail.To, mail.ListUnsubscribe)
		return
	}
	checkMailError(t, err, &MailError{EnhancedStatus: status})
	if strings.Contains(err.Error(), "example") {
		t.Errorf("%q holds an address", err)
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"jo@example.org":         "<jo@example.org>",
		"Jo+x@EXAMPLE.org":       "<Jo+x@example.org>",
		`"jo smith"@example.org`: `<"jo smith"@example.org>`,
		"用户@例子.广告":               "<用户@xn--fsqu00a.xn--4rr70v>",
		"jo@faß.example":         "<jo@xn--fa-hia.example>",
	} {
		mail := sample("d1")
		mail.To = raw
		c, err := testSender(t).compose(mail)
		if err != nil || c.to != want {
			t.Errorf("%s: %v, %v", raw, c, err)
		}
	}
	for _, raw := range []string{"", "jo", "jo@", "@example.org", "jo@example..org", "Jo <jo@example.org>", "jo@example.org, x@example.org", "jo@[127.0.0.1]", "jo@-x-.org",
		"jo@" + strings.Repeat("a", 64) + ".org", strings.Repeat("a", 65) + "@example.org", strings.Repeat("ä", 33) + "@example.org", "jo@" + strings.Repeat("a.", 130) + "org",
		"undisclosed:;", "jo\xff@example.org", "jo@exam ple.org", "jo@example.org>"} {
		mail := sample("d1")
		mail.To = raw
		if _, err := testSender(t).compose(mail); err == nil {
			t.Errorf("%q was taken", raw)
		}
	}
}

func TestListUnsubscribe(t *testing.T) {
	t.Parallel()
	for uri, oneClick := range map[string]bool{"mailto:leave@example.com?subject=x": false, "https://example.com/u": true} {
		mail := sample("d1")
		mail.ListUnsubscribe = uri
		c, err := testSender(t).compose(mail)
		if err != nil {
			t.Fatal(err)
		}
		if got := parseMail(t, c.body).header; got.Get("List-Unsubscribe") != "<"+uri+">" || got.Has("List-Unsubscribe-Post") != oneClick {
			t.Errorf("%s: %q, one click %v", uri, got.Get("List-Unsubscribe"), got.Has("List-Unsubscribe-Post"))
		}
	}
	for _, uri := range []string{"http://example.com/u", "https:///u", "mailto:", "javascript:alert(1)", "/u", "https://example.com/>,<mailto:x@example.com", "https://example.com/ä"} {
		mail := sample("d1")
		mail.ListUnsubscribe = uri
		checkUnsendable(t, mail, "5.6.0")
	}
}

func TestMailWithoutHTML(t *testing.T) {
	t.Parallel()
	mail := sample("d1")
	mail.HTML = ""
	c, err := testSender(t).compose(mail)
	if err != nil {
		t.Fatal(err)
	}
	got := parseMail(t, c.body)
	if kind, _, _ := got.header.ContentType(); kind != "text/plain" || got.text != "Hello\r\n" {
		t.Errorf("%s, %q", kind, got.text)
	}
}

func TestDeliveryID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "a b", "a>", "a\r\nBcc: x", strings.Repeat("a", 201)} {
		if _, err := testSender(t).compose(sample(id)); err == nil {
			t.Errorf("%q was taken", id)
		}
	}
}

// Every status and code has words, and no error is more than a line.
func TestMeanings(t *testing.T) {
	t.Parallel()
	line := regexp.MustCompile(`^[ -~]+$`)
	for _, e := range []*MailError{{Code: 550, EnhancedStatus: "5.1.1", Step: stepRcpt}, {Code: 450, Temporary: true, Step: stepEnd}, {Code: 599, EnhancedStatus: "5.9.9", Step: stepMail},
		{EnhancedStatus: "5.6.7"}, {Code: 571, Step: stepData}, {Code: 550, EnhancedStatus: "5.2.99", Step: stepRcpt}} {
		if !line.MatchString(e.Error()) || strings.HasSuffix(e.Error(), ": ") {
			t.Errorf("%q", e.Error())
		}
	}
}

// Invariant 3, against anything: another parser reads back what was put in.
func FuzzCompose(f *testing.F) {
	f.Add("jo@example.org", "Subject", "text", "https://example.com/u")
	f.Add("jö@bücher.example", "a\r\nBcc: x", ".\r\n\x00", "mailto:x@example.com")
	f.Fuzz(func(t *testing.T, to, subj, text, uri string) {
		c, err := testSender(t).compose(Mail{DeliveryID: "d1", To: to, Date: sample("").Date, Subject: subj, Text: text, HTML: text, ListUnsubscribe: uri})
		if err != nil {
			return
		}
		got := parseMail(t, c.body)
		want := len(plainFields)
		if text == "" && slices.Contains(got.names, "Content-Transfer-Encoding") {
			want++ // a mail of one part has it at the top
		}
		if uri != "" {
			want++
		}
		if strings.HasPrefix(strings.ToLower(uri), "https:") {
			want++
		}
		if len(got.names) != want {
			t.Errorf("fields %q", got.names)
		}
		if strings.ContainsAny(c.to, "\r\n") {
			t.Errorf("recipient %q", c.to)
		}
		if value, err := got.header.Text("Subject"); err != nil || value != headerLine(subj) {
			t.Errorf("subject %q, %v, of %q", value, err, subj)
		}
	})
}
