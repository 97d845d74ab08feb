package jobs

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	"latchkey/internal/contract"
	"latchkey/internal/portal"
)

// zebra stands in values that must not come back in a message, quagga in a number's.
const (
	zebra  = "zebra"
	quagga = 424242
)

var testNow = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

type badRequest struct {
	name, body string
	code       Code
	path       string // that the reason begins with, or, for invalid JSON, holds
}

func checkBad(t *testing.T, cases []badRequest) {
	t.Helper()
	schema := contract.Schema(t, "request.schema.json")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			checkAgreement(t, schema, []byte(c.body))
			_, err := ParseRequest([]byte(c.body), testRules(), testNow)
			var rejection *Rejection
			if !errors.As(err, &rejection) {
				t.Fatalf("ParseRequest = %v, want a rejection", err)
			}
			if rejection.Code != c.code {
				t.Errorf("code %s, want %s (%v)", rejection.Code, c.code, err)
			}
			if c.code == InvalidField && !strings.HasPrefix(rejection.Reason, c.path+": ") || !strings.Contains(rejection.Reason, c.path) {
				t.Errorf("reason %q, want it about %s", rejection.Reason, c.path)
			}
			for _, value := range []string{zebra, fmt.Sprint(quagga), "secret"} {
				if strings.Contains(err.Error(), value) {
					t.Errorf("the reason repeats the value %s: %v", value, err)
				}
			}
		})
	}
}

func TestParseRequestRefusesWhatIsNoJSONObject(t *testing.T) {
	t.Parallel()
	whole := string(request("r1"))
	checkBad(t, []badRequest{
		{"empty", "", InvalidJSON, "JSON object"},
		{"white space", " \n\t", InvalidJSON, "JSON object"},
		{"garbage", "zebra", InvalidJSON, "JSON object"},
		{"null", "null", InvalidJSON, "null"},
		{"begins as null", "not json", InvalidJSON, "got no JSON"},
		{"begins as false", "foo", InvalidJSON, "got no JSON"},
		{"array", "[" + whole + "]", InvalidJSON, "an array"},
		{"number", "424242", InvalidJSON, "a number"},
		{"string", `"zebra"`, InvalidJSON, "a string"},
		{"boolean", "true", InvalidJSON, "true or false"},
		{"byte order mark", "\ufeff" + whole, InvalidJSON, "JSON object"},
		{"cut", whole[:len(whole)-1], InvalidJSON, "$"},
		{"cut in a string", whole[:len(whole)/2], InvalidJSON, "$"},
		{"single quotes", `{'id':'zebra'}`, InvalidJSON, "$"},
		{"trailing comma", `{"id":"zebra",}`, InvalidJSON, "$"},
		{"comment", `{"id":"zebra"/**/}`, InvalidJSON, "$"},
		{"a second object", whole + whole, InvalidJSON, "follows"},
		{"trailing garbage", whole + "zebra", InvalidJSON, "follows"},
		{"trailing NUL", whole + "\x00", InvalidJSON, "follows"},
		{"name twice", `{"id":"zebra","id":"zebra2"}`, InvalidJSON, "$.id"},
		{"name twice, spelled otherwise", `{"id":"zebra","\u0069d":"zebra2"}`, InvalidJSON, "$.id"},
		{"nested name twice", `{"session":{"customer":"zebra","customer":"zebra"}}`, InvalidJSON, "$.session.customer"},
		{"name twice in metadata", `{"metadata":{"a":"zebra","a":"zebra"}}`, InvalidJSON, "$.metadata.a"},
		{"name twice in an array", `{"deliver":[{"data":{"a":1,"a":2}}]}`, InvalidJSON, "$.deliver[0].data.a"},
		{"invalid UTF-8", "{\"id\":\"zebra\xff\"}", InvalidJSON, "UTF-8"},
		{"invalid UTF-8 in a name", "{\"zebra\xff\":1}", InvalidJSON, "UTF-8"},
		{"lone high surrogate", `{"id":"zebra\ud800"}`, InvalidJSON, "$"},
		{"lone low surrogate", `{"id":"zebra\udc00"}`, InvalidJSON, "$"},
		{"unpaired surrogates", `{"id":"zebra\ud800\ud800"}`, InvalidJSON, "$"},
		{"control in a string", "{\"id\":\"zebra\n\"}", InvalidJSON, "$"},
		{"too deep", `{"deliver":[{"channel":"email","data":` + strings.Repeat(`{"a":`, 12000), InvalidJSON, "$"},
		{"NaN", `{"max_sessions":NaN}`, InvalidJSON, "$"},
	})
}

