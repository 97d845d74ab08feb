package stripesim_test

import (
	"net/http"
	"strings"
	"testing"

	"latchkey/internal/stripesim"
)

func TestReads(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	get := func(p string, header ...string) reply { return do(t, sim, http.MethodGet, p, "", header...) }
	const list = "/v1/billing_portal/configurations?is_default=true&limit=1"
	live := []string{"Authorization", "Bearer " + stripesim.LiveKey}

	r := get(list, live...)
	data := r.object["data"].([]any)
	if r.object["object"] != "list" || len(data) != 1 {
		t.Fatalf("list %v", r.object)
	}
	conf := data[0].(map[string]any)
	if conf["livemode"] != true || conf["is_default"] != true || !strings.HasPrefix(conf["id"].(string), "bpc_") {
		t.Fatalf("configuration %v", conf)
	}
	if got := get("/v1/billing_portal/configurations/"+conf["id"].(string), live...); got.object["id"] != conf["id"] {
		t.Fatalf("configuration %s", got.body)
	}
	sim.SetDefaultConfiguration(false)
	if data := get(list).object["data"].([]any); len(data) != 0 {
		t.Fatalf("list %v", data)
	}
	get("/v1/billing_portal/configurations/"+conf["id"].(string)).want(t, 404, invalid, "resource_missing", "configuration")
	get("/v1/billing_portal/configurations?color=red").want(t, 400, invalid, "parameter_unknown", "color")
	noPortal := get(list, "Authorization", "Bearer "+stripesim.NoPortalKey)
	noPortal.want(t, 403, invalid, "", "")
	noPortal.wantMessage(t, "rak_customer_portal_read")
	get("/v1/balance", "Authorization", "Bearer x").want(t, 401, invalid, "", "")

	if r := get("/v1/balance", live...); r.object["livemode"] != true {
		t.Fatalf("balance %s", r.body)
	}
	if r := get("/v1/account", "Stripe-Account", "acct_7"); r.object["id"] != "acct_7" || !strings.HasPrefix(r.header.Get("Request-Id"), "req_") {
		t.Fatalf("account %s", r.body)
	}
	if r := get("/v1/customers/cus_1"); r.object["id"] != "cus_1" {
		t.Fatalf("customer %s", r.body)
	}
	if r := get("/v1/customers/cus_deleted1"); r.object["deleted"] != true {
		t.Fatalf("customer %s", r.body)
	}
	get("/v1/customers/cus_missing").want(t, 404, invalid, "resource_missing", "id")
	get("/v1/customers/cus_live").want(t, 404, invalid, "resource_missing", "id")
	if r := get("/healthz"); r.status != 200 {
		t.Fatalf("healthz %d", r.status)
	}
}

func TestUnknownPaths(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	for _, c := range [][2]string{
		{http.MethodGet, "/v1/billing_portal/sessions"},               // create only: no list,
		{http.MethodGet, "/v1/billing_portal/sessions/bps_1"},         // no retrieve,
		{http.MethodPost, "/v1/billing_portal/sessions/bps_1/expire"}, // no expire
		{http.MethodGet, "/v2/x"},
	} {
		r := do(t, sim, c[0], c[1], "")
		r.want(t, 404, invalid, "", "")
		r.wantMessage(t, "Unrecognized request URL ("+c[0]+": "+c[1]+")")
	}
}

func TestControl(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	control := func(body string) reply {
		return do(t, sim, http.MethodPost, "/_sim/config", body, "Content-Type", "application/json")
	}
	body := form("customer=cus_1")
	if r := control(`{"rate":1,"faults":[{"kind":"status","status":500},{"kind":"url","url":"http://x"}],"disable_features":["customer_update"],"delete_customers":["cus_9"]}`); r.status != 204 {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	create(t, sim, body).want(t, 500, "api_error", "", "")
	create(t, sim, body).want(t, 429, invalid, "rate_limit", "")
	control(`{"rate":0}`)
	if r := mustCreate(t, sim, body); r.object["url"] != "http://x" {
		t.Fatalf("url %v", r.object["url"])
	}
	create(t, sim, form("customer=cus_1", "flow_data[type]=customer_update")).want(t, 400, invalid, "", "")
	create(t, sim, form("customer=cus_9")).want(t, 400, invalid, "resource_missing", "customer")
	control(`{"enable_features":["customer_update"],"add_customers":["cus_9"],"strict_customers":true,"default_return_url":""}`)
	create(t, sim, body).want(t, 400, invalid, "resource_missing", "customer")
	mustCreate(t, sim, form("customer=cus_9", "flow_data[type]=customer_update", "return_url=https://a.example"))

	control(`{"outage":{"kind":"status","status":503}}`)
	for range 2 {
		create(t, sim, form("customer=cus_9", "return_url=https://a.example")).want(t, 503, "api_error", "", "")
	}
	control(`{"latency_ms":0}`)
	create(t, sim, form("customer=cus_9", "return_url=https://a.example")).want(t, 503, "api_error", "", "")
	control(`{"outage":{}}`)

	sessions := do(t, sim, http.MethodGet, "/_sim/sessions", "")
	if sessions.object["total"] != 2.0 {
		t.Fatalf("sessions %s", sessions.body)
	}
	calls := do(t, sim, http.MethodGet, "/_sim/calls?limit=1", "").object
	if calls["total"] != 10.0 || len(calls["data"].([]any)) != 1 {
		t.Fatalf("calls %v", calls)
	}
	call := calls["data"].([]any)[0].(map[string]any)
	if call["status"] != 503.0 || call["auth"] != "bearer sk_test" {
		t.Fatalf("call %v", call)
	}
	if r := do(t, sim, http.MethodGet, "/_sim/calls?limit=-1", ""); r.status != 400 {
		t.Fatalf("status %d", r.status)
	}
}

// All of a body is applied or nothing, and a mistyped name is an error.
func TestControlRefusesNonsense(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	for _, body := range []string{
		`{"lateny_ms":5}`, `{"rate":1,"faults":[{"kind":"boom"}]}`, `{"rate":1} {}`, `{"rate":-1}`, `{"latency_ms":-1}`, `{"rate":1,"outage":{"kind":"boom"}}`, `x`,
	} {
		if r := do(t, sim, http.MethodPost, "/_sim/config", body, "Content-Type", "application/json"); r.status != 400 {
			t.Errorf("%s: status %d", body, r.status)
		}
	}
	// The type of a foreign page's form.
	if r := do(t, sim, http.MethodPost, "/_sim/config", `{"rate":1}`, "Content-Type", "text/plain"); r.status != 400 {
		t.Errorf("text/plain: status %d", r.status)
	}
	mustCreate(t, sim, form("customer=cus_1"))
	mustCreate(t, sim, form("customer=cus_1"))
}
