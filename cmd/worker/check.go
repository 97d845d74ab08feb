package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/config"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/migrations"
)

func newCheckCommand() *cobra.Command {
	var campaign string
	var all, ignoreUnknown bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check everything the service needs, one line each",
		Long: `Tries the database and its schema, NATS and its streams, the Stripe key and its permission, the
default portal configuration, the signing keys, the public URL and the mail server. Changes nothing. Exits 1 if anything fails.

--campaign FILE looks at a campaign before it goes out, the file that 'enqueue bulk' would take: at every row
by this worker's settings, and in Stripe for customers that do not exist or are of the other mode, for a portal
configuration that is missing, and for flows whose feature is off. It looks up 200 customers from all over the
file, with --all each one, at STRIPE_READ_RATE.`,
		Example: "  worker check\n  worker check --campaign customers.csv",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (all || ignoreUnknown) && campaign == "" {
				return cli.Usagef("--all and --ignore-unknown go with --campaign FILE")
			}
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			c := &checkup{cmd: cmd}
			defer c.close()
			c.database(cmd.Context(), cfg)
			c.nats(cmd.Context(), cfg)
			c.stripe(cmd.Context(), cfg)
			c.keys(cmd.Context(), cfg)
			c.publicURL(cmd.Context(), cfg)
			c.email(cmd.Context(), cfg)
			c.webhooks(cmd.Context(), cfg)
			if campaign != "" {
				if err := c.campaign(cmd.Context(), cfg, campaign, all, ignoreUnknown); err != nil {
					return err
				}
			}
			if c.failed {
				return cli.ErrSilent
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&campaign, "campaign", "", "CSV or JSON Lines of a campaign to look at before it goes out")
	cmd.Flags().BoolVar(&all, "all", false, "with --campaign: look up each customer, not a sample")
	cmd.Flags().BoolVar(&ignoreUnknown, "ignore-unknown", false, "with --campaign: as 'enqueue bulk' has it, for columns that are no field")
	return cmd
}

// checkup prints a line for each thing it tried.
type checkup struct {
	cmd    *cobra.Command
	app    *pgxpool.Pool // under the worker's role; nil where that failed
	failed bool
}

func (c *checkup) line(what string, err error, fine string) {
	if err != nil {
		c.failed = true
		fmt.Fprintf(c.cmd.OutOrStdout(), "FAIL  %-22s %v\n", what, err)
		return
	}
	fmt.Fprintf(c.cmd.OutOrStdout(), "ok    %-22s %s\n", what, fine)
}

func withWarning(fine, warning string) string {
	if warning == "" {
		return fine
	}
	return fine + "; warning: " + warning
}

func (c *checkup) database(ctx context.Context, cfg *Config) {
	pool, err := plainPool(ctx, cfg.DatabaseURL)
	if err != nil {
		c.line("database", err, "")
		return
	}
	defer pool.Close()
	var version int
	err = pool.QueryRow(ctx, "SELECT current_setting('server_version_num')::int / 10000").Scan(&version)
	if err == nil && version < 14 {
		err = fmt.Errorf("is Postgres %d; 14 or newer is needed", version)
	}
	c.line("database", err, withWarning(fmt.Sprintf("Postgres %d", version), exposed(pool.Config().ConnConfig)))
	c.app, err = openPool(ctx, cfg.DatabaseURL)
	if err == nil {
		err = migrations.CheckRights(ctx, c.app)
	}
	c.line("schema", err, "up to date; the worker's role can be taken")
}

func (c *checkup) nats(ctx context.Context, cfg *Config) {
	nc, err := cfg.NATS.Connect("latchkey check", nats.NoReconnect())
	if err != nil {
		c.line("NATS", err, "")
		return
	}
	defer nc.Close()
	c.line("NATS", nil, withWarning(nc.ConnectedUrlRedacted()+", server "+nc.ConnectedServerVersion(), config.Exposed(nc)))
	js, err := jetstream.New(nc)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err = jobs.EnsureStreams(ctx, js, false)
	}
	if err != nil && cfg.ManageStreams {
		c.line("streams", nil, "will be created or updated at the start ("+err.Error()+")")
		return
	}
	c.line("streams", err, "as they should be")
}

