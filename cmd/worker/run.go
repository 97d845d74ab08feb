package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"latchkey/internal/audit"
	"latchkey/internal/cli"
	"latchkey/internal/config"
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
	mostDrainTime = 7 * time.Second
	abortDeadline = 9 * time.Second // what was cut has its outcome written within the rest
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
	cfg           *Config
	pool, jobPool *pgxpool.Pool
	checked       atomic.Bool // the schema is right, and the sessions stay: the pools may connect
	nats          *nats.Conn
	jetStream     jetstream.JetStream
}

// connect opens what needs no server to be there: the pools give out connections after checkDatabase,
// and NATS is tried once and after that in the background. After an error close still closes what is
// open.
func connect(cfg *Config, log *slog.Logger) (b *backends, err error) {
	b = &backends{cfg: cfg}
	gate := func(context.Context, *pgx.ConnConfig) error {
		if !b.checked.Load() {
			return errUnchecked
		}
		return nil
	}
	if b.pool, err = newPool(cfg.DatabaseURL, gate); err != nil {
		return b, err
	}
	if b.jobPool, err = newJobPool(cfg.DatabaseURL, gate); err != nil {
		return b, err
	}
	if b.nats, err = connectNATS(cfg, log); err != nil {
		return b, err
	}
	if warning := exposed(b.pool.Config().ConnConfig); warning != "" {
		log.Warn(warning)
	}
	// An ack that never comes must not keep its place among the pending ones for ever.
	if b.jetStream, err = jetstream.New(b.nats, jetstream.WithPublishAsyncTimeout(publishAckTimeout)); err != nil {
		return b, fmt.Errorf("JetStream: %w", err)
	}
	return b, nil
}

// checkDatabase opens the pools' gate once the database is one that this worker may use.
func (b *backends) checkDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, databaseCheckTime)
	defer cancel()
	if err := checkSchema(ctx, b.cfg.DatabaseURL); err != nil {
		return err
	}
	b.checked.Store(true)
	if err := pingAs(ctx, b.pool); err != nil {
		return err
	}
	return pingAs(ctx, b.jobPool)
}

