package portal

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
)

// Group makes concurrent calls share a transaction. Calls that come while others are being
// committed wait and form the next transaction together, so a group is as large as the load makes
// it, and on an idle database a call waits for nobody. It owns no goroutine while nothing is asked
// of it.
type Group[T any] struct {
	// Commit serves items in one transaction and leaves what it found in them.
	Commit func(ctx context.Context, items []T) error
	Most   int // items in a transaction
	// Linger is how long those who were just answered have time to ask again, before others that wait are
	// served without them: fewer and larger groups cost less. Who finds nobody at work never waits.
	Linger time.Duration

	mu      sync.Mutex
	waiting []*groupCall[T]
	running bool // a worker is at it; one at a time, for the larger the groups, the better
	want    int  // with so many waiting, full is to be closed; 0 = nobody lingers
	full    chan struct{}
}

type groupCall[T any] struct {
	item T
	done chan error
}

// groupTimeout bounds a group's transaction. Nobody's own context does: one caller that leaves
// must not fail the others.
const groupTimeout = 5 * time.Second

// apartAtATime are the transactions of calls that are tried apart, which leaves connections to others.
const apartAtATime = 4

// Do serves an item with whatever else is waiting. After an error nothing is known to be durable.
// When ctx ends first, an item that no transaction has taken yet is never served.
func (g *Group[T]) Do(ctx context.Context, item T) error {
	call := &groupCall[T]{item, make(chan error, 1)}
	g.mu.Lock()
	g.waiting = append(g.waiting, call)
	if len(g.waiting) == g.want {
		g.want = 0
		close(g.full)
	}
	if !g.running {
		g.running = true
		go g.run()
	}
	g.mu.Unlock()
	select {
	case err := <-call.done:
		return err
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		g.waiting = slices.DeleteFunc(g.waiting, func(c *groupCall[T]) bool { return c == call })
		return ctx.Err()
	}
}

// run serves groups until nobody waits.
func (g *Group[T]) run() {
	for {
		g.mu.Lock()
		n := min(len(g.waiting), g.Most)
		if n == 0 {
			g.running = false
			g.mu.Unlock()
			return
		}
		calls := slices.Clone(g.waiting[:n])
		g.waiting = slices.Delete(g.waiting, 0, n)
		g.mu.Unlock()
		g.serve(calls)
		if g.Linger > 0 {
			g.gather(n)
		}
	}
}

// gather returns once as many have come as were just answered, or Linger is over.
func (g *Group[T]) gather(answered int) {
	g.mu.Lock()
	if len(g.waiting) >= g.Most {
		g.mu.Unlock()
		return
	}
	g.want, g.full = min(len(g.waiting)+answered, g.Most), make(chan struct{})
	g.mu.Unlock()
	timer := time.NewTimer(g.Linger)
	defer timer.Stop()
	select {
	case <-g.full:
	case <-timer.C:
	}
	g.mu.Lock()
	g.want = 0
	g.mu.Unlock()
}

// serve commits calls together, and each apart where one of them is in the way: the database
// refuses its value, somebody holds its row, or it panics. So none fails for another's sake.
func (g *Group[T]) serve(calls []*groupCall[T]) {
	items := make([]T, len(calls))
	for i, c := range calls {
		items[i] = c.item
	}
	err := g.try(items)
	if len(calls) > 1 && (RefusesValue(err) || waitsForLock(err) || errors.Is(err, errPanicked)) {
		// A few at a time, or those behind several held rows would wait longer than they can.
		var apart errgroup.Group
		apart.SetLimit(apartAtATime)
		for i := range calls {
			apart.Go(func() error { g.serve(calls[i : i+1]); return nil })
		}
		_ = apart.Wait()
		return
	}
	for _, c := range calls {
		c.done <- err
	}
}

func (g *Group[T]) try(items []T) (err error) {
	defer func() {
		if p := recover(); p != nil { // no handler's recover is on this goroutine
			err = fmt.Errorf("%w: %s\n%s", errPanicked, typeName(p), debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), groupTimeout)
	defer cancel()
	return g.Commit(ctx, items)
}

var errPanicked = errors.New("panic in a transaction; please report it with this stack")

// waitsForLock tells that lock_timeout ended the wait for a row, or Postgres a deadlock.
func waitsForLock(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40P01")
}

// ErrNotOwner is returned to a database user without the right to what was asked for.
var ErrNotOwner = errors.New("this takes the schema's owner, the one that 'worker migrate' runs under, in DATABASE_URL")

// RefusesUser tells that the database's user lacks a right (insufficient_privilege).
func RefusesUser(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}

// RefusesValue tells an error that the same rows will always meet (data exception, integrity
// constraint, program limit) from one that passes.
func RefusesValue(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	class := pg.Code[:min(2, len(pg.Code))]
	return class == "22" || class == "23" || class == "54"
}
