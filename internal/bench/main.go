// Command bench measures the service on this machine, everything on it at once: Postgres with
// fsync, NATS with JetStream on disk, the worker, the simulator and the load.
//
//	go run ./internal/bench          (make bench)
//	go run ./internal/bench -short   a form of seconds, for CI
//
// With -docs it keeps what it found in docs/performance/results.json, and renders docs/performance.md and the plots from
// it, a part at a time; the page's prose is in performance.md.tmpl (-render: after edits of it).
//
// The first parts compare the service with what is as fast as can be, or measure it alone: intake,
// service, bulk, clicks. The others put people before it (internal/crowd) and see that all of them get
// through: stampede, outage, burst.
//
// Each comparison runs both sides in turn, several rounds, and prints the medians, and the median
// of the rounds' ratios with their least and most: this kind of machine is noisy, and a ratio of two runs minutes apart
// says little. It exits 1 where a goal is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/rig"
	"latchkey/internal/stack"
	"latchkey/migrations"
)

func main() {
	only := flag.String("only", "", "one part alone: "+strings.Join(partNames(), ", "))
	short := flag.Bool("short", false, "a quick form: small numbers, goals printed but not enforced, nothing written")
	docs := flag.String("docs", "", "keep the results in this directory, and render performance.md and its plots there; empty = only print")
	again := flag.Bool("render", false, "measure nothing: render the page of -docs from the results that are there")
	flag.Parse()
	if err := checkFlags(*only, *short, *docs, *again); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	b := &bench{short: *short, only: *only, docs: *docs, out: tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)}
	work := b.run
	if *again {
		work = b.renderAgain
	}
	if err := work(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if b.missed > 0 && !b.short {
		fmt.Fprintf(os.Stderr, "bench: %d goals missed\n", b.missed)
		os.Exit(1)
	}
}

func checkFlags(only string, short bool, docs string, again bool) error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("what is %q? There are flags only: -help", flag.Arg(0))
	case only != "" && !slices.Contains(partNames(), only):
		return fmt.Errorf("no part is called %q; there are %s", only, strings.Join(partNames(), ", "))
	case short && docs != "":
		return errors.New("-short measures too little for -docs; leave one of them out")
	case again && docs == "":
		return errors.New("-render needs -docs, the directory of performance.md")
	}
	return nil
}

// part measures something by itself.
type part struct {
	name string
	run  func(*bench, context.Context) error
}

var parts = []part{{"intake", (*bench).intake}, {"service", (*bench).service}, {"bulk", (*bench).bulk}, {"crash", (*bench).crash}, {"million", (*bench).million},
	{"clicks", (*bench).clicks}, {"full", (*bench).full}, {"settings", (*bench).settings}, {"audit", (*bench).audit}, {"workers", (*bench).workers},
	{"stampede", (*bench).stampede}, {"outage", (*bench).outage}, {"burst", (*bench).burst}}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

type bench struct {
	short  bool
	only   string
	docs   string // where the results are kept; empty = nowhere
	out    *tabwriter.Writer
	missed int
	found  *result // of the part that runs

	dir  string
	pg   *stack.Postgres
	ns   *stack.NATS
	nc   *nats.Conn
	js   jetstream.JetStream
	pool *pgxpool.Pool
}

func (b *bench) rounds() int {
	if b.short {
		return 1
	}
	return 5
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "latchkey-bench-"); err != nil {
		return err
	}
	defer func() {
		// Root's Postgres has its files elsewhere: five million links are some gigabytes.
		if err := errors.Join(stack.RemovePostgres(filepath.Join(b.dir, "pg")), os.RemoveAll(b.dir)); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}()
	if err := b.start(ctx); err != nil {
		return err
	}
	defer b.stop(ctx)
	fmt.Printf("%s, %d CPUs, %s; Postgres with fsync, NATS JetStream on disk; medians of interleaved rounds\n\n",
		runtime.GOOS+"/"+runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	fmt.Fprintln(b.out, "what\tours\tcompared with\tratio\tgoal")
	for _, p := range parts {
		if b.only != "" && b.only != p.name {
			continue
		}
		if err := b.runPart(ctx, p); err != nil {
			return err
		}
		_ = b.out.Flush()
	}
	return nil
}

