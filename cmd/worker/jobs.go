package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
)

// What a person can do something about: jobs that ended without success, and those that may yet.
var (
	gaveUp     = []rivertype.JobState{rivertype.JobStateDiscarded, rivertype.JobStateCancelled}
	unfinished = slices.DeleteFunc(rivertype.JobStates(), func(s rivertype.JobState) bool { return s == rivertype.JobStateCompleted })
	repeated   = append([]rivertype.JobState{rivertype.JobStateRetryable}, gaveUp...)
	notByHand  = []rivertype.JobState{rivertype.JobStateDiscarded, rivertype.JobStateRetryable}
)

func newJobsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "jobs",
		Short: "See, retry and cancel jobs that gave up or wait",
		Long: `Jobs do what follows a link: publish its events, send its mail, call a webhook. One that fails is
retried with growing pauses and given up after its last attempt ('discarded'); it is then deleted
after 7 days, a cancelled one after a day, a completed one after 10 minutes. Needs DATABASE_URL
alone, and works under the worker's role.`,
		Example: "  worker jobs list\n  worker jobs retry 4711\n  worker jobs cancel 4711",
	}
	cmd.AddCommand(newJobsListCommand(), newJobsRetryCommand(), newJobsCancelCommand())
	return cmd
}

// jobQueue is River's client for looking and for changing states. It works no job.
type jobQueue struct {
	pool  *pgxpool.Pool
	river *river.Client[pgx.Tx]
}

// withJobs opens the database, under the worker's role, for the time of one command.
func withJobs(f func(ctx context.Context, cmd *cobra.Command, q *jobQueue, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		url, err := loadDatabaseURL()
		if err != nil {
			return err
		}
		if err := checkSchema(ctx, url); err != nil {
			return err
		}
		pool, err := openAppPool(ctx, url, func(cfg *pgxpool.Config) { cfg.MaxConns = 2 }, nil)
		if err != nil {
			return err
		}
		defer pool.Close()
		client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return fmt.Errorf("river: %w", err)
		}
		return f(ctx, cmd, &jobQueue{pool: pool, river: client}, args)
	}
}

// jobFilter chooses jobs; what is empty takes all.
type jobFilter struct {
	states      []string
	kind, queue string
}

func (f *jobFilter) check() error {
	for _, s := range f.states {
		if !slices.Contains(rivertype.JobStates(), rivertype.JobState(s)) {
			return cli.Usagef("--state %s: a state is one of %s", cli.Printable(s), joinStates(rivertype.JobStates()))
		}
	}
	return nil
}

func joinStates(states []rivertype.JobState) string {
	names := make([]string, len(states))
	for i, s := range states {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}

// chosen is the states asked for, or else the ones given.
func (f *jobFilter) chosen(otherwise []rivertype.JobState) []rivertype.JobState {
	if len(f.states) == 0 {
		return otherwise
	}
	states := make([]rivertype.JobState, len(f.states))
	for i, s := range f.states {
		states[i] = rivertype.JobState(s)
	}
	return states
}

// params go by id, which is the order of creation: a state's own time is null in others.
func (f *jobFilter) params(states []rivertype.JobState, order river.SortOrder, limit int) *river.JobListParams {
	p := river.NewJobListParams().States(states...).OrderBy(river.JobListOrderByID, order).First(limit)
	if f.kind != "" {
		p = p.Kinds(f.kind)
	}
	if f.queue != "" {
		p = p.Queues(f.queue)
	}
	return p
}

// maxListed is the most that River lists at once.
const maxListed = 10_000

func newJobsListCommand() *cobra.Command {
	var f jobFilter
	var limit int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List jobs that gave up or wait",
		Long: `Prints how many there are of each kind and state, then a line for each, the newest first: when its
next attempt is, or when it ended, and the last error. Without --state all but completed ones:
discarded and cancelled ones gave up; available, scheduled, retryable and running ones have not yet.`,
		Example: "  worker jobs list\n  worker jobs list --kind email --state discarded\n  worker jobs list --json | jq -r .error | sort | uniq -c | sort -rn",
		Args:    cobra.NoArgs,
		RunE: withJobs(func(ctx context.Context, cmd *cobra.Command, q *jobQueue, _ []string) error {
			if limit < 1 || limit > maxListed {
				return cli.Usagef("--limit must be from 1 to %d", maxListed)
			}
			if err := f.check(); err != nil {
				return err
			}
			return q.list(ctx, cmd, &f, limit, asJSON)
		}),
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.states, "state", nil, "states, with commas (default: all but completed)")
	flags.StringVar(&f.kind, "kind", "", "only jobs of this kind, such as email")
	flags.StringVar(&f.queue, "queue", "", "only jobs of this queue")
	flags.IntVar(&limit, "limit", 50, "at most so many, the newest first")
	flags.BoolVar(&asJSON, "json", false, "print JSON, a line for each job")
	return cmd
}

