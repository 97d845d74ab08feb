package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/config"
	"latchkey/internal/mailcatcher"
	"latchkey/internal/portal"
	"latchkey/internal/stack"
	"latchkey/internal/stripesim"
	"latchkey/migrations"
)

func newDevCommand() *cobra.Command {
	d := &dev{}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything on this machine, with nothing to install or configure",
		Long: `Starts a Postgres, a NATS server, the Stripe simulator and a mail catcher of its own, migrates,
runs the service, puts sample requests through it and prints what to open and to try next. Stays
up until Ctrl-C. Data lies in --dir and is found again at the next start.

STRIPE_API_KEY=sk_test_… takes Stripe's own test mode in place of the simulator; DATABASE_URL,
NATS_URL and SMTP_URL take those servers in place of its own. All other settings of 'worker run'
work too.`,
		Example: "  worker dev\n  worker dev --dir /tmp/latchkey --ports-from 9000\n  STRIPE_API_KEY=sk_test_… worker dev",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&d.dir, "dir", ".latchkey", "folder for data and keys")
	cmd.Flags().IntVar(&d.portsFrom, "ports-from", -1, "first port to try for each server (0: any free ones)")
	cmd.Flags().BoolVar(&d.quit, "quit-after-samples", false, "stop once the samples are through")
	return cmd
}

// dev is the whole thing on one machine. Its servers are started in the order in which they need
// one another and stopped in the opposite one.
type dev struct {
	dir       string
	portsFrom int
	quit      bool
	out       io.Writer

	log       *slog.Logger
	cfg       *Config
	listeners listeners
	stops     []func(context.Context) error
	page      devPage
	catcher   *mailcatcher.Catcher // nil where SMTP_URL names a server of the user's own
}

// Ports are stepped past where in use. NATS has its own usual one, so that enqueue finds it.
const (
	devPort     = 8080
	devNATSPort = 4222
)

func (d *dev) run(ctx context.Context) (err error) {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	if err := d.configure(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for _, start := range []func(context.Context) error{
		d.listen, d.startPostgres, d.startNATS, d.startStripe, d.startMail,
	} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return d.runService(ctx)
}

// configure takes the environment as 'worker run' does, and leaves to the start of each server
// what is not set.
func (d *dev) configure() error {
	d.cfg = &Config{}
	problems := config.Load(d.cfg)
	if live, _ := portal.KeyMode(d.cfg.StripeAPIKey); live {
		problems.Add("STRIPE_API_KEY", "is a live key; dev takes sk_test_… only")
	}
	if len(problems) > 0 {
		return problems
	}
	if os.Getenv("LOG_LEVEL") == "" && os.Getenv(config.Prefix+"_LOG_LEVEL") == "" {
		d.cfg.LogLevel = "warn"
	}
	if os.Getenv("LOG_FORMAT") == "" && os.Getenv(config.Prefix+"_LOG_FORMAT") == "" {
		d.cfg.LogFormat = "text"
	}
	d.cfg.HTTPDrainTime = 0 // nobody balances a load here
	d.log = d.cfg.logger()
	d.cfg.keysFile = config.SecretFile("LINK_KEYS")
	if d.cfg.LinkKeys == "" {
		keys, err := d.keptKeys()
		if err != nil {
			return err
		}
		d.cfg.LinkKeys, d.cfg.keysFile = keys, d.keysPath()
	}
	return nil
}

// keptKeys makes a signing key at the first start and keeps it, so that the links of the last run
// still work.
func (d *dev) keptKeys() (string, error) {
	path := d.keysPath()
	content, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(content)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) { // a new key would end the links of the old one
		return "", fmt.Errorf("read the signing key: %w", err)
	}
	var key [32]byte
	_, _ = rand.Read(key[:])
	line := portal.FormatKey(1, key)
	if err := writeWhole(path, []byte(line+"\n")); err != nil {
		return "", fmt.Errorf("keep the signing key: %w", err)
	}
	return line, nil
}

// listen takes the ports first: the start page and links should have the first ones, and a port
// that can't be had should be told at once.
func (d *dev) listen(context.Context) error {
	start, err := stack.Listen(loopback, d.port(devPort))
	if err != nil {
		return err
	}
	d.serveHTTP(start, &d.page)
	if d.listeners.public, err = stack.Listen(loopback, d.port(devPort)); err != nil {
		return err
	}
	d.onStop(func(context.Context) error { closeListeners(d.listeners); return nil })
	if d.listeners.admin, err = stack.Listen(loopback, d.port(9090)); err != nil {
		return err
	}
	d.page.Start, d.page.Click, d.page.Admin = originOf(start), originOf(d.listeners.public), originOf(d.listeners.admin)
	return nil
}

