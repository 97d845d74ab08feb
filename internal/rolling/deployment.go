package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"latchkey/internal/producer"
	"latchkey/internal/rig"
	"latchkey/internal/stack"
	"latchkey/internal/stripesim"
)

// deployment is what both releases share.
type deployment struct {
	pg       *stack.Postgres
	ns       *stack.NATS
	nc       *nats.Conn
	client   *producer.Client
	pool     *pgxpool.Pool
	sim      *stripesim.Sim
	stripe   *http.Server
	env      []string
	dir      string
	balancer balancer
	replicas []*replica
}

// deploy starts the servers. What it started before an error ends with the process.
func deploy(ctx context.Context, dir string) (d *deployment, err error) {
	d = &deployment{dir: dir, sim: stripesim.New(stripesim.Config{})}
	if d.pg, err = stack.StartPostgres(ctx, stack.PostgresConfig{Dir: filepath.Join(dir, "pg")}); err != nil {
		return nil, err
	}
	if d.ns, err = stack.StartNATS(ctx, stack.NATSConfig{Dir: filepath.Join(dir, "nats")}); err != nil {
		return nil, err
	}
	if d.nc, err = nats.Connect(d.ns.URL()); err != nil {
		return nil, err
	}
	if d.client, err = producer.New(d.nc); err != nil {
		return nil, err
	}
	if d.pool, err = pgxpool.New(ctx, d.pg.URL("postgres")); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d.stripe = &http.Server{Handler: d.sim, ReadHeaderTimeout: time.Second}
	go func() { _ = d.stripe.Serve(l) }()
	d.env = []string{"PATH=" + os.Getenv("PATH"), "DATABASE_URL=" + d.pg.URL("postgres"), "NATS_URL=" + d.ns.URL(),
		"STRIPE_API_KEY=" + stripesim.TestKey, "STRIPE_API_BASE=http://" + l.Addr().String(), "STRIPE_RATE=1000000",
		"LINK_BASE_URL=https://pay.example.com", "LOG_LEVEL=warn", "HTTP_DRAIN_TIME=1s"}
	return d, nil
}

func (d *deployment) stop() {
	for _, r := range d.replicas {
		_ = r.end()
	}
	d.pool.Close()
	d.nc.Close()
	_ = d.stripe.Close()
	_ = d.ns.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = d.pg.Stop(ctx)
}

func (d *deployment) migrate(ctx context.Context, binary string) error {
	cmd := exec.CommandContext(ctx, binary, "migrate")
	cmd.Env = d.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("worker migrate: %w: %s", err, out)
	}
	return nil
}

// replica is a 'worker run' process.
type replica struct {
	*rig.Worker
	log   string // file
	old   bool   // of the release before
	ended bool
}

// start returns once the replica is ready, and is being given clicks.
func (d *deployment) start(ctx context.Context, binary string, old bool) (*replica, error) {
	r := &replica{old: old, log: filepath.Join(d.dir, fmt.Sprintf("replica-%d.log", len(d.replicas)))}
	log, err := os.Create(r.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	if r.Worker, err = rig.Spawn(ctx, binary, rig.FreePort(), rig.FreePort(), log, d.env...); err != nil {
		return nil, err
	}
	d.replicas = append(d.replicas, r)
	if err := r.UntilReady(); err != nil {
		return nil, fmt.Errorf("%w%s", err, r.lastLines())
	}
	d.balancer.add(r)
	return r, nil
}

// end stops the replica as a deployment does.
func (r *replica) end() error {
	if r.ended {
		return nil
	}
	r.ended = true
	late := time.AfterFunc(20*time.Second, func() { _ = r.Cmd.Process.Kill() })
	defer late.Stop()
	if err := errors.Join(r.Cmd.Process.Signal(syscall.SIGTERM), r.Cmd.Wait()); err != nil {
		return fmt.Errorf("a stop by SIGTERM: %w%s", err, r.lastLines())
	}
	return nil
}

func (r *replica) lastLines() string {
	content, _ := os.ReadFile(r.log)
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return "\n  " + filepath.Base(r.log) + ":\n    " + strings.Join(lines[max(0, len(lines)-5):], "\n    ")
}

// until waits for a condition.
func until(ctx context.Context, patience time.Duration, what string, met func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("waited %s for %s", patience, what))
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
