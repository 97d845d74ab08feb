package stack

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// process is a child that ends with this process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once the child is gone and reaped
	err  error         // of Wait; read it after done
}

// spawn starts the child and reaps it. deathSig is what the child gets on Linux
// when this process dies.
//
// The kernel ties that signal to the thread that forked, not to the process, and
// the Go runtime ends threads at will. So one goroutine holds its thread from the
// fork until the child is gone.
func spawn(cmd *exec.Cmd, as *account, deathSig syscall.Signal) (*process, error) {
	cmd.SysProcAttr = sysProcAttr(as, deathSig)
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// wait waits for the child's end; when the context ends first, the child is
// killed.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		_ = p.cmd.Process.Kill() // fails only if it has ended meanwhile
		<-p.done
		return context.Cause(ctx)
	}
}

// run runs a short-lived tool as the server's user, with its output going to the
// log. Its folder is the root: the current one may be closed to that user, and
// initdb insists on reading it.
func run(ctx context.Context, as *account, log *os.File, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = "/", serverEnv()
	cmd.Stdout, cmd.Stderr = log, log
	p, err := spawn(cmd, as, syscall.SIGKILL)
	if err != nil {
		return err
	}
	return p.wait(ctx)
}

// canEnter reports whether the server's user can run the binaries with dir as
// its current folder. Asking the kernel beats reading mode bits: it knows of
// access lists and read-only mounts.
func canEnter(as *account, binDir, dir string) error {
	cmd := exec.Command(binDir+"/postgres", "--version")
	cmd.Dir, cmd.Env = dir, serverEnv()
	cmd.SysProcAttr = sysProcAttr(as, syscall.SIGKILL)
	// This thread waits for the child, so it outlives it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// serverEnv is our environment without what would change the server behind our
// back (PGDATA, PGPORT, …) and with messages in one language, since the log is
// quoted in errors. (On macOS an unset locale also makes the postmaster
// multi-threaded, which it refuses.)
func serverEnv() []string {
	env := []string{"LC_ALL=C"}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "LC_") && !strings.HasPrefix(kv, "LANG") {
			env = append(env, kv)
		}
	}
	return env
}
