package notify

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// MailerConfig is what the mailer needs.
type MailerConfig struct {
	URL         string                // SMTP_URL: smtp://user:password@host:587 or smtps://…:465
	From        string                // MAIL_FROM: an address with or without a display name
	Rate        float64               // SMTP_RATE: mails a second of this process; 0 = no limit
	Connections int                   // at most at once; 0 = 4
	TLS         *tls.Config           // nil = the system's roots
	Log         *slog.Logger          // nil = none
	Metrics     prometheus.Registerer // nil = none
}

// How connections are kept and the server is spared.
const (
	defaultConnections = 4
	idleTime           = 30 * time.Second // a connection is kept for the next mail
	mailsOfConnection  = 100              // servers close longer ones at moments of their own
	failing            = 3                // failures in a row after which the server is spared
)

// pace is how a server that can't be used is tried again. Each pause is twice the one before, up to most.
type pace struct {
	pause  time.Duration // of a mail whose try failed
	spared time.Duration // of all mails, while the server is spared
	most   time.Duration
}

// A wrong password must not look like an attack: after the first minutes it is tried once a minute.
var serverPace = pace{pause: time.Second, spared: 5 * time.Second, most: time.Minute}

func (p pace) after(first time.Duration, tries int32) time.Duration {
	return min(first<<min(max(tries-1, 0), 10), p.most)
}

// Mailer sends mails through one server. It is safe for concurrent use.
//
// A connection that sent a mail is kept for the next one, reset in between, and dropped after any
// doubt about its state. A breaker spares a server that failed several times in a row: one mail tries now
// and then, and the others wait in Send.
type Mailer struct {
	server  *server
	sender  *sender
	dial    dialer
	slots   chan struct{} // one for each connection
	rate    *rate.Limiter
	pace    pace
	log     *slog.Logger
	breaker circuitbreaker.CircuitBreaker[any]
	guarded failsafe.Executor[any]
	trials  atomic.Int32 // of this outage
	opened  prometheus.Counter
	seconds *prometheus.HistogramVec

	mu      sync.Mutex
	closed  bool
	kept    []*conn        // the last one used is the first to be used again
	leaving sync.WaitGroup // of idle connections
	changed chan struct{}  // closed and replaced when the breaker changes
	failure error          // the last of the server's
}

// NewMailer reads the configuration and connects to nothing. Its errors name SMTP_URL, MAIL_FROM or SMTP_RATE
// first and quote none of them.
func NewMailer(cfg MailerConfig) (*Mailer, error) {
	server, err := newServer(cfg.URL, cfg.TLS)
	if err != nil {
		return nil, err
	}
	sender, err := newSender(cfg.From)
	if err != nil {
		return nil, err
	}
	if math.IsNaN(cfg.Rate) || cfg.Rate < 0 {
		return nil, errors.New("SMTP_RATE: must be a number of mails a second, above 0")
	}
	m := &Mailer{
		server:  server,
		sender:  sender,
		dial:    (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext,
		slots:   make(chan struct{}, cmp.Or(max(cfg.Connections, 0), defaultConnections)),
		rate:    rate.NewLimiter(rate.Limit(cmp.Or(cfg.Rate, float64(rate.Inf))), 1),
		pace:    serverPace,
		log:     cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		changed: make(chan struct{}),
	}
	m.policies()
	m.metrics(cfg.Metrics)
	return m, nil
}

func (m *Mailer) policies() {
	m.breaker = circuitbreaker.NewBuilder[any]().
		// A caller that gives up says nothing about the server, and what broke off amid a mail may be the mail's doing.
		HandleIf(func(_ any, err error) bool {
			return errors.Is(err, ErrMailServer) && !errors.Is(err, ErrCutOff) && !errors.Is(err, context.Canceled)
		}).
		WithFailureThreshold(failing).
		WithSuccessThreshold(1).
		WithDelayFunc(func(failsafe.ExecutionAttempt[any]) time.Duration {
			return m.pace.after(m.pace.spared, m.trials.Add(1))
		}).
		OnStateChanged(m.stateChanged).
		Build()
	m.guarded = failsafe.With(m.breaker)
}

func (m *Mailer) stateChanged(e circuitbreaker.StateChangedEvent) {
	m.mu.Lock()
	close(m.changed)
	m.changed = make(chan struct{})
	failure := m.failure
	m.mu.Unlock()
	switch {
	case e.NewState == circuitbreaker.ClosedState:
		m.trials.Store(0)
		m.log.Info("the mail server answers again")
	case e.NewState == circuitbreaker.OpenState && e.OldState == circuitbreaker.ClosedState:
		m.log.Error("the mail server can't be used; mails wait, and one of them tries now and then", "server", m.server.String(), "error", failure)
	}
}

func (m *Mailer) metrics(registry prometheus.Registerer) {
	m.opened = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "latchkey_smtp_connections_total", Help: "Connections to the mail server that were opened and authenticated.",
	})
	m.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "latchkey_smtp_send_duration_seconds",
		Help:    "Time of one mail's transaction with the mail server, its connection included, by result.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"result"})
	if registry == nil {
		return
	}
	registry.MustRegister(m.opened, m.seconds, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "latchkey_smtp_spared", Help: "1 while this process spares the mail server, because it failed several times in a row.",
	}, func() float64 {
		if m.breaker.IsClosed() {
			return 0
		}
		return 1
	}))
}

