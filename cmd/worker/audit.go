package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"latchkey/internal/audit"
	"latchkey/internal/cli"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

func newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Prove, export and erase what the audit holds",
		Long: `The audit's rows are sealed into a hash chain, every 10 s by a worker with the role jobs. Each new head
of the chain is an event (audit.sealed): who keeps one can prove later that nothing before it was changed.
Needs DATABASE_URL alone.`,
		Example: "  worker audit verify\n  worker audit export --customer cus_9s6XKzkNRiz8i3 > timeline.csv\n  worker audit erase --customer cus_9s6XKzkNRiz8i3",
	}
	cmd.AddCommand(newAuditVerifyCommand(), newAuditSealCommand(), newAuditExportCommand(), newAuditEraseCommand())
	return cmd
}

// withAudit opens the database for the time of one command, under the user that DATABASE_URL names: an auditor's may
// read three tables and nothing else.
func withAudit(f func(ctx context.Context, cmd *cobra.Command, db *pgxpool.Pool) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		url, err := loadDatabaseURL()
		if err != nil {
			return err
		}
		pool, err := plainPool(cmd.Context(), url, func(cfg *pgxpool.Config) { cfg.MaxConns = max(cfg.MaxConns, audit.Connections()) })
		if err != nil {
			return err
		}
		defer closePool(pool)
		err = f(cmd.Context(), cmd, pool)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "42P01" { // undefined_table
			return fmt.Errorf("a table is not there: %w; is it the right database, and 'worker migrate' through? If both, 'worker audit verify' tells what is gone", err)
		}
		if portal.RefusesUser(err) {
			return fmt.Errorf("the user of DATABASE_URL lacks a right: %w; docs/audit.md says which this takes", err)
		}
		return err
	}
}

