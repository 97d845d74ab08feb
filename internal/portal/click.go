package portal

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
)

// Bounds of the click server. Nothing it serves needs a body.
const (
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 64 << 10
	readTimeout    = 10 * time.Second
	writeTimeout   = 60 * time.Second // longer than a slow body, the budget's hold, Stripe's deadline and the transactions together
	idleTimeout    = 60 * time.Second
	storeTimeout   = 5 * time.Second
)

// ClickServer is the public HTTP server: GET shows a page with a button, POST makes a session and
// redirects to it.
type ClickServer struct {
	Keys           *Keyring
	Store          *Store
	Stripe         *Stripe
	Budget         *Budget
	Pages          *Pages
	Limits         *Limits
	Detector       *Detector
	Renew          RenewFunc
	TrustedProxies []netip.Prefix
	Log            *slog.Logger
	Abort          context.Context // when it ends, clicks that wait are cut: the process stops

	Draining atomic.Bool // each answer ends its connection, so that whoever keeps one open goes to another process

	requests *prometheus.CounterVec
	clicks   *prometheus.CounterVec
	verdicts *prometheus.CounterVec
	limited  *prometheus.CounterVec
	endRetry failsafe.Executor[any]
	presses  singleflight.Group // by link and the token's key
}

// RenewFunc makes a new link in place of an expired one, and tells whether it did. It is handed
// down from above, where intake lives.
type RenewFunc func(ctx context.Context, link uuid.UUID, v *Visitor) (renewed bool, err error)

// Init registers metrics (reg may be nil) and builds what is made once.
func (s *ClickServer) Init(reg prometheus.Registerer) *ClickServer {
	s.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "latchkey_http_requests_total", Help: "Requests to the click server.",
	}, []string{"method", "status"})
	s.clicks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "latchkey_clicks_total", Help: "Presses of the button by how they ended.",
	}, []string{"outcome"})
	s.verdicts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "latchkey_opens_total", Help: "GET and HEAD of links by verdict: person or scanner.",
	}, []string{"verdict"})
	s.limited = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "latchkey_limited_total", Help: "Requests answered 429, by the limit: of forged tokens, or of visits of an address or a link.",
	}, []string{"limit"})
	// Present from the start, or the first failure of a kind makes no rate to be alarmed by.
	for _, outcome := range []string{"created", "unrecorded", "shared", "waiting", "spared", "database_away", string(StateExpired), string(StateRevoked), string(StateUsedUp),
		string(CodeUnavailable), string(CodeTimeout), string(CodeRateLimited), string(CodeConflict), string(CodeCustomerGone),
		string(CodeNotConfigured), string(CodeFeatureOff), string(CodeBadKey), string(CodeInvalidRequest), string(CodeBadSessionURL), string(CodeInterrupted)} {
		s.clicks.WithLabelValues(outcome)
	}
	if reg != nil {
		reg.MustRegister(s.requests, s.clicks, s.verdicts, s.limited)
	}
	// The outcome of a click that Stripe answered is worth asking the database three times.
	s.endRetry = failsafe.With(retrypolicy.NewBuilder[any]().
		AbortOnErrors(ErrSwept, ErrServed).
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
		// OPTIONS * is answered like the rest, or it would lack our headers.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
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
				s.Pages.write(rec, r, answer{page: pageTryAgain, retryAfter: 5, refresh: 5})
			}
		}
		s.requests.WithLabelValues(methodLabel(r.Method), strconv.Itoa(rec.status)).Inc()
	}()
	s.Pages.setHeaders(rec.Header())
	if s.Draining.Load() {
		rec.Header().Set("Connection", "close")
	}
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

// visit is one request that came with a valid token.
type visit struct {
	r       *http.Request
	id      uuid.UUID // of the link
	keyID   byte      // of the key that signed the token
	link    *Link     // nil until it is read
	token   string
	visitor *Visitor
	at      time.Time // when it came
	end     time.Time // of the place that it came back to; zero = none

	// look is what its audit rows tell in detail; nil = a page that comes back by itself to an open
	// click, which has none.
	look func(*Link) map[string]any
}