func TestParseRequestSizeLimit(t *testing.T) {
	t.Parallel()
	fits := append(request("r1"), bytes.Repeat([]byte(" "), MaxRequestBytes)...)[:MaxRequestBytes]
	if _, err := ParseRequest(fits, testRules(), testNow); err != nil {
		t.Errorf("%d bytes: %v", len(fits), err)
	}
	checkBad(t, []badRequest{
		{"one byte more", string(fits) + " ", TooLarge, "65537"},
		{"large and no JSON either", strings.Repeat(zebra, 1<<20), TooLarge, "65536"},
	})
}

// A message about a deeply nested request stays short, and names what leads there.
func TestParseRequestMessagesAreShort(t *testing.T) {
	t.Parallel()
	name := `"` + strings.Repeat("ä\\u202e", 300) + `"`
	for _, body := range []string{
		`{"deliver":[{"data":` + strings.Repeat(`{"a":`, 5000),
		`{` + name + `:1}`,
		`{"` + strings.Repeat("0", 60000) + `":1}`,
		`{"session":{` + name + `:1}}`,
		`{"metadata":{` + name + `:"x","` + strings.Repeat("y", 50000) + `":null}}`,
	} {
		_, err := ParseRequest([]byte(body), testRules(), testNow)
		if err == nil || len(err.Error()) > 600 || strings.IndexFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Errorf("ParseRequest(%.40s…) = %v, want a short and printable message", body, err)
		}
	}
}

