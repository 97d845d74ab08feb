package stack

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrInUse is returned when another live process owns the folder.
var ErrInUse = errors.New("the folder is in use")

// elsewhereRoot is where data lies that the server's user can't reach in the
// folder that was asked for. Unlike /tmp it outlives a reboot.
const elsewhereRoot = "/var/tmp"

const (
	socketPort    = "5432" // the socket's folder is ours alone, so the number is free
	maxSocketPath = 103    // sun_path less its NUL: 104 bytes on macOS, 108 on Linux
)

// place is a claimed folder: where the parts of one server lie, and the locks
// that make them ours.
type place struct {
	dir    string   // the folder that was asked for, absolute and without links
	data   string   // the cluster, made by rename (invariant 2)
	socket string   // folder of the Unix socket
	as     *account // whom data and socket belong to; nil: ourselves
	locks  []*fileLock
}

// claimPlace locks dir and decides where the data lies. The caller releases the
// place when its server has ended.
func claimPlace(dir, binDir string) (_ *place, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if dir, err = canonical(dir); err != nil {
		return nil, err
	}
	p := &place{dir: dir, data: filepath.Join(dir, "data")}
	defer func() {
		if err != nil {
			p.release()
		}
	}()
	if err := p.lock(dir); err != nil {
		return nil, err
	}
	if p.as, err = serverAccount(p.data); err != nil {
		return nil, err
	}
	if err := p.locate(binDir); err != nil {
		return nil, err
	}
	return p, nil
}

// locate settles where the data lies: in dir, or elsewhere when a link says so
// or the server's user can't enter dir.
func (p *place) locate(binDir string) error {
	if target, err := os.Readlink(p.data); err == nil {
		return p.moveTo(filepath.Dir(target), true)
	}
	if p.as == nil {
		return nil
	}
	if err := canEnter(p.as, binDir, "/"); err != nil {
		return fmt.Errorf("user %s can't run the programs in %s: %w", p.as.name, binDir, err)
	}
	if canEnter(p.as, binDir, p.dir) == nil {
		return nil
	}
	if _, err := os.Lstat(p.data); err == nil {
		return fmt.Errorf("%s is there, but user %s, whom it belongs to, can't reach it", p.data, p.as.name)
	}
	return p.moveTo(filepath.Join(elsewhereRoot, "latchkey-"+hashOf(p.dir)), false)
}

// moveTo makes home the place of the data. Without a deed (the link in dir) what
// lies there is the rest of a folder that somebody deleted: it goes.
func (p *place) moveTo(home string, deed bool) error {
	if filepath.Dir(home) != elsewhereRoot || !strings.HasPrefix(filepath.Base(home), "latchkey-") {
		return fmt.Errorf("%s links to %s, which is no place of ours: remove the link to start anew", p.data, home)
	}
	if err := makePassable(home); err != nil {
		return fmt.Errorf("data folder of %s: %w", p.dir, err)
	}
	if err := p.lock(home); err != nil { // two copies of dir may share one deed
		return err
	}
	link := p.data
	p.data = filepath.Join(home, "data")
	if deed {
		return nil
	}
	if err := stopLeftover(p.data); err != nil {
		return err
	}
	if err := os.RemoveAll(p.data); err != nil {
		return err
	}
	return os.Symlink(p.data, link)
}

// makeSocketFolder makes the folder of the socket, closed to everyone but the
// server's user: it is the server's only access control.
func (p *place) makeSocketFolder(binDir string) error {
	near := filepath.Join(filepath.Dir(p.data), "run")
	name := "latchkey-" + hashOf(p.data)
	var reasons []error
	for _, dir := range []string{near, filepath.Join(os.TempDir(), name), filepath.Join("/tmp", name)} {
		if len(dir+"/.s.PGSQL."+socketPort) > maxSocketPath {
			reasons = append(reasons, fmt.Errorf("%s is too long for a Unix socket", dir))
			continue
		}
		if err := p.makeOwned(dir, binDir); err != nil {
			reasons = append(reasons, err)
			continue
		}
		p.socket = dir
		return nil
	}
	return fmt.Errorf("no folder for the server's socket: %w", errors.Join(reasons...))
}

// makeOwned makes a folder of mode 0700 that belongs to the server's user, or
// takes the one that is there if it is exactly that.
func (p *place) makeOwned(dir, binDir string) error {
	uid := os.Geteuid()
	err := os.Mkdir(dir, 0o700)
	if p.as != nil {
		uid = p.as.uid
		if err == nil {
			err = os.Lchown(dir, p.as.uid, p.as.gid)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := private(dir, uid); err != nil {
		return err
	}
	if p.as == nil {
		return nil
	}
	return canEnter(p.as, binDir, dir)
}

// makePassable makes a folder of ours that others can pass through but not look
// into, whatever the umask: the server's user must reach what lies below.
func makePassable(dir string) error {
	err := os.Mkdir(dir, 0o711)
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return private(dir, os.Geteuid())
}

// lock takes <dir>/lock for the life of the place and leaves our pid in it, for
// the message that a second owner gets.
func (p *place) lock(dir string) error {
	l, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	p.locks = append(p.locks, l)
	return nil
}

// fileLock is a lock that we hold until release, or until we die.
type fileLock struct{ f *os.File }

// release makes the lock free at once. Closing the file alone would not, while a process that is
// being started holds a copy of it, which it does from fork to exec.
func (l *fileLock) release() {
	unlock(l.f)
	l.f.Close()
}

// lockFile opens and locks a file, or fails with ErrInUse naming the owner. Once
// it is locked, the owner's pid is in it.
func lockFile(path string) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	ok, err := flock(f)
	switch {
	case err != nil:
		err = fmt.Errorf("lock %s: %w", path, err)
	case !ok || !stillAt(f, path): // the file's last owner may just have deleted it
		owner, _ := os.ReadFile(path)
		err = fmt.Errorf("%w by process %s", ErrInUse, strings.TrimSpace(string(owner)))
	default:
		if err = f.Truncate(0); err == nil {
			_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		}
	}
	if err != nil {
		(&fileLock{f}).release()
		return nil, err
	}
	return &fileLock{f}, nil
}

// stillAt reports whether path is still the open file.
func stillAt(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

func (p *place) release() {
	for _, l := range p.locks {
		l.release()
	}
	p.locks = nil
}

func canonical(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

func hashOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:6])
}
