package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/jobs"
	"latchkey/internal/stack"
	"latchkey/migrations"
)

// settings shows what each of the recommended settings of Postgres does to intake on a database with millions of links, by
// requests with ids all over: all of them, each in turn left at Postgres' default, and none. The server begins anew for
// each, with the links that those before have left, and each round has all of them in turn, beginning with another one.
func (b *bench) settings(ctx context.Context) error {
	links, n, rounds := 5_000_000, 150_000, 3
	if b.short {
		links, n, rounds = 20_000, 2000, 1
	}
	if err := jobs.EnsureStreams(ctx, b.js, true); err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "settings")
	defer func() { _ = stack.RemovePostgres(dir) }()
	if err := withSettings(ctx, dir, postgresSettings, func(pool *pgxpool.Pool) error { return fillPlanned(ctx, pool, links) }); err != nil {
		return err
	}
	choices := settingsChoices()
	for round := range rounds {
		begin := round * len(choices) / rounds
		for _, c := range slices.Concat(choices[begin:], choices[:begin]) {
			if err := withSettings(ctx, dir, c.settings, func(pool *pgxpool.Pool) error { return b.settingsRound(ctx, c, pool, n) }); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	all := choices[0]
	b.goal(true, fmt.Sprintf("intake, %d on %d and more, with all of them", n, links), fmt.Sprintf("%.0f/s, %.0f bytes of log a link", median(all.rates), median(all.wal)), "", "", noGoal)
	for _, c := range choices[1:] {
		b.goal(true, "  "+c.name, fmt.Sprintf("%.0f/s, %.0f bytes", median(c.rates), median(c.wal)), "with all of them", ofRounds("%.2f", ratios(c.rates, all.rates)), noGoal)
	}
	return nil
}

// settingsChoice is a choice of settings and what was measured with it, an entry a round.
type settingsChoice struct {
	name     string
	settings map[string]string

	rates, wal []float64 // links a second; bytes of Postgres' log a link
}

// settingsChoices are all of the recommended, all but one, and none.
func settingsChoices() []*settingsChoice {
	choices := []*settingsChoice{{name: "all", settings: postgresSettings}}
	for _, name := range slices.Sorted(maps.Keys(postgresSettings)) {
		others := maps.Clone(postgresSettings)
		delete(others, name)
		choices = append(choices, &settingsChoice{name: "without " + name, settings: others})
	}
	return append(choices, &settingsChoice{name: "with none of them"})
}

// withSettings starts a server in a folder for as long as do takes.
func withSettings(ctx context.Context, dir string, settings map[string]string, do func(*pgxpool.Pool) error) error {
	pg, err := stack.StartPostgres(ctx, stack.PostgresConfig{Dir: dir, Fsync: true, Settings: settings})
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, pg.URL("postgres")+"&pool_max_conns=16")
	if err == nil {
		err = do(pool)
		pool.Close()
	}
	return errors.Join(err, pg.Stop(ctx))
}

// fillPlanned migrates a database, whose sessions plan as a worker's, and fills it.
func fillPlanned(ctx context.Context, pool *pgxpool.Pool, links int) error {
	if _, err := migrations.Up(ctx, pool); err != nil {
		return err
	}
	if err := planAsWorkers(ctx, pool, "postgres"); err != nil {
		return err
	}
	return fillLinks(ctx, pool, links)
}

func (b *bench) settingsRound(ctx context.Context, c *settingsChoice, pool *pgxpool.Pool, n int) error {
	before, err := walPosition(ctx, pool)
	if err != nil {
		return err
	}
	rate, err := b.intakeRound(ctx, pool, n, runLoops, spread)
	if err != nil {
		return err
	}
	after, err := walPosition(ctx, pool)
	if err != nil {
		return err
	}
	c.rates, c.wal = append(c.rates, rate), append(c.wal, (after-before)/float64(n))
	_, err = pool.Exec(ctx, `TRUNCATE river_job`) // nobody works them
	return err
}
