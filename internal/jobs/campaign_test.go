package jobs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/internal/contract"
	"latchkey/internal/portal"
)

func TestServiceCampaigns(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	link := w.everythingHappens() // of the campaign 2026-11-card-expiry, by dunning
	w.issue(request("r1", "campaign", "c1"))
	w.issue(request("r2", "campaign", "c1", "source", "support"))
	w.issue(request("r3"))

	var list portal.CampaignList
	answer := w.answer(CampaignsSubject, []byte(`{}`), &list)
	if err := contract.Validate(contract.Schema(t, "service.schema.json#/$defs/campaigns"), []byte(answer)); err != nil {
		t.Errorf("%s\n%v", answer, err)
	}
	if list.Total != 2 || len(list.Campaigns) != 2 || list.Campaigns[0].Campaign != "c1" || list.Campaigns[0].Live != 2 ||
		!slices.Equal(list.Campaigns[0].Sources, []string{"dunning", "support"}) || list.Campaigns[1].Campaign != link.Campaign || list.Campaigns[1].Live != 0 {
		t.Errorf("list %s", answer)
	}
	if w.answer(CampaignsSubject, []byte(`{"limit":1}`), &list); list.Total != 2 || len(list.Campaigns) != 1 {
		t.Errorf("list of one: %+v", list)
	}

	var got portal.Campaign
	answer = w.answer(CampaignSubject, []byte(`{"campaign":"2026-11-card-expiry"}`), &got)
	if err := contract.Validate(contract.Schema(t, "service.schema.json#/$defs/campaign"), []byte(answer)); err != nil {
		t.Errorf("%s\n%v", answer, err)
	}
	want := portal.Campaign{Campaign: link.Campaign, Issued: 1, Opened: 1, Clicked: 1, Sessions: 1, SessionsFailed: 1, Revoked: 1,
		FirstCreatedAt: link.CreatedAt.UTC(), LastCreatedAt: link.CreatedAt.UTC(), FirstExpiresAt: link.ExpiresAt.UTC(), LastExpiresAt: link.ExpiresAt.UTC()}
	if got != want {
		t.Errorf("%+v, want\n%+v", got, want)
	}
}

func TestServiceCampaignsRefuses(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	w.issue(request("r1", "campaign", "c1"))
	for _, c := range []struct{ subject, body, code string }{
		{CampaignSubject, `{"campaign":"nobody"}`, CodeNotFound},
		{CampaignSubject, `{"campaign":"C1"}`, CodeNotFound},
		{CampaignSubject, `{"campaign":"c1\u0000"}`, CodeBadRequest},
		{CampaignSubject, `{"campaign":""}`, CodeBadRequest},
		{CampaignSubject, `{"name":"c1"}`, CodeBadRequest},
		{CampaignSubject, `{}`, CodeBadRequest},
		{CampaignSubject, `c1`, CodeBadRequest},
		{CampaignsSubject, ``, CodeBadRequest},
		{CampaignsSubject, `{"limit":0}`, CodeBadRequest},
		{CampaignsSubject, `{"limit":-1}`, CodeBadRequest},
		{CampaignsSubject, `{"limit":1001}`, CodeBadRequest},
		{CampaignsSubject, `{"limit":1e30}`, CodeBadRequest},
		{CampaignsSubject, `{"limit":10,"campaign":"c1"}`, CodeBadRequest},
	} {
		if data, code, text := w.ask(c.subject, []byte(c.body)); code != c.code || text == "" || len(data) > 0 {
			t.Errorf("%s %s answers %s %q, want %s", c.subject, c.body, code, text, c.code)
		}
	}
}

// Whoever is told to wait hears why, and nothing of the inside.
func TestServiceExplainsWhyItDoesNotCount(t *testing.T) {
	t.Parallel()
	for _, err := range []error{portal.ErrCounting, portal.ErrCountTooLong} {
		if code, text := Explain(fmt.Errorf("inside: %w", err)); code != CodeUnavailable || text != err.Error() {
			t.Errorf("%v: %s %q", err, code, text)
		}
	}
}

// What a question holds becomes part of a URL or a header of a call to Stripe.
func TestCampaignCheckRefusesWhatIsNoID(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	many := `{"questions":[` + strings.Repeat(`{},`, MostPreflightQuestions) + `{}]}`
	for _, body := range []string{`{}`, `{"questions":[]}`, many, `{"questions":[{"customer":"cus_1/../../charges"}]}`, `{"questions":[{"customer":"cus_1?x"}]}`,
		`{"questions":[{"customer":"evil"}]}`, `{"questions":[{"configuration":"bpc_/x"}]}`, `{"questions":[{"stripe_account":"acct_1\r\nX: y"}]}`, `{"questions":[{"stripe_account":"cus_1"}]}`,
		`{"questions":[{"key":"sk_test_1"}]}`, `[]`} {
		if _, code, text := w.ask(CampaignCheckSubject, []byte(body)); code != CodeBadRequest {
			t.Errorf("%.60s: %q, %s", body, code, text)
		}
	}
}

// Checks share one pace: who comes while another one is being answered waits for a while, and is then told why.
func TestCampaignChecksTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := NewService(&Issuer{}, nil, nil)
		s.asking <- struct{}{}
		began := time.Now()
		_, err := s.answerCampaignCheck(t.Context(), []byte(`{"questions":[{"customer":"cus_1"}]}`))
		if !errors.Is(err, errChecksBusy) || time.Since(began) != checkTurn {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		for range serviceChecks {
			s.checks <- struct{}{}
		}
		began = time.Now()
		_, err = s.answerCampaignCheck(t.Context(), []byte(`{"questions":[{"customer":"cus_1"}]}`))
		if !errors.Is(err, errChecksBusy) || time.Since(began) != 0 {
			t.Errorf("with many waiting, after %v: %v", time.Since(began), err)
		}
	})
}
