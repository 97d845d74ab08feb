package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"latchkey/internal/rig"
	"latchkey/internal/stripesim"
)

const (
	stripeKey     = stripesim.TestKey
	webhookSecret = "whsec_ZmF1bHQtc3VpdGUtZmF1bHQtc3VpdGUtMDEyMzQ1Njc="
	everything    = "/everything" // the path of the target that subscribes to all events
)

// replica is a worker that is started again whenever it ends, as any supervisor does: it refuses to start without its
// servers, and gives up where a part of it fails.
type replica struct {
	roles, binary, public, admin, clock string
	env                                 []string
	wires                               []wire
	log                                 *os.File

	mu       sync.Mutex
	worker   *rig.Worker   // nil while there is none
	held     chan struct{} // closed when it may start again; nil = it may
	stopping bool
	ended    chan struct{} // the supervisor did
	exit     error         // of the last one
}

func (r *replica) clicks() bool { return strings.Contains(r.roles, "click") }

// setClock writes the file whole: a reader never sees half of it.
func (r *replica) setClock(seconds int64) error {
	if err := os.WriteFile(r.clock+".new", []byte(fmt.Sprint(seconds)), 0o644); err != nil {
		return err
	}
	return os.Rename(r.clock+".new", r.clock)
}

func (r *replica) supervise(ctx context.Context) {
	r.mu.Lock()
	r.stopping, r.ended = false, make(chan struct{})
	r.mu.Unlock()
	go func() {
		defer close(r.ended)
		for r.mayStart(ctx) {
			w, err := rig.Spawn(ctx, r.binary, r.public, r.admin, r.log, r.env...)
			if err == nil {
				r.set(w)
				err = w.Cmd.Wait()
				r.set(nil)
			}
			r.tell(err)
			time.Sleep(100 * time.Millisecond) // as supervisors do
		}
	}()
}

// mayStart waits while the replica is held down.
func (r *replica) mayStart(ctx context.Context) bool {
	for {
		r.mu.Lock()
		held, stopping := r.held, r.stopping
		r.mu.Unlock()
		if stopping || ctx.Err() != nil {
			return false
		}
		if held == nil {
			return true
		}
		select {
		case <-held:
			r.mu.Lock()
			r.held = nil
			r.mu.Unlock()
		case <-ctx.Done():
		}
	}
}

func (r *replica) set(w *rig.Worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.worker = w
	if w != nil && r.stopping { // too late for stop to see it
		_ = w.Cmd.Process.Signal(syscall.SIGTERM)
	}
}

func (r *replica) tell(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exit = err
}

// pid is 0 while there is no process.
func (r *replica) pid() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.worker == nil {
		return 0
	}
	return r.worker.Cmd.Process.Pid
}

func (r *replica) ready() bool {
	r.mu.Lock()
	w := r.worker
	r.mu.Unlock()
	return w != nil && w.Ready()
}

// kill is kill -9; lift lets it start again. It is nil where there is no process.
func (r *replica) kill() (lift func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.worker == nil {
		return nil
	}
	held := make(chan struct{})
	r.held = held
	_ = r.worker.Cmd.Process.Kill()
	return func() error { close(held); return nil }
}

// stop asks for an end, once the worker is ready, and returns what came of it.
func (r *replica) stop() error {
	r.mu.Lock()
	r.stopping = true
	w := r.worker
	r.mu.Unlock()
	if w != nil {
		_ = w.Cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case <-r.ended:
	case <-time.After(20 * time.Second):
		return errors.New("did not stop within 20 s")
	}
	if exit := (*exec.ExitError)(nil); w != nil && errors.As(r.exit, &exit) {
		return fmt.Errorf("a stop that was asked for: %w", exit)
	}
	return nil
}

// end ends it for good, whatever it does.
func (r *replica) end() {
	r.mu.Lock()
	r.stopping = true
	if r.worker != nil {
		_ = r.worker.Cmd.Process.Kill()
	}
	if r.held != nil {
		select {
		case <-r.held:
		default:
			close(r.held)
		}
	}
	ended := r.ended
	r.mu.Unlock()
	if ended != nil {
		<-ended
	}
	for _, w := range r.wires {
		w.Stop()
	}
	_ = r.log.Close()
}
