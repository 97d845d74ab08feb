package portal

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stripe/stripe-mock/embedded"
	"github.com/stripe/stripe-mock/server"

	"latchkey/internal/stripesim"
)

// wireSessions hold every parameter of Stripe's create call at least once
// (TestWireSessionsNameEveryParameter sees to it).
var wireSessions = map[string]string{
	"least": `{"customer":"cus_1"}`,
	"top level": `{"customer":"cus_1","configuration":"bpc_1","expand":["configuration"],"locale":"pt-BR","on_behalf_of":"acct_2",
		"return_url":"https://app.example.com/a?b=1&c=%2F#d"}`,
	"customer_account": `{"customer_account":"acct_3"}`,
	"payment_method_update": `{"customer":"cus_1","flow_data":{"type":"payment_method_update",
		"after_completion":{"type":"redirect","redirect":{"return_url":"https://app.example.com/thanks?x=1&y=ü"}}}}`,
	"customer_update": `{"customer":"cus_1","flow_data":{"type":"customer_update",
		"after_completion":{"type":"hosted_confirmation","hosted_confirmation":{"custom_message":"Danke, \"Jo\" & Söhne!\n+1 100%"}}}}`,
	"portal_homepage": `{"customer":"cus_1","flow_data":{"type":"customer_update","after_completion":{"type":"portal_homepage"}}}`,
	"subscription_cancel": `{"customer":"cus_1","flow_data":{"type":"subscription_cancel","subscription_cancel":{"subscription":"sub_1",
		"retention":{"type":"coupon_offer","coupon_offer":{"coupon":"25% OFF"}}}}}`,
	"subscription_update": `{"customer":"cus_1","flow_data":{"type":"subscription_update","subscription_update":{"subscription":"sub_1"}}}`,
	"subscription_update_confirm": `{"customer":"cus_1","flow_data":{"type":"subscription_update_confirm","subscription_update_confirm":{
		"subscription":"sub_1","items":[{"id":"si_1","price":"price_1","quantity":3}],"discounts":[{"coupon":"A"},{"promotion_code":"promo_1"}]}}}`,
	"quantity 0": `{"customer":"cus_1","flow_data":{"type":"subscription_update_confirm","subscription_update_confirm":{
		"subscription":"sub_1","items":[{"id":"si_1","quantity":0}]}}}`,
	"after_expiration":      `{"customer":"cus_1","after_expiration":{"type":"customer_login","customer_login":{"expires_at":1795000000}}}`,
	"after_expiration bare": `{"customer":"cus_1","after_expiration":{"type":"customer_login"}}`,
}

// bracketed writes decoded JSON in Stripe's form encoding.
func bracketed(into url.Values, name string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, part := range v {
			if name != "" {
				key = name + "[" + key + "]"
			}
			bracketed(into, key, part)
		}
	case []any:
		for i, part := range v {
			bracketed(into, fmt.Sprintf("%s[%d]", name, i), part)
		}
	default:
		into.Set(name, fmt.Sprint(v))
	}
}

func formOf(t *testing.T, session string) url.Values {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(session))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	out := url.Values{}
	bracketed(out, "", v)
	return out
}

func sameForm(t *testing.T, about string, got, want url.Values) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !slices.Equal(got[name], want[name]) {
			t.Errorf("%s: %s = %q on the wire, want %q", about, name, got[name], want[name])
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Errorf("%s: %s = %q on the wire, want it absent", about, name, got[name])
		}
	}
}

func TestWireSessionsNameEveryParameter(t *testing.T) {
	t.Parallel()
	named := map[string]bool{}
	for _, session := range wireSessions {
		for name := range formOf(t, session) {
			named[strings.NewReplacer("[0]", "[]", "[1]", "[]").Replace(name)] = true
		}
	}
	var walk func(name string, typ reflect.Type)
	walk = func(name string, typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer:
			walk(name, typ.Elem())
		case reflect.Slice:
			walk(name+"[]", typ.Elem())
		case reflect.Struct:
			for f := range typ.Fields() {
				part, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name != "" {
					part = name + "[" + part + "]"
				}
				walk(part, f.Type)
			}
		default:
			if !named[name] {
				t.Errorf("no session of the wire tests names %s", name)
			}
		}
	}
	walk("", reflect.TypeFor[SessionParams]())
}

func TestEveryParameterReachesStripeUnchanged(t *testing.T) {
	t.Parallel()
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{})}
	s := b.newStripe(StripeConfig{Key: stripesim.TestKey}, quick)
	for about, session := range wireSessions {
		link := &Link{ID: uuid.New(), Session: []byte(session), StripeAccount: "acct_1032D82eZvKYlo2C"}
		click := uuid.New()
		got, err := s.CreateSession(t.Context(), link, click)
		if err != nil {
			t.Errorf("%s: %v, cause %v", about, err, err.(*SessionError).err)
			continue
		}
		calls := b.sim.Calls()
		call := calls[len(calls)-1]
		sameForm(t, about, call.Params, formOf(t, session))
		if call.IdempotencyKey != "latchkey_click_"+click.String() || call.Account != link.StripeAccount || call.Auth != "bearer sk_test" {
			t.Errorf("%s: key %q, account %q, auth %q", about, call.IdempotencyKey, call.Account, call.Auth)
		}
		made := b.sim.Sessions()[len(calls)-1]
		if got.ID != made.ID || got.URL != made.URL || got.RequestID != made.RequestID || got.Livemode {
			t.Errorf("%s: session %#v, want that of %+v", about, got, made)
		}
	}
}

