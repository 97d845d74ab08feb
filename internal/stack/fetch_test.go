//go:build unix

package stack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// repository serves the archive under every name that ends like one, with its
// checksum, and counts the downloads.
func repository(t *testing.T, archive []byte) (url string, downloads *atomic.Int32) {
	t.Helper()
	downloads = new(atomic.Int32)
	sum := sha256.Sum256(archive)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, ".jar"):
			downloads.Add(1)
			_, _ = w.Write(archive)
		case strings.HasSuffix(r.URL.Path, ".sha256"):
			_, _ = io.WriteString(w, hex.EncodeToString(sum[:]))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(func() {
		srv.Close()
		http.DefaultClient.CloseIdleConnections() // the library's connections
	})
	return srv.URL, downloads
}

// fakeArchive is a jar with a tar.xz of scripts for Postgres's programs.
func fakeArchive(t *testing.T, programs ...string) []byte {
	t.Helper()
	var tarred bytes.Buffer
	tw := tar.NewWriter(&tarred)
	for _, name := range programs {
		script := "#!/bin/sh\necho '" + name + " (PostgreSQL) 18.3'\n"
		// Without a mode of its own a folder would be made by the file's path.
		if err := tw.WriteHeader(&tar.Header{Name: "bin/" + name, Mode: 0o755, Size: int64(len(script))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, script); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	zw := zip.NewWriter(&jar)
	f, err := zw.Create("postgres-test.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(xzStored(tarred.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return jar.Bytes()
}

// xzStored wraps data (at most 64 KB) as an xz stream without compressing: one
// block of one stored LZMA2 chunk. The standard library has no xz.
func xzStored(data []byte) []byte {
	le := binary.LittleEndian
	crc := func(b []byte) []byte { return le.AppendUint32(nil, crc32.ChecksumIEEE(b)) }
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
	flags := []byte{0, 1} // check: CRC32

	header := []byte{2, 0, 0x21, 1, 0, 0, 0, 0} // 12 bytes with its CRC; LZMA2, smallest dictionary
	block := append(header, crc(header)...)
	block = append(block, 1) // stored, dictionary reset
	block = append(binary.BigEndian.AppendUint16(block, uint16(len(data)-1)), data...)
	block = append(block, 0) // end
	unpadded := len(block) + 4
	block = append(pad(block), crc(data)...)

	index := binary.AppendUvarint(binary.AppendUvarint([]byte{0, 1}, uint64(unpadded)), uint64(len(data)))
	index = pad(index)
	index = append(index, crc(index)...)

	footer := append(le.AppendUint32(nil, uint32(len(index)/4-1)), flags...)
	out := append([]byte("\xfd7zXZ\x00"), flags...)
	out = append(out, crc(flags)...)
	out = append(append(out, block...), index...)
	out = append(append(out, crc(footer)...), footer...)
	return append(out, "YZ"...)
}

// fetcherOf's tests do not run in parallel, for the reason that fakeBin gives.
func fetcherOf(t *testing.T, url string) fetcher {
	return fetcher{cache: filepath.Join(t.TempDir(), "cache"), repository: url, every: time.Hour}
}

func TestFetchBringsTheProgramsOnce(t *testing.T) {
	url, downloads := repository(t, fakeArchive(t, "initdb", "pg_ctl", "postgres"))
	f := fetcherOf(t, url)
	var bins [3]string
	var wg sync.WaitGroup
	for i := range bins { // at the same time: one downloads, the others wait
		wg.Go(func() {
			var err error
			if bins[i], err = f.fetch(t.Context(), io.Discard); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := versionOf(bins[0]); err != nil || bins[1] != bins[0] || bins[2] != bins[0] {
		t.Fatalf("got %q, %v", bins, err)
	}
	var out strings.Builder
	if _, err := f.fetch(t.Context(), &out); err != nil || out.Len() != 0 {
		t.Errorf("with the cache filled: %v, says %q", err, out.String())
	}
	if n := downloads.Load(); n != 1 {
		t.Errorf("downloaded %d times, want once", n)
	}
	if left, _ := filepath.Glob(filepath.Join(f.cache, "fetching*")); len(left) > 0 {
		t.Errorf("%q is left in the cache", left)
	}
}

func TestFetchTellsWhatItDoes(t *testing.T) {
	archive := fakeArchive(t, "initdb", "pg_ctl", "postgres")
	waiting := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, ".jar") {
			http.NotFound(w, r)
			return
		}
		<-waiting
		_, _ = w.Write(archive)
	}))
	defer srv.Close()
	f := fetcherOf(t, srv.URL)
	f.every = time.Millisecond
	w := &watcher{until: "still fetching", seen: waiting}
	if _, err := f.fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Fetching Postgres 18", "still fetching", " MB in "} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("%q is not in %q", want, w.String())
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// watcher closes seen when a text was written.
type watcher struct {
	strings.Builder
	until string
	seen  chan struct{}
}

func (w *watcher) Write(p []byte) (int, error) {
	before := strings.Contains(w.String(), w.until)
	n, err := w.Builder.Write(p)
	if !before && strings.Contains(w.String(), w.until) {
		close(w.seen)
	}
	return n, err
}

func TestFetchThatFailsNamesTheWaysOut(t *testing.T) {
	incomplete, _ := repository(t, fakeArchive(t, "initdb", "pg_ctl"))
	broken, _ := repository(t, []byte("this is no archive"))
	nothing := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(nothing.Close)
	dead := httptest.NewServer(nil)
	dead.Close()
	for name, url := range map[string]string{"incomplete": incomplete, "broken": broken, "empty": nothing.URL, "dead": dead.URL} {
		f := fetcherOf(t, url)
		_, err := f.fetch(t.Context(), io.Discard)
		if err == nil || !strings.Contains(err.Error(), "DATABASE_URL") || !strings.Contains(err.Error(), "PG_BIN") {
			t.Errorf("%s: %v", name, err)
		}
		left, _ := os.ReadDir(f.cache)
		for _, e := range left {
			if e.Name() != "lock" {
				t.Errorf("%s: %s is left in the cache", name, e.Name())
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestFetchCanBeLeft(t *testing.T) {
	release, asked := make(chan struct{}), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-release
		http.NotFound(w, r)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	f := fetcherOf(t, srv.URL)
	go func() {
		<-asked
		cancel()
	}()
	if _, err := f.fetch(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	srv.Close()
	// The rest of the work is done when it gives the lock back.
	lock, err := lockWait(t.Context(), filepath.Join(f.cache, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	lock.release()
	http.DefaultClient.CloseIdleConnections()
}