// answer lets GET and HEAD look at a link and POST use it. The token is checked
// before anything else, without the database, and the limits count ahead of it too.
func (s *ClickServer) answer(r *http.Request) answer {
	rest, ok := strings.CutPrefix(r.URL.Path, "/l/")
	if !ok {
		return answer{page: pageNotFound}
	}
	token := leadingToken(rest)
	ip := ClientIP(r, s.TrustedProxies)
	id, keyID, err := s.Keys.Verify(token)
	if err != nil {
		return s.forged(ip)
	}
	if after, ok := s.Limits.Visit(ip, id, r.Method, s.Store.Now()); !ok {
		a := s.tooMany("visits", after)
		if _, _, ok := s.place(r, rest[len(token):], id, keyID); ok { // its person gave up nothing, and need not press again
			a.refresh = a.retryAfter + rand.IntN(10)
		}
		return a
	}
	// A phone that lost its connection half-way has still pressed the button: what was begun is
	// ended and written down, so the work does not hang on the connection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), hold+stripeDeadline+2*storeTimeout)
	defer cancel()
	defer context.AfterFunc(s.Abort, cancel)()
	v := &visit{r: r, id: id, keyID: keyID, token: token, at: s.Store.Now(), visitor: &Visitor{IP: ip, UserAgent: r.UserAgent()}}
	a := s.act(ctx, v, rest[len(token):])
	if v.link != nil {
		a.locale = v.link.Locale
	}
	return a
}

// forged answers a token that is none, or that was signed by another key than its link's.
func (s *ClickServer) forged(ip netip.Addr) answer {
	if after, ok := s.Limits.Forged(ip, s.Store.Now()); !ok {
		a := s.tooMany("forged", after)
		a.page = pageTooManyForged
		return a
	}
	return answer{page: pageNotFound}
}

// act does what the method and the path behind the token ask for. Anything else there is what a
// mail gateway appended.
func (s *ClickServer) act(ctx context.Context, v *visit, rest string) answer {
	click, end, back := s.place(v.r, rest, v.id, v.keyID)
	if v.r.Method != http.MethodPost && !back {
		return s.look(ctx, v)
	}
	if after, ok := strings.CutPrefix(rest, "/renew"); !back && (!ok || leadingToken(after) != "") {
		return s.press(ctx, v)
	}
	if err := s.read(ctx, v); err != nil {
		return s.unread(v, uuid.Nil, err)
	}
	if back {
		v.end = end
		return s.comeBack(ctx, v, click)
	}
	return s.renew(ctx, v)
}

func (s *ClickServer) read(ctx context.Context, v *visit) (err error) {
	v.link, err = s.Store.Link(ctx, v.id, v.keyID)
	return err
}

// unread answers where there is no link, or the database did not serve it, for click where one was to be
// begun.
func (s *ClickServer) unread(v *visit, click uuid.UUID, err error) answer {
	if errors.Is(err, ErrNoLink) {
		s.Log.Warn("a token of ours names no link of its key: was the database restored, is it another one, or did a key leak?", "link_id", v.id, "key", v.keyID)
		return s.forged(v.visitor.IP)
	}
	return s.databaseAway(v, click, err)
}

// place is the place in the line that a GET comes back to, of which rest is the path behind the
// token.
func (s *ClickServer) place(r *http.Request, rest string, link uuid.UUID, keyID byte) (click uuid.UUID, end time.Time, ok bool) {
	after, ok := strings.CutPrefix(rest, "/wait/")
	if !ok || r.Method != http.MethodGet {
		return uuid.Nil, end, false
	}
	click, end, err := s.Keys.VerifyPlace(leadingToken(after), keyID, link, s.Store.Now())
	return click, end, err == nil
}

