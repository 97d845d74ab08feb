package main

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"latchkey/internal/bulk"
	"latchkey/internal/cli"
)

// english writes numbers with commas.
var english = message.NewPrinter(language.English)

const (
	redraw = 200 * time.Millisecond // of the bar
	tell   = 10 * time.Second       // between two plain lines
)

// progress shows how far a run is: a bar on a terminal, a line now and then elsewhere. There is no colour in it.
type progress struct {
	to  io.Writer
	bar *progressbar.ProgressBar // nil = no terminal

	begun  time.Time
	told   time.Time
	before int // rows with a link, at the last look
	at     time.Time
	pace   float64
}

func newProgress(to io.Writer, size int64) *progress {
	now := time.Now()
	p := &progress{to: to, begun: now, told: now, at: now}
	if cli.Width(to) > 0 {
		p.bar = progressbar.NewOptions64(size, progressbar.OptionSetWriter(to), progressbar.OptionSetWidth(20), progressbar.OptionClearOnFinish(),
			progressbar.OptionShowDescriptionAtLineEnd(), progressbar.OptionThrottle(redraw/2),
			progressbar.OptionSetSpinnerChangeInterval(0)) // it turns when we draw, not by itself
	}
	return p
}

// watch looks again and again until the run has ended; each look is handed on.
func (p *progress) watch(ended <-chan struct{}, look func() bulk.Progress, seen func(bulk.Progress)) {
	ticker := time.NewTicker(redraw)
	defer ticker.Stop()
	for {
		select {
		case <-ended:
			if p.bar != nil {
				_ = p.bar.Clear()
			}
			return
		case now := <-ticker.C:
			state := look()
			seen(state)
			p.show(now, &state)
		}
	}
}

func (p *progress) show(now time.Time, state *bulk.Progress) {
	if elapsed := now.Sub(p.at); elapsed >= time.Second {
		p.pace = float64(state.Issued-p.before) / elapsed.Seconds()
		p.before, p.at = state.Issued, now
	}
	line := english.Sprintf("%d published, %d links, %d rejected, %.0f/s", state.Sent, state.Issued, state.Rejected+state.Bad, p.pace)
	if p.bar != nil {
		p.bar.Describe(line)
		_ = p.bar.Set64(state.Bytes)
	}
	if now.Sub(p.told) < tell {
		return
	}
	p.told = now
	if what, since := stalled(state); what != "" && now.Sub(since) >= tell {
		line = fmt.Sprintf("waiting for %s: %s", now.Sub(since).Round(time.Second), what)
	} else if p.bar != nil {
		return
	}
	if p.bar != nil {
		_ = p.bar.Clear()
	}
	fmt.Fprintf(p.to, "enqueue: %s\n", line)
}

// stalled says what a run waits for, and since when; nothing where it waits for its input only.
func stalled(p *bulk.Progress) (what string, since time.Time) {
	switch {
	case p.Away && p.Unstored+p.Unanswered > 0:
		since = p.AnswerDue
		if p.AckSince.After(since) {
			since = p.AckSince
		}
		return "the connection to NATS is lost; is the server up? It goes on once it is", since
	case p.Unstored > 0:
		what = "NATS does not confirm that it has stored requests"
		if p.Trouble != "" {
			what += " (" + cli.Printable(p.Trouble) + ")"
		}
		return what + "; they are sent again until it does", p.AckSince
	case p.Unanswered > 0:
		return english.Sprintf("%d requests are stored, and no worker answers; is 'worker run' up, with the role intake? They are served once it is", p.Unanswered), p.AnswerDue
	}
	return "", time.Time{}
}

// printSummary is what stays on the terminal.
func printSummary(to io.Writer, f *bulkFlags, s *bulk.Summary) {
	if f.dryRun {
		english.Fprintf(to, "enqueue: %d rows checked, %d would be rejected; nothing was sent\n", s.Rows, s.Bad)
	} else {
		open := ""
		if s.Unfinished > 0 {
			open = english.Sprintf(", %d without an answer yet", s.Unfinished)
		}
		english.Fprintf(to, "enqueue: %d rows: %d links, %d rejected, %d not sent%s; %.1f s, %.0f links a second\n",
			s.Rows, s.Issued, s.Rejected, s.Bad, open, s.Elapsed.Seconds(), float64(s.Issued)/s.Elapsed.Seconds())
	}
	for _, failure := range s.Failures {
		fmt.Fprintf(to, "  line %d: %s\n", failure.Line, cli.Printable(failure.Reason))
	}
	if more := s.Failed() - len(s.Failures); more > 0 {
		where := "--out FILE lists them"
		if f.out != "" && f.out != "-" {
			where = "see the column error of " + f.out
		} else if f.out == "-" {
			where = "see the column error"
		}
		english.Fprintf(to, "  … and %d more, %s\n", more, where)
	}
	if s.Stopped {
		printStopped(to, f, s)
	}
}

func printStopped(to io.Writer, f *bulkFlags, s *bulk.Summary) {
	if f.dryRun {
		fmt.Fprintln(to, "enqueue: stopped before the end of the file")
		return
	}
	fmt.Fprintln(to, "enqueue: stopped; run the same command again: it yields the same links, and makes none twice")
	if f.out != "" && f.out != "-" {
		english.Fprintf(to, "enqueue: %s has the first %d rows\n", f.out, s.Rows)
	}
}
