package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"latchkey/internal/bulk"
	"latchkey/internal/cli"
	"latchkey/internal/jobs"
)

type bulkFlags struct {
	campaign, source, out, format string
	checkStripe                   string
	ignoreUnknown, dryRun         bool
	rate                          float64
	timeout                       time.Duration
}

func newBulkCommand() *cobra.Command {
	f := &bulkFlags{}
	cmd := &cobra.Command{
		Use:   "bulk FILE",
		Short: "Ask for the links of a campaign, from CSV or JSON Lines",
		Long: `Publishes a request for each row of a file (- for stdin), and writes the links beside the rows. It
takes as little memory for a million rows as for ten.

The first line of a CSV names the columns: customer, or any field of a request by its dotted path, such as
locale, flow, subscription, email, template, data.name, metadata.invoice, expires_in,
session.flow_data.after_completion.type. Delimiters are , ; or tab. A line of JSON Lines is a whole request.

--out has the input's columns and behind them link_url, link_id, expires_at and error, in the input's order.
What is in there opens customers' portals: the file is its owner's alone.

A row without an id gets one made of campaign and customer. So the same command can be run again after
whatever cut it off, and yields the same links: none is made twice, no mail is sent twice.

--dry-run checks every row by the worker's own rules, and sends nothing. What it can't know is the worker's
settings: hosts of return URLs, the longest life of a link, mail templates.

--check-stripe sends nothing either, and has a worker look up in Stripe whether the customers exist, and whether the
portal is configured for what the rows want: 200 customers from all over the file, or each one with =all.

Exit code 1: some row has no link. The column error says why.`,
		Example: `  enqueue bulk customers.csv --campaign 2026-11-card-expiry --dry-run
  enqueue bulk customers.csv --campaign 2026-11-card-expiry --check-stripe
  enqueue bulk customers.csv --campaign 2026-11-card-expiry --out links.csv
  psql -c 'COPY (SELECT …) TO STDOUT CSV HEADER' | enqueue bulk - --campaign winback --out - > links.csv`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.campaign, "campaign", "", "campaign of rows that name none")
	flags.StringVar(&f.source, "source", "campaign", "source of rows that name none")
	flags.StringVar(&f.out, "out", "", "file for the links (- for stdout)")
	flags.StringVar(&f.format, "format", "", "csv or jsonl (default: by the file's name, else its first character)")
	flags.BoolVar(&f.ignoreUnknown, "ignore-unknown", false, "CSV: columns that are no field go to --out only, instead of being an error")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check every row, send nothing; needs no NATS")
	flags.StringVar(&f.checkStripe, "check-stripe", "", "send nothing; look up in Stripe what would go wrong: a sample, or =all customers")
	flags.Lookup("check-stripe").NoOptDefVal = checkSample
	flags.Float64Var(&f.rate, "rate", 0, "requests a second at most (default: no limit)")
	flags.DurationVar(&f.timeout, "timeout", 0, "stop when nothing has moved for so long, such as 5m (default: wait, and say for what)")
	return cmd
}

func (f *bulkFlags) check(file string) error {
	switch {
	case f.format != "" && f.format != string(bulk.CSV) && f.format != string(bulk.JSONL):
		return cli.Usagef("--format must be csv or jsonl")
	case f.campaign != "" && !jobs.ValidCampaign(f.campaign):
		return cli.Usagef("the campaign must match [A-Za-z0-9._-]{1,100}")
	case !jobs.ValidSource(f.source):
		return cli.Usagef("the source must match [a-z0-9_-]{1,40}")
	case f.checkStripe != "" && f.checkStripe != checkSample && f.checkStripe != checkAll:
		return cli.Usagef("--check-stripe is for a sample, --check-stripe=all for every customer")
	case f.checkStripe != "" && (f.dryRun || f.out != ""):
		return cli.Usagef("--check-stripe sends nothing and makes no links: leave out --dry-run and --out")
	case f.rate < 0:
		return cli.Usagef("--rate must be above 0")
	case f.timeout < 0:
		return cli.Usagef("--timeout must be above 0")
	}
	if out, err := os.Stat(f.out); f.dryRun && err == nil && out.Mode().IsRegular() {
		return cli.Usagef("--out %s is there already, and a dry run would replace its links by none; give it another name", f.out)
	}
	in, err := os.Stat(file)
	if err != nil {
		return nil // opening tells
	}
	if out, err := os.Stat(f.out); err == nil && os.SameFile(in, out) {
		return cli.Usagef("--out is the input file; give it another name")
	}
	return nil
}

