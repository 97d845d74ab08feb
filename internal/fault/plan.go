package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// plan is a run, drawn from its seed alone: what there is, what is asked of it, and what goes wrong when.
type plan struct {
	seed    uint64
	roles   []string // of each replica
	rate    int      // STRIPE_RATE
	restart bool     // all workers are stopped and started again once the faults are over; else those that live go on
	load    time.Duration

	requests, bulk, creates, bad, revoked int

	faults []injection
}

// injection is a fault of a plan.
type injection struct {
	kind      *kind
	replica   int // which one it strikes; of kinds that strike one
	at, lasts time.Duration
	seconds   int64 // that a clock jumps by
}

func (i injection) String() string {
	s := fmt.Sprintf("%4.1f s, for %.1f s: %s", i.at.Seconds(), i.lasts.Seconds(), i.kind.name)
	if i.kind.ofReplica {
		s += fmt.Sprintf(", replica %d", i.replica)
	}
	if i.seconds != 0 {
		s += fmt.Sprintf(", by %+d s", i.seconds)
	}
	return s
}

// subject is what two faults can't strike at the same time.
func (i injection) subject() string {
	if i.kind.ofReplica {
		return fmt.Sprint(i.kind.subject, i.replica)
	}
	return i.kind.subject
}

// topologies are the roles of the replicas. Each role is there, and each click server has another one to fail over to
// where there are several.
var topologies = [][]string{
	{"intake,jobs,click"},
	{"intake,jobs,click", "intake,jobs,click"},
	{"intake,jobs", "jobs,click"},
	{"intake,jobs,click", "intake,jobs,click", "intake,jobs,click"},
	{"intake,jobs", "intake,click", "jobs,click"},
}

// newPlan draws from all kinds, whichever this machine can make, so that a seed is the same plan everywhere.
func newPlan(seed uint64) *plan {
	r := rand.New(rand.NewPCG(seed, 0))
	p := &plan{seed: seed, roles: topologies[r.IntN(len(topologies))], rate: []int{10, 50, 1000}[r.IntN(3)], restart: r.IntN(4) > 0, load: 6 * time.Second,
		requests: 30 + r.IntN(60), bulk: r.IntN(120), creates: 5 + r.IntN(10), bad: 2 + r.IntN(4), revoked: 1 + r.IntN(4)}
	var tickets []*kind
	for _, k := range kinds {
		tickets = append(tickets, slices.Repeat([]*kind{k}, k.weight)...)
	}
	for range 3 + r.IntN(6) {
		in := injection{kind: tickets[r.IntN(len(tickets))], replica: r.IntN(len(p.roles)), at: 300*time.Millisecond + between(r, p.load), lasts: 300*time.Millisecond + between(r, 2500*time.Millisecond)}
		if in.kind.jumps {
			in.seconds = r.Int64N(1200) - 600
		}
		if in.kind.endures && r.IntN(4) == 0 {
			in.lasts += 10 * time.Second // it is taken for dead, and then goes on
		}
		p.faults = append(p.faults, in)
	}
	p.arrange()
	return p
}

// between is below most, in milliseconds, so that a plan reads as it is.
func between(r *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(r.Int64N(most.Milliseconds())) * time.Millisecond
}

// arrange puts the faults in order. One that would strike what another one has struck waits for its end.
func (p *plan) arrange() {
	slices.SortStableFunc(p.faults, func(a, b injection) int { return cmp.Compare(a.at, b.at) })
	free := map[string]time.Duration{}
	for i := range p.faults {
		in := &p.faults[i]
		in.at = max(in.at, free[in.subject()])
		free[in.subject()] = in.at + in.lasts + 200*time.Millisecond
	}
	slices.SortStableFunc(p.faults, func(a, b injection) int { return cmp.Compare(a.at, b.at) })
}

// has tells whether a fault of that kind is in the plan.
func (p *plan) has(kindName string) bool {
	return slices.ContainsFunc(p.faults, func(i injection) bool { return i.kind.name == kindName })
}

func (p *plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: replicas %s; STRIPE_RATE %d; %d requests, %d in bulk, %d creates, %d bad, %d revoked; then %s\n",
		p.seed, strings.Join(p.roles, " | "), p.rate, p.requests, p.bulk, p.creates, p.bad, p.revoked, map[bool]string{true: "all workers are restarted", false: "who lives goes on"}[p.restart])
	for _, in := range p.faults {
		fmt.Fprintf(&b, "  %s\n", in)
	}
	return b.String()
}
