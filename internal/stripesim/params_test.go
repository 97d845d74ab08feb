package stripesim_test

import (
	"net/http"
	"strings"
	"testing"

	"latchkey/internal/stripesim"
)

const (
	invalid = "invalid_request_error"
	update  = "flow_data[type]=subscription_update"
	cancel  = "flow_data[type]=subscription_cancel"
	confirm = "flow_data[type]=subscription_update_confirm"
	payment = "flow_data[type]=payment_method_update"

	cancelSub  = "flow_data[subscription_cancel][subscription]=sub_1"
	confirmSub = "flow_data[subscription_update_confirm][subscription]=sub_1"
	confirmID  = "flow_data[subscription_update_confirm][items][0][id]=si_1"

	after = "flow_data[after_completion]"
)

// Rules 2 to 4: what Stripe would refuse is refused, with the parameter named.
func TestRules2to4RefusedParameters(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 501)
	for _, tc := range []struct {
		name, code, param string
		pairs             []string
	}{
		{"unknown", "parameter_unknown", "metadata", []string{"metadata[a]=1"}},
		{"unknown deep", "parameter_unknown", "flow_data[subscription_cancel][reason]", []string{cancel, cancelSub, "flow_data[subscription_cancel][reason]=x"}},
		{"unknown in list", "parameter_unknown", "flow_data[subscription_update_confirm][items][0][plan]",
			[]string{confirm, confirmSub, confirmID, "flow_data[subscription_update_confirm][items][0][plan]=x"}},
		{"brackets out of order", "parameter_unknown", "flow_data[type", []string{"flow_data[type=x"}},
		{"sub-object that no flow has", "parameter_unknown", "flow_data[payment_method_update]", []string{payment, "flow_data[payment_method_update]=x"}},
		{"locale", "", "locale", []string{"locale=xx"}},
		{"flow without type", "parameter_missing", "flow_data[type]", []string{"flow_data[after_completion][type]=portal_homepage"}},
		{"flow type", "", "flow_data[type]", []string{"flow_data[type]=refund"}},
		{"flow as text", "", "flow_data", []string{"flow_data=payment_method_update"}},
		{"flow as both", "", "flow_data", []string{"flow_data=x", payment}},
		{"cancel without its object", "parameter_missing", "flow_data[subscription_cancel]", []string{cancel}},
		{"update without its object", "parameter_missing", "flow_data[subscription_update]", []string{update}},
		{"confirm without its object", "parameter_missing", "flow_data[subscription_update_confirm]", []string{confirm}},
		{"object of another type", "", "flow_data[subscription_cancel]", []string{payment, cancelSub}},
		{"retention without subscription", "parameter_missing", "flow_data[subscription_cancel][subscription]",
			[]string{cancel, "flow_data[subscription_cancel][retention][type]=coupon_offer", "flow_data[subscription_cancel][retention][coupon_offer][coupon]=c"}},
		{"retention type", "", "flow_data[subscription_cancel][retention][type]", []string{cancel, cancelSub, "flow_data[subscription_cancel][retention][type]=x"}},
		{"retention without type", "parameter_missing", "flow_data[subscription_cancel][retention][type]",
			[]string{cancel, cancelSub, "flow_data[subscription_cancel][retention][coupon_offer][coupon]=c"}},
		{"retention without offer", "parameter_missing", "flow_data[subscription_cancel][retention][coupon_offer]",
			[]string{cancel, cancelSub, "flow_data[subscription_cancel][retention][type]=coupon_offer"}},
		{"subscription prefix", "resource_missing", "flow_data[subscription_update][subscription]", []string{update, "flow_data[subscription_update][subscription]=si_1"}},
		{"confirm without items", "parameter_missing", "flow_data[subscription_update_confirm][items]", []string{confirm, confirmSub}},
		{"items as text", "", "flow_data[subscription_update_confirm][items]", []string{confirm, confirmSub, "flow_data[subscription_update_confirm][items]=si_1"}},
		{"items as hash", "", "flow_data[subscription_update_confirm][items]", []string{confirm, confirmSub, "flow_data[subscription_update_confirm][items][id]=si_1"}},
		{"two items", "", "flow_data[subscription_update_confirm][items]",
			[]string{confirm, confirmSub, confirmID, "flow_data[subscription_update_confirm][items][1][id]=si_2"}},
		{"item without id", "parameter_missing", "flow_data[subscription_update_confirm][items][0][id]",
			[]string{confirm, confirmSub, "flow_data[subscription_update_confirm][items][0][price]=price_1"}},
		{"item prefix", "resource_missing", "flow_data[subscription_update_confirm][items][0][id]",
			[]string{confirm, confirmSub, "flow_data[subscription_update_confirm][items][0][id]=sub_1"}},
		{"quantity", "parameter_invalid_integer", "flow_data[subscription_update_confirm][items][0][quantity]",
			[]string{confirm, confirmSub, confirmID, "flow_data[subscription_update_confirm][items][0][quantity]=two"}},
		{"negative quantity", "parameter_invalid_integer", "flow_data[subscription_update_confirm][items][0][quantity]",
			[]string{confirm, confirmSub, confirmID, "flow_data[subscription_update_confirm][items][0][quantity]=-1"}},
		{"both discounts", "", "flow_data[subscription_update_confirm][discounts][0][coupon]",
			[]string{confirm, confirmSub, confirmID, "flow_data[subscription_update_confirm][discounts][0][coupon]=c", "flow_data[subscription_update_confirm][discounts][0][promotion_code]=promo_1"}},
		{"after_completion type", "", after + "[type]", []string{payment, after + "[type]=x"}},
		{"redirect without object", "parameter_missing", after + "[redirect]", []string{payment, after + "[type]=redirect"}},
		{"redirect of another type", "", after + "[redirect]", []string{payment, after + "[type]=portal_homepage", after + "[redirect][return_url]=https://a.example"}},
		{"redirect not a URL", "url_invalid", after + "[redirect][return_url]", []string{payment, after + "[type]=redirect", after + "[redirect][return_url]=javascript:alert(1)"}},
		{"message too long", "", after + "[hosted_confirmation][custom_message]", []string{payment, after + "[type]=hosted_confirmation", after + "[hosted_confirmation][custom_message]=" + long}},
		{"return_url without scheme", "url_invalid", "return_url", []string{"return_url=example.com/a"}},
		{"return_url of a script", "url_invalid", "return_url", []string{"return_url=javascript:alert(1)"}},
		{"return_url without host", "url_invalid", "return_url", []string{"return_url=https:///a"}},
		{"return_url empty", "parameter_invalid_empty", "return_url", []string{"return_url="}},
		{"configuration prefix", "resource_missing", "configuration", []string{"configuration=cfg_1"}},
		{"on_behalf_of prefix", "resource_missing", "on_behalf_of", []string{"on_behalf_of=cus_1"}},
		{"both customers", "", "customer", []string{"customer_account=acct_1"}},
		{"expand", "", "expand[0]", []string{"expand[]=customer"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			sim, _ := setup(t)
			r := create(t, sim, form(append(tc.pairs, "customer=cus_1")...))
			r.want(t, 400, invalid, tc.code, tc.param)
			if len(sim.Sessions()) != 0 {
				t.Fatal("a refused call made a session")
			}
		})
	}
}