func TestStripeHeaders(t *testing.T) {
	t.Parallel()
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{})}
	const plain, later = `{"customer":"cus_1"}`, `{"customer":"cus_1","after_expiration":{"type":"customer_login"}}`
	for _, c := range []struct{ version, session, want string }{
		{"", plain, "2026-08-26.dahlia"}, // the SDK's
		{"", later, AfterExpirationVersion},
		{"2027-01-15.fig", later, "2027-01-15.fig"},
		{"2025-03-31.basil", plain, "2025-03-31.basil"},
	} {
		s := b.newStripe(StripeConfig{Key: stripesim.LiveKey, APIVersion: c.version}, quick)
		got, err := s.CreateSession(t.Context(), &Link{Session: []byte(c.session)}, uuid.New())
		if err != nil || !got.Livemode {
			t.Fatalf("%q %s: %#v %v", c.version, c.session, got, err)
		}
		calls := b.sim.Calls()
		if call := calls[len(calls)-1]; call.Version != c.want || call.Account != "" || call.Auth != "bearer sk_live" {
			t.Errorf("%q %s: version %q, account %q, auth %q; want version %q", c.version, c.session, call.Version, call.Account, call.Auth, c.want)
		}
	}
}

// A call is one piece on the wire, and a retry of it is whole.
func TestStripeIsToldTheLength(t *testing.T) {
	t.Parallel()
	var lengths []int64
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{}), onStripe: func(r *http.Request) {
		if len(r.TransferEncoding) > 0 {
			t.Errorf("the body comes %q", r.TransferEncoding)
		}
		lengths = append(lengths, r.ContentLength)
	}}
	b.sim.Script(stripesim.Fault{Kind: stripesim.FaultStatus, Status: 503, Unsaved: true})
	s := b.newStripe(StripeConfig{Key: stripesim.TestKey}, quick)
	if _, err := s.CreateSession(t.Context(), &Link{Session: []byte(`{"customer":"cus_1"}`)}, uuid.New()); err != nil {
		t.Fatal(err)
	}
	if want := int64(len("customer=cus_1")); !slices.Equal(lengths, []int64{want, want}) {
		t.Errorf("lengths %d, want %d twice", lengths, want)
	}
}

func TestDefaultReturnURL(t *testing.T) {
	t.Parallel()
	b := &bundle{t: t, sim: stripesim.New(stripesim.Config{})}
	s := b.newStripe(StripeConfig{Key: stripesim.TestKey, DefaultReturnURL: "https://app.example.com/default"}, quick)
	for session, want := range map[string]string{
		`{"customer":"cus_1"}`: "https://app.example.com/default",
		`{"customer":"cus_1","return_url":"https://app.example.com/own"}`: "https://app.example.com/own",
	} {
		if _, err := s.CreateSession(t.Context(), &Link{Session: []byte(session)}, uuid.New()); err != nil {
			t.Fatal(err)
		}
		calls := b.sim.Calls()
		if got := calls[len(calls)-1].Params["return_url"]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s: return_url %q, want %q", session, got, want)
		}
	}
}

// stripeMock is Stripe's own mock, which holds calls against the published OpenAPI description.
// Its parsing takes a second, so it is made once.
var stripeMock = sync.OnceValues(func() (http.Handler, error) {
	spec, err := server.LoadSpec(embedded.OpenAPISpec, "")
	if err != nil {
		return nil, err
	}
	fixtures, err := server.LoadFixtures(embedded.OpenAPIFixtures, "")
	if err != nil {
		return nil, err
	}
	stub, err := server.NewStubServer(fixtures, spec, true, false)
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(stub.HandleRequest), nil
})

func TestStripesOpenAPIAcceptsEveryParameter(t *testing.T) {
	t.Parallel()
	mock, err := stripeMock()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(mock)
	t.Cleanup(srv.Close)
	s := newStripe(StripeConfig{Key: stripesim.TestKey, APIBase: srv.URL}, quick)
	t.Cleanup(s.Close)
	for about, session := range wireSessions {
		_, err := s.CreateSession(t.Context(), &Link{Session: []byte(session)}, uuid.New())
		if strings.HasPrefix(about, "after_expiration") {
			// Its version is newer than the newest description there is, and the mock says so.
			if cause, ok := err.(*SessionError); !ok || cause.Code != CodeInvalidRequest {
				t.Errorf("%s: %v, want invalid_request", about, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v, cause %v", about, err, err.(*SessionError).err)
		}
	}
	for _, session := range []string{`{"customer":"cus_1","locale":"klingon"}`, `{"customer":"cus_1","flow_data":{"type":"subscription_update","subscription_update_confirm":{"subscription":"sub_1"}}}`} {
		if _, err := s.CreateSession(t.Context(), &Link{Session: []byte(session)}, uuid.New()); err == nil {
			t.Errorf("the mock accepts %s: it checks nothing", session)
		}
	}
}
