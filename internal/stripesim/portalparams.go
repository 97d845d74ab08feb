package stripesim

import "strings"

// locales are the portal's, by Stripe's documentation.
var locales = strings.Fields(`auto bg cs da de el en en-AU en-CA en-GB en-IE en-IN en-NZ en-SG es es-419 et fi fil fr
	fr-CA hr hu id it ja ko lt lv ms mt nb nl pl pt pt-BR ro ru sk sl sv th tr vi zh zh-HK zh-TW`)

// sessionSpec is the body of POST /v1/billing_portal/sessions. Price and coupon
// have no prefix to check: old plans and coupons carry ids their owners chose.
var sessionSpec = spec{kind: kindHash, constrain: oneCustomer, fields: []spec{
	{name: "configuration", kind: kindID, prefix: "bpc_", noun: "configuration"},
	{name: "customer", kind: kindID, prefix: "cus_", noun: "customer", customer: true},
	{name: "customer_account", kind: kindID, prefix: "acct_", noun: "account", customer: true},
	{name: "expand", kind: kindList, item: &spec{kind: kindText}},
	flowSpec,
	{name: "locale", kind: kindEnum, allowed: locales, blankOK: true},
	{name: "on_behalf_of", kind: kindID, prefix: "acct_", noun: "account"},
	{name: "return_url", kind: kindLink},
	{name: "after_expiration", kind: kindHash, since: afterExpirationVersion, fields: []spec{
		{name: "type", kind: kindEnum, required: true, allowed: []string{"customer_login"}},
		{name: "customer_login", kind: kindHash, only: "customer_login", fields: []spec{
			{name: "expires_at", kind: kindInteger},
		}},
	}},
}}

var subscriptionSpec = spec{name: "subscription", kind: kindID, required: true, prefix: "sub_", noun: "subscription"}

var flowSpec = spec{name: "flow_data", kind: kindHash, fields: []spec{
	{name: "type", kind: kindEnum, required: true, allowed: []string{"payment_method_update", "customer_update",
		"subscription_cancel", "subscription_update", "subscription_update_confirm"}},
	afterCompletionSpec,
	{name: "subscription_cancel", kind: kindHash, required: true, only: "subscription_cancel", fields: []spec{
		subscriptionSpec,
		{name: "retention", kind: kindHash, fields: []spec{
			{name: "type", kind: kindEnum, required: true, allowed: []string{"coupon_offer"}},
			{name: "coupon_offer", kind: kindHash, required: true, only: "coupon_offer", fields: []spec{
				{name: "coupon", kind: kindText, required: true},
			}},
		}},
	}},
	{name: "subscription_update", kind: kindHash, required: true, only: "subscription_update",
		fields: []spec{subscriptionSpec}},
	{name: "subscription_update_confirm", kind: kindHash, required: true, only: "subscription_update_confirm", fields: []spec{
		subscriptionSpec,
		// "Currently, only up to one may be specified", and none is an error.
		{name: "items", kind: kindList, required: true, max: 1, item: &spec{kind: kindHash, fields: []spec{
			{name: "id", kind: kindID, required: true, prefix: "si_", noun: "subscription_item"},
			{name: "price", kind: kindText},
			{name: "quantity", kind: kindInteger},
		}}},
		{name: "discounts", kind: kindList, item: &spec{kind: kindHash, constrain: oneDiscount, fields: []spec{
			{name: "coupon", kind: kindText},
			{name: "promotion_code", kind: kindID, prefix: "promo_", noun: "promotion code"},
		}}},
	}},
}}

var afterCompletionSpec = spec{name: "after_completion", kind: kindHash, fields: []spec{
	{name: "type", kind: kindEnum, required: true, allowed: []string{"hosted_confirmation", "portal_homepage", "redirect"}},
	{name: "hosted_confirmation", kind: kindHash, only: "hosted_confirmation", fields: []spec{
		{name: "custom_message", kind: kindText, max: 500},
	}},
	{name: "redirect", kind: kindHash, required: true, only: "redirect", fields: []spec{
		{name: "return_url", kind: kindLink, required: true},
	}},
}}

// oneCustomer is rule 4.
func oneCustomer(v *value) *apiError {
	return exactlyOne(v, "customer", "customer_account")
}

func oneDiscount(v *value) *apiError {
	return exactlyOne(v, "coupon", "promotion_code")
}

func exactlyOne(v *value, a, b string) *apiError {
	path := a
	if v.path != "" {
		path = v.path + "[" + a + "]"
	}
	switch hasA, hasB := v.field(a) != nil, v.field(b) != nil; {
	case hasA && hasB:
		return bad(path, "", "You may only specify one of these parameters: %s, %s.", a, b)
	case !hasA && !hasB:
		return errMissing(path)
	}
	return nil
}

// parseSession reads and checks the parameters of a create call.
func parseSession(form map[string][]string, version string) (*value, *apiError) {
	v, err := tree(form)
	if err != nil {
		return nil, err
	}
	if names := sessionSpec.unknown(v, version); len(names) > 0 {
		return nil, errUnknown(names)
	}
	if err := sessionSpec.check(v, version); err != nil {
		return nil, err
	}
	expand, _ := v.fieldItems("expand")
	for _, e := range expand {
		if e.text != "configuration" {
			return nil, bad(e.path, "", "This property cannot be expanded (%s).", e.text)
		}
	}
	return v, nil
}