// postgresSettings are those that docs/operating.md recommends, for both sides of each comparison. With Postgres'
// defaults, meant for a machine of 1 GB, a database of 5,000,000 links took requests half as fast as an empty one.
var postgresSettings = map[string]string{"shared_buffers": "4GB", "max_wal_size": "16GB", "checkpoint_timeout": "15min", "wal_compression": "lz4"}

func (b *bench) runPart(ctx context.Context, p part) error {
	where, err := rig.ThisMachine(ctx, b.pool, b.nc.ConnectedServerVersion())
	if err != nil {
		return err
	}
	began := time.Now()
	b.found = &result{Measured: began.UTC().Truncate(time.Second), Commit: rig.Commit(ctx), Machine: where}
	if err := p.run(b, ctx); err != nil {
		return err
	}
	b.found.Seconds = time.Since(began).Round(time.Second).Seconds()
	if b.docs == "" {
		return nil
	}
	return keep(b.docs, p.name, b.found)
}

func (b *bench) renderAgain(context.Context) error {
	all, err := readResults(b.docs)
	if err != nil {
		return err
	}
	return render(b.docs, all)
}

func (b *bench) start(ctx context.Context) (err error) {
	if b.pg, err = stack.StartPostgres(ctx, stack.PostgresConfig{Dir: filepath.Join(b.dir, "pg"), Fsync: true, Settings: postgresSettings}); err != nil {
		return err
	}
	if b.ns, err = stack.StartNATS(ctx, stack.NATSConfig{Dir: filepath.Join(b.dir, "nats")}); err != nil {
		return err
	}
	if b.nc, err = nats.Connect(b.ns.URL()); err != nil {
		return err
	}
	if b.js, err = jetstream.New(b.nc, jetstream.WithPublishAsyncMaxPending(1000)); err != nil {
		return err
	}
	cfg, err := pgxpool.ParseConfig(b.pg.URL("postgres"))
	if err != nil {
		return err
	}
	cfg.MaxConns = 16
	if b.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return err
	}
	_, err = migrations.Up(ctx, b.pool)
	return err
}

// database makes another one, migrated.
func (b *bench) database(ctx context.Context, name string) (*pgxpool.Pool, error) {
	if _, err := b.pool.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(b.pg.URL(name))
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = 16
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	_, err = migrations.Up(ctx, pool)
	return pool, err
}

func (b *bench) stop(ctx context.Context) {
	b.pool.Close()
	b.nc.Close()
	if err := b.ns.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: stop NATS:", err)
	}
	if err := b.pg.Stop(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench: stop Postgres:", err)
	}
}

// noGoal is the goal of rows that only show something.
const noGoal = "shown"

// goal prints a row, keeps it and counts a miss.
func (b *bench) goal(met bool, what, ours, other, ratio, goal string) {
	b.found.Rows = append(b.found.Rows, row{What: what, Ours: ours, Other: other, Ratio: ratio, Goal: goal, Met: met})
	if !met {
		b.missed++
		goal += "  MISSED"
	}
	fmt.Fprintf(b.out, "%s\t%s\t%s\t%s\t%s\n", what, ours, other, ratio, goal)
}

// ratios are those of each round.
func ratios[T float64 | time.Duration](ours, others []T) []float64 {
	all := make([]float64, len(ours))
	for i := range ours {
		all[i] = float64(ours[i]) / float64(others[i])
	}
	return all
}

// ofRounds is the rounds' median, with the least and the most of them where there are several.
func ofRounds(format string, rounds []float64) string {
	mid := fmt.Sprintf(format, median(rounds))
	if len(rounds) < 2 {
		return mid
	}
	return fmt.Sprintf("%s ("+format+" to "+format+")", mid, slices.Min(rounds), slices.Max(rounds))
}

func median[T int | float64 | time.Duration](v []T) T {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

func quantile(v []time.Duration, q float64) time.Duration {
	slices.Sort(v)
	return v[min(int(float64(len(v))*q), len(v)-1)]
}

// workerAndStripe builds the worker's binary, once, and starts a simulator.
func (b *bench) workerAndStripe(ctx context.Context) (binary string, sim *simulator, err error) {
	if binary, err = rig.Build(ctx, b.dir, "latchkey/cmd/worker"); err != nil {
		return "", nil, err
	}
	sim, err = startSimulator()
	return binary, sim, err
}
