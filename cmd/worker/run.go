package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"latchkey/internal/cli"
	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/migrations"
)

// Deadlines of a stop: all of it within 15 s. A click that waits, for Stripe or for the database,
// gets the first part of it; then the wait is cut and the outcome written down as interrupted.
const (
	stopDeadline  = 14 * time.Second
	clickStopTime = 6 * time.Second
)

// publishAckTimeout is longer than a publish job waits.
const publishAckTimeout = 15 * time.Second

// Connections of one process. Clicks share transactions, so they need few; jobs have a pool of
// their own, so that they never take a click's.
const (
	poolSize    = 12
	jobPoolSize = 6
)

// gcPercent lets the heap grow further between collections than Go's 100: it is some 10 MB, so that
// under load the collector would run many times a second for the sake of little memory.
const gcPercent = 200

func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// listeners are where the servers listen; run closes them.
type listeners struct{ public, admin net.Listener }

func listen(cfg *Config) (l listeners, err error) {
	if cfg.has(roleClick) {
		if l.public, err = net.Listen("tcp", cfg.HTTPAddr); err != nil {
			return l, fmt.Errorf("HTTP_ADDR can't be listened on: %w", err)
		}
	}
	if l.admin, err = net.Listen("tcp", cfg.AdminAddr); err != nil {
		if l.public != nil {
			_ = l.public.Close()
		}
		return l, fmt.Errorf("ADMIN_ADDR can't be listened on: %w", err)
	}
	return l, nil
}

// backends are the connections that the roles share.
type backends struct {
	pool, jobPool *pgxpool.Pool
	nats          *nats.Conn
	jetStream     jetstream.JetStream
}

// connect opens them, and sees to the streams. After an error close still closes what is open.
func connect(ctx context.Context, cfg *Config, log *slog.Logger) (b *backends, err error) {
	b = &backends{}
	if b.pool, err = openPool(ctx, cfg.DatabaseURL); err != nil {
		return b, err
	}
	if b.jobPool, err = openJobPool(ctx, cfg.DatabaseURL); err != nil {
		return b, err
	}
	if b.nats, err = connectNATS(cfg, log); err != nil {
		return b, err
	}
	// An ack that never comes must not keep its place among the pending ones for ever.
	if b.jetStream, err = jetstream.New(b.nats, jetstream.WithPublishAsyncTimeout(publishAckTimeout)); err != nil {
		return b, fmt.Errorf("JetStream: %w", err)
	}
	return b, jobs.EnsureStreams(ctx, b.jetStream, cfg.ManageStreams)
}

func (b *backends) close() {
	if b.nats != nil {
		b.nats.Close()
	}
	for _, pool := range []*pgxpool.Pool{b.jobPool, b.pool} {
		if pool != nil {
			closePool(pool)
		}
	}
}

// roles are the parts that a request flows through. abortClicks cuts the waits of the clicks that
// are under way.
type roles struct {
	river       *jobs.River
	issuer      *jobs.Issuer
	store       *portal.Store
	stripe      *portal.Stripe
	reads       *portal.Budget // of Stripe, by campaign checks
	click       *portal.ClickServer
	mailer      *notify.Mailer   // nil without SMTP_URL
	webhooks    *notify.Webhooks // nil without WEBHOOK_SECRETS
	abortClicks context.CancelFunc
}

// newRoles makes the parts; none is at work yet.
func newRoles(ctx context.Context, cfg *Config, log *slog.Logger, b *backends, reg *prometheus.Registry) (*roles, error) {
	mailer, err := cfg.mailer(log, reg)
	if err != nil {
		return nil, err
	}
	river, err := jobs.NewRiver(jobs.RiverConfig{Pool: b.pool, JobPool: b.jobPool, JetStream: b.jetStream, Keys: cfg.keys, BaseURL: cfg.LinkBaseURL, Now: time.Now, Log: log, Metrics: reg,
		Mailer: mailer, Templates: cfg.templates, Webhooks: cfg.webhooks, Subscriptions: cfg.subscriptions})
	if err != nil {
		return nil, err
	}
	r := &roles{river: river, mailer: mailer, webhooks: cfg.webhooks, store: portal.NewStore(b.pool, river.Publish, time.Now)}
	r.issuer = &jobs.Issuer{Pool: b.pool, Keys: cfg.keys, BaseURL: cfg.LinkBaseURL, Rules: requestRules(cfg), Publish: river.Publish, Deliver: river.Deliver, Now: time.Now}
	budget := portal.NewBudget(b.pool, cfg.StripeRate, time.Now, reg)
	r.reads = portal.NewBudget(b.pool, cfg.StripeReadRate, time.Now, nil)
	r.stripe = portal.NewStripe(portal.StripeConfig{Key: cfg.StripeAPIKey, APIBase: cfg.StripeAPIBase, APIVersion: cfg.StripeAPIVersion, DefaultReturnURL: cfg.ReturnURL,
		Budget: budget, Reads: r.reads, Log: log, Registerer: reg})
	abort, abortClicks := context.WithCancel(context.WithoutCancel(ctx))
	r.abortClicks = abortClicks
	r.click = (&portal.ClickServer{Keys: cfg.keys, Store: r.store, Stripe: r.stripe, Budget: budget, Limits: portal.NewLimits(), Detector: portal.NewDetector(), Renew: r.issuer.Renew,
		TrustedProxies: cfg.proxies, Log: log, Abort: abort,
		Pages: newPages(ctx, cfg, r.stripe.OnLoopback(), log)}).Init(reg)
	return r, nil
}

