package portal

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// FieldError says which field of a request breaks which rule. It never holds the field's value:
// it goes to logs, the audit and the dead letter, and a value can be anything, a key included.
type FieldError struct {
	Path string // JSONPath, $.session.customer
	Rule string // what the field must be
	Got  string // kind or length of what it was; empty where it is missing
}

func (e *FieldError) Error() string {
	if e.Got == "" {
		return e.Path + ": " + e.Rule
	}
	return e.Path + ": " + e.Rule + " (got " + e.Got + ")"
}

// SessionRules is what a session's check depends on beside Stripe's own rules.
type SessionRules struct {
	ReturnURLHosts   []string // lower case; with a port where only that port may be named
	AnyReturnURLHost bool     // for who checks without knowing them
	APIVersion       string   // STRIPE_API_VERSION; empty = the SDK's
}

// Lengths that Stripe takes for a URL and for an id.
const (
	maxURL = 5000
	maxID  = 255
)

// Check holds the parameters against Stripe's documented rules, as far as that is possible
// without asking Stripe; paths begin with $.session. It returns the first breach as a *FieldError.
func (p *SessionParams) Check(rules SessionRules) error {
	c := checker{rules: rules}
	const at = "$.session"
	switch {
	case p.Customer != "" && p.CustomerAccount != "":
		c.fail(at+".customer_account", "must not stand beside customer: name one of them", "both")
	case p.Customer == "" && p.CustomerAccount == "":
		c.fail(at+".customer", "is required (or customer_account)", "")
	}
	c.id(at+".customer", p.Customer, "cus_")
	c.id(at+".customer_account", p.CustomerAccount, "acct_")
	c.id(at+".configuration", p.Configuration, "bpc_")
	c.id(at+".on_behalf_of", p.OnBehalfOf, "acct_")
	if p.Locale != "" && !slices.Contains(Locales, p.Locale) {
		c.fail(at+".locale", "must be one of Stripe's locales, such as auto, en, de or pt-BR", text(p.Locale))
	}
	c.url(at+".return_url", p.ReturnURL)
	if len(p.Expand) > 20 {
		c.fail(at+".expand", "may have at most 20 entries", fmt.Sprintf("%d", len(p.Expand)))
	}
	for i, e := range p.Expand {
		c.length(fmt.Sprintf("%s.expand[%d]", at, i), e, 200)
	}
	c.flow(at+".flow_data", p.FlowData)
	c.afterExpiration(at+".after_expiration", p.AfterExpiration)
	if c.err == nil {
		return nil
	}
	return c.err
}

// checker keeps the first breach.
type checker struct {
	rules SessionRules
	err   *FieldError
}

func (c *checker) fail(path, rule, got string) {
	if c.err == nil {
		c.err = &FieldError{Path: path, Rule: rule, Got: got}
	}
}

func (c *checker) flow(at string, f *FlowData) {
	if f == nil {
		return
	}
	c.enum(at+".type", f.Type, "payment_method_update", "customer_update", "subscription_cancel",
		"subscription_update", "subscription_update_confirm")
	c.goesWith(at, "subscription_cancel", f.SubscriptionCancel != nil, f.Type)
	c.goesWith(at, "subscription_update", f.SubscriptionUpdate != nil, f.Type)
	c.goesWith(at, "subscription_update_confirm", f.SubscriptionUpdateConfirm != nil, f.Type)
	switch f.Type {
	case "subscription_cancel":
		if c.required(at+".subscription_cancel", f.SubscriptionCancel != nil) {
			c.subscription(at+".subscription_cancel.subscription", f.SubscriptionCancel.Subscription)
			c.retention(at+".subscription_cancel.retention", f.SubscriptionCancel.Retention)
		}
	case "subscription_update":
		if c.required(at+".subscription_update", f.SubscriptionUpdate != nil) {
			c.subscription(at+".subscription_update.subscription", f.SubscriptionUpdate.Subscription)
		}
	case "subscription_update_confirm":
		if c.required(at+".subscription_update_confirm", f.SubscriptionUpdateConfirm != nil) {
			c.confirm(at+".subscription_update_confirm", f.SubscriptionUpdateConfirm)
		}
	}
	c.afterCompletion(at+".after_completion", f.AfterCompletion)
}

func (c *checker) retention(at string, r *Retention) {
	if r == nil {
		return
	}
	c.enum(at+".type", r.Type, "coupon_offer")
	if c.required(at+".coupon_offer", r.CouponOffer != nil) {
		c.required(at+".coupon_offer.coupon", r.CouponOffer.Coupon != "")
		c.length(at+".coupon_offer.coupon", r.CouponOffer.Coupon, maxID)
	}
}

func (c *checker) confirm(at string, u *SubscriptionUpdateConfirm) {
	c.subscription(at+".subscription", u.Subscription)
	if c.required(at+".items", len(u.Items) > 0) && len(u.Items) > 1 {
		c.fail(at+".items", "must have exactly one item", fmt.Sprintf("%d", len(u.Items)))
	}
	for i, item := range u.Items {
		at := fmt.Sprintf("%s.items[%d]", at, i)
		c.required(at+".id", item.ID != "")
		c.id(at+".id", item.ID, "si_")
		c.length(at+".price", item.Price, maxID) // a legacy plan's id is what its owner chose
		if item.Quantity != nil && *item.Quantity < 0 {
			c.fail(at+".quantity", "must not be negative", "a negative number")
		}
	}
	if len(u.Discounts) > 20 {
		c.fail(at+".discounts", "may have at most 20 entries", fmt.Sprintf("%d", len(u.Discounts)))
	}
	for i, d := range u.Discounts {
		at := fmt.Sprintf("%s.discounts[%d]", at, i)
		if (d.Coupon == "") == (d.PromotionCode == "") {
			c.fail(at, "must have one of coupon and promotion_code", "")
		}
		c.length(at+".coupon", d.Coupon, maxID)
		c.id(at+".promotion_code", d.PromotionCode, "promo_")
	}
}

