// Package migrations brings a database's schema up: River's tables by rivermigrate, ours by the
// SQL files of this folder (goose), then the worker role's rights.
//
// Both migrators run one after the other on sessions of one pool while a session outside of it
// holds an advisory lock, because rivermigrate takes none of its own: any number of workers and
// operators may run Up at once, and each finds either nothing or all of it to do.
//
// Code of one release runs before and after each migration: a file here only adds, or removes
// what the release before it stopped using. 'make rolling' tries it.
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

	if err := closeSchema(ctx, conn); err != nil {
		return nil, fmt.Errorf("close the schema to others: %w", err)
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
//
// It runs with the migrating user's rights, so nothing in it is looked up on a path that another
// role can write to: names are qualified, and the statements are put together here.
func grant(ctx context.Context, conn *pgx.Conn) error {
	var schema, user string
	if err := conn.QueryRow(ctx, `SELECT pg_catalog.current_schema(), current_user`).Scan(&schema, &user); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `SET search_path = pg_catalog`); err != nil {
		return err
	}
	rows, err := conn.Query(ctx, `SELECT c.relname::text, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname LIKE 'river\_%' AND c.relkind IN ('r', 'S') ORDER BY c.relname`, schema)
	if err != nil {
		return err
	}
	var name, kind string
	statements := []string{"GRANT USAGE ON SCHEMA " + pgx.Identifier{schema}.Sanitize() + " TO " + AppRole,
		"GRANT SELECT ON " + pgx.Identifier{schema, versionTable}.Sanitize() + " TO " + AppRole}
	if _, err := pgx.ForEachRow(rows, []any{&name, &kind}, func() error {
		on := pgx.Identifier{schema, name}.Sanitize()
		switch {
		case kind == "S":
			statements = append(statements, "GRANT USAGE ON SEQUENCE "+on+" TO "+AppRole)
		case name == "river_migration":
			statements = append(statements, "GRANT SELECT ON "+on+" TO "+AppRole)
		default:
			statements = append(statements, "GRANT SELECT, INSERT, UPDATE, DELETE ON "+on+" TO "+AppRole)
		}
		return nil
	}); err != nil {
		return err
	}
	// worker run does SET ROLE latchkey_app, which wants a membership (a superuser needs none).
	// From Postgres 16 on, who creates a role is a member that may not do SET ROLE.
	var member bool
	if err := conn.QueryRow(ctx, `SELECT pg_has_role(current_user, $1,
		CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)`, AppRole).Scan(&member); err != nil {
		return err
	}
	if !member {
		statements = append(statements, "GRANT "+AppRole+" TO "+pgx.Identifier{user}.Sanitize())
	}
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s (an administrator can run it): %w", sql, err)
		}
	}
	return nil
}

// closeSchema takes away everybody's right to create objects in the schema, which Postgres gave in
// public up to version 14: whoever has it, the worker's role included, can put a function in the
// way of the migrations, which run with the owner's rights. Where the schema is not ours to close,
// 'worker check' says so.
func closeSchema(ctx context.Context, conn *pgx.Conn) error {
	var schema string
	var open bool
	err := conn.QueryRow(ctx, `SELECT pg_catalog.current_schema(), EXISTS (
		SELECT FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a
		WHERE n.nspname = pg_catalog.current_schema() AND a.grantee = 0 AND a.privilege_type = 'CREATE')`).Scan(&schema, &open)
	if err != nil || !open {
		return err
	}
	_, err = conn.Exec(ctx, "REVOKE CREATE ON SCHEMA "+pgx.Identifier{schema}.Sanitize()+" FROM PUBLIC")
	return err
}

// ErrOpenSchema is returned by CheckRights.
var ErrOpenSchema = errors.New("everybody may create objects in the schema, so the worker could reach the owner's rights; run 'REVOKE CREATE ON SCHEMA public FROM PUBLIC' as its owner")

// CheckRights returns ErrOpenSchema where the worker's role may create objects beside our tables.
func CheckRights(ctx context.Context, pool *pgxpool.Pool) error {
	var open bool
	if err := pool.QueryRow(ctx, `SELECT has_schema_privilege($1, current_schema(), 'CREATE')`, AppRole).Scan(&open); err != nil {
		return fmt.Errorf("read the role's rights: %w", err)
	}
	if open {
		return ErrOpenSchema
	}
	return nil
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
