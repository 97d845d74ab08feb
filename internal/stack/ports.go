package stack

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

// portSteps is how many ports Listen tries.
const portSteps = 100

// wsaAddrInUse is what Windows says for EADDRINUSE, which package syscall does
// not map.
const wsaAddrInUse = syscall.Errno(10048)

// Listen listens on the first free TCP port of host at or above from, stepping
// past those in use, at most 100. From 0 means any free port. It returns the
// listener, not a number: a port that is merely known to be free may be gone by
// the time it is used.
func Listen(host string, from int) (net.Listener, error) {
	if from < 0 || from > 65535 {
		return nil, fmt.Errorf("listen on %s: %d is no port", host, from)
	}
	if from == 0 {
		return net.Listen("tcp", net.JoinHostPort(host, "0"))
	}
	last := min(from+portSteps-1, 65535)
	for port := from; port <= last; port++ {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			return ln, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, wsaAddrInUse) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("listen on %s: all ports from %d to %d are in use", host, from, last)
}