func (c *checker) afterCompletion(at string, a *AfterCompletion) {
	if a == nil {
		return
	}
	c.enum(at+".type", a.Type, "hosted_confirmation", "portal_homepage", "redirect")
	c.goesWith(at, "hosted_confirmation", a.HostedConfirmation != nil, a.Type)
	c.goesWith(at, "redirect", a.Redirect != nil, a.Type)
	if a.HostedConfirmation != nil {
		c.length(at+".hosted_confirmation.custom_message", a.HostedConfirmation.CustomMessage, 500)
	}
	if a.Type == "redirect" && c.required(at+".redirect", a.Redirect != nil) {
		c.required(at+".redirect.return_url", a.Redirect.ReturnURL != "")
		c.url(at+".redirect.return_url", a.Redirect.ReturnURL)
	}
}

func (c *checker) afterExpiration(at string, a *AfterExpiration) {
	if a == nil {
		return
	}
	c.enum(at+".type", a.Type, "customer_login")
	if a.CustomerLogin != nil && a.CustomerLogin.ExpiresAt != nil && *a.CustomerLogin.ExpiresAt <= 0 {
		c.fail(at+".customer_login.expires_at", "must be a time in Unix seconds", "a number of 0 or less")
	}
	// Versions begin with their date, so they order as strings.
	if v := c.rules.APIVersion; v != "" && v < AfterExpirationVersion {
		c.fail(at, "needs STRIPE_API_VERSION "+AfterExpirationVersion+" or newer", "")
	}
}

func (c *checker) subscription(at, id string) {
	c.required(at, id != "")
	c.id(at, id, "sub_")
}

func (c *checker) required(path string, there bool) bool {
	if !there {
		c.fail(path, "is required", "")
	}
	return there
}

func (c *checker) enum(path, value string, allowed ...string) {
	if c.required(path, value != "") && !slices.Contains(allowed, value) {
		c.fail(path, "must be one of "+strings.Join(allowed, ", "), text(value))
	}
}

// goesWith refuses a sub-object of another type than the one chosen.
func (c *checker) goesWith(at, name string, there bool, chosen string) {
	if there && name != chosen {
		c.fail(at+"."+name, "goes with type "+name+" only", "another type")
	}
}

// id checks one of Stripe's ids: its prefix, at most maxID characters of [A-Za-z0-9_-].
func (c *checker) id(path, id, prefix string) {
	if id == "" {
		return
	}
	if !strings.HasPrefix(id, prefix) || len(id) == len(prefix) {
		c.fail(path, "must begin with "+prefix, text(id))
	}
	c.length(path, id, maxID)
	if leadingToken(id) != id {
		c.fail(path, "may have letters, digits, _ and - only", text(id))
	}
}

func (c *checker) length(path, s string, most int) {
	if utf8.RuneCountInString(s) > most {
		c.fail(path, fmt.Sprintf("may have at most %d characters", most), text(s))
	}
}

func (c *checker) url(path, raw string) {
	if raw == "" {
		return
	}
	if len(raw) > maxURL {
		c.fail(path, fmt.Sprintf("may have at most %d characters", maxURL), text(raw))
		return
	}
	u, err := ParseWebURL(raw)
	if err != nil {
		c.fail(path, err.Error(), text(raw))
		return
	}
	host := strings.ToLower(u.Host)
	if !c.rules.AnyReturnURLHost && !slices.Contains(c.rules.ReturnURLHosts, host) && !slices.Contains(c.rules.ReturnURLHosts, strings.ToLower(u.Hostname())) {
		c.fail(path, "must be on a host of RETURN_URL_HOSTS", "another host")
	}
}

// ParseWebURL parses an absolute https URL, or http for a loopback host, without user
// information and without a byte that browsers read otherwise than Go does (a backslash, white
// space, controls). Its errors are rules, without the URL.
func ParseWebURL(raw string) (*url.URL, error) {
	for i := range len(raw) {
		if raw[i] <= ' ' || raw[i] == '\\' || raw[i] == 0x7f {
			return nil, fmt.Errorf("must be a URL without spaces, controls and backslashes")
		}
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Opaque != "" || u.Hostname() == "":
		return nil, fmt.Errorf("must be an absolute URL, https://…")
	case u.User != nil:
		return nil, fmt.Errorf("must be a URL without user information")
	case u.Scheme == "https", u.Scheme == "http" && IsLoopback(u.Hostname()):
		return u, nil
	}
	return nil, fmt.Errorf("must be an https URL (http for loopback only)")
}

// IsLoopback tells whether a URL's host name is this machine's.
func IsLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.IsLoopback()
}

// text describes a string without giving it away.
func text(s string) string {
	return fmt.Sprintf("a string of %d characters", utf8.RuneCountInString(s))
}
