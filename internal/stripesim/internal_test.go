package stripesim

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Keys older than 24 hours leave the memory, not only the answers.
func TestKeysArePurged(t *testing.T) {
	t.Parallel()
	var k idempotency
	k.init()
	start := time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)
	for i := range 1000 {
		e, _, err := k.begin(caller{}, fmt.Sprint(i), url.Values{}, start)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			k.end(e, &answer{})
		} else {
			k.end(e, nil)
		}
	}
	if n := len(k.entries); n != 500 {
		t.Fatalf("%d keys, want the 500 with an answer", n)
	}
	// A key freed and claimed again outlives the purge of its first claim.
	young, _, _ := k.begin(caller{}, "1", url.Values{}, start.Add(time.Hour))
	k.end(young, &answer{})
	if _, _, err := k.begin(caller{}, "new", url.Values{}, start.Add(keyLife)); err != nil {
		t.Fatal(err)
	}
	if len(k.entries) != 2 || len(k.queue) != 2 {
		t.Fatalf("%d keys, %d in line, want 2: the young one and the new one", len(k.entries), len(k.queue))
	}
}

func TestSegments(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{
		"a": "a", "a[b][0][c]": "a|b|0|c", "a[]": "a|", "a[b": "a[b", "a]b": "a]b", "[a]": "[a]", "a[b]c": "a[b]c", "a[b[c]]": "a[b[c]]",
	} {
		if got := strings.Join(segments(key), "|"); got != want {
			t.Errorf("%q: %q, want %q", key, got, want)
		}
	}
	if got := segments("a" + strings.Repeat("[b]", 1000)); len(got) != 1 {
		t.Errorf("%d levels", len(got))
	}
}

// Whatever is sent, the answer is a session or a 400, never a crash.
func FuzzCreate(f *testing.F) {
	f.Add("customer=cus_1&flow_data[type]=subscription_cancel&flow_data[subscription_cancel][subscription]=sub_1")
	f.Add("customer=cus_1&flow_data[subscription_update_confirm][items][]=&expand[][]=a&expand[x]=1")
	f.Add("customer=cus_1&after_expiration[type]=customer_login&locale=&customer[a]=1")
	sim := New(Config{})
	f.Fuzz(func(t *testing.T, body string) {
		if strings.Contains(body, "customer") && magicOf(customerOf(mustForm(body))) != nil {
			return // a scenario of its own
		}
		r := httptest.NewRequest(http.MethodPost, "/v1/billing_portal/sessions", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Authorization", "Bearer "+TestKey)
		r.Header.Set("Stripe-Version", "2026-10-28.endive")
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, r)
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
	})
}

func mustForm(body string) url.Values {
	v, _ := url.ParseQuery(body)
	return v
}
