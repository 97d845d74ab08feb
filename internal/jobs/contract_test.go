package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"latchkey/internal/contract"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

func TestSchemasHaveTheFieldsOfTheTypes(t *testing.T) {
	t.Parallel()
	for ref, typ := range map[string]reflect.Type{
		"request.schema.json":                         reflect.TypeFor[Request](),
		"request.schema.json#/$defs/session":          reflect.TypeFor[portal.SessionParams](),
		"event.schema.json#/$defs/about":              reflect.TypeFor[EventData](),
		"event.schema.json#/$defs/link_issued_data":   reflect.TypeFor[IssuedData](),
		"service.schema.json#/$defs/get":              reflect.TypeFor[GetRequest](),
		"service.schema.json#/$defs/status":           reflect.TypeFor[Status](),
		"service.schema.json#/$defs/revoke":           reflect.TypeFor[portal.Revocation](),
		"service.schema.json#/$defs/revoked":          reflect.TypeFor[RevokeResponse](),
		"service.schema.json#/$defs/list_campaigns":   reflect.TypeFor[CampaignsRequest](),
		"service.schema.json#/$defs/check_campaign":   reflect.TypeFor[CampaignCheckRequest](),
		"service.schema.json#/$defs/campaign_check":   reflect.TypeFor[CampaignCheck](),
		"service.schema.json#/$defs/campaigns":        reflect.TypeFor[portal.CampaignList](),
		"service.schema.json#/$defs/get_campaign":     reflect.TypeFor[CampaignRequest](),
		"service.schema.json#/$defs/campaign":         reflect.TypeFor[portal.Campaign](),
		"event.schema.json#/$defs/session.created":    reflect.TypeFor[notify.Event](),
		"request.schema.json#/$defs/delivery":         reflect.TypeFor[Delivery](),
		"request.schema.json#/$defs/after_completion": reflect.TypeFor[portal.AfterCompletion](),
	} {
		contract.SameFields(t, typ, contract.Schema(t, ref))
	}
}

func TestSchemasHaveTheCodes(t *testing.T) {
	t.Parallel()
	codes := contract.Constants(t, "internal/jobs", "Code")
	if got := contract.Enum(t, contract.Schema(t, "service.schema.json#/$defs/rejection_code")); !slices.Equal(got, codes) {
		t.Errorf("rejection codes %v, want %v", got, codes)
	}
	codes = append(codes, CodeNotFound, CodeBadRequest, CodeUnavailable)
	slices.Sort(codes)
	if got := contract.Enum(t, contract.Schema(t, "service.schema.json#/$defs/error_code")); !slices.Equal(got, codes) {
		t.Errorf("error codes %v, want %v", got, codes)
	}
}

// The JSON blocks of docs/request.md that are whole requests are valid, and the service takes them.
func TestExamplesInTheDocsAreValid(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join(contract.Root(t), "docs", "request.md"))
	must(t, err)
	whole := 0
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllSubmatch(doc, -1) {
		if strings.Contains(string(block[1]), `"session"`) {
			checkAgreement(t, contract.Schema(t, "request.schema.json"), block[1])
			_, err := ParseRequest(block[1], testRules(), testNow)
			if rejection := (*Rejection)(nil); errors.As(err, &rejection) && rejection.Code != DeliveryUnavailable {
				t.Errorf("%s\n%v", block[1], err)
			}
			whole++
		}
	}
	if whole == 0 {
		t.Error("docs/request.md has no example")
	}
}

// checkAgreement holds the schema's answer on a body against the parser's.
func checkAgreement(t *testing.T, s *jsonschema.Schema, body []byte) {
	t.Helper()
	_, err := ParseRequest(body, testRules(), testNow)
	var rejection *Rejection
	errors.As(err, &rejection)
	invalid := contract.Validate(s, body)
	switch {
	case !tellsBySchema(rejection), strings.Contains(string(body), "424242424242h"): // too long for a Go duration
	case rejection != nil && rejection.Code == InvalidField:
		if invalid == nil {
			t.Errorf("%.300s\nis refused (%v), but the schema takes it", body, rejection)
		}
	case invalid != nil: // also where a deployment of other rules would take it
		t.Errorf("%.300s\nis taken (%v), but the schema refuses it: %v", body, rejection, invalid)
	}
}

// tellsBySchema is false for a rejection that no schema could tell: of the bytes, of a calendar's or a
// duration's sum, or by the deployment's rules where the rejection could have come for the form as well.
func tellsBySchema(r *Rejection) bool {
	switch {
	case r == nil:
		return true
	case r.Code == InvalidJSON, r.Code == TooLarge:
		return false
	case r.Code != InvalidField:
		return true
	}
	return !slices.ContainsFunc([]string{"RETURN_URL_HOSTS", "LINK_TTL_MAX", "STRIPE_API_VERSION", "WEBHOOK_ALLOW_PRIVATE", ".template: must be one of"},
		func(rule string) bool { return strings.Contains(r.Reason, rule) })
}

