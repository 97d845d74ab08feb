package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
	"latchkey/internal/rig"
	"latchkey/internal/stack"
	"latchkey/migrations"
)

// targets are what a worker has a network to, in the order of replica.wires.
var targets = []string{"Postgres", "NATS", "Stripe", "the mail server"}

// tools are built once for all runs.
type tools struct {
	worker, nats string
	mounts       bool   // this machine lets us mount
	clusters     string // of stack.PostgresConfig.Template
}

// deployment is all servers of a run. Their addresses stay the same, whatever dies.
type deployment struct {
	tools *tools
	plan  *plan
	dir   string

	pgConfig         stack.PostgresConfig
	pg               *stack.Postgres
	relay            net.Listener
	pgDisk, natsDisk *disk // nil where the plan fills none, or this machine has no right to mount
	nats             *exec.Cmd
	natsAddr         string
	natsDir          string
	stripe           *stripe
	mail             *mailServer
	hooks            *hookServer
	replicas         []*replica
	struck           []injection // what of the plan was made

	// The suite's own ways, around the proxies.
	pool   *pgxpool.Pool
	nc     *nats.Conn
	js     jetstream.JetStream
	client *producer.Client
}

// postgresSettings: small, for the disk that is filled, and for several runs on one machine.
var postgresSettings = map[string]string{"shared_buffers": "32MB", "max_wal_size": "48MB", "min_wal_size": "32MB"}

func newDeployment(ctx context.Context, tools *tools, plan *plan, dir string) (d *deployment, err error) {
	d = &deployment{tools: tools, plan: plan, dir: dir, natsAddr: rig.FreePort()}
	pgDir, natsDir := filepath.Join(dir, "postgres"), filepath.Join(dir, "nats")
	if tools.mounts && plan.has(postgresDiskFull) {
		if d.pgDisk, err = mountDisk(ctx, pgDir); err != nil {
			return d, err
		}
	}
	if tools.mounts && plan.has(natsDiskFull) {
		if d.natsDisk, err = mountDisk(ctx, natsDir); err != nil {
			return d, err
		}
	}
	d.pgConfig = stack.PostgresConfig{Dir: filepath.Join(pgDir, "pg"), LogFile: filepath.Join(dir, "postgres.log"), Fsync: true, Template: tools.clusters, Settings: postgresSettings}
	d.natsDir = filepath.Join(natsDir, "data")
	if err := errors.Join(os.MkdirAll(natsDir, 0o755), os.MkdirAll(pgDir, 0o711)); err != nil {
		return d, err
	}
	return d, d.start(ctx)
}

func (d *deployment) start(ctx context.Context) (err error) {
	if err := d.startPostgres(ctx); err != nil {
		return err
	}
	if d.pool, err = pgxpool.New(ctx, d.pg.URL("postgres")); err != nil {
		return err
	}
	if _, err := migrations.Up(ctx, d.pool); err != nil {
		return err
	}
	if d.relay, err = relay(filepath.Join(d.pool.Config().ConnConfig.Host, ".s.PGSQL."+fmt.Sprint(d.pool.Config().ConnConfig.Port))); err != nil {
		return err
	}
	if err := d.startNATS(ctx); err != nil {
		return err
	}
	if d.nc, err = nats.Connect("nats://"+d.natsAddr, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond)); err != nil {
		return err
	}
	if d.js, err = jetstream.New(d.nc); err != nil {
		return err
	}
	if d.client, err = producer.New(d.nc); err != nil {
		return err
	}
	if d.stripe, err = startStripe(d.pool); err != nil {
		return err
	}
	if d.mail, err = startMailServer(); err != nil {
		return err
	}
	if d.hooks, err = startHookServer(); err != nil {
		return err
	}
	return d.startReplicas(ctx)
}

