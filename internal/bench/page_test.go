package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/internal/rig"
)

const committedDocs = "../../docs"

// The page is what the template and the results give: it is not edited by hand, and an edit of the prose is rendered.
func TestCommittedPage(t *testing.T) {
	t.Parallel()
	all, err := readResults(committedDocs)
	if err != nil {
		t.Fatal(err)
	}
	want, err := page(all)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(committedDocs, "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/performance.md is not what its template and results give; run: go run ./internal/bench -render -docs docs")
	}
	for name := range plots {
		want, err := drawPlot(name, all[name].Series)
		if err != nil {
			t.Fatal(name, err)
		}
		if got, err := os.ReadFile(filepath.Join(committedDocs, "performance", name+".svg")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the plot of %s is not what its results give: %v; render it again", name, err)
		}
	}
	for name := range all {
		if !slices.Contains(partNames(), name) {
			t.Errorf("the results have a part %q, which the bench has not", name)
		}
	}
}

// Each part has one place on the page, measured or not.
func TestPageWithoutResults(t *testing.T) {
	t.Parallel()
	text := pageText(t, results{})
	for _, name := range partNames() {
		if n := strings.Count(text, "\nNot measured yet (`-only "+name+"`).\n"); n != 1 {
			t.Errorf("%s is said to be not measured %d times", name, n)
		}
	}
	for _, never := range []string{"| what |", "](performance/", "no value", "goals here"} {
		if strings.Contains(text, never) {
			t.Errorf("without results the page has %q", never)
		}
	}
}

func TestPageOfOnePart(t *testing.T) {
	t.Parallel()
	text := pageText(t, results{"bulk": {Measured: time.Date(2026, 11, 26, 9, 0, 0, 0, time.UTC), Commit: "0123456789", Seconds: 95,
		Machine: rig.Machine{Platform: "linux/amd64", CPU: "EPYC", CPUs: 2, MemoryGB: 7.8, Go: "1.26", Postgres: "15.1", NATS: "2.12"},
		Rows: []row{
			{What: "rate", Ours: "10/s", Other: "a|b", Ratio: "0.50 (0.40 to 0.60)", Goal: "≥ 1.2"},
			{What: "  p99 of `x`", Ours: `5\ms`, Goal: "< 15 ms", Met: true},
			{What: "size", Ours: "2*3\nMB", Goal: noGoal, Met: true},
		},
		Series: []series{{Name: "links", X: []float64{0.1, 1}, Y: []float64{1, 100}}}}})
	for _, want := range []string{
		"\nMeasured on 2026-11-26 at `0123456789`, in 95 s (`-only bulk`).\n",
		"\n- linux/amd64, 2 CPUs (EPYC), 8 GB of memory, Go 1.26, Postgres 15.1, NATS 2.12\n",
		"\n| rate | 10/s | a\\|b | 0.50 (0.40 to 0.60) | ≥ 1.2: **MISSED** |\n",
		"\n| &emsp;p99 of \\`x\\` | 5\\\\ms |  |  | \\< 15 ms |\n",
		"\n| size | 2\\*3 MB |  |  | shown |\n",
		"Of 2 goals here 1 is missed.",
		"](performance/bulk.svg)\n\n###",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page has no %q:\n%s", want, text)
		}
	}
}

func TestMachinesTellTheirParts(t *testing.T) {
	t.Parallel()
	small, large := rig.Machine{Platform: "linux/amd64", CPUs: 2, Go: "1", Postgres: "15"}, rig.Machine{Platform: "linux/arm64", CPUs: 8, Go: "1", Postgres: "15"}
	lines := results{"bulk": {Machine: small}, "intake": {Machine: small}, "clicks": {Machine: large}}.Machines()
	if got := strings.Join(lines, "\n"); got != "linux/amd64, 2 CPUs, Go 1, Postgres 15: bulk, intake\nlinux/arm64, 8 CPUs, Go 1, Postgres 15: clicks" {
		t.Error(got)
	}
}

// A part that ran alone renews its own portion, and plots are SVG.
func TestKeep(t *testing.T) {
	t.Parallel()
	docs := t.TempDir()
	rounds := []float64{1, 2, 3}
	first := map[string]*result{
		"intake":  {Rows: []row{{What: "old", Goal: noGoal, Met: true}}, Series: []series{{"Latchkey", rounds, []float64{30_000, 31_000, 32_000}}, {"bare loop", rounds, []float64{29_000, 30_000, 33_000}}}},
		"bulk":    {Series: []series{{"links", []float64{0, 1, 10}, []float64{0, 9_000, 100_000}}}},
		"service": {Series: []series{{"16 in flight", []float64{0, 0.5, 0.999}, []float64{1, 3, 12}}}},
		"burst":   {Rows: []row{{What: "stays", Goal: noGoal, Met: true}}},
	}
	for name, r := range first {
		if err := keep(docs, name, r); err != nil {
			t.Fatal(name, err)
		}
	}
	if err := keep(docs, "intake", &result{Rows: []row{{What: "new", Goal: noGoal, Met: true}}, Series: first["intake"].Series}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(docs, "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); strings.Contains(s, "| old |") || !strings.Contains(s, "| new |") || !strings.Contains(s, "| stays |") {
		t.Errorf("the page after a part ran again:\n%s", s)
	}
	for _, name := range []string{"intake", "bulk", "service"} {
		if !strings.Contains(string(text), "](performance/"+name+".svg)") {
			t.Errorf("the page has no plot of %s", name)
		}
		wellFormed(t, filepath.Join(docs, "performance", name+".svg"))
	}
}

func TestOfRounds(t *testing.T) {
	t.Parallel()
	if got := ofRounds("%.1f", ratios([]float64{2, 9, 6}, []float64{4, 3, 6})); got != "1.0 (0.5 to 3.0)" {
		t.Error(got)
	}
	if got := ofRounds("%.1f", []float64{2}); got != "2.0" {
		t.Error(got)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	var p progress
	var sizes []float64
	for i := range 999 {
		p.seconds, sizes = append(p.seconds, float64(i)/100), append(sizes, float64(i)*50)
	}
	p = p.scaled(append(sizes, 50_000), 10*time.Second, 1000)
	if last := len(p.links) - 1; last > 120 || p.links[last] != 1000 || p.seconds[last] != 10 || p.links[1] != p.seconds[1]*100 {
		t.Errorf("thinned to %v at %v", p.links, p.seconds)
	}
}

func pageText(t *testing.T, all results) string {
	t.Helper()
	text, err := page(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func wellFormed(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	elements := 0
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if _, ok := token.(xml.StartElement); ok {
			elements++
		}
	}
	if elements < 10 {
		t.Errorf("%s draws nothing: %d elements", path, elements)
	}
}
