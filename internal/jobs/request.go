package jobs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// MaxRequestBytes is the largest request that is looked into.
const MaxRequestBytes = 64 << 10

// Request is what a producer publishes to portal.requests.<source>. docs/request.md tells every
// field and rule.
type Request struct {
	ID            string                `json:"id,omitzero"`
	Session       *portal.SessionParams `json:"session,omitzero"`
	StripeAccount string                `json:"stripe_account,omitzero"`
	Livemode      *bool                 `json:"livemode,omitzero"`
	Source        string                `json:"source,omitzero"`
	Campaign      string                `json:"campaign,omitzero"`
	ExpiresIn     string                `json:"expires_in,omitzero"` // Go duration, from the link's creation on
	ExpiresAt     string                `json:"expires_at,omitzero"` // RFC 3339
	MaxSessions   *int                  `json:"max_sessions,omitzero"`
	Deliver       []Delivery            `json:"deliver,omitempty"`
	Metadata      map[string]string     `json:"metadata,omitempty"`
}

// Delivery is a channel that the link should go out by.
type Delivery struct {
	Channel         string         `json:"channel,omitzero"`
	To              string         `json:"to,omitzero"`
	Template        string         `json:"template,omitzero"`
	URL             string         `json:"url,omitzero"`
	Data            jsontext.Value `json:"data,omitzero"`
	ListUnsubscribe string         `json:"list_unsubscribe,omitzero"` // https or mailto
}

// Code says why a request can never be served; it is the last token of portal.dead.<code>.
type Code string

// The codes of the contract.
const (
	InvalidJSON         Code = "invalid_json" // also a name given twice, invalid UTF-8, not an object
	TooLarge            Code = "too_large"
	InvalidField        Code = "invalid_field"
	IDConflict          Code = "id_conflict"
	Expired             Code = "expired"
	DeliveryUnavailable Code = "delivery_unavailable"
	ModeMismatch        Code = "mode_mismatch"
)

// Rejection is returned for a request that can never be served. Its text names the field by
// JSONPath, the rule, and the kind or length of what was there, never the value.
type Rejection struct {
	Code   Code
	Reason string
}

func (r *Rejection) Error() string { return string(r.Code) + ": " + r.Reason }

// Rules is what a request's check depends on beside its own content.
type Rules struct {
	Session       portal.SessionRules
	TTL           time.Duration // of a link that names none
	TTLMax        time.Duration
	Livemode      bool // mode of the Stripe key
	LivemodeKnown bool
	Templates     *notify.Templates // of mails; nil = delivery by email is not configured
	Webhooks      *notify.Webhooks  // nil = delivery by webhook is not configured
}

// ValidSource tells whether a source can be one; it is a token of the subject too.
func ValidSource(s string) bool { return madeOf(s, 40, lower+digits+"_-") }

// ValidCampaign tells whether a campaign's name can be one.
func ValidCampaign(s string) bool { return madeOf(s, 100, letters+digits+"._-") }

func validAccount(s string) bool {
	id, ok := strings.CutPrefix(s, "acct_")
	return ok && madeOf(id, 200, letters+digits)
}

const (
	lower   = "abcdefghijklmnopqrstuvwxyz"
	letters = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
)

// madeOf tells whether s has 1 to most characters, all of an alphabet. (A regular expression takes five times as
// long, twice for each request.)
func madeOf(s string, most int, alphabet string) bool {
	return len(s) >= 1 && len(s) <= most && strings.Trim(s, alphabet) == ""
}

// ParseRequest reads and checks a request. The error is a *Rejection; the request that comes
// with one is what could be read, its ID set only where that is a valid id.
func ParseRequest(body []byte, rules Rules, now time.Time) (*Request, error) {
	req, err := parseRequest(body, rules, now)
	if err != nil {
		return req, err
	}
	return req, req.deliverable(rules)
}

// CheckRequest checks a request as far as that is possible without a deployment's settings: hosts of return
// URLs, the longest life of a link, the key's mode, and which channels and templates there are, are left to
// the worker. The error is a *Rejection.
func CheckRequest(body []byte, now time.Time) error {
	_, err := parseRequest(body, Rules{Session: portal.SessionRules{AnyReturnURLHost: true}, TTL: time.Hour, TTLMax: unlimited}, now)
	return err
}

const unlimited = 100 * 365 * 24 * time.Hour

