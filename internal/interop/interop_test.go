package interop

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"latchkey/internal/contract"
)

// What the official validators find in docs/ is nothing, and what asyncapi.yaml lists is what there is.
func TestDocumentsAreValid(t *testing.T) {
	t.Parallel()
	var found struct {
		Schemas  []string
		Channels map[string]struct {
			Parameters map[string][]string
			Messages   []string
			Operations []string
		}
	}
	if err := json.Unmarshal([]byte(Node(t, "validate.mjs", nil)), &found); err != nil {
		t.Fatal(err)
	}
	if len(found.Schemas) != 3 {
		t.Errorf("schemas %v", found.Schemas)
	}
	codes := contract.Enum(t, contract.Schema(t, "service.schema.json#/$defs/rejection_code"))
	var kinds []string
	for _, typ := range contract.Enum(t, contract.Schema(t, "event.schema.json"), "type") {
		kinds = append(kinds, strings.TrimPrefix(typ, "latchkey."))
	}
	for address, want := range map[string]struct {
		parameter        string
		values, messages []string
		operation        string
	}{
		"portal.requests.{source}": {"source", []string{}, []string{"request"}, "receive"},
		"portal.events.{kind}":     {"kind", kinds, kinds, "send"},
		"portal.dead.{code}":       {"code", codes, []string{"deadLetter"}, "send"},
		"portal.links.create":      {"", nil, []string{"request"}, "receive and reply"},
		"portal.links.get":         {"", nil, []string{"get"}, "receive and reply"},
		"portal.links.revoke":      {"", nil, []string{"revoke"}, "receive and reply"},
		"portal.campaigns.list":    {"", nil, []string{"listCampaigns"}, "receive and reply"},
		"portal.campaigns.get":     {"", nil, []string{"getCampaign"}, "receive and reply"},
	} {
		got := found.Channels[address]
		values, messages := got.Parameters[want.parameter], got.Messages
		slices.Sort(values)
		slices.Sort(messages)
		if !slices.Equal(values, want.values) || !slices.Equal(messages, want.messages) || !slices.Equal(got.Operations, []string{want.operation}) {
			t.Errorf("%s: asyncapi.yaml has %+v, want %+v", address, got, want)
		}
	}
}

// What the official Go library signs, the official JavaScript library verifies, by any of the secrets.
func TestVerifyWebhook(t *testing.T) {
	t.Parallel()
	const newer, older, other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	const body = `{"specversion":"1.0","type":"latchkey.link.issued","data":{"name":"Jö"}}`
	signer, err := standardwebhooks.NewWebhook(older)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	signature, err := signer.Sign("msg_1", at, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	headers := map[string]string{"webhook-id": "msg_1", "webhook-timestamp": strconv.FormatInt(at.Unix(), 10), "webhook-signature": signature}
	verify := func(body string, secrets ...string) (string, error) {
		stdin, err := json.Marshal(map[string]any{"secrets": secrets, "headers": headers, "body": body})
		if err != nil {
			t.Fatal(err)
		}
		return Run(t, "verify-webhook.mjs", stdin)
	}
	if out, err := verify(body, newer, older); err != nil || strings.TrimSpace(out) != body {
		t.Errorf("verified %q (%v), want the body", out, err)
	}
	if _, err := verify(body, other); err == nil {
		t.Error("another secret verifies")
	}
	if _, err := verify(strings.Replace(body, "issued", "opened", 1), older); err == nil || !strings.Contains(err.Error(), "No matching signature found") {
		t.Errorf("a body that was changed: %v", err)
	}
}
