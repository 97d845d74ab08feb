package portal

import (
	"bytes"
	"context"
	"net"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

// fate is what happens to one commit.
type fate int

const (
	fine          fate = iota
	failed             // the connection breaks before the commit is sent: it did not happen
	failedButTook      // the server commits, and the connection breaks before its answer is read
)

// commitFaults breaks connections at commits: the next fates in order, then all is fine.
type commitFaults struct {
	mu    sync.Mutex
	fates []fate
}

func (f *commitFaults) script(fates ...fate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fates = fates
}

func (f *commitFaults) next() fate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.fates) == 0 {
		return fine
	}
	first := f.fates[0]
	f.fates = f.fates[1:]
	return first
}

// dial wraps the dialer of a pool.
func (f *commitFaults) dial(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &faultyConn{Conn: conn, faults: f}, nil
	}
}

// faultyConn looks for commits in what pgx sends: a simple query, alone in its packet.
type faultyConn struct {
	net.Conn

	faults *commitFaults
}

func (c *faultyConn) Write(p []byte) (int, error) {
	if !bytes.Contains(p, []byte("commit\x00")) {
		return c.Conn.Write(p)
	}
	switch c.faults.next() {
	case failed:
		_ = c.Close()
		return 0, errFault
	case failedButTook:
		if _, err := c.Conn.Write(p); err != nil {
			return 0, err
		}
		_, err := c.Conn.Read(make([]byte, 1)) // the server has answered, so it has committed
		_ = c.Close()
		if err != nil {
			return 0, err
		}
		return 0, errFault
	}
	return c.Conn.Write(p)
}
