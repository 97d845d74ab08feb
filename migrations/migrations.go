// Package migrations brings a database's schema up: River's tables by rivermigrate, ours by the
// SQL files of this folder (goose), then the worker role's rights.
//
// Both migrators run one after the other on sessions of one pool while a session outside of it
// holds an advisory lock, because rivermigrate takes none of its own: any number of workers and
// operators may run Up at once, and each finds either nothing or all of it to do.
//
// Code of one release runs before and after each migration: a file here only adds, or removes
// what the release before it stopped using.
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

//go:embed *.sql
var files embed.FS

// AppRole is the database role that the worker runs under.
const AppRole = "latchkey_app"

// lockKey is the advisory lock that Up holds: "latchkey" in ASCII.
const lockKey int64 = 0x6c617463686b6579

const versionTable = "latchkey_migrations"

// Step is one migration, applied or waiting.
type Step struct {
	Line    string // "latchkey" or "river"
	Version int64
	Name    string
	Applied bool
}

// ErrBehind is returned by Check when the database lacks a migration that this binary brings.
var ErrBehind = errors.New("the database schema is behind this binary")

// Up applies what is missing and returns those steps. A step that fails leaves the ones before
// it applied; a second Up goes on from there. The database's user must own the schema and may
// need CREATEROLE for the first run.
func Up(ctx context.Context, pool *pgxpool.Pool) (done []Step, err error) {
	// Not of the pool: one of a single connection, or one that several Ups share, would have none
	// left for the migrators. Closing the session is what surely frees the lock.
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", lockKey); err != nil {
		return nil, fmt.Errorf("wait for another migration to end: %w", err)
	}

	river, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return nil, fmt.Errorf("river migrations: %w", err)
	}
	res, err := river.Migrate(ctx, rivermigrate.DirectionUp, nil)
	if err != nil {
		return nil, fmt.Errorf("river migrations: %w", err)
	}
	for _, v := range res.Versions {
		done = append(done, Step{Line: "river", Version: int64(v.Version), Name: v.Name, Applied: true})
	}

	own, closeOwn, err := provider(pool)
	if err != nil {
		return done, err
	}
	defer closeOwn()
	results, err := own.Up(ctx)
	for _, r := range results {
		done = append(done, Step{Line: "latchkey", Version: r.Source.Version, Name: r.Source.Path, Applied: true})
	}
	if err != nil {
		return done, fmt.Errorf("own migrations: %w", err)
	}
	if err := grant(ctx, conn); err != nil {
		return done, fmt.Errorf("grant rights to %s: %w", AppRole, err)
	}
	pool.Reset() // DDL leaves cached plans behind that answer 0A000
	return done, nil
}

// grant gives the worker's role its rights on River's tables, whatever this version of River made
// of them, and lets it read which migrations ran. It can be repeated.
func grant(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `
DO $$
DECLARE r record;
BEGIN
    FOR r IN SELECT c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = current_schema() AND c.relname LIKE 'river\_%' AND c.relkind IN ('r', 'S') LOOP
        IF r.relkind = 'S' THEN
            EXECUTE format('GRANT USAGE ON SEQUENCE %I TO latchkey_app', r.relname);
        ELSIF r.relname = 'river_migration' THEN
            EXECUTE format('GRANT SELECT ON %I TO latchkey_app', r.relname);
        ELSE
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO latchkey_app', r.relname);
        END IF;
    END LOOP;
    GRANT SELECT ON latchkey_migrations TO latchkey_app;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO latchkey_app', current_schema());
    -- worker run does SET ROLE latchkey_app, which wants a membership (a superuser needs none).
    -- From Postgres 16 on, who creates a role is a member that may not do SET ROLE.
    IF NOT pg_has_role(current_user, 'latchkey_app',
            CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END) THEN
        EXECUTE format('GRANT latchkey_app TO %I', current_user);
    END IF;
END
$$`)
	return err
}

// Status lists the migrations that this binary brings, applied or not, in the order in which Up
// runs them. It only reads, and takes no lock.
func Status(ctx context.Context, pool *pgxpool.Pool) ([]Step, error) {
	river, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return nil, fmt.Errorf("river migrations: %w", err)
	}
	have, err := river.ExistingVersions(ctx)
	if err != nil {
		return nil, fmt.Errorf("read River's migrations: %w", err)
	}
	applied := map[int]bool{}
	for _, v := range have {
		applied[v.Version] = true
	}
	var steps []Step
	for _, v := range river.AllVersions() {
		steps = append(steps, Step{Line: "river", Version: int64(v.Version), Name: v.Name, Applied: applied[v.Version]})
	}

	own, closeOwn, err := provider(pool)
	if err != nil {
		return nil, err
	}
	defer closeOwn()
	versions, err := ownVersions(ctx, pool)
	if err != nil {
		return nil, fmt.Errorf("read our migrations: %w", err)
	}
	for _, src := range own.ListSources() {
		steps = append(steps, Step{Line: "latchkey", Version: src.Version, Name: src.Path, Applied: versions[src.Version]})
	}
	return steps, nil
}

// ownVersions reads goose's table by hand: goose's own status call creates the table, which the
// worker's role may not.
func ownVersions(ctx context.Context, pool *pgxpool.Pool) (map[int64]bool, error) {
	var exists bool
	if err := pool.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, versionTable).Scan(&exists); err != nil || !exists {
		return nil, err
	}
	rows, err := pool.Query(ctx, `SELECT version_id FROM latchkey_migrations WHERE is_applied`)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	applied := make(map[int64]bool, len(list))
	for _, v := range list {
		applied[v] = true
	}
	return applied, err
}

// Check returns ErrBehind, wrapped with what is missing, unless the schema is up to date.
func Check(ctx context.Context, pool *pgxpool.Pool) error {
	steps, err := Status(ctx, pool)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if !s.Applied {
			return fmt.Errorf("%w: %s migration %d (%s) is missing", ErrBehind, s.Line, s.Version, s.Name)
		}
	}
	return nil
}

func provider(pool *pgxpool.Pool) (*goose.Provider, func(), error) {
	db := stdlib.OpenDBFromPool(pool)
	p, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versionTable), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		_ = db.Close()
		return nil, nil, fmt.Errorf("own migrations: %w", err)
	}
	return p, func() { _ = db.Close() }, nil
}
