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

	"latchkey/internal/portal"
	"latchkey/internal/producer"
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
		"LINK_KEYS=" + portal.FormatKey(1, [32]byte{'r'}), "LINK_BASE_URL=https://pay.example.com", "LOG_LEVEL=warn"}
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
	cmd           *exec.Cmd
	public, admin string // origins
	log           string // file
	ended         bool
}

// start returns once the replica is ready, and is being given clicks.
func (d *deployment) start(ctx context.Context, binary string) (*replica, error) {
	public, admin := freePort(), freePort()
	r := &replica{cmd: exec.CommandContext(ctx, binary, "run"), public: "http://" + public, admin: "http://" + admin,
		log: filepath.Join(d.dir, fmt.Sprintf("replica-%d.log", len(d.replicas)))}
	log, err := os.Create(r.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	r.cmd.Env = append([]string{"HTTP_ADDR=" + public, "ADMIN_ADDR=" + admin}, d.env...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	d.replicas = append(d.replicas, r)
	if err := until(ctx, 30*time.Second, "a replica to be ready", r.isReady); err != nil {
		return nil, fmt.Errorf("%w%s", err, r.lastLines())
	}
	d.balancer.add(r)
	return r, nil
}

func (r *replica) isReady() bool {
	resp, err := browser.Get(r.admin + "/readyz")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// end stops the replica as a deployment does.
func (r *replica) end() error {
	if r.ended {
		return nil
	}
	r.ended = true
	late := time.AfterFunc(20*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer late.Stop()
	if err := errors.Join(r.cmd.Process.Signal(syscall.SIGTERM), r.cmd.Wait()); err != nil {
		return fmt.Errorf("a stop by SIGTERM: %w%s", err, r.lastLines())
	}
	return nil
}

func (r *replica) lastLines() string {
	content, _ := os.ReadFile(r.log)
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return "\n    " + strings.Join(lines[max(0, len(lines)-5):], "\n    ")
}

func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0"
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
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
