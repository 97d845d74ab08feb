package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"latchkey/internal/stack"
)

// workPrefix begins the name of the folder of each test process's server. The
// user is part of it: nobody can remove another's folders.
var workPrefix = "latchkey-test-" + strconv.Itoa(os.Getuid()) + "-"

// settings make a server for tests: many small parallel databases, whose data
// may be lost. Commits stay synchronous, as in production: whether a commit has
// happened when it returns is what tests are about.
var settings = map[string]string{
	"max_connections":         "300",
	"shared_buffers":          "64MB",
	"max_wal_size":            "4GB", // no checkpoints amid the tests
	"autovacuum_naptime":      "60s",
	"log_checkpoints":         "off",
	"log_min_messages":        "error", // tests provoke warnings by the hundred
	"log_min_error_statement": "panic",
}

// startPostgres starts a server in a folder of its own.
func startPostgres(settings map[string]string) (*stack.Postgres, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	bin, err := stack.FindPostgres()
	if err != nil {
		return nil, "", err // it names the ways out
	}
	sweep()
	dir, err := os.MkdirTemp("", workPrefix)
	if err != nil {
		return nil, "", err
	}
	// Run by root, the server is another user, who must be able to pass.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, "", err
	}
	pg, err := stack.StartPostgres(ctx, clusterConfig(filepath.Join(dir, "pg"), bin, settings))
	if err != nil {
		return nil, "", errors.Join(err, os.RemoveAll(dir))
	}
	return pg, dir, nil
}

func clusterConfig(dir, bin string, settings map[string]string) stack.PostgresConfig {
	return stack.PostgresConfig{Dir: dir, BinDir: bin, Settings: settings,
		Template: filepath.Join(os.TempDir(), "latchkey-clusters-"+strconv.Itoa(os.Getuid()))}
}

// sweep removes the folders of test processes that were killed. One that is still
// in use is locked. An empty lock file was made this instant and is about to be
// locked: to take it would make its owner fail. What can't be removed now is left
// to the next sweep.
func sweep() {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), workPrefix+"*", "pg", "lock"))
	for _, lock := range old {
		if fi, err := os.Stat(lock); err != nil || fi.Size() == 0 {
			continue
		}
		if stack.RemovePostgres(filepath.Dir(lock)) == nil {
			_ = os.Remove(filepath.Dir(filepath.Dir(lock)))
		}
	}
}

// stopPostgres stops a server and removes its files.
func stopPostgres(pg *stack.Postgres, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := pg.Stop(ctx); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return errors.Join(stack.RemovePostgres(filepath.Join(dir, "pg")), os.RemoveAll(dir))
}