func (d *dev) startPostgres(ctx context.Context) error {
	if d.cfg.DatabaseURL == "" {
		bin, err := stack.FindPostgres()
		if err != nil {
			fmt.Fprintln(d.out, "No Postgres found on this machine.")
			if bin, err = stack.FetchPostgres(ctx, d.out); err != nil {
				return err
			}
		}
		fmt.Fprintln(d.out, "Starting Postgres …")
		pg, err := stack.StartPostgres(ctx, stack.PostgresConfig{Dir: filepath.Join(d.dir, "postgres"), BinDir: bin, Fsync: true})
		if errors.Is(err, stack.ErrInUse) {
			return fmt.Errorf("%w; stop the other 'worker dev' first, or give this one another --dir", err)
		}
		if err != nil {
			return err
		}
		d.onStop(pg.Stop)
		_ = os.Remove(d.statePath()) // the folder is ours now: a file that is there is of an earlier run
		d.cfg.DatabaseURL = pg.URL("postgres")
		d.page.Postgres = d.cfg.DatabaseURL
	}
	pool, err := plainPool(ctx, d.cfg.DatabaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	if d.page.Postgres == "" {
		conn := pool.Config().ConnConfig
		d.page.OwnPostgres = fmt.Sprintf("yours, of DATABASE_URL: %s on %s", conn.Database, conn.Host)
		fmt.Fprintf(d.out, "Postgres is %s\n", d.page.OwnPostgres)
	} else if data, err := filepath.EvalSymlinks(filepath.Join(d.dir, "postgres", "data")); err == nil {
		d.page.Data = data
	}
	_, err = migrations.Up(ctx, pool)
	return err
}

func (d *dev) startNATS(ctx context.Context) error {
	if os.Getenv("NATS_URL") != "" || os.Getenv(config.Prefix+"_NATS_URL") != "" {
		d.page.NATS = "yours, of NATS_URL"
		fmt.Fprintln(d.out, "NATS is yours, of NATS_URL; unset it for one of dev's own")
		return nil
	}
	// The server opens its port by itself, so the port is found free and then given to it.
	ln, err := stack.Listen(loopback, d.port(devNATSPort))
	if err != nil {
		return err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	if err := ln.Close(); err != nil {
		return err
	}
	ns, err := stack.StartNATS(ctx, stack.NATSConfig{Dir: filepath.Join(d.dir, "nats"), Host: loopback, Port: port, SyncAlways: true,
		// Errors only: after a killed run it warns of each file that it rebuilds.
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))})
	if err != nil {
		return err
	}
	d.onStop(func(context.Context) error { return ns.Stop() })
	d.cfg.NATS.URL = ns.URL()
	d.page.NATS = ns.URL()
	return nil
}

// startStripe starts the simulator, unless the environment has a test key of Stripe's own.
func (d *dev) startStripe(context.Context) error {
	if d.cfg.StripeAPIKey != "" {
		d.page.OwnStripe = true
		return nil
	}
	ln, err := stack.Listen(loopback, d.port(devPort))
	if err != nil {
		return err
	}
	d.serveHTTP(ln, stripesim.New(stripesim.Config{Logger: d.log}))
	d.cfg.StripeAPIKey, d.cfg.StripeAPIBase = stripesim.TestKey, originOf(ln)
	d.page.Simulator = originOf(ln)
	return nil
}

// startMail starts the mail catcher, unless the environment has a mail server.
func (d *dev) startMail(context.Context) error {
	if d.cfg.SMTPURL != "" {
		return nil
	}
	catcher := mailcatcher.New(mailcatcher.Config{Log: d.log})
	smtp, err := stack.Listen(loopback, d.port(1025))
	if err != nil {
		return err
	}
	go func() {
		if err := catcher.Serve(smtp); err != nil {
			d.log.Error("mail catcher", "error", err)
		}
	}()
	d.onStop(func(context.Context) error { return catcher.Close() })
	web, err := stack.Listen(loopback, d.port(devPort))
	if err != nil {
		return err
	}
	d.serveHTTP(web, catcher.Handler())
	d.page.Mail, d.page.SMTP = originOf(web), smtp.Addr().String()
	d.cfg.SMTPURL, d.catcher = "smtp://"+d.page.SMTP, catcher
	return nil
}