func TestParseRequestRefusesFields(t *testing.T) {
	t.Parallel()
	with := func(fields ...any) string { return string(request("r1", fields...)) }
	long := strings.Repeat(zebra, 50)
	pairs := map[string]string{}
	for _, key := range numbered("k%d", 51) {
		pairs[key] = "v"
	}
	checkBad(t, []badRequest{
		{"no id", with("id", nil), InvalidField, "$.id"},
		{"id null", `{"id":null}`, InvalidField, "$.id"},
		{"id empty", with("id", ""), InvalidField, "$.id"},
		{"id too long", with("id", strings.Repeat("ü", 201)), InvalidField, "$.id"},
		{"id with a line break", with("id", "zebra\n"), InvalidField, "$.id"},
		{"id with a direction mark", with("id", "zebra\u202e"), InvalidField, "$.id"},
		{"id with a no-break space", with("id", "zebra\u00a0"), InvalidField, "$.id"},
		{"id with NUL", with("id", "zebra\x00"), InvalidField, "$.id"},
		{"id a number", with("id", quagga), InvalidField, "$.id"},
		{"id an object", with("id", map[string]any{zebra: 1}), InvalidField, "$.id"},

		{"no source", with("source", nil), InvalidField, "$.source"},
		{"source in capitals", with("source", "Zebra-zebra"), InvalidField, "$.source"},
		{"source with a dot", with("source", "zebra.x"), InvalidField, "$.source"},
		{"source too long", with("source", long[:41]), InvalidField, "$.source"},
		{"source with a line break behind", with("source", "zebra\n"), InvalidField, "$.source"},

		{"no session", with("session", nil), InvalidField, "$.session"},
		{"session null", `{"id":"r1","source":"x","session":null}`, InvalidField, "$.session"},
		{"session a string", with("session", zebra), InvalidField, "$.session"},
		{"session an array", `{"id":"r1","session":["zebra"]}`, InvalidField, "$.session"},

		{"campaign with a space", with("campaign", "zebra zebra"), InvalidField, "$.campaign"},
		{"campaign too long", with("campaign", long[:101]), InvalidField, "$.campaign"},
		{"stripe_account", with("stripe_account", "zebra"), InvalidField, "$.stripe_account"},
		{"stripe_account with a slash", with("stripe_account", "acct_zebra/x"), InvalidField, "$.stripe_account"},
		{"livemode a string", with("livemode", zebra), InvalidField, "$.livemode"},
		{"livemode a number", with("livemode", quagga), InvalidField, "$.livemode"},

		{"max_sessions 0", with("max_sessions", 0), InvalidField, "$.max_sessions"},
		{"max_sessions negative", with("max_sessions", -quagga), InvalidField, "$.max_sessions"},
		{"max_sessions 1001", with("max_sessions", 1001), InvalidField, "$.max_sessions"},
		{"max_sessions huge", `{"id":"r1","max_sessions":42424242424242424242}`, InvalidField, "$.max_sessions"},
		{"max_sessions a fraction", with("max_sessions", 424242.5), InvalidField, "$.max_sessions"},
		{"max_sessions a string", with("max_sessions", "424242"), InvalidField, "$.max_sessions"},

		{"expires_in no duration", with("expires_in", zebra), InvalidField, "$.expires_in"},
		{"expires_in in days", with("expires_in", "424242d"), InvalidField, "$.expires_in"},
		{"expires_in 0", with("expires_in", "0s"), InvalidField, "$.expires_in"},
		{"expires_in negative", with("expires_in", "-424242h"), InvalidField, "$.expires_in"},
		{"expires_in a number", with("expires_in", quagga), InvalidField, "$.expires_in"},
		{"expires_in over the maximum", with("expires_in", "2160h1ns"), InvalidField, "$.expires_in"},
		{"expires_in more than a duration holds", with("expires_in", "424242424242h"), InvalidField, "$.expires_in"},
		{"expires_in below what is kept", with("expires_in", "999ns"), Expired, "$.expires_in"},
		{"expires_at no time", with("expires_at", zebra), InvalidField, "$.expires_at"},
		{"expires_at without a zone", with("expires_at", "2026-12-24T18:00:00"), InvalidField, "$.expires_at"},
		{"expires_at over the maximum", with("expires_at", testNow.Add(2160*time.Hour+time.Second).Format(time.RFC3339)), InvalidField, "$.expires_at"},
		{"both expiries", with("expires_at", "2026-12-24T18:00:00Z", "expires_in", "1h"), InvalidField, "$.expires_at"},
		{"expired", with("expires_at", "2026-11-20T11:59:59Z"), Expired, "$.expires_at"},
		{"expires now", with("expires_at", "2026-11-20T13:00:00+01:00"), Expired, "$.expires_at"},
		{"expires within a microsecond", with("expires_at", "2026-11-20T12:00:00.000000999Z"), Expired, "$.expires_at"},

		{"51 pairs of metadata", with("metadata", pairs), InvalidField, "$.metadata"},
		{"metadata key empty", with("metadata", map[string]string{"": zebra}), InvalidField, "$.metadata"},
		{"metadata key too long", with("metadata", map[string]string{long[:41]: "v"}), InvalidField, "$.metadata"},
		{"metadata value too long", with("metadata.k", strings.Repeat("ü", 501)), InvalidField, "$.metadata.k"},
		{"metadata value a number", with("metadata.k", quagga), InvalidField, "$.metadata.k"},
		{"metadata value an object", with("metadata.k", map[string]any{zebra: zebra}), InvalidField, "$.metadata.k"},
		{"metadata value null", `{"metadata":{"k":null}}`, InvalidField, "$.metadata.k"},
		{"metadata value with NUL", with("metadata.k", "zebra\x00"), InvalidField, "$.metadata.k"},
		{"metadata key with NUL", `{"metadata":{"ze\u0000bra":"v"}}`, InvalidField, "$.metadata.ze?bra"},
		{"metadata an array", with("metadata", []string{zebra}), InvalidField, "$.metadata"},

		{"mode", with("livemode", true), ModeMismatch, "$.livemode"},
	})
}

