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
)

// ensureCluster makes the data folder if there is none, and refuses one that the
// binaries can't read.
func ensureCluster(ctx context.Context, cfg PostgresConfig, p *place, log *os.File) error {
	v, err := versionOf(cfg.BinDir)
	if err != nil {
		return err
	}
	made, err := os.ReadFile(filepath.Join(p.data, "PG_VERSION"))
	switch {
	case err == nil:
		if have := strings.TrimSpace(string(made)); have != strconv.Itoa(v.major) {
			return fmt.Errorf("%s was made by Postgres %s, but %s is Postgres %d: set PG_BIN to the folder of Postgres %s, or delete %s to start anew",
				p.data, have, cfg.BinDir, v.major, have, p.dir)
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	source := ""
	if cfg.Template != "" {
		if source, err = ensureTemplate(ctx, cfg, p.as, v, log); err != nil {
			return fmt.Errorf("template cluster: %w", err)
		}
	}
	return makeCluster(ctx, cfg, p.as, p.data, source, log)
}

// makeCluster makes a cluster at path, by initdb or as a copy of source. It
// works under another name and renames at the end: a half-made cluster looks
// enough like a whole one to start, and then fails later.
func makeCluster(ctx context.Context, cfg PostgresConfig, as *account, path, source string, log *os.File) error {
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil { // of an earlier try that was killed
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	if as != nil {
		if err := os.Lchown(tmp, as.uid, as.gid); err != nil {
			return err
		}
	}
	mark, _ := log.Seek(0, 2)
	var err error
	if source == "" {
		err = run(ctx, as, log, filepath.Join(cfg.BinDir, "initdb"), initdbArgs(cfg, tmp)...)
	} else {
		err = run(ctx, as, log, "cp", "-R", source+"/.", tmp)
	}
	if err != nil {
		return fmt.Errorf("make the database cluster %s: %w%s", path, err, lastLines(log.Name(), mark))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
	// Durable now: a complete cluster. A crash before this leaves only tmp.
}

// initdbArgs: trust goes with the socket's closed folder; connections by TCP,
// should a setting open them, are rejected. The C locale sorts alike everywhere.
func initdbArgs(cfg PostgresConfig, dir string) []string {
	args := []string{"-D", dir, "-U", superuser, "--auth-local=trust", "--auth-host=reject",
		"--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"}
	if !cfg.Fsync {
		args = append(args, "--no-sync")
	}
	return args
}

// ensureTemplate returns a cluster below cfg.Template that fits the binaries and
// the server's user, made at first need. Processes that need it at the same time
// wait for the first one, by a blocking lock.
func ensureTemplate(ctx context.Context, cfg PostgresConfig, as *account, v version, log *os.File) (string, error) {
	owner := os.Geteuid()
	if as != nil {
		owner = as.uid
	}
	if err := makePassable(cfg.Template); err != nil {
		return "", err
	}
	name := fmt.Sprintf("cluster-%d-%s", owner, hashOf(cfg.BinDir+"\x00"+v.full))
	path := filepath.Join(cfg.Template, name)
	lock, err := lockWait(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer lock.release()
	if _, err := os.Stat(filepath.Join(path, "PG_VERSION")); err == nil {
		return path, nil
	}
	return path, makeCluster(ctx, cfg, as, path, "", log)
}

// lockWait takes the lock of a file, waiting for it as long as the context
// allows.
func lockWait(ctx context.Context, path string) (l *fileLock, err error) {
	err = poll(ctx, func() (bool, error) {
		l, err = lockFile(path)
		if errors.Is(err, ErrInUse) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for %s: %w", path, err)
	}
	return l, nil
}

// syncFolder makes a rename in the folder durable.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
