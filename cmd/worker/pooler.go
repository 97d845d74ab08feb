package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

var errPooled = errors.New("DATABASE_URL leads to a pooler that gives each transaction another session (PgBouncer's pool_mode transaction or statement), and SET ROLE, LISTEN and prepared statements need one that stays; set pool_mode = session for this database, or connect to Postgres directly")

// checkSessions refuses a pooler whose sessions don't stay: the worker would run statements under
// another role and other settings than it set, and notice now and then at most.
//
// Such a pooler gives an idle client's server to whoever asks next. So one client asks for its session again and again,
// with another client's transaction in between: where the pooler hands out the server used last, the other one gets
// the first one's; where it hands out the one idle for longest, the first one itself comes to another. Several rounds,
// because others use the pooler meanwhile.
func checkSessions(ctx context.Context, pool *pgxpool.Pool) error {
	first, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("database: %w", redactURL(err))
	}
	defer first.Release()
	session, err := sessionOf(ctx, first.Conn())
	if err != nil {
		return fmt.Errorf("ask for the database session: %w", err)
	}
	if session == first.Conn().PgConn().PID() {
		return nil // Postgres itself: a pooler gives its clients numbers of its own
	}
	// Not of the pool, which may be one of a single connection.
	second, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("a second connection through the pooler: %w", redactURL(err))
	}
	defer func() { _ = second.Close(context.WithoutCancel(ctx)) }()
	for range 3 {
		if err := compareSessions(ctx, first.Conn(), second); err != nil {
			return err
		}
	}
	return nil
}

// compareSessions returns errPooled where the first client's session changes, or is the second one's too.
func compareSessions(ctx context.Context, first, second *pgx.Conn) error {
	own, err := sessionOf(ctx, first)
	if err != nil {
		return err
	}
	if err := wantSession(ctx, first, own, true); err != nil {
		return err
	}
	if _, err := second.Exec(ctx, "BEGIN", pgx.QueryExecModeSimpleProtocol); err != nil {
		if answer, ok := errors.AsType[*pgconn.PgError](err); ok && answer.Code == "08P01" { // "transaction blocks not allowed in statement pooling mode"
			return errPooled
		}
		return fmt.Errorf("a transaction through the pooler: %w", err)
	}
	if err := wantSession(ctx, second, own, false); err != nil {
		return err
	}
	if err := wantSession(ctx, first, own, true); err != nil {
		return err
	}
	_, err = second.Exec(ctx, "ROLLBACK", pgx.QueryExecModeSimpleProtocol)
	return err
}

func wantSession(ctx context.Context, conn *pgx.Conn, session uint32, same bool) error {
	now, err := sessionOf(ctx, conn)
	if err == nil && (now == session) != same {
		return errPooled
	}
	return err
}

// sessionOf asks by the simple protocol, which prepares nothing.
func sessionOf(ctx context.Context, conn *pgx.Conn) (pid uint32, err error) {
	err = conn.QueryRow(ctx, "SELECT pg_backend_pid()", pgx.QueryExecModeSimpleProtocol).Scan(&pid)
	return pid, err
}
