package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// fetchedVersion is the Postgres that FetchPostgres brings.
const fetchedVersion = embedded.V18

// FetchPostgres downloads Postgres binaries into the user's cache and returns
// their folder; a later call finds them there and neither downloads nor writes.
// It tells w when it starts, that it still works, and how much it got. If it
// fails, the error names the other ways to a Postgres.
//
// The download can't be broken off, only left: when ctx ends, FetchPostgres
// returns, and what still arrives goes into the cache.
func FetchPostgres(ctx context.Context, w io.Writer) (string, error) {
	cache, err := cacheFolder()
	if err != nil {
		return "", fmt.Errorf("fetch Postgres: %w: %s", err, waysOut())
	}
	return fetcher{cache: cache, every: 5 * time.Second}.fetch(ctx, w)
}

// fetcher downloads and unpacks by the library embedded-postgres, and uses it for
// nothing else: it can't run a server as root, nor stop one that a killed process
// left.
type fetcher struct {
	cache      string
	repository string        // base URL; empty: the library's own
	every      time.Duration // between signs of life
}

// cacheFolder is where fetched binaries are kept. Root's own cache is closed to
// the user that runs the server for root, so root takes the system's.
func cacheFolder() (string, error) {
	if os.Geteuid() == 0 {
		if runtime.GOOS == "darwin" {
			return "/Library/Caches/latchkey", nil
		}
		return "/var/cache/latchkey", nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "latchkey"), err
}

// fetched is what a download came to.
type fetched struct {
	mb  float64
	err error
}

func (f fetcher) fetch(ctx context.Context, w io.Writer) (string, error) {
	home := filepath.Join(f.cache, "postgres-"+string(fetchedVersion))
	bin := filepath.Join(home, "bin")
	if _, err := versionOf(bin); err == nil {
		return bin, nil
	}
	fmt.Fprintf(w, "Fetching Postgres %s into %s (some 30 MB, once)\n", fetchedVersion, f.cache)
	began := time.Now()
	done := make(chan fetched, 1)
	go func() { done <- f.install(ctx, home) }()
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		select {
		case got := <-done:
			if got.err != nil {
				return "", fmt.Errorf("fetch Postgres: %w: %s", got.err, waysOut())
			}
			fmt.Fprintf(w, "Postgres %s is there: %.1f MB in %s\n", fetchedVersion, got.mb, time.Since(began).Round(time.Second))
			return bin, nil
		case <-tick.C:
			fmt.Fprintf(w, "  still fetching, %s so far\n", time.Since(began).Round(time.Second))
		case <-ctx.Done():
			return "", fmt.Errorf("fetch Postgres: %w: %s", context.Cause(ctx), waysOut())
		}
	}
}

// install downloads and unpacks next to home and renames at the end, so that home
// is whole or absent. One process at a time does it; those that waited find the
// work done.
func (f fetcher) install(ctx context.Context, home string) fetched {
	if err := os.MkdirAll(f.cache, 0o755); err != nil {
		return fetched{err: err}
	}
	lock, err := lockWait(ctx, filepath.Join(f.cache, "lock"))
	if err != nil {
		return fetched{err: err}
	}
	defer lock.release()
	if _, err := versionOf(filepath.Join(home, "bin")); err == nil {
		return fetched{}
	}
	work := filepath.Join(f.cache, "fetching")
	if err := errors.Join(os.RemoveAll(work), os.RemoveAll(home), os.Mkdir(work, 0o755)); err != nil {
		return fetched{err: err}
	}
	defer os.RemoveAll(work)
	mb, err := f.download(work)
	if err != nil {
		return fetched{err: err}
	}
	if _, err := versionOf(filepath.Join(work, "tree", "bin")); err != nil {
		return fetched{err: err}
	}
	return fetched{mb: mb, err: os.Rename(filepath.Join(work, "tree"), home)}
}

// download has the library fetch and unpack into work/tree.
//
// Its one entry, Start, does that first and then makes a cluster. It gets no
// further here: its data folder is to lie below a plain file, which is an error
// to it before it runs any program. That it got as far shows in its runtime
// folder, which it makes between unpacking and the cluster.
func (f fetcher) download(work string) (mb float64, err error) {
	wall, runtimeDir := filepath.Join(work, "wall"), filepath.Join(work, "runtime")
	if err := os.WriteFile(wall, nil, 0o600); err != nil {
		return 0, err
	}
	cfg := embedded.DefaultConfig().
		Version(fetchedVersion).
		Port(0). // it insists that its port is free
		CachePath(work).
		BinariesPath(filepath.Join(work, "tree")).
		RuntimePath(runtimeDir).
		DataPath(filepath.Join(wall, "data")).
		Logger(io.Discard)
	if f.repository != "" {
		cfg = cfg.BinaryRepositoryURL(f.repository)
	}
	err = embedded.NewDatabase(cfg).Start()
	if _, statErr := os.Stat(runtimeDir); statErr != nil {
		return 0, err
	}
	archives, _ := filepath.Glob(filepath.Join(work, "*.txz"))
	for _, a := range archives {
		if fi, err := os.Stat(a); err == nil {
			mb += float64(fi.Size()) / 1e6
		}
	}
	return mb, nil
}
