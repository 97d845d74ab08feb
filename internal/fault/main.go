// Command fault breaks the service on purpose and sees that its promises hold: real servers as processes of their own,
// real workers, a load, and faults at random moments.
//
//	go run ./internal/fault -seeds 1-200 -at-once 3 -docs docs    (make faults)
//	go run ./internal/fault -seed 17                   one run, told as it goes
//	go run ./internal/fault -for 60s                   as many runs as begin in that time, the first by the commit's seed, for CI
//	go run ./internal/fault -soak 1h -docs docs        (make soak) no faults, a load for hours: nothing may grow
//
// A run follows from its seed: which replicas there are, what is asked of them, what breaks when and for how long
// (plan.go; kinds.go has the faults). How the processes' steps fall between these moments is the machine's, so a seed that
// failed may need several runs to fail again. Then all faults are lifted, the run waits until nothing is left to do, with rows made
// older in place of minutes of waiting (rest.go), and everything is held against the invariants, by ids (check.go). A run
// with a broken one keeps its folder, logs and data.
//
// With -docs what was found is kept in docs/reliability/results.json, and docs/reliability.md rendered from it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"latchkey/internal/rig"
)

type options struct {
	seeds  string
	seed   uint64
	during time.Duration
	soak   time.Duration
	atOnce int
	docs   string
	again  bool
}

func main() {
	var o options
	flag.StringVar(&o.seeds, "seeds", "1-200", "the runs' seeds, from-to")
	flag.Uint64Var(&o.seed, "seed", 0, "one run, told as it goes")
	flag.DurationVar(&o.during, "for", 0, "begin no more runs after this time, from a seed on that follows from the commit; 0 = run -seeds")
	flag.DurationVar(&o.soak, "soak", 0, "put a load on one deployment for this time, without faults, in place of runs")
	flag.IntVar(&o.atOnce, "at-once", 1, "runs at the same time")
	flag.StringVar(&o.docs, "docs", "", "keep the results in this directory, and render reliability.md there; empty = only print")
	flag.BoolVar(&o.again, "render", false, "run nothing: render the page of -docs from the results that are there")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fault:", err)
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("what is %q? There are flags only: -help", flag.Arg(0))
	}
	if o.again {
		return renderAgain(o.docs)
	}
	from, to, err := o.firstAndLast(ctx)
	if err != nil {
		return err
	}
	s, err := newSuite(ctx, o.seed > 0)
	if err != nil {
		return err
	}
	defer s.close()
	if o.soak > 0 {
		return s.soak(ctx, o.soak, o.docs)
	}
	began := time.Now()
	s.found.AtOnce = o.atOnce
	runs, ctx := errgroup.WithContext(ctx)
	runs.SetLimit(o.atOnce)
	over := func() bool { return ctx.Err() != nil || o.during > 0 && time.Since(began) >= o.during }
	for seed := from; seed <= to && !over(); seed++ {
		runs.Go(func() error {
			if seed > from && over() { // by now: it waited for another run to end
				return ctx.Err()
			}
			return s.one(ctx, seed)
		})
	}
	if err := runs.Wait(); err != nil {
		return err
	}
	return s.tell(o.docs, time.Since(began))
}

func (o options) firstAndLast(ctx context.Context) (from, to uint64, err error) {
	if o.atOnce < 1 {
		return 0, 0, fmt.Errorf("-at-once is %d; it must be above 0", o.atOnce)
	}
	if o.seed > 0 {
		return o.seed, o.seed, nil
	}
	if o.during > 0 {
		from, err := seedOfCommit(ctx)
		return from, math.MaxUint64, err
	}
	first, last, _ := strings.Cut(o.seeds, "-")
	from, err1 := strconv.ParseUint(first, 10, 64)
	to, err2 := strconv.ParseUint(last, 10, 64)
	if err1 != nil || err2 != nil || from == 0 || to < from {
		return 0, 0, fmt.Errorf("-seeds is %q; give the first and the last one, as in 1-200", o.seeds)
	}
	return from, to, nil
}

