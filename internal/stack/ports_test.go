package stack

import (
	"net"
	"testing"
)

func portOf(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

func listen(t *testing.T, from int) net.Listener {
	t.Helper()
	ln, err := Listen("127.0.0.1", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

func TestListenStepsPastPortsInUse(t *testing.T) {
	t.Parallel()
	taken := listen(t, 0)
	if portOf(taken) > 65000 {
		taken = listen(t, 20000)
	}
	next := listen(t, portOf(taken))
	if got, low := portOf(next), portOf(taken); got <= low || got >= low+portSteps {
		t.Errorf("from %d came %d", low, got)
	}
}

func TestListenRefuses(t *testing.T) {
	t.Parallel()
	for _, from := range []int{-1, 65536} {
		if _, err := Listen("127.0.0.1", from); err == nil {
			t.Errorf("%d is taken for a port", from)
		}
	}
	// An error that is not "in use" is no reason to step on.
	if _, err := Listen("203.0.113.1", 20000); err == nil {
		t.Error("listens on an address that is not ours")
	}
}
