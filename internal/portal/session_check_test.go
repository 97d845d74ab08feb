package portal

import (
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

var testRules = SessionRules{ReturnURLHosts: []string{"app.example.com", "pay.example.com:8443", "localhost", "127.0.0.1:3000", "[::1]:3000"}}

// checkCase is a session and the path of the breach that Check finds first; none means accepted.
type checkCase struct{ session, path string }

func (c checkCase) run(t *testing.T, rules SessionRules) {
	t.Helper()
	p, err := decodeSession([]byte(c.session))
	if err != nil {
		t.Fatalf("%s: %v", c.session, err)
	}
	err = p.Check(rules)
	checkAgreement(t, c.session, err)
	if c.path == "" {
		if err != nil {
			t.Errorf("%.200s: %v, want it accepted", c.session, err)
		}
		return
	}
	var fe *FieldError
	if !errors.As(err, &fe) || fe.Path != c.path {
		t.Errorf("%.200s: %v, want a breach at %s", c.session, err, c.path)
		return
	}
	if v := valueAt(t, c.session, c.path); len(v) > 8 && strings.Contains(err.Error(), v) {
		t.Errorf("the error holds the value: %v", err)
	}
	if !utf8.ValidString(err.Error()) || len(err.Error()) > 300 {
		t.Errorf("no message for a person: %q", err)
	}
}

// valueAt is the string that stands at a path of ours, or "".
func valueAt(t *testing.T, session, path string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(session), &v); err != nil {
		t.Fatal(err)
	}
	path = strings.NewReplacer("$.session.", "", "[0]", ".0", "[1]", ".1").Replace(path)
	for name := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[name]
		case []any:
			v = at[int(name[0]-'0')]
		}
	}
	s, _ := v.(string)
	return s
}

func TestCheckTopLevel(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	for _, c := range []checkCase{
		{`{"customer":"cus_9s6XKzkNRiz8i3"}`, ``},
		{`{"customer_account":"acct_9s6XKzkNRiz8i3"}`, ``},
		{`{}`, `$.session.customer`},
		{`{"locale":"de"}`, `$.session.customer`},
		{`{"customer":"cus_1","customer_account":"acct_1"}`, `$.session.customer_account`},
		{`{"customer":"acct_secret"}`, `$.session.customer`},
		{`{"customer":"cus_"}`, `$.session.customer`},
		{`{"customer":"sk_live_secret"}`, `$.session.customer`},
		{`{"customer":"CUS_secret"}`, `$.session.customer`},
		{`{"customer":" cus_secret"}`, `$.session.customer`},
		{`{"customer":"cus_sec ret"}`, `$.session.customer`},
		{`{"customer":"cus_sec/ret"}`, `$.session.customer`},
		{`{"customer":"cus_secr\u00e9t"}`, `$.session.customer`},
		{`{"customer":"cus_secret\n"}`, `$.session.customer`},
		{`{"customer":"cus_` + long + `"}`, `$.session.customer`},
		{`{"customer":"cus_` + long[:251] + `"}`, ``},
		{`{"customer":"cus_` + long[:252] + `"}`, `$.session.customer`},
		{`{"customer_account":"cus_secret"}`, `$.session.customer_account`},
		{`{"customer":"cus_1","configuration":"bpc_1MAhNDLkdIwHu7ixraBm864M"}`, ``},
		{`{"customer":"cus_1","configuration":"cfg_secret"}`, `$.session.configuration`},
		{`{"customer":"cus_1","on_behalf_of":"acct_1Nv0FGQ9RKHgCVdK"}`, ``},
		{`{"customer":"cus_1","on_behalf_of":"account"}`, `$.session.on_behalf_of`},
		{`{"customer":"cus_1","expand":["configuration"]}`, ``},
		{`{"customer":"cus_1","expand":["` + long[:201] + `"]}`, `$.session.expand[0]`},
		{`{"customer":"cus_1","expand":["configuration","` + long[:201] + `"]}`, `$.session.expand[1]`},
		{`{"customer":"cus_1","expand":[` + strings.Repeat(`"a",`, 20) + `"a"]}`, `$.session.expand`},
	} {
		c.run(t, testRules)
	}
}

