package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestConnectionIsReused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		registry := prometheus.NewRegistry()
		c := newCourier(t, s, func(cfg *MailerConfig) { cfg.Metrics = registry })
		for i := range mailsOfConnection + 1 {
			if err := c.send(t, sample(fmt.Sprint("d", i))); err != nil {
				t.Fatal(err)
			}
		}
		if s.dialed() != 2 || s.count("AUTH") != 2 || s.count("RSET") != mailsOfConnection-1 || s.count("QUIT") != 1 {
			t.Errorf("dialed %d times, said AUTH %d, RSET %d and QUIT %d times", s.dialed(), s.count("AUTH"), s.count("RSET"), s.count("QUIT"))
		}
		if len(s.taken()) != mailsOfConnection+1 {
			t.Errorf("%d mails were taken", len(s.taken()))
		}
		want := "# HELP latchkey_smtp_connections_total Connections to the mail server that were opened and authenticated.\n" +
			"# TYPE latchkey_smtp_connections_total counter\nlatchkey_smtp_connections_total 2\n"
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "latchkey_smtp_connections_total"); err != nil {
			t.Error(err)
		}
		c.done(t)
		if s.count("QUIT") != 2 {
			t.Errorf("QUIT was said %d times", s.count("QUIT"))
		}
	})
}

func TestIdleConnectionIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		c := newCourier(t, s)
		defer c.done(t)
		for _, pause := range []time.Duration{idleTime - time.Second, idleTime + time.Second} {
			if err := c.send(t, sample("d1")); err != nil {
				t.Fatal(err)
			}
			<-time.After(pause) // of the fake clock
			synctest.Wait()
		}
		if s.dialed() != 1 || s.count("QUIT") != 1 {
			t.Errorf("dialed %d times, QUIT %d times", s.dialed(), s.count("QUIT"))
		}
		if err := c.send(t, sample("d2")); err != nil || s.dialed() != 2 {
			t.Errorf("after the idle time: %v, dialed %d times", err, s.dialed())
		}
	})
}

// A kept connection that the server closed meanwhile costs no mail, and is not held against the server.
func TestDeadConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	for _, how := range [][2]string{{"RSET", hangUp}, {"RSET", "421 4.4.2 idle too long"}, {"MAIL", hangUp}, {"MAIL", "421 4.7.0 too many mails in this connection"}, {"RSET", "500 what"}} {
		t.Run(how[0]+" "+how[1], func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{}
				c := newCourier(t, s)
				defer c.done(t)
				if err := c.send(t, sample("d1")); err != nil {
					t.Fatal(err)
				}
				s.set(how[0], how[1], "")
				began := time.Now()
				if err := c.send(t, sample("d2")); err != nil {
					t.Fatal(err)
				}
				if s.dialed() != 2 || time.Since(began) > 0 || c.logs.Len() > 0 || len(s.taken()) != 2 {
					t.Errorf("dialed %d times, took %v, logged %q, %d mails", s.dialed(), time.Since(began), c.logs, len(s.taken()))
				}
			})
		})
	}
}

func TestAtMostSoManyConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		c := newCourier(t, s)
		defer c.done(t)
		// No connection is of use before all are there: else the first few may carry all mails.
		all := make(chan struct{})
		reached := sync.OnceFunc(func() { close(all) })
		c.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := s.dial(ctx, network, address)
			if s.dialed() == defaultConnections {
				reached()
			}
			<-all
			return conn, err
		}
		const mails = 40
		errs := make(chan error, mails)
		for i := range mails {
			go func() { errs <- c.Send(t.Context(), sample(fmt.Sprint("d", i))) }()
		}
		for range mails {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if s.most != defaultConnections || s.dialed() != defaultConnections || len(s.taken()) != mails {
			t.Errorf("%d connections at once, %d in all, %d mails", s.most, s.dialed(), len(s.taken()))
		}
	})
}

func TestRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		c := newCourier(t, s, func(cfg *MailerConfig) { cfg.Rate = 2 })
		defer c.done(t)
		began := time.Now()
		for i := range 5 {
			if err := c.send(t, sample(fmt.Sprint("d", i))); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("5 mails at 2 a second took %v", took)
		}
	})
}

