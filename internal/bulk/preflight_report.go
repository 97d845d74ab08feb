package bulk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"

	"latchkey/internal/cli"
)

const (
	redraw = 200 * time.Millisecond // of the bar
	tell   = 10 * time.Second       // between two plain lines
)

// Report runs, writes problems and a summary to out, and meanwhile shows on shown how far it is: a bar on a
// terminal, a line now and then elsewhere. size is the file's in bytes, or -1. The error is cli.ErrSilent where problems
// were found.
func (p *Preflight) Report(ctx context.Context, out, shown io.Writer, size int64) error {
	if p.All {
		fmt.Fprintln(shown, "Each customer is one read of Stripe. At 20 a second (STRIPE_READ_RATE), 100,000 of them take 83 minutes.")
	}
	var bar *progressbar.ProgressBar
	told := time.Now()
	if cli.Width(shown) > 0 {
		bar = progressbar.NewOptions64(size, progressbar.OptionSetWriter(shown), progressbar.OptionSetWidth(20), progressbar.OptionClearOnFinish(),
			progressbar.OptionShowDescriptionAtLineEnd(), progressbar.OptionThrottle(redraw), progressbar.OptionSetSpinnerChangeInterval(0))
	}
	p.Told = func(now PreflightProgress) {
		line := english.Sprintf("%d rows read, %d customers and %d portal configurations looked up, %s", now.Rows, now.Asked, now.Plans, counted(now.Problems, "problem", "problems"))
		if bar != nil {
			bar.Describe(line)
			_ = bar.Set64(now.Bytes)
		} else if time.Since(told) >= tell {
			told = time.Now()
			if size > 0 {
				line += fmt.Sprintf(", %d%% of the file", now.Bytes*100/size)
			}
			fmt.Fprintln(shown, line)
		}
	}
	problems := 0
	p.Found = func(found PreflightProblem) {
		if problems++; problems > maxFailures {
			return
		}
		if bar != nil {
			_ = bar.Clear()
		}
		fmt.Fprintf(out, "line %d: %s\n", found.Line, cli.Printable(found.text()))
	}
	end, err := p.Run(ctx)
	if bar != nil {
		_ = bar.Clear()
	}
	if problems > maxFailures {
		english.Fprintf(out, "… and %d more\n", problems-maxFailures)
	}
	if ctx.Err() != nil {
		err = errors.New("stopped before the end")
	}
	fmt.Fprintf(out, "%s; %.1f s\n", end.summary(err == nil), end.Elapsed.Seconds())
	if err == nil && end.Problems > 0 {
		return cli.ErrSilent
	}
	return err
}

func (p PreflightProblem) text() string {
	if p.Customer == "" {
		return p.Reason
	}
	return p.Customer + " " + p.Reason
}
