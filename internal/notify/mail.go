package notify

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	netmail "net/mail"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/wneessen/go-mail"
	"golang.org/x/net/idna"
)

// Mail is one mail to one recipient. Whatever its fields hold, what goes out is one well-formed
// message (RFC 5322, RFC 2045) with the fields of composition and no others.
type Mail struct {
	DeliveryID          string    // stable for a delivery, whatever the attempt: letters, digits, '.', '_', '-'. The Message-ID is made of it.
	To                  string    // addr-spec (RFC 5322, 3.4.1), may be internationalised (RFC 6531)
	Date                time.Time // of the delivery's first making: the same in each attempt
	Subject, Text, HTML string
	ListUnsubscribe     string // https or mailto URI; empty = none. With https, one click is offered (RFC 8058).
}

// composed is a mail as it goes over the wire.
type composed struct {
	to   string // with angle brackets, as RCPT takes it
	utf8 bool   // the recipient needs SMTPUTF8 (RFC 6531)
	body []byte // header and body, lines ended by CRLF
}

// Limits of RFC 5321, 4.5.3.1, in bytes. They also keep an address within one line of a header.
const (
	maxLocalPart = 64
	maxAddress   = 254
)

// maxURI keeps List-Unsubscribe, which can't be broken, within RFC 5322's line of 998 bytes.
const maxURI = 900

var deliveryID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,200}$`)

// compose makes the message. It is the same for the same mail in each attempt, but for the boundary.
// The error is a *MailError where the mail itself is at fault.
func (s *sender) compose(m Mail) (*composed, error) {
	if !deliveryID.MatchString(m.DeliveryID) {
		return nil, errors.New("DeliveryID must be 1 to 200 of letters, digits, '.', '_' and '-'")
	}
	to, err := parseAddress(m.To)
	if err != nil || to.Name != "" {
		return nil, &MailError{EnhancedStatus: "5.1.3"}
	}
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	msg.FromMailAddress(&s.from)
	msg.ToMailAddress(to)
	msg.SetDateWithValue(m.Date.UTC())
	msg.SetMessageIDWithValue(s.messageID(m.DeliveryID))
	// Preformatted, since go-mail breaks before a long first word, and some readers then see a space too many.
	msg.SetGenHeaderPreformatted(mail.HeaderSubject, encodedSubject(headerLine(m.Subject)))
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: vacation responders keep quiet
	msg.SetGenHeader("X-Auto-Response-Suppress", "All")  // the same for Exchange
	if err := unsubscribe(msg, m.ListUnsubscribe); err != nil {
		return nil, err
	}
	msg.SetBodyString(mail.TypeTextPlain, strings.ToValidUTF8(m.Text, "\uFFFD"))
	if m.HTML != "" {
		msg.AddAlternativeString(mail.TypeTextHTML, strings.ToValidUTF8(m.HTML, "\uFFFD"))
	}
	var body bytes.Buffer
	if _, err := msg.WriteTo(&body); err != nil {
		return nil, fmt.Errorf("writing the message: %w", err)
	}
	return &composed{to: angled(to), utf8: !isASCII(to.Address), body: body.Bytes()}, nil
}

// sender is MAIL_FROM.
type sender struct {
	from   netmail.Address // the domain in A-labels
	domain string
}

func newSender(from string) (*sender, error) {
	a, err := parseAddress(from)
	if err != nil {
		return nil, errors.New("MAIL_FROM: must be an address, such as billing@example.com or Example <billing@example.com>")
	}
	at := strings.LastIndexByte(a.Address, '@')
	if !isASCII(a.Address[:at]) {
		return nil, errors.New("MAIL_FROM: must be ASCII before the @, since not every server takes other senders")
	}
	return &sender{from: *a, domain: a.Address[at+1:]}, nil
}

func (s *sender) messageID(deliveryID string) string { return deliveryID + "@" + s.domain }

// CheckRecipient tells whether a mail can be addressed to it: an address (RFC 5322's addr-spec) without display
// name or comment, that some server may take.
func CheckRecipient(to string) error {
	a, err := netmail.ParseAddress(to)
	if err != nil || a.Name != "" || a.Address != to || len(to) > maxAddress {
		return errors.New("must be a mail address without a display name")
	}
	_, err = parseAddress(to)
	return err
}

// parseAddress reads an address with or without a display name, and puts its domain into A-labels.
func parseAddress(raw string) (*netmail.Address, error) {
	if len(raw) > 4*maxAddress {
		return nil, errors.New("address too long")
	}
	a, err := netmail.ParseAddress(raw)
	if err != nil {
		return nil, err
	}
	at := strings.LastIndexByte(a.Address, '@')
	domain, err := domains.ToASCII(a.Address[at+1:])
	if err != nil {
		return nil, err
	}
	local := a.Address[:at]
	if len(local) > maxLocalPart || len(local)+1+len(domain) > maxAddress || !utf8.ValidString(local) {
		return nil, errors.New("address too long, or not UTF-8")
	}
	return &netmail.Address{Name: headerLine(a.Name), Address: local + "@" + domain}, nil
}

// domains are looked up, so they are mapped as browsers do and held to DNS's lengths (RFC 5891).
var domains = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

// angled quotes the local part where it has to be.
func angled(a *netmail.Address) string { return (&netmail.Address{Address: a.Address}).String() }

// encodedSubject is a subject as it is, where that is safe, or in encoded words (RFC 2047). Those also take
// words that could not be broken into lines, and what a reader would take for an encoded word.
func encodedSubject(s string) string {
	const line, chunk = 66, 36 // characters beside "Subject: "; bytes of which an encoded word is made
	if len(s) <= line && isASCII(s) && !strings.Contains(s, "=?") {
		return s
	}
	var words []string
	for s != "" {
		n := min(chunk, len(s))
		for n < len(s) && !utf8.RuneStart(s[n]) {
			n--
		}
		words = append(words, "=?utf-8?b?"+base64.StdEncoding.EncodeToString([]byte(s[:n]))+"?=")
		s = s[n:]
	}
	return strings.Join(words, "\r\n ")
}

// headerLine has no control characters and no runs of spaces: these would fold into lines that are empty for some
// readers, and so end the header.
func headerLine(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "\uFFFD"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
}

// CheckUnsubscribe tells whether a URI can stand in List-Unsubscribe.
func CheckUnsubscribe(uri string) error {
	u, err := url.Parse(uri)
	bad := err != nil || len(uri) > maxURI || strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r > '~' || r == '<' || r == '>' })
	if bad || (u.Scheme != "mailto" || u.Opaque == "") && (u.Scheme != "https" || u.Host == "") {
		return fmt.Errorf("must be an https or mailto URI of at most %d ASCII characters", maxURI)
	}
	return nil
}

// unsubscribe sets RFC 2369's field and, for https, RFC 8058's.
func unsubscribe(msg *mail.Msg, uri string) error {
	if uri == "" {
		return nil
	}
	if err := CheckUnsubscribe(uri); err != nil {
		return &MailError{EnhancedStatus: "5.6.0", words: "ListUnsubscribe " + err.Error()}
	}
	msg.SetGenHeaderPreformatted(mail.HeaderListUnsubscribe, "<"+uri+">")
	if strings.HasPrefix(strings.ToLower(uri), "https:") {
		msg.SetGenHeader(mail.HeaderListUnsubscribePost, "List-Unsubscribe=One-Click")
	}
	return nil
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}