// runService starts the service itself, puts the samples through, shows the way on, and waits.
func (d *dev) runService(ctx context.Context) error {
	if err := d.completeConfig(); err != nil {
		return err
	}

	serviceCtx, stopService := context.WithCancel(context.WithoutCancel(ctx))
	defer stopService()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- run(serviceCtx, d.cfg, d.log, d.listeners, func() { close(ready) }) }()
	select {
	case err := <-ended:
		return err
	case <-ready:
	}
	err := d.samples(ctx)
	if err == nil && !d.quit {
		select {
		case <-ctx.Done():
		case err := <-ended:
			return err
		}
	}
	fmt.Fprintln(d.out, "\nStopping …")
	_ = os.Remove(d.statePath())
	stopService()
	if ctx.Err() != nil {
		err = nil // stopped while the samples were on their way
	}
	return errors.Join(err, <-ended)
}

// completeConfig sets what depends on the ports, where the environment does not.
func (d *dev) completeConfig() error {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&d.cfg.LinkBaseURL, d.page.Click)
	d.cfg.AdminAddr = d.listeners.admin.Addr().String()
	set(&d.cfg.ReturnURL, d.page.Start+"/returned")
	set(&d.cfg.BrandName, "Latchkey dev")
	set(&d.cfg.MailFrom, "Latchkey dev <billing@example.com>")
	set(&d.cfg.WebhookSecrets, devWebhookSecret)
	d.cfg.WebhookPrivate = true // who tries webhooks has the target on this machine
	d.page.WebhookSecret = strings.Split(d.cfg.WebhookSecrets, ",")[0]
	if kept, err := os.ReadFile(d.keysPath()); d.page.Simulator != "" && d.catcher != nil && d.cfg.WebhookSecrets == devWebhookSecret && err == nil && strings.TrimSpace(string(kept)) == d.cfg.LinkKeys {
		d.page.Check = fmt.Sprintf("STRIPE_API_KEY=%s STRIPE_API_BASE=%s LINK_BASE_URL=%s LINK_KEYS_FILE=%s SMTP_URL=%s MAIL_FROM=billing@example.com WEBHOOK_SECRETS=%s WEBHOOK_ALLOW_PRIVATE=true",
			d.cfg.StripeAPIKey, d.cfg.StripeAPIBase, d.cfg.LinkBaseURL, d.keysPath(), d.cfg.SMTPURL, devWebhookSecret) // nothing of the user's own
	}
	if len(d.cfg.ReturnURLHosts) == 0 {
		d.cfg.ReturnURLHosts = []string{strings.TrimPrefix(d.page.Start, "http://"), "app.example.com"}
	}
	var problems config.Problems
	d.cfg.validate(&problems)
	if len(problems) > 0 {
		return problems
	}
	return nil
}

// samples puts one request of each kind through the real path and says what to do next.
func (d *dev) samples(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	links, err := sendSamples(ctx, d.cfg, d.catcher != nil)
	if err != nil {
		return fmt.Errorf("the samples did not get through: %w", err)
	}
	if d.catcher != nil {
		if err := awaitMails(ctx, d.catcher, links); err != nil {
			return err
		}
	}
	d.page.setLinks(links)
	d.page.print(d.out)
	state, err := json.MarshalIndent(d.page.state(), "", "  ")
	if err != nil {
		return err
	}
	return writeWhole(d.statePath(), append(state, '\n'))
}

// writeWhole renames a file into place: who finds it finds all of it.
func writeWhole(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (d *dev) keysPath() string { return filepath.Join(d.dir, "link_keys") }

func (d *dev) statePath() string { return filepath.Join(d.dir, "dev.json") }

const loopback = "127.0.0.1"

// devWebhookSecret signs dev's webhooks: public, as it protects nothing.
const devWebhookSecret = "whsec_bGF0Y2hrZXkgZGV2LCBub3QgYSBzZWNyZXQgYXQgYWxs"

// port is where to look for a free port: the server's usual one, unless --ports-from says else.
func (d *dev) port(usual int) int {
	if d.portsFrom >= 0 {
		return d.portsFrom
	}
	return usual
}

func originOf(l net.Listener) string { return "http://" + l.Addr().String() }

func (d *dev) serveHTTP(l net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("a page of dev failed", "address", l.Addr(), "error", err)
		}
	}()
	d.onStop(func(context.Context) error { return srv.Close() })
}

func (d *dev) onStop(f func(context.Context) error) { d.stops = append(d.stops, f) }

// stop ends the servers, the last started first.
func (d *dev) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	for i := len(d.stops) - 1; i >= 0; i-- {
		err = errors.Join(err, d.stops[i](ctx))
	}
	return err
}