func (q *jobQueue) list(ctx context.Context, cmd *cobra.Command, f *jobFilter, limit int, asJSON bool) error {
	states := f.chosen(unfinished)
	result, err := q.river.JobList(ctx, f.params(states, river.SortOrderDesc, limit))
	if err != nil {
		return fmt.Errorf("list jobs: %w", err)
	}
	w := cmd.OutOrStdout()
	if asJSON {
		return printJobsJSON(w, result.Jobs)
	}
	counts, total, err := q.count(ctx, f, states)
	if err != nil {
		return fmt.Errorf("count jobs: %w", err)
	}
	if total == 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "worker: no job fits (states: %s)\n", joinStates(states))
		return nil
	}
	if _, err := fmt.Fprintf(w, "%s\n", counts); err != nil {
		return err
	}
	if err := printJobs(w, result.Jobs); err != nil {
		return err
	}
	if n := len(result.Jobs); n < total {
		fmt.Fprintf(cmd.ErrOrStderr(), "worker: the newest %d of %d; --limit shows more\n", n, total)
	}
	return nil
}

// count is a table of kinds and states, and how many jobs that is.
func (q *jobQueue) count(ctx context.Context, f *jobFilter, states []rivertype.JobState) (table string, total int, err error) {
	rows, err := q.pool.Query(ctx, `
		SELECT kind, state::text, count(*) FROM river_job
		WHERE state = ANY($1::text[]::river_job_state[]) AND ($2 = '' OR kind = $2) AND ($3 = '' OR queue = $3)
		GROUP BY kind, state ORDER BY kind, state`, states, f.kind, f.queue)
	if err != nil {
		return "", 0, err
	}
	var b strings.Builder
	tab := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	var kind, state string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&kind, &state, &n}, func() error {
		total += n
		_, err := fmt.Fprintf(tab, "%s\t%s\t%d\n", cli.Printable(kind), state, n)
		return err
	})
	_ = tab.Flush() // a builder takes everything
	return b.String(), total, err
}

// maxError bounds an error in a table; --json has all of it.
const maxError = 200

func printJobs(w io.Writer, jobs []*rivertype.JobRow) error {
	var table bytes.Buffer
	tab := tabwriter.NewWriter(&table, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tab, "JOB\tKIND\tSTATE\tATTEMPTS\tNEXT OR ENDED\tLAST ERROR")
	for _, job := range jobs {
		fmt.Fprintf(tab, "%d\t%s\t%s\t%d\t%s\t%s\n", job.ID, cli.Printable(job.Kind), job.State, job.Attempt,
			jobTime(job).Local().Format(time.DateTime), cli.Cut(lastError(job), maxError))
	}
	_ = tab.Flush() // a buffer takes everything
	width := cli.Width(w)
	for line := range strings.Lines(table.String()) {
		if _, err := fmt.Fprintln(w, cli.Cut(strings.TrimRight(line, " \n"), width)); err != nil {
			return err
		}
	}
	return nil
}

// jobTime is when a job ended, began or is to begin.
func jobTime(job *rivertype.JobRow) time.Time {
	switch {
	case job.FinalizedAt != nil:
		return *job.FinalizedAt
	case job.State == rivertype.JobStateRunning && job.AttemptedAt != nil:
		return *job.AttemptedAt
	}
	return job.ScheduledAt
}

// lastError is our own text, but what it quotes may not be.
func lastError(job *rivertype.JobRow) string {
	if len(job.Errors) == 0 {
		return ""
	}
	return cli.Printable(strings.Join(strings.Fields(job.Errors[len(job.Errors)-1].Error), " "))
}

