package jobs

import (
	"context"

	"github.com/go-json-experiment/json"
)

// DefaultCampaigns is how many campaigns a list has that names no limit.
const DefaultCampaigns = 50

// CampaignsRequest asks for the campaigns with the newest links.
type CampaignsRequest struct {
	Limit int `json:"limit,omitzero"` // 1 to portal.MostCampaigns; left out = DefaultCampaigns
}

// CampaignRequest asks what became of a campaign's links.
type CampaignRequest struct {
	Campaign string `json:"campaign"`
}

func (s *Service) answerCampaigns(ctx context.Context, body []byte) (any, error) {
	r := CampaignsRequest{Limit: DefaultCampaigns}
	if err := json.Unmarshal(body, &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, errBadRequest
	}
	return s.Store.Campaigns(ctx, r.Limit)
}

func (s *Service) answerCampaign(ctx context.Context, body []byte) (any, error) {
	var r CampaignRequest
	if err := json.Unmarshal(body, &r, json.RejectUnknownMembers(true)); err != nil || r.Campaign == "" {
		return nil, errBadRequest
	}
	return s.Store.Campaign(ctx, r.Campaign)
}
