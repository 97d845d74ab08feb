package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"latchkey/internal/bulk"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// campaign looks at a file of requests as 'enqueue bulk --check-stripe' does, with this worker's settings and key.
func (c *checkup) campaign(ctx context.Context, cfg *Config, name string, all, ignoreUnknown bool) error {
	if c.app == nil {
		return fmt.Errorf("--campaign: the pace of reads is kept in the database, %w", errNoDatabase)
	}
	file, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("--campaign: %w", err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = errors.New("is a folder")
	}
	if err != nil {
		return fmt.Errorf("--campaign: %s: %w", name, err)
	}
	// Rows without an id get one as from 'enqueue bulk', which asks for the campaign's name.
	input, err := bulk.Open(file, name, "", bulk.Defaults{Campaign: "check", Source: "campaign", IgnoreUnknown: ignoreUnknown})
	if err != nil {
		return fmt.Errorf("--campaign: %w", err)
	}
	stripe := portal.NewStripe(portal.StripeConfig{Key: cfg.StripeAPIKey, APIBase: cfg.StripeAPIBase, APIVersion: cfg.StripeAPIVersion, DefaultReturnURL: cfg.ReturnURL})
	defer stripe.Close()
	asked := &portal.Preflight{Stripe: stripe, Reads: portal.NewBudget(c.app, cfg.StripeReadRate, time.Now, nil)}
	rules := requestRules(cfg)
	p := &bulk.Preflight{Input: input, All: all, Ask: asked.Ask, Check: func(body []byte, now time.Time) error {
		_, err := jobs.ParseRequest(body, rules, now)
		return err
	}}
	return p.Report(ctx, c.cmd.OutOrStdout(), c.cmd.ErrOrStderr(), info.Size())
}
