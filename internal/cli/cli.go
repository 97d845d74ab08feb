// Package cli is what both binaries' command lines share: one line of error that says what to do,
// and exit codes 0 done, 1 failed, 2 wrong usage.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Version of both binaries; semantic versioning, as a NATS micro service needs it.
const Version = "0.1.0"

// ErrSilent ends a command with exit code 1 when all has been said already.
var ErrSilent = errors.New("failed")

// Main runs a command and returns the exit code. SIGINT and SIGTERM end its context; a second
// one ends the process at once.
func Main(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	root.Version = Version
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(os.Stdout) // cobra's Println would take stderr, and $(worker keys new) would be empty
	// What fails before a command's own code runs is wrong usage: flags, arguments, its name.
	started := false
	eachCommand(root, func(cmd *cobra.Command) {
		if run := cmd.RunE; run != nil {
			cmd.RunE = func(cmd *cobra.Command, args []string) error { started = true; return run(cmd, args) }
		}
		if !cmd.Runnable() && cmd.HasSubCommands() {
			refuseUnknown(cmd)
		}
	})
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrSilent):
		return 1
	case !started:
		fmt.Fprintf(os.Stderr, "%s: %v; see '%s --help'\n", root.Name(), err, cmd.CommandPath())
		return 2
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", root.Name(), err)
	if _, ok := errors.AsType[*UsageError](err); ok {
		return 2
	}
	if exit, ok := errors.AsType[*ExitError](err); ok {
		return exit.Code
	}
	return 1
}

func eachCommand(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, sub := range cmd.Commands() {
		eachCommand(sub, f)
	}
}

// refuseUnknown makes a group of commands refuse a word that is none of them; cobra would print
// the group's help and be content.
func refuseUnknown(group *cobra.Command) {
	group.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
		}
		return nil
	}
	group.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// UsageError is returned by a command whose arguments don't go together.
type UsageError struct{ Text string }

func (e *UsageError) Error() string { return e.Text }

// ExitError ends a command with an exit code of its own, where 1 says something else.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }
func (e *ExitError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }
