package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/jobs"
	"latchkey/internal/producer"
)

func newDeadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "Read rejected requests, and send them again",
		Long: `A request that can never be served becomes a dead letter in the stream ` + jobs.DeadStream + `: as it came,
with the reason. Letters stay there until they are replayed, or until the stream's own limits.`,
		Example: "  enqueue dead list --since 24h\n  enqueue dead show 12\n  enqueue dead replay 12",
	}
	cmd.AddCommand(newDeadListCommand(), newDeadShowCommand(), newDeadReplayCommand())
	return cmd
}

// letterFlags are the filters that list and replay share.
type letterFlags struct {
	code, source, since, until string
	limit                      int
}

func (f *letterFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.code, "code", "", "only letters of this code, such as invalid_field")
	flags.StringVar(&f.source, "source", "", "only requests of this source, such as dunning")
	flags.StringVar(&f.since, "since", "", "rejected at this time or later: RFC 3339, or a duration back such as 24h")
	flags.StringVar(&f.until, "until", "", "rejected at this time or before, in the same form")
	flags.IntVar(&f.limit, "limit", 0, "at most so many, the oldest first (default: no limit)")
}

func (f *letterFlags) given() bool { return *f != letterFlags{} }

var codePattern = regexp.MustCompile(`^[a-z_]{1,40}$`)

func (f *letterFlags) filter(cmd *cobra.Command, now time.Time) (filter producer.DeadFilter, err error) {
	if err := cli.NoneEmpty(cmd, "code", "source", "since", "until"); err != nil {
		return filter, err
	}
	filter = producer.DeadFilter{Code: f.code, Source: f.source, Limit: f.limit}
	if f.code != "" && !codePattern.MatchString(f.code) {
		return filter, cli.Usagef("--code takes a code such as invalid_field")
	}
	if f.source != "" && !jobs.ValidSource(f.source) {
		return filter, cli.Usagef("--source must match [a-z0-9_-]{1,40}")
	}
	if f.limit < 0 {
		return filter, cli.Usagef("--limit must not be negative")
	}
	if filter.Since, err = moment("--since", f.since, now); err != nil {
		return filter, err
	}
	if filter.Until, err = moment("--until", f.until, now); err != nil {
		return filter, err
	}
	if !filter.Until.IsZero() && filter.Until.Before(filter.Since) {
		return filter, cli.Usagef("--until is before --since")
	}
	return filter, nil
}

// moment reads a time, or a duration back from now; empty is the zero time.
func moment(name, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if back, err := time.ParseDuration(s); err == nil && back >= 0 {
		return now.Add(-back), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, cli.Usagef("%s takes a time such as 2026-11-25T08:00:00Z, or a duration back such as 24h", name)
	}
	return at, nil
}

func newDeadListCommand() *cobra.Command {
	var f letterFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List rejected requests",
		Long: `Prints a line for each letter, the oldest first: the letter's number, when the request was rejected,
the code, the source, the request's id where it can be read, and the reason. At the end, on stderr,
how many of each code.`,
		Example: "  enqueue dead list --since 24h\n  enqueue dead list --code invalid_field --source dunning\n  enqueue dead list --json | jq -r .reason | sort | uniq -c | sort -rn",
		Args:    cobra.NoArgs,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, _ []string) error {
			filter, err := f.filter(cmd, time.Now())
			if err != nil {
				return err
			}
			return listLetters(ctx, cmd, client, filter, asJSON)
		}),
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line for each letter")
	return cmd
}

func listLetters(ctx context.Context, cmd *cobra.Command, client *producer.Client, filter producer.DeadFilter, asJSON bool) error {
	dead, err := client.DeadLetters(ctx)
	if err != nil {
		return err
	}
	table := letterTable{w: cmd.OutOrStdout(), width: cli.Width(cmd.OutOrStdout()), json: asJSON}
	counts := map[string]uint64{}
	err = dead.Each(ctx, filter, func(l *producer.DeadLetter) error {
		counts[l.Code]++
		return table.print(l)
	})
	if err != nil {
		return err
	}
	if len(counts) > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "enqueue: %s\n", countLetters(counts))
		return nil
	}
	return tellNone(ctx, cmd, dead)
}

