package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"latchkey/internal/api"
	"latchkey/internal/jobs"
)

// admin is the internal server: health, readiness, metrics, and the HTTP API. It is up before the
// servers that it asks are. With ADMIN_TOKEN, whoever asks for more than health needs it; the API has tokens of
// its own. There is no /debug: a profile or a dump of the heap would hold tokens and keys.
type admin struct {
	cfg      *Config
	reg      *prometheus.Registry
	waits    sync.Map                 // name of a server → why it is waited for
	backends atomic.Pointer[backends] // nil until open
	api      http.Handler             // of what lies below /v1/; there once backends is
	ready    atomic.Bool              // false while starting and while stopping
}

func newAdmin(cfg *Config, reg *prometheus.Registry) *admin { return &admin{cfg: cfg, reg: reg} }

// open lets the API and the readiness ask the servers.
func (a *admin) open(b *backends, service *jobs.Service) {
	a.api = api.New(api.Config{Service: service, TrustedProxies: a.cfg.proxies, Log: service.Log, Metrics: a.reg})
	a.backends.Store(b)
}

// waitsFor has readyz say why a server is waited for; with nil it is there.
func (a *admin) waitsFor(server string, why error) {
	if why == nil {
		a.waits.Delete(server)
		return
	}
	a.waits.Store(server, "waiting: "+plainly(why))
}

func (a *admin) server() *http.Server {
	mux := http.NewServeMux()
	// Probes send no header. What these two say is known to whoever can connect.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", a.guarded(promhttp.HandlerFor(a.reg, promhttp.HandlerOpts{})))
	mux.Handle("/", a.guarded(http.NotFoundHandler()))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/") { // not by mux, which redirects
			a.serveAPI(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	return &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}

// guarded lets in who bears the token.
func (a *admin) guarded(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(a.cfg.AdminToken)) // a hash, so that the comparison takes the same time for each length too
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(token)))
		if a.cfg.AdminToken != "" && (!strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], want[:]) != 1) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="latchkey"`)
			http.Error(w, "send 'Authorization: Bearer <ADMIN_TOKEN>'", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// serveAPI answers 503 in the first moments of a start, as the API itself does while the database is away.
func (a *admin) serveAPI(w http.ResponseWriter, r *http.Request) {
	if a.backends.Load() == nil {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	a.api.ServeHTTP(w, r)
}

// readyz answers 200, or 503 with what it waits for.
func (a *admin) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	status := map[string]string{"process": "ok", "database": a.database(ctx), "nats": a.nats()}
	// Clicks do without NATS: their events wait in Postgres.
	ok := a.ready.Load() && status["database"] == "ok" && (status["nats"] == "ok" || !a.cfg.needsNATS())
	if !a.ready.Load() {
		status["process"] = "starting or stopping"
	}
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(status)
}

func (a *admin) database(ctx context.Context) string {
	if why, waits := a.waits.Load("database"); waits {
		return why.(string)
	}
	b := a.backends.Load()
	if b == nil || !b.checked.Load() {
		return "not tried yet"
	}
	if b.pool.Ping(ctx) != nil {
		return "no answer"
	}
	return "ok"
}

func (a *admin) nats() string {
	if why, waits := a.waits.Load("nats"); waits {
		return why.(string)
	}
	switch b := a.backends.Load(); {
	case b == nil:
		return "not tried yet"
	case !b.nats.IsConnected():
		return "not connected"
	}
	return "ok"
}
