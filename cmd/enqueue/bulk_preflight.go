package main

import (
	"context"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
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
	return withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, _ []string) error {
		p := &bulk.Preflight{Input: input, All: f.checkStripe == checkAll, Check: jobs.CheckRequest, Ask: asker(client)}
		_, err := unlessStuck(ctx, func() (struct{}, error) {
			return struct{}{}, p.Report(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr(), size)
		})
		return err
	})(cmd, nil)
}

// asker asks again what got no answer, for some minutes: a check of an hour outlives a worker's restart. Only the first
// question must find everything as it should be.
func asker(client *producer.Client) func(context.Context, []portal.PreflightQuestion) ([]portal.PreflightFinding, error) {
	answered := false
	again := failsafe.With(retrypolicy.NewBuilder[[]portal.PreflightFinding]().
		HandleIf(func(_ []portal.PreflightFinding, err error) bool { return err != nil && answered }).
		WithBackoff(time.Second, 30*time.Second).WithMaxAttempts(12).ReturnLastFailure().Build())
	return func(ctx context.Context, questions []portal.PreflightQuestion) ([]portal.PreflightFinding, error) {
		return again.WithContext(ctx).Get(func() ([]portal.PreflightFinding, error) {
			ctx, cancel := context.WithTimeout(ctx, preflightPatience)
			defer cancel()
			findings, err := client.CheckCampaign(ctx, questions)
			answered = answered || err == nil
			return findings, err
		})
	}
}
