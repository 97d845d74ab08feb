//go:build unix

package stack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestPostgresKeepsItsDataAndListensOnASocketOnly(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	p, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir, Fsync: true, Settings: map[string]string{"work_mem": "5MB"}})
	if err != nil {
		t.Fatal(err)
	}
	url := p.URL("postgres")
	for setting, want := range map[string]string{
		"listen_addresses": "", "fsync": "on", "work_mem": "5MB", "data_checksums": "on",
		"server_encoding": "UTF8", "lc_collate": "C", "unix_socket_permissions": "0700",
	} {
		// lc_collate is no parameter since Postgres 16.
		sql := "SELECT coalesce(current_setting('" + setting + "', true), (SELECT datcollate FROM pg_database WHERE datname = 'postgres'))"
		if got := query(t, url, sql); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}
	fi, err := os.Stat(p.place.socket)
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("socket folder: %v, %v, want mode 0700", fi.Mode(), err)
	}
	if group, err := syscall.Getpgid(p.Pid()); err != nil || group == syscall.Getpgrp() {
		t.Errorf("the server is in our process group (%v): Ctrl-C would reach it", err)
	}
	execute(t, url, "CREATE TABLE kept AS SELECT 'yes' AS v")
	execute(t, url, `CREATE DATABASE "with space+plus/and?more"`)
	if got := query(t, p.URL("with space+plus/and?more"), "SELECT current_database()"); got != "with space+plus/and?more" {
		t.Errorf("the URL leads to %q", got)
	}
	stopServer(t, p)
	stopServer(t, p) // idempotent
	<-p.Done()

	again := startServer(t, PostgresConfig{Dir: dir})
	if got := query(t, again.URL("postgres"), "SELECT v FROM kept"); got != "yes" {
		t.Errorf("after a restart the table holds %q", got)
	}
}

func TestPostgresInADeepFolderHasAShortSocket(t *testing.T) {
	t.Parallel()
	top := folder(t)
	dir := filepath.Join(top, strings.Repeat("d", 100))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := startServer(t, PostgresConfig{Dir: dir})
	if strings.HasPrefix(p.place.socket, top) {
		t.Errorf("the socket is in %s", p.place.socket)
	}
	query(t, p.URL("postgres"), "SELECT '1'")
	stopServer(t, p)
	if _, err := os.Lstat(p.place.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left in the temporary folder (%v)", p.place.socket, err)
	}
}

// Invariant 1.
func TestPostgresHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	p := startServer(t, PostgresConfig{Dir: dir})
	_, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir})
	if !errors.Is(err, ErrInUse) {
		t.Errorf("a second owner gets %v, want ErrInUse", err)
	}
	if err := RemovePostgres(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("removing a folder in use gives %v, want ErrInUse", err)
	}
	query(t, p.URL("postgres"), "SELECT '1'")
	stopServer(t, p)
	startServer(t, PostgresConfig{Dir: dir})
}

// Invariant 2: what a killed initdb left is no cluster.
func TestHalfMadeClusterIsMadeAnew(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	half := filepath.Join(dir, "data.tmp")
	if err := os.MkdirAll(filepath.Join(half, "base"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startServer(t, PostgresConfig{Dir: dir})
	query(t, p.URL("postgres"), "SELECT '1'")
	if _, err := os.Lstat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", half, err)
	}
}

// Invariant 2, from the other side: initdb is broken off by the context.
func TestBrokenOffInitdbLeavesNoCluster(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StartPostgres(ctx, PostgresConfig{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Fatalf("a start that is broken off gives %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a data folder is there (%v)", err)
	}
	startServer(t, PostgresConfig{Dir: dir})
}

// Invariant 5.
func TestServerThatEndsAtOnceIsQuoted(t *testing.T) {
	t.Parallel()
	_, err := StartPostgres(t.Context(), PostgresConfig{
		Dir: folder(t), Template: templateFolder(), Settings: map[string]string{"no_such_setting": "1"},
	})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("the error does not say what the server said: %v", err)
	}
}

func TestClusterOfAnotherVersionIsRefused(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	p := startServer(t, PostgresConfig{Dir: dir})
	stopServer(t, p)
	if err := os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "PG_BIN") {
		t.Errorf("got %v, want an error that says what to do", err)
	}
}

func TestServerThatEndsByItselfIsNoticed(t *testing.T) {
	t.Parallel()
	p := startServer(t, PostgresConfig{Dir: folder(t)})
	if err := syscall.Kill(p.Pid(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Stop(t.Context()); err == nil {
		t.Error("the stop of a server that was gone gives no error")
	}
}

func TestStopOfAStuckServerGetsRough(t *testing.T) {
	t.Parallel()
	p := startServer(t, PostgresConfig{Dir: folder(t)})
	if err := syscall.Kill(p.Pid(), syscall.SIGSTOP); err != nil { // hears nothing but SIGKILL
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Stop(ctx); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got %v, want the note that it was killed", err)
	}
	<-p.Done()
}
