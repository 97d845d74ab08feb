package main

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/stripesim"
)

// stripe is the simulator behind a witness: at the moment when a call arrives, it looks whether click.started of that
// call's click is committed. Clocks can't tell that, since they jump.
type stripe struct {
	*stripesim.Sim
	addr string
	srv  *http.Server
	pool *pgxpool.Pool // around all faults but Postgres' own

	mu        sync.Mutex
	uncovered []uuid.UUID // clicks that Stripe was asked for ahead of their click.started
	witnessed int         // calls that were looked at
	unseen    int         // calls while Postgres was away
}

func startStripe(pool *pgxpool.Pool) (*stripe, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &stripe{Sim: stripesim.New(stripesim.Config{}), addr: l.Addr().String(), pool: pool}
	s.srv = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.srv.Serve(l) }()
	return s, nil
}

func (s *stripe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && r.URL.Path == "/v1/billing_portal/sessions" {
		s.witness(r.Context(), r.Header.Get("Idempotency-Key"))
	}
	s.Sim.ServeHTTP(w, r)
}

// clickOf is the click that an idempotency key is of.
func clickOf(idempotencyKey string) (uuid.UUID, error) {
	return uuid.Parse(strings.TrimPrefix(idempotencyKey, "latchkey_click_"))
}

func (s *stripe) witness(ctx context.Context, idempotencyKey string) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	click, err := clickOf(idempotencyKey)
	started := false
	if err == nil {
		err = s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM audit_events WHERE click_id = $1 AND kind = 'click.started')`, click).Scan(&started)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.unseen++
	case started:
		s.witnessed++
	default:
		s.uncovered = append(s.uncovered, click)
	}
}
