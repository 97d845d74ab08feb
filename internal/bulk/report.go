package bulk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"latchkey/internal/jobs"
)

// Failure is a row without a link.
type Failure struct {
	Line   int
	Reason string
}

// maxFailures is how many a summary holds; the output has all of them.
const maxFailures = 20

// Summary is what became of a file.
type Summary struct {
	Progress

	Failures []Failure // the first of them, in order
	Elapsed  time.Duration
	Stopped  bool // before the end: run it again
}

// Failed is how many rows have an error.
func (s *Summary) Failed() int { return s.Rejected + s.Bad }

type report struct{ failures []Failure }

func (r *report) add(row *Row, result *Result) {
	if result.Err != "" && len(r.failures) < maxFailures {
		r.failures = append(r.failures, Failure{row.Line, result.Err})
	}
}

func (r *report) summary(p Progress, elapsed time.Duration) Summary {
	return Summary{Progress: p, Failures: r.failures, Elapsed: elapsed}
}

// explain adds to a rejection what only we know.
func explain(row *Row, result *Result) {
	if result.Code == jobs.IDConflict && row.Derived {
		result.Err += " (this one, " + row.ID + ", comes from campaign and customer; a customer who is to get several links, or another one than before, needs a column id)"
	}
}

// Check reads a whole file and holds each row against the rules that the worker has, as far as they are known without
// its settings. It needs no NATS. Rows counts the rows, Bad those that are not right; Stopped says that ctx ended before the
// file.
func Check(ctx context.Context, input Input, out io.Writer) (Summary, error) {
	begun := time.Now()
	c := checking{input: input, to: newWriter(Options{Input: input, Out: out})}
	err := c.to.header()
	for err == nil && ctx.Err() == nil {
		err = c.row()
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	summary := c.report.summary(c.progress, time.Since(begun))
	summary.Stopped = ctx.Err() != nil
	return summary, errors.Join(err, c.to.flush())
}

type checking struct {
	input    Input
	to       *writer
	report   report
	progress Progress
}

// row checks one; the error is one that ends the file.
func (c *checking) row() error {
	row, err := c.input.Read()
	if errors.Is(err, io.EOF) {
		return err
	}
	if err != nil {
		return fmt.Errorf("the file can't be read further: %w", err)
	}
	if row.Err == nil {
		row.Err = jobs.CheckRequest(row.Body, time.Now())
	}
	e := &entry{Row: row}
	c.progress.Rows++
	if row.Err != nil {
		c.progress.Bad++
		e.result.Err = row.Err.Error()
	}
	c.report.add(row, &e.result)
	return c.to.row(e)
}