func TestParseRequestRefusesUnknownFields(t *testing.T) {
	t.Parallel()
	var cases []badRequest
	for _, path := range []string{
		"idd", "ID", "Id", "Source", "SESSION", "livemode2", "expiresIn",
		"session.Customer", "session.customerr", "session.metadata",
		"session.flow_data.Type", "session.flow_data.subscription",
		"session.flow_data.after_completion.url", "session.flow_data.after_completion.redirect.url",
		"session.flow_data.after_completion.hosted_confirmation.message",
		"session.flow_data.subscription_cancel.retention.coupon",
		"session.flow_data.subscription_cancel.retention.coupon_offer.code",
		"session.flow_data.subscription_update.items",
		"session.flow_data.subscription_update_confirm.coupon",
		"session.after_expiration.redirect", "session.after_expiration.customer_login.at",
	} {
		cases = append(cases, badRequest{path, string(request("r1", path, zebra)), InvalidField, "$." + path})
	}
	cases = append(cases,
		badRequest{"in items", `{"session":{"flow_data":{"subscription_update_confirm":{"items":[{"idd":"zebra"}]}}}}`, InvalidField,
			"$.session.flow_data.subscription_update_confirm.items[0].idd"},
		badRequest{"in discounts", `{"session":{"flow_data":{"subscription_update_confirm":{"discounts":[{},{"Coupon":"zebra"}]}}}}`, InvalidField,
			"$.session.flow_data.subscription_update_confirm.discounts[1].Coupon"},
		badRequest{"in deliver", `{"deliver":[{"channel":"email","Data":{}}]}`, InvalidField, "$.deliver[0].Data"},
	)
	checkBad(t, cases)
}

// Session.Check has tests of its own; these show that it is asked, and about each place.
func TestParseRequestChecksTheSession(t *testing.T) {
	t.Parallel()
	flow := func(flow string) string {
		return `{"id":"r1","source":"x","session":{"customer":"cus_1","flow_data":` + flow + `}}`
	}
	with := func(fields ...any) string { return string(request("r1", fields...)) }
	const f = "$.session.flow_data"
	checkBad(t, []badRequest{
		{"no customer", with("session.customer", nil), InvalidField, "$.session.customer"},
		{"empty customer", with("session.customer", ""), InvalidField, "$.session.customer"},
		{"customer's prefix", with("session.customer", zebra), InvalidField, "$.session.customer"},
		{"both customers", with("session.customer_account", "acct_1"), InvalidField, "$.session.customer_account"},
		{"configuration", with("session.configuration", zebra), InvalidField, "$.session.configuration"},
		{"locale", with("session.locale", zebra), InvalidField, "$.session.locale"},
		{"on_behalf_of", with("session.on_behalf_of", zebra), InvalidField, "$.session.on_behalf_of"},
		{"another host", with("session.return_url", "https://zebra.example.com/"), InvalidField, "$.session.return_url"},
		{"http", with("session.return_url", "http://app.example.com/zebra"), InvalidField, "$.session.return_url"},
		{"expand null", `{"session":{"customer":"cus_1","expand":[null]}}`, InvalidField, "$.session.expand[0]"},
		{"no flow type", flow(`{}`), InvalidField, f + ".type"},
		{"flow type", flow(`{"type":"zebra"}`), InvalidField, f + ".type"},
		{"cancel what", flow(`{"type":"subscription_cancel"}`), InvalidField, f + ".subscription_cancel"},
		{"cancel's subscription", flow(`{"type":"subscription_cancel","subscription_cancel":{"subscription":"zebra"}}`), InvalidField,
			f + ".subscription_cancel.subscription"},
		{"retention", flow(`{"type":"subscription_cancel","subscription_cancel":{"subscription":"sub_1","retention":{"type":"coupon_offer"}}}`), InvalidField,
			f + ".subscription_cancel.retention.coupon_offer"},
		{"update what", flow(`{"type":"subscription_update"}`), InvalidField, f + ".subscription_update"},
		{"confirm without items", flow(`{"type":"subscription_update_confirm","subscription_update_confirm":{"subscription":"sub_1"}}`), InvalidField,
			f + ".subscription_update_confirm.items"},
		{"two items", flow(`{"type":"subscription_update_confirm","subscription_update_confirm":{"subscription":"sub_1","items":[{"id":"si_1"},{"id":"si_2"}]}}`), InvalidField,
			f + ".subscription_update_confirm.items"},
		{"redirect to another host", flow(`{"type":"customer_update","after_completion":{"type":"redirect","redirect":{"return_url":"https://zebra.com"}}}`), InvalidField,
			f + ".after_completion.redirect.return_url"},
		{"message too long", flow(`{"type":"customer_update","after_completion":{"type":"hosted_confirmation","hosted_confirmation":{"custom_message":"` + strings.Repeat(zebra, 101) + `"}}}`), InvalidField,
			f + ".after_completion.hosted_confirmation.custom_message"},
		{"after_expiration", with("session.after_expiration.type", zebra), InvalidField, "$.session.after_expiration.type"},
	})
}

