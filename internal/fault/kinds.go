package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"latchkey/internal/stripesim"
)

// kind is a way in which something goes wrong.
type kind struct {
	name      string
	how       string // it is made; for the page
	subject   string // what is struck
	ofReplica bool   // it strikes one replica, or the network of one
	weight    int    // how often it is drawn
	jumps     bool   // a clock does, by a drawn number of seconds
	endures   bool   // some take ten seconds longer

	// strike makes the fault. lift ends it and sees that what was struck is there again; it waits for no healing. It is nil
	// where there was nothing to strike.
	strike func(ctx context.Context, d *deployment, in injection) (lift func() error, err error)
}

// Names that others look for.
const (
	natsDiskFull     = "disk of JetStream full"
	postgresDiskFull = "disk of Postgres full"
)

// kinds are in the order of the page.
var kinds = append(append(append([]*kind{
	{name: "worker killed", how: "SIGKILL; started again at the fault's end", subject: "worker", ofReplica: true, weight: 5, strike: killWorker},
	{name: "worker frozen and thawed", how: "SIGSTOP, SIGCONT", subject: "worker", ofReplica: true, weight: 4, endures: true, strike: freezeWorker},
	{name: "clock of a worker jumps, and back", how: "its wall clock, as all of the process sees it, by up to ten minutes either way", subject: "clock", ofReplica: true, weight: 4, jumps: true, strike: jumpClock},
	{name: "Postgres killed", how: "SIGKILL to the postmaster and all backends; it recovers from its log", subject: "Postgres", weight: 5, strike: killPostgres},
	{name: "a backend of Postgres killed", how: "SIGKILL to one that serves a worker; Postgres restarts all of them", subject: "Postgres", weight: 2, strike: killBackend},
	{name: "NATS killed", how: "SIGKILL", subject: "NATS", weight: 5, strike: killNATS},
	{name: postgresDiskFull, how: "a file takes all that is left of its tmpfs; removed in the end", subject: "Postgres", weight: 3, strike: fillPostgres},
	{name: natsDiskFull, how: "the same, and NATS is restarted in the end, by SIGKILL, as an operator would do", subject: "NATS", weight: 3, strike: fillNATS},
}, networkKinds()...), stripeKinds()...), receiverKinds()...)

func networkKinds() (all []*kind) {
	for i, to := range targets {
		for _, way := range []struct {
			name, how string
			strike    func(wire) (func() error, error)
		}{
			{"cut", "a TCP proxy ends connections and refuses new ones", func(w wire) (func() error, error) { return w.cut(), nil }},
			{"frozen", "a TCP proxy holds back all bytes", wire.freeze},
			{"slow", "a TCP proxy lets all bytes through 50 to 250 ms late", wire.slow},
		} {
			all = append(all, &kind{name: fmt.Sprintf("network to %s %s", to, way.name), how: way.how, subject: "network to " + to, ofReplica: true, weight: 1,
				strike: func(_ context.Context, d *deployment, in injection) (func() error, error) {
					return way.strike(d.replicas[in.replica].wires[i])
				}})
		}
	}
	return all
}

// stripeKinds is each fault that the simulator knows.
func stripeKinds() (all []*kind) {
	for _, f := range []struct {
		name  string
		fault stripesim.Fault
	}{
		{"500, saved under the idempotency key", stripesim.Fault{Kind: stripesim.FaultStatus, Status: 500}},
		{"503, not saved", stripesim.Fault{Kind: stripesim.FaultStatus, Status: 503, Unsaved: true}},
		{"429", stripesim.Fault{Kind: stripesim.FaultStatus, Status: 429, Reason: "endpoint-rate"}},
		{"429 lock_timeout", stripesim.Fault{Kind: stripesim.FaultStatus, Status: 429, Code: "lock_timeout"}},
		{"409", stripesim.Fault{Kind: stripesim.FaultStatus, Status: 409}},
		{"400", stripesim.Fault{Kind: stripesim.FaultStatus, Status: 400}},
		{"slow by 2 s", stripesim.Fault{Kind: stripesim.FaultLatency, Latency: 2 * time.Second}},
		{"no answer", stripesim.Fault{Kind: stripesim.FaultHang}},
		{"connection dropped ahead of the session", stripesim.Fault{Kind: stripesim.FaultDropBefore}},
		{"connection dropped behind the session, whose answer is replayed", stripesim.Fault{Kind: stripesim.FaultDropAfter}},
		{"connection dropped amid the answer", stripesim.Fault{Kind: stripesim.FaultCutAnswer}},
		{"answer that is no JSON", stripesim.Fault{Kind: stripesim.FaultGarbage}},
		{"session with a URL that is none", stripesim.Fault{Kind: stripesim.FaultURL, URL: "javascript:alert(1)"}},
	} {
		all = append(all, &kind{name: "Stripe: " + f.name, how: "the simulator does it to each call", subject: "Stripe", weight: 1,
			strike: func(_ context.Context, d *deployment, _ injection) (func() error, error) {
				d.stripe.SetOutage(&f.fault)
				return func() error { d.stripe.SetOutage(nil); return nil }, nil
			}})
	}
	return all
}

