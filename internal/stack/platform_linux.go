package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// sysProcAttr puts the child into a process group of its own, under the server's
// user, with a signal on our death.
func sysProcAttr(as *account, deathSig syscall.Signal) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: deathSig}
	if as != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(as.uid), Gid: uint32(as.gid)}
	}
	return attr
}

// serves reports whether the process is a Postgres of this data folder: by its
// program, and by its current folder, which Postgres sets to its data.
func serves(pid int, data string) bool {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || strings.TrimSuffix(filepath.Base(program), " (deleted)") != "postgres" {
		return false
	}
	cwd, err1 := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	dir, err2 := os.Stat(data)
	return err1 == nil && err2 == nil && os.SameFile(cwd, dir)
}
