package portal

import "encoding/json"

// SessionParams is the body of Stripe's POST /v1/billing_portal/sessions, by Stripe's names. It
// is how a request carries it, how links.session stores it, and, through stripe-go's own JSON
// tags, what goes on the wire. Check holds it against Stripe's rules.
type SessionParams struct {
	Customer        string           `json:"customer,omitzero"`         // cus_…
	CustomerAccount string           `json:"customer_account,omitzero"` // acct_…
	Configuration   string           `json:"configuration,omitzero"`    // bpc_…
	Expand          []string         `json:"expand,omitzero"`
	Locale          string           `json:"locale,omitzero"` // one of Locales
	OnBehalfOf      string           `json:"on_behalf_of,omitzero"`
	ReturnURL       string           `json:"return_url,omitzero"`
	FlowData        *FlowData        `json:"flow_data,omitzero"`
	AfterExpiration *AfterExpiration `json:"after_expiration,omitzero"`
}

// CustomerID is the customer or, for accounts that are customers, the account.
func (p *SessionParams) CustomerID() string {
	if p.Customer != "" {
		return p.Customer
	}
	return p.CustomerAccount
}

// FlowData sends the customer to one task in the portal.
type FlowData struct {
	Type                      string                     `json:"type,omitzero"`
	AfterCompletion           *AfterCompletion           `json:"after_completion,omitzero"`
	SubscriptionCancel        *SubscriptionCancel        `json:"subscription_cancel,omitzero"`
	SubscriptionUpdate        *SubscriptionUpdate        `json:"subscription_update,omitzero"`
	SubscriptionUpdateConfirm *SubscriptionUpdateConfirm `json:"subscription_update_confirm,omitzero"`
}

// AfterCompletion says where the customer goes when the flow is done.
type AfterCompletion struct {
	Type               string              `json:"type,omitzero"`
	HostedConfirmation *HostedConfirmation `json:"hosted_confirmation,omitzero"`
	Redirect           *Redirect           `json:"redirect,omitzero"`
}

// HostedConfirmation is Stripe's own page, with a message of at most 500 characters.
type HostedConfirmation struct {
	CustomMessage string `json:"custom_message,omitzero"`
}

// Redirect is a page of the producer's.
type Redirect struct {
	ReturnURL string `json:"return_url,omitzero"`
}

// SubscriptionCancel is the flow of that type.
type SubscriptionCancel struct {
	Subscription string     `json:"subscription,omitzero"` // sub_…
	Retention    *Retention `json:"retention,omitzero"`
}

// Retention is an offer made before a cancellation.
type Retention struct {
	Type        string       `json:"type,omitzero"` // coupon_offer
	CouponOffer *CouponOffer `json:"coupon_offer,omitzero"`
}

// CouponOffer names the coupon offered.
type CouponOffer struct {
	Coupon string `json:"coupon,omitzero"`
}

// SubscriptionUpdate is the flow of that type.
type SubscriptionUpdate struct {
	Subscription string `json:"subscription,omitzero"`
}

// SubscriptionUpdateConfirm is the flow of that type: exactly one item.
type SubscriptionUpdateConfirm struct {
	Subscription string             `json:"subscription,omitzero"`
	Items        []SubscriptionItem `json:"items,omitzero"`
	Discounts    []Discount         `json:"discounts,omitzero"`
}

// SubscriptionItem is what the subscription would become.
type SubscriptionItem struct {
	ID       string `json:"id,omitzero"` // si_…
	Price    string `json:"price,omitzero"`
	Quantity *int64 `json:"quantity,omitzero"` // nil leaves it as it is; 0 is a quantity
}

// Discount is one of the two.
type Discount struct {
	Coupon        string `json:"coupon,omitzero"`
	PromotionCode string `json:"promotion_code,omitzero"` // promo_…
}

// AfterExpiration says what a session that died offers; it needs the API version
// AfterExpirationVersion or newer.
type AfterExpiration struct {
	Type          string         `json:"type,omitzero"` // customer_login
	CustomerLogin *CustomerLogin `json:"customer_login,omitzero"`
}

// CustomerLogin lets the customer log in by email to get a replacement session.
type CustomerLogin struct {
	ExpiresAt *int64 `json:"expires_at,omitzero"` // Unix seconds; nil = at any time
}

// AfterExpirationVersion is Stripe's first API version with after_expiration.
const AfterExpirationVersion = "2026-10-28.endive"

// Locales are the values of Stripe's locale parameter (API 2026-10-28.endive).
var Locales = []string{"auto", "bg", "cs", "da", "de", "el", "en", "en-AU", "en-CA", "en-GB", "en-IE", "en-IN",
	"en-NZ", "en-SG", "es", "es-419", "et", "fi", "fil", "fr", "fr-CA", "hr", "hu", "id", "it", "ja", "ko", "lt",
	"lv", "ms", "mt", "nb", "nl", "pl", "pt", "pt-BR", "ro", "ru", "sk", "sl", "sv", "th", "tr", "vi", "zh",
	"zh-HK", "zh-TW"}

// decodeSession reads links.session.
func decodeSession(b []byte) (p SessionParams, err error) {
	err = json.Unmarshal(b, &p)
	return p, err
}