// look answers GET and HEAD: it changes nothing but the audit.
func (s *ClickServer) look(ctx context.Context, v *visit) answer {
	seen := s.Detector.See(v.r, v.visitor.IP, v.id)
	method, at := v.r.Method, v.at
	var verdict Verdict
	var state State
	link, err := s.Store.Open(ctx, v.id, v.keyID, func(l *Link) map[string]any {
		verdict = s.Detector.Look(seen, l.Campaign, at)
		state = l.StateAt(at)
		return map[string]any{"verdict": verdict.Verdict, "signals": verdict.Signals, "method": method, "state": state}
	}, v.visitor)
	v.link = cmp.Or(link, v.link)
	if err != nil {
		return s.unread(v, uuid.Nil, err)
	}
	s.verdicts.WithLabelValues(verdict.Verdict).Inc()
	if state != StateLive {
		return s.gone(v, state)
	}
	return answer{page: pageConfirm, token: v.token, flow: v.link.Flow, expires: v.link.ExpiresAt}
}

// press answers POST. Presses of one link at the same time share one session: in this process by
// waiting for the same answer, and across processes by joining the click that is open.
func (s *ClickServer) press(ctx context.Context, v *visit) answer {
	seen := s.Detector.See(v.r, v.visitor.IP, v.id)
	v.look = func(l *Link) map[string]any {
		verdict := s.Detector.Press(seen, l.Campaign, v.at)
		return map[string]any{"verdict": verdict.Verdict, "signals": verdict.Signals}
	}
	if s.Stripe.Spared() {
		return s.spare(ctx, v)
	}
	return s.together(ctx, v, func() served { return s.begin(ctx, v, newClickID()) })
}

// spare begins no click while Stripe is down.
func (s *ClickServer) spare(ctx context.Context, v *visit) answer {
	if err := s.read(ctx, v); err != nil {
		return s.unread(v, uuid.Nil, err)
	}
	if state := v.link.StateAt(s.Store.Now()); state != StateLive {
		return s.deny(ctx, v, state)
	}
	if err := s.denied(ctx, v, uuid.Nil, "spared"); err != nil {
		return s.databaseAway(v, uuid.Nil, err)
	}
	s.clicks.WithLabelValues("spared").Inc()
	return s.tryAgain(v, newClickID())
}

// served is what came of a press that acted.
type served struct {
	answer answer
	click  uuid.UUID // uuid.Nil = none was served
	dead   State     // the link's, where that is why; empty = it was live
}

// together lets one press of a link act, and gives its answer to those that come meanwhile.
func (s *ClickServer) together(ctx context.Context, v *visit, act func() served) answer {
	acted := false
	got, _, _ := s.presses.Do(string(append(v.id[:], v.keyID)), func() (any, error) {
		acted = true
		return act(), nil
	})
	first := got.(served)
	switch {
	case !acted && v.look != nil:
		return s.follow(ctx, v, first, act)
	case !acted && first.dead != "": // which says nothing of an open click that its page comes back to
		return s.together(ctx, v, act)
	case first.dead != "":
		return s.deny(ctx, v, first.dead)
	}
	return first.answer
}

// follow answers a press that waited for another one's answer. Its link may have been revoked since
// that one read it, or have expired before this one came. Where the other served no click there is
// nothing to share, and the next of them acts. Each has its row in the audit, with a verdict that is
// found only now.
func (s *ClickServer) follow(ctx context.Context, v *visit, first served, act func() served) answer {
	if err := s.read(ctx, v); err != nil {
		return s.unread(v, first.click, err)
	}
	switch state := v.link.StateAt(v.at); {
	case state == StateRevoked, state == StateExpired, state != StateLive && first.dead != "":
		return s.deny(ctx, v, state)
	case first.click == uuid.Nil:
		return s.together(ctx, v, act)
	}
	if err := s.share(ctx, v, first.click); err != nil {
		return s.databaseAway(v, first.click, err)
	}
	return first.answer
}

// share writes down that a press got the session of another one.
func (s *ClickServer) share(ctx context.Context, v *visit, click uuid.UUID) error {
	s.clicks.WithLabelValues("shared").Inc()
	return s.denied(ctx, v, click, "shared")
}