func parseRequest(body []byte, rules Rules, now time.Time) (*Request, error) {
	if len(body) > MaxRequestBytes {
		return &Request{}, &Rejection{TooLarge, fmt.Sprintf("a request may have at most %d bytes (got %d)", MaxRequestBytes, len(body))}
	}
	if err := lint(body); err != nil {
		return &Request{}, err
	}
	req := &Request{}
	// What lint has seen to is not looked for again.
	err := json.Unmarshal(body, req, json.RejectUnknownMembers(true), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if !validID(req.ID) {
		id := req.ID
		req.ID = ""
		if err == nil && id != "" {
			return req, field("$.id", "must be 1 to 200 printable characters", fmt.Sprintf("%d characters", utf8.RuneCountInString(id)))
		}
	}
	if err != nil {
		return req, decodeRejection(err)
	}
	req.dropNulls()
	return req, req.check(rules, now)
}

// dropNulls takes null for absent where decoding does not.
func (r *Request) dropNulls() {
	for i := range r.Deliver {
		if r.Deliver[i].Data.Kind() == 'n' {
			r.Deliver[i].Data = nil
		}
	}
}

func validID(id string) bool {
	n := utf8.RuneCountInString(id)
	return n >= 1 && n <= 200 && strings.IndexFunc(id, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// decoders keep their stacks and tables of names from one request to the next.
var decoders = sync.Pool{New: func() any { return &jsontext.Decoder{} }}

// lint reads every token before anything is decoded: bad syntax, a name given twice, invalid
// UTF-8 (all by jsontext), something behind the object; then what decoding would not tell: U+0000,
// which Postgres cannot store, an empty string where Stripe refuses one, and a null that does not
// mean an absent field but would turn into an empty string.
func lint(body []byte) error {
	dec := decoders.Get().(*jsontext.Decoder)
	defer decoders.Put(dec)
	dec.Reset(bytes.NewBuffer(body)) // which it reads in place
	if kind := dec.PeekKind(); kind != '{' {
		if _, err := dec.ReadValue(); err != nil {
			kind = jsontext.KindInvalid // it only begins as that does: "not JSON" as null
		}
		return &Rejection{InvalidJSON, "a request must be a JSON object (got " + kindName(kind) + ")"}
	}
	nul := bytes.Contains(body, []byte(`\u0000`)) // perhaps
	top := ""                                     // the field of the request that the decoder is in
	for depth := -1; depth != 0; depth = dec.StackDepth() {
		kind := dec.PeekKind()
		var value jsontext.Value // of a string, quotes and all
		var err error
		if kind == '"' {
			value, err = dec.ReadValue() // cheaper than a token's text
		} else {
			_, err = dec.ReadToken()
		}
		if err != nil {
			return syntaxRejection(err)
		}
		if dec.StackDepth() == 1 {
			if _, n := dec.StackIndex(1); n%2 == 1 { // a name
				top = topField(value)
			}
		}
		if nul && hasNUL(value) {
			return field(jsonPath(string(dec.StackPointer())), "must not hold the character U+0000", "")
		}
		// The path is asked for only to be told: in deep nesting it costs as much as all the rest.
		if rule, got := lintEmpty(dec, kind, len(value), top); rule != "" {
			return field(jsonPath(string(dec.StackPointer())), rule, got)
		}
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return &Rejection{InvalidJSON, "something follows the JSON object"}
	}
	return nil
}

// topField is a field of the request as lintEmpty distinguishes them; empty = another.
func topField(name jsontext.Value) string {
	var buffer [16]byte
	text, err := jsontext.AppendUnquote(buffer[:0], name)
	switch {
	case err == nil && string(text) == "session":
		return "session"
	case err == nil && string(text) == "metadata":
		return "metadata"
	}
	return ""
}

func hasNUL(value jsontext.Value) bool {
	text, err := jsontext.AppendUnquote(nil, value)
	return err == nil && bytes.IndexByte(text, 0) >= 0
}

// lintEmpty returns the rule that a null, or a string of so many bytes with its quotes, breaks, and what it is.
func lintEmpty(dec *jsontext.Decoder, kind jsontext.Kind, size int, top string) (rule, got string) {
	depth := dec.StackDepth()
	container, n := dec.StackIndex(depth)
	inSession := top == "session" && depth > 1
	switch isName := container == '{' && n%2 == 1; {
	case kind == 'n' && (top == "metadata" && depth > 1 || inSession && container == '['):
		return "must not be null; leave it out instead", "null"
	case kind == '"' && size == len(`""`) && inSession && !isName:
		return "must not be empty; leave it out instead", "an empty string"
	}
	return "", ""
}

func syntaxRejection(err error) *Rejection {
	var se *jsontext.SyntacticError
	if !errors.As(err, &se) {
		return &Rejection{InvalidJSON, "the JSON ends before it is complete"}
	}
	at := fmt.Sprintf(" near %s, byte %d", jsonPath(string(se.JSONPointer)), se.ByteOffset)
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return &Rejection{InvalidJSON, "a name is given twice" + at}
	case strings.Contains(se.Err.Error(), "UTF-8"):
		return &Rejection{InvalidJSON, "invalid UTF-8" + at}
	}
	return &Rejection{InvalidJSON, "not valid JSON" + at}
}

func decodeRejection(err error) *Rejection {
	var se *json.SemanticError
	if !errors.As(err, &se) {
		return syntaxRejection(err)
	}
	path := jsonPath(string(se.JSONPointer))
	if errors.Is(err, json.ErrUnknownName) {
		return field(path, "is no field of a request; check its spelling", "")
	}
	want := "must be of another type"
	if se.GoType != nil {
		want = "must be " + typeName(se.GoType.String())
	}
	return field(path, want, kindName(se.JSONKind))
}

func typeName(goType string) string {
	switch {
	case strings.Contains(goType, "map"), strings.Contains(goType, "portal."), strings.Contains(goType, "jobs."):
		if strings.HasPrefix(goType, "[]") {
			return "an array of objects"
		}
		return "an object"
	case strings.HasPrefix(goType, "[]"):
		return "an array"
	case strings.Contains(goType, "int"):
		return "a whole number"
	case strings.Contains(goType, "bool"):
		return "true or false"
	}
	return "a string"
}

func kindName(k jsontext.Kind) string {
	switch k {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case 't', 'f':
		return "true or false"
	case 'n':
		return "null"
	}
	return "no JSON"
}

// maxPath bounds a path in a message: 64 KiB can nest ten thousand deep.
const maxPath = 200

// jsonPath writes a JSON pointer as JSONPath (RFC 9535). Names in it can be a stranger's: they
// are cut and freed of what does not print.
func jsonPath(pointer string) string {
	var b strings.Builder
	b.WriteByte('$')
	for token := range jsontext.Pointer(pointer).Tokens() {
		if b.Len() > maxPath {
			b.WriteString("…")
			break
		}
		if _, err := strconv.Atoi(token); err == nil && len(token) < 10 {
			b.WriteString("[" + token + "]")
			continue
		}
		clean := strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return '?'
		}, token)
		if r := []rune(clean); len(r) > 40 {
			clean = string(r[:40]) + "…"
		}
		b.WriteString("." + clean)
	}
	return b.String()
}

