package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	superuser    = "postgres"
	startTimeout = 60 * time.Second // recovery after a crash is part of a start
	maxLog       = 10 << 20         // a log larger than this is begun anew at the next start
)

// PostgresConfig says where a server of one's own lives and how it runs.
type PostgresConfig struct {
	// Dir is the folder that the server owns; it is made if need be. Required.
	Dir string
	// BinDir holds initdb and postgres. Default: what FindPostgres finds.
	BinDir string
	// Fsync makes commits survive a power failure. Default false, which is for
	// tests: after a power failure the data are lost as a whole.
	Fsync bool
	// LogFile is the server's log; it is appended to. Default: Dir/postgres.log.
	LogFile string
	// Template is a folder that keeps a fresh cluster to copy from, for callers
	// that start many servers: a copy takes a tenth of initdb's time. It is
	// filled at first use and may be shared by processes. Default: none, initdb.
	Template string
	// Settings are parameters of postgresql.conf, by name.
	Settings map[string]string
}

// Postgres is a running server.
type Postgres struct {
	proc  *process
	place *place

	stop sync.Once
	err  error // of the stop
}

// StartPostgres starts the server in cfg.Dir, making the cluster first if there
// is none and stopping what a killed owner left. It returns once the server
// answers queries. ErrInUse: another live process owns the folder.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	pl, err := claimPlace(cfg.Dir, cfg.BinDir)
	if err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	p, err := start(ctx, cfg, pl)
	if err != nil {
		pl.release()
		return nil, fmt.Errorf("start Postgres in %s: %w", cfg.Dir, err)
	}
	return p, nil
}

// RemovePostgres deletes the folder of a server of one's own, with the data
// wherever they lie and after stopping what a killed owner left. ErrInUse: it has
// a live owner. Without the folder it does nothing.
func RemovePostgres(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	dir, err := canonical(dir)
	if err != nil {
		return err
	}
	p := &place{dir: dir, data: filepath.Join(dir, "data")}
	defer p.release()
	if err := p.lock(dir); err != nil {
		return err
	}
	if target, err := os.Readlink(p.data); err == nil {
		if err := p.moveTo(filepath.Dir(target), true); err != nil {
			return err
		}
	}
	if err := stopLeftover(p.data); err != nil {
		return err
	}
	if home := filepath.Dir(p.data); home != dir {
		if err := os.RemoveAll(home); err != nil {
			return err
		}
	}
	_ = os.RemoveAll(filepath.Join(os.TempDir(), "latchkey-"+hashOf(p.data))) // socket of a deep folder; a leftover is harmless
	return os.RemoveAll(dir)
}

func (cfg *PostgresConfig) complete() (err error) {
	if err := supported(); err != nil {
		return err
	}
	if cfg.Dir == "" {
		return errors.New("no folder given")
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return err
	}
	if cfg.BinDir == "" {
		if cfg.BinDir, err = FindPostgres(); err != nil {
			return err
		}
	}
	if cfg.BinDir, err = filepath.Abs(cfg.BinDir); err != nil {
		return err
	}
	if cfg.LogFile == "" {
		cfg.LogFile = filepath.Join(cfg.Dir, "postgres.log")
	}
	return nil
}

// start brings the server up in a claimed place.
func start(ctx context.Context, cfg PostgresConfig, pl *place) (*Postgres, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready after %s", startTimeout))
	defer cancel()
	log, err := openLog(cfg.LogFile)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the server has its own descriptor
	if err := stopLeftover(pl.data); err != nil {
		return nil, err
	}
	if err := ensureCluster(ctx, cfg, pl, log); err != nil {
		return nil, err
	}
	if err := pl.makeSocketFolder(cfg.BinDir); err != nil {
		return nil, err
	}
	mark, _ := log.Seek(0, io.SeekEnd)
	cmd := exec.Command(filepath.Join(cfg.BinDir, "postgres"), serverArgs(cfg, pl)...)
	cmd.Dir, cmd.Env = "/", serverEnv()
	cmd.Stdout, cmd.Stderr = log, log
	// A fast shutdown is what the kernel asks for when we die (invariant 3).
	proc, err := spawn(cmd, pl.as, syscall.SIGINT)
	if err != nil {
		return nil, err
	}
	p := &Postgres{proc: proc, place: pl}
	if err := p.ready(ctx); err != nil {
		_ = p.Stop(context.Background())
		return nil, fmt.Errorf("%w%s", err, lastLines(cfg.LogFile, mark))
	}
	return p, nil
}

