package stripesim_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stripe/stripe-go/v86"

	"latchkey/internal/stripesim"
)

func client(t *testing.T, sim http.Handler) *stripe.Client {
	t.Helper()
	url, hc := serve(t, sim)
	return stripe.NewClient(stripesim.TestKey, stripe.WithBackends(stripe.NewBackendsWithConfig(&stripe.BackendConfig{
		URL: stripe.String(url), HTTPClient: hc, MaxNetworkRetries: stripe.Int64(0), EnableTelemetry: stripe.Bool(false),
		LeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull},
	})))
}

type flowData = stripe.BillingPortalSessionCreateFlowDataParams

// Each flow that Stripe's own client can send comes back as sent.
func TestStripeGoFlows(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	sc := client(t, sim)
	s := stripe.String[string]
	for name, flow := range map[string]*flowData{
		"none":                  nil,
		"payment_method_update": {Type: s("payment_method_update")},
		"customer_update": {Type: s("customer_update"), AfterCompletion: &stripe.BillingPortalSessionCreateFlowDataAfterCompletionParams{
			Type: s("hosted_confirmation"), HostedConfirmation: &stripe.BillingPortalSessionCreateFlowDataAfterCompletionHostedConfirmationParams{CustomMessage: s("thanks")}}},
		"subscription_cancel": {Type: s("subscription_cancel"), SubscriptionCancel: &stripe.BillingPortalSessionCreateFlowDataSubscriptionCancelParams{
			Subscription: s("sub_1"), Retention: &stripe.BillingPortalSessionCreateFlowDataSubscriptionCancelRetentionParams{
				Type: s("coupon_offer"), CouponOffer: &stripe.BillingPortalSessionCreateFlowDataSubscriptionCancelRetentionCouponOfferParams{Coupon: s("STAY")}}}},
		"subscription_update": {Type: s("subscription_update"),
			SubscriptionUpdate: &stripe.BillingPortalSessionCreateFlowDataSubscriptionUpdateParams{Subscription: s("sub_1")},
			AfterCompletion: &stripe.BillingPortalSessionCreateFlowDataAfterCompletionParams{Type: s("redirect"),
				Redirect: &stripe.BillingPortalSessionCreateFlowDataAfterCompletionRedirectParams{ReturnURL: s("https://a.example/t")}}},
		"subscription_update_confirm": {Type: s("subscription_update_confirm"),
			SubscriptionUpdateConfirm: &stripe.BillingPortalSessionCreateFlowDataSubscriptionUpdateConfirmParams{
				Subscription: s("sub_1"),
				Items:        []*stripe.BillingPortalSessionCreateFlowDataSubscriptionUpdateConfirmItemParams{{ID: s("si_1"), Price: s("price_1"), Quantity: stripe.Int64(3)}},
				Discounts:    []*stripe.BillingPortalSessionCreateFlowDataSubscriptionUpdateConfirmDiscountParams{{PromotionCode: s("promo_1")}}}},
	} {
		got, err := sc.V1BillingPortalSessions.Create(t.Context(), &stripe.BillingPortalSessionCreateParams{
			Customer: s("cus_1"), Locale: s("de"), ReturnURL: s("https://a.example/"), OnBehalfOf: s("acct_2"), FlowData: flow,
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.Object != "billing_portal.session" || got.ID == "" || got.URL == "" || got.Customer != "cus_1" || got.Locale != "de" ||
			got.OnBehalfOf != "acct_2" || got.ReturnURL != "https://a.example/" || got.Configuration == nil || got.Configuration.ID == "" {
			t.Errorf("%s: %+v", name, got)
		}
		checkFlow(t, name, got.Flow)
	}
}

func checkFlow(t *testing.T, name string, f *stripe.BillingPortalSessionFlow) {
	t.Helper()
	if name == "none" {
		if f != nil {
			t.Errorf("flow %+v, want none", f)
		}
		return
	}
	ok := string(f.Type) == name
	switch name {
	case "payment_method_update":
		ok = ok && f.AfterCompletion.Type == "portal_homepage" && f.SubscriptionCancel == nil
	case "customer_update":
		ok = ok && f.AfterCompletion.HostedConfirmation.CustomMessage == "thanks"
	case "subscription_cancel":
		ok = ok && f.SubscriptionCancel.Subscription == "sub_1" && f.SubscriptionCancel.Retention.CouponOffer.Coupon == "STAY"
	case "subscription_update":
		ok = ok && f.SubscriptionUpdate.Subscription == "sub_1" && f.AfterCompletion.Redirect.ReturnURL == "https://a.example/t"
	case "subscription_update_confirm":
		c := f.SubscriptionUpdateConfirm
		ok = ok && c.Items[0].ID == "si_1" && c.Items[0].Quantity == 3 && c.Discounts[0].PromotionCode == "promo_1"
	}
	if !ok {
		t.Errorf("%s: %+v", name, f)
	}
}

func TestStripeGoErrorsAndHeaders(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	sc := client(t, sim)
	params := func(customer string) *stripe.BillingPortalSessionCreateParams {
		p := &stripe.BillingPortalSessionCreateParams{Customer: stripe.String(customer)}
		p.SetIdempotencyKey("key-" + customer)
		p.SetStripeAccount("acct_1")
		return p
	}
	_, err := sc.V1BillingPortalSessions.Create(t.Context(), params("cus_missing"))
	var se *stripe.Error
	if !errors.As(err, &se) || se.Code != stripe.ErrorCodeResourceMissing || se.Param != "customer" || se.HTTPStatusCode != 400 || se.RequestID == "" {
		t.Fatalf("error %v", err)
	}
	p := params("cus_1")
	p.AddExtra("after_expiration[type]", "customer_login")
	p.Headers = http.Header{"Stripe-Version": {"2026-10-28.endive"}}
	first, err := sc.V1BillingPortalSessions.Create(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	again, err := sc.V1BillingPortalSessions.Create(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	h := again.LastResponse.Header
	if again.ID != first.ID || h.Get("Idempotent-Replayed") != "true" || h.Get("Original-Request") != first.LastResponse.RequestID {
		t.Fatalf("replay %+v", h)
	}
	got := sim.Sessions()[0]
	if got.Account != "acct_1" || got.IdempotencyKey != "key-cus_1" || got.RequestID != first.LastResponse.RequestID || h.Get("Stripe-Version") != "2026-10-28.endive" {
		t.Fatalf("session %+v", got)
	}
}

func TestStripeGoReads(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	sc := client(t, sim)
	n := 0
	list := sc.V1BillingPortalConfigurations.List(t.Context(), &stripe.BillingPortalConfigurationListParams{IsDefault: stripe.Bool(true)})
	for c, err := range list.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; c.Livemode || !c.IsDefault || !c.Features.SubscriptionUpdate.Enabled || c.LoginPage.URL == "" {
			t.Fatalf("configuration %+v", c)
		}
	}
	if n != 1 {
		t.Fatalf("%d configurations", n)
	}
	if b, err := sc.V1Balance.Retrieve(t.Context(), nil); err != nil || b.Livemode {
		t.Fatalf("balance %+v %v", b, err)
	}
}