// Each of these requests is valid, and together they have every field. Each is then spoilt in one place
// in many ways: what the parser refuses the schema must refuse, and what it takes the schema must take.
func TestRequestSchemaAgreesWithTheParser(t *testing.T) {
	t.Parallel()
	s := contract.Schema(t, "request.schema.json")
	bodies := slices.Clone(s.Examples)
	for _, session := range []string{
		`{"customer":"cus_1","configuration":"bpc_1","on_behalf_of":"acct_1","expand":["a"],
		  "after_expiration":{"type":"customer_login","customer_login":{"expires_at":1800000000}}}`,
		`{"customer":"cus_1","flow_data":{"type":"customer_update","after_completion":{"type":"hosted_confirmation","hosted_confirmation":{"custom_message":"x"}}}}`,
		`{"customer":"cus_1","flow_data":{"type":"subscription_update","subscription_update":{"subscription":"sub_1"},"after_completion":{"type":"portal_homepage"}}}`,
		`{"customer":"cus_1","flow_data":{"type":"subscription_update_confirm","subscription_update_confirm":{"subscription":"sub_1",
		  "items":[{"id":"si_1","price":"price_1","quantity":0}],"discounts":[{"coupon":"A"},{"promotion_code":"promo_1"}]}}}`,
	} {
		bodies = append(bodies, decodeJSON(t, request("r1", "stripe_account", "acct_1", "livemode", false, "expires_at", "2026-12-24T18:00:00Z", "session", rawJSON(session))))
	}
	seen := map[string]bool{}
	for _, body := range bodies {
		checkAgreement(t, s, encodeJSON(t, body))
		for spoilt := range spoil(body) {
			if text := encodeJSON(t, spoilt); !seen[string(text)] {
				seen[string(text)] = true
				checkAgreement(t, s, text)
			}
		}
	}
	if len(seen) < 2000 {
		t.Errorf("%d spoilt requests; are there mutations?", len(seen))
	}
}

