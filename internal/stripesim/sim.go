package stripesim

import (
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The keys a Sim accepts when Config.Keys is empty.
const (
	TestKey       = "sk_test_simulator"          // secret key, test mode
	RestrictedKey = "rk_test_simulator"          // restricted key, test mode, may create portal sessions
	NoPortalKey   = "rk_test_noportal_simulator" // restricted key, test mode, may not
	LiveKey       = "sk_live_simulator"          // secret key, live mode
)

// Config sets up a Sim. The zero value is ready to use.
type Config struct {
	// Keys are the accepted API keys. Default: the four constants above.
	Keys []string
	// PublicURL is the origin of session URLs. Default: http:// and the Host
	// that the create call was sent to.
	PublicURL string
	// Now is the clock of every rule (expiry, idempotency, rate), not of
	// latency. Default: time.Now.
	Now func() time.Time
	// RatePerSecond is how many create calls an account may make in any one
	// second, and how many reads. Default 0: no limit.
	RatePerSecond int
	// Logger gets one debug line for each create call, without key and URL.
	// Default: discarded.
	Logger *slog.Logger
}

// Sim is the simulator, an http.Handler. Its methods may be called at any time,
// also while it serves.
type Sim struct {
	keys      map[string]bool
	publicURL string
	now       func() time.Time
	log       *slog.Logger
	mux       *http.ServeMux

	world  world
	ledger ledger
	saved  idempotency
	rate   limiter // of creates
	reads  limiter
}

// New returns a Sim with a default portal configuration that has a default
// return URL, every feature on, and every well-formed customer in existence.
func New(cfg Config) *Sim {
	s := &Sim{
		keys:      map[string]bool{},
		publicURL: strings.TrimRight(cfg.PublicURL, "/"),
		now:       cfg.Now,
		log:       cfg.Logger,
	}
	if len(cfg.Keys) == 0 {
		cfg.Keys = []string{TestKey, RestrictedKey, NoPortalKey, LiveKey}
	}
	for _, k := range cfg.Keys {
		s.keys[k] = true
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.world.init()
	s.ledger.init()
	s.saved.init()
	s.rate.set(cfg.RatePerSecond)
	s.reads.set(cfg.RatePerSecond)
	s.routes()
	return s
}

func (s *Sim) routes() {
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("POST /v1/billing_portal/sessions", s.create)
	s.mux.HandleFunc("GET /v1/billing_portal/configurations", s.listConfigurations)
	s.mux.HandleFunc("GET /v1/billing_portal/configurations/{id}", s.getConfiguration)
	s.mux.HandleFunc("GET /v1/customers/{id}", s.getCustomer)
	s.mux.HandleFunc("GET /v1/account", s.getAccount)
	s.mux.HandleFunc("GET /v1/balance", s.getBalance)
	s.mux.HandleFunc("GET /p/session/{secret}", s.portalPage)
	s.mux.HandleFunc("GET /p/login/{id}", s.loginPage)
	s.mux.HandleFunc("GET /healthz", healthz)
	s.mux.HandleFunc("GET /{$}", s.indexPage)
	s.mux.HandleFunc("POST /_sim/config", s.controlConfig)
	s.mux.HandleFunc("GET /_sim/sessions", s.controlSessions)
	s.mux.HandleFunc("GET /_sim/calls", s.controlCalls)
	// A wrong method ends here as well: Stripe answers both alike.
	s.mux.HandleFunc("/", s.notFound)
}

// ServeHTTP implements http.Handler.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Script queues faults. Each is consumed by one create call that gets past the
// key and the rate limit, before any meaning of its customer id. A fault that
// is not valid panics.
func (s *Sim) Script(faults ...Fault) {
	for _, f := range faults {
		if err := f.validate(); err != nil {
			panic(err)
		}
	}
	s.world.script(faults)
}

// SetOutage makes every create call fail that gets past the key and the rate
// limit and for which no fault is queued; nil ends the outage. A fault that is
// not valid panics.
func (s *Sim) SetOutage(f *Fault) {
	if f != nil {
		if err := f.validate(); err != nil {
			panic(err)
		}
		f = new(*f)
	}
	s.world.edit(func(w *world) { w.outage = f })
}

// SetLatency makes each create call take d longer; 0 takes it back.
func (s *Sim) SetLatency(d time.Duration) { s.world.edit(func(w *world) { w.latency = d }) }

// SetRate changes Config.RatePerSecond; 0 lifts the limit.
func (s *Sim) SetRate(n int) {
	s.rate.set(n)
	s.reads.set(n)
}

// SetDefaultConfiguration says whether the account has saved its portal
// settings, that is whether a default configuration exists.
func (s *Sim) SetDefaultConfiguration(exists bool) {
	s.world.edit(func(w *world) { w.noConfig = !exists })
}

// SetDefaultReturnURL sets the configuration's default return URL; with "" the
// return_url of a session is required.
func (s *Sim) SetDefaultReturnURL(u string) { s.world.edit(func(w *world) { w.returnURL = u }) }

// DisableFeature switches the feature behind a flow type off in the portal
// configuration: such a flow can't be started then. The two subscription_update
// flows have one feature.
func (s *Sim) DisableFeature(flowType string) {
	s.world.edit(func(w *world) { w.featureOff[feature(flowType)] = true })
}

// EnableFeature takes DisableFeature back.
func (s *Sim) EnableFeature(flowType string) {
	s.world.edit(func(w *world) { delete(w.featureOff, feature(flowType)) })
}

// AddCustomer makes customers exist: after DeleteCustomer, or for
// SetStrictCustomers.
func (s *Sim) AddCustomer(ids ...string) {
	s.world.edit(func(w *world) {
		for _, id := range ids {
			w.customers[id] = true
		}
	})
}

// DeleteCustomer deletes a customer.
func (s *Sim) DeleteCustomer(id string) { s.world.edit(func(w *world) { w.customers[id] = false }) }

// SetStrictCustomers makes only the customers of AddCustomer exist; otherwise
// every well-formed id does.
func (s *Sim) SetStrictCustomers(strict bool) { s.world.edit(func(w *world) { w.strict = strict }) }

// Sessions returns every session ever created, oldest first (the newest million
// of them). Params are shared and must not be changed.
func (s *Sim) Sessions() []Session { return s.ledger.allSessions() }

// Calls returns every create call ever received, in the order of arrival (the
// newest million of them). Params are shared and must not be changed.
func (s *Sim) Calls() []Call { return s.ledger.allCalls() }

// origin is the scheme and host under which this request's browser finds us.
func (s *Sim) origin(r *http.Request) string {
	if s.publicURL != "" {
		return s.publicURL
	}
	return (&url.URL{Scheme: "http", Host: r.Host}).String()
}
