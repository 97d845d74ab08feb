package main

import (
	"path/filepath"
	"strconv"
	"time"

	"latchkey/internal/rig"
)

// results is what the parts found, each when it ran last, by the parts' names. docs/performance/results.json keeps it,
// so that a part that runs alone renews its own portion of the page and leaves the others as they were measured.
type results map[string]*result

// result is what a part found.
type result struct {
	Measured time.Time   `json:"measured"`
	Commit   string      `json:"commit,omitempty"` // empty = not noted
	Seconds  float64     `json:"seconds,omitempty"`
	Machine  rig.Machine `json:"machine"`
	Rows     []row       `json:"rows"`
	Series   []series    `json:"series,omitempty"`
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

func resultsFile(docs string) string { return filepath.Join(docs, "performance", "results.json") }

// readResults is empty where nothing was measured yet.
func readResults(docs string) (results, error) {
	all := results{}
	err := rig.ReadResults(resultsFile(docs), &all)
	return all, err
}

// keep puts a part's result in place of the one before and renders the page. It runs after each part: a part that
// fails hours later takes nothing away.
func keep(docs, part string, r *result) error {
	all, err := readResults(docs)
	if err != nil {
		return err
	}
	all[part] = r
	if err := rig.WriteResults(resultsFile(docs), all); err != nil {
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