// ensureStreams needs the connection that connectNATS or its reconnecting has made.
func (b *backends) ensureStreams(ctx context.Context) error {
	if b.nats.IsClosed() {
		return fmt.Errorf("NATS refuses this worker, are the user in NATS_URL and NATS_CREDS right? %w", b.nats.LastError())
	}
	if !b.nats.IsConnected() {
		if err := b.nats.LastError(); err != nil && !natsAway(err) { // it is back as another one
			return fmt.Errorf("NATS can't be connected to, is its certificate right, and the user in NATS_URL and NATS_CREDS? %w", err)
		}
		return nats.ErrNoServers
	}
	ctx, cancel := context.WithTimeout(ctx, streamsCheckTime)
	defer cancel()
	err := jobs.EnsureStreams(ctx, b.jetStream, b.cfg.ManageStreams)
	if errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("NATS has no JetStream, enable it for the server and the account: %w", err)
	}
	return err
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
		Mailer: mailer, Templates: cfg.templates, Webhooks: cfg.webhooks, Subscriptions: cfg.subscriptions,
		Retention: audit.Retention{Visitors: cfg.VisitorRetention, Links: cfg.LinkRetention}})
	if err != nil {
		return nil, err
	}
	r := &roles{river: river, mailer: mailer, webhooks: cfg.webhooks, store: portal.NewStore(b.pool, river.Publish, time.Now)}
	r.issuer = &jobs.Issuer{Pool: b.pool, Keys: cfg.keys, BaseURL: cfg.LinkBaseURL, Rules: requestRules(cfg), Publish: river.Publish, Deliver: river.Deliver, Now: time.Now, Log: log}
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
	up, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	r := &running{log: log, fail: fail}
	admin := newAdmin(cfg, reg)
	adminServer := admin.server()
	defer func() { _ = adminServer.Close() }() // where the start ends early
	r.serve("internal server", adminServer, l.admin)
	b, err := connect(cfg, log)
	defer b.close()
	if err != nil {
		return err
	}
	role, err := newRoles(ctx, cfg, log, b, reg)
	if err != nil {
		return err
	}
	defer role.close()

	service := jobs.NewService(role.issuer, role.store, log)
	service.Preflight = &portal.Preflight{Stripe: role.stripe, Reads: role.reads}
	admin.open(b, service)
	intakeCtx, stopIntake := context.WithCancel(context.WithoutCancel(ctx))
	defer stopIntake()
	keysCtx, stopKeys := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeys()
	if cfg.keysFile != "" {
		r.start("keys", func() error { watchKeys(keysCtx, cfg, b.jobPool, keysEvery, log); return nil })
	}
	s := &starting{cfg: cfg, log: log, admin: admin, backends: b, role: role, running: r,
		clicks: role.click.HTTPServer(), public: l.public}
	cause := s.start(up)
	if cause == nil {
		s.startIntake(up, intakeCtx, service, reg)
		admin.ready.Store(true)
		log.Info("ready", "roles", cfg.Roles, "version", cli.Version, "links", cfg.LinkBaseURL, "http", addr(l.public), "admin", addr(l.admin))
		if ready != nil {
			ready()
		}
	}
	if cause == nil || up.Err() != nil { // that, and not what was interrupted by it
		cause = r.untilDone(up)
	}

	drain := time.Duration(0)
	if admin.ready.Swap(false) && cfg.has(roleClick) {
		drain = cfg.HTTPDrainTime
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopDeadline)
	defer cancel()
	defer time.AfterFunc(min(drain+clickStopTime, abortDeadline), role.abortClicks).Stop()
	role.click.Draining.Store(true)
	stopIntake()
	// Side by side, or their deadlines would add up: jobs that a click writes now are the next
	// worker's.
	jobsStopped := make(chan error, 1)
	go func() { jobsStopped <- role.river.Stop(stopCtx) }()
	// Clicks are served until who spreads them has seen /readyz: one that net/http reads in its Shutdown gets no answer.
	time.Sleep(drain)
	stopKeys()
	err = errors.Join(cause, s.clicks.Shutdown(stopCtx), <-jobsStopped, adminServer.Shutdown(stopCtx), r.wait(stopCtx))
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

// connectGate is asked before a pool opens a connection.
type connectGate func(context.Context, *pgx.ConnConfig) error

func newPool(url string, gate connectGate) (*pgxpool.Pool, error) {
	return newAppPool(url, func(cfg *pgxpool.Config) { cfg.BeforeConnect = gate }, portal.PlannerSettings)
}

// newJobPool is for River's own writes: that a job was fetched or is done. A crash of Postgres
// may lose the last moment of these, and then a job runs again, as it may at any time; so they
// don't wait for the disk, which clicks and intake need. What a job leaves behind does (durable in
// internal/jobs), and jobs are inserted by the transactions that they belong to, which do too.
func newJobPool(url string, gate connectGate) (*pgxpool.Pool, error) {
	return newAppPool(url, func(cfg *pgxpool.Config) { cfg.MaxConns, cfg.BeforeConnect = min(cfg.MaxConns, jobPoolSize), gate },
		map[string]string{"synchronous_commit": "off", "lock_timeout": "'5s'"}) // nobody's row may stop the publishing
}

// newAppPool makes a pool under the worker's role, with settings for each session, which connects when
// it is used. They are SET, because PgBouncer refuses a connection that begins with a parameter it does
// not know.
func newAppPool(url string, change func(*pgxpool.Config), settings map[string]string) (*pgxpool.Pool, error) {
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
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg) // it dials nothing: there is no least number
	if err != nil {
		return nil, fmt.Errorf("database: %w", redactURL(err))
	}
	return pool, nil
}

