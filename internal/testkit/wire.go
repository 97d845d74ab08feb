package testkit

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// Write is one write of a client's as it looks on the wire.
type Write struct {
	// Sent stands in this order in what the client sends on one connection; with the last of it the write may
	// take effect, and not before.
	Sent []string
	// Answer stands in what the server sends then: the write took effect.
	Answer string
	// Probe is sent behind Sent, for a write that the server doesn't answer. What the client sends after it is dropped.
	Probe string
}

// CommitOf is the commit, on a Postgres connection, of the first transaction that sends mark.
func CommitOf(mark string) Write {
	return Write{Sent: []string{mark, string(commitBind)}, Answer: "COMMIT\x00"}
}

// Wire is in the path between a client and its server, and breaks the connection at the write that it was told.
// All else passes. It reads plain bytes: there must be no TLS.
type Wire struct {
	Addr string // host:port, for the client

	network, server string
	listener        net.Listener
	ended           sync.WaitGroup

	mu    sync.Mutex
	open  map[net.Conn]bool // nil once the test is over
	fault *wireFault
}

// wireFault is what Break was told; it strikes once.
type wireFault struct {
	write Write
	fate  Fate
	then  func()
	done  chan struct{}
}

// NewWire passes connections to a server on until the end of the test.
func NewWire(t testing.TB, network, server string) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{Addr: l.Addr().String(), network: network, server: server, listener: l, open: map[net.Conn]bool{}}
	w.ended.Go(w.serve)
	t.Cleanup(w.close)
	return w
}

// Break has the next such write fail: Failed cuts its connection before the server has it, FailedButTook once the
// server has answered, in place of the answer. then runs ahead of the cut; nil = nothing. What it returns is closed after it.
func (w *Wire) Break(write Write, fate Fate, then func()) (struck <-chan struct{}) {
	f := &wireFault{write, fate, then, make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
	return f.done
}

func (w *Wire) serve() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial(w.network, w.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		c := &wireConn{wire: w, client: client, server: server}
		if !w.keep(client, server) {
			c.cut()
			return
		}
		w.ended.Go(c.ask)
		w.ended.Go(c.answer)
	}
}

func (w *Wire) keep(conns ...net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		return false
	}
	for _, conn := range conns {
		w.open[conn] = true
	}
	return true
}

func (w *Wire) close() {
	_ = w.listener.Close()
	w.mu.Lock()
	for conn := range w.open {
		_ = conn.Close()
	}
	w.open = nil
	w.mu.Unlock()
	w.ended.Wait()
}

func (w *Wire) forget(conns ...net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, conn := range conns {
		delete(w.open, conn)
	}
}

// armed is the fault that waits for its write.
func (w *Wire) armed() *wireFault {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault
}

// claim makes the fault a connection's own, unless another one was first.
func (w *Wire) claim(f *wireFault) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fault != f {
		return false
	}
	w.fault = nil
	return true
}

// wireConn is one connection through a Wire.
type wireConn struct {
	wire           *Wire
	client, server net.Conn

	fault *wireFault // the one that sent is searched for
	sent  []byte     // by the client since it was told

	mu       sync.Mutex
	struck   *wireFault // the one whose answer is waited for
	answered []byte     // since then, and kept from the client
}

// ask passes on what the client sends, up to the end of either side.
func (c *wireConn) ask() {
	defer c.cut()
	chunk := make([]byte, 64<<10)
	for probed := false; !probed; {
		n, err := c.client.Read(chunk)
		if err != nil {
			return
		}
		pass := chunk[:n]
		f, behind := c.search(pass)
		switch {
		case f == nil:
		case f.fate == Failed:
			c.end(f)
			return
		default:
			c.await(f)
			if f.write.Probe != "" {
				pass, probed = append(pass[:n-behind:n-behind], f.write.Probe...), true
			}
		}
		if _, err := c.server.Write(pass); err != nil {
			return
		}
	}
	_, _ = io.Copy(io.Discard, c.client) // until answer cuts it
}

// search looks for the write that is to fail. What comes together with its last bytes has not been sent yet, so
// without them the write can't take effect, however TCP has cut it to pieces. behind is how much of the chunk follows.
func (c *wireConn) search(chunk []byte) (found *wireFault, behind int) {
	f := c.wire.armed()
	if f != c.fault {
		c.fault, c.sent = f, nil
	}
	if f == nil {
		return nil, 0
	}
	c.sent = append(c.sent, chunk...)
	rest := c.sent
	for _, part := range f.write.Sent {
		i := bytes.Index(rest, []byte(part))
		if i < 0 {
			return nil, 0
		}
		rest = rest[i+len(part):]
	}
	if !c.wire.claim(f) {
		return nil, 0
	}
	return f, len(rest)
}

// answer passes on what the server sends. The answer of a write that is to fail, and all behind it, is not: the
// connection is cut in its place.
func (c *wireConn) answer() {
	defer c.cut()
	chunk := make([]byte, 64<<10)
	for {
		n, err := c.server.Read(chunk)
		if err != nil {
			return
		}
		f, complete := c.swallow(chunk[:n])
		if complete {
			c.end(f)
			return
		}
		if f == nil {
			if _, err := c.client.Write(chunk[:n]); err != nil {
				return
			}
		}
	}
}

// await has the answer of a write kept from the client.
func (c *wireConn) await(f *wireFault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.struck = f
}

func (c *wireConn) swallow(chunk []byte) (f *wireFault, complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.struck == nil {
		return nil, false
	}
	c.answered = append(c.answered, chunk...)
	return c.struck, bytes.Contains(c.answered, []byte(c.struck.write.Answer))
}

// end is what befalls the write.
func (c *wireConn) end(f *wireFault) {
	if f.then != nil {
		f.then()
	}
	c.cut()
	close(f.done)
}

func (c *wireConn) cut() {
	_ = c.client.Close()
	_ = c.server.Close()
	c.wire.forget(c.client, c.server)
}
