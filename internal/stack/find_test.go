//go:build unix

package stack

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeBin makes a folder with programs that print the given version, if any. A test that runs them
// does not run in parallel: a process that another test starts meanwhile could hold the written file
// open from fork to exec, and the kernel runs no program that is open for writing.
func fakeBin(t *testing.T, version string, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range programs {
		script := "#!/bin/sh\necho '" + name + " (PostgreSQL) " + version + "'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func fullBin(t *testing.T, version string) string {
	return fakeBin(t, version, "initdb", "pg_ctl", "postgres")
}

func TestFirstUsablePassesOverHalfAndOldInstallations(t *testing.T) {
	stray := fakeBin(t, "17.5", "initdb")
	old := fullBin(t, "13.9")
	nonsense := fullBin(t, "")
	good := fullBin(t, "17.5 (Debian 17.5-1)")
	got, err := firstUsable([]string{t.TempDir(), stray, old, nonsense, good, fullBin(t, "18.1")})
	if err != nil || got != good {
		t.Errorf("got %s, %v, want %s", got, err, good)
	}
	_, err = firstUsable([]string{stray, old})
	if !errors.Is(err, ErrNoPostgres) {
		t.Errorf("got %v, want ErrNoPostgres", err)
	}
	for _, want := range []string{"holds no pg_ctl", "Postgres 13", "DATABASE_URL", "PG_BIN"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %q: %v", want, err)
		}
	}
}

func TestVersionsThatAreNoPlainNumbers(t *testing.T) {
	for text, want := range map[string]int{"19beta1": 19, "18devel": 18, "14.2": 14} {
		if v, err := versionOf(fullBin(t, text)); err != nil || v.major != want {
			t.Errorf("%s is read as %d, %v", text, v.major, err)
		}
	}
}

func TestNewestFirst(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	want := []string{"18", "14", "9.6", "9.5", "latest"}
	for _, v := range []string{"9.6", "14", "18", "latest", "9.5"} {
		if err := os.MkdirAll(filepath.Join(top, v, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, dir := range newestFirst(filepath.Join(top, "*", "bin")) {
		got = append(got, filepath.Base(filepath.Dir(dir)))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWaysOutNameThisSystemsInstaller(t *testing.T) {
	bin := fakeBin(t, "", "dnf", "brew")
	t.Setenv("PATH", bin)
	if got := waysOut(); !strings.Contains(got, "`dnf install postgresql-server`") {
		t.Errorf("got %q", got)
	}
	t.Setenv("PATH", t.TempDir())
	if got := waysOut(); !strings.Contains(got, "install Postgres 14") {
		t.Errorf("got %q", got)
	}
}

// A link to initdb alone, as package managers make it, leads to the server.
func TestPathFoldersFollowTheLinkOfInitdb(t *testing.T) {
	real, links := fullBin(t, "17.5"), t.TempDir()
	if err := os.Symlink(filepath.Join(real, "initdb"), filepath.Join(links, "initdb")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "relative"+string(filepath.ListSeparator)+links)
	real, _ = filepath.EvalSymlinks(real)
	if got := pathFolders(); !slices.Equal(got, []string{links, real}) {
		t.Errorf("got %q", got)
	}
}

func TestPGBinIsAnOrder(t *testing.T) {
	good := fullBin(t, "17.5")
	t.Setenv("PG_BIN", good)
	if got, err := FindPostgres(); err != nil || got != good {
		t.Errorf("got %s, %v, want %s", got, err, good)
	}
	t.Setenv("PG_BIN", t.TempDir())
	if _, err := FindPostgres(); err == nil || !strings.Contains(err.Error(), "PG_BIN") {
		t.Errorf("an empty PG_BIN gives %v", err)
	}
}