func TestCheckLocales(t *testing.T) {
	t.Parallel()
	stripes := strings.Fields(`auto bg cs da de el en en-AU en-CA en-GB en-IE en-IN en-NZ en-SG es es-419 et fi fil fr fr-CA
		hr hu id it ja ko lt lv ms mt nb nl pl pt pt-BR ro ru sk sl sv th tr vi zh zh-HK zh-TW`)
	if len(stripes) != 47 || !slices.Equal(Locales, stripes) {
		t.Errorf("Locales = %v, want auto and Stripe's 46", Locales)
	}
	for _, l := range stripes {
		checkCase{`{"customer":"cus_1","locale":"` + l + `"}`, ``}.run(t, testRules)
	}
	for _, l := range []string{"DE-de", "DE", "de-DE", "de_DE", "en-US", "klingon", "auto ", " de", "zh-hk", "xx", "C"} {
		checkCase{`{"customer":"cus_1","locale":"` + l + `"}`, `$.session.locale`}.run(t, testRules)
	}
}

func flow(data string) string { return `{"customer":"cus_1","flow_data":` + data + `}` }

func TestCheckFlows(t *testing.T) {
	t.Parallel()
	const at = `$.session.flow_data`
	for _, c := range []checkCase{
		{flow(`{"type":"payment_method_update"}`), ``},
		{flow(`{"type":"customer_update"}`), ``},
		{flow(`{}`), at + `.type`},
		{flow(`{"type":"pay_by_method"}`), at + `.type`},
		{flow(`{"type":"Payment_Method_Update"}`), at + `.type`},
		{flow(`{"type":"payment_method_update","subscription_cancel":{"subscription":"sub_1"}}`), at + `.subscription_cancel`},
		{flow(`{"type":"customer_update","subscription_update":{"subscription":"sub_1"}}`), at + `.subscription_update`},

		{flow(`{"type":"subscription_cancel","subscription_cancel":{"subscription":"sub_1"}}`), ``},
		{flow(`{"type":"subscription_cancel"}`), at + `.subscription_cancel`},
		{flow(`{"type":"subscription_cancel","subscription_cancel":{}}`), at + `.subscription_cancel.subscription`},
		{flow(`{"type":"subscription_cancel","subscription_cancel":{"subscription":"cus_secret"}}`), at + `.subscription_cancel.subscription`},
		{flow(`{"type":"subscription_cancel","subscription_update":{"subscription":"sub_1"}}`), at + `.subscription_update`},

		{flow(`{"type":"subscription_update","subscription_update":{"subscription":"sub_1"}}`), ``},
		{flow(`{"type":"subscription_update"}`), at + `.subscription_update`},
		{flow(`{"type":"subscription_update","subscription_update":{}}`), at + `.subscription_update.subscription`},
		{flow(`{"type":"subscription_update","subscription_update":{"subscription":"si_secret"}}`), at + `.subscription_update.subscription`},
		{flow(`{"type":"subscription_update","subscription_update_confirm":{}}`), at + `.subscription_update_confirm`},
	} {
		c.run(t, testRules)
	}
}

