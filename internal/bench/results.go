package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// results is what the parts found, each when it ran last, by the parts' names. docs/performance/results.json keeps it,
// so that a part that runs alone renews its own portion of the page and leaves the others as they were measured.
type results map[string]*result

// result is what a part found.
type result struct {
	Measured time.Time `json:"measured"`
	Commit   string    `json:"commit,omitempty"` // empty = not noted
	Seconds  float64   `json:"seconds,omitempty"`
	Machine  machine   `json:"machine"`
	Rows     []row     `json:"rows"`
	Series   []series  `json:"series,omitempty"`
}

// row is a line of the table. A goal of "shown" is none.
type row struct {
	What  string `json:"what"` // indented by two spaces where it goes on with the row before
	Ours  string `json:"ours"`
	Other string `json:"other,omitempty"`
	Ratio string `json:"ratio,omitempty"`
	Goal  string `json:"goal"`
	Met   bool   `json:"met"`
}

// series is a line, or a group of points, of a plot.
type series struct {
	Name string    `json:"name"`
	X    []float64 `json:"x"` // unit by the plot
	Y    []float64 `json:"y"`
}

// machine is where a part ran. What could not be found out is empty.
type machine struct {
	Platform string  `json:"platform"`
	CPU      string  `json:"cpu,omitempty"`
	CPUs     int     `json:"cpus"`
	MemoryGB float64 `json:"memory_gb,omitempty"`
	Go       string  `json:"go"`
	Postgres string  `json:"postgres"`
	NATS     string  `json:"nats,omitempty"`
}

func (m machine) String() string {
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

func (b *bench) machine(ctx context.Context) (machine, error) {
	m := machine{Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(),
		Go: strings.TrimPrefix(runtime.Version(), "go"), NATS: b.nc.ConnectedServerVersion()}
	var version string // Debian's has its package's version behind it
	if err := b.pool.QueryRow(ctx, `SHOW server_version`).Scan(&version); err != nil {
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

// commit is the one that is measured, empty outside of a clone. What the bench itself writes below docs is no change.
func commit(ctx context.Context) string {
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

func resultsFile(docs string) string { return filepath.Join(docs, "performance", "results.json") }

// readResults is empty where nothing was measured yet.
func readResults(docs string) (results, error) {
	all := results{}
	body, err := os.ReadFile(resultsFile(docs))
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", resultsFile(docs), err)
	}
	return all, nil
}

// keep puts a part's result in place of the one before and renders the page. It runs after each part: a part that
// fails hours later takes nothing away.
func keep(docs, part string, r *result) error {
	all, err := readResults(docs)
	if err != nil {
		return err
	}
	all[part] = r
	body, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(resultsFile(docs)), 0o755); err != nil {
		return err
	}
	fresh := resultsFile(docs) + ".new" // what ends this process in between leaves the old ones
	if err := os.WriteFile(fresh, append(body, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.Rename(fresh, resultsFile(docs)); err != nil {
		return err
	}
	return render(docs, all)
}

// series keeps points for the part's plot.
func (b *bench) series(name string, x, y []float64) {
	b.found.Series = append(b.found.Series, series{Name: name, X: rounded(x), Y: rounded(y)})
}

// latencies keeps the quantiles of durations for the part's plot.
func (b *bench) latencies(name string, took []time.Duration) {
	q, milliseconds := quantiles(took)
	b.series(name, q, milliseconds)
}

// rounded has four digits of each number, enough for a plot.
func rounded(all []float64) []float64 {
	few := make([]float64, len(all))
	for i, v := range all {
		few[i], _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	}
	return few
}