// Server is the mail server's host and port.
func (m *Mailer) Server() string { return m.server.String() }

// MessageID is what a delivery's mails have in common, without the angle brackets.
func (m *Mailer) MessageID(deliveryID string) string { return m.sender.messageID(deliveryID) }

// Send returns nil once the server has taken the mail. The error is a *MailError where it is about
// this mail, and else an ErrMailServer. It waits for a connection, for the rate, and, as long as nothing
// was said of the mail, for a server that can't be used: until ctx ends, which is then an ErrMailServer too.
func (m *Mailer) Send(ctx context.Context, mail Mail) error {
	message, err := m.sender.compose(mail)
	if err != nil {
		return err
	}
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	case <-ctx.Done():
		return m.gaveUp(ctx)
	}
	if err := m.rate.Wait(ctx); err != nil {
		return &serverError{step: stepWait, cause: fmt.Errorf("SMTP_RATE leaves no time for this mail: %w", err)}
	}
	for tries := int32(1); ; tries++ {
		err := m.guard(ctx, func() error { return m.try(ctx, message) })
		var failed *serverError
		if !errors.As(err, &failed) || !failed.again {
			return err
		}
		// The breaker does not see a server that refuses some connections and takes others.
		select {
		case <-time.After(m.pace.after(m.pace.pause, tries)):
		case <-ctx.Done():
			return m.gaveUp(ctx)
		}
	}
}

// gaveUp is a wait that ctx ended; what it waited for is the last failure.
func (m *Mailer) gaveUp(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	cause := ctx.Err()
	if m.failure != nil {
		cause = fmt.Errorf("%w; the last failure was: %v", cause, m.failure)
	}
	return &serverError{step: stepWait, cause: cause}
}

// guard runs f when the breaker lets it.
func (m *Mailer) guard(ctx context.Context, f func() error) error {
	for {
		m.mu.Lock()
		changed := m.changed // got before the question, so that no change is missed
		m.mu.Unlock()
		err := m.guarded.Run(func() error { return m.recovered(f) })
		if !errors.Is(err, circuitbreaker.ErrOpen) {
			return err
		}
		if err := m.spare(ctx, changed); err != nil {
			return err
		}
	}
}

// recovered makes an error of a panic, without its value: the breaker would wait for ever for the end of a try
// that panicked.
func (m *Mailer) recovered(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			m.log.Error("sending a mail panicked; please report the stack", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = fmt.Errorf("sending panicked with a %T; the log has the stack", p)
		}
	}()
	return f()
}