func field(path, rule, got string) *Rejection {
	return &Rejection{InvalidField, (&portal.FieldError{Path: path, Rule: rule, Got: got}).Error()}
}

// check holds the fields against the contract, cheapest and most telling first.
func (r *Request) check(rules Rules, now time.Time) error {
	switch {
	case r.ID == "":
		return field("$.id", "is required: the key by which a repeat is recognised", "")
	case r.Source == "":
		return field("$.source", "is required", "")
	case !ValidSource(r.Source):
		return field("$.source", "must match [a-z0-9_-]{1,40}", characters(r.Source))
	case r.Session == nil:
		return field("$.session", "is required: the body of Stripe's POST /v1/billing_portal/sessions", "")
	case r.Campaign != "" && !ValidCampaign(r.Campaign):
		return field("$.campaign", "must match [A-Za-z0-9._-]{1,100}", characters(r.Campaign))
	case r.StripeAccount != "" && !validAccount(r.StripeAccount):
		return field("$.stripe_account", "must be an account's id, acct_…", characters(r.StripeAccount))
	case r.MaxSessions != nil && (*r.MaxSessions < 1 || *r.MaxSessions > 1000):
		return field("$.max_sessions", "must be from 1 to 1000", "a number outside of that")
	}
	if err := r.Session.Check(rules.Session); err != nil {
		return &Rejection{InvalidField, err.Error()}
	}
	if err := r.checkMetadata(); err != nil {
		return err
	}
	if _, err := r.Expiry(rules, now); err != nil {
		return err
	}
	if r.Livemode != nil && rules.LivemodeKnown && *r.Livemode != rules.Livemode {
		return &Rejection{ModeMismatch, fmt.Sprintf("$.livemode is %t and STRIPE_API_KEY's mode is %t", *r.Livemode, rules.Livemode)}
	}
	return r.checkDeliver(rules)
}

// checkMetadata holds Stripe's limits of metadata.
func (r *Request) checkMetadata() error {
	if len(r.Metadata) > 50 {
		return field("$.metadata", "may have at most 50 pairs", strconv.Itoa(len(r.Metadata)))
	}
	for k, v := range r.Metadata {
		if n := utf8.RuneCountInString(k); n < 1 || n > 40 {
			return field("$.metadata", "a key must have 1 to 40 characters", strconv.Itoa(n))
		}
		if utf8.RuneCountInString(v) > 500 {
			return field(jsonPath("/metadata/"+k), "may have at most 500 characters", characters(v))
		}
	}
	return nil
}