// openAppPool makes one that has connected, so that a missing role is told now.
func openAppPool(ctx context.Context, url string, change func(*pgxpool.Config), settings map[string]string) (*pgxpool.Pool, error) {
	pool, err := newAppPool(url, change, settings)
	if err != nil {
		return nil, err
	}
	if err := pingAs(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

func pingAs(ctx context.Context, pool *pgxpool.Pool) error {
	err := pool.Ping(ctx)
	switch {
	case err == nil:
		return nil
	case databaseAway(err):
		return fmt.Errorf("no connection to the database: %w", redactURL(err))
	}
	return fmt.Errorf("the database user can't take the role %s; run 'GRANT %s TO <user>' or 'worker migrate': %w", migrations.AppRole, migrations.AppRole, redactURL(err))
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
	if portal.RefusesUser(err) {
		return fmt.Errorf("the user of DATABASE_URL lacks a right: %w; 'GRANT %s TO <user>', who must inherit its rights, is enough for the service; 'keys retire' and 'audit erase' take the schema's owner", err, migrations.AppRole)
	}
	return err
}

// plainPool opens a pool under the user that the URL names.
func plainPool(ctx context.Context, url string, change ...func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	cfg, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	for _, f := range change {
		f(cfg)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("database: %w", redactURL(err))
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("no connection to the database, is DATABASE_URL right and the server up? %w", redactURL(err))
	}
	if err := checkSessions(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

func poolConfig(url string) (*pgxpool.Config, error) {
	cfg, err := parseDatabase(url)
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
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &parse):
		return errors.New("DATABASE_URL can't be parsed")
	case errors.As(err, &cert):
		return fmt.Errorf("the certificate of Postgres is not accepted; set sslrootcert in DATABASE_URL to the file of its authority, and name the host as the certificate does: %w", cert)
	case strings.Contains(err.Error(), "server refused TLS connection"): // pgconn has no value for it
		return errors.New("the server of DATABASE_URL offers no TLS; switch it on there, or write sslmode=disable into DATABASE_URL where nobody else is on the network between")
	}
	return oneLine{err}
}

// oneLine is an error whose text has an attempt to connect on each line, with its causes kept.
type oneLine struct{ error }

func (e oneLine) Error() string { return strings.Join(strings.Fields(e.error.Error()), " ") }
func (e oneLine) Unwrap() error { return e.error }

// connectNATS tries once, to tell what waiting can't mend, and leaves a server that is away to the
// client's reconnecting.
func connectNATS(cfg *Config, log *slog.Logger) (*nats.Conn, error) {
	nc, err := dialNATS(cfg, log)
	if !natsAway(err) {
		return nc, err
	}
	log.Warn("NATS is away; the start goes on without, and what needs it starts when it is there", "error", err)
	return dialNATS(cfg, log, nats.RetryOnFailedConnect(true))
}

func dialNATS(cfg *Config, log *slog.Logger, more ...nats.Option) (*nats.Conn, error) {
	warnIfExposed := func(nc *nats.Conn) {
		if warning := config.Exposed(nc); warning != "" {
			log.Warn(warning)
		}
	}
	return cfg.NATS.Connect("latchkey worker", append(more,
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("the connection to NATS is lost; reconnecting", "error", err)
			}
		}),
		nats.ConnectHandler(warnIfExposed),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("the connection to NATS is back"); warnIfExposed(nc) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Warn("NATS", "subject", subject, "error", err)
		}))...)
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

// running keeps the parts that were started; the first that ends by an error ends the service: fail
// cancels the context that the start and untilDone go by.
type running struct {
	log   *slog.Logger
	parts sync.WaitGroup
	fail  context.CancelCauseFunc
}

// partError is the cause of the end of a service that was not asked to stop.
type partError struct{ error }

func (e partError) Unwrap() error { return e.error }

// untilDone returns nil when the stop is asked for, or the error of a part that failed.
func (r *running) untilDone(ctx context.Context) error {
	<-ctx.Done()
	if failed, ok := errors.AsType[partError](context.Cause(ctx)); ok {
		r.log.Error("a part failed; stopping", "error", failed)
		return failed
	}
	r.log.Info("stopping")
	return nil
}

func (r *running) start(name string, f func() error) {
	r.parts.Go(func() {
		if err := f(); err != nil {
			r.fail(partError{fmt.Errorf("%s: %w", name, err)})
		}
	})
}

// await returns when a part is up, so that who is told that the service is ready may ask it, or will not be.
func (r *running) await(ctx context.Context, up <-chan struct{}) {
	select {
	case <-up:
	case <-ctx.Done():
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