// Rule 4, and prefixes, of the customer itself.
func TestRule4Customer(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	create(t, sim, "").want(t, 400, invalid, "parameter_missing", "customer")
	create(t, sim, form("customer=")).want(t, 400, invalid, "parameter_invalid_empty", "customer")
	create(t, sim, form("customer=acct_1")).want(t, 400, invalid, "resource_missing", "customer")
	create(t, sim, form("customer=cus_")).want(t, 400, invalid, "resource_missing", "customer")
	create(t, sim, form("customer_account=cus_1")).want(t, 400, invalid, "resource_missing", "customer_account")
	r := mustCreate(t, sim, form("customer_account=acct_1"))
	if r.object["customer_account"] != "acct_1" || r.object["customer"] != nil {
		t.Fatalf("got %v", r.object)
	}
	// Of a repeated scalar the last counts, for scenarios as for sessions.
	r = mustCreate(t, sim, form("customer=cus_429", "customer=cus_2"))
	if r.object["customer"] != "cus_2" {
		t.Fatalf("got %v", r.object["customer"])
	}
}

func TestRule2OnlyFormEncoding(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	r := create(t, sim, `{"customer":"cus_1"}`, "Content-Type", "application/json")
	r.want(t, 400, invalid, "", "")
	r.wantMessage(t, "application/x-www-form-urlencoded")
	create(t, sim, "customer=%zz").want(t, 400, invalid, "", "")
	r = create(t, sim, form("customer=cus_1", "b=1", "a[x]=2"))
	r.wantMessage(t, "Received unknown parameters: a, b")
}

