// Package rig is what the programs that measure and break the service share: its commands, built and run as processes
// as they are deployed, a NATS server that can be killed, and what machine and commit their findings are of.
package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/portal"
)

// NATSServer is what Build builds a NATS server from.
const NATSServer = "github.com/nats-io/nats-server/v2"

// LinkKeys is the key of the workers' and the load's links.
var LinkKeys = portal.FormatKey(1, [32]byte{'b', 'e', 'n', 'c', 'h'})

// Build builds a command into a folder, once, and returns the path of the binary.
func Build(ctx context.Context, dir, pkg string, args ...string) (string, error) {
	path := filepath.Join(dir, filepath.Base(strings.TrimSuffix(pkg, "/v2")))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-ldflags=-s -w", "-o", path}, args...), pkg)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	return path, nil
}

// Worker is a 'worker run' process.
type Worker struct {
	Cmd           *exec.Cmd
	Public, Admin string        // origins of the click server and of the internal server
	Started       time.Duration // from exec to ready, by UntilReady

	began time.Time
}

// Spawn starts a worker that listens on these addresses, and does not wait for it.
func Spawn(ctx context.Context, binary, public, admin string, log io.Writer, env ...string) (*Worker, error) {
	w := &Worker{Cmd: exec.CommandContext(ctx, binary, "run"), Public: "http://" + public, Admin: "http://" + admin, began: time.Now()}
	w.Cmd.Env = append([]string{"LINK_KEYS=" + LinkKeys, "HTTP_ADDR=" + public, "ADMIN_ADDR=" + admin, "LINK_BASE_URL=http://" + public, "HTTP_DRAIN_TIME=0s"}, env...)
	w.Cmd.Stdout, w.Cmd.Stderr = log, log
	return w, w.Cmd.Start()
}

// UntilReady returns when the worker says that it is ready.
func (w *Worker) UntilReady() error {
	for time.Since(w.began) < 20*time.Second {
		if w.Ready() {
			w.Started = time.Since(w.began)
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	KillNow(w.Cmd)
	return errors.New("the worker was not ready in 20 s")
}

// client asks a worker about itself. One that is frozen takes connections and says nothing.
var client = &http.Client{Timeout: 2 * time.Second}

// Ready tells whether the worker says so.
func (w *Worker) Ready() bool {
	resp, err := client.Get(w.Admin + "/readyz")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Stop asks the worker to stop and waits for its end.
func (w *Worker) Stop() {
	_ = w.Cmd.Process.Signal(syscall.SIGTERM)
	_ = w.Cmd.Wait()
}

// Metric is the value of a metric without labels, 0 where the worker does not tell.
func (w *Worker) Metric(name string) float64 {
	resp, err := client.Get(w.Admin + "/metrics")
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, _ := strconv.ParseFloat(value, 64)
			return n
		}
	}
	return 0
}

// Memory is a process's VmRSS or VmHWM (the most it was) in MB, where /proc tells it.
func Memory(pid int, what string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), what+":")
	kb, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
	return float64(kb) / 1024
}

// FreePort is an address of loopback that nobody listens on just now, and that stays free until it is used: it is below
// the ports that systems give to who asks for any (from 32768 on, or above), and it is given once. One of theirs would
// be given to a proxy or a connection next. No process is begun meanwhile: until its exec, it would hold the listener
// that is closed here, and whoever listened next would find the address in use.
func FreePort() string {
	if runtime.GOOS == "linux" { // elsewhere net takes this lock itself
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	for range freePorts {
		addr := fmt.Sprintf("127.0.0.1:%d", 20_000+nextPort.Add(1)%freePorts)
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	return "127.0.0.1:0" // whoever uses it says what is wrong with listening
}

const freePorts = 12_000

// nextPort begins anywhere, since several programs may run at the same time.
var nextPort atomic.Int64

func init() { nextPort.Store(rand.Int64N(freePorts)) }

// StartNATS starts a server as a process of its own, with its streams and its log in and beside dir, and returns once
// JetStream answers.
func StartNATS(ctx context.Context, binary, addr, dir string) (*exec.Cmd, error) {
	host, port, _ := strings.Cut(addr, ":")
	cmd := exec.CommandContext(ctx, binary, "-a", host, "-p", port, "-js", "-sd", dir, "-l", dir+".log")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		if jetStreamAnswers(ctx, addr) {
			return cmd, nil
		}
	}
	KillNow(cmd)
	return nil, fmt.Errorf("the NATS server did not come up; its log is %s.log", dir)
}

func jetStreamAnswers(ctx context.Context, addr string) bool {
	nc, err := nats.Connect("nats://" + addr)
	if err != nil {
		return false
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = js.AccountInfo(ctx)
	return err == nil
}

// KillNow is kill -9. It returns when the process is gone.
func KillNow(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