// tellNone says that no letter fits, and what there is instead: perhaps a filter was mistyped.
func tellNone(ctx context.Context, cmd *cobra.Command, dead *producer.DeadLetters) error {
	counts, err := dead.Count(ctx)
	if err != nil {
		return err
	}
	if len(counts) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "enqueue: there are no dead letters")
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "enqueue: no letter fits; there are in all %s\n", countLetters(counts))
	return nil
}

// countLetters is such as "3 letters: expired 1, invalid_field 2".
func countLetters(counts map[string]uint64) string {
	var total uint64
	var parts []string
	for _, code := range slices.Sorted(maps.Keys(counts)) {
		total += counts[code]
		parts = append(parts, fmt.Sprintf("%s %d", cli.Printable(code), counts[code]))
	}
	return fmt.Sprintf("%s: %s", letters(total), strings.Join(parts, ", "))
}

func letters(n uint64) string {
	if n == 1 {
		return "1 letter"
	}
	return fmt.Sprintf("%d letters", n)
}

// letterTable prints a row at a time, so the columns' widths are fixed.
type letterTable struct {
	w     io.Writer
	width int // of the terminal; 0 = none, nothing is cut
	json  bool
	begun bool
}

// On a terminal narrower than wideRow the reason has a line of its own, or little of it would be
// seen.
const (
	letterRow = "%-6v  %-16s  %-13s  %-9s  %-24s  %s"
	wideRow   = 120
)

func (t *letterTable) print(l *producer.DeadLetter) error {
	if t.json {
		return t.printJSON(l)
	}
	if !t.begun {
		t.begun = true
		if err := t.row("LETTER", "REJECTED", "CODE", "SOURCE", "REQUEST", "REASON"); err != nil {
			return err
		}
	}
	id := l.RequestID()
	if id == "" {
		id = "–"
	}
	if t.width > 0 {
		id = cli.Cut(id, 24)
	}
	return t.row(l.Sequence, l.At.Local().Format("2006-01-02 15:04"), cli.Printable(l.Code), cli.Printable(l.Source()), id, cli.Printable(l.Reason))
}

func (t *letterTable) row(letter any, at, code, source, id, reason string) error {
	lines := []string{fmt.Sprintf(letterRow, letter, at, code, source, id, reason)}
	if t.width > 0 && t.width < wideRow {
		lines = []string{fmt.Sprintf(letterRow, letter, at, code, source, id, ""), "        " + reason}
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(t.w, strings.TrimRight(cli.Cut(line, t.width), " ")); err != nil {
			return err
		}
	}
	return nil
}

func (t *letterTable) printJSON(l *producer.DeadLetter) error {
	requestSequence, _ := strconv.ParseUint(l.RequestSequence, 10, 64)
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	err := enc.Encode(struct {
		Sequence        uint64    `json:"sequence"`
		At              time.Time `json:"at"`
		Code            string    `json:"code"`
		Reason          string    `json:"reason"`
		Source          string    `json:"source"`
		RequestID       string    `json:"request_id"`
		Subject         string    `json:"subject"`
		RequestSequence uint64    `json:"request_sequence"`
		Bytes           int       `json:"bytes"`
	}{l.Sequence, l.At.UTC(), l.Code, l.Reason, l.Source(), l.RequestID(), l.Subject, requestSequence, len(l.Body)})
	if err != nil {
		return err
	}
	_, err = io.WriteString(t.w, cli.Escape(line.Bytes()))
	return err
}

