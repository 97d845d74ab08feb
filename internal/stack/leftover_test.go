//go:build unix

package stack

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Invariant 3: the owner is killed, and its server neither stays nor keeps the
// next owner from starting.
func TestServerOfAKilledOwnerIsGone(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	o := startOwner(t, "template", dir, nil)
	execute(t, o.url, "CREATE TABLE kept AS SELECT 'yes' AS v")
	if err := o.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = o.cmd.Wait()

	data := filepath.Join(dir, "data")
	if runtime.GOOS == "linux" { // elsewhere the next start does it
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := poll(ctx, func() (bool, error) { return !serves(o.pid, data), nil }); err != nil {
			t.Fatal("the server outlives its owner")
		}
	}
	p := startServer(t, PostgresConfig{Dir: dir})
	if serves(o.pid, data) && o.pid != p.Pid() {
		t.Error("the old server is still there")
	}
	if got := query(t, p.URL("postgres"), "SELECT v FROM kept"); got != "yes" {
		t.Errorf("the table holds %q", got)
	}
}

// The server itself survived its owner, as it does where the kernel can't tell
// it: the lock is free, and a server runs in the folder.
func TestLeftoverServerIsStoppedByTheNextOwner(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	old := startServer(t, PostgresConfig{Dir: dir})
	old.place.release()
	p := startServer(t, PostgresConfig{Dir: dir})
	<-old.Done()
	query(t, p.URL("postgres"), "SELECT '1'")
}

func TestRemovePostgresStopsALeftover(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	old := startServer(t, PostgresConfig{Dir: dir})
	old.place.release()
	if err := RemovePostgres(dir); err != nil {
		t.Fatal(err)
	}
	<-old.Done()
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	if err := RemovePostgres(dir); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}

// Invariant 4: a pid file may name anybody.
func TestPidOfAnotherProcessIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	other := startServer(t, PostgresConfig{Dir: folder(t)}) // a Postgres even, of other data
	bystander := exec.Command("sleep", "1000")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	}()
	for _, pid := range []int{other.Pid(), bystander.Process.Pid, 1, 0, -1} {
		stopServer(t, startServer(t, PostgresConfig{Dir: dir}))
		stale := fmt.Sprintf("%d\n%s/data\n", pid, dir)
		if err := os.WriteFile(filepath.Join(dir, "data", "postmaster.pid"), []byte(stale), 0o600); err != nil {
			t.Fatal(err)
		}
		p := startServer(t, PostgresConfig{Dir: dir})
		query(t, p.URL("postgres"), "SELECT '1'")
		stopServer(t, p)
	}
	query(t, other.URL("postgres"), "SELECT '1'")
	if err := bystander.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the bystander is gone: %v", err)
	}
}