// Expiry is when a link that is made now expires. The error is a *Rejection.
func (r *Request) Expiry(rules Rules, now time.Time) (time.Time, error) {
	expires, path := now.Add(rules.TTL), ""
	switch {
	case r.ExpiresIn != "" && r.ExpiresAt != "":
		return time.Time{}, field("$.expires_at", "must not stand beside expires_in", "both")
	case r.ExpiresIn != "":
		d, err := time.ParseDuration(r.ExpiresIn)
		if err != nil || d <= 0 {
			return time.Time{}, field("$.expires_in", "must be a Go duration above 0, such as 336h or 90m", characters(r.ExpiresIn))
		}
		expires, path = now.Add(d), "$.expires_in"
	case r.ExpiresAt != "":
		t, err := time.Parse(time.RFC3339, r.ExpiresAt)
		if err != nil {
			return time.Time{}, field("$.expires_at", "must be a time of RFC 3339, such as 2026-12-24T18:00:00Z", characters(r.ExpiresAt))
		}
		if !t.After(now) {
			return time.Time{}, &Rejection{Expired, "$.expires_at lies in the past"}
		}
		expires, path = t, "$.expires_at"
	}
	if path != "" && expires.After(now.Add(rules.TTLMax)) {
		return time.Time{}, field(path, "lies further ahead than LINK_TTL_MAX ("+rules.TTLMax.String()+")", "a later time")
	}
	expires = expires.Truncate(time.Microsecond) // what Postgres keeps
	if !expires.After(now) {
		return time.Time{}, &Rejection{Expired, path + " lies less than a microsecond ahead"}
	}
	return expires, nil
}

// checkDeliver checks the channels' form.
func (r *Request) checkDeliver(rules Rules) error {
	if len(r.Deliver) > 5 {
		return field("$.deliver", "may have at most 5 entries", strconv.Itoa(len(r.Deliver)))
	}
	for i := range r.Deliver {
		if err := r.Deliver[i].check(fmt.Sprintf("$.deliver[%d]", i), rules); err != nil {
			return err
		}
	}
	return nil
}

// deliverable rejects what this deployment could not deliver instead of taking it and staying silent.
func (r *Request) deliverable(rules Rules) error {
	for i, d := range r.Deliver {
		at := fmt.Sprintf("$.deliver[%d]", i)
		switch {
		case d.Channel == ChannelEmail && rules.Templates == nil:
			return &Rejection{DeliveryUnavailable, at + ": delivery by email is not configured; set SMTP_URL and MAIL_FROM"}
		case d.Channel == ChannelWebhook && rules.Webhooks == nil:
			return &Rejection{DeliveryUnavailable, at + ": delivery by webhook is not configured; set WEBHOOK_SECRETS"}
		case d.Template != "" && !rules.Templates.Has(d.Template):
			return field(at+".template", "must be one of "+strings.Join(rules.Templates.Names(), ", "), characters(d.Template))
		}
	}
	return nil
}

func (d *Delivery) check(at string, rules Rules) error {
	switch d.Channel {
	case ChannelEmail:
		return d.checkEmail(at)
	case ChannelWebhook:
		if d.To != "" || d.Template != "" || len(d.Data) > 0 || d.ListUnsubscribe != "" {
			return field(at, "channel webhook takes a url only", "more")
		}
		if err := rules.Webhooks.CheckTarget(d.URL); err != nil {
			return field(at+".url", err.Error(), characters(d.URL))
		}
	case "":
		return field(at+".channel", "is required", "")
	default:
		return field(at+".channel", "must be email or webhook", characters(d.Channel))
	}
	return nil
}

func (d *Delivery) checkEmail(at string) error {
	switch {
	case d.To == "":
		return field(at+".to", "is required", "")
	case notify.CheckRecipient(d.To) != nil:
		return field(at+".to", "must be a mail address without a display name", characters(d.To))
	case d.URL != "":
		return field(at+".url", "goes with channel webhook only", "channel email")
	case d.Template != "" && !madeOf(d.Template, 40, lower+digits+"_"):
		return field(at+".template", "must match [a-z0-9_]{1,40}", characters(d.Template))
	case len(d.Data) > 0 && d.Data.Kind() != '{':
		return field(at+".data", "must be an object", kindName(d.Data.Kind()))
	case d.ListUnsubscribe != "":
		if err := notify.CheckUnsubscribe(d.ListUnsubscribe); err != nil {
			return field(at+".list_unsubscribe", err.Error(), characters(d.ListUnsubscribe))
		}
	}
	return nil
}

func characters(s string) string {
	return fmt.Sprintf("a string of %d characters", utf8.RuneCountInString(s))
}