// otherValues stand in a value's place.
func otherValues() []any {
	others := []any{nil, true, 0, -1, 1, 1.5, 1000, 1001, 1e30, []any{}, []any{nil}, []any{""}, map[string]any{}, map[string]any{"zebra": "x"},
		"x", "\x00", "X", "a b", "a\n", "a.b", "ü", "0s", "1h", "2026-12-24T18:00:00", "payment_method_update", "redirect", "webhook", "pt-br",
		"http://app.example.com/", "http://localhost/", "https://app.example.com@evil.com/", `https://app.example.com\`, "mailto:x", "a@b", "a@b, c@d", "<a@b>"}
	for _, prefix := range []string{"cus_", "acct_", "bpc_", "sub_", "si_", "promo_", "https://app.example.com/"} {
		for _, n := range []int{0, 1, 201, 255} {
			others = append(others, prefix+strings.Repeat("a", n))
		}
	}
	for _, n := range []int{40, 41, 100, 101, 200, 201, 254, 255, 256, 500, 501} { // characters, not bytes
		others = append(others, strings.Repeat("a", n), strings.Repeat("ü", n))
	}
	for _, n := range []int{900 - 24, 901 - 24, 2048 - 24, 2049 - 24, 5000 - 24, 5001 - 24} {
		others = append(others, "https://app.example.com/"+strings.Repeat("a", n))
	}
	return others
}

// spoil yields a JSON value with one change each.
func spoil(v any) iter.Seq[any] {
	return func(yield func(any) bool) {
		switch v := v.(type) {
		case map[string]any:
			for _, name := range slices.Sorted(maps.Keys(v)) {
				for changed := range spoil(v[name]) {
					if !yield(withField(v, name, changed)) {
						return
					}
				}
				without := maps.Clone(v)
				delete(without, name)
				if !yield(without) || !yield(withField(without, strings.ToUpper(name), v[name])) {
					return
				}
			}
			for _, name := range []string{"zebra", "", "ü\x00"} {
				if !yield(withField(v, name, "x")) {
					return
				}
			}
		case []any:
			for i := range v {
				for changed := range spoil(v[i]) {
					if !yield(slices.Concat(v[:i], []any{changed}, v[i+1:])) {
						return
					}
				}
				if !yield(slices.Concat(v, slices.Repeat(v[i:i+1], 20))) || !yield(slices.Concat(v, v[i:i+1], v[i:i+1], v[i:i+1])) {
					return
				}
			}
		}
		for _, other := range otherValues() {
			if !yield(other) {
				return
			}
		}
	}
}

func withField(doc map[string]any, name string, value any) map[string]any {
	doc = maps.Clone(doc)
	doc[name] = value
	return doc
}

func decodeJSON(t *testing.T, body []byte) (doc any) {
	t.Helper()
	must(t, json.Unmarshal(body, &doc))
	return doc
}

func encodeJSON(t *testing.T, doc any) []byte {
	t.Helper()
	body, err := json.Marshal(doc)
	must(t, err)
	return body
}

// An empty string counts as absent where the field is optional; the schema wants it left out.
func TestRequestSchemaOnEmptyStrings(t *testing.T) {
	t.Parallel()
	s := contract.Schema(t, "request.schema.json")
	for _, name := range []string{"campaign", "stripe_account", "expires_in", "expires_at"} {
		body := request("r1", name, "")
		_, err := ParseRequest(body, testRules(), testNow)
		must(t, err)
		if contract.Validate(s, body) == nil {
			t.Errorf("the schema takes an empty %s", name)
		}
	}
}

// The schema lists what Go calls not printable, as far as it has two bytes and Unicode has given it a
// meaning: \p{…} is not understood by every validator, nor are characters beyond.
func TestRequestSchemaKnowsWhatPrints(t *testing.T) {
	t.Parallel()
	id := contract.Schema(t, "request.schema.json").Properties["id"]
	for r := rune(0); r < 0x10000; r++ {
		assigned := unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z, unicode.Cc, unicode.Cf, unicode.Co)
		if valid := id.Validate(string(r)) == nil; assigned && valid != validID(string(r)) {
			t.Fatalf("U+%04X: the schema says %t", r, valid)
		}
	}
}

func TestRequestSchemaTakesTheDeliveriesOfTheContract(t *testing.T) {
	t.Parallel()
	s := contract.Schema(t, "request.schema.json#/$defs/delivery")
	for entry, valid := range map[string]bool{
		`{"channel":"email","to":"jo@example.com"}`:                                                        true,
		`{"channel":"email","to":"jö@exämple.com"}`:                                                        true,
		`{"channel":"email","to":"jo@[127.0.0.1]"}`:                                                        false,
		`{"channel":"email","to":"jo@example.com","url":null,"template":null,"list_unsubscribe":null}`:     true,
		`{"channel":"email","to":"jo@example.com","list_unsubscribe":"mailto:stop@example.com?subject=x"}`: true,
		`{"channel":"email","to":"jo@example.com","list_unsubscribe":"https://example.com/stop"}`:          true,
		`{"channel":"email","to":"jo@example.com","list_unsubscribe":"http://example.com/stop"}`:           false,
		`{"channel":"email","to":"jo@example.com","list_unsubscribe":"https://example.com/>, <x"}`:         false,
		`{"channel":"email","to":"jo..x@example.com"}`:                                                     false,
		`{"channel":"email","to":"\"jo\"@example.com"}`:                                                    false,
		`{"channel":"webhook","url":"https://hooks.example.com/x?y=z"}`:                                    true,
		`{"channel":"webhook","url":"https://hooks.example.com/x","list_unsubscribe":"mailto:x@y"}`:        false,
		`{"channel":"webhook","url":"https://hooks.example.com/x#y"}`:                                      false,
		`{"channel":"webhook","url":"https://u:p@hooks.example.com/x"}`:                                    false,
		`{"channel":"sms","to":"+1"}`:                                                                      false,
	} {
		if err := contract.Validate(s, []byte(entry)); (err == nil) != valid {
			t.Error(fmt.Errorf("%s: %w", entry, err))
		}
	}
}

// checkEvents holds the events of all audit rows against the schema, read or not.
func (w *world) checkEvents() (kinds []string) {
	w.t.Helper()
	p := w.publisher(nil)
	rows, err := p.rows(w.ctx, w.rowRanges())
	must(w.t, err)
	events, _, unmade := p.events(rows)
	must(w.t, unmade)
	schema := contract.Schema(w.t, "event.schema.json")
	for _, e := range events {
		contract.CheckEvent(w.t, schema, encodeJSON(w.t, e))
		kinds = append(kinds, e.Kind())
	}
	slices.Sort(kinds)
	return kinds
}

// A target that is gone makes both events that tell of a webhook's end: one of a link, one of a subscription.
func TestEventsOfAWebhookThatEndsAreValid(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	target := newReceiver(t, 410, 410)
	link := w.issue(webhookRequest("r1", target.URL))
	worker := w.webhookWorker()
	must(t, worker.Work(w.ctx, w.webhookJob(t, link, 1)))
	worker.subscriptions = []Subscription{{URL: target.URL + "/all"}}
	job := w.webhookJob(t, link, 1)
	job.Args = worker.subscriptions[0].args(job.Args.Event)
	_ = worker.Work(w.ctx, job) // cancelled
	if kinds := w.checkEvents(); !slices.Equal(kinds, []string{"link.delivery_failed", "link.issued", "webhook.disabled"}) {
		t.Errorf("events %v", kinds)
	}
}