// seedOfCommit has each commit try seeds of its own: always the first ones would find the same each time.
func seedOfCommit(ctx context.Context) (uint64, error) {
	hash, err := exec.CommandContext(ctx, "git", "rev-parse", "HEAD").Output()
	if err != nil {
		return 0, fmt.Errorf("-for takes its first seed from the commit, and git tells none; give -seeds in its place: %w", err)
	}
	n, err := strconv.ParseUint(string(hash[:min(15, len(hash))]), 16, 64)
	fmt.Printf("the first seed of commit %.10s is %d\n", hash, n%1_000_000+1)
	return n%1_000_000 + 1, err
}

// suite runs seeds and tallies them.
type suite struct {
	tools   *tools
	dir     string
	verbose bool

	mu    sync.Mutex // of what is below
	found *result
	kept  bool // a run's folder
}

func newSuite(ctx context.Context, verbose bool) (s *suite, err error) {
	s = &suite{verbose: verbose}
	zerolog.SetGlobalLevel(zerolog.Disabled) // some of toxiproxy logs by a global logger
	if s.dir, err = os.MkdirTemp("", "latchkey-fault-"); err != nil {
		return nil, err
	}
	// Run by root, Postgres is another user, who must be able to pass.
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return nil, err
	}
	fmt.Println("building a worker whose clock can jump, and a NATS server; the first time takes minutes")
	overlay, err := clockOverlay(ctx, s.dir)
	if err != nil {
		return nil, err
	}
	s.tools = &tools{clusters: filepath.Join(s.dir, "clusters"), mounts: canMount(ctx, s.dir)}
	if s.tools.worker, err = rig.Build(ctx, s.dir, "latchkey/cmd/worker", "-overlay", overlay); err != nil {
		return nil, err
	}
	s.tools.nats, err = rig.Build(ctx, s.dir, rig.NATSServer)
	s.found = &result{Measured: time.Now().UTC().Truncate(time.Second), Commit: rig.Commit(ctx), Mounts: s.tools.mounts, Faults: map[string]tally{}}
	return s, err
}

func (s *suite) close() {
	if !s.kept {
		_ = os.RemoveAll(s.dir)
	}
}

// one runs a seed. The error is the suite's own; what the service broke is tallied.
func (s *suite) one(ctx context.Context, seed uint64) error {
	p := newPlan(seed)
	if s.verbose {
		fmt.Print(p)
	}
	began := time.Now()
	dir := filepath.Join(s.dir, fmt.Sprintf("seed-%d", seed))
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	d, err := newDeployment(ctx, s.tools, p, dir)
	var broken []string
	var n checked
	var machine rig.Machine
	if err == nil {
		if broken, n, err = d.through(ctx, s.say); err == nil {
			machine, _ = rig.ThisMachine(ctx, d.pool, d.nc.ConnectedServerVersion())
		}
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), d.close(), d.remove())
	}
	if err != nil {
		broken = append(broken, err.Error()) // it never came to rest, or could not be read: no less broken
	}
	_ = d.close()
	s.count(d, machine, n, len(broken) == 0)
	if len(broken) == 0 {
		fmt.Printf("seed %d: %d faults, %d links, %d sessions, %d events, %.0f s: ok\n", seed, len(d.struck), n.Links, n.Sessions, n.Events, time.Since(began).Seconds())
		return d.remove()
	}
	text := fmt.Sprintf("seed %d: BROKEN, kept in %s (its small disks, if it has any, stay mounted there)\n%s", seed, dir, p)
	for _, what := range broken[:min(len(broken), 20)] {
		text += "    " + what + "\n"
	}
	fmt.Print(text) // at once: other runs tell too
	return nil
}

func (s *suite) say(format string, args ...any) {
	if s.verbose {
		fmt.Printf(format+"\n", args...)
	}
}

