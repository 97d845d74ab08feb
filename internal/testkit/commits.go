package testkit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"sync"

	"github.com/jackc/pgx/v5"
)

// Fate is what happens to one commit.
type Fate int

// The fates of a commit.
const (
	Fine          Fate = iota
	Failed             // the connection breaks before the commit is sent: it did not happen
	FailedButTook      // the server commits, and the connection breaks before its answer is read
)

// ErrFault is what a connection that Commits has broken returns.
var ErrFault = errors.New("a fault of the test")

// Commits breaks connections at commits: the fates of the script in order, then all is fine.
type Commits struct {
	mu    sync.Mutex
	fates []Fate
}

// Script sets what happens to the next commits.
func (f *Commits) Script(fates ...Fate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fates = fates
}

// Install puts the faults into the connections that a configuration will open.
func (f *Commits) Install(cfg *pgx.ConnConfig) {
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &faultyConn{Conn: conn, faults: f}, nil
	}
}

func (f *Commits) next() Fate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.fates) == 0 {
		return Fine
	}
	first := f.fates[0]
	f.fates = f.fates[1:]
	return first
}

// faultyConn looks for commits in what pgx sends.
type faultyConn struct {
	net.Conn

	faults *Commits
}

// commitBind is in the message that runs a commit: behind the unnamed portal, the name that pgx
// gives the prepared statement.
var commitBind = func() []byte {
	sum := sha256.Sum256([]byte("commit"))
	return []byte("\x00stmtcache_" + hex.EncodeToString(sum[:24]) + "\x00")
}()

func (c *faultyConn) Write(p []byte) (int, error) {
	if !bytes.Contains(p, commitBind) {
		return c.Conn.Write(p)
	}
	switch c.faults.next() {
	case Failed:
		_ = c.Close()
		return 0, ErrFault
	case FailedButTook:
		if _, err := c.Conn.Write(p); err != nil {
			return 0, err
		}
		_, err := c.Conn.Read(make([]byte, 1)) // the server has answered, so it has committed
		_ = c.Close()
		if err != nil {
			return 0, err
		}
		return 0, ErrFault
	}
	return c.Conn.Write(p)
}
