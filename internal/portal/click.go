package portal

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of the click server. Nothing it serves needs a body.
const (
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 64 << 10
	readTimeout    = 10 * time.Second
	writeTimeout   = 45 * time.Second // longer than a slow body, Stripe's deadline and the transactions together
	idleTimeout    = 60 * time.Second
	storeTimeout   = 5 * time.Second
)

// ClickServer is the public HTTP server: GET shows a page with a button, POST makes a session and
// redirects to it.
type ClickServer struct {
	Keys           *Keyring
	Store          *Store
	Stripe         *Stripe
	Pages          *Pages
	TrustedProxies []netip.Prefix
	Log            *slog.Logger
	Abort          context.Context // when it ends, clicks that wait are cut: the process stops

	requests *prometheus.CounterVec
	clicks   *prometheus.CounterVec
	endRetry failsafe.Executor[any]
}

// Init registers metrics (reg may be nil) and builds what is made once.
func (s *ClickServer) Init(reg prometheus.Registerer) *ClickServer {
	s.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "latchkey_http_requests_total", Help: "Requests to the click server.",
	}, []string{"method", "status"})
	s.clicks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "latchkey_clicks_total", Help: "Presses of the button by how they ended.",
	}, []string{"outcome"})
	// Present from the start, or the first failure of a kind makes no rate to be alarmed by.
	for _, outcome := range []string{"created", "unrecorded", "in_progress", string(StateExpired), string(StateRevoked), string(StateUsedUp),
		string(CodeUnavailable), string(CodeTimeout), string(CodeRateLimited), string(CodeConflict), string(CodeCustomerGone),
		string(CodeNotConfigured), string(CodeFeatureOff), string(CodeBadKey), string(CodeInvalidRequest), string(CodeBadSessionURL), string(CodeInterrupted)} {
		s.clicks.WithLabelValues(outcome)
	}
	if reg != nil {
		reg.MustRegister(s.requests, s.clicks)
	}
	// The outcome of a click that Stripe answered is worth asking the database three times.
	s.endRetry = failsafe.With(retrypolicy.NewBuilder[any]().
		AbortOnErrors(ErrSwept).
		WithBackoff(100*time.Millisecond, 800*time.Millisecond).
		WithMaxAttempts(3).
		ReturnLastFailure().
		Build())
	return s
}

// HTTPServer wraps the handler in a server with its timeouts and limits.
func (s *ClickServer) HTTPServer() *http.Server {
	return &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readTimeout / 2,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}

// ServeHTTP routes by hand: ServeMux would answer a path with // or .. in it by a redirect of its
// own, with the token in it and without our headers.
func (s *ClickServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &statusRecorder{ResponseWriter: w}
	defer func() {
		if p := recover(); p != nil {
			// Neither the panic's value nor the URL: both can hold a token.
			s.Log.Error("panic while serving a click; please report it with this stack", "type", typeName(p), "stack", string(debug.Stack()))
			if rec.status == 0 {
				s.Pages.write(rec, r, answer{page: pageTryAgain, retryAfter: 5})
			}
		}
		s.requests.WithLabelValues(methodLabel(r.Method), strconv.Itoa(rec.status)).Inc()
	}()
	s.Pages.setHeaders(rec.Header())
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost:
		rec.Header().Set("Allow", "GET, HEAD, POST")
		s.Pages.write(rec, r, answer{page: pageMethod})
		return
	case r.URL.Path == "/robots.txt":
		rec.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rec.Write([]byte("User-agent: *\nDisallow: /\n"))
		return
	case s.Pages.serveLogo(rec, r):
		return
	}
	// Nobody looks at a body; read to its end, it cannot hold a length of its own choice, and a
	// POST that did not arrive in full presses no button. (w, not rec: the server itself must
	// learn that the connection is of no more use.)
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBodyBytes)); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			s.Pages.write(rec, r, answer{page: pageTooLarge})
		} else {
			s.Pages.write(rec, r, answer{page: pageIncomplete})
		}
		return
	}
	s.Pages.write(rec, r, s.answer(r))
}

// answer finds the link and lets GET and HEAD look at it and POST use it. The token is checked
// before anything else, without the database.
func (s *ClickServer) answer(r *http.Request) answer {
	rest, ok := strings.CutPrefix(r.URL.Path, "/l/")
	if !ok {
		return answer{page: pageNotFound}
	}
	token := leadingToken(rest) // the rest is a slash or what a mail gateway appended
	id, err := s.Keys.Verify(token)
	if err != nil || rest[len(token):] == "/renew" {
		return answer{page: pageNotFound}
	}
	// A phone that lost its connection half-way has still pressed the button: what was begun is
	// ended and written down, so the work does not hang on the connection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), stripeDeadline+2*storeTimeout)
	defer cancel()
	defer context.AfterFunc(s.Abort, cancel)()
	link, err := LoadLink(ctx, s.Store.Pool, id)
	switch {
	case errors.Is(err, ErrNoLink):
		s.Log.Warn("a token of ours names no link: was the database restored, or is it another one?", "link_id", id)
		return answer{page: pageNotFound}
	case err != nil:
		return s.databaseAway(id, r, token, err)
	}
	if r.Method == http.MethodPost {
		return s.press(ctx, r, link, token)
	}
	return s.look(ctx, r, link, token)
}

// look answers GET and HEAD: it changes nothing but the audit.
func (s *ClickServer) look(ctx context.Context, r *http.Request, link *Link, token string) answer {
	state := link.StateAt(s.Store.Now())
	detail := map[string]any{"verdict": verdict(r), "method": r.Method, "state": state}
	if err := s.Store.Opened(ctx, link, detail, s.visitor(r)); err != nil {
		return s.databaseAway(link.ID, r, token, err)
	}
	if state != StateLive {
		return answer{page: gonePage(state)}
	}
	return answer{page: pageConfirm, token: token, expires: link.ExpiresAt}
}

