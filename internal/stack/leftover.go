package stack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stopStages is how a server is asked to end, ever less politely: a fast
// shutdown (disconnects clients, writes a checkpoint), an immediate one (recovers
// at the next start), and the kernel's way. Each gets that much time.
var stopStages = []struct {
	signal   syscall.Signal
	patience time.Duration
}{
	{syscall.SIGINT, 20 * time.Second},
	{syscall.SIGQUIT, 5 * time.Second},
	{syscall.SIGKILL, 5 * time.Second},
}

// stopLeftover ends the server that a killed owner may have left in the data
// folder, and removes its pid file. The caller holds the folder's lock, so a
// server found here has no owner.
//
// A pid file is a rumour: the number may belong to somebody else by now. So the
// process is pinned first (a pidfd, where there are such) and identified second,
// and every signal goes to the pinned one.
func stopLeftover(data string) error {
	pidFile := filepath.Join(data, "postmaster.pid")
	content, err := os.ReadFile(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err == nil && pid > 1 {
		if err := endServer(pid, data); err != nil {
			return err
		}
	}
	// Postgres judges a stale file by whether the pid lives at all; a reused
	// number would keep it from starting.
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func endServer(pid int, data string) error {
	proc, err := os.FindProcess(pid)
	if err != nil {
		return nil // gone
	}
	defer proc.Release()
	if !serves(pid, data) {
		return nil
	}
	for _, stage := range stopStages {
		if err := proc.Signal(stage.signal); errors.Is(err, os.ErrProcessDone) {
			return nil
		} else if err != nil {
			return fmt.Errorf("stop the leftover Postgres (process %d): %w", pid, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), stage.patience)
		err := poll(ctx, func() (bool, error) { return !serves(pid, data), nil })
		cancel()
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("the leftover Postgres of %s (process %d) does not end", data, pid)
}

// pollInterval is how often poll looks. What it looks at (another process, a
// lock, a starting server) can't tell us by itself.
const pollInterval = 10 * time.Millisecond

// poll calls check until it is done or fails, or the context ends.
func poll(ctx context.Context, check func() (done bool, err error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if done, err := check(); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
