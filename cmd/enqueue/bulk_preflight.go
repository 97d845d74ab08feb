package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/bulk"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

// Values of --check-stripe.
const (
	checkSample = "sample"
	checkAll    = "all"
)

// preflightPatience is what an answer may take: a worker gives up before.
const preflightPatience = 40 * time.Second

// preflight has the workers ask Stripe: this command holds no key of it.
func (f *bulkFlags) preflight(cmd *cobra.Command, input bulk.Input, size int64) error {
	nc, err := connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	client, err := producer.New(nc)
	if err != nil {
		return err
	}
	p := &bulk.Preflight{Input: input, All: f.checkStripe == checkAll, Check: jobs.CheckRequest,
		Ask: func(ctx context.Context, questions []portal.PreflightQuestion) ([]portal.PreflightFinding, error) {
			ctx, cancel := context.WithTimeout(ctx, preflightPatience)
			defer cancel()
			return client.CheckCampaign(ctx, questions)
		}}
	return p.Report(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), size)
}
