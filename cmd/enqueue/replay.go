package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/jobs"
	"latchkey/internal/producer"
)

// replayFlags say which letters are sent again, and how.
type replayFlags struct {
	letterFlags
	all, yes, keep, dryRun bool
	edit                   string
}

func newDeadReplayCommand() *cobra.Command {
	f := &replayFlags{}
	cmd := &cobra.Command{
		Use:   "replay LETTER…",
		Short: "Send rejected requests again",
		Long: `Publishes the request of each letter again, as it came: body, headers, subject. Once JetStream has
stored it, the letter is deleted; --keep leaves it. A request that is rejected again becomes a new
letter with its new reason, so nothing gets lost; --all takes only letters that were there when it
began.

A request's id gets one link, so replaying is safe to repeat: a letter that was sent already, and is
still here because the command was cut off, finds its link and makes no second one. A letter whose
request has no readable id is therefore not sent, unless --edit gives it one.

--edit applies a JSON Patch (RFC 6902) to each body. An edited request whose id has a link already,
with other content, is rejected once more, as id_conflict: edit the id too, then. A letter that the
patch does not fit is left as it is and the others go on.

--all without a filter is all there is and wants --yes; look with --dry-run before. Whether a request
was served after all: 'enqueue status ID', or 'enqueue dead list' for new letters.`,
		Example: `  enqueue dead replay 12 13
  enqueue dead replay --all --code mode_mismatch --since 24h --dry-run
  enqueue dead replay 12 --edit '[{"op": "remove", "path": "/sesion"}]' --dry-run
  enqueue dead replay --all --source dunning --code invalid_field --edit fix.json`,
		Args: func(_ *cobra.Command, args []string) error { return f.check(args) },
		RunE: withClient(f.run),
	}
	f.register(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.all, "all", false, "all letters that fit the filters, in place of numbers")
	flags.BoolVar(&f.yes, "yes", false, "with --all: yes, every letter there is")
	flags.StringVar(&f.edit, "edit", "", "JSON Patch for each body: a file, - for stdin, or the patch itself, '[…]'")
	flags.BoolVar(&f.keep, "keep", false, "leave the letters where they are")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would be sent, and send nothing")
	return cmd
}

func (f *replayFlags) check(args []string) error {
	switch {
	case f.all && len(args) > 0:
		return errors.New("takes letters' numbers or --all, not both")
	case !f.all && len(args) == 0:
		return errors.New("takes letters' numbers, or --all; 'enqueue dead list' tells what there is")
	case !f.all && f.given():
		return errors.New("the filters go with --all")
	case f.all && !f.given() && !f.yes && !f.dryRun:
		return errors.New("--all without a filter sends every letter again; look with --dry-run, then say --yes")
	}
	return nil
}

func (f *replayFlags) run(ctx context.Context, cmd *cobra.Command, client *producer.Client, args []string) error {
	filter, err := f.filter(cmd, time.Now())
	if err != nil {
		return err
	}
	numbers, err := letterNumbers(args)
	if err != nil {
		return err
	}
	r := &replay{cmd: cmd, keep: f.keep, dryRun: f.dryRun}
	if f.edit != "" {
		if r.edit, err = readEdit(cmd, f.edit); err != nil {
			return err
		}
	}
	if r.dead, err = client.DeadLetters(ctx); err != nil {
		return err
	}
	if f.all {
		err = r.dead.Each(ctx, filter, func(l *producer.DeadLetter) error { return r.one(ctx, l) })
	} else {
		err = r.numbered(ctx, numbers)
	}
	return r.end(ctx, err)
}

// replay is one run over some letters.
type replay struct {
	cmd          *cobra.Command
	dead         *producer.DeadLetters
	edit         *edit // nil = none
	keep, dryRun bool
	sent, failed uint64
}

