package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// Bounds of one request.
const (
	requestTimeout = 15 * time.Second
	markTimeout    = 2 * time.Second // of last_used_at, behind the answer
)

// Config is what a Server is made of.
type Config struct {
	Service        *jobs.Service
	TrustedProxies []netip.Prefix // whose X-Forwarded-For is believed
	Log            *slog.Logger
	Metrics        prometheus.Registerer // may be nil
}

// Server answers whatever lies below /v1/. It is safe for concurrent use.
type Server struct {
	service  *jobs.Service
	proxies  []netip.Prefix
	log      *slog.Logger
	guard    guard
	mux      *http.ServeMux
	requests *prometheus.CounterVec
}

// route is an operation of docs/openapi.yaml.
type route struct {
	method, path string
	scope        Scope
	serve        func(*Server, *http.Request, *Token) (*answer, error)
}

var routes = []route{
	{http.MethodPost, "/v1/links", ScopeCreate, (*Server).create},
	{http.MethodGet, "/v1/links/{id}", ScopeRead, (*Server).get},
	{http.MethodPost, "/v1/links/{id}/revoke", ScopeRevoke, (*Server).revoke},
	{http.MethodGet, "/v1/customers/{id}/links", ScopeRead, (*Server).list},
}

// answer is what a route answers where all went well.
type answer struct {
	status   int
	location string // of what was made; empty = nothing was
	body     any
}

// New makes a server, and registers its metric.
func New(cfg Config) *Server {
	s := &Server{service: cfg.Service, proxies: cfg.TrustedProxies, log: cfg.Log, guard: guard{strangers: portal.NewLimits(), spare: rate.NewLimiter(spareRate, spareRate)}, mux: http.NewServeMux(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "latchkey_api_requests_total", Help: "Requests to the HTTP API, by route."}, []string{"route", "status"})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(s.requests)
	}
	allow := map[string][]string{}
	for _, rt := range routes {
		s.handle(rt.method+" "+rt.path, rt)
		allow[rt.path] = append(allow[rt.path], rt.method)
		if rt.method == http.MethodGet {
			allow[rt.path] = append(allow[rt.path], http.MethodHead)
		}
	}
	for path, methods := range allow {
		s.handle(path, route{serve: func(*Server, *http.Request, *Token) (*answer, error) {
			return nil, &problem{code: codeMethodNotAllowed, detail: "this resource takes " + strings.Join(methods, ", "), header: "Allow", value: strings.Join(methods, ", ")}
		}})
	}
	s.handle("/", route{serve: func(*Server, *http.Request, *Token) (*answer, error) {
		return nil, &problem{code: jobs.CodeNotFound, detail: "nothing is at this path; docs/openapi.yaml lists what is"}
	}})
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// ServeMux would answer a path with // or .. in it by a redirect, which turns a POST into a GET in many
	// clients; to us it is no path.
	if p := r.URL.EscapedPath(); path.Clean(p) != p {
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = "/", ""
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) handle(pattern string, rt route) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				// Not the panic's value: it can hold a URL or a token.
				s.log.Error("panic in the HTTP API; please report it with this stack", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
				if rec.status == 0 {
					writeProblem(rec, &problem{code: codeInternal, detail: "please report it; the log of this process has the place"})
				}
			}
			s.requests.WithLabelValues(pattern, strconv.Itoa(rec.status)).Inc()
		}()
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, jobs.MaxRequestBytes)
		setHeaders(rec.Header())
		token, err := s.authenticate(rec.Header(), r)
		var a *answer
		if err == nil {
			a, err = s.serve(r, token, rt)
		}
		if err != nil {
			s.refuse(rec, r, pattern, err)
		} else {
			if a.location != "" {
				rec.Header().Set("Location", a.location)
			}
			write(rec, a.status, "application/json", a.body)
		}
		if token != nil {
			s.markUsed(rec, r, token)
		}
	})
}

// serve holds a request against its token and form, and lets its route answer.
func (s *Server) serve(r *http.Request, token *Token, rt route) (*answer, error) {
	if rt.scope == "" { // a path or method that is none
		return rt.serve(s, r, token)
	}
	if !acceptsJSON(r.Header.Values("Accept")) {
		return nil, &problem{code: codeNotAcceptable, detail: "answers are application/json and application/problem+json; Accept excludes them"}
	}
	if !token.has(rt.scope) {
		return nil, &problem{code: codeForbidden, detail: "this needs a token with the scope " + string(rt.scope),
			header: "WWW-Authenticate", value: fmt.Sprintf(`%s, error="insufficient_scope", scope="%s"`, realm, rt.scope)}
	}
	return rt.serve(s, r, token)
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, pattern string, err error) {
	p := problemOf(err)
	if p.code == jobs.CodeUnavailable && !gone(r.Context(), err) {
		s.log.Error("API request failed", "route", pattern, "error", err)
	}
	writeProblem(w, p)
}

// markUsed keeps last_used_at, once the answer is on its way.
func (s *Server) markUsed(w *recorder, r *http.Request, token *Token) {
	if !token.dueMark(s.service.Store.Now()) {
		return
	}
	if err := http.NewResponseController(w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return // the caller is gone
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), markTimeout)
	defer cancel()
	if err := markUsed(ctx, s.service.Store.Pool, token, s.service.Store.Now()); err != nil {
		s.log.Warn("last_used_at of an API token was not written; a later request will", "token", token.Name, "error", err)
	}
}

func setHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
}

// acceptsJSON is true unless Accept excludes JSON (RFC 9110, 12.5.1): of the ranges that match it the most
// exact one decides. What can't be read as a range excludes nothing.
func acceptsJSON(accept []string) bool {
	ranges := []string{"*/*", "application/*", "application/problem+json", "application/json"} // errors are the former
	best, accepted := -1, true
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil || !strings.Contains(media, "/") {
			continue
		}
		q, err := strconv.ParseFloat(params["q"], 64)
		if exact := slices.Index(ranges, media); exact > best {
			best, accepted = exact, err != nil || q > 0
		} else if best < 0 {
			accepted = false
		}
	}
	return accepted
}

// recorder keeps the status that was written.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
