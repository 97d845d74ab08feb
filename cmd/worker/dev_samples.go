package main

import (
	"context"
	"fmt"
	"time"

	"latchkey/internal/jobs"
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
// service, and a campaign of five over the stream. Ids hold the day: a second start on one day
// gets the same links again, and no start gets expired ones.
func sendSamples(ctx context.Context, cfg *Config) ([]sample, error) {
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
	day := time.Now().UTC().Format("2006-01-02")
	for _, s := range sampleRequests(day) {
		send := client.SendAndWait
		if s.req.Source == "support" {
			send = client.Create
		}
		link, err := liveLink(ctx, client, send, s.req)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.req.ID, err)
		}
		samples = append(samples, sample{RequestID: s.req.ID, Source: s.req.Source, What: s.what,
			LinkID: link.LinkID.String(), LinkURL: link.URL, ExpiresAt: link.ExpiresAt})
	}
	return samples, nil
}

// liveLink asks for a sample's link and, where that was revoked or used up since the last start,
// for another one under the next id.
func liveLink(ctx context.Context, client *producer.Client,
	send func(context.Context, producer.Message) (*jobs.IssuedData, error), req *jobs.Request) (*jobs.IssuedData, error) {
	id := req.ID
	for n := 2; ; n++ {
		message, err := producer.NewMessage(req)
		if err != nil {
			return nil, err
		}
		link, err := send(ctx, message)
		if err != nil {
			return nil, err
		}
		status, err := client.Status(ctx, link.LinkID.String())
		if err != nil || status.Link.State == portal.StateLive {
			return link, err
		}
		req.ID = fmt.Sprintf("%s-%d", id, n)
	}
}

type sampleRequest struct {
	what string
	req  *jobs.Request
}

func sampleRequests(day string) []sampleRequest {
	three := 3
	requests := []sampleRequest{
		{"dunning email: update the card after a failed payment", &jobs.Request{
			ID: "dev-dunning-" + day, Source: "dunning",
			Session: &portal.SessionParams{Customer: "cus_Sample0Dunning",
				FlowData: &portal.FlowData{Type: "payment_method_update", AfterCompletion: &portal.AfterCompletion{Type: "portal_homepage"}}},
			Metadata: map[string]string{"invoice": "in_Sample0001"},
		}},
		{"support macro: the portal's home page, three visits at most", &jobs.Request{
			ID: "dev-support-" + day, Source: "support", MaxSessions: &three, ExpiresIn: "48h",
			Session: &portal.SessionParams{Customer: "cus_Sample0Support"},
		}},
	}
	for i, locale := range []string{"de", "ja", "pt-BR", "fr", "auto"} {
		requests = append(requests, sampleRequest{"campaign: card expiry, locale " + locale, &jobs.Request{
			ID: fmt.Sprintf("dev-campaign-%s-%d", day, i+1), Source: "campaign", Campaign: "dev-card-expiry",
			Session: &portal.SessionParams{Customer: fmt.Sprintf("cus_Sample0Campaign%d", i+1), Locale: locale,
				FlowData: &portal.FlowData{Type: "payment_method_update"}},
		}})
	}
	return requests
}