func (r *replay) numbered(ctx context.Context, numbers []uint64) error {
	for _, n := range numbers {
		l, err := r.dead.Get(ctx, n)
		if err == nil {
			err = r.one(ctx, l)
		} else {
			err = r.fail(n, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// one sends a letter. The error is one that ends the run.
func (r *replay) one(ctx context.Context, l *producer.DeadLetter) error {
	if r.edit != nil {
		if err := r.edit.apply(l); err != nil {
			return r.fail(l.Sequence, err)
		}
	}
	if r.dryRun {
		return r.show(l)
	}
	sent, repeat, err := r.dead.Replay(ctx, l, r.keep)
	if err != nil {
		return r.fail(l.Sequence, err)
	}
	if sent {
		r.sent++
	}
	what := "sent again"
	if repeat {
		what = "was sent a moment ago"
	}
	_, err = fmt.Fprintf(r.cmd.OutOrStdout(), "letter %d  %s  %s\n", l.Sequence, what, l.RequestID())
	return err
}

// fail tells of a letter that was not sent. An error that the next one would meet too is returned.
func (r *replay) fail(number uint64, err error) error {
	r.failed++
	if producer.Unreachable(err) {
		return fmt.Errorf("letter %d: JetStream does not answer, or this user may not send to %s>; what is not known to be sent can be sent again: %w", number, jobs.RequestsPrefix, err)
	}
	fmt.Fprintf(r.cmd.ErrOrStderr(), "enqueue: letter %d: %s\n", number, cli.Printable(err.Error()))
	return nil
}

// show is the dry run of a letter.
func (r *replay) show(l *producer.DeadLetter) error {
	if err := l.CheckReplay(); err != nil {
		return r.fail(l.Sequence, err)
	}
	r.sent++
	w := r.cmd.OutOrStdout()
	if _, err := fmt.Fprintf(w, "letter %d  would be sent to %s  %s\n", l.Sequence, cli.Printable(l.Subject), l.RequestID()); err != nil || r.edit == nil {
		return err
	}
	text, _ := pretty(l.Body)
	_, err := fmt.Fprintln(w, text)
	return err
}

// end sums up. cause is what ended the run before its time.
func (r *replay) end(ctx context.Context, cause error) error {
	if r.sent+r.failed == 0 && cause == nil {
		return tellNone(ctx, r.cmd, r.dead)
	}
	what := "sent again"
	if r.dryRun {
		what = "would be sent again"
	}
	summary := fmt.Sprintf("%s %s", letters(r.sent), what)
	if r.failed > 0 {
		summary += fmt.Sprintf(", %d not", r.failed)
	}
	fmt.Fprintln(r.cmd.ErrOrStderr(), "enqueue: "+summary)
	if errors.Is(cause, context.Canceled) || cause == nil && r.failed > 0 {
		return cli.ErrSilent
	}
	return cause
}

// edit changes the bodies of letters.
type edit struct {
	patch jsonpatch.Patch
	given map[string]uint64 // ids that the patch gave, and the letter that got it
}

// maxPatchBytes bounds a patch; one that replaces a whole request fits.
const maxPatchBytes = 1 << 20

func readEdit(cmd *cobra.Command, arg string) (*edit, error) {
	text := []byte(strings.TrimSpace(arg))
	if !bytes.HasPrefix(text, []byte("[")) {
		var err error
		if text, err = readAll(cmd, arg, maxPatchBytes); err != nil {
			return nil, cli.Usagef("--edit: %v", err)
		}
	}
	patch, err := decodePatch(text)
	if err != nil {
		return nil, cli.Usagef(`--edit: is no JSON Patch (RFC 6902), such as '[{"op": "replace", "path": "/source", "value": "dunning"}]'`)
	}
	return &edit{patch: patch, given: map[string]uint64{}}, nil
}

var errNoPatch = errors.New("not a JSON Patch")

// decodePatch asks for what the library does not: without its value, a test panics.
func decodePatch(text []byte) (jsonpatch.Patch, error) {
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil || patch == nil {
		return nil, errNoPatch
	}
	for _, op := range patch {
		_, given := op["value"]
		if kind := op.Kind(); !given && (kind == "add" || kind == "replace" || kind == "test") {
			return nil, errNoPatch
		}
	}
	return patch, nil
}

// apply changes the letter's body. A patch gives every letter the same id, if it gives one: the
// second letter that gets it would be taken for a repeat of the first.
func (e *edit) apply(l *producer.DeadLetter) error {
	body := jsontext.Value(l.Body)
	if body.Kind() != '{' || !body.IsValid() {
		return errors.New("the body is no JSON object as a request must be, so no patch fits; mend it by hand ('show --raw') and send it by 'enqueue link --request -'")
	}
	before := l.RequestID()
	options := &jsonpatch.ApplyOptions{AccumulatedCopySizeLimit: jobs.MaxRequestBytes}
	changed, err := e.patch.ApplyWithOptions(bytes.TrimSpace(body), options)
	if err != nil {
		return fmt.Errorf("the patch does not fit: %w", err)
	}
	l.Body = changed
	if id := l.RequestID(); id != before && id != "" {
		if first, taken := e.given[id]; taken {
			return fmt.Errorf("the patch gives it the id that letter %d got; edit them one at a time", first)
		}
		e.given[id] = l.Sequence
	}
	return nil
}
