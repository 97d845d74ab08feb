package stack

import (
	"errors"
	"os"
	"syscall"
)

// account is the user that the server runs as; on Windows always ourselves.
type account struct {
	name     string
	uid, gid int
}

func supported() error {
	return errors.New("an own Postgres needs Linux, macOS or a BSD: set DATABASE_URL to a server you have")
}

func serverAccount(string) (*account, error)                    { return nil, nil }
func flock(*os.File) (bool, error)                              { return true, nil }
func unlock(*os.File)                                           {}
func private(string, int) error                                 { return supported() }
func sysProcAttr(*account, syscall.Signal) *syscall.SysProcAttr { return nil }
func serves(int, string) bool                                   { return false }
