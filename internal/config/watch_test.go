package config

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// heard is one call of what Watch was given.
type heard struct {
	content string
	err     error
}

// watch watches a file until the test ends, and returns what it hears.
func watch(t *testing.T, path, known string) <-chan heard {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	calls, ended := make(chan heard), make(chan struct{})
	go func() {
		defer close(ended)
		Watch(ctx, path, known, time.Millisecond, func(content string, err error) {
			select {
			case calls <- heard{content, err}:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return calls
}

func next(t *testing.T, calls <-chan heard) heard {
	t.Helper()
	select {
	case h := <-calls:
		return h
	case <-time.After(time.Minute):
		t.Fatal("a change was not heard of")
		return heard{}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func TestWatchHearsOfEachWayToChangeAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	write(t, path, "first\n")
	calls := watch(t, path, "first")
	write(t, path, "written over\n") // had the first content been told of, this would not be next
	if h := next(t, calls); h.content != "written over" || h.err != nil {
		t.Errorf("%+v", h)
	}
	write(t, path+".new", "renamed over")
	rename(t, path+".new", path)
	if h := next(t, calls); h.content != "renamed over" || h.err != nil {
		t.Errorf("%+v", h)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if h := next(t, calls); h.content != "" || h.err == nil {
		t.Errorf("a file that is gone: %+v", h)
	}
	write(t, path, "renamed over") // what it held before is news, after it was gone
	if h := next(t, calls); h.content != "renamed over" || h.err != nil {
		t.Errorf("%+v", h)
	}
}

// Kubernetes mounts secret -> ..data/secret and ..data -> ..time, and swaps the second link: nothing beside the file
// itself is touched.
func TestWatchHearsOfASwappedLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, version := range []string{"..1", "..2"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "secret"), "of "+version)
	}
	symlink(t, "..1", filepath.Join(dir, "..data"))
	symlink(t, filepath.Join("..data", "secret"), filepath.Join(dir, "secret"))
	calls := watch(t, filepath.Join(dir, "secret"), "of ..1")
	symlink(t, "..2", filepath.Join(dir, "..data_tmp"))
	rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
	if h := next(t, calls); h.content != "of ..2" || h.err != nil {
		t.Errorf("%+v", h)
	}
}

// A list of two keys, half written, is a list of one: it must not be taken while it is being written.
func TestWatchWaitsForTheEndOfAWrite(t *testing.T) {
	t.Parallel()
	old, half, whole := look{content: "1:a"}, look{content: "2:b"}, look{content: "2:b,1:a"}
	w := watched{told: old, seen: old}
	for i, step := range []struct {
		now  look
		news bool
	}{
		{old, false}, {look{}, false}, {half, false}, {whole, false}, {whole, true}, {whole, false},
		{half, false}, {whole, false}, {whole, false}, // it was what it is
		{look{problem: "gone"}, false}, {look{problem: "gone"}, true}, {look{problem: "gone"}, false},
		{whole, false}, {whole, true},
	} {
		if got := w.news(step.now); got != step.news {
			t.Errorf("step %d, %+v: news %t", i, step.now, got)
		}
	}
}