func (f *bulkFlags) run(cmd *cobra.Command, name string) error {
	if err := f.check(name); err != nil {
		return err
	}
	file, size, err := openInput(cmd, name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	input, err := f.open(cmd.Context(), file, name)
	if err != nil {
		return err
	}
	if f.checkStripe != "" {
		return f.preflight(cmd, input, size)
	}
	if f.dryRun {
		return f.withOut(cmd, func(out io.Writer) (bulk.Summary, error) {
			return unlessStuck(cmd.Context(), func() (bulk.Summary, error) { return bulk.Check(cmd.Context(), input, out) })
		})
	}
	closed := make(chan error, 1)
	// Without a buffer: what is published while the server is away is for the run to send again.
	nc, err := connect(nats.ReconnectBufSize(-1), nats.ClosedHandler(func(nc *nats.Conn) { closed <- nc.LastError() }))
	if err != nil {
		return err
	}
	defer nc.Close()
	return f.withOut(cmd, func(out io.Writer) (bulk.Summary, error) { return f.send(cmd, nc, closed, input, out, size) })
}

// errStopped is of a command whose file had not been read to its end.
var errStopped = errors.New("stopped before the end of the file; nothing was sent")

// unlessStuck runs f, and leaves it behind where it goes on a second after ctx has ended: a pipe that nothing comes out
// of, or goes into, can't be left otherwise.
func unlessStuck[T any](ctx context.Context, f func() (T, error)) (result T, err error) {
	type outcome struct {
		result T
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		result, err := f()
		done <- outcome{result, err}
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
	}
	select {
	case o := <-done:
		return o.result, o.err
	case <-time.After(time.Second):
		return result, errStopped
	}
}

// openInput opens the file, whose size is -1 where it is not known.
func openInput(cmd *cobra.Command, name string) (io.ReadCloser, int64, error) {
	if name == "-" {
		return io.NopCloser(cmd.InOrStdin()), -1, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, 0, err
	case info.IsDir():
		return nil, 0, fmt.Errorf("%s is a folder", name)
	case !info.Mode().IsRegular():
		return file, -1, nil
	}
	return file, info.Size(), nil
}

// open looks at the file's beginning.
func (f *bulkFlags) open(ctx context.Context, file io.Reader, name string) (bulk.Input, error) {
	return unlessStuck(ctx, func() (bulk.Input, error) {
		return bulk.Open(file, name, bulk.Format(f.format), bulk.Defaults{Campaign: f.campaign, Source: f.source, IgnoreUnknown: f.ignoreUnknown})
	})
}

// withOut runs with the output that was asked for, and sums up.
func (f *bulkFlags) withOut(cmd *cobra.Command, run func(io.Writer) (bulk.Summary, error)) error {
	var summary bulk.Summary
	var err error
	switch f.out {
	case "":
		summary, err = run(nil)
	case "-":
		summary, err = run(cmd.OutOrStdout())
	default:
		var out *bulk.OutFile
		if out, err = bulk.Create(f.out); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		summary, err = run(out)
		switch {
		case summary.Elapsed == 0: // it did not begin
			out.Discard()
		case err == nil && !summary.Stopped:
			err = out.Finish()
		default: // what was there before is worth more than half a file
			kept, keepErr := out.Keep()
			f.out, err = kept, errors.Join(err, keepErr)
		}
	}
	if summary.Elapsed == 0 {
		return err
	}
	printSummary(cmd.ErrOrStderr(), f, &summary)
	if err == nil && (summary.Stopped || summary.Failed() > 0) {
		return cli.ErrSilent
	}
	return err
}

// send runs, shows how far it is, and gives up after --timeout.
func (f *bulkFlags) send(cmd *cobra.Command, nc *nats.Conn, closed <-chan error, input bulk.Input, out io.Writer, size int64) (bulk.Summary, error) {
	opts := bulk.Options{Conn: nc, Input: input, Out: out}
	if f.rate > 0 {
		opts.Pace = rate.NewLimiter(rate.Limit(f.rate), max(1, int(f.rate/20))).Wait // bursts of 50 ms
	}
	run, err := bulk.New(opts)
	if err != nil {
		return bulk.Summary{}, err
	}
	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	shown := newProgress(cmd.ErrOrStderr(), size)
	ended := make(chan struct{})
	go func() {
		select {
		case cause := <-closed: // for good: the server refuses us, for instance since a password was changed
			cancel(fmt.Errorf("NATS has ended the connection (%v); mend that and run the same command again", cause))
		case <-ended:
		}
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		shown.watch(ended, run.Progress, func(p bulk.Progress) {
			if what, since := stalled(&p); what != "" && f.timeout > 0 && time.Since(since) > f.timeout {
				cancel(fmt.Errorf("nothing has moved for %s: %s", f.timeout, what))
			}
		})
	}()
	summary, err := run.Do(ctx)
	close(ended)
	<-watched
	if cause := context.Cause(ctx); cause != nil && cmd.Context().Err() == nil && summary.Stopped {
		err = errors.Join(err, cause)
	}
	return summary, err
}
