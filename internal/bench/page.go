package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

// The template has the page's prose; tables, plots and dates come from the results.
//
//go:embed performance.md.tmpl
var pageTemplate string

// render writes docs/performance.md and the plots beside the results.
func render(docs string, all results) error {
	text, err := page(all)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(plots)) {
		if !all[name].plotted() {
			continue
		}
		svg, err := drawPlot(name, all[name].Series)
		if err != nil {
			return fmt.Errorf("plot of %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(docs, "performance", name+".svg"), svg, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(docs, "performance.md"), text, 0o644)
}

// page is the text of docs/performance.md. Parts without a result have a line that says so.
func page(all results) ([]byte, error) {
	t, err := template.New("performance.md").Funcs(template.FuncMap{"cell": cell, "plot": all.plot, "part": func(name string) partView { return partView{name, all[name]} }}).Parse(pageTemplate)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, all); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// partView is a part as the template's "part" shows it.
type partView struct {
	Name   string
	Result *result // nil = not measured
}

// Took is how long the part ran.
func (p partView) Took() string {
	seconds := int(p.Result.Seconds + 0.5)
	if seconds < 120 {
		return fmt.Sprintf("%d s", seconds)
	}
	return fmt.Sprintf("%d min", (seconds+30)/60)
}

func (r *result) plotted() bool { return r != nil && len(r.Series) > 0 }

// plot is a part's image, empty where there are no points.
func (all results) plot(name, alt string) string {
	if !all[name].plotted() {
		return ""
	}
	return fmt.Sprintf("![%s](performance/%s.svg)\n\n", alt, name)
}

// Machines lists the machines, each with what was measured on it where there are several.
func (all results) Machines() (lines []string) {
	parts := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		m := all[name].Machine.String()
		parts[m] = append(parts[m], name)
	}
	for _, m := range slices.Sorted(maps.Keys(parts)) {
		if len(parts) == 1 {
			return []string{m}
		}
		lines = append(lines, m+": "+strings.Join(parts[m], ", "))
	}
	return lines
}

// Goals counts the goals and those that are missed.
func (all results) Goals() (goals struct{ All, Missed int }) {
	for _, r := range all {
		for _, row := range r.Rows {
			if row.Goal != noGoal {
				goals.All++
			}
			if !row.Met {
				goals.Missed++
			}
		}
	}
	return goals
}

// Label is the row's name, indented as it is in the terminal.
func (r row) Label() string {
	if rest, ok := strings.CutPrefix(r.What, "  "); ok {
		return "&emsp;" + cell(rest)
	}
	return cell(r.What)
}

var cellEscapes = strings.NewReplacer(`\`, `\\`, "|", `\|`, "<", `\<`, "*", `\*`, "`", "\\`", "\n", " ")

// cell is a text as a cell of a Markdown table has it.
func cell(text string) string { return cellEscapes.Replace(text) }
