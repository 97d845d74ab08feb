package jobs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
)

type rawJSON string

func (r rawJSON) MarshalJSON() ([]byte, error) { return []byte(r), nil }

// contractRequest has every top-level field but deliver, which a deployment may not serve.
const contractRequest = `{
  "id": "in_1PqR-attempt-2",
  "session": {
    "customer": "cus_9s6XKzkNRiz8i3",
    "configuration": "bpc_1MAhNDLkdIwHu7ixraBm864M",
    "locale": "de",
    "on_behalf_of": "acct_1Nv0FGQ9RKHgCVdK",
    "return_url": "https://app.example.com/billing",
    "flow_data": {"type": "payment_method_update",
                  "after_completion": {"type": "redirect", "redirect": {"return_url": "https://app.example.com/thanks"}}}
  },
  "stripe_account": "acct_1032D82eZvKYlo2C",
  "livemode": false,
  "source": "dunning",
  "campaign": "2026-11-card-expiry",
  "expires_in": "336h",
  "max_sessions": 20,
  "metadata": {"invoice": "in_1PqR", "attempt": "2"}
}`

func hashOf(t testing.TB, body string) []byte {
	t.Helper()
	var req Request
	must(t, jsonv2.Unmarshal([]byte(body), &req, jsonv2.RejectUnknownMembers(true)))
	req.dropNulls()
	spelt, err := req.spell()
	must(t, err)
	return spelt.hash
}

func TestHashIsOfTheContentNotItsSpelling(t *testing.T) {
	t.Parallel()
	var fields map[string]any
	must(t, json.Unmarshal([]byte(contractRequest), &fields))
	sorted, err := json.Marshal(fields) // another order, no white space
	must(t, err)
	for name, pair := range map[string][2]string{
		"order and white space": {contractRequest, string(sorted)},
		"escapes":               {contractRequest, strings.NewReplacer("dunning", `d\u0075nning`, "https:", `https:`, "/billing", `\/billing`).Replace(contractRequest)},
		"null and absent":       {contractRequest, strings.Replace(contractRequest, "{", `{"deliver":null,"expires_at":null,`, 1)},
		"empty and absent":      {`{"id":"x"}`, `{"id":"x","metadata":{},"deliver":[]}`},
		"null data":             {`{"deliver":[{"to":"a@b"}]}`, `{"deliver":[{"to":"a@b","data":null}]}`},
		"numbers of data":       {`{"deliver":[{"data":{"a":100,"b":0.5}}]}`, `{"deliver":[{"data":{"b":5e-1, "a":1.0E2}}]}`},
	} {
		if pair[0] == pair[1] {
			t.Fatalf("%s: the same spelling", name)
		}
		if !bytes.Equal(hashOf(t, pair[0]), hashOf(t, pair[1])) {
			t.Errorf("%s: another hash", name)
		}
	}
}

func TestHashDiffersWithEachField(t *testing.T) {
	t.Parallel()
	seen := map[string]string{string(hashOf(t, contractRequest)): "nothing"}
	for _, change := range [][2]string{
		{"in_1PqR-attempt-2", "in_1PqR-attempt-3"},
		{"cus_9s6XKzkNRiz8i3", "cus_9s6XKzkNRiz8i4"},
		{"bpc_1MAhNDLkdIwHu7ixraBm864M", "bpc_1"},
		{`"de"`, `"fr"`},
		{"acct_1Nv0FGQ9RKHgCVdK", "acct_1"},
		{"/billing", "/Billing"},
		{"payment_method_update", "customer_update"},
		{"/thanks", "/thanks/"},
		{"acct_1032D82eZvKYlo2C", "acct_1"},
		{"false", "true"},
		{`"livemode": false,`, ""},
		{"dunning", "support"},
		{"2026-11-card-expiry", "2026-12"},
		{"336h", "337h"},
		{`"expires_in": "336h"`, `"expires_at": "2026-12-24T18:00:00Z"`},
		{"20,", "21,"},
		{`"max_sessions": 20,`, ""},
		{`"attempt": "2"`, `"attempt": "3"`},
		{`"attempt": "2"`, `"Attempt": "2"`},
		{`"metadata"`, `"deliver": [{"channel": "email"}], "metadata"`},
		{`"metadata"`, `"deliver": [{"channel": "email", "data": {"a": 1}}], "metadata"`},
		{`"metadata"`, `"deliver": [{"channel": "email", "data": {"a": 2}}], "metadata"`},
	} {
		body := strings.Replace(contractRequest, change[0], change[1], 1)
		hash := string(hashOf(t, body))
		if other, ok := seen[hash]; ok {
			t.Errorf("changing %s to %s leaves the hash of changing %s", change[0], change[1], other)
		}
		seen[hash] = change[0] + " to " + change[1]
	}
}

