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
// Such a pooler gives an idle client's session to the next one that asks. So while one client waits between two
// statements, another begins a transaction: either it gets the first one's session, or the first one finds itself on
// another. Three rounds see both whether the pooler hands out the session used last or the one idle for longest.
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

func compareSessions(ctx context.Context, first, second *pgx.Conn) error {
	before, err := sessionOf(ctx, first)
	if err != nil {
		return err
	}
	if _, err := second.Exec(ctx, "BEGIN", pgx.QueryExecModeSimpleProtocol); err != nil {
		if answer, ok := errors.AsType[*pgconn.PgError](err); ok && answer.Code == "08P01" { // "transaction blocks not allowed in statement pooling mode"
			return errPooled
		}
		return fmt.Errorf("a transaction through the pooler: %w", err)
	}
	others, err := sessionOf(ctx, second)
	if err != nil {
		return err
	}
	if others == before {
		return errPooled
	}
	after, err := sessionOf(ctx, first)
	if err != nil {
		return err
	}
	if after != before {
		return errPooled
	}
	_, err = second.Exec(ctx, "ROLLBACK", pgx.QueryExecModeSimpleProtocol)
	return err
}

// sessionOf asks by the simple protocol, which prepares nothing.
func sessionOf(ctx context.Context, conn *pgx.Conn) (pid uint32, err error) {
	err = conn.QueryRow(ctx, "SELECT pg_backend_pid()", pgx.QueryExecModeSimpleProtocol).Scan(&pid)
	return pid, err
}