func TestRule2BracketNotations(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	for _, item := range []string{"[items][0]", "[items][]", "[items][7]"} {
		mustCreate(t, sim, form("customer=cus_1", confirm, confirmSub,
			"flow_data[subscription_update_confirm]"+item+"[id]=si_1", "flow_data[subscription_update_confirm]"+item+"[quantity]=2"))
	}
	for _, expand := range []string{"expand[]", "expand[0]"} {
		r := mustCreate(t, sim, form("customer=cus_1", expand+"=configuration"))
		if c, ok := r.object["configuration"].(map[string]any); !ok || c["object"] != "billing_portal.configuration" {
			t.Fatalf("configuration not expanded: %v", r.object["configuration"])
		}
	}
}

func TestLocales(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	all := strings.Fields("auto bg cs da de el en en-AU en-CA en-GB en-IE en-IN en-NZ en-SG es es-419 et fi fil fr fr-CA hr hu id it ja ko lt lv ms mt nb nl pl pt pt-BR ro ru sk sl sv th tr vi zh zh-HK zh-TW")
	if len(all) != 47 {
		t.Fatalf("%d locales, want 46 and auto", len(all))
	}
	for _, l := range all {
		if r := mustCreate(t, sim, form("customer=cus_1", "locale="+l)); r.object["locale"] != l {
			t.Fatalf("locale %v, want %s", r.object["locale"], l)
		}
	}
	// "If blank or auto, …": blank is allowed here, unlike elsewhere.
	if r := mustCreate(t, sim, form("customer=cus_1", "locale=")); r.object["locale"] != nil {
		t.Fatalf("blank locale became %v", r.object["locale"])
	}
}

// Rule 5.
func TestRule5ReturnURL(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	r := mustCreate(t, sim, form("customer=cus_1"))
	if r.object["return_url"] != nil || sim.Sessions()[0].ReturnURL == "" {
		t.Fatal("the answer shows what was sent, the session uses the default")
	}
	sim.SetDefaultReturnURL("")
	create(t, sim, form("customer=cus_1")).want(t, 400, invalid, "parameter_missing", "return_url")
	r = mustCreate(t, sim, form("customer=cus_1", "return_url=http://127.0.0.1:1/a?b=c"))
	if r.object["return_url"] != "http://127.0.0.1:1/a?b=c" {
		t.Fatalf("got %v", r.object["return_url"])
	}
}

// Rule 6.
func TestRule6AfterExpirationNeedsItsVersion(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	body := form("customer=cus_1", "after_expiration[type]=customer_login", "after_expiration[customer_login][expires_at]=1793600000")
	for _, version := range []string{"", "2026-08-26.dahlia", "2026-10-27"} {
		create(t, sim, body, "Stripe-Version", version).want(t, 400, invalid, "parameter_unknown", "after_expiration")
	}
	mustCreate(t, sim, body, "Stripe-Version", "2026-10-28.endive")
	create(t, sim, form("customer=cus_1", "after_expiration[type]=x"), "Stripe-Version", "2026-10-28.endive").
		want(t, 400, invalid, "", "after_expiration[type]")
	create(t, sim, form("customer=cus_1"), "Stripe-Version", "latest").want(t, 400, invalid, "", "")
}