func newDeadShowCommand() *cobra.Command {
	var raw bool
	cmd := &cobra.Command{
		Use:   "show LETTER",
		Short: "Show one rejected request with the reason",
		Long: `Shows the letter of this number ('enqueue dead list' tells it): the reason, the request's headers, and
its body, indented where it is JSON. What would move the cursor is shown as \uXXXX, or \xXX where it
is no UTF-8. With --raw writes the body alone, byte for byte.`,
		Example: "  enqueue dead show 12\n  enqueue dead show 12 --raw > request.json && $EDITOR request.json && enqueue link --request request.json",
		Args:    cobra.ExactArgs(1),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, args []string) error {
			numbers, err := letterNumbers(args)
			if err != nil {
				return err
			}
			dead, err := client.DeadLetters(ctx)
			if err != nil {
				return err
			}
			l, err := dead.Get(ctx, numbers[0])
			if err != nil {
				return fmt.Errorf("letter %d: %w", numbers[0], err)
			}
			if raw {
				return writeRaw(cmd.OutOrStdout(), l.Body)
			}
			return showLetter(cmd.OutOrStdout(), l)
		}),
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "write the body alone, as it came")
	return cmd
}

func letterNumbers(args []string) ([]uint64, error) {
	var numbers []uint64
	for _, arg := range args {
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil || n == 0 {
			return nil, cli.Usagef("%q is no letter's number; 'enqueue dead list' tells them", arg)
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// writeRaw leaves a terminal alone that the bytes would play with.
func writeRaw(w io.Writer, body []byte) error {
	hostile := func(r rune) bool { return !unicode.IsPrint(r) && !strings.ContainsRune("\n\r\t", r) }
	if cli.Width(w) > 0 && (!utf8.Valid(body) || bytes.ContainsFunc(body, hostile)) {
		return errors.New("the body holds what would move the terminal's cursor; send it to a file or a pipe")
	}
	_, err := w.Write(body)
	return err
}

func showLetter(w io.Writer, l *producer.DeadLetter) error {
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "%-9s %s\n", name, cli.Printable(value)) }
	line("letter", strconv.FormatUint(l.Sequence, 10))
	line("rejected", l.At.Local().Format("2006-01-02 15:04:05 -07:00"))
	line("code", l.Code)
	line("reason", l.Reason)
	line("subject", fmt.Sprintf("%s (message %s of %s)", l.Subject, l.RequestSequence, jobs.RequestsStream))
	if id := l.RequestID(); id != "" {
		line("request", id)
	} else {
		line("request", "– (no id that can be read)")
	}
	for _, name := range slices.Sorted(maps.Keys(l.Header)) {
		for _, value := range l.Header[name] {
			line("header", name+": "+value)
		}
	}
	text, isJSON := pretty(l.Body)
	kind := "JSON"
	if !isJSON {
		kind = "not JSON"
	}
	line("body", fmt.Sprintf("%d bytes, %s", len(l.Body), kind))
	fmt.Fprintf(&b, "\n%s\n", text)
	_, err := io.WriteString(w, b.String())
	return err
}

// prettyDepth bounds what is indented: a megabyte that nests ten thousand deep would become
// gigabytes of spaces.
const prettyDepth = 40

// pretty indents JSON, also JSON that a request may not be (a name given twice, invalid UTF-8), and
// escapes what does not print.
func pretty(body []byte) (text string, isJSON bool) {
	depth, err := depth(body)
	if err == nil && depth <= prettyDepth {
		value := jsontext.Value(bytes.Clone(body))
		if value.Indent(jsontext.WithIndent("  ")) == nil {
			body = value
		}
	}
	return cli.Escape(body), err == nil
}

// depth is how deep JSON nests; the error is that of what is no JSON.
func depth(body []byte) (deepest int, err error) {
	dec := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for depth := -1; ; deepest = max(deepest, depth) {
		_, err := dec.ReadToken()
		switch {
		case errors.Is(err, io.EOF) && depth == 0:
			return deepest, nil
		case err != nil:
			return 0, err
		case depth == 0:
			return 0, errors.New("something follows the value")
		}
		depth = dec.StackDepth()
	}
}

// readAll reads an argument that is a file's path, or - for stdin.
func readAll(cmd *cobra.Command, path string, limit int64) ([]byte, error) {
	in := cmd.InOrStdin()
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	content, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return content, err
}
