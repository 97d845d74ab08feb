package portal

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/stripe/stripe-go/v86"
)

// SessionCode says why a session could not be made. It stands in the audit and in session.failed.
type SessionCode string

// The codes of session.failed. Stripe's errors mostly carry no code of their own (facts looked up
// in its documentation and answers), so some are told by their message.
const (
	CodeUnavailable    SessionCode = "stripe_unavailable" // 5xx, refused, cut: may pass
	CodeTimeout        SessionCode = "stripe_timeout"     // no answer in 10 s: may pass
	CodeRateLimited    SessionCode = "rate_limited"       // 429: may pass
	CodeConflict       SessionCode = "conflict"           // 409, the same key is in flight: no outcome, and so in no row
	CodeCustomerGone   SessionCode = "customer_gone"      // deleted, unknown, or of the other mode
	CodeNotConfigured  SessionCode = "not_configured"     // no default portal configuration yet
	CodeFeatureOff     SessionCode = "feature_off"        // the flow's feature is off in the configuration
	CodeBadKey         SessionCode = "bad_key"            // 401, or 403: the key lacks a permission
	CodeInvalidRequest SessionCode = "invalid_request"    // any other refusal of the parameters
	CodeBadSessionURL  SessionCode = "bad_session_url"    // Stripe answered with a URL that nobody is sent to
	CodeInterrupted    SessionCode = "interrupted"        // the worker stopped or died between click and outcome
	CodeAbandoned      SessionCode = "abandoned"          // the person left the line before their turn
)

// SessionError is returned when a portal session could not be made.
type SessionError struct {
	Code      SessionCode
	RequestID string // Stripe's, for its dashboard; empty where no answer came
	Status    int    // HTTP status; 0 where no answer came
	err       error
}

// Error gives code, status and Stripe's request id. Stripe's own message stays out: it can hold
// part of a key, and it is a look-up of the request id away.
func (e *SessionError) Error() string {
	msg := "create portal session: " + string(e.Code)
	if e.Status != 0 {
		msg += ", HTTP " + strconv.Itoa(e.Status)
	}
	if e.RequestID != "" {
		msg += ", " + e.RequestID
	}
	return msg
}

// Unwrap gives the cause.
func (e *SessionError) Unwrap() error { return e.err }

// Retryable tells whether a later click may succeed without anybody mending anything.
func (e *SessionError) Retryable() bool {
	switch e.Code {
	case CodeUnavailable, CodeTimeout, CodeRateLimited, CodeConflict, CodeInterrupted, CodeAbandoned:
		return true
	}
	return false
}

// Remedy tells the operator what to do about a refusal.
func Remedy(code SessionCode) string {
	switch code {
	case CodeCustomerGone:
		return "the customer was deleted or is of the other mode"
	case CodeNotConfigured:
		return "save a default configuration in Stripe's dashboard, Settings > Billing > Customer portal"
	case CodeFeatureOff:
		return "the flow's feature is off in the portal configuration; switch it on or change the request"
	case CodeBadKey:
		return "Stripe refuses STRIPE_API_KEY: at 401 it is wrong or was revoked, at 403 it lacks write permission for the customer portal"
	case CodeBadSessionURL:
		return "Stripe answered with a URL that is not https; is STRIPE_API_BASE what it should be?"
	}
	if (&SessionError{Code: code}).Retryable() {
		return "Stripe did not answer as it should; it may later"
	}
	return "look the request id up in Stripe's dashboard, Developers > Logs"
}

// worthAnotherTry decides on a retry under the same idempotency key. A 5xx that Stripe replayed
// is its saved answer to that key: asking again repeats it for 24 h.
func worthAnotherTry(err error) bool {
	if err == nil || errors.As(err, new(noTry)) {
		return false
	}
	var se *stripe.Error
	if errors.As(err, &se) && se.LastResponse != nil && se.LastResponse.Header.Get("Idempotent-Replayed") == "true" {
		return false
	}
	return classify(err).Retryable()
}

// classify sorts an error of stripe-go.
func classify(err error) *SessionError {
	var done *SessionError
	if errors.As(err, &done) {
		return done
	}
	var se *stripe.Error
	if !errors.As(err, &se) {
		// No answer that could be read: refused, cut, timed out, or not Stripe's JSON.
		if errors.Is(err, context.Canceled) { // nobody cancels a click but a process that stops
			return &SessionError{Code: CodeInterrupted, err: err}
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return &SessionError{Code: CodeTimeout, err: err}
		}
		return &SessionError{Code: CodeUnavailable, err: err}
	}
	out := &SessionError{RequestID: se.RequestID, Status: se.HTTPStatusCode, err: err}
	switch status := se.HTTPStatusCode; {
	case status == http.StatusTooManyRequests:
		out.Code = CodeRateLimited
	case status == http.StatusConflict:
		out.Code = CodeConflict
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		out.Code = CodeBadKey
	case status >= 500 || status == 0:
		out.Code = CodeUnavailable
	default:
		out.Code = classifyRefusal(se)
	}
	return out
}

// isRateLimit tells a 429 that asks everybody to slow down from one about a single object: Stripe
// gives that the code lock_timeout, or the reason resource-specific.
func isRateLimit(err error) bool {
	var se *stripe.Error
	if !errors.As(err, &se) || se.HTTPStatusCode != http.StatusTooManyRequests || se.Code == stripe.ErrorCodeLockTimeout {
		return false
	}
	return se.LastResponse == nil || se.LastResponse.Header.Get("Stripe-Rate-Limited-Reason") != "resource-specific"
}

// classifyRefusal tells Stripe's 400s apart.
func classifyRefusal(se *stripe.Error) SessionCode {
	msg := strings.ToLower(se.Msg)
	switch {
	case se.Code == stripe.ErrorCodeLockTimeout:
		return CodeRateLimited
	case se.Code == stripe.ErrorCodeResourceMissing && (se.Param == "customer" || se.Param == "customer_account"):
		return CodeCustomerGone
	case strings.Contains(msg, "no configuration provided"), strings.Contains(msg, "default configuration has not been created"):
		return CodeNotConfigured
	case strings.Contains(msg, "feature in the portal configuration is disabled"):
		return CodeFeatureOff
	}
	return CodeInvalidRequest
}