func newAuditVerifyCommand() *cobra.Command {
	var since, kept string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Recompute the hash chain, and name the first row that is not as it was sealed",
		Long: `Exits 0 with the number of rows and the head of the chain, or 1 with the first row that was changed,
added, moved or removed, or 3 where it could not look; --json tells the first two to programs.
Keep the head, outside of this database: --head proves next time that the chain still goes through it.
--since goes on behind a head that was verified before.`,
		Example: "  worker audit verify\n  worker audit verify --head 4711:9f86…\n  worker audit verify --since 4711:9f86…",
		Args:    cobra.NoArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		heads := map[string]audit.Head{}
		for flag, text := range map[string]string{"since": since, "head": kept} {
			if text == "" && !cmd.Flags().Changed(flag) {
				continue
			}
			head, err := audit.ParseHead(text)
			if err != nil {
				return cli.Usagef("--%s: %v", flag, err)
			}
			heads[flag] = head
		}
		err := withAudit(func(ctx context.Context, cmd *cobra.Command, db *pgxpool.Pool) error {
			progress, done := verifyProgress(cmd)
			v, err := audit.Verify(ctx, db, heads["since"], heads["head"], progress)
			done()
			if found := audit.Found(err); asJSON && found != nil {
				return errors.Join(err, json.NewEncoder(cmd.OutOrStdout()).Encode(found))
			}
			if err != nil {
				return err
			}
			if asJSON {
				out := map[string]any{"ok": true, "rows": v.Rows, "seals": v.Seals, "head": headText(v.Head),
					"unsealed": v.Unsealed, "visitors": v.Visitors, "visitors_unproved": v.Unproved}
				if since == "" {
					out["visitors_gone"] = v.Gone
				}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(out)
			}
			printVerified(cmd, v, since != "")
			return nil
		})(cmd, args)
		if err != nil && audit.Found(err) == nil {
			return &cli.ExitError{Code: 3, Err: err} // a monitor must not take a database that is away for an audit that was altered
		}
		return err
	}
	cmd.Flags().StringVar(&since, "since", "", "verify what was sealed after this head")
	cmd.Flags().StringVar(&kept, "head", "", "a head that you kept: the chain must go through it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// comma writes a number as 1,234,567.
func comma(n int64) string { return message.NewPrinter(language.English).Sprint(n) }

// count is a number of things: "1 row", "1,234 rows".
func count(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return comma(n) + " " + thing
}

// headText is empty where nothing is sealed yet.
func headText(h audit.Head) string {
	if h.Number == 0 {
		return ""
	}
	return h.String()
}

func printVerified(cmd *cobra.Command, v audit.Verified, since bool) {
	what := "the audit is as it was sealed"
	if since {
		what = "what was sealed since is as it was sealed"
	}
	cmd.Printf("%s: %s in %s\n", what, count(v.Rows, "row"), count(v.Seals, "seal"))
	if v.Head.Number > 0 {
		cmd.Printf("head      %s\n", v.Head)
	}
	cmd.Printf("unsealed  %s at the end, which nothing proves yet\n", count(v.Unsealed, "row"))
	cmd.Printf("visitors  %s as hashed", count(v.Visitors, "row"))
	if v.Unproved > 0 {
		cmd.Printf(", %s from before there were hashes", comma(v.Unproved))
	}
	if v.Gone > 0 {
		cmd.Printf(", %s gone: erased, past retention, or taken away", comma(v.Gone))
	}
	cmd.Println()
}

// verifyProgress tells on a terminal how far it is, about once a second, and done wipes that away.
func verifyProgress(cmd *cobra.Command) (progress func(int64), done func()) {
	if cli.Width(os.Stderr) == 0 {
		return nil, func() {}
	}
	const wipe = "\r\x1b[K" // to the line's start, and clear it
	var last time.Time
	return func(rows int64) {
		if time.Since(last) > time.Second {
			last = time.Now()
			fmt.Fprintf(cmd.ErrOrStderr(), wipe+"%s rows", comma(rows))
		}
	}, func() { fmt.Fprint(cmd.ErrOrStderr(), wipe) }
}

func newAuditSealCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "seal",
		Short: "Seal now what is committed",
		Long: `A worker with the role jobs does this every 10 s. Prints how many rows it sealed, and the head of the chain,
which a worker publishes as audit.sealed.`,
		Example: "  worker audit seal",
		Args:    cobra.NoArgs,
		RunE: withAudit(func(ctx context.Context, cmd *cobra.Command, db *pgxpool.Pool) error {
			done, err := (&audit.Sealer{Pool: db, Publish: jobs.PublishByJob}).Seal(ctx)
			if err != nil {
				return err
			}
			cmd.Printf("sealed %s\n", count(done.Rows, "row"))
			if done.Head.Number > 0 {
				cmd.Printf("head %s\n", done.Head)
			}
			return nil
		}),
	}
}