func printJobsJSON(w io.Writer, jobs []*rivertype.JobRow) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	for _, job := range jobs {
		out.Reset()
		var last string
		if n := len(job.Errors); n > 0 {
			last = job.Errors[n-1].Error
		}
		if err := enc.Encode(struct {
			ID          int64              `json:"id"`
			Kind        string             `json:"kind"`
			Queue       string             `json:"queue"`
			State       rivertype.JobState `json:"state"`
			Attempt     int                `json:"attempt"`
			MaxAttempts int                `json:"max_attempts"`
			CreatedAt   time.Time          `json:"created_at"`
			At          time.Time          `json:"at"`
			Args        json.RawMessage    `json:"args"`
			Error       string             `json:"error"`
		}{job.ID, job.Kind, job.Queue, job.State, job.Attempt, job.MaxAttempts, job.CreatedAt.UTC(), jobTime(job).UTC(), job.EncodedArgs, last}); err != nil {
			return err
		}
		if _, err := io.WriteString(w, cli.Escape(out.Bytes())); err != nil {
			return err
		}
	}
	return nil
}

func newJobsRetryCommand() *cobra.Command {
	var f jobFilter
	var all bool
	cmd := &cobra.Command{
		Use:   "retry JOB…",
		Short: "Put jobs to work now",
		Long: `Puts jobs that were discarded or cancelled, or wait for their next attempt, to work now; one that has
used up its attempts gets one more. Prints a line of what it did for each. --all takes every
discarded and retryable job of a kind; cancelled ones (by hand, or because the error can't mend) only
by number, or with --state cancelled.`,
		Example: "  worker jobs retry 4711 4712\n  worker jobs retry --all --kind webhook\n  worker jobs retry --all --kind email --state discarded",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case all == (len(args) > 0):
				return errors.New("takes jobs' numbers, or --all with --kind; 'worker jobs list' tells what there is")
			case all && f.kind == "":
				return errors.New("--all wants --kind")
			case !all && (f.kind != "" || f.queue != "" || len(f.states) > 0):
				return errors.New("--kind, --queue and --state go with --all")
			}
			return nil
		},
		RunE: withJobs(func(ctx context.Context, cmd *cobra.Command, q *jobQueue, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			for _, s := range f.chosen(nil) {
				if !slices.Contains(repeated, s) {
					return cli.Usagef("--state: jobs that are %s can't be retried; %s can", s, joinStates(repeated))
				}
			}
			retry := &jobChange{cmd: cmd, queue: q, what: "retry", from: repeated, change: q.river.JobRetryTx}
			if all {
				return retry.end(retry.all(ctx, &f))
			}
			return retry.end(retry.numbered(ctx, args))
		}),
	}
	flags := cmd.Flags()
	flags.BoolVar(&all, "all", false, "all jobs of a kind, in place of numbers")
	flags.StringSliceVar(&f.states, "state", nil, "with --all: states, with commas (default: discarded, retryable)")
	flags.StringVar(&f.kind, "kind", "", "with --all: the kind, such as webhook")
	flags.StringVar(&f.queue, "queue", "", "with --all: only jobs of this queue")
	return cmd
}

func newJobsCancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel JOB…",
		Short: "End jobs that wait, for good",
		Long: `Ends jobs that have not ended yet; nothing tries them again. One that is running is asked to stop and
may yet complete. Prints a line of what it did for each. What a cancelled job was to do is not done:
a mail is not sent, the events of a publish job are never published. 'worker jobs retry' takes a
cancellation back for a day; then the job is deleted.`,
		Example: "  worker jobs cancel 4711",
		Args:    cobra.MinimumNArgs(1),
		RunE: withJobs(func(ctx context.Context, cmd *cobra.Command, q *jobQueue, args []string) error {
			open := slices.DeleteFunc(rivertype.JobStates(), func(s rivertype.JobState) bool {
				return s == rivertype.JobStateCompleted || slices.Contains(gaveUp, s)
			})
			cancel := &jobChange{cmd: cmd, queue: q, what: "cancel", from: open, change: q.river.JobCancelTx}
			return cancel.end(cancel.numbered(ctx, args))
		}),
	}
}

