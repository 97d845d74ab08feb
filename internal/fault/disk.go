package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// diskSize of a disk that can be filled: a cluster of 40 MB, its WAL, and what a run writes.
const diskSize = "192m"

// disk is a small file system of its own, in memory.
type disk struct{ dir string }

// mountDisk needs the right to mount.
func mountDisk(ctx context.Context, dir string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "mount", "-t", "tmpfs", "-o", "mode=711,size="+diskSize, "latchkey-fault", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mount %s: %w: %s", dir, err, out)
	}
	return &disk{dir}, nil
}

func (d *disk) unmount() error {
	if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("unmount %s: %w: %s", d.dir, err, out)
	}
	return nil
}

// canMount tries it.
func canMount(ctx context.Context, dir string) bool {
	d, err := mountDisk(ctx, filepath.Join(dir, "mount-test"))
	return err == nil && d.unmount() == nil
}

// fill leaves no byte. Whoever writes then is told that no space is left, by the kernel. A disk that could not be
// mounted, nil, can't be filled.
func (d *disk) fill() (lift func() error, err error) {
	if d == nil {
		return nil, nil
	}
	filler := filepath.Join(d.dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		return nil, err
	}
	for _, chunk := range []int{1 << 20, 1 << 12, 1} { // a last page may still have room
		for block := make([]byte, chunk); err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return nil, errors.Join(err, f.Close(), os.Remove(filler))
		}
		err = nil
	}
	return func() error { return os.Remove(filler) }, f.Close()
}
