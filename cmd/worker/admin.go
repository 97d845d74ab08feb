package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"latchkey/internal/api"
	"latchkey/internal/jobs"
)

// admin is the internal server: health, readiness, metrics, and the HTTP API. With ADMIN_TOKEN, whoever asks for
// more than health needs it; the API has tokens of its own. There is no /debug: a profile or a dump
// of the heap would hold tokens and keys.
type admin struct {
	token     string // of all but health and the API; empty: none is needed
	pool      *pgxpool.Pool
	nc        *nats.Conn
	needsNATS bool // clicks do without: events wait in Postgres
	reg       *prometheus.Registry
	api       http.Handler // of what lies below /v1/
	ready     atomic.Bool  // false while starting and while stopping
}

func newAdmin(cfg *Config, pool *pgxpool.Pool, nc *nats.Conn, reg *prometheus.Registry, service *jobs.Service) *admin {
	return &admin{token: cfg.AdminToken, pool: pool, nc: nc, needsNATS: cfg.has(roleIntake) || cfg.has(roleJobs), reg: reg,
		api: api.New(api.Config{Service: service, TrustedProxies: cfg.proxies, Log: service.Log, Metrics: reg})}
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
			a.api.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	return &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}

// guarded lets in who bears the token.
func (a *admin) guarded(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(a.token)) // a hash, so that the comparison takes the same time for each length too
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(token)))
		if a.token != "" && (!strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], want[:]) != 1) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="latchkey"`)
			http.Error(w, "send 'Authorization: Bearer <ADMIN_TOKEN>'", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// readyz answers 200, or 503 with what it waits for.
func (a *admin) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	status := map[string]string{"process": "ok", "database": "ok", "nats": "ok"}
	ok := a.ready.Load()
	if !ok {
		status["process"] = "starting or stopping"
	}
	if err := a.pool.Ping(ctx); err != nil {
		ok, status["database"] = false, "no answer"
	}
	if !a.nc.IsConnected() {
		ok, status["nats"] = ok && !a.needsNATS, "not connected"
	}
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(status)
}
