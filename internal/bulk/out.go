package bulk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// OutFile is the file of links. Links are secrets, so it is its owner's alone. It is written beside its
// place, as NAME.partial, and takes its place once it is complete: a file NAME is never half of what it should be.
type OutFile struct {
	*os.File
	name string // empty = not a file that can be replaced, such as /dev/null
}

// Create begins a file of links.
func Create(name string) (*OutFile, error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		if info.IsDir() {
			return nil, fmt.Errorf("%s is a folder", name)
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		return &OutFile{File: f}, err
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// What a killed run left there is replaced, not followed.
	partial := name + ".partial"
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &OutFile{File: f, name: name}, nil
}

// Finish puts the file in its place.
func (f *OutFile) Finish() error {
	if f.name == "" {
		return f.Close()
	}
	// On disk before it has its name: a crash of the machine leaves the old file or the whole new one.
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.File.Name(), f.name)
}

// Keep leaves a file that is not complete beside its place, and returns its name.
func (f *OutFile) Keep() (string, error) { return f.File.Name(), errors.Join(f.Sync(), f.Close()) }

// Discard gives up a file that nothing was written to.
func (f *OutFile) Discard() {
	_ = f.Close()
	if f.name != "" {
		_ = os.Remove(f.File.Name())
	}
}