func (r *roles) close() {
	r.abortClicks()
	r.stripe.Close()
	if r.mailer != nil {
		_ = r.mailer.Close()
	}
	if r.webhooks != nil {
		r.webhooks.Close()
	}
}

// run is the service: it connects what is below, starts the roles in the order in which a request
// flows, and, when ctx ends or a part fails, stops them in the same order. ready is called once
// everything is up. A stop that was asked for returns nil.
func run(ctx context.Context, cfg *Config, log *slog.Logger, l listeners, ready func()) error {
	defer closeListeners(l)
	tuneGC()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	b, err := connect(ctx, cfg, log)
	defer b.close()
	if err != nil {
		return err
	}
	role, err := newRoles(ctx, cfg, log, b, reg)
	if err != nil {
		return err
	}
	defer role.close()

	r := &running{log: log, failed: make(chan error, 8)}
	service := jobs.NewService(role.issuer, role.store, log)
	service.Preflight = &portal.Preflight{Stripe: role.stripe, Reads: role.reads}
	admin := newAdmin(cfg, b.pool, b.nats, reg, service)
	adminServer := admin.server()
	r.serve("internal server", adminServer, l.admin)
	intakeCtx, stopIntake := context.WithCancel(context.WithoutCancel(ctx))
	defer stopIntake()
	if cfg.has(roleIntake) {
		intake := jobs.NewIntake(b.jetStream, role.issuer, log, reg)
		intake.Room = role.river.Room
		r.start("intake", func() error { return intake.Run(intakeCtx) })
		up := make(chan struct{})
		r.start("micro service", func() error { return service.Serve(intakeCtx, b.nats, cli.Version, func() { close(up) }) })
		r.await(ctx, up)
	}
	if cfg.has(roleJobs) {
		if err := role.river.Start(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("start the jobs: %w", err)
		}
	}
	clickServer := role.click.HTTPServer()
	if cfg.has(roleClick) {
		r.serve("click server", clickServer, role.click.Listener(l.public))
	}
	admin.ready.Store(true)
	log.Info("ready", "roles", cfg.Roles, "version", cli.Version, "links", cfg.LinkBaseURL, "http", addr(l.public), "admin", addr(l.admin))
	if ready != nil {
		ready()
	}

	cause := r.untilDone(ctx)
	admin.ready.Store(false)
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopDeadline)
	defer cancel()
	defer time.AfterFunc(clickStopTime, role.abortClicks).Stop()
	stopIntake()
	// Side by side, or their deadlines would add up: jobs that a click writes now are the next
	// worker's.
	jobsStopped := make(chan error, 1)
	go func() { jobsStopped <- role.river.Stop(stopCtx) }()
	err = errors.Join(cause, clickServer.Shutdown(stopCtx), <-jobsStopped, adminServer.Shutdown(stopCtx), r.wait(stopCtx))
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// newPages fetches the logo, once. Pages show the name where that fails: a logo's host that is
// away keeps no customer from paying.
func newPages(ctx context.Context, cfg *Config, allowHTTP bool, log *slog.Logger) *portal.Pages {
	pages := portal.PagesConfig{Brand: cfg.BrandName, SupportURL: cfg.SupportURL, Color: cfg.BrandColor, LoginURL: cfg.PortalLoginURL, AllowHTTP: allowHTTP}
	if cfg.BrandLogoURL != "" && cfg.has(roleClick) {
		logo, err := portal.FetchLogo(ctx, cfg.BrandLogoURL)
		if err != nil {
			log.Warn("pages show BRAND_NAME in place of the logo; mend BRAND_LOGO_URL and restart", "error", err)
		}
		pages.Logo = logo
	}
	return portal.NewPages(pages)
}

func requestRules(cfg *Config) jobs.Rules {
	live, known := portal.KeyMode(cfg.StripeAPIKey)
	return jobs.Rules{Session: cfg.returnURLs(), TTL: cfg.LinkTTL, TTLMax: cfg.LinkTTLMax, Livemode: live, LivemodeKnown: known,
		Templates: cfg.templates, Webhooks: cfg.webhooks}
}