// through takes a deployment through its plan.
func (d *deployment) through(ctx context.Context, say func(string, ...any)) ([]string, checked, error) {
	l := newLoad(d)
	struck := make(chan error, 1)
	go func() { struck <- d.strikeAll(ctx, say) }()
	// Without any fault it takes little more than plan.load; people wait out the last fault.
	loadCtx, cancel := context.WithTimeout(ctx, d.plan.load+90*time.Second)
	defer cancel()
	err := l.run(loadCtx)
	if err := errors.Join(err, <-struck); err != nil {
		return l.broken, checked{}, fmt.Errorf("load and faults: %w", err)
	}
	say("the faults are over; %d requests, %d links known", len(l.requests), len(l.links))
	if err := d.rest(ctx); err != nil {
		return l.broken, checked{}, err
	}
	say("at rest")
	if err := l.serves(ctx); err != nil {
		return l.broken, checked{}, err
	}
	return l.check(ctx)
}

// strikeAll makes the plan's faults and lifts them, and returns when all are lifted.
func (d *deployment) strikeAll(ctx context.Context, say func(string, ...any)) error {
	began := time.Now()
	struck := map[string]*sync.Mutex{} // what recovers more slowly than the plan thought is not struck before it is there again
	type end struct {
		made bool
		err  error
	}
	ends := make([]end, len(d.plan.faults))
	var all sync.WaitGroup
	for i, in := range d.plan.faults {
		if struck[in.subject()] == nil {
			struck[in.subject()] = &sync.Mutex{}
		}
		subject := struck[in.subject()]
		all.Go(func() {
			pause(ctx, in.at-time.Since(began))
			subject.Lock()
			defer subject.Unlock()
			say("%5.1f s  %s", time.Since(began).Seconds(), in.kind.name)
			made, err := d.strike(ctx, in)
			say("%5.1f s  over: %s", time.Since(began).Seconds(), in.kind.name)
			if !made && err == nil {
				fmt.Printf("seed %d: not made, since there was nothing to strike: %s\n", d.plan.seed, in)
			}
			ends[i] = end{made, err}
		})
	}
	all.Wait()
	var err error
	for i, end := range ends {
		if end.made {
			d.struck = append(d.struck, d.plan.faults[i])
		}
		err = errors.Join(err, end.err)
	}
	return err
}

func (d *deployment) strike(ctx context.Context, in injection) (made bool, err error) {
	lift, err := in.kind.strike(ctx, d, in)
	if lift != nil && err == nil {
		pause(ctx, in.lasts)
		err = lift()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", in.kind.name, err)
	}
	return lift != nil, err
}

// count adds a run to the tallies.
func (s *suite) count(d *deployment, machine rig.Machine, n checked, survived bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, p := s.found, d.plan
	if r.Machine.Platform == "" {
		r.Machine = machine
	}
	r.Seeds = append(r.Seeds, p.seed)
	if !survived {
		s.kept = true
		r.Broken = append(r.Broken, p.seed)
	}
	r.Checked.add(n)
	seen := map[string]bool{}
	for _, in := range d.struck {
		t := r.Faults[in.kind.name]
		t.Injected++
		if !seen[in.kind.name] {
			t.Runs++
			if survived {
				t.Survived++
			}
		}
		seen[in.kind.name] = true
		r.Faults[in.kind.name] = t
	}
	if r.Replicas == nil {
		r.Replicas = map[int]int{}
	}
	r.Replicas[len(p.roles)]++
}

// tell ends the suite's runs.
func (s *suite) tell(docs string, took time.Duration) error {
	slices.Sort(s.found.Seeds)
	slices.Sort(s.found.Broken)
	s.found.Seconds = took.Round(time.Second).Seconds()
	fmt.Printf("%d runs in %s, %d broken\n", len(s.found.Seeds), took.Round(time.Second), len(s.found.Broken))
	if docs != "" {
		if err := keep(docs, func(r *results) { r.Runs = s.found }); err != nil {
			return err
		}
	}
	if len(s.found.Broken) > 0 {
		return fmt.Errorf("broken by the seeds %v; their folders are below %s", s.found.Broken, s.dir)
	}
	return nil
}