// A server that is away for an hour is asked now and then, delays the mails that wait, and loses none.
func TestServerAwayForAnHour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{down: true}
		registry := prometheus.NewRegistry()
		c := newCourier(t, s, func(cfg *MailerConfig) { cfg.Metrics = registry })
		defer c.done(t)
		const mails = 20
		errs := make(chan error, mails)
		for i := range mails {
			go func() { errs <- c.Send(t.Context(), sample(fmt.Sprint("d", i))) }()
		}
		<-time.After(time.Hour) // of the fake clock
		synctest.Wait()
		if n := s.dialed(); n > 70 || len(errs) > 0 {
			t.Errorf("asked %d times in an hour, %d mails came back", n, len(errs))
		}
		if n, err := testutil.GatherAndCount(registry, "latchkey_smtp_spared"); n != 1 || err != nil {
			t.Error(n, err)
		}
		s.refuse(false)
		began := time.Now()
		for range mails {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if len(s.taken()) != mails || time.Since(began) > 2*serverPace.most {
			t.Errorf("%d mails after %v", len(s.taken()), time.Since(began))
		}
		logs := c.logs.String()
		if strings.Count(logs, "level=ERROR") != 1 || strings.Count(logs, "level=INFO") != 1 || !strings.Contains(logs, "connection refused") {
			t.Errorf("logged: %s", logs)
		}
	})
}

// Who waits for a server that is away learns why when the time is over.
func TestWaitEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		s.set("AUTH", "535 5.7.8 "+serverText)
		c := newCourier(t, s)
		defer c.done(t)
		began := time.Now()
		err := c.send(t, sample("d1"))
		if !errors.Is(err, ErrMailServer) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "authentication: answered 535 5.7.8 (the credentials are wrong)") {
			t.Errorf("got %v", err)
		}
		if time.Since(began) != 5*time.Minute || s.count("AUTH") > 12 {
			t.Errorf("after %v, authenticated %d times", time.Since(began), s.count("AUTH"))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Send(ctx, sample("d2")); !errors.Is(err, ErrMailServer) {
			t.Errorf("got %v", err)
		}
	})
}

// A server that takes fewer connections than we open gets its mails over those.
func TestFewConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		s.set("CONNECT", "", "421 4.7.0 too many connections") // one only
		c := newCourier(t, s)
		defer c.done(t)
		errs := make(chan error, 8)
		for i := range cap(errs) {
			go func() { errs <- c.send(t, sample(fmt.Sprint("d", i))) }()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if s.dialed() > 20 { // 3 at a time that did not get one, and pauses that double
			t.Errorf("dialed %d times", s.dialed())
		}
	})
}

// Mails at which the server breaks off, or says 421, are their own affair: the next one goes out at once.
func TestMailThatTheServerBreaksOffAtHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"RCPT", "DATA", "."} {
		for _, answer := range []string{hangUp, "421 4.7.0 " + serverText} {
			t.Run(verb+" "+answer, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := &script{}
					c := newCourier(t, s)
					defer c.done(t)
					began := time.Now()
					s.set(verb, answer)
					for range 3 * failing {
						if err := c.send(t, sample("poison")); err == nil {
							t.Fatal("no error")
						}
					}
					s.set(verb, "")
					if err := c.send(t, sample("d1")); err != nil {
						t.Fatal(err)
					}
					if waited := time.Since(began); waited != 0 { // the clock is a fake one
						t.Errorf("the last one went out after %v", waited)
					}
				})
			})
		}
	}
}

// A panic in the try of a mail ends neither the process nor the tries of others.
func TestPanicWhileSending(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		s.refuse(true)
		c := newCourier(t, s)
		defer c.done(t)
		dial := c.dial
		panics := false
		c.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if panics {
				panics = false
				panic("zebra")
			}
			return dial(ctx, network, addr)
		}
		ctx, cancel := context.WithTimeout(t.Context(), c.pace.spared)
		defer cancel()
		if err := c.Send(ctx, sample("d1")); !errors.Is(err, ErrMailServer) { // until the server is spared
			t.Fatal(err)
		}
		s.refuse(false)
		panics = true
		if err := c.send(t, sample("d1")); err == nil || errors.Is(err, ErrMailServer) || strings.Contains(err.Error()+c.logs.String(), "zebra") {
			t.Errorf("%v", err)
		}
		if err := c.send(t, sample("d2")); err != nil {
			t.Errorf("the next mail: %v", err)
		}
	})
}
