package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	natsStart = 20 * time.Second // reading large streams back is part of a start
	natsStop  = 10 * time.Second

	// Ceilings, not reservations. All streams of Latchkey lie on disk; memory
	// streams have no business here.
	natsMaxMemory = 64 << 20
	natsMaxStore  = 8 << 30
)

// NATSConfig says where an in-process NATS server lives and listens.
type NATSConfig struct {
	// Dir keeps the streams; the server owns it. Required.
	Dir string
	// Host to listen on. Default: 127.0.0.1.
	Host string
	// Port to listen on; 0 or -1: any free one. Default: 0.
	Port int
	// SyncAlways makes JetStream sync to disk before it acknowledges a publish.
	// Without it a power failure loses up to two minutes of acknowledged
	// requests; with it a single server takes some 3,700 publishes a second.
	SyncAlways bool
	// Logger gets warnings and errors, and notices at debug level. Default: none.
	Logger *slog.Logger
}

// NATS is a running server.
type NATS struct {
	server *server.Server
	lock   *fileLock
	stop   sync.Once
	err    error
}

// StartNATS starts a server with JetStream in this process and returns once it
// takes connections. ErrInUse: another live process owns cfg.Dir.
func StartNATS(ctx context.Context, cfg NATSConfig) (*NATS, error) {
	if cfg.Dir == "" {
		return nil, errors.New("start NATS: no folder given")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	// nats-server itself does not notice a second server on its files.
	lock, err := lockFile(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("start NATS in %s: %w", cfg.Dir, err)
	}
	ns, err := bootNATS(ctx, cfg)
	if err != nil {
		lock.release()
		return nil, fmt.Errorf("start NATS in %s: %w", cfg.Dir, err)
	}
	return &NATS{server: ns, lock: lock}, nil
}

func bootNATS(ctx context.Context, cfg NATSConfig) (*server.Server, error) {
	opts := &server.Options{
		ServerName:         "latchkey",
		Host:               cfg.Host,
		Port:               cfg.Port,
		NoSigs:             true, // this process decides when to stop, and in which order
		NoSystemAccount:    false,
		JetStream:          true,
		StoreDir:           cfg.Dir,
		SyncAlways:         cfg.SyncAlways,
		JetStreamMaxMemory: natsMaxMemory,
		JetStreamMaxStore:  natsMaxStore,
	}
	if opts.Host == "" {
		opts.Host = "127.0.0.1"
	}
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, err
	}
	fatal := &natsLogger{to: cfg.Logger, fatal: make(chan error, 1)}
	ns.SetLoggerV2(fatal, false, false, false)
	go ns.Start()

	ctx, cancel := context.WithTimeoutCause(ctx, natsStart, fmt.Errorf("not ready after %s", natsStart))
	defer cancel()
	err = poll(ctx, func() (bool, error) {
		select {
		case err := <-fatal.fatal:
			return false, err
		default:
			return ns.ReadyForConnections(pollInterval), nil
		}
	})
	if err != nil {
		_ = endNATS(ns)
		return nil, err
	}
	return ns, nil
}

// URL returns what a client connects to.
func (n *NATS) URL() string { return n.server.ClientURL() }

// Stop ends the server, with everything that it acknowledged on disk, and frees
// the folder. Calling it again does nothing and returns the same.
func (n *NATS) Stop() error {
	n.stop.Do(func() {
		n.err = endNATS(n.server)
		n.lock.release()
	})
	return n.err
}

// endNATS bounds the shutdown: it waits for clients' goroutines, and one that
// hangs must not keep the process from ending.
func endNATS(ns *server.Server) error {
	gone := make(chan struct{})
	go func() {
		ns.Shutdown()
		ns.WaitForShutdown()
		close(gone)
	}()
	timer := time.NewTimer(natsStop)
	defer timer.Stop()
	select {
	case <-gone:
		return nil
	case <-timer.C:
		return fmt.Errorf("NATS did not stop within %s", natsStop)
	}
}

// natsLogger hands the server's messages to slog, and a fatal one to the start:
// the server itself would log it and then just never be ready.
type natsLogger struct {
	to    *slog.Logger
	fatal chan error
}

func (l *natsLogger) log(level slog.Level, format string, args []any) {
	if l.to != nil {
		l.to.Log(context.Background(), level, "nats: "+fmt.Sprintf(format, args...))
	}
}

func (l *natsLogger) Noticef(format string, args ...any) { l.log(slog.LevelDebug, format, args) }
func (l *natsLogger) Warnf(format string, args ...any)   { l.log(slog.LevelWarn, format, args) }
func (l *natsLogger) Errorf(format string, args ...any)  { l.log(slog.LevelError, format, args) }
func (l *natsLogger) Debugf(format string, args ...any)  { l.log(slog.LevelDebug, format, args) }
func (l *natsLogger) Tracef(format string, args ...any)  { l.log(slog.LevelDebug, format, args) }

func (l *natsLogger) Fatalf(format string, args ...any) {
	l.log(slog.LevelError, format, args)
	select {
	case l.fatal <- fmt.Errorf(format, args...):
	default: // the first is the cause
	}
}
