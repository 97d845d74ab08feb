package testkit

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Invariant 3: what a killed test process left goes; what lives or is about to
// stays.
func TestSweepTakesOnlyWhatIsDead(t *testing.T) {
	t.Parallel()
	admin := Postgres(t)
	leave := func(lock string) string {
		dir, err := os.MkdirTemp("", workPrefix)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		pg := filepath.Join(dir, "pg")
		if err := errors.Join(os.MkdirAll(filepath.Join(pg, "data"), 0o700),
			os.WriteFile(filepath.Join(pg, "lock"), []byte(lock), 0o600)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dead, starting := leave("12345\n"), leave("")
	sweep()
	if _, err := os.Lstat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", dead, err)
	}
	if _, err := os.Lstat(starting); err != nil {
		t.Errorf("the folder of a starting server: %v", err)
	}
	if err := exec(admin, "SELECT 1"); err != nil {
		t.Errorf("our own server: %v", err)
	}
}
