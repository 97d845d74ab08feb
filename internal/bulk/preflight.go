package bulk

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"time"

	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// PreflightSample is how many customers are asked about, where not all are.
const PreflightSample = 200

// Preflight looks, before a campaign goes out, for what would keep its sessions from being made: at every row by
// Check, and by asking Stripe at customers and at the portal configurations and flows that the rows want of connected
// accounts, a sample of each or all, and at all those of its own account. It holds the samples, and eight bytes of what
// it has seen.
type Preflight struct {
	Input Input
	All   bool
	Check func(body []byte, now time.Time) error // of a request
	Ask   func(context.Context, []portal.PreflightQuestion) ([]portal.PreflightFinding, error)
	Told  func(PreflightProgress) // how far it is, now and then; Report sets it
	Found func(PreflightProblem)  // a problem; Report sets it

	progress  PreflightProgress
	seed      maphash.Seed
	seen      map[uint64]struct{}                   // questions, by hash: among a million, two are taken for one once in forty million files
	seenPlans map[portal.PreflightQuestion]struct{} // whatever the connected account
	sample    []asked                               // of customers
	accounts  []asked                               // sample of connected accounts' plans
	connected int                                   // such plans
	waiting   []asked                               // to be asked next
	random    *rand.Rand
}

// PreflightProgress counts.
type PreflightProgress struct {
	Rows, Customers int // in the file; Customers are distinct
	Asked           int // customers
	Plans           int // distinct configurations and flows that were asked about
	Unknown         int // rows with a customer_account, which there is no way to ask about
	Problems        int
	Bytes           int64
	Elapsed         time.Duration
	begun           time.Time
}

// PreflightProblem is a line of the file that would come to nothing.
type PreflightProblem struct {
	Line     int    // the first one with this customer, or configuration and flow
	Customer string // empty where it is not about one
	Reason   string
}

type asked struct {
	line     int
	question portal.PreflightQuestion
}

// maxPlans bounds the distinct configurations and flows of a file; more of them are no campaign.
const maxPlans = 1000

// Run returns how far it came, and an error where the file can't be read, or Stripe not be asked, or ctx has ended.
func (p *Preflight) Run(ctx context.Context) (PreflightProgress, error) {
	p.seed, p.seen, p.seenPlans = maphash.MakeSeed(), map[uint64]struct{}{}, map[portal.PreflightQuestion]struct{}{}
	p.random = rand.New(rand.NewPCG(1, 2)) // the same file has the same sample, so that a mended one can be looked at again
	p.progress.begun = time.Now()
	err := p.read(ctx)
	if err == nil {
		p.waiting = append(append(p.waiting, p.accounts...), p.sample...)
		err = p.ask(ctx, 1)
	}
	p.progress.Elapsed = time.Since(p.progress.begun)
	return p.progress, err
}

// read goes through the file, and asks as soon as there is enough to ask.
func (p *Preflight) read(ctx context.Context) error {
	for ctx.Err() == nil {
		row, err := p.Input.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the file can't be read further: %w", err)
		}
		if err := p.row(row); err != nil {
			return err
		}
		if err := p.ask(ctx, jobs.MostPreflightQuestions); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (p *Preflight) row(row *Row) error {
	p.progress.Rows++
	p.progress.Bytes = p.Input.Offset()
	if p.progress.Rows%1000 == 0 {
		p.Told(p.progress)
	}
	err := row.Err
	if err == nil {
		err = p.Check(row.Body, time.Now())
	}
	if err != nil {
		p.problem(PreflightProblem{Line: row.Line, Reason: err.Error()})
		return nil
	}
	plan, customer, err := jobs.PreflightQuestions(row.Body)
	if err != nil {
		return fmt.Errorf("line %d: %w", row.Line, err)
	}
	if p.isNew(plan) { // each connected account has portal configurations of its own
		if plan.StripeAccount == "" {
			p.waiting = append(p.waiting, asked{row.Line, plan})
		} else {
			p.draw(&p.accounts, &p.connected, asked{row.Line, plan})
		}
		plan.StripeAccount = ""
		if p.seenPlans[plan] = struct{}{}; len(p.seenPlans) > maxPlans {
			return fmt.Errorf("the file names more than %d configurations and flows; check that its columns are what they should be", maxPlans)
		}
	}
	if customer.Customer == "" {
		p.progress.Unknown++
		return nil
	}
	if p.isNew(customer) {
		p.draw(&p.sample, &p.progress.Customers, asked{row.Line, customer})
	}
	return nil
}

func (p *Preflight) isNew(q portal.PreflightQuestion) bool {
	n := len(p.seen)
	p.seen[maphash.Comparable(p.seed, q)] = struct{}{}
	return len(p.seen) > n
}

// draw takes each one, or each with the same chance (reservoir sampling), of those that n counts.
func (p *Preflight) draw(sample *[]asked, n *int, a asked) {
	*n++
	switch i := p.random.IntN(*n); {
	case p.All:
		p.waiting = append(p.waiting, a)
	case len(*sample) < PreflightSample:
		*sample = append(*sample, a)
	case i < PreflightSample:
		(*sample)[i] = a
	}
}

// ask asks what waits, once that is at least so much.
func (p *Preflight) ask(ctx context.Context, least int) error {
	for len(p.waiting) >= least {
		n := min(len(p.waiting), jobs.MostPreflightQuestions)
		chunk := p.waiting[:n]
		p.waiting = p.waiting[n:]
		questions := make([]portal.PreflightQuestion, n)
		for i, a := range chunk {
			questions[i] = a.question
		}
		findings, err := p.Ask(ctx, questions)
		if err != nil {
			return err
		}
		for i, a := range chunk {
			if a.question.Customer == "" {
				p.progress.Plans++
			} else {
				p.progress.Asked++
			}
			if findings[i].Code != "" {
				p.problem(PreflightProblem{a.line, a.question.Customer, findings[i].Problem})
			}
		}
		p.Told(p.progress)
	}
	return nil
}

func (p *Preflight) problem(found PreflightProblem) {
	p.progress.Problems++
	p.Found(found)
}

// english writes numbers with commas.
var english = message.NewPrinter(language.English)

// summary is what there is to say at the end.
func (p PreflightProgress) summary(complete bool) string {
	found := "found"
	if !complete {
		found = "found so far, not all was looked at"
	}
	what := english.Sprintf("%d rows read, %d of %d customers and %s looked up in Stripe: %s "+found, p.Rows, p.Asked, p.Customers,
		counted(p.Plans, "portal configuration", "portal configurations and flows"), counted(p.Problems, "problem", "problems"))
	if p.Unknown > 0 {
		what += english.Sprintf("; %d rows name a customer_account, which can't be looked up", p.Unknown)
	}
	return what
}

func counted(n int, one, more string) string {
	switch n {
	case 0:
		return "no " + one
	case 1:
		return "1 " + one
	}
	return english.Sprintf("%d %s", n, more)
}
