//go:build unix

package stack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// account is the user that the server runs as; nil means ourselves.
type account struct {
	name     string
	uid, gid int
}

// serverAccount chooses the user for the server of a data folder. Only root has
// a choice, and must make one: Postgres refuses to run as root.
func serverAccount(data string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if fi, err := os.Stat(data); err == nil {
		st := fi.Sys().(*syscall.Stat_t)
		if st.Uid != 0 { // as before, so that the data stay readable
			return &account{name: "uid " + strconv.Itoa(int(st.Uid)), uid: int(st.Uid), gid: int(st.Gid)}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return &account{name: name, uid: uid, gid: gid}, nil
		}
	}
	return nil, errors.New("Postgres does not run as root, and this system has neither a user postgres nor nobody")
}

// supported tells whether an own Postgres can be run on this system.
func supported() error { return nil }

// flock takes the exclusive lock of an open file without waiting. The kernel
// drops it when the process dies, so a killed owner leaves nothing to clean up.
func flock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// unlock drops the lock, where we hold it, for every copy of the open file.
func unlock(f *os.File) { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

// private checks that a folder in a place where everybody can write is really
// ours: a folder, no link, owned by uid, not writable for others.
func private(path string, uid int) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a folder", path)
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != uid || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s belongs to somebody else: %w", path, fs.ErrPermission)
	}
	return nil
}