// jobChange does one thing to one job after the other.
type jobChange struct {
	cmd    *cobra.Command
	queue  *jobQueue
	what   string               // the command's name
	from   []rivertype.JobState // it may be done to
	change func(ctx context.Context, tx pgx.Tx, id int64) (*rivertype.JobRow, error)

	done, failed int
}

func (c *jobChange) numbered(ctx context.Context, args []string) error {
	ids := make([]int64, len(args))
	for i, arg := range args {
		id, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || id < 1 {
			return cli.Usagef("%q is no job's number; 'worker jobs list' tells them", arg)
		}
		ids[i] = id
	}
	for _, id := range ids {
		if err := c.one(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// all takes the jobs that are there now, each once: one that fails again meanwhile has its old
// number, and is not met a second time.
func (c *jobChange) all(ctx context.Context, f *jobFilter) error {
	states := f.chosen(notByHand)
	newest, err := c.queue.river.JobList(ctx, f.params(states, river.SortOrderDesc, 1))
	if err != nil {
		return fmt.Errorf("list jobs: %w", err)
	}
	if len(newest.Jobs) == 0 {
		fmt.Fprintf(c.cmd.ErrOrStderr(), "worker: no job fits (states: %s)\n", joinStates(states))
		return nil
	}
	page := f.params(states, river.SortOrderAsc, 100)
	for {
		result, err := c.queue.river.JobList(ctx, page)
		if err != nil {
			return fmt.Errorf("list jobs: %w", err)
		}
		for _, job := range result.Jobs {
			if job.ID > newest.Jobs[0].ID {
				return nil
			}
			if err := c.one(ctx, job.ID); err != nil {
				return err
			}
		}
		if len(result.Jobs) == 0 {
			return nil
		}
		page = page.After(result.LastCursor)
	}
}

// errNotNow is returned for a job whose state does not allow it.
var errNotNow = errors.New("not in this state")

// one changes a job and writes down what it did. The error is one that the next job would meet too.
func (c *jobChange) one(ctx context.Context, id int64) error {
	var before, after *rivertype.JobRow
	err := pgx.BeginFunc(ctx, c.queue.pool, func(tx pgx.Tx) (err error) {
		// Locked, so that no worker completes it between the look and the change: River would set
		// a completed job to work again.
		if _, err = tx.Exec(ctx, `SELECT FROM river_job WHERE id = $1 FOR UPDATE`, id); err != nil {
			return err
		}
		if before, err = c.queue.river.JobGetTx(ctx, tx, id); err != nil {
			return err
		}
		if !slices.Contains(c.from, before.State) {
			return errNotNow
		}
		after, err = c.change(ctx, tx, id)
		return err
	})
	switch {
	case errors.Is(err, river.ErrNotFound):
		return c.fail("job %d: there is no such job (any more)", id)
	case errors.Is(err, errNotNow):
		return c.fail("job %d: is %s; %s takes jobs that are %s", id, before.State, c.what, joinStates(c.from))
	case err != nil:
		return fmt.Errorf("job %d: %w", id, err)
	}
	c.done++
	_, err = fmt.Fprintf(c.cmd.OutOrStdout(), "%s %s job=%d kind=%s queue=%s was=%s is=%s attempts=%d/%d args=%s by=%s\n", time.Now().UTC().Format(time.RFC3339), c.what, id,
		cli.Printable(before.Kind), cli.Printable(before.Queue), before.State, after.State, before.Attempt, before.MaxAttempts, cli.Cut(cli.Printable(string(before.EncodedArgs)), maxError), cli.UserName())
	return err
}

func (c *jobChange) fail(format string, args ...any) error {
	c.failed++
	_, err := fmt.Fprintf(c.cmd.ErrOrStderr(), "worker: "+format+"\n", args...)
	return err
}

func (c *jobChange) end(err error) error {
	if err != nil {
		return err
	}
	if c.done+c.failed > 1 {
		fmt.Fprintf(c.cmd.ErrOrStderr(), "worker: %s: %d done, %d not\n", c.what, c.done, c.failed)
	}
	if c.failed > 0 {
		return cli.ErrSilent
	}
	return nil
}
