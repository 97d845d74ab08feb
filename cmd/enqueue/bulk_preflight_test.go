package main

import (
	"strings"
	"testing"

	"latchkey/internal/jobs"
	"latchkey/internal/testkit"
)

func TestBulkCheckStripe(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	const file = "customer,flow,note\ncus_1,,a\ncus_missing,,b\ncus_live,payment_method_update,c\n"
	args := []string{"bulk", "-", "--campaign", "c", "--ignore-unknown"}
	for _, sample := range []string{"--check-stripe", "--check-stripe=all"} {
		code, out, errOut := enqueue(t, d.url, file, append(args, sample)...)
		if code != 1 || !strings.Contains(out, "line 3: cus_missing does not exist") || !strings.Contains(out, "line 4: cus_live exists in Stripe's other mode") ||
			!strings.Contains(out, "3 rows read, 3 of 3 customers and 2 portal configurations and flows looked up in Stripe: 2 problems found") {
			t.Errorf("%s: exit %d\n%s%s", sample, code, out, errOut)
		}
	}
	code, out, errOut := enqueue(t, d.url, "customer\ncus_1\n", append(args, "--check-stripe")...)
	if code != 0 || !strings.Contains(out, "no problem found") || errOut != "" {
		t.Errorf("nothing to find: exit %d\n%s%s", code, out, errOut)
	}
	if stream, err := d.js.Stream(t.Context(), jobs.RequestsStream); err != nil || stream.CachedInfo().State.LastSeq != 0 {
		t.Errorf("a check sent something: %v", err)
	}
	for _, wrong := range [][]string{{"--check-stripe=some"}, {"--check-stripe", "--dry-run"}, {"--check-stripe", "--out", "-"}, {"--check-stripe", "all"}} {
		if code, out, errOut := enqueue(t, d.url, file, append(args, wrong...)...); code != 2 || out != "" || strings.Count(errOut, "\n") != 1 {
			t.Errorf("%v: exit %d\n%s%s", wrong, code, out, errOut)
		}
	}
}

func TestBulkCheckStripeNeedsAWorker(t *testing.T) {
	t.Parallel()
	code, out, errOut := enqueue(t, testkit.NATS(t), "customer\ncus_1\n", "bulk", "-", "--campaign", "c", "--check-stripe")
	if code != 1 || !strings.Contains(errOut, "no worker answers") || !strings.Contains(out, "not all was looked at") {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
}
