package jobs

import (
	"testing"
	"time"

	"latchkey/internal/portal"
)

// What a request costs before Postgres sees it: its checks, its hash and its columns.
func BenchmarkParse(b *testing.B) {
	keys, err := portal.ParseKeys(portal.FormatKey(1, [32]byte{1}))
	must(b, err)
	s := &Issuer{Keys: keys, Rules: Rules{TTL: time.Hour, TTLMax: time.Hour}}
	body := []byte(`{"id":"2026-11:cus_9s6XKzkNRiz8i3","session":{"customer":"cus_9s6XKzkNRiz8i3","flow_data":{"type":"payment_method_update"}},` +
		`"source":"campaign","campaign":"2026-11","metadata":{"invoice":"in_1PqR"}}`)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		item := &Item{Body: body, Source: "campaign", Published: now}
		if s.parse(item, now); item.Rejection != nil {
			b.Fatal(item.Rejection)
		}
	}
}
