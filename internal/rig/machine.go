package rig

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Machine is where something was measured. What could not be found out is empty.
type Machine struct {
	Platform string  `json:"platform"`
	CPU      string  `json:"cpu,omitempty"`
	CPUs     int     `json:"cpus"`
	MemoryGB float64 `json:"memory_gb,omitempty"`
	Go       string  `json:"go"`
	Postgres string  `json:"postgres"`
	NATS     string  `json:"nats,omitempty"`
}

func (m Machine) String() string {
	facts := []string{m.Platform, fmt.Sprintf("%d CPUs", m.CPUs)}
	if m.CPU != "" {
		facts[1] += " (" + m.CPU + ")"
	}
	if m.MemoryGB > 0 {
		facts = append(facts, fmt.Sprintf("%.0f GB of memory", m.MemoryGB))
	}
	facts = append(facts, "Go "+m.Go, "Postgres "+m.Postgres)
	if m.NATS != "" {
		facts = append(facts, "NATS "+m.NATS)
	}
	return strings.Join(facts, ", ")
}

// ThisMachine finds out about this one and its servers.
func ThisMachine(ctx context.Context, pool *pgxpool.Pool, natsVersion string) (Machine, error) {
	m := Machine{Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(),
		Go: strings.TrimPrefix(runtime.Version(), "go"), NATS: natsVersion}
	var version string // Debian's has its package's version behind it
	if err := pool.QueryRow(ctx, `SHOW server_version`).Scan(&version); err != nil {
		return m, err
	}
	m.Postgres, _, _ = strings.Cut(version, " ")
	m.CPU = procField("/proc/cpuinfo", "model name")
	kb, _ := strconv.ParseFloat(strings.TrimSuffix(procField("/proc/meminfo", "MemTotal"), " kB"), 64)
	m.MemoryGB = kb / (1 << 20)
	return m, nil
}

// procField is the first value of a name in a file of /proc, empty where there is none.
func procField(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Commit is the one that is measured, empty outside of a clone. What is written below docs is no change.
func Commit(ctx context.Context) string {
	hash, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=10", "HEAD").Output()
	if err != nil {
		return ""
	}
	changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--", ":/", ":(top,exclude)docs").Output()
	if err != nil || len(changed) > 0 {
		return strings.TrimSpace(string(hash)) + "+changes"
	}
	return strings.TrimSpace(string(hash))
}
