package jobs

import (
	"reflect"
	"strings"
	"testing"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

func TestParseSubscriptions(t *testing.T) {
	t.Parallel()
	webhooks, err := notify.NewWebhooks(notify.WebhookConfig{Secrets: []string{webhookSecret}})
	must(t, err)
	got, err := ParseSubscriptions(" session.created,link.issued=https://a.example/h?x=y,z\n*=https://b.example/ ", webhooks)
	want := []Subscription{{"https://a.example/h?x=y,z", []portal.Kind{portal.SessionCreated, portal.LinkIssued}}, {"https://b.example/", nil}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ParseSubscriptions("", webhooks); err != nil || len(got) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"https://zebra.example/", "*=http://zebra.example/", "click.started=https://zebra.example/", "=https://zebra.example/",
		"*=https://zebra.example/ link.issued=https://zebra.example/", "*=https://u:zebra@x.example/"} {
		if _, err := ParseSubscriptions(bad, webhooks); err == nil || strings.Contains(err.Error(), "zebra") || !strings.Contains(err.Error(), "entry ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