// Rule 12.
func TestRule12MustExist(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	body := form("customer=cus_1")
	sim.DeleteCustomer("cus_1")
	create(t, sim, body).want(t, 400, invalid, "resource_missing", "customer")
	sim.AddCustomer("cus_1", "cus_missing1")
	sim.SetStrictCustomers(true)
	mustCreate(t, sim, body)
	mustCreate(t, sim, form("customer=cus_missing1"))
	create(t, sim, form("customer=cus_2")).want(t, 400, invalid, "resource_missing", "customer")
	create(t, sim, form("customer=cus_1", "configuration=bpc_missing")).want(t, 400, invalid, "resource_missing", "configuration")
	create(t, sim, form("customer=cus_1", update, "flow_data[subscription_update][subscription]=sub_missing")).
		want(t, 400, invalid, "resource_missing", "flow_data[subscription_update][subscription]")

	sim.SetDefaultConfiguration(false)
	r := create(t, sim, body)
	r.want(t, 400, invalid, "", "")
	r.wantMessage(t, "No configuration provided and your test mode default configuration has not been created.")
	mustCreate(t, sim, form("customer=cus_1", "configuration=bpc_1"))
	sim.SetDefaultConfiguration(true)

	sim.DisableFeature("subscription_update")
	r = create(t, sim, form("customer=cus_1", confirm, confirmSub, confirmID))
	r.want(t, 400, invalid, "", "")
	r.wantMessage(t, "This subscription cannot be updated because the subscription update feature in the portal configuration is disabled.")
	sim.EnableFeature("subscription_update")
	mustCreate(t, sim, form("customer=cus_1", confirm, confirmSub, confirmID))
}

// Rules 1 and 13: who may call, and that keys are not shown.
func TestRules1and13Keys(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	body := form("customer=cus_1")
	const stranger = "sk_test_abcdefghijklmnopqrstuvWXYZ"

	create(t, sim, body, "Authorization", "").want(t, 401, invalid, "", "")
	r := create(t, sim, body, "Authorization", "Bearer "+stranger)
	r.want(t, 401, invalid, "", "")
	r.wantMessage(t, "Invalid API Key provided: sk_test_", "**WXYZ")
	if strings.Contains(r.body, "abcdef") {
		t.Fatal("the key is shown")
	}
	r = create(t, sim, "", "Authorization", "Bearer "+stripesim.NoPortalKey)
	r.want(t, 403, invalid, "", "")
	r.wantMessage(t, "rak_customer_portal_write")
	if strings.Contains(r.body, stripesim.NoPortalKey) {
		t.Fatal("the key is shown")
	}
	create(t, sim, body, "Stripe-Account", "cus_1").want(t, 403, invalid, "account_invalid", "")

	mustCreate(t, sim, body, "Authorization", "Bearer "+stripesim.RestrictedKey)
	req, _ := http.NewRequest(http.MethodGet, "/", nil)
	req.SetBasicAuth(stripesim.LiveKey, "")
	r = mustCreate(t, sim, body, "Authorization", req.Header.Get("Authorization"), "Stripe-Account", "acct_7")
	if r.object["livemode"] != true || r.header.Get("Stripe-Account") != "acct_7" {
		t.Fatalf("livemode %v, account %q", r.object["livemode"], r.header.Get("Stripe-Account"))
	}

	calls := sim.Calls()
	wantAuth := []string{"none", "bearer sk_test", "bearer rk_test", "bearer sk_test", "bearer rk_test", "basic sk_live"}
	wantStatus := []int{401, 401, 403, 403, 200, 200}
	for i, c := range calls {
		if c.Auth != wantAuth[i] || c.Status != wantStatus[i] {
			t.Errorf("call %d: %q %d, want %q %d", i, c.Auth, c.Status, wantAuth[i], wantStatus[i])
		}
	}
	if all := do(t, sim, http.MethodGet, "/_sim/calls", "").body; strings.Contains(all, "simulator") || strings.Contains(all, "abcdef") {
		t.Fatal("the record holds a key")
	}
}
