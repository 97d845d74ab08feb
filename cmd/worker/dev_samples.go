package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"latchkey/internal/jobs"
	"latchkey/internal/mailcatcher"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

// sample is one request that dev puts through, and the link that came of it.
type sample struct {
	RequestID string    `json:"request_id"`
	Source    string    `json:"source"`
	What      string    `json:"what"`
	LinkID    string    `json:"link_id"`
	LinkURL   string    `json:"link_url"`
	ExpiresAt time.Time `json:"expires_at"`
}

// sendSamples sends a dunning email's request over the stream, a support macro's over the micro
// service, and a campaign of five over the stream. Ids hold the time, so each start sends its own and
// has new links and mails. A mail server of the user's own gets none: nobody has the samples' addresses.
func sendSamples(ctx context.Context, cfg *Config, mails bool) ([]sample, error) {
	nc, err := cfg.NATS.Connect("latchkey dev samples")
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	client, err := producer.New(nc)
	if err != nil {
		return nil, err
	}
	var samples []sample
	for _, s := range sampleRequests(time.Now().UTC().Format("20060102-150405")) {
		send := client.SendAndWait
		if s.req.Source == "support" {
			send = client.Create
		}
		if !mails {
			s.req.Deliver = nil
		}
		message, err := producer.NewMessage(s.req)
		if err != nil {
			return nil, err
		}
		link, err := send(ctx, message)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.req.ID, err)
		}
		samples = append(samples, sample{RequestID: s.req.ID, Source: s.req.Source, What: s.what,
			LinkID: link.LinkID.String(), LinkURL: link.URL, ExpiresAt: link.ExpiresAt})
	}
	return samples, nil
}

type sampleRequest struct {
	what string
	req  *jobs.Request
}

func sampleRequests(start string) []sampleRequest {
	three := 3
	requests := []sampleRequest{
		{"dunning email: update the card after a failed payment", &jobs.Request{
			ID: "dev-dunning-" + start, Source: "dunning",
			Session: &portal.SessionParams{Customer: "cus_Sample0Dunning",
				FlowData: &portal.FlowData{Type: "payment_method_update", AfterCompletion: &portal.AfterCompletion{Type: "portal_homepage"}}},
			Deliver:  mailTo("jo@customer.example", "payment_failed", `{"name": "Jo", "amount": "€ 49.00"}`),
			Metadata: map[string]string{"invoice": "in_Sample0001"},
		}},
		{"support macro: the portal's home page, three visits at most", &jobs.Request{
			ID: "dev-support-" + start, Source: "support", MaxSessions: &three, ExpiresIn: "48h",
			Session: &portal.SessionParams{Customer: "cus_Sample0Support"},
			Deliver: mailTo("sam@customer.example", "support_link", `{"name": "Sam"}`),
		}},
	}
	for i, locale := range []string{"de", "ja", "pt-BR", "fr", "auto"} {
		requests = append(requests, sampleRequest{"campaign: card expiry, locale " + locale, &jobs.Request{
			ID: fmt.Sprintf("dev-campaign-%s-%d", start, i+1), Source: "campaign", Campaign: "dev-card-expiry",
			Session: &portal.SessionParams{Customer: fmt.Sprintf("cus_Sample0Campaign%d", i+1), Locale: locale,
				FlowData: &portal.FlowData{Type: "payment_method_update"}},
			Deliver: mailTo(fmt.Sprintf("customer%d@customer.example", i+1), "card_expiring", `{"card": "Visa •••• 4242"}`),
		}})
	}
	return requests
}

func mailTo(to, template, data string) []jobs.Delivery {
	return []jobs.Delivery{{Channel: jobs.ChannelEmail, To: to, Template: template, Data: []byte(data)}}
}

// awaitMails returns when the catcher has a mail for each sample.
func awaitMails(ctx context.Context, catcher *mailcatcher.Catcher, samples []sample) error {
	for _, s := range samples {
		if _, err := catcher.Wait(ctx, func(m *mailcatcher.Mail) bool { return strings.Contains(m.Text, s.LinkURL) }); err != nil {
			return fmt.Errorf("no mail of %s came: %w", s.RequestID, err)
		}
	}
	return nil
}
