// Command rolling replaces the workers of one release by those of the next, while requests and clicks stream in, and
// counts what came of them. For each migration it builds the last commit before it (old) and the one that brought it
// (new; for the newest migration, what lies in this folder), starts two old replicas, runs the new 'worker migrate',
// lets the old ones work on the new schema, and replaces them one by one by SIGTERM.
//
// It fails unless every request that was accepted became one link with one link.issued, every create got the same link
// at every replica, every click came to the portal, every started click has its outcome, and every event is in
// PORTAL_EVENTS. Clicks go through a load balancer that goes by /readyz and passes a refused connection on to the other
// replica, as proxies do. A click that meets the migration's lock is pressed again, as its page does by itself.
//
// The first migration has no release before it. A clone without the history has no old release to build: it says NOT RUN, and
// fails nothing: where changes are checked, clones are shallow and may have no way to the rest.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"latchkey/internal/stack"
)

func main() {
	newest := flag.Bool("newest", false, "only the newest migration")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rolling(ctx, *newest); err != nil {
		fmt.Fprintln(os.Stderr, "rolling:", err)
		os.Exit(1)
	}
}

func rolling(ctx context.Context, newest bool) error {
	shallow, err := git(ctx, "rev-parse", "--is-shallow-repository")
	if err != nil {
		return err
	}
	if shallow == "true" {
		fmt.Println("NOT RUN: this clone lacks the history, so there is no old release to build, and nothing is known of replacing it; 'git fetch --unshallow' brings the history")
		return nil
	}
	steps, err := findSteps(ctx)
	if err != nil {
		return err
	}
	if newest {
		steps = steps[len(steps)-1:]
	}
	var failed []string
	for _, s := range steps {
		if err := s.run(ctx); err != nil {
			fmt.Printf("  FAILED: %v\n", err)
			failed = append(failed, s.migration)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("old and new don't work on one database over %s", strings.Join(failed, ", "))
	}
	return nil
}

// step is a migration with the releases on both sides of it.
type step struct {
	migration string
	before    string // commit
	after     string // commit, or "" for this folder
}

// findSteps returns those of all migrations but the first, in order.
func findSteps(ctx context.Context) (steps []step, err error) {
	files, err := filepath.Glob("migrations/*.sql") // sorted
	if err != nil || len(files) < 2 {
		return nil, fmt.Errorf("fewer than two migrations in migrations/; run this in the repository's root: %w", err)
	}
	for i, file := range files[1:] {
		commits, err := git(ctx, "log", "--diff-filter=A", "--format=%H", "--", file)
		if err != nil {
			return nil, err
		}
		s := step{migration: filepath.Base(file), before: "HEAD"} // not committed yet
		if list := strings.Fields(commits); len(list) > 0 {
			added := list[len(list)-1]
			s.before, s.after = added+"^", added
		}
		if i == len(files)-2 {
			s.after = ""
		}
		steps = append(steps, s)
	}
	return steps, nil
}

func (s step) run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "latchkey-rolling-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o711); err != nil { // run by root, Postgres is another user, who must be able to pass
		return err
	}
	before, err := build(ctx, dir, "old", s.before)
	if err != nil {
		return err
	}
	after, err := build(ctx, dir, "new", s.after)
	if err != nil {
		return err
	}
	defer func() { _ = stack.RemovePostgres(filepath.Join(dir, "pg")) }() // run by root, its data may lie elsewhere
	d, err := deploy(ctx, dir)
	if err != nil {
		return err
	}
	defer d.stop()
	fmt.Printf("%s: from %s to %s\n", s.migration, describe(ctx, s.before), describe(ctx, s.after))
	return d.replace(ctx, before, after)
}

// build returns the worker of a commit, or of this folder.
func build(ctx context.Context, dir, name, commit string) (binary string, err error) {
	source := "."
	if commit != "" {
		source = filepath.Join(dir, name+"-source")
		archive := source + ".tar"
		if _, err := git(ctx, "archive", "--output="+archive, commit); err != nil {
			return "", err
		}
		if err := os.Mkdir(source, 0o755); err != nil {
			return "", err
		}
		if err := command(ctx, "", "tar", "-xf", archive, "-C", source); err != nil {
			return "", err
		}
	}
	binary = filepath.Join(dir, name+"-worker")
	return binary, command(ctx, source, "go", "build", "-buildvcs=false", "-o", binary, "./cmd/worker")
}

func describe(ctx context.Context, commit string) string {
	if commit == "" {
		return "this folder"
	}
	line, err := git(ctx, "log", "-1", "--format=%h of %ad", "--date=short", commit)
	if err != nil {
		return commit
	}
	return line
}

func git(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "git", args...).Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, out)
	}
	return nil
}
