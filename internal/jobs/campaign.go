package jobs

import (
	"context"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"latchkey/internal/portal"
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

// MostPreflightQuestions are of one CampaignCheckRequest: answered in a second at the default STRIPE_READ_RATE, and
// within serviceTimeout at the lowest.
const MostPreflightQuestions = 20

// checkTurn is how long a check waits for its turn, which leaves time for it at the lowest STRIPE_READ_RATE.
const checkTurn = 5 * time.Second

// CampaignCheckRequest asks what would keep the sessions of a campaign's requests from being made. Nothing of it is
// kept.
type CampaignCheckRequest struct {
	Questions []portal.PreflightQuestion `json:"questions"`
}

// CampaignCheck has a finding for each question, in their order.
type CampaignCheck struct {
	Findings []portal.PreflightFinding `json:"findings"`
}

func (s *Service) answerCampaignCheck(ctx context.Context, body []byte) (any, error) {
	var r CampaignCheckRequest
	if err := json.Unmarshal(body, &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, errBadRequest
	}
	if n := len(r.Questions); n < 1 || n > MostPreflightQuestions {
		return nil, fmt.Errorf("%w: 1 to %d questions", errBadRequest, MostPreflightQuestions)
	}
	for _, q := range r.Questions { // they become parts of URLs and a header
		if !validQuestion(q) {
			return nil, fmt.Errorf("%w: a question holds what is no id of Stripe's", errBadRequest)
		}
	}
	select {
	case s.checks <- struct{}{}:
		defer func() { <-s.checks }()
	default:
		return nil, errChecksBusy
	}
	waiting, cancel := context.WithTimeout(ctx, checkTurn)
	defer cancel()
	select {
	case s.asking <- struct{}{}: // in the order of their coming
		defer func() { <-s.asking }()
	case <-waiting.Done():
		return nil, errChecksBusy
	}
	findings, err := s.Preflight.Ask(ctx, r.Questions)
	return CampaignCheck{findings}, err
}

func validQuestion(q portal.PreflightQuestion) bool {
	session := portal.SessionParams{Customer: q.Customer, Configuration: q.Configuration}
	if q.Customer == "" {
		session.Customer = "cus_none"
	}
	return session.Check(portal.SessionRules{}) == nil && (q.StripeAccount == "" || validAccount(q.StripeAccount))
}

// PreflightQuestions are what there is to ask Stripe about a request that has passed its checks: of its portal
// configuration, and of its customer, if it names one that can be asked about (a customer_account can't).
func PreflightQuestions(body []byte) (configuration, customer portal.PreflightQuestion, err error) {
	var r Request
	if err := json.Unmarshal(body, &r); err != nil {
		return configuration, customer, err
	}
	configuration = portal.PreflightQuestion{StripeAccount: r.StripeAccount, Configuration: r.Session.Configuration, ReturnURL: r.Session.ReturnURL != ""}
	if r.Session.FlowData != nil {
		configuration.Flow = r.Session.FlowData.Type
	}
	return configuration, portal.PreflightQuestion{StripeAccount: r.StripeAccount, Customer: r.Session.Customer}, nil
}
