package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A worker's clock jumps as it does where NTP steps it: the wall clock does, the monotonic one does not. Go reads the
// clock from the vDSO, where no preloaded library is asked, so the suite's workers are built from the tree as it is on
// a package time whose Now adds an offset (go build -overlay), and with a file more in package main that reads the
// offset from a file. Everything in the process sees the jump, River and the drivers too. The product has no hook for it.
var (
	//go:embed clock_main.go.txt
	clockMain string
	//go:embed clock_time.go.txt
	clockTime string
)

// clockFile names the file with the offset, in seconds, for the suite's workers.
const clockFile = "FAULT_CLOCK_FILE"

// readsClock is the line of time.Now that has the seconds, and what follows it.
const readsClock = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n\t\treturn Time{uint64(nsec), sec + unixToInternal, Local}\n\t}\n\tmono -= startNano\n"

// clockOverlay writes what 'go build -overlay' takes.
func clockOverlay(ctx context.Context, dir string) (path string, err error) {
	root, err := goTells(ctx, "env", "GOROOT")
	if err != nil {
		return "", err
	}
	worker, err := goTells(ctx, "list", "-f", "{{.Dir}}", "latchkey/cmd/worker")
	if err != nil {
		return "", err
	}
	original := filepath.Join(root, "src", "time", "time.go")
	now, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	line, rest, _ := strings.Cut(readsClock, "\n")
	changed := strings.Replace(string(now), readsClock, line+"\n\tsec += jumped.Load()\n"+rest, 1)
	if changed == string(now) {
		return "", fmt.Errorf("time.Now of this Go is not what clock.go knows; look at %s and mend readsClock", original)
	}
	replace := map[string]string{}
	for target, text := range map[string]string{original: changed, filepath.Join(root, "src", "time", "jump.go"): clockTime, filepath.Join(worker, "clock_jump.go"): clockMain} {
		replace[target] = filepath.Join(dir, filepath.Base(target))
		if err := os.WriteFile(replace[target], []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	body, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, body, 0o644)
}

func goTells(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", args...).Output()
	return strings.TrimSpace(string(out)), err
}
