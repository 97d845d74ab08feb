package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"latchkey/internal/contract"
	"latchkey/internal/portal"
)

// The times of printed campaigns; what is printed are the machine's local ones.
var campaignTimes = [4]time.Time{time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC), time.Date(2026, 11, 2, 9, 0, 12, 0, time.UTC),
	time.Date(2026, 11, 16, 9, 0, 0, 0, time.UTC), time.Date(2026, 11, 30, 9, 0, 12, 0, time.UTC)}

func TestCampaignIsPrinted(t *testing.T) {
	t.Parallel()
	at := campaignTimes
	var out strings.Builder
	printCampaign(&out, &portal.Campaign{Campaign: "2026-11-card-expiry", Issued: 100_012, Renewals: 12, Delivered: 99_999, DeliveryFailed: 13,
		Opened: 61_240, Clicked: 22_007, Sessions: 22_310, SessionsFailed: 41, Live: 60_000, UsedUp: 0, Expired: 39_012, Revoked: 1_000,
		FirstCreatedAt: at[0], LastCreatedAt: at[1], FirstExpiresAt: at[2], LastExpiresAt: at[3]})
	local := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 -07:00") }
	want := `campaign  2026-11-card-expiry
created   ` + local(at[0]) + ` to ` + local(at[1]) + `
expires   ` + local(at[2]) + ` to ` + local(at[3]) + `

issued              100,012  with 12 renewals
delivered            99,999  >99.9 %
delivery failed          13   <0.1 %
opened               61,240   61.2 %
clicked              22,007   22.0 %

sessions             22,310
sessions failed          41    0.2 %

live                 60,000   60.0 %
used up                   0    0.0 %
expired              39,012   39.0 %
revoked               1,000    1.0 %
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

func TestCampaignOfOneLinkIsPrinted(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	at := campaignTimes[0]
	printCampaign(&out, &portal.Campaign{Campaign: "c", Issued: 1, Renewals: 1, Live: 1, FirstCreatedAt: at, LastCreatedAt: at, FirstExpiresAt: at, LastExpiresAt: at})
	for _, line := range []string{
		"created   " + at.Local().Format("2006-01-02 15:04:05 -07:00"),
		"issued                    1  with 1 renewal",
		"sessions failed           0    0.0 %",
		"live                      1  100.0 %",
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("printed\n%s\nwithout the line\n%s", out.String(), line)
		}
	}
}

func TestCampaignsArePrinted(t *testing.T) {
	t.Parallel()
	at := campaignTimes
	var out strings.Builder
	printCampaigns(&out, &portal.CampaignList{Total: 3, Campaigns: []portal.CampaignSummary{
		{Campaign: "2026-11-card-expiry", Sources: []string{"campaign"}, Links: 100_012, Live: 60_000, FirstCreatedAt: at[0], LastCreatedAt: at[3]},
		{Campaign: "a", Sources: []string{"a", "b", "c", "d"}, Links: 1, FirstCreatedAt: at[0], LastCreatedAt: at[0]},
	}})
	local := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }
	want := `CAMPAIGN             SOURCE          LINKS    LIVE  FIRST             LAST
2026-11-card-expiry  campaign      100,012  60,000  ` + local(at[0]) + `  ` + local(at[3]) + `
a                    a, b, 2 more        1       0  ` + local(at[0]) + `  ` + local(at[0]) + `
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

func TestCampaignCommands(t *testing.T) {
	t.Parallel()
	url := setup(t)
	if code, out, stderr := enqueue(t, url, "", "campaign", "list"); code != 0 || out != "" || !strings.Contains(stderr, "no campaigns") {
		t.Errorf("none: exit %d, %q %q", code, out, stderr)
	}
	for i, name := range []string{"first", "second", "second"} {
		if code, _, stderr := enqueue(t, url, "", "link", "--id", fmt.Sprint(i), "--customer", "cus_1", "--campaign", name, "--wait"); code != 0 {
			t.Fatal(stderr)
		}
	}
	code, out, stderr := enqueue(t, url, "", "campaign", "list")
	if lines := strings.Split(out, "\n"); code != 0 || stderr != "" || len(lines) != 4 || !strings.HasPrefix(lines[1], "second    cli         2     2  20") || !strings.HasPrefix(lines[2], "first     cli         1     1  20") {
		t.Errorf("exit %d %q\n%s", code, stderr, out)
	}
	if code, out, stderr := enqueue(t, url, "", "campaign", "list", "--limit", "1"); code != 0 || strings.Contains(out, "first") || stderr != "enqueue: 1 more; --limit shows them\n" {
		t.Errorf("exit %d %q\n%s", code, stderr, out)
	}
	if code, out, _ := enqueue(t, url, "", "campaign", "status", "second"); code != 0 || !strings.Contains(out, "\nissued                    2\n") {
		t.Errorf("exit %d\n%s", code, out)
	}
	for ref, args := range map[string][]string{"campaigns": {"campaign", "list", "--json"}, "campaign": {"campaign", "status", "second", "--json"}} {
		code, out, stderr := enqueue(t, url, "", args...)
		if err := contract.Validate(contract.Schema(t, "service.schema.json#/$defs/"+ref), []byte(out)); code != 0 || err != nil || strings.Count(out, "\n") != 1 {
			t.Errorf("%v: exit %d %s (%v)\n%s", args, code, stderr, err, out)
		}
	}
	if code, out, stderr := enqueue(t, url, "", "campaign", "revoke", "second", "--reason", "a test"); code != 0 || out != "revoked 2 links of second\n" || stderr != "" {
		t.Errorf("exit %d, %q %q", code, out, stderr)
	}
	if code, out, stderr := enqueue(t, url, "", "campaign", "revoke", "second"); code != 0 || out != "" || !strings.Contains(stderr, "nothing to end") {
		t.Errorf("again: exit %d, %q %q", code, out, stderr)
	}
	if _, out, _ := enqueue(t, url, "", "campaign", "status", "second"); !strings.Contains(out, "\nrevoked                   2  100.0 %\n") {
		t.Errorf("%s", out)
	}
	if _, out, _ := enqueue(t, url, "", "status", "1"); !strings.Contains(out, "reason=a test") {
		t.Errorf("%s", out)
	}
	if code, out, _ := enqueue(t, url, "", "campaign", "revoke", "first", "--json"); code != 0 || out != `{"revoked":1}`+"\n" {
		t.Errorf("exit %d, %q", code, out)
	}
	if code, out, stderr := enqueue(t, url, "", "campaign", "status", "nobody"); code != 1 || out != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "list") {
		t.Errorf("unknown: exit %d, %q %q", code, out, stderr)
	}
	for _, args := range [][]string{{"status"}, {"status", ""}, {"status", "a b"}, {"status", "a", "b"}, {"revoke"}, {"revoke", "ü"}, {"revoke", "first", "--by", ""},
		{"list", "x"}, {"list", "--limit", "0"}, {"list", "--limit", "1001"}, {"frob"}} {
		if code, _, stderr := enqueue(t, url, "", append([]string{"campaign"}, args...)...); code != 2 || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit %d\n%s", args, code, stderr)
		}
	}
}
