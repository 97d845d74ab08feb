package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"latchkey/internal/cli"
	"latchkey/internal/jobs"
)

// A server that is not there yet is waited for: after a failure of a whole site everything starts at
// once and in any order. What waiting can't mend (a wrong password, a schema that is behind) ends the
// start, where a deployment shows it.
const (
	waitFirst = 250 * time.Millisecond // between two tries, doubling
	waitMost  = 5 * time.Second

	databaseCheckTime = 15 * time.Second
	streamsCheckTime  = 5 * time.Second
)

// errUnchecked is what clicks meet until the database has turned out to be the right one. They answer
// with the page that tries again by itself.
var errUnchecked = errors.New("this worker has not checked the database yet; /readyz says what it waits for")

// starting is a service on its way up.
type starting struct {
	cfg      *Config
	log      *slog.Logger
	admin    *admin
	backends *backends
	role     *roles
	running  *running
	clicks   *http.Server
	public   net.Listener
}

// start returns when both servers are there and what does without NATS is up, or with what waiting
// can't mend. Clicks are answered from the first wait on.
func (s *starting) start(ctx context.Context) error {
	serveClicks := sync.OnceFunc(s.serveClicks)
	if err := s.await(ctx, "database", databaseAway, s.backends.checkDatabase, serveClicks); err != nil {
		return err
	}
	// Not before the streams, where they can be had: the first events would find none.
	doWithoutNATS := sync.OnceFunc(func() { s.startJobs(ctx); serveClicks() })
	if s.cfg.needsNATS() {
		if err := s.await(ctx, "nats", natsAway, s.backends.ensureStreams, doWithoutNATS); err != nil {
			return err
		}
	}
	doWithoutNATS()
	return ctx.Err()
}

func (s *starting) serveClicks() {
	if s.cfg.has(roleClick) {
		s.running.serve("click server", s.clicks, s.role.click.Listener(s.public))
	}
}

func (s *starting) startJobs(ctx context.Context) {
	if !s.cfg.has(roleJobs) {
		return
	}
	if err := s.role.river.Start(context.WithoutCancel(ctx)); err != nil {
		s.running.fail(partError{fmt.Errorf("start the jobs: %w", err)})
	}
}

// startIntake is last: it needs all that is below.
func (s *starting) startIntake(up, ctx context.Context, service *jobs.Service, reg *prometheus.Registry) {
	if !s.cfg.has(roleIntake) {
		return
	}
	intake := jobs.NewIntake(s.backends.jetStream, s.role.issuer, s.log, reg)
	intake.Room = s.role.river.Room
	s.running.start("intake", func() error { return intake.Run(ctx) })
	answers := make(chan struct{})
	s.running.start("micro service", func() error {
		return service.Serve(ctx, s.backends.nats, cli.Version, func() { close(answers) })
	})
	s.running.await(up, answers)
}

// await tries until it works, away says that waiting can't mend the error, or ctx ends. meanwhile is
// called whenever it waits.
func (s *starting) await(ctx context.Context, server string, away func(error) bool, try func(context.Context) error, meanwhile func()) error {
	waiting := retrypolicy.NewBuilder[any]().
		HandleIf(func(_ any, err error) bool { return away(err) }).
		WithMaxRetries(-1).WithBackoff(waitFirst, waitMost).WithJitterFactor(0.2).
		OnRetryScheduled(func(e failsafe.ExecutionScheduledEvent[any]) {
			s.admin.waitsFor(server, e.LastError())
			if n := e.Attempts(); n&(n-1) == 0 { // ever more rarely
				s.log.Warn("waiting for a server; the start goes on by itself when it is there", "server", server, "tries", n, "error", e.LastError())
			}
			meanwhile()
		}).Build()
	err := failsafe.With(waiting).WithContext(ctx).Run(func() error { return try(ctx) })
	if err == nil {
		s.admin.waitsFor(server, nil)
	}
	return err
}

// databaseAway tells a server that can't be reached, or takes nobody just now, from one that refuses us.
func databaseAway(err error) bool {
	if answer, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch answer.Code[:2] {
		case "08", // PgBouncer, of the server behind it
			"53": // too many connections, or out of something else
			return true
		case "57":
			return answer.Code != pgQueryCanceled // starting up, shutting down
		}
		return false
	}
	return unreachable(err)
}

const pgQueryCanceled = "57014"

// natsAway is the same of NATS and its JetStream, which may have no leader yet.
func natsAway(err error) bool {
	if answer, ok := errors.AsType[*jetstream.APIError](err); ok {
		return answer.Code == http.StatusServiceUnavailable && answer.ErrorCode != jetstream.JSErrCodeJetStreamNotEnabled &&
			answer.ErrorCode != jetstream.JSErrCodeJetStreamNotEnabledForAccount
	}
	for _, passing := range []error{nats.ErrNoServers, nats.ErrTimeout, nats.ErrMaxConnectionsExceeded, nats.ErrDisconnected, nats.ErrStaleConnection} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return unreachable(err)
}

// unreachable is an error of the network. One of TLS is not: who answers is the wrong one, or we are to it, which
// it tells by an alert.
func unreachable(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // crypto/tls has no type of it
		return false
	}
	_, network := errors.AsType[net.Error](err) // timeouts and unknown hosts too
	return network || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// plainly is why a server is waited for, for readyz: no address and no user.
func plainly(err error) string {
	if answer, ok := errors.AsType[*pgconn.PgError](err); ok {
		if strings.HasPrefix(answer.Code, "08") { // PgBouncer's text names the database and the user
			return "the pooler has no server"
		}
		return answer.Message
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return "the host's name is not known"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if answer, ok := errors.AsType[*jetstream.APIError](err); ok {
		return strings.ToLower(answer.Description)
	}
	timeout, ok := errors.AsType[net.Error](err)
	if ok && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return "no connection"
}