// spare waits until it may be this mail's turn to try.
func (m *Mailer) spare(ctx context.Context, changed <-chan struct{}) error {
	var over <-chan time.Time // never, while another mail is trying
	if m.breaker.IsOpen() {
		timer := time.NewTimer(m.breaker.RemainingDelay())
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-changed:
	case <-over:
	case <-ctx.Done():
		return m.gaveUp(ctx)
	}
	return nil
}

// try is one attempt at a mail.
func (m *Mailer) try(ctx context.Context, message *composed) error {
	began := time.Now()
	c, err := m.begin(ctx, message)
	if err == nil {
		err = c.deliver(ctx, message)
	}
	if c != nil {
		m.keep(c)
	}
	var refused *MailError
	result := "ok"
	switch {
	case errors.As(err, &refused) && refused.Temporary:
		result = "temporary"
	case refused != nil:
		result = "refused"
	case err != nil:
		result = "server"
	}
	m.noteFailure(err)
	m.seconds.WithLabelValues(result).Observe(time.Since(began).Seconds())
	return err
}

// noteFailure keeps what went wrong with the server last, for whoever gives up waiting for it.
func (m *Mailer) noteFailure(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failure = nil
	if errors.Is(err, ErrMailServer) {
		m.failure = err
	}
}

// begin begins the mail's transaction on a kept connection or a new one. A kept one that turns out
// dead is replaced: the server closed it meanwhile, which says nothing about the server. The connection
// is nil where none could be opened.
func (m *Mailer) begin(ctx context.Context, message *composed) (*conn, error) {
	from := angled(&m.sender.from)
	if c := m.take(); c != nil {
		err := c.begin(ctx, from, message.utf8)
		if !errors.Is(err, ErrMailServer) || ctx.Err() != nil {
			return c, err
		}
	}
	c, err := m.server.connect(ctx, m.dial)
	if err != nil {
		return nil, unsaid(err)
	}
	m.opened.Inc()
	return c, c.begin(ctx, from, message.utf8)
}

// take returns the connection that was used last, nil if none is kept.
func (m *Mailer) take() *conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.kept) == 0 {
		return nil
	}
	c := m.kept[len(m.kept)-1]
	m.kept = m.kept[:len(m.kept)-1]
	c.idle.Stop() // too late, it finds that the connection is not kept any more
	return c
}

// keep keeps a connection for the next mail, if it is any good.
func (m *Mailer) keep(c *conn) {
	m.mu.Lock()
	good := !m.closed && !c.dead && c.mails < mailsOfConnection
	if good {
		c.idle = time.AfterFunc(idleTime, func() { m.expire(c) })
		m.kept = append(m.kept, c)
	}
	m.mu.Unlock()
	if !good {
		c.quit()
	}
}

// expire closes a connection that nobody used for a while.
func (m *Mailer) expire(c *conn) {
	m.mu.Lock()
	i := slices.Index(m.kept, c)
	if i >= 0 {
		m.kept = slices.Delete(m.kept, i, i+1)
		m.leaving.Add(1)
	}
	m.mu.Unlock()
	if i >= 0 {
		c.quit()
		m.leaving.Done()
	}
}

// Check connects, encrypts, authenticates and asks whether MAIL_FROM may send. It sends nothing and does
// not wait for a server that can't be used. The error is an ErrMailServer.
func (m *Mailer) Check(ctx context.Context) error {
	c, err := m.server.connect(ctx, m.dial)
	if err != nil {
		return err
	}
	defer c.quit()
	if err := c.begin(ctx, angled(&m.sender.from), false); errors.Is(err, ErrMailServer) {
		return err
	} else if err != nil {
		return &serverError{step: stepMail, cause: err}
	}
	return c.do(ctx, stepReset, commandTime, false, c.smtp.Reset)
}

// Close closes the connections that are kept. A Send that is still under way closes its own.
func (m *Mailer) Close() error {
	m.mu.Lock()
	kept := m.kept
	m.closed, m.kept = true, nil
	for _, c := range kept {
		c.idle.Stop()
		m.leaving.Go(c.quit)
	}
	m.mu.Unlock()
	m.leaving.Wait()
	return nil
}
