package stripesim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"
)

// apiError is an error in Stripe's form. What Stripe leaves out (code and param
// mostly), it leaves out.
type apiError struct {
	Code    string `json:"code,omitempty"`
	DocURL  string `json:"doc_url,omitempty"`
	Message string `json:"message"`
	Param   string `json:"param,omitempty"`
	LogURL  string `json:"request_log_url,omitempty"`
	Type    string `json:"type"`

	status int
	reason string // Stripe-Rate-Limited-Reason
}

// body renders the error for one request.
func (e apiError) body(requestID string, live bool) []byte {
	if e.Code != "" {
		e.DocURL = "https://stripe.com/docs/error-codes/" + strings.ReplaceAll(e.Code, "_", "-")
	}
	mode := "test/"
	if live {
		mode = ""
	}
	e.LogURL = "https://dashboard.stripe.com/" + mode + "logs/" + requestID
	return mustJSON(map[string]apiError{"error": e})
}

func mustJSON(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // only own types of strings, numbers and maps come here
	}
	return append(b, '\n')
}

// bad is a 400 invalid_request_error about one parameter.
func bad(param, code, format string, args ...any) *apiError {
	return &apiError{
		status: http.StatusBadRequest, Type: "invalid_request_error",
		Code: code, Param: param, Message: fmt.Sprintf(format, args...),
	}
}

func errUnknown(params []string) *apiError {
	plural := ""
	if len(params) > 1 {
		plural = "s"
	}
	return bad(params[0], "parameter_unknown", "Received unknown parameter%s: %s", plural, strings.Join(params, ", "))
}

func errMissing(param string) *apiError {
	return bad(param, "parameter_missing", "Missing required param: %s.", param)
}

func errEmpty(param string) *apiError {
	return bad(param, "parameter_invalid_empty",
		"You passed an empty string for '%[1]s'. We assume empty values are an attempt to unset a field; "+
			"however '%[1]s' cannot be unset. You should remove '%[1]s' from your request or supply a non-empty value.", param)
}

func errTooLong(param, text string, limit int) *apiError {
	if utf8.RuneCountInString(text) > 20 {
		r := []rune(text)
		text = string(r[:10]) + "..." + string(r[len(r)-7:])
	}
	return bad(param, "", "Invalid string: %s; must be at most %d characters", text, limit)
}

func errEnum(param string, allowed []string) *apiError {
	list := allowed[0]
	if n := len(allowed); n > 1 {
		list = strings.Join(allowed[:n-1], ", ") + ", or " + allowed[n-1]
	}
	return bad(param, "", "Invalid %s: must be one of %s", param, list)
}

func errNoSuch(param, noun, id string) *apiError {
	return bad(param, "resource_missing", "No such %s: '%s'", noun, id)
}

// errOtherMode is how Stripe tells that an id belongs to the other mode.
func errOtherMode(param, noun, id string, live bool) *apiError {
	e := errNoSuch(param, noun, id)
	here, there := "test", "live"
	if live {
		here, there = there, here
	}
	e.Message += fmt.Sprintf("; a similar object exists in %s mode, but a %s mode key was used to make this request.", there, here)
	return e
}

func errNoConfiguration(live bool) *apiError {
	mode, path := "test mode", "test/"
	if live {
		mode, path = "live mode", ""
	}
	return bad("", "", "No configuration provided and your %[1]s default configuration has not been created. "+
		"Provide a configuration or create your default by saving your customer portal settings in %[1]s at "+
		"https://dashboard.stripe.com/%[2]ssettings/billing/portal.", mode, path)
}

func errFeatureOff(flowType string) *apiError {
	thing, feature := "This customer cannot be updated", strings.ReplaceAll(flowType, "_", " ")
	switch flowType {
	case "", "subscription_update", "subscription_update_confirm":
		thing, feature = "This subscription cannot be updated", "subscription update"
	case "subscription_cancel":
		thing, feature = "This subscription cannot be canceled", "subscription cancellation"
	}
	return bad("", "", "%s because the %s feature in the portal configuration is disabled.", thing, feature)
}

func errRateLimited(reason string) *apiError {
	return &apiError{
		status: http.StatusTooManyRequests, reason: reason, Type: "invalid_request_error", Code: "rate_limit",
		Message: "Request rate limit exceeded. Learn more about rate limits https://stripe.com/docs/rate-limits.",
	}
}

func errLockTimeout() *apiError {
	return &apiError{
		status: http.StatusTooManyRequests, Type: "invalid_request_error", Code: "lock_timeout",
		Message: "This object cannot be accessed right now because another API request or Stripe process is currently " +
			"accessing it. If you see this error intermittently, retry the request.",
	}
}

func errKeyInUse(key string) *apiError {
	return &apiError{
		status: http.StatusConflict, Type: "idempotency_error", Code: "idempotency_key_in_use",
		Message: fmt.Sprintf("There is currently another in-progress request using this Idempotent Key "+
			"(that probably means you submitted twice, and the other request is still going through): %s. "+
			"Please try again later.", key),
	}
}

func errKeyReused(key string) *apiError {
	return &apiError{
		status: http.StatusBadRequest, Type: "idempotency_error",
		Message: fmt.Sprintf("Keys for idempotent requests can only be used with the same parameters they were "+
			"first used with. Try using a key other than '%s' if you meant to execute a different request.", key),
	}
}

func errAPI(status int) *apiError {
	msg := "An unknown error occurred"
	if status == http.StatusServiceUnavailable {
		msg = "The service is temporarily unavailable. Please try again."
	}
	return &apiError{status: status, Type: "api_error", Message: msg}
}
