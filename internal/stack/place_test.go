//go:build unix

package stack

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root's server is another user")
	}
}

// hidden returns a folder that other users can't reach.
func hidden(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pg")
	t.Cleanup(func() {
		if err := RemovePostgres(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A lock that was released is free at once, though a process that is being started in that moment
// holds a copy of every open file until it is what it shall be: a duplicate stands for it here.
func TestReleasedLockIsFreeWhileAProcessStarts(t *testing.T) {
	t.Parallel()
	copyOf := func(l *fileLock) {
		fd, err := syscall.Dup(int(l.f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Close(fd) })
	}
	dir := t.TempDir()
	for range 2 {
		p := &place{}
		if err := p.lock(dir); err != nil {
			t.Fatal(err)
		}
		copyOf(p.locks[0])
		p.release()
	}
	for range 2 {
		n, err := StartNATS(t.Context(), NATSConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		copyOf(n.lock)
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		l, err := lockWait(t.Context(), filepath.Join(dir, "lock"))
		if err != nil {
			t.Fatal(err)
		}
		copyOf(l)
		l.release()
	}
}

func TestDataOfAHiddenFolderLieElsewhere(t *testing.T) {
	needRoot(t)
	t.Parallel()
	dir := hidden(t)
	p := startServer(t, PostgresConfig{Dir: dir})
	target, err := os.Readlink(filepath.Join(dir, "data"))
	if err != nil || target != p.place.data || !strings.HasPrefix(target, elsewhereRoot+"/latchkey-") {
		t.Fatalf("the note says %q (%v), the data are in %s", target, err, p.place.data)
	}
	execute(t, p.URL("postgres"), "CREATE TABLE kept AS SELECT 'yes' AS v")
	stopServer(t, p)

	p = startServer(t, PostgresConfig{Dir: dir})
	if got := query(t, p.URL("postgres"), "SELECT v FROM kept"); got != "yes" {
		t.Errorf("after a restart the table holds %q", got)
	}
	stopServer(t, p)
	if err := RemovePostgres(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Dir(target)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left (%v)", filepath.Dir(target), err)
	}
}

func TestDeletingAHiddenFolderGivesUpItsData(t *testing.T) {
	needRoot(t)
	t.Parallel()
	dir := hidden(t)
	p := startServer(t, PostgresConfig{Dir: dir})
	execute(t, p.URL("postgres"), "CREATE TABLE forgotten (n int)")
	stopServer(t, p)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	p = startServer(t, PostgresConfig{Dir: dir})
	if got := query(t, p.URL("postgres"), "SELECT count(*)::text FROM pg_class WHERE relname = 'forgotten'"); got != "0" {
		t.Error("the data of a deleted folder came back")
	}
}

func TestLinkToAForeignPlaceIsRefused(t *testing.T) {
	t.Parallel()
	dir, elsewhere := folder(t), t.TempDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "data")
	if err := os.Symlink(filepath.Join(elsewhere, "data"), link); err != nil {
		t.Fatal(err)
	}
	if _, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir}); err == nil {
		t.Error("a link to a place that is not ours was followed")
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
}

func TestSocketFolderOfSomebodyElseIsNotUsed(t *testing.T) {
	needRoot(t)
	t.Parallel()
	dir := folder(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o777); err != nil { // root's, not the server's
		t.Fatal(err)
	}
	p := startServer(t, PostgresConfig{Dir: dir})
	if p.place.socket == filepath.Join(dir, "run") {
		t.Error("the socket is in a folder that is not the server's alone")
	}
}

// The path of everybody who is not root, by an unprivileged child.
func TestPostgresWithoutRoot(t *testing.T) {
	needRoot(t)
	t.Parallel()
	nobody := &account{uid: 65534, gid: 65534}
	top, err := os.MkdirTemp("", "latchkey-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(top, "owner") // the test binary itself is in root's folder
	if out, err := exec.Command("cp", self, program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := errors.Join(os.Chmod(top, 0o755), os.Chmod(program, 0o755)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "home")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, nobody.uid, nobody.gid)); err != nil {
		t.Fatal(err)
	}
	o := startOwner(t, "initdb", filepath.Join(dir, "pg"), func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args[0], cmd.Dir = program, program, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(nobody.uid), Gid: uint32(nobody.gid)}}
	})
	if got := query(t, o.url, "SELECT current_user"); got != superuser {
		t.Errorf("connected as %q", got)
	}
	if fi, err := os.Stat(filepath.Join(dir, "pg", "data")); err != nil || int(fi.Sys().(*syscall.Stat_t).Uid) != nobody.uid {
		t.Errorf("the data are not the user's own (%v)", err)
	}
	o.stdin.Close()
	if got := o.line(t); got != "stopped" {
		t.Errorf("the child says %q", got)
	}
}
