package bulk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"latchkey/internal/cli"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// fakeStripe answers questions: customers with "bad" in their id are gone.
type fakeStripe struct {
	asked []portal.PreflightQuestion
	err   error
}

func (s *fakeStripe) ask(_ context.Context, questions []portal.PreflightQuestion) ([]portal.PreflightFinding, error) {
	if len(questions) == 0 || len(questions) > jobs.MostPreflightQuestions || s.err != nil {
		return nil, errors.Join(errors.New("can't be asked"), s.err)
	}
	s.asked = append(s.asked, questions...)
	findings := make([]portal.PreflightFinding, len(questions))
	for i, q := range questions {
		if strings.Contains(q.Customer, "bad") || q.Flow == "subscription_cancel" {
			findings[i] = portal.PreflightFinding{Code: portal.CodeCustomerGone, Problem: "is gone"}
		}
	}
	return findings, nil
}

func preflight(t *testing.T, file string, all bool, stripe *fakeStripe) (out string, err error) {
	t.Helper()
	in, err := Open(strings.NewReader(file), "c.csv", "", Defaults{Campaign: "c", Source: "campaign"})
	must(t, err)
	p := &Preflight{Input: in, All: all, Check: jobs.CheckRequest, Ask: stripe.ask}
	var printed, shown bytes.Buffer
	err = p.Report(t.Context(), &printed, &shown, int64(len(file)))
	return printed.String(), err
}

func manyCustomers(n int, more ...string) string {
	rows := []string{"customer"}
	for i := range n {
		rows = append(rows, fmt.Sprintf("cus_%d", i))
	}
	return strings.Join(append(rows, more...), "\n") + "\n"
}

func TestPreflightAsksEachCustomerOnce(t *testing.T) {
	t.Parallel()
	stripe := &fakeStripe{}
	out, err := preflight(t, manyCustomers(500, "cus_bad", "cus_1", "cus_bad", "not a customer"), true, stripe)
	if !errors.Is(err, cli.ErrSilent) || !strings.Contains(out, "line 502: cus_bad is gone\n") || !strings.Contains(out, "line 505: invalid_field: $.session.customer: ") {
		t.Errorf("%v\n%s", err, out)
	}
	if want := "504 rows read, 501 of 501 customers and 1 portal configuration looked up in Stripe: 2 problems found"; !strings.Contains(out, want) {
		t.Errorf("want %s\n%s", want, out)
	}
	seen := map[portal.PreflightQuestion]bool{}
	for _, q := range stripe.asked {
		if seen[q] {
			t.Errorf("asked twice: %+v", q)
		}
		seen[q] = true
	}
	if len(seen) != 502 {
		t.Errorf("%d questions, want 501 customers and a configuration", len(seen))
	}
}

// The sample is drawn from all over the file, and is the same the next time; each configuration and flow is asked about.
func TestPreflightSample(t *testing.T) {
	t.Parallel()
	file := strings.Replace(manyCustomers(5000), "customer\n", "customer,flow,subscription,configuration,stripe_account\n", 1)
	file = strings.ReplaceAll(file, "\ncus_7\n", "\ncus_7,subscription_cancel,sub_1,,\n")
	file = strings.ReplaceAll(file, "\ncus_8\n", "\ncus_8,,,bpc_1,acct_1\n")
	file = strings.ReplaceAll(file, "\ncus_9\n", "\ncus_9,,,bpc_1,acct_1\n")
	first, second := &fakeStripe{}, &fakeStripe{}
	out, err := preflight(t, padded(file), false, first)
	if !errors.Is(err, cli.ErrSilent) || !strings.Contains(out, "line 9: is gone\n") || !strings.Contains(out, "200 of 5,000 customers and 3 portal configurations") {
		t.Errorf("%v\n%s", err, out)
	}
	_, _ = preflight(t, padded(file), false, second)
	if fmt.Sprint(first.asked) != fmt.Sprint(second.asked) {
		t.Error("another sample of the same file")
	}
	var tenths [10]int
	for _, q := range first.asked {
		var n int
		if _, err := fmt.Sscanf(q.Customer, "cus_%d", &n); err == nil {
			tenths[n/500]++
		}
	}
	for i, n := range tenths {
		if n < 5 {
			t.Errorf("%d of the sample are of tenth %d: %v", n, i, tenths)
		}
	}
}

// padded gives each row of a CSV as many cells as its header.
func padded(file string) string {
	lines := strings.Split(strings.TrimSpace(file), "\n")
	for i, line := range lines {
		lines[i] = line + strings.Repeat(",", 4-strings.Count(line, ","))
	}
	return strings.Join(lines, "\n") + "\n"
}

func TestPreflightFindsNothing(t *testing.T) {
	t.Parallel()
	if out, err := preflight(t, manyCustomers(10), false, &fakeStripe{}); err != nil || !strings.Contains(out, "10 of 10 customers") || !strings.Contains(out, "no problem found") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPreflightTellsThatItCouldNotAsk(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	if out, err := preflight(t, manyCustomers(100), true, &fakeStripe{err: away}); !errors.Is(err, away) || !strings.Contains(out, "0 of") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPreflightProblemsAreBounded(t *testing.T) {
	t.Parallel()
	var bad []string
	for i := range 50 {
		bad = append(bad, fmt.Sprintf("cus_bad%d", i))
	}
	out, err := preflight(t, manyCustomers(0, bad...), true, &fakeStripe{})
	if !errors.Is(err, cli.ErrSilent) || strings.Count(out, "is gone") != maxFailures || !strings.Contains(out, "… and 30 more\n") || !strings.Contains(out, "50 problems found") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Each connected account has configurations of its own; the bound is for what a file's columns mean.
func TestPreflightOfConnectedAccounts(t *testing.T) {
	t.Parallel()
	rows := []string{"customer,stripe_account"}
	for i := range maxPlans + 1 {
		rows = append(rows, fmt.Sprintf("cus_1,acct_%d", i))
	}
	out, err := preflight(t, strings.Join(rows, "\n")+"\n", false, &fakeStripe{})
	if err != nil || !strings.Contains(out, "200 of 1,001 customers and 200 portal configurations and flows") {
		t.Errorf("%v\n%s", err, out)
	}
}
