package stack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

// childMode makes this test binary a program that owns a server, for the tests
// that kill the owner or run it as another user.
const childMode, childDir = "STACK_TEST_CHILD", "STACK_TEST_DIR"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		os.Exit(child(mode, os.Getenv(childDir)))
	}
	goleak.VerifyTestMain(m)
}

// child starts a server, says so, and holds it until its standard input ends.
func child(mode, dir string) int {
	cfg := PostgresConfig{Dir: dir}
	if mode == "template" {
		cfg.Template = templateFolder()
	}
	p, err := StartPostgres(context.Background(), cfg)
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println("pid", p.Pid(), p.URL("postgres"))
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := p.Stop(context.Background()); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println("stopped")
	return 0
}

// owner is a running child.
type owner struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
	pid   int // of its Postgres
	url   string
}

// startOwner runs a child and waits until its server is up. configure may change
// the command.
func startOwner(t *testing.T, mode, dir string, configure func(*exec.Cmd)) *owner {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childMode+"="+mode, childDir+"="+dir)
	cmd.Stderr = os.Stderr
	if configure != nil {
		configure(cmd)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // no-op after a test that ended it
		_ = cmd.Wait()
	})
	o := &owner{cmd: cmd, stdin: stdin, out: bufio.NewReader(stdout)}
	fields := strings.Fields(o.line(t))
	if len(fields) != 3 || fields[0] != "pid" {
		t.Fatalf("the child says %q", fields)
	}
	o.pid, _ = strconv.Atoi(fields[1])
	o.url = fields[2]
	return o
}

func (o *owner) line(t *testing.T) string {
	t.Helper()
	line, err := o.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the child ended: %v; it said %q", err, line)
	}
	return strings.TrimSpace(line)
}

// folder returns a fresh folder that the server's user can reach (t.TempDir is
// closed to others), removed at the end with whatever runs in it.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "latchkey-stack-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "pg")
	t.Cleanup(func() {
		if err := RemovePostgres(own); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return own
}

func templateFolder() string {
	return filepath.Join(os.TempDir(), "latchkey-clusters-"+strconv.Itoa(os.Getuid()))
}

// startServer starts a server quickly and stops it at the end of the test.
func startServer(t *testing.T, cfg PostgresConfig) *Postgres {
	t.Helper()
	if cfg.Template == "" {
		cfg.Template = templateFolder()
	}
	p, err := StartPostgres(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop(context.Background()) })
	return p
}

func stopServer(t *testing.T, p *Postgres) {
	t.Helper()
	if err := p.Stop(t.Context()); err != nil {
		t.Fatalf("stop: %v", err)
	}
}

// query runs one statement and returns its one value as text.
func query(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var v string
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func execute(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