// The hash is stored with the link for ever: when this fails, every repeat of a request from
// before the change becomes an id_conflict.
func TestHashIsStable(t *testing.T) {
	t.Parallel()
	const contractHash = "c4740689d3d5ee43d2f006326ad67e4844946218718e89bfa6a1aa4d1407a151"
	if got := hex.EncodeToString(hashOf(t, contractRequest)); got != contractHash {
		t.Errorf("hash %s, want %s", got, contractHash)
	}
}

// wholeHash is the hash by its definition.
func wholeHash(t testing.TB, r *Request) []byte {
	t.Helper()
	spelt := *r
	spelt.Deliver = slices.Clone(r.Deliver)
	for i := range spelt.Deliver {
		if d := &spelt.Deliver[i]; len(d.Data) > 0 {
			d.Data = d.Data.Clone()
			must(t, d.Data.Canonicalize())
		}
	}
	body, err := jsonv2.Marshal(&spelt, jsonv2.Deterministic(true))
	must(t, err)
	sum := sha256.Sum256(body)
	return sum[:]
}

func FuzzParseRequest(f *testing.F) {
	for _, seed := range []string{
		contractRequest, string(request("r1")), "", "{}", "null", "[]", `{"id":"\ud800"}`, "{\"id\":\"\xff\"}", `{"id":"a\u0000"}`,
		`{"id":"r","source":"x","session":{"customer":"cus_1"},"deliver":[{"channel":"email","to":"a@b.c","data":{"a":1e400}}]}`,
		`{"id":"r","source":"x","session":{"customer":"cus_1","expand":[null]},"expires_at":"2026-11-20T12:00:00.000000001Z"}`,
		`{"id":"r","source":"x","session":{"customer":"cus_1"},"expires_in":"9223372036854775807ns","metadata":{"🦓":"🦓"}}`,
		`{"id":"<&\u2028>","source":"x","session":{"customer":"cus_1"},"metadata":{"<":"&\u2029","a\"":"\\","é":"\u0001"},"max_sessions":7,"livemode":false}`,
		`{"session":{"flow_data":{"type":"subscription_update_confirm","subscription_update_confirm":{"items":[{"quantity":1e99}]}}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := ParseRequest(body, testRules(), testNow)
		if req.ID != "" && !validID(req.ID) {
			t.Errorf("an invalid id got out: %q", req.ID)
		}
		if err != nil {
			checkReason(t, err.(*Rejection))
			return
		}
		again, err := json.Marshal(req)
		must(t, err)
		repeat, err := ParseRequest(again, testRules(), testNow)
		if err != nil {
			t.Fatalf("accepted once, then not: %v\n%s", err, again)
		}
		first, err := req.spell()
		must(t, err)
		second, err := repeat.spell()
		must(t, err)
		if !bytes.Equal(first.hash, second.hash) {
			t.Errorf("another hash for\n%s", again)
		}
		if want := wholeHash(t, req); !bytes.Equal(first.hash, want) {
			t.Errorf("the hash is not of the whole request, put together, of\n%s", again)
		}
	})
}

// checkReason holds a rejection against what logs, headers and the audit can take: short and
// printable whatever came in.
func checkReason(t *testing.T, r *Rejection) {
	t.Helper()
	unprintable := strings.IndexFunc(r.Reason, func(c rune) bool { return !unicode.IsPrint(c) })
	if r.Code == "" || len(r.Reason) > 1000 || unprintable >= 0 || !utf8.ValidString(r.Reason) {
		t.Errorf("rejection %q: %d bytes %q", r.Code, len(r.Reason), r.Reason)
	}
}
