package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"latchkey/internal/rig"
)

// results is what docs/reliability/results.json keeps. The page is rendered from it.
type results struct {
	Runs *result     `json:"runs,omitempty"`
	Soak *soakResult `json:"soak,omitempty"`
}

// result is what the runs found.
type result struct {
	Measured time.Time        `json:"measured"`
	Commit   string           `json:"commit,omitempty"`
	Seconds  float64          `json:"seconds"`
	AtOnce   int              `json:"at_once,omitempty"` // runs at the same time
	Machine  rig.Machine      `json:"machine"`
	Mounts   bool             `json:"mounts"` // disks could be filled
	Seeds    []uint64         `json:"seeds"`
	Broken   []uint64         `json:"broken,omitempty"`
	Replicas map[int]int      `json:"replicas"` // runs by number of workers
	Checked  checked          `json:"checked"`
	Faults   map[string]tally `json:"faults"`
}

// tally of a kind.
type tally struct {
	Injected int `json:"injected"`
	Runs     int `json:"runs"`
	Survived int `json:"survived"` // runs in which every invariant held
}

//go:embed reliability.md.tmpl
var pageTemplate string

func resultsFile(docs string) string { return filepath.Join(docs, "reliability", "results.json") }

// readResults is empty where nothing was run yet.
func readResults(docs string) (all results, err error) {
	err = rig.ReadResults(resultsFile(docs), &all)
	return all, err
}

// keep changes the results and renders the page.
func keep(docs string, change func(*results)) error {
	all, err := readResults(docs)
	if err != nil {
		return err
	}
	change(&all)
	if err := rig.WriteResults(resultsFile(docs), all); err != nil {
		return err
	}
	return render(docs, all)
}

func renderAgain(docs string) error {
	if docs == "" {
		return errors.New("-render needs -docs, the directory of reliability.md")
	}
	all, err := readResults(docs)
	if err != nil {
		return err
	}
	return render(docs, all)
}

func render(docs string, all results) error {
	text, err := page(all)
	if err != nil {
		return err
	}
	if all.Soak != nil {
		svg, err := all.Soak.plot()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(docs, "reliability", "soak.svg"), svg, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(docs, "reliability.md"), text, 0o644)
}

// page is the text of docs/reliability.md.
func page(all results) ([]byte, error) {
	t, err := template.New("reliability.md").Funcs(template.FuncMap{"seeds": seeds}).Parse(pageTemplate)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, all)
	return out.Bytes(), err
}

// FaultRow is a line of the table.
type FaultRow struct {
	Name, How string
	tally
	Made bool
}

// Rows are all kinds, in their order, made or not.
func (r *result) Rows() (rows []FaultRow) {
	for _, k := range kinds {
		t, made := r.Faults[k.name]
		rows = append(rows, FaultRow{k.name, k.how, t, made})
	}
	return rows
}

// Injected is how many faults there were.
func (r *result) Injected() (n int) {
	for _, t := range r.Faults {
		n += t.Injected
	}
	return n
}

// Minutes is how long the runs took.
func (r *result) Minutes() int { return int(r.Seconds+59) / 60 }

// seeds lists seeds, runs of them as from-to.
func seeds(all []uint64) string {
	all = slices.Sorted(slices.Values(all))
	var parts []string
	for i := 0; i < len(all); {
		j := i
		for j+1 < len(all) && all[j+1] == all[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, fmt.Sprint(all[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d–%d", all[i], all[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ", ")
}