func TestCheckRetention(t *testing.T) {
	t.Parallel()
	const at = `$.session.flow_data.subscription_cancel.retention`
	with := func(retention string) string {
		return flow(`{"type":"subscription_cancel","subscription_cancel":{"subscription":"sub_1","retention":` + retention + `}}`)
	}
	for _, c := range []checkCase{
		{with(`{"type":"coupon_offer","coupon_offer":{"coupon":"STAY"}}`), ``},
		{with(`{"type":"coupon_offer","coupon_offer":{"coupon":"25% off, for ever"}}`), ``}, // its owner chose the id
		{with(`{}`), at + `.type`},
		{with(`{"type":"discount"}`), at + `.type`},
		{with(`{"type":"coupon_offer"}`), at + `.coupon_offer`},
		{with(`{"type":"coupon_offer","coupon_offer":{}}`), at + `.coupon_offer.coupon`},
		{with(`{"type":"coupon_offer","coupon_offer":{"coupon":"` + strings.Repeat("c", 256) + `"}}`), at + `.coupon_offer.coupon`},
	} {
		c.run(t, testRules)
	}
}

func TestCheckUpdateConfirm(t *testing.T) {
	t.Parallel()
	const at = `$.session.flow_data.subscription_update_confirm`
	with := func(rest string) string {
		return flow(`{"type":"subscription_update_confirm","subscription_update_confirm":{` + rest + `}}`)
	}
	const ok = `"subscription":"sub_1","items":[{"id":"si_1"}]`
	for _, c := range []checkCase{
		{with(ok), ``},
		{with(`"subscription":"sub_1","items":[{"id":"si_1","price":"price_1","quantity":0}],"discounts":[{"coupon":"A"},{"promotion_code":"promo_1"}]`), ``},
		{with(`"subscription":"sub_1","items":[{"id":"si_1","price":"Gold plan, 2014.1"}]`), ``},
		{flow(`{"type":"subscription_update_confirm"}`), at},
		{with(`"items":[{"id":"si_1"}]`), at + `.subscription`},
		{with(`"subscription":"secret","items":[{"id":"si_1"}]`), at + `.subscription`},
		{with(`"subscription":"sub_1"`), at + `.items`},
		{with(`"subscription":"sub_1","items":[]`), at + `.items`},
		{with(`"subscription":"sub_1","items":[{"id":"si_1"},{"id":"si_2"}]`), at + `.items`},
		{with(`"subscription":"sub_1","items":[{}]`), at + `.items[0].id`},
		{with(`"subscription":"sub_1","items":[{"id":"sub_secret"}]`), at + `.items[0].id`},
		{with(`"subscription":"sub_1","items":[{"id":"si_1","price":"` + strings.Repeat("p", 256) + `"}]`), at + `.items[0].price`},
		{with(`"subscription":"sub_1","items":[{"id":"si_1","quantity":-1}]`), at + `.items[0].quantity`},
		{with(ok + `,"discounts":[{}]`), at + `.discounts[0]`},
		{with(ok + `,"discounts":[{"coupon":"A"},{"coupon":"A","promotion_code":"promo_1"}]`), at + `.discounts[1]`},
		{with(ok + `,"discounts":[{"promotion_code":"SUMMER"}]`), at + `.discounts[0].promotion_code`},
		{with(ok + `,"discounts":[{"coupon":"` + strings.Repeat("c", 256) + `"}]`), at + `.discounts[0].coupon`},
		{with(ok + `,"discounts":[` + strings.Repeat(`{"coupon":"A"},`, 20) + `{"coupon":"A"}]`), at + `.discounts`},
	} {
		c.run(t, testRules)
	}
}

