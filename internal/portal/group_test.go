package portal

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// Callers that were just answered and ask again at once are served along with those that wait.
func TestGroupGathersThoseWhoAskAgain(t *testing.T) {
	t.Parallel()
	groups, release := make(chan int), make(chan struct{})
	g := &Group[int]{Most: 10, Linger: time.Hour, Commit: func(_ context.Context, items []int) error {
		groups <- len(items)
		<-release
		return nil
	}}
	ended := make(chan error)
	ask := func() { go func() { ended <- g.Do(t.Context(), 0) }() }
	want := func(n int) {
		t.Helper()
		if got := <-groups; got != n {
			t.Errorf("a group of %d, want %d", got, n)
		}
	}
	answered := func(n int) {
		t.Helper()
		release <- struct{}{}
		for range n {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	ask()
	want(1) // who finds nobody at work is served at once
	ask()
	ask()
	for waiting := 0; waiting < 2; runtime.Gosched() {
		g.mu.Lock()
		waiting = len(g.waiting)
		g.mu.Unlock()
	}
	answered(1)
	ask() // the first again
	want(3)
	answered(3)
	g.dismiss()
}

// dismiss ends the waiting for more, and with it the worker.
func (g *Group[T]) dismiss() {
	for running := true; running; runtime.Gosched() {
		g.mu.Lock()
		if g.want > 0 {
			g.want = 0
			close(g.full)
		}
		running = g.running
		g.mu.Unlock()
	}
}

// One who leaves while others are gathered for is not waited for twice, nor served.
func TestGroupGathersWithoutThoseWhoLeave(t *testing.T) {
	t.Parallel()
	var served int
	g := &Group[int]{Most: 10, Linger: time.Hour, Commit: func(_ context.Context, items []int) error {
		served += len(items)
		return nil
	}}
	g.running, g.want, g.full = true, 2, make(chan struct{}) // as gather leaves it
	leaving, leave := context.WithCancel(t.Context())
	leave()
	for range 2 { // two came, but never were there two
		if err := g.Do(leaving, 0); err == nil {
			t.Error("served")
		}
	}
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- g.Do(t.Context(), 0) }()
	}
	<-g.full
	go g.run()
	if err1, err2 := <-ended, <-ended; err1 != nil || err2 != nil || served != 2 {
		t.Errorf("%v, %v, %d served", err1, err2, served)
	}
	g.dismiss()
}