func (d *deployment) startReplicas(ctx context.Context) error {
	public := rig.FreePort() // of the links, which are the same whichever replica issues them
	for i, roles := range d.plan.roles {
		r := &replica{roles: roles, binary: d.tools.worker, public: rig.FreePort(), admin: rig.FreePort(), clock: filepath.Join(d.dir, fmt.Sprintf("clock-%d", i))}
		for j, to := range []string{d.relay.Addr().String(), d.natsAddr, d.stripe.addr, d.mail.addr} {
			w, err := newWire(fmt.Sprintf("replica %d to %s", i, targets[j]), to)
			if err != nil {
				return err
			}
			r.wires = append(r.wires, w)
		}
		var err error
		if r.log, err = os.OpenFile(d.logFile(i), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); err != nil {
			return err
		}
		r.env = []string{"ROLES=" + roles, "LINK_BASE_URL=http://" + public, clockFile + "=" + r.clock,
			"DATABASE_URL=postgres://postgres@" + r.wires[0].Listen + "/postgres?sslmode=disable", "NATS_URL=nats://" + r.wires[1].Listen,
			"STRIPE_API_BASE=http://" + r.wires[2].Listen, "STRIPE_API_KEY=" + stripeKey, fmt.Sprintf("STRIPE_RATE=%d", d.plan.rate),
			"SMTP_URL=smtp://" + r.wires[3].Listen, "MAIL_FROM=billing@example.com", "SMTP_RATE=1000",
			"WEBHOOK_SECRETS=" + webhookSecret, "WEBHOOK_ALLOW_PRIVATE=true", "WEBHOOK_SUBSCRIPTIONS=*=" + d.hooks.url + everything}
		d.replicas = append(d.replicas, r)
		if err := r.setClock(0); err != nil {
			return err
		}
		r.supervise(ctx)
	}
	return d.untilReady(ctx)
}

func (d *deployment) logFile(replica int) string {
	return filepath.Join(d.dir, fmt.Sprintf("worker-%d.log", replica))
}

// untilReady waits for all replicas, which may be started again on the way.
func (d *deployment) untilReady(ctx context.Context) error {
	for _, r := range d.replicas {
		if err := until(ctx, time.Minute, "replica with "+r.roles+" to be ready", func() (string, error) {
			if r.ready() {
				return "", nil
			}
			return "not yet", nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// until polls until there is nothing left to tell. A run that waits longer has failed.
func until(ctx context.Context, most time.Duration, what string, left func() (string, error)) error {
	var still string
	for deadline := time.Now().Add(most); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var err error
		if still, err = left(); err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if still == "" {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("waited %s for %s: %s", most, what, still)
}

// startPostgres returns when it answers, and starts it where it does not run. One that lost a backend, or its disk, may be
// about to recover by itself, or to give up.
func (d *deployment) startPostgres(ctx context.Context) (err error) {
	if d.pg == nil {
		d.pg, err = stack.StartPostgres(ctx, d.pgConfig)
		return err
	}
	return until(ctx, time.Minute, "Postgres to answer", func() (string, error) {
		select {
		case <-d.pg.Done():
			_ = d.pg.Stop(ctx) // frees the folder; that it had ended is known
			pg, err := stack.StartPostgres(ctx, d.pgConfig)
			if err == nil {
				d.pg = pg
			}
			return "", err
		default:
		}
		ping, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := d.pool.Ping(ping); err != nil {
			return err.Error(), nil
		}
		return "", nil
	})
}

// killPostgres kills the postmaster and what it has begun. Its children have process groups of their own, and would
// end a moment later by themselves, each where it likes.
func (d *deployment) killPostgres() {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", d.pg.Pid()))
	_ = syscall.Kill(d.pg.Pid(), syscall.SIGKILL)
	for _, child := range strings.Fields(string(children)) {
		var pid int
		if _, err := fmt.Sscan(child, &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	<-d.pg.Done()
}

func (d *deployment) startNATS(ctx context.Context) error {
	cmd, err := rig.StartNATS(ctx, d.tools.nats, d.natsAddr, d.natsDir)
	if err == nil { // else the last one is still what can be killed
		d.nats = cmd
	}
	return err
}

func (d *deployment) killNATS() { rig.KillNow(d.nats) }

// consumer is intake's.
func (d *deployment) consumer(ctx context.Context) (jetstream.Consumer, error) {
	return d.js.Consumer(ctx, jobs.RequestsStream, jobs.IntakeConsumer)
}

// close ends all of it. Data stay where they are.
func (d *deployment) close() (err error) {
	for _, r := range d.replicas {
		r.end()
	}
	if d.nc != nil {
		d.nc.Close()
	}
	if d.nats != nil {
		d.killNATS()
	}
	if d.stripe != nil {
		_ = d.stripe.srv.Close()
	}
	if d.mail != nil {
		_ = d.mail.smtp.Close()
	}
	if d.hooks != nil {
		_ = d.hooks.srv.Close()
	}
	if d.relay != nil {
		_ = d.relay.Close()
	}
	if d.pool != nil {
		d.pool.Close()
	}
	if d.pg != nil {
		err = d.pg.Stop(context.Background())
	}
	return err
}

// remove deletes the data.
func (d *deployment) remove() error {
	err := stack.RemovePostgres(d.pgConfig.Dir)
	for _, disk := range []*disk{d.pgDisk, d.natsDisk} {
		if disk != nil {
			err = errors.Join(err, disk.unmount())
		}
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

var keyring, _ = portal.ParseKeys(rig.LinkKeys)
