package main

import (
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"latchkey/internal/audit"
	"latchkey/internal/brand"
	"latchkey/internal/cli"
	"latchkey/internal/config"
	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// Config is the worker's environment; docs/configuration.md lists it for operators.
type Config struct {
	config.Redacted

	DatabaseURL       string        `envconfig:"DATABASE_URL" secret:"true"` // Postgres 14 or newer
	NATS              config.NATS   // NATS_URL, NATS_CREDS, NATS_CA
	ManageStreams     bool          `envconfig:"NATS_MANAGE_STREAMS" default:"true"`  // false: check them only
	StripeAPIKey      string        `envconfig:"STRIPE_API_KEY" secret:"true"`        // sk_… or rk_…
	StripeAPIBase     string        `envconfig:"STRIPE_API_BASE"`                     // empty: Stripe's own
	StripeAPIVersion  string        `envconfig:"STRIPE_API_VERSION"`                  // empty: the SDK's
	StripeRate        float64       `envconfig:"STRIPE_RATE" default:"20"`            // sessions a second, all replicas
	StripeReadRate    float64       `envconfig:"STRIPE_READ_RATE" default:"20"`       // reads a second by campaign checks, all replicas
	LinkBaseURL       string        `envconfig:"LINK_BASE_URL"`                       // origin of the click server
	LinkKeys          string        `envconfig:"LINK_KEYS" secret:"true"`             // id:base64key,…
	LinkTTL           time.Duration `envconfig:"LINK_TTL" default:"336h"`             // of a link that names none
	LinkTTLMax        time.Duration `envconfig:"LINK_TTL_MAX" default:"2160h"`        //
	LinkRetention     time.Duration `envconfig:"LINK_RETENTION"`                      // of expired links; 0: forever
	VisitorRetention  time.Duration `envconfig:"VISITOR_RETENTION" default:"720h"`    // of visitors' data; 0: forever
	ReturnURL         string        `envconfig:"RETURN_URL"`                          // of sessions that name none
	ReturnURLHosts    []string      `envconfig:"RETURN_URL_HOSTS"`                    // empty: RETURN_URL's
	HTTPAddr          string        `envconfig:"HTTP_ADDR" default:":8080"`           // public
	HTTPDrainTime     time.Duration `envconfig:"HTTP_DRAIN_TIME" default:"3s"`        // of clicks served on after SIGTERM
	AdminAddr         string        `envconfig:"ADMIN_ADDR" default:"127.0.0.1:9090"` // internal
	AdminToken        string        `envconfig:"ADMIN_TOKEN" secret:"true"`           // bearer token of /metrics; empty: ADMIN_ADDR is on loopback
	TrustedProxyCIDRs []string      `envconfig:"TRUSTED_PROXIES"`                     //
	BrandName         string        `envconfig:"BRAND_NAME"`                          // on the pages
	BrandLogoURL      string        `envconfig:"BRAND_LOGO_URL"`                      // fetched at start
	BrandColor        string        `envconfig:"BRAND_COLOR"`                         // of the button; #rgb, #rrggbb
	SupportURL        string        `envconfig:"SUPPORT_URL"`                         // on the pages; https or mailto
	PortalLoginURL    string        `envconfig:"PORTAL_LOGIN_URL"`                    // Stripe's own login page
	SMTPURL           string        `envconfig:"SMTP_URL" secret:"true"`              // smtp://user:pass@host:587, smtps://…; empty: no mail
	SMTPRate          float64       `envconfig:"SMTP_RATE" default:"20"`              // mails a second, each process
	MailFrom          string        `envconfig:"MAIL_FROM"`                           // address, with or without a display name
	TemplateDir       string        `envconfig:"TEMPLATE_DIR"`                        // mail templates beside or in place of the built-in ones
	WebhookSecrets    string        `envconfig:"WEBHOOK_SECRETS" secret:"true"`       // whsec_…,…; empty: no webhooks
	WebhookPrivate    bool          `envconfig:"WEBHOOK_ALLOW_PRIVATE"`               // targets on loopback and private addresses
	WebhookSubs       string        `envconfig:"WEBHOOK_SUBSCRIPTIONS" secret:"true"` // kind,kind=url *=url …
	Roles             []string      `envconfig:"ROLES" default:"intake,jobs,click"`   //
	LogLevel          string        `envconfig:"LOG_LEVEL" default:"info"`            // debug, info, warn, error
	LogFormat         string        `envconfig:"LOG_FORMAT" default:"json"`           // json, text

	keys          *portal.Keyring     // of LinkKeys
	keysFile      string              // that LinkKeys was read from, and is watched; empty = none
	proxies       []netip.Prefix      // of TrustedProxyCIDRs
	templates     *notify.Templates   // of TemplateDir; nil without SMTPURL
	webhooks      *notify.Webhooks    // of WebhookSecrets; nil without
	subscriptions []jobs.Subscription // of WebhookSubs
}

// The roles of a process.
const (
	roleIntake = "intake"
	roleJobs   = "jobs"
	roleClick  = "click"
)

func (c *Config) has(role string) bool { return slices.Contains(c.Roles, role) }

// needsNATS is false of clicks alone: their events wait in Postgres.
func (c *Config) needsNATS() bool { return c.has(roleIntake) || c.has(roleJobs) }

// loadConfig reads the whole configuration and reports all that is wrong with it at once.
func loadConfig() (*Config, error) {
	c := &Config{}
	problems := config.Load(c)
	c.keysFile = config.SecretFile("LINK_KEYS")
	c.validate(&problems)
	if len(problems) > 0 {
		return nil, problems
	}
	return c, nil
}

func (c *Config) validate(p *config.Problems) {
	if c.DatabaseURL == "" {
		p.Add("DATABASE_URL", "is required, such as postgres://latchkey:…@db:5432/latchkey")
	} else if _, err := poolConfig(c.DatabaseURL); err != nil {
		p.Add("DATABASE_URL", "is not a Postgres URL or connection string")
	}
	for i, server := range strings.Split(c.NATS.URL, ",") {
		if u, err := url.Parse(strings.TrimSpace(server)); err != nil || u.Host == "" {
			p.Add("NATS_URL", "entry %d must be a URL, such as nats://nats:4222", i+1)
		}
	}
	switch _, known := portal.KeyMode(c.StripeAPIKey); {
	case c.StripeAPIKey == "":
		p.Add("STRIPE_API_KEY", "is required; a restricted key (rk_…) with customer portal write is best")
	case !known:
		p.Add("STRIPE_API_KEY", "must be a secret or restricted key, sk_live_…, sk_test_…, rk_live_… or rk_test_…")
	}
	if c.StripeAPIBase != "" {
		checkOrigin(p, "STRIPE_API_BASE", c.StripeAPIBase)
	}
	if !p.Has("STRIPE_RATE") && !(c.StripeRate >= 1 && c.StripeRate <= 1e6) {
		p.Add("STRIPE_RATE", "must be a number of sessions a second, from 1")
	}
	if !p.Has("STRIPE_READ_RATE") && !(c.StripeReadRate >= 1 && c.StripeReadRate <= 1e6) {
		p.Add("STRIPE_READ_RATE", "must be a number of reads a second, from 1")
	}
	if c.LinkBaseURL == "" {
		p.Add("LINK_BASE_URL", "is required: the public origin of the click server, https://…")
	} else {
		checkOrigin(p, "LINK_BASE_URL", c.LinkBaseURL)
	}
	c.LinkBaseURL = strings.TrimRight(c.LinkBaseURL, "/")
	if c.LinkKeys == "" {
		p.Add("LINK_KEYS", "is required; 'worker keys new' prints one")
	} else if keys, err := portal.ParseKeys(c.LinkKeys); err != nil {
		p.Add("LINK_KEYS", "%v", err)
	} else {
		c.keys = keys
	}
	c.validateLinks(p)
	c.validatePages(p)
	c.validateServers(p)
	c.validateEmail(p)
	c.validateWebhooks(p)
}

func (c *Config) validateLinks(p *config.Problems) {
	switch {
	case p.Has("LINK_TTL") || p.Has("LINK_TTL_MAX"): // not even durations
	case c.LinkTTL <= 0 || c.LinkTTLMax <= 0:
		p.Add("LINK_TTL", "and LINK_TTL_MAX must be above 0")
	case c.LinkTTL > c.LinkTTLMax:
		p.Add("LINK_TTL", "must not be longer than LINK_TTL_MAX")
	}
	for name, d := range map[string]time.Duration{"LINK_RETENTION": c.LinkRetention, "VISITOR_RETENTION": c.VisitorRetention} {
		if d != 0 && d < audit.LeastRetention {
			p.Add(name, "must be at least 24h; 0 keeps for ever")
		}
	}
	if c.ReturnURL != "" {
		if u, err := portal.ParseWebURL(c.ReturnURL); err != nil {
			p.Add("RETURN_URL", "%v", err)
		} else if len(c.ReturnURLHosts) == 0 {
			c.ReturnURLHosts = []string{u.Host}
		}
	}
	for i, h := range c.ReturnURLHosts {
		h = strings.ToLower(strings.TrimSpace(h))
		if u, err := url.Parse("https://" + h); err != nil || h == "" || u.Host != h {
			p.Add("RETURN_URL_HOSTS", "entry %d must be a host, such as app.example.com", i+1)
		}
		c.ReturnURLHosts[i] = h
	}
}

func (c *Config) validatePages(p *config.Problems) {
	if u, err := url.Parse(c.SupportURL); c.SupportURL != "" && (err != nil || (u.Scheme != "https" && u.Scheme != "mailto")) {
		p.Add("SUPPORT_URL", "must be an https or mailto URL")
	}
	for _, setting := range [][2]string{{"BRAND_LOGO_URL", c.BrandLogoURL}, {"PORTAL_LOGIN_URL", c.PortalLoginURL}} {
		if setting[1] == "" {
			continue
		}
		if _, err := portal.ParseWebURL(setting[1]); err != nil {
			p.Add(setting[0], "%v", err)
		}
	}
	if c.BrandColor != "" {
		if _, err := brand.ParseColor(c.BrandColor); err != nil {
			p.Add("BRAND_COLOR", "%v", err)
		}
	}
}

func (c *Config) validateServers(p *config.Problems) {
	for _, setting := range [][2]string{{"HTTP_ADDR", c.HTTPAddr}, {"ADMIN_ADDR", c.AdminAddr}} {
		if _, err := net.ResolveTCPAddr("tcp", setting[1]); err != nil {
			p.Add(setting[0], "must be host:port or :port, such as 127.0.0.1:9090")
		}
	}
	if !p.Has("HTTP_DRAIN_TIME") && (c.HTTPDrainTime < 0 || c.HTTPDrainTime > mostDrainTime) {
		p.Add("HTTP_DRAIN_TIME", "must be from 0s to %s, since a stop takes at most 15s", mostDrainTime)
	}
	c.validateAdmin(p)
	for i, cidr := range c.TrustedProxyCIDRs {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
		if err != nil {
			p.Add("TRUSTED_PROXIES", "entry %d must be a CIDR, such as 10.0.0.0/8", i+1)
			continue
		}
		c.proxies = append(c.proxies, prefix.Masked())
	}
	for i, role := range c.Roles {
		c.Roles[i] = strings.TrimSpace(role)
		if !slices.Contains([]string{roleIntake, roleJobs, roleClick}, c.Roles[i]) {
			p.Add("ROLES", "entry %d must be intake, jobs or click", i+1)
		}
	}
	if len(c.Roles) == 0 {
		p.Add("ROLES", "must name at least one of intake, jobs and click")
	}
	var level slog.Level
	if level.UnmarshalText([]byte(c.LogLevel)) != nil {
		p.Add("LOG_LEVEL", "must be debug, info, warn or error")
	}
	if c.LogFormat != "json" && c.LogFormat != "text" {
		p.Add("LOG_FORMAT", "must be json or text")
	}
}

// minAdminToken keeps words that can be guessed out; it is half of what 'openssl rand -hex 32' prints.
const minAdminToken = 32

// validateAdmin lets the internal server listen for others than this machine only where it can tell them apart.
func (c *Config) validateAdmin(p *config.Problems) {
	addr, err := net.ResolveTCPAddr("tcp", c.AdminAddr)
	if err == nil && !addr.IP.IsLoopback() && c.AdminToken == "" {
		p.Add("ADMIN_TOKEN", "is required where ADMIN_ADDR is not on loopback: a secret such as 'openssl rand -hex 32' prints, which scrapers of /metrics send as bearer token")
	}
	if c.AdminToken != "" && (len(c.AdminToken) < minAdminToken || strings.ContainsFunc(c.AdminToken, func(r rune) bool { return r <= ' ' || r > '~' })) {
		p.Add("ADMIN_TOKEN", "must have at least %d printable ASCII characters without spaces; 'openssl rand -hex 32' prints such a one", minAdminToken)
	}
}

// validateEmail makes what mails need; it connects to nothing.
func (c *Config) validateEmail(p *config.Problems) {
	if c.SMTPURL == "" {
		return
	}
	if c.MailFrom == "" {
		p.Add("MAIL_FROM", "is required for SMTP_URL, such as Example Inc. <billing@example.com>")
	}
	if !p.Has("SMTP_RATE") && !(c.SMTPRate > 0 && c.SMTPRate <= 1e6) {
		p.Add("SMTP_RATE", "must be a number of mails a second, above 0")
	}
	if p.Has("MAIL_FROM") || p.Has("SMTP_RATE") || p.Has("BRAND_COLOR") || p.Has("SUPPORT_URL") {
		return
	}
	if _, err := c.mailer(nil, nil); err != nil {
		*p = append(*p, err.Error())
	}
	templates, err := notify.LoadTemplates(c.mailLook())
	if err != nil {
		p.Add("TEMPLATE_DIR", "%v", err)
	}
	c.templates = templates
}

// mailer sends mails by SMTP_URL; nil where there is none.
func (c *Config) mailer(log *slog.Logger, reg prometheus.Registerer) (*notify.Mailer, error) {
	if c.SMTPURL == "" {
		return nil, nil
	}
	return notify.NewMailer(notify.MailerConfig{URL: c.SMTPURL, From: c.MailFrom, Rate: c.SMTPRate, Log: log, Metrics: reg})
}

// validateWebhooks makes what posts webhooks; it connects to nothing.
func (c *Config) validateWebhooks(p *config.Problems) {
	if c.WebhookSecrets == "" {
		if c.WebhookSubs != "" {
			p.Add("WEBHOOK_SECRETS", "is required for WEBHOOK_SUBSCRIPTIONS, such as whsec_ and what 'openssl rand -base64 32' prints")
		}
		return
	}
	webhooks, err := notify.NewWebhooks(notify.WebhookConfig{Secrets: strings.Split(c.WebhookSecrets, ","), AllowPrivate: c.WebhookPrivate, UserAgent: "Latchkey/" + cli.Version})
	if err != nil {
		p.Add("WEBHOOK_SECRETS", "%v", err)
		return
	}
	c.webhooks = webhooks
	if c.subscriptions, err = jobs.ParseSubscriptions(c.WebhookSubs, webhooks); err != nil {
		p.Add("WEBHOOK_SUBSCRIPTIONS", "%v", err)
	}
}

// checkOrigin takes scheme and host only (a path would silently be dropped from links), and http
// only for loopback: links and keys go over it.
func checkOrigin(p *config.Problems, name, raw string) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		p.Add(name, "must be an origin, such as https://pay.example.com")
	case u.Scheme != "https" && (u.Scheme != "http" || !portal.IsLoopback(u.Hostname())):
		p.Add(name, "must be https (http for loopback only)")
	}
}

// returnURLs are the rules of a session.s check.
func (c *Config) returnURLs() portal.SessionRules {
	return portal.SessionRules{ReturnURLHosts: c.ReturnURLHosts, APIVersion: c.StripeAPIVersion}
}

// logger writes to stderr, so that stdout is free for what commands print.
func (c *Config) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // checked in validate
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, opts))
}

// loadDatabaseURL is for the commands that need nothing else.
func loadDatabaseURL() (string, error) {
	c := &struct {
		URL string `envconfig:"DATABASE_URL" secret:"true"`
	}{}
	problems := config.Load(c)
	if len(problems) == 0 && c.URL == "" {
		problems.Add("DATABASE_URL", "is required, such as postgres://latchkey:…@db:5432/latchkey")
	}
	if len(problems) > 0 {
		return "", problems
	}
	return c.URL, nil
}
