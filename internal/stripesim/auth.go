package stripesim

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// platformAccount is the account that the keys belong to.
const platformAccount = "acct_1SimulatedPlatform"

// Stripe's API versions: the one used when a call names none, and the first
// that knows after_expiration.
const (
	defaultVersion         = "2026-08-26.dahlia"
	afterExpirationVersion = "2026-10-28"
)

var versionForm = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}(\.[a-z]+)?$`)

// caller is who makes a call, and how.
type caller struct {
	live    bool
	account string // connected account of the Stripe-Account header, or ""
	version string
}

// scope keeps accounts and modes apart, for limits and ids.
func (c caller) scope() string {
	mode := "test "
	if c.live {
		mode = "live "
	}
	return mode + c.account
}

// authenticate finds out who calls (rule 1). permission is what a restricted
// key must hold; Stripe prefixes it by "rak_" in the message.
func (s *Sim) authenticate(r *http.Request, permission string) (caller, *apiError) {
	c := caller{account: r.Header.Get("Stripe-Account"), version: r.Header.Get("Stripe-Version")}
	_, key := presentedKey(r)
	c.live = strings.HasPrefix(key, "sk_live_") || strings.HasPrefix(key, "rk_live_")
	if key == "" {
		return c, unauthorized("You did not provide an API key. You need to provide your API key in the Authorization " +
			"header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').")
	}
	if !s.keys[key] {
		return c, unauthorized("Invalid API Key provided: " + redact(key))
	}
	if c.version == "" {
		c.version = defaultVersion
	} else if !versionForm.MatchString(c.version) {
		return c, bad("", "", "Invalid Stripe API version: %s", c.version)
	}
	if c.account != "" && (!strings.HasPrefix(c.account, "acct_") || isMissing(c.account)) {
		e := forbidden("The provided key '%s' does not have access to account '%s' (or that account does not exist). "+
			"Application access may have been revoked.", redact(key), c.account)
		e.Code = "account_invalid"
		return c, e
	}
	if permission != "" && strings.HasPrefix(key, "rk_") && strings.Contains(key, "noportal") {
		account := platformAccount
		if c.account != "" {
			account = c.account
		}
		return c, forbidden("The provided key '%s' does not have the required permissions for this endpoint on account "+
			"'%s'. Having the 'rak_%s' permission would allow this request to continue.", redact(key), account, permission)
	}
	return c, nil
}

// presentedKey returns how the key was sent ("bearer", "basic" or "none") and
// the key. Stripe takes the user name of Basic, with an empty password.
func presentedKey(r *http.Request) (scheme, key string) {
	if user, _, ok := r.BasicAuth(); ok {
		return "basic", user
	}
	scheme, key, _ = strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "none", ""
	}
	return "bearer", strings.TrimSpace(key)
}

// keyKind is what may be recorded of a key (rule 13): its well-known prefix.
func keyKind(key string) string {
	for _, kind := range []string{"sk_test", "sk_live", "rk_test", "rk_live", "pk_test", "pk_live"} {
		if strings.HasPrefix(key, kind+"_") {
			return kind
		}
	}
	return "other"
}

// redact shows a key the way Stripe's errors do: its kind and its last four
// characters, and less of a short one, where that would be most of the secret.
func redact(key string) string {
	head, tail := 8, 4
	if len(key) < 20 {
		tail = 0
	}
	if len(key) <= head {
		head = 0
	}
	return key[:head] + strings.Repeat("*", len(key)-head-tail) + key[len(key)-tail:]
}

func unauthorized(message string) *apiError {
	return &apiError{status: http.StatusUnauthorized, Type: "invalid_request_error", Message: message}
}

func forbidden(format string, args ...any) *apiError {
	return &apiError{status: http.StatusForbidden, Type: "invalid_request_error", Message: fmt.Sprintf(format, args...)}
}