func (c *checkup) stripe(ctx context.Context, cfg *Config) {
	s := portal.NewStripe(portal.StripeConfig{Key: cfg.StripeAPIKey, APIBase: cfg.StripeAPIBase, APIVersion: cfg.StripeAPIVersion})
	defer s.Close()
	mode := "test mode"
	if live, _ := portal.KeyMode(cfg.StripeAPIKey); live {
		mode = "live mode"
	}
	c.line("Stripe key", withRemedy(s.CheckKey(ctx)), mode+", may create portal sessions")
	c.line("portal configuration", withRemedy(s.CheckConfiguration(ctx)), "a default one is saved")
}

// keys compares LINK_KEYS with what links were signed by.
func (c *checkup) keys(ctx context.Context, cfg *Config) {
	var list []keyStatus
	err := errNoDatabase
	if c.app != nil {
		list, err = keyList(ctx, c.app, cfg.keys)
	}
	var problems, fine []string
	for _, k := range list {
		switch {
		case k.State == keyMissing && k.Live > 0:
			problems = append(problems, fmt.Sprintf("%d live links need key %d, which LINK_KEYS lacks; put it back, or 'worker keys retire %d'", k.Live, k.ID, k.ID))
		case k.State == keyRetired && k.ID == cfg.keys.IDs()[0]:
			problems = append(problems, fmt.Sprintf("key %d, the first of LINK_KEYS, is retired; put another one first, and take it out", k.ID))
		case k.State == keyRetired && slices.Contains(cfg.keys.IDs(), k.ID):
			problems = append(problems, fmt.Sprintf("key %d of LINK_KEYS is retired; take it out", k.ID))
		case k.State == keySigns || k.State == keyVerifies:
			fine = append(fine, fmt.Sprintf("%d %s", k.ID, k.State))
		}
	}
	if err == nil && len(problems) > 0 {
		err = errors.New(strings.Join(problems, "; "))
	}
	c.line("signing keys", err, strings.Join(fine, ", "))
}

var errNoDatabase = errors.New("can't be told without the database")

func (c *checkup) close() {
	if c.app != nil {
		c.app.Close()
	}
}

// off is a channel that is not configured, which is not fine where deliveries wait for it.
func (c *checkup) off(ctx context.Context, channel, setting string) {
	var waiting int
	err := errNoDatabase
	if c.app != nil {
		err = c.app.QueryRow(ctx, `SELECT count(*) FROM river_job WHERE kind = $1 AND finalized_at IS NULL`, channel).Scan(&waiting)
	}
	if err == nil && waiting > 0 {
		err = fmt.Errorf("%d deliveries wait, and %s is not set; set it, or 'worker jobs cancel' them", waiting, setting)
	}
	c.line(channel, err, "off: "+setting+" is not set")
}

// webhooks names the targets that nothing is sent to any more, and those on the way there.
func (c *checkup) webhooks(ctx context.Context, cfg *Config) {
	if cfg.webhooks == nil {
		c.off(ctx, "webhook", "WEBHOOK_SECRETS")
		return
	}
	var targets []jobs.FailingTarget
	err := errNoDatabase
	if c.app != nil {
		targets, err = jobs.FailingTargets(ctx, c.app)
	}
	var disabled, failing []string
	for _, t := range targets {
		if t.Disabled {
			disabled = append(disabled, t.Host)
		} else {
			failing = append(failing, fmt.Sprintf("%s since %s", t.Host, t.Since.UTC().Format(time.RFC3339)))
		}
	}
	if err == nil && len(disabled) > 0 {
		err = fmt.Errorf("disabled, because it took nothing for five days or answered 410: %s; docs/webhooks.md tells how to enable one", strings.Join(disabled, ", "))
	}
	fine := fmt.Sprintf("%d subscriptions", len(cfg.subscriptions))
	if len(failing) > 0 {
		fine += "; tried again: " + strings.Join(failing, ", ")
	}
	c.line("webhook", err, fine)
}

func withRemedy(err error) error {
	var cause *portal.SessionError
	if errors.As(err, &cause) {
		return fmt.Errorf("%w: %s", err, portal.Remedy(cause.Code))
	}
	return err
}

// publicURL asks the click server through its public address for what only it answers.
func (c *checkup) publicURL(ctx context.Context, cfg *Config) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, cfg.LinkBaseURL+"/l/check", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return fmt.Errorf("no answer; is 'worker run' up and LINK_BASE_URL its address? %w", err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound || resp.Header.Get("X-Robots-Tag") == "" {
			return fmt.Errorf("something else answers at LINK_BASE_URL (HTTP %d)", resp.StatusCode)
		}
		return nil
	}()
	c.line("public URL", err, cfg.LinkBaseURL)
}