// receiverKinds is what mail server and webhook target do.
func receiverKinds() (all []*kind) {
	for _, m := range []struct {
		name string
		mood mailMood
	}{{"451", mailDefers}, {"connection dropped amid a mail", mailDrops}, {"mail taken, connection dropped ahead of the answer", mailForgetful}} {
		all = append(all, &kind{name: "mail server: " + m.name, how: "to each mail", subject: "mail server", weight: 1,
			strike: func(_ context.Context, d *deployment, _ injection) (func() error, error) {
				d.mail.mood.Store(int32(m.mood))
				return func() error { d.mail.mood.Store(int32(mailTakes)); return nil }, nil
			}})
	}
	for _, m := range []struct {
		name string
		mood hookMood
	}{{"500", hookFails}, {"no answer", hookHangs}, {"taken, connection dropped ahead of the answer", hookForgetful}} {
		all = append(all, &kind{name: "webhook target: " + m.name, how: "to each webhook", subject: "webhook target", weight: 1,
			strike: func(_ context.Context, d *deployment, _ injection) (func() error, error) {
				d.hooks.mood.Store(int32(m.mood))
				return func() error { d.hooks.mood.Store(int32(hookTakes)); return nil }, nil
			}})
	}
	return all
}

func killWorker(_ context.Context, d *deployment, in injection) (func() error, error) {
	return d.replicas[in.replica].kill(), nil
}

func freezeWorker(_ context.Context, d *deployment, in injection) (func() error, error) {
	pid := d.replicas[in.replica].pid()
	if pid == 0 {
		return nil, nil
	}
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	return func() error { _ = syscall.Kill(pid, syscall.SIGCONT); return nil }, nil
}

func jumpClock(_ context.Context, d *deployment, in injection) (func() error, error) {
	r := d.replicas[in.replica]
	return func() error { return r.setClock(0) }, r.setClock(in.seconds)
}

func killPostgres(ctx context.Context, d *deployment, _ injection) (func() error, error) {
	d.killPostgres()
	return func() error { return d.startPostgres(ctx) }, nil
}

func killBackend(ctx context.Context, d *deployment, _ injection) (func() error, error) {
	var pid int
	ask, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := d.pool.QueryRow(ask, `SELECT pid FROM pg_stat_activity WHERE application_name = 'latchkey' ORDER BY state = 'active' DESC, query_start DESC LIMIT 1`).Scan(&pid)
	if err != nil { // no worker has a connection just now
		return nil, nil
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	return func() error { return d.startPostgres(ctx) }, nil
}

func killNATS(ctx context.Context, d *deployment, _ injection) (func() error, error) {
	d.killNATS()
	return func() error { return d.startNATS(ctx) }, nil
}

func fillPostgres(ctx context.Context, d *deployment, _ injection) (func() error, error) {
	lift, err := d.pgDisk.fill()
	if lift == nil {
		return nil, err
	}
	return func() error {
		if err := lift(); err != nil {
			return err
		}
		return d.startPostgres(ctx) // where it could not go on
	}, nil
}

func fillNATS(ctx context.Context, d *deployment, _ injection) (func() error, error) {
	lift, err := d.natsDisk.fill()
	if lift == nil {
		return nil, err
	}
	return func() error {
		if err := lift(); err != nil {
			return err
		}
		d.killNATS()
		return d.startNATS(ctx)
	}, nil
}