func (s *ClickServer) denied(ctx context.Context, v *visit, click uuid.UUID, reason string) error {
	detail := v.look(v.link)
	detail["reason"] = reason
	return s.Store.Denied(ctx, v.link, click, detail, v.visitor)
}

// begin starts a click under an id, or joins the one that is open, and serves it.
func (s *ClickServer) begin(ctx context.Context, v *visit, id uuid.UUID) served {
	for try := range 5 {
		// A click that ended while it was looked for makes room for ours, and whoever holds the
		// link's row is done with it in a moment.
		if err := sleep(ctx, time.Duration(try)*20*time.Millisecond); err != nil {
			return served{answer: s.databaseAway(v, id, err)}
		}
		link, err := s.Store.StartClick(ctx, v.id, v.keyID, id, v.look, v.visitor)
		v.link = cmp.Or(link, v.link)
		if err == nil {
			return served{answer: s.serve(ctx, v, Click{ID: id}), click: id}
		}
		if !errors.Is(err, ErrDenied) {
			return served{answer: s.unread(v, id, err)}
		}
		if state := link.StateAt(s.Store.Now()); state != StateLive {
			return served{dead: state}
		}
		switch open, err := s.Store.OpenClick(ctx, link); {
		case err == nil:
			if err := s.share(ctx, v, open.ID); err != nil {
				return served{answer: s.databaseAway(v, open.ID, err)}
			}
			return served{answer: s.serve(ctx, v, open), click: open.ID}
		case !errors.Is(err, ErrNoClick):
			return served{answer: s.databaseAway(v, id, err)}
		}
	}
	return served{answer: s.tryAgain(v, id)}
}

