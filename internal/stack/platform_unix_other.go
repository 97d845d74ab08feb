//go:build unix && !linux

package stack

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// sysProcAttr puts the child into a process group of its own, under the server's
// user. These systems can't signal it on our death.
func sysProcAttr(as *account, _ syscall.Signal) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if as != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(as.uid), Gid: uint32(as.gid)}
	}
	return attr
}

// serves reports whether the process is a Postgres of this data folder, by its
// command line: the postmaster keeps the one that we gave it.
func serves(pid int, data string) bool {
	out, err := exec.Command("ps", "-ww", "-o", "args=", "-p", strconv.Itoa(pid)).Output()
	args := " " + strings.TrimSpace(string(out)) + " "
	return err == nil && strings.Contains(args, "/postgres ") && strings.Contains(args, " -D "+data+" ")
}