// serverArgs puts everything on the command line: the cluster's own
// configuration file stays as initdb wrote it, and a moved folder needs no edit.
func serverArgs(cfg PostgresConfig, pl *place) []string {
	settings := map[string]string{
		"listen_addresses":        "",
		"port":                    socketPort,
		"unix_socket_directories": `"` + strings.ReplaceAll(pl.socket, `"`, `""`) + `"`,
		"unix_socket_permissions": "0700",
		"logging_collector":       "off",
		"fsync":                   onOff(cfg.Fsync),
		"full_page_writes":        onOff(cfg.Fsync), // torn pages need a power failure too
	}
	maps.Copy(settings, cfg.Settings)
	args := []string{"-D", pl.data}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// ready waits until the server answers a connection, or has ended.
func (p *Postgres) ready(ctx context.Context) error {
	var last error
	err := poll(ctx, func() (bool, error) {
		select {
		case <-p.proc.done:
			return false, fmt.Errorf("the server ended at once (%v)", p.proc.err)
		default:
		}
		var conn *pgx.Conn
		if conn, last = pgx.Connect(ctx, p.URL("postgres")); last != nil {
			return false, nil
		}
		return true, conn.Close(ctx)
	})
	if err != nil && ctx.Err() != nil && last != nil {
		return fmt.Errorf("%w; the last attempt: %w", err, last)
	}
	return err
}

// URL returns a connection URL for the superuser, over the Unix socket.
func (p *Postgres) URL(database string) string {
	// PathEscape throughout: libpq does not read "+" as a space.
	return "postgres://" + superuser + "@/" + url.PathEscape(database) +
		"?host=" + strings.ReplaceAll(url.QueryEscape(p.place.socket), "+", "%20") +
		"&port=" + socketPort + "&sslmode=disable"
}

// Pid returns the process id of the server.
func (p *Postgres) Pid() int { return p.proc.cmd.Process.Pid }

// Done is closed when the server has ended, by Stop or by itself.
func (p *Postgres) Done() <-chan struct{} { return p.proc.done }

// Stop ends the server: a fast shutdown, after 20 seconds or at the end of ctx an
// immediate one, and then SIGKILL. It returns with the server gone and the folder
// free, and an error if it did not end cleanly. Calling it again does nothing and
// returns the same.
func (p *Postgres) Stop(ctx context.Context) error {
	p.stop.Do(func() {
		p.err = p.end(ctx)
		if filepath.Dir(p.place.socket) != filepath.Dir(p.place.data) {
			_ = os.Remove(p.place.socket) // in the temporary folder; not empty after a SIGKILL
		}
		p.place.release()
	})
	return p.err
}

func (p *Postgres) end(ctx context.Context) error {
	select {
	case <-p.proc.done:
		return fmt.Errorf("Postgres had ended by itself: %w", endOf(p.proc.err))
	default:
	}
	expired := ctx.Done()
	for i, stage := range stopStages {
		_ = p.proc.cmd.Process.Signal(stage.signal) // fails only if it has ended
		timer := time.NewTimer(stage.patience)
		defer timer.Stop()
		select {
		case <-p.proc.done:
			if i == 0 {
				return p.proc.err
			}
			return fmt.Errorf("Postgres had to be stopped by %s", stage.signal)
		case <-timer.C:
		case <-expired:
			expired = nil // the end of ctx shortens the first stage only
		}
	}
	return fmt.Errorf("Postgres (process %d) does not end", p.Pid())
}

func endOf(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func openLog(path string) (*os.File, error) {
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}

// lastLines returns the last lines of the log that were written after mark, to
// be put behind an error.
func lastLines(path string, mark int64) string {
	content, err := os.ReadFile(path)
	if err != nil || int64(len(content)) <= mark {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(content[mark:]), []byte("\n"))
	return "\n  " + string(bytes.Join(lines[max(0, len(lines)-8):], []byte("\n  ")))
}