// serve waits for the click's slot, asks Stripe, commits the outcome and redirects. The order is
// the promise: no session without its click.started, no redirect without its outcome. Another
// process may be serving the same click at this moment, for another press that joined it.
func (s *ClickServer) serve(ctx context.Context, v *visit, click Click) answer {
	left, err := s.Budget.Wait(ctx, v.link.StripeAccount, &click)
	if err != nil {
		return s.databaseAway(v, click.ID, err)
	}
	if left > 0 {
		s.clicks.WithLabelValues("waiting").Inc()
		return s.waiting(v, click.ID, left)
	}
	log := s.Log.With("link_id", v.id, "request_id", v.link.RequestID, "click_id", click.ID)
	session, err := s.Stripe.CreateSession(ctx, v.link, click.ID)
	if errors.Is(err, ErrSpared) { // it was not asked, so the click may stay open
		s.clicks.WithLabelValues("spared").Inc()
		if err := s.Store.Keep(ctx, click, s.Store.Now().Add(retryLatest)); err != nil {
			return s.databaseAway(v, click.ID, err)
		}
		return s.tryAgain(v, click.ID)
	}
	var cause *SessionError
	if err != nil && !errors.As(err, &cause) {
		cause = &SessionError{Code: CodeUnavailable, err: err}
	}
	if cause != nil && cause.Code == CodeConflict {
		// Stripe works on a call of this click, another process's or one that we gave up waiting
		// for. Its outcome may be a session, so this one is none: the return asks again.
		s.clicks.WithLabelValues(string(CodeConflict)).Inc()
		return s.tryAgain(v, click.ID)
	}
	switch err := s.end(ctx, v.link, click.ID, session, cause); {
	case errors.Is(err, ErrSwept):
		log.Warn("a click was closed while Stripe was being asked; its session is dropped")
		return s.tryAgain(v, successor(click.ID))
	case errors.Is(err, ErrServed): // its page shows the link as it is now
		log.Warn("another process got the session of a click that failed here")
		return s.tryAgain(v, click.ID)
	case err != nil:
		// The session, if there is one, is not handed out before it is written down. The click is
		// still open, and a return asks Stripe for the same session again.
		s.clicks.WithLabelValues("unrecorded").Inc()
		log.Error("the outcome of a click could not be written; unless its person comes back, the sweeper will close it as interrupted", "error", err)
		return s.tryAgain(v, click.ID)
	case cause != nil:
		return s.failed(log, v, cause, click.ID)
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

// failed maps Stripe's refusal to a page: what may pass is tried again by the page itself, under
// a new click, all else is our fault and carries the click's id as the reference that the audit
// finds.
func (s *ClickServer) failed(log *slog.Logger, v *visit, cause *SessionError, click uuid.UUID) answer {
	s.clicks.WithLabelValues(string(cause.Code)).Inc()
	if cause.Retryable() {
		log.Warn("no portal session: Stripe may have it later", "code", cause.Code, "stripe_request_id", cause.RequestID, "status", cause.Status)
		return s.tryAgain(v, newClickID())
	}
	log.Error("no portal session: "+Remedy(cause.Code), "code", cause.Code, "stripe_request_id", cause.RequestID, "status", cause.Status)
	if cause.Code == CodeCustomerGone {
		return answer{page: pageCustomerGone, reference: click.String()}
	}
	return answer{page: pageOurFault, reference: click.String()}
}

// deny writes click.denied and says why on a page of its own. A second tap on a link whose last use
// the first one has spent gets the session of the first.
func (s *ClickServer) deny(ctx context.Context, v *visit, state State) answer {
	if state == StateUsedUp && s.Limits.Replay(v.id, s.Store.Now()) {
		click, err := s.Store.CreatedSince(ctx, v.link, s.Store.Now().Add(-replayed))
		if err == nil {
			err = s.share(ctx, v, click.ID)
		}
		if err == nil {
			return s.again(ctx, v, click)
		}
		if !errors.Is(err, ErrNoClick) {
			return s.databaseAway(v, click.ID, err)
		}
	}
	if err := s.denied(ctx, v, uuid.Nil, string(state)); err != nil {
		return s.databaseAway(v, uuid.Nil, err)
	}
	s.clicks.WithLabelValues(string(state)).Inc()
	return s.gone(v, state)
}

func (s *ClickServer) gone(v *visit, state State) answer {
	a := answer{page: map[State]page{StateExpired: pageExpired, StateRevoked: pageRevoked, StateUsedUp: pageUsedUp}[state]}
	if state == StateExpired && v.link.Renewable {
		a.token, a.renewable = v.token, true
	}
	return a
}

// renew answers alike whatever became of the address, so that nobody learns it. Only where nothing
// could be written it says so, and the page comes back to the link.
func (s *ClickServer) renew(ctx context.Context, v *visit) answer {
	renewed, err := s.Renew(ctx, v.id, v.visitor)
	if err != nil {
		s.Log.Error("an expired link could not be renewed; its owner was told to try again", "link_id", v.id, "error", err)
		return answer{page: pageTryAgain, token: v.token, retryAfter: 5, refresh: 5}
	}
	s.Log.Info("an expired link was asked for again", "link_id", v.id, "renewed", renewed)
	return answer{page: pageRenewed}
}

// databaseAway lets the browser come back by itself: to look at the link again, or, where the
// button was pressed, for its click.
func (s *ClickServer) databaseAway(v *visit, click uuid.UUID, err error) answer {
	if s.Abort.Err() != nil {
		s.Log.Info("a click was cut because the process stops; its page comes back to another one", "link_id", v.id)
	} else {
		s.Log.Error("the database did not serve a click", "link_id", v.id, "error", err)
	}
	if v.r.Method == http.MethodPost {
		s.clicks.WithLabelValues("database_away").Inc()
		if click == uuid.Nil {
			click = newClickID()
		}
	}
	if click != uuid.Nil {
		return s.tryAgain(v, click)
	}
	return answer{page: pageTryAgain, token: v.token, retryAfter: 5, refresh: 5}
}

func (s *ClickServer) tooMany(limit string, after time.Duration) answer {
	s.limited.WithLabelValues(limit).Inc()
	return answer{page: pageTooMany, retryAfter: int(math.Ceil(max(1, after.Seconds())))}
}

// newClickID is drawn ahead of the click, so that a page can come back for a click that the
// database could not take: the id is then used once all the same.
func newClickID() uuid.UUID { return uuid.Must(uuid.NewV7()) }

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