func TestCheckAfterCompletion(t *testing.T) {
	t.Parallel()
	const at = `$.session.flow_data.after_completion`
	with := func(a string) string { return flow(`{"type":"payment_method_update","after_completion":` + a + `}`) }
	message := func(n int) string {
		return `{"type":"hosted_confirmation","hosted_confirmation":{"custom_message":"` + strings.Repeat("ü", n) + `"}}`
	}
	for _, c := range []checkCase{
		{with(`{"type":"portal_homepage"}`), ``},
		{with(`{"type":"hosted_confirmation"}`), ``},
		{with(`{"type":"hosted_confirmation","hosted_confirmation":{}}`), ``},
		{with(message(500)), ``}, // characters, not bytes
		{with(message(501)), at + `.hosted_confirmation.custom_message`},
		{with(`{"type":"redirect","redirect":{"return_url":"https://app.example.com/thanks"}}`), ``},
		{with(`{}`), at + `.type`},
		{with(`{"type":"close_window"}`), at + `.type`},
		{with(`{"type":"redirect"}`), at + `.redirect`},
		{with(`{"type":"redirect","redirect":{}}`), at + `.redirect.return_url`},
		{with(`{"type":"redirect","redirect":{"return_url":"https://evil.example/secret"}}`), at + `.redirect.return_url`},
		{with(`{"type":"redirect","redirect":{"return_url":"javascript:secret"}}`), at + `.redirect.return_url`},
		{with(`{"type":"portal_homepage","redirect":{"return_url":"https://app.example.com/"}}`), at + `.redirect`},
		{with(`{"type":"redirect","hosted_confirmation":{},"redirect":{"return_url":"https://app.example.com/"}}`), at + `.hosted_confirmation`},
	} {
		c.run(t, testRules)
	}
}

func TestCheckAfterExpiration(t *testing.T) {
	t.Parallel()
	const at = `$.session.after_expiration`
	with := func(a string) string { return `{"customer":"cus_1","after_expiration":` + a + `}` }
	for _, c := range []checkCase{
		{with(`{"type":"customer_login"}`), ``},
		{with(`{"type":"customer_login","customer_login":{}}`), ``},
		{with(`{"type":"customer_login","customer_login":{"expires_at":1795000000}}`), ``},
		{with(`{}`), at + `.type`},
		{with(`{"type":"redirect"}`), at + `.type`},
		{with(`{"type":"customer_login","customer_login":{"expires_at":0}}`), at + `.customer_login.expires_at`},
		{with(`{"type":"customer_login","customer_login":{"expires_at":-5}}`), at + `.customer_login.expires_at`},
	} {
		c.run(t, testRules)
	}
	for version, path := range map[string]string{
		"": "", "2026-10-28.endive": "", "2027-01-15.fig": "", "2026-11-25.endive": "",
		"2026-08-26.dahlia": at, "2025-03-31.basil": at, "2020-08-27": at,
	} {
		rules := testRules
		rules.APIVersion = version
		checkCase{with(`{"type":"customer_login"}`), path}.run(t, rules)
	}
}