func TestParseRequestChecksDeliver(t *testing.T) {
	t.Parallel()
	with := func(list string) string {
		return `{"id":"r1","source":"x","session":{"customer":"cus_1"},"deliver":[` + list + `]}`
	}
	email, webhook := `{"channel":"email","to":"jo@example.com"}`, `{"channel":"webhook","url":"https://zebra.example.com/hook"}`
	checkBad(t, []badRequest{
		{"email", with(`{"channel":"email","to":"jo@example.com","template":"payment_failed","data":{"name":"Jo","n":[null,""]}}`), DeliveryUnavailable, "$.deliver[0]"},
		{"webhook", with(webhook), DeliveryUnavailable, "$.deliver[0]"},
		{"five", with(strings.Repeat(email+",", 4) + webhook), DeliveryUnavailable, "$.deliver[0]"},
		{"six", with(strings.Repeat(email+",", 5) + webhook), InvalidField, "$.deliver"},
		{"a bad one behind a good one", with(email + `,{"channel":"zebra"}`), InvalidField, "$.deliver[1].channel"},
		{"null", with("null"), InvalidField, "$.deliver[0].channel"},
		{"no channel", with(`{"to":"jo@example.com"}`), InvalidField, "$.deliver[0].channel"},
		{"no address", with(`{"channel":"email"}`), InvalidField, "$.deliver[0].to"},
		{"no address at all", with(`{"channel":"email","to":"zebra"}`), InvalidField, "$.deliver[0].to"},
		{"two addresses", with(`{"channel":"email","to":"zebra@example.com, zebra@example.org"}`), InvalidField, "$.deliver[0].to"},
		{"display name", with(`{"channel":"email","to":"Zebra <zebra@example.com>"}`), InvalidField, "$.deliver[0].to"},
		{"header injection", with(`{"channel":"email","to":"zebra@example.com\r\nBcc: zebra@example.org"}`), InvalidField, "$.deliver[0].to"},
		{"long address", with(`{"channel":"email","to":"` + strings.Repeat(zebra, 60) + `@example.com"}`), InvalidField, "$.deliver[0].to"},
		{"email with a url", with(`{"channel":"email","to":"zebra@example.com","url":"https://zebra"}`), InvalidField, "$.deliver[0].url"},
		{"template", with(`{"channel":"email","to":"zebra@example.com","template":"../zebra"}`), InvalidField, "$.deliver[0].template"},
		{"data", with(`{"channel":"email","to":"zebra@example.com","data":["zebra"]}`), InvalidField, "$.deliver[0].data"},
		{"no url", with(`{"channel":"webhook"}`), InvalidField, "$.deliver[0].url"},
		{"http", with(`{"channel":"webhook","url":"http://zebra.example.com"}`), InvalidField, "$.deliver[0].url"},
		{"user information", with(`{"channel":"webhook","url":"https://zebra:secret@example.com"}`), InvalidField, "$.deliver[0].url"},
		{"webhook with an address", with(`{"channel":"webhook","url":"https://example.com","to":"zebra@example.com"}`), InvalidField, "$.deliver[0]"},
	})
}