func newAuditExportCommand() *cobra.Command {
	var e audit.Export
	var since, until, format string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write audit rows to standard output, as CSV or JSON Lines",
		Long: `Streams rows in the order of the chain. --since and --until take a time (RFC 3339), a date (from its start on, UTC) or a duration
that ends now.
Addresses and user agents of visitors are left out unless --visitors is given.`,
		Example: `  worker audit export --since 720h --format jsonl | gzip > audit.jsonl.gz
  worker audit export --since 2026-11-01 --until 2026-12-01 > november.csv
  worker audit export --customer cus_9s6XKzkNRiz8i3 --visitors > timeline.csv`,
		Args: cobra.NoArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		write := map[string]func(audit.Export, context.Context, *pgxpool.Pool, io.Writer) (int64, error){"csv": audit.Export.CSV, "jsonl": audit.Export.JSONL}[format]
		if write == nil {
			return cli.Usagef("--format must be csv or jsonl")
		}
		err := cli.NoneEmpty(cmd, "customer", "campaign", "since", "until")
		if err != nil {
			return err
		}
		now := time.Now()
		if e.Since, err = parseWhen("since", since, now); err != nil {
			return err
		}
		if e.Until, err = parseWhen("until", until, now); err != nil {
			return err
		}
		if !e.Until.IsZero() && !e.Since.Before(e.Until) {
			return cli.Usagef("--until: must be after --since")
		}
		return withAudit(func(ctx context.Context, cmd *cobra.Command, db *pgxpool.Pool) error {
			n, err := write(e, ctx, db, cmd.OutOrStdout())
			if err == nil {
				fmt.Fprintln(cmd.ErrOrStderr(), count(n, "row"))
			}
			return err
		})(cmd, args)
	}
	cmd.Flags().StringVar(&since, "since", "", "rows from then on: 2026-11-01, 2026-11-01T09:00:00Z or 720h")
	cmd.Flags().StringVar(&until, "until", "", "rows before then")
	cmd.Flags().StringVar(&e.Customer, "customer", "", "rows about links of this customer")
	cmd.Flags().StringVar(&e.Campaign, "campaign", "", "rows about links of this campaign")
	cmd.Flags().StringVar(&format, "format", "csv", "csv or jsonl")
	cmd.Flags().BoolVar(&e.Visitors, "visitors", false, "with ip and user_agent, where they are not erased yet")
	return cmd
}

// parseWhen takes a flag's time, date (its start, UTC) or duration before now; empty is the zero time.
func parseWhen(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, cli.Usagef("--%s %s: must be a time such as 2026-11-01T09:00:00Z, a date or a duration such as 720h", flag, cli.Printable(s))
}

func newAuditEraseCommand() *cobra.Command {
	var of audit.Erasure
	cmd := &cobra.Command{
		Use:   "erase --customer ID",
		Short: "Delete what is personal of one customer; the audit's proof still holds",
		Long: `Deletes the visitors' rows (addresses, user agents) of the customer's links, and from the links where they were
delivered to and with what data. The audit itself holds none of these. The links live on, but those that were to be
delivered are not delivered or renewed any more, and their request ids can't be used again. Dead letters stay in NATS: see docs/audit.md.
An audit row (audit.erased) says that it was done, of which customer, by whom and why.

The user of DATABASE_URL must be the schema's owner, as for 'worker migrate'.`,
		Example: "  worker audit erase --customer cus_9s6XKzkNRiz8i3 --reason 'request 4711 of 2026-11-27'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if of.Customer == "" {
				return cli.Usagef("--customer: is empty")
			}
			if !portal.ValidBy(of.By, of.Reason) {
				return cli.Usagef("--by and --reason take at most 200 characters of UTF-8, and --by at least one")
			}
			url, err := loadDatabaseURL()
			if err != nil {
				return err
			}
			if err := checkSchema(cmd.Context(), url); err != nil {
				return err
			}
			db, err := plainPool(cmd.Context(), url)
			if err != nil {
				return err
			}
			defer closePool(db)
			erased, err := audit.Erase(cmd.Context(), db, of)
			if errors.Is(err, audit.ErrNoSuchCustomer) {
				return fmt.Errorf("%w: %s", err, cli.Printable(of.Customer))
			}
			if err == nil {
				cmd.Printf("erased %s of visitors, and the deliveries of %s\n", count(erased.Visitors, "row"), count(erased.Links, "link"))
				cmd.Printf("who looks at one of their links from now on, also at one that has ended, is written down again: erase again, or wait for VISITOR_RETENTION\n")
			}
			return err
		},
	}
	cmd.Flags().StringVar(&of.Customer, "customer", "", "customer or customer account, as in links.stripe_customer (required)")
	cmd.Flags().StringVar(&of.Reason, "reason", "", "for the audit; no personal data, since it stays")
	cmd.Flags().StringVar(&of.By, "by", cli.UserName(), "who erases, for the audit")
	_ = cmd.MarkFlagRequired("customer")
	return cmd
}