// verdict tells a person from a machine as far as one request shows it: no person sends HEAD, and
// a prefetch says so itself.
func verdict(r *http.Request) string {
	purpose := r.Header.Get("Sec-Purpose") + r.Header.Get("Purpose") + r.Header.Get("X-Purpose") + r.Header.Get("X-Moz")
	if r.Method == http.MethodHead || strings.Contains(strings.ToLower(purpose), "prefetch") {
		return "scanner"
	}
	return "person"
}

// press answers POST: reserve a use and commit click.started, ask Stripe, commit the outcome,
// redirect. The order is the promise: no session without its click.started, no redirect without
// its outcome.
func (s *ClickServer) press(ctx context.Context, r *http.Request, link *Link, token string) answer {
	if state := link.StateAt(s.Store.Now()); state != StateLive {
		return s.deny(ctx, r, link, state, token)
	}
	click, err := s.Store.StartClick(ctx, link, s.visitor(r))
	switch {
	case errors.Is(err, ErrDenied):
		return s.denyChanged(ctx, r, link, token)
	case err != nil:
		return s.databaseAway(link.ID, r, token, err)
	}
	log := s.Log.With("link_id", link.ID, "request_id", link.RequestID, "click_id", click)

	session, err := s.Stripe.CreateSession(ctx, link, click)
	var cause *SessionError
	if err != nil && !errors.As(err, &cause) {
		cause = &SessionError{Code: CodeUnavailable, err: err}
	}
	if err := s.end(ctx, link, click, session, cause); err != nil {
		// The session, if there is one, is dropped: the audit would call this click interrupted
		// and a limited link would have a use too many. It dies unvisited in five minutes.
		s.clicks.WithLabelValues("unrecorded").Inc()
		log.Error("the outcome of a click could not be written; the sweeper will close it as interrupted", "error", err)
		return answer{page: pageTryAgain, retryAfter: 5, token: token}
	}
	if cause != nil {
		return s.failed(log, cause, click, token)
	}
	s.clicks.WithLabelValues("created").Inc()
	log.Info("portal session created", "session_id", session.ID, "stripe_request_id", session.RequestID)
	return answer{location: session.URL}
}

// end writes the outcome even where Stripe used up the request's own time.
func (s *ClickServer) end(ctx context.Context, link *Link, click uuid.UUID, session Session, cause *SessionError) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	return s.endRetry.WithContext(ctx).Run(func() error {
		return s.Store.EndClick(ctx, link, click, session, cause)
	})
}

// failed maps Stripe's refusal to a page: what may pass is tried again, all else is our fault
// and carries the click's id as the reference that the audit finds.
func (s *ClickServer) failed(log *slog.Logger, cause *SessionError, click uuid.UUID, token string) answer {
	s.clicks.WithLabelValues(string(cause.Code)).Inc()
	if cause.Retryable() {
		log.Warn("no portal session: Stripe may have it later", "code", cause.Code, "stripe_request_id", cause.RequestID, "status", cause.Status)
		return answer{page: pageTryAgain, retryAfter: 5, token: token}
	}
	log.Error("no portal session: "+Remedy(cause.Code), "code", cause.Code, "stripe_request_id", cause.RequestID, "status", cause.Status)
	return answer{page: pageOurFault, reference: click.String()}
}

// deny writes click.denied and says why on a page of its own.
func (s *ClickServer) deny(ctx context.Context, r *http.Request, link *Link, state State, token string) answer {
	if err := s.Store.Denied(ctx, link, string(state), s.visitor(r)); err != nil {
		return s.databaseAway(link.ID, r, token, err)
	}
	s.clicks.WithLabelValues(string(state)).Inc()
	return answer{page: gonePage(state)}
}

// denyChanged looks again at a link that changed between its reading and the reservation. Where
// it is still live, its last uses are with clicks that wait for Stripe.
func (s *ClickServer) denyChanged(ctx context.Context, r *http.Request, link *Link, token string) answer {
	now, err := LoadLink(ctx, s.Store.Pool, link.ID)
	if err != nil {
		return s.databaseAway(link.ID, r, token, err)
	}
	if state := now.StateAt(s.Store.Now()); state != StateLive {
		return s.deny(ctx, r, now, state, token)
	}
	if err := s.Store.Denied(ctx, link, "in_progress", s.visitor(r)); err != nil {
		return s.databaseAway(link.ID, r, token, err)
	}
	s.clicks.WithLabelValues("in_progress").Inc()
	return answer{page: pageTryAgain, retryAfter: 3, token: token}
}

// databaseAway lets the browser look at the link again by itself, and the person who pressed the
// button press again: no answer repeats a POST of its own accord.
func (s *ClickServer) databaseAway(link uuid.UUID, r *http.Request, token string, err error) answer {
	s.Log.Error("the database did not serve a click", "link_id", link, "error", err)
	if r.Method == http.MethodPost {
		return answer{page: pageTryAgain, retryAfter: 5, token: token}
	}
	return answer{page: pageTryAgain, retryAfter: 5, refresh: 5}
}

func (s *ClickServer) visitor(r *http.Request) *Visitor {
	return &Visitor{IP: ClientIP(r, s.TrustedProxies), UserAgent: r.UserAgent()}
}

func gonePage(state State) page {
	return map[State]page{StateExpired: pageExpired, StateRevoked: pageRevoked, StateUsedUp: pageUsedUp}[state]
}

// statusRecorder remembers what was answered, for the metric.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (w *statusRecorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusRecorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// methodLabel keeps a stranger's words out of the metrics.
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost:
		return m
	}
	return "other"
}