// Every optional field may be absent, on its own or as null; each flow and limit is taken as it is.
func TestParseRequestAccepts(t *testing.T) {
	t.Parallel()
	with := func(fields ...any) string { return string(request("r1", fields...)) }
	flow := func(flow string) string { return with("session.flow_data", rawJSON(flow)) }
	pairs := map[string]string{}
	for _, key := range numbered(strings.Repeat("ü", 38)+"%02d", 50) {
		pairs[key] = strings.Repeat("ü", 500)
	}
	schema := contract.Schema(t, "request.schema.json")
	for name, body := range map[string]string{
		"the smallest":      with(),
		"the contract's":    contractRequest,
		"nulls for absent":  `{"id":"r1","source":"x","campaign":null,"livemode":null,"max_sessions":null,"deliver":null,"metadata":null,"expires_in":null,"session":{"customer":"cus_1","locale":null,"flow_data":null}}`,
		"longest id":        with("id", strings.Repeat("ü", 200)),
		"id in any script":  with("id", "Rechnung № 5 / 請求書 – ☂ a b"),
		"longest source":    with("source", strings.Repeat("a", 38)+"_-"),
		"longest campaign":  with("campaign", strings.Repeat("A", 97)+"._-"),
		"account":           with("stripe_account", "acct_1032D82eZvKYlo2C"),
		"customer account":  with("session.customer", nil, "session.customer_account", "acct_1"),
		"every locale":      with("session.locale", "pt-BR"),
		"session fields":    with("session.configuration", "bpc_1", "session.on_behalf_of", "acct_1", "session.return_url", "https://app.example.com/billing?x=1"),
		"mode":              with("livemode", false),
		"one session":       with("max_sessions", 1),
		"most sessions":     with("max_sessions", 1000),
		"shortest life":     with("expires_in", "1us"),
		"longest life":      with("expires_in", "2160h"),
		"expires_at":        with("expires_at", "2026-11-20T13:00:01+01:00"),
		"expires_at latest": with("expires_at", testNow.Add(2160*time.Hour).Format(time.RFC3339)),
		"metadata at limit": with("metadata", pairs),
		"empty metadata":    with("metadata", map[string]string{}, "deliver", []any{}),
		"payment method":    flow(`{"type":"payment_method_update","after_completion":{"type":"portal_homepage"}}`),
		"customer update":   flow(`{"type":"customer_update","after_completion":{"type":"hosted_confirmation","hosted_confirmation":{"custom_message":"Danke"}}}`),
		"cancel":            flow(`{"type":"subscription_cancel","subscription_cancel":{"subscription":"sub_1","retention":{"type":"coupon_offer","coupon_offer":{"coupon":"STAY"}}}}`),
		"update":            flow(`{"type":"subscription_update","subscription_update":{"subscription":"sub_1"}}`),
		"update confirm":    flow(`{"type":"subscription_update_confirm","subscription_update_confirm":{"subscription":"sub_1","items":[{"id":"si_1","price":"price_1","quantity":0}],"discounts":[{"coupon":"A"},{"promotion_code":"promo_1"}]}}`),
		"after expiration":  with("session.after_expiration", rawJSON(`{"type":"customer_login","customer_login":{"expires_at":1800000000}}`)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkAgreement(t, schema, []byte(body))
			if _, err := ParseRequest([]byte(body), testRules(), testNow); err != nil {
				t.Error(err)
			}
		})
	}
	for _, locale := range portal.Locales {
		if _, err := ParseRequest([]byte(with("session.locale", locale)), testRules(), testNow); err != nil {
			t.Errorf("locale %s: %v", locale, err)
		}
	}
}

// The mode can be wrong only where the key's mode is known.
func TestParseRequestUnknownMode(t *testing.T) {
	t.Parallel()
	rules := testRules()
	rules.LivemodeKnown = false
	if _, err := ParseRequest(request("r1", "livemode", true), rules, testNow); err != nil {
		t.Error(err)
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		field, value string
		want         time.Duration
	}{
		{"campaign", "x", 336 * time.Hour},
		{"expires_in", "90m", 90 * time.Minute},
		{"expires_in", "1500ns", time.Microsecond},
		{"expires_at", "2026-11-20T15:00:00+02:00", time.Hour},
		{"expires_at", "2026-11-20T12:00:00.1234567Z", 123456 * time.Microsecond},
	} {
		req, err := ParseRequest(request("r1", c.field, c.value), testRules(), testNow)
		must(t, err)
		if got, err := req.Expiry(testRules(), testNow); err != nil || !got.Equal(testNow.Add(c.want)) {
			t.Errorf("%s %s: expires %v (%v), want %s from now", c.field, c.value, got, err, c.want)
		}
	}
}