// openPool checks the schema as the user that DATABASE_URL names, then opens the pool, each of
// whose sessions takes the worker's role: an owner's URL gives the worker no owner's rights.
func openPool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	if err := checkSchema(ctx, url); err != nil {
		return nil, err
	}
	return openAppPool(ctx, url, func(*pgxpool.Config) {}, portal.PlannerSettings)
}

// openJobPool is for River's own writes: that a job was fetched or is done. A crash of Postgres
// may lose the last moment of these, and then a job runs again, as it may at any time; so they
// don't wait for the disk, which clicks and intake need. Jobs are inserted by the transactions that
// they belong to, which do.
func openJobPool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	return openAppPool(ctx, url, func(cfg *pgxpool.Config) { cfg.MaxConns = min(cfg.MaxConns, jobPoolSize) },
		map[string]string{"synchronous_commit": "off", "lock_timeout": "'5s'"}) // nobody's row may stop the publishing
}

// openAppPool opens a pool under the worker's role, with settings for each session. They are SET,
// because PgBouncer refuses a connection that begins with a parameter it does not know.
func openAppPool(ctx context.Context, url string, change func(*pgxpool.Config), settings map[string]string) (*pgxpool.Pool, error) {
	cfg, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	change(cfg)
	// A worker that froze, or lost its network, between two statements must not hold the row of
	// a Stripe account's line until TCP gives it up: nobody would get a slot for hours.
	set := "SET ROLE " + migrations.AppRole + "; SET idle_in_transaction_session_timeout = '10s'"
	for name, value := range settings {
		set += "; SET " + name + " = " + value
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, set)
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("database: %w", redactURL(err))
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("the database user can't take the role %s; run 'GRANT %s TO <user>' or 'worker migrate': %w", migrations.AppRole, migrations.AppRole, redactURL(err))
	}
	return pool, nil
}

func checkSchema(ctx context.Context, url string) error {
	pool, err := plainPool(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	err = migrations.Check(ctx, pool)
	if errors.Is(err, migrations.ErrBehind) {
		return fmt.Errorf("%w; run 'worker migrate' first", err)
	}
	return err
}

// plainPool opens a pool under the user that the URL names.
func plainPool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	cfg, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("database: %w", redactURL(err))
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("no connection to the database, is DATABASE_URL right and the server up? %w", redactURL(err))
	}
	return pool, nil
}

func poolConfig(url string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("DATABASE_URL: is not a Postgres URL or connection string") // the cause quotes it
	}
	if !strings.Contains(url, "pool_max_conns") {
		cfg.MaxConns = poolSize
	}
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	cfg.ConnConfig.RuntimeParams["application_name"] = "latchkey"
	return cfg, nil
}

// redactURL keeps what a connection error says and drops the connection string that it quotes.
func redactURL(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return errors.New("DATABASE_URL can't be parsed")
	}
	if text := err.Error(); strings.Contains(text, "\n") { // one attempt a line
		return errors.New(strings.Join(strings.Fields(text), " "))
	}
	return err
}

func connectNATS(cfg *Config, log *slog.Logger) (*nats.Conn, error) {
	return cfg.NATS.Connect("latchkey worker",
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("the connection to NATS is lost; reconnecting", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("the connection to NATS is back") }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Warn("NATS", "subject", subject, "error", err)
		}))
}

// closePool closes it, but does not wait for ever for a session that waits for the database: the
// process ends, and with it the session.
func closePool(pool *pgxpool.Pool) {
	done := make(chan struct{})
	go func() { pool.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

// running keeps the parts that were started; the first that ends by an error ends the service.
type running struct {
	log    *slog.Logger
	parts  sync.WaitGroup
	failed chan error
}

// untilDone returns nil when the stop is asked for, or the error of a part that failed.
func (r *running) untilDone(ctx context.Context) error {
	select {
	case <-ctx.Done():
		r.log.Info("stopping")
		return nil
	case err := <-r.failed:
		r.log.Error("a part failed; stopping", "error", err)
		return err
	}
}

func (r *running) start(name string, f func() error) {
	r.parts.Go(func() {
		if err := f(); err != nil {
			r.failed <- fmt.Errorf("%s: %w", name, err)
		}
	})
}

// await returns when a part is up, so that who is told that the service is ready may ask it, or will not be.
func (r *running) await(ctx context.Context, up <-chan struct{}) {
	select {
	case <-up:
	case <-ctx.Done():
	case err := <-r.failed:
		r.failed <- err // untilDone's
	}
}

func (r *running) serve(name string, srv *http.Server, l net.Listener) {
	r.start(name, func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

// wait returns when all parts have ended, or says that they did not in time.
func (r *running) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { r.parts.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errors.New("not every part ended in time; what was open is taken up at the next start")
	}
}

// addr is where a server listens; none without its role.
func addr(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

func closeListeners(l listeners) {
	for _, ln := range []net.Listener{l.public, l.admin} {
		if ln != nil {
			_ = ln.Close() // closed by its server already, or never served
		}
	}
}