// returnURLs are accepted under testRules, or not.
var returnURLs = map[string]bool{
	"https://app.example.com":                              true,
	"https://app.example.com/billing?a=1&b=%2F#top":        true,
	"https://APP.Example.COM/":                             true,
	"HTTPS://app.example.com/":                             true,
	"https://app.example.com:8443/":                        true, // a host without a port stands for all of its ports
	"https://app.example.com?@evil.com/":                   true, // the query is not the host
	"https://app.example.com#@evil.com/":                   true,
	"https://pay.example.com:8443/":                        true,
	"http://localhost:4000/":                               true,
	"http://127.0.0.1:3000/":                               true,
	"http://[::1]:3000/":                                   true,
	"https://app.example.com/" + strings.Repeat("x", 4976): true,

	"https://app.example.com/" + strings.Repeat("x", 4977): false,
	"https://pay.example.com/":                             false, // only its port 8443
	"https://pay.example.com:443/":                         false,
	"http://127.0.0.1:3001/":                               false,
	"http://app.example.com/":                              false,
	"http://127.0.0.2:3000/":                               false,
	"https://example.com/":                                 false,
	"https://evil.com/":                                    false,
	"https://evil.com/app.example.com":                     false,
	"https://evil.com?https://app.example.com":             false,
	"https://evil.com#app.example.com":                     false,
	"https://app.example.com.evil.com/":                    false,
	"https://app.example.com.":                             false,
	"https://xapp.example.com/":                            false,
	"https://sub.app.example.com/":                         false,
	"https://app.example.com@evil.com/":                    false,
	"https://evil.com@app.example.com/":                    false,
	"https://user:secret@app.example.com/":                 false,
	"https://@app.example.com/":                            false,
	"https://app.example.com:443@evil.com/":                false,
	`https://app.example.com\@evil.com/`:                   false,
	`https://evil.com\.app.example.com/`:                   false,
	`https://app.example.com/\evil.com/`:                   false,
	`https:\\app.example.com\`:                             false,
	"https://app.example.com\t.evil.com/":                  false,
	"https://app.exam\tple.com/":                           false,
	"https://app.example.com/a b":                          false,
	"https://app.example.com/\nLocation: x":                false,
	"\thttps://app.example.com/":                           false,
	"https://app.example.com/ ":                            false,
	"https://app.example.com/\x7f":                         false,
	"https://app.example.com／.evil.com/":                   false,
	"https://аpp.example.com/":                             false, // a Cyrillic а
	"https://app.example.com%2eevil.com/":                  false,
	"https://app.example.com%00.evil.com/":                 false,
	"https://[app.example.com]/":                           false,
	"https://app.example.com:port/":                        false,
	"https:///app.example.com/":                            false,
	"https:app.example.com/":                               false,
	"https:/app.example.com/":                              false,
	"//app.example.com/":                                   false,
	"/billing":                                             false,
	"app.example.com":                                      false,
	"ftp://app.example.com/":                               false,
	"javascript:alert(1)":                                  false,
	"javascript://app.example.com/%0aalert(1)":             false,
	"data:text/html,x":                                     false,
	"https://":                                             false,
	"https://:443/":                                        false,
	"%68ttps://app.example.com/":                           false,
}

func TestCheckReturnURL(t *testing.T) {
	t.Parallel()
	for raw, ok := range returnURLs {
		js, err := json.Marshal(map[string]string{"customer": "cus_1", "return_url": raw})
		if err != nil {
			t.Fatal(err)
		}
		path := "$.session.return_url"
		if ok {
			path = ""
		}
		checkCase{string(js), path}.run(t, testRules)
	}
}

func TestIsLoopback(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST": true, "127.0.0.1": true, "127.8.9.10": true, "::1": true, "[::1]": true,
		"": false, "localhost.": false, "localhost.evil.com": false, "127.0.0.1.evil.com": false, "127.1": false,
		"0.0.0.0": false, "10.0.0.1": false, "2130706433": false, "::": false, "fe80::1": false,
	} {
		if got := IsLoopback(host); got != want {
			t.Errorf("IsLoopback(%q) = %t", host, got)
		}
	}
}

func FuzzParseWebURL(f *testing.F) {
	for _, s := range []string{"https://app.example.com/a?b#c", "http://localhost:3000", "http://[::1%25lo]:1/", `https://a\@b`, "https://u:p@h",
		"https://a／b", "https:a", "//a", "https://a:b", "javascript:alert(1)", "https://%41", "https://a b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseWebURL(s)
		if err != nil {
			if len(s) > 70 && strings.Contains(err.Error(), s) {
				t.Fatalf("the error holds its input: %v", err)
			}
			return
		}
		if u.Scheme != "https" && (u.Scheme != "http" || !IsLoopback(u.Hostname())) || u.Hostname() == "" || u.User != nil || u.Opaque != "" {
			t.Fatalf("%q is accepted as %#v", s, u)
		}
		// A browser takes for the host what stands between // and the next of /?#; so must we.
		_, rest, found := strings.Cut(s, "//")
		if end := strings.IndexAny(rest, "/?#"); end >= 0 {
			rest = rest[:end]
		}
		if host, err := url.PathUnescape(rest); !found || err != nil || strings.ContainsAny(rest, "@\\ \t\r\n") || host != u.Host && rest != u.Host {
			t.Fatalf("%q: host %q, want %q", s, u.Host, rest)
		}
	})
}
