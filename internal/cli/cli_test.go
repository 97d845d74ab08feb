package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"
)

// helperVar makes this test binary the command whose exit codes are looked at.
const helperVar = "LATCHKEY_CLI_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(helperVar) != "" {
		os.Exit(Main(testTree()))
	}
	goleak.VerifyTestMain(m)
}

func testTree() *cobra.Command {
	root := &cobra.Command{Use: "tool", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { cmd.Println("root"); return nil }}
	returns := func(name string, err error) *cobra.Command {
		return &cobra.Command{Use: name, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return err }}
	}
	needs := returns("needs", nil)
	needs.Flags().String("id", "", "")
	needs.Flags().Int("number", 0, "")
	needs.Flags().Bool("a", false, "")
	needs.Flags().Bool("b", false, "")
	_ = needs.MarkFlagRequired("id")
	needs.MarkFlagsMutuallyExclusive("a", "b")
	group := &cobra.Command{Use: "group", Short: "A group of commands"}
	group.AddCommand(returns("one", nil))
	waits := &cobra.Command{Use: "waits", RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Println("waiting")
		<-cmd.Context().Done()
		fmt.Println("stopped")
		return nil
	}}
	root.AddCommand(needs, group, waits, returns("fails", errors.New("the disk is full")), returns("silent", ErrSilent),
		returns("wrapped", fmt.Errorf("more: %w", ErrSilent)), returns("usage", Usagef("name one of %s and %s", "a", "b")),
		returns("own", fmt.Errorf("no answer: %w", &ExitError{3, errors.New("the line is dead")})))
	return root
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), helperVar+"=1")
	return cmd
}

func TestExitCodesAndMessages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // parts
	}{
		{"", 0, "root\n", ""},
		{"--help", 0, "Usage:", ""},
		{"--version", 0, "tool " + Version + "\n", ""},
		{"group", 0, "one", ""},
		{"group one", 0, "", ""},
		{"needs --id x", 0, "", ""},
		{"fails", 1, "", "tool: the disk is full\n"},
		{"silent", 1, "", ""},
		{"wrapped", 1, "", ""},
		{"own", 3, "", "tool: no answer: the line is dead\n"},
		{"usage", 2, "", "tool: name one of a and b"},
		{"unknown", 2, "", `unknown command "unknown"`},
		{"fail", 2, "", "unknown command"},
		{"group two", 2, "", `unknown command "two" for "tool group"`},
		{"fails --nope", 2, "", "--nope"},
		{"fails extra", 2, "", `"extra"`},
		{"needs", 2, "", `"id"`},
		{"needs --id", 2, "", "--id"},
		{"needs --id x --number y", 2, "", "--number"},
		{"needs --id x --a --b", 2, "", "[a b]"},
	} {
		t.Run("tool "+c.args, func(t *testing.T) {
			t.Parallel()
			cmd := command(t, strings.Fields(c.args)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d (%v), want %d", code, err, c.code)
			}
			if !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("stdout %q, stderr %q; want %q and %q in them", &stdout, &stderr, c.stdout, c.stderr)
			}
			if said := c.code != 0 && c.stderr != ""; said != (stderr.Len() > 0) {
				t.Errorf("stderr %q", &stderr)
			}
		})
	}
}

// The first signal ends the command's context, and a stop that was asked for exits 0.
func TestSignalEndsTheContext(t *testing.T) {
	t.Parallel()
	cmd := command(t, "waits")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := bufio.NewReader(out)
	if line, err := read.ReadString('\n'); line != "waiting\n" {
		t.Fatalf("says %q (%v)", line, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if line, err := read.ReadString('\n'); line != "stopped\n" {
		t.Errorf("says %q (%v)", line, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
