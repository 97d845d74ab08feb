package notify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"regexp"
	"strings"
)

// ErrMailServer is returned by Send and Check when the mail server can't be used now, whatever the
// mail: no connection, TLS, authentication, its sender refused, 421, no answer in time, spared after
// such failures. The mail may be sent again without limit and without counting it as an attempt,
// unless it is an ErrCutOff as well.
var ErrMailServer = errors.New("the mail server can't be used")

// ErrCutOff is returned by Send, as an ErrMailServer, when the connection broke or the time ran out in the
// middle of this mail. Perhaps the mail is the reason: it must be counted as an attempt, or it would be tried for
// ever. Where all of it was handed over it may have been taken; its repeat has the same Message-ID.
var ErrCutOff = errors.New("the mail server broke off")

// MailError is returned by Send when the server answered about this mail, or the mail can't be sent
// by any server. It holds nothing of the server's text, which quotes addresses.
type MailError struct {
	Code           int    // SMTP reply, 400–599; 0 = the server was not asked
	EnhancedStatus string // RFC 3463, such as 5.1.1; "" = none was given
	Temporary      bool   // a later attempt may succeed (4xx)
	Step           string // SMTP command that was refused; "" = none
	words          string // in place of those for the status
}

// Error tells code, status and what they mean.
func (e *MailError) Error() string {
	words := e.words
	if words == "" {
		words = meaning(e.Code, e.EnhancedStatus)
	}
	if e.Code == 0 {
		return fmt.Sprintf("the mail can't be sent (%s): %s", e.EnhancedStatus, words)
	}
	return fmt.Sprintf("the mail server refused the mail at %s (%s): %s", e.Step, reply(e.Code, e.EnhancedStatus), words)
}

// serverError is an ErrMailServer at one step.
type serverError struct {
	step  string
	cause error
	again bool // nothing of this mail was told to the server yet
	amid  bool // this mail was being told
}

func (e *serverError) Error() string {
	return fmt.Sprintf("%v: %s: %v%s", ErrMailServer, e.step, e.cause, remedies[e.step])
}

// Is makes it an ErrMailServer, and an ErrCutOff where it is one.
func (e *serverError) Is(target error) bool {
	return target == ErrMailServer || target == ErrCutOff && e.amid
}

func (e *serverError) Unwrap() error { return e.cause }

// The steps of a conversation, as errors name them.
const (
	stepWait     = "waiting"
	stepConnect  = "connecting"
	stepHello    = "greeting"
	stepStartTLS = "STARTTLS"
	stepTLS      = "TLS"
	stepAuth     = "authentication"
	stepReset    = "RSET"
	stepMail     = "MAIL"
	stepRcpt     = "RCPT"
	stepData     = "DATA"
	stepEnd      = "the end of DATA"
)

var remedies = map[string]string{
	stepConnect:  "; check host and port of SMTP_URL and the network",
	stepHello:    "; check host and port of SMTP_URL: smtps:// for a port with TLS from the start, else smtp://",
	stepStartTLS: "; check SMTP_URL: the host must be the name in the server's certificate",
	stepTLS:      "; check SMTP_URL: the host must be the name in the server's certificate, and smtp:// is for ports with STARTTLS",
	stepAuth:     "; check user and password of SMTP_URL",
	stepMail:     "; check that the user of SMTP_URL may send as MAIL_FROM",
	stepEnd:      "; the mail may have been taken, its log under the Message-ID tells",
}

// classify tells the server's answer about this mail from all that has to do with the server. own
// tells that MAIL was about this mail too.
func classify(step string, err error, own bool) error {
	var answer *textproto.Error
	if !errors.As(err, &answer) || answer.Code < 400 || answer.Code > 599 {
		return &serverError{step: step, cause: scrubbed(err), amid: step == stepRcpt || step == stepData || step == stepEnd}
	}
	status := enhancedStatus(answer)
	if !aboutMail(step, answer.Code, own) {
		return &serverError{step: step, cause: fmt.Errorf("answered %s (%s)", reply(answer.Code, status), meaning(answer.Code, status))}
	}
	return &MailError{Code: answer.Code, EnhancedStatus: status, Temporary: answer.Code < 500, Step: step}
}

// aboutMail: 421 ends the connection, whatever was asked (RFC 5321, 3.8), but behind MAIL it may be this recipient
// that is throttled; 530, 534, 535 and 538 ask for authentication or TLS (RFC 4954, RFC 3207), while Postfix says 454
// of a recipient it does not relay to; and a 5xx to MAIL, which names MAIL_FROM alone, would be the same for
// every mail: a wrong setting or a used up quota must lose none.
func aboutMail(step string, code int, own bool) bool {
	switch code {
	case 530, 534, 535, 538:
		return false
	}
	switch step {
	case stepMail:
		return code != 421 && (code < 500 || own)
	case stepRcpt, stepData, stepEnd:
		return true
	}
	return false
}

var statusForm = regexp.MustCompile(`^[245]\.\d{1,3}\.\d{1,3}(?:\s|$)`)

// enhancedStatus is the one that the answer's text begins with (RFC 2034), if it is of the reply's class.
func enhancedStatus(answer *textproto.Error) string {
	status := strings.TrimSpace(statusForm.FindString(answer.Msg))
	if status == "" || int(status[0]-'0') != answer.Code/100 {
		return ""
	}
	return status
}

func reply(code int, status string) string { return strings.TrimSpace(fmt.Sprint(code, " ", status)) }

// scrubbed keeps of an error what tells an operator something and holds no byte of the server's text.
func scrubbed(err error) error {
	var answer *textproto.Error
	var timeout net.Error
	switch {
	case errors.As(err, &answer):
		return fmt.Errorf("answered %d, which is out of place", answer.Code)
	case errors.Is(err, errTooLong), errors.Is(err, errNoStartTLS), errors.Is(err, errNoAuth):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was closed")
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("no answer in time")
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(tls.RecordHeaderError)), errors.As(err, new(tls.AlertError)),
		errors.As(err, new(*net.OpError)), errors.Is(err, context.Canceled):
		return err
	}
	return errors.New("the server broke the protocol")
}

// meaning is RFC 3463's and its registry's word for a status, or else RFC 5321's for the code.
func meaning(code int, status string) string {
	if _, detail, ok := strings.Cut(status, "."); ok {
		if words, ok := statusWords[detail]; ok {
			return words
		}
		subject, _, _ := strings.Cut(detail, ".")
		if words, ok := subjectWords[subject]; ok {
			return words
		}
	}
	if words, ok := codeWords[code]; ok {
		return words
	}
	if code < 500 {
		return "refused for now"
	}
	return "refused"
}

// statusWords are by subject and detail (https://www.iana.org/assignments/smtp-enhanced-status-codes).
var statusWords = map[string]string{
	"1.0":  "address problem",
	"1.1":  "there is no such mailbox",
	"1.2":  "the recipient's domain does not exist or takes no mail",
	"1.3":  "the recipient's address is malformed",
	"1.4":  "the recipient's address is ambiguous",
	"1.6":  "the recipient has moved",
	"1.7":  "the sender's address is malformed",
	"1.8":  "the sender's domain does not exist or takes no mail",
	"1.10": "the recipient's domain takes no mail",
	"2.0":  "mailbox problem",
	"2.1":  "the mailbox is disabled",
	"2.2":  "the mailbox is full",
	"2.3":  "the mail is too long for the mailbox",
	"2.4":  "a mailing list's problem",
	"3.0":  "the mail system has a problem",
	"3.1":  "the mail system is full",
	"3.2":  "the mail system takes no mail now",
	"3.4":  "the mail is too big for the mail system",
	"4.1":  "the recipient's server does not answer",
	"4.2":  "the connection to the recipient's server broke",
	"4.3":  "the directory of recipients does not answer",
	"4.4":  "there is no route to the recipient's server",
	"4.5":  "the mail system is congested",
	"4.7":  "the mail could not be delivered in time",
	"5.3":  "too many recipients",
	"6.0":  "content problem",
	"6.7":  "the address has characters before the @ that need SMTPUTF8, which the mail server does not have",
	"6.9":  "the mail would need conversion to reach the recipient",
	"7.0":  "refused by policy",
	"7.1":  "sending to this recipient is not permitted",
	"7.7":  "the mail's integrity could not be verified",
	"7.8":  "the credentials are wrong",
	"7.9":  "this way of authentication is too weak",
	"7.20": "no DKIM signature passed",
	"7.23": "SPF did not pass",
	"7.25": "the sending server has no reverse DNS",
	"7.26": "neither SPF nor DKIM passed",
	"7.27": "the sender's domain takes no mail",
	"7.28": "too many mails",
}

var subjectWords = map[string]string{
	"1": "address problem", "2": "mailbox problem", "3": "the mail system has a problem", "4": "network or routing problem",
	"5": "protocol problem", "6": "content problem", "7": "refused by policy",
}

var codeWords = map[int]string{
	421: "the service is closing the connection",
	450: "the mailbox is busy or blocked",
	451: "error in processing",
	452: "the mail system is full",
	550: "the mailbox is unavailable",
	551: "the recipient is not here",
	552: "the mailbox is full or the mail too big",
	553: "the mailbox's name is not allowed",
	554: "refused",
	556: "the recipient's domain takes no mail",
}
