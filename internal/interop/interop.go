// Package interop runs the scripts of the folder interop, which are clients and validators of another
// language, in Node. Only tests import it.
package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"latchkey/internal/contract"
)

// patience bounds a script; each takes a second or two.
const patience = 2 * time.Minute

// Node runs a script, such as "verify-webhook.mjs", and returns its standard output. A script that
// fails fails the test. Without Node or the scripts' packages the test is skipped, but never in CI. env
// is added to the environment, as NAME=value.
func Node(t testing.TB, script string, stdin []byte, env ...string) (stdout string) {
	t.Helper()
	stdout, err := Run(t, script, stdin, env...)
	if err != nil {
		t.Fatal(err)
	}
	return stdout
}

// Run is Node for a script that may fail: the error then holds what it wrote to standard error.
func Run(t testing.TB, script string, stdin []byte, env ...string) (stdout string, err error) {
	t.Helper()
	dir := filepath.Join(contract.Root(t), "interop")
	node := find(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, node, script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("interop/%s: %w\n%s", script, errors.Join(err, ctx.Err()), strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

// find returns Node's path.
func find(t testing.TB, dir string) string {
	t.Helper()
	node, err := exec.LookPath("node")
	missing := "node is missing; install Node.js 18 or newer"
	if err == nil {
		// npm writes this file last.
		_, err = os.Stat(filepath.Join(dir, "node_modules", ".package-lock.json"))
		missing = "the scripts' packages are missing; run npm ci --prefix interop"
	}
	switch {
	case err == nil:
		return node
	case os.Getenv("CI") != "":
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}
