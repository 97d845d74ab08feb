package main

import (
	"math"
	"slices"
	"strconv"
	"time"

	"golang.org/x/text/language"
	"golang.org/x/text/message"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg/draw"

	"latchkey/internal/rig"
)

// plots draw the series of parts, by the parts' names.
var plots = map[string]func(*plot.Plot, []series) error{
	"intake": plotRates, "bulk": plotCampaign, "service": plotLatencies, "clicks": plotLatencies,
}

// drawPlot is the SVG of a part's series.
func drawPlot(name string, all []series) ([]byte, error) {
	return rig.Draw(func(p *plot.Plot) error { return plots[name](p, all) })
}

// plotRates has a column of points for each series, one a round, and a bar at their median.
func plotRates(p *plot.Plot, all []series) error {
	var names []string
	var most float64
	least := math.Inf(1)
	for i, s := range all {
		names = append(names, s.Name)
		points := make(plotter.XYs, len(s.Y))
		for round, rate := range s.Y {
			points[round] = plotter.XY{X: float64(i) + 0.06*(float64(round)-float64(len(s.Y)-1)/2), Y: rate}
			least, most = min(least, rate), max(most, rate)
		}
		rounds, err := plotter.NewScatter(points)
		if err != nil {
			return err
		}
		rounds.GlyphStyle = draw.GlyphStyle{Color: rig.LineStyle(i).Color, Radius: 4, Shape: draw.CircleGlyph{}}
		mid := median(s.Y)
		bar, err := plotter.NewLine(plotter.XYs{{X: float64(i) - 0.3, Y: mid}, {X: float64(i) + 0.3, Y: mid}})
		if err != nil {
			return err
		}
		p.Add(bar, rounds)
		if err := label(p, float64(i), slices.Min(s.Y)*0.8, text.XCenter, text.YTop, grouped(mid)+"/s"); err != nil {
			return err
		}
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.5, float64(len(all))-0.5
	p.Y.Label.Text = "links a second (log)"
	logAxis(&p.Y, least/3, most*1.5)
	return nil
}

// Stripe's limit of sessions a second, and how long a session's URL lives until it is opened.
const sessionsRate, sessionLives = 25, 300

// plotCampaign has what was issued over time, in seconds, and what becomes of the same campaign where each customer's
// session is made up front. The latter is arithmetic.
func plotCampaign(p *plot.Plot, all []series) error {
	ours := all[0]
	n := ours.Y[len(ours.Y)-1]
	var points, made, alive plotter.XYs
	for i, at := range ours.X {
		if at > 0 {
			points = append(points, plotter.XY{X: at, Y: ours.Y[i]})
		}
	}
	first, end := points[0].X, n/sessionsRate
	for at := first; at < end*1.05; at *= 1.05 {
		sum := min(at*sessionsRate, n)
		made = append(made, plotter.XY{X: at, Y: sum})
		alive = append(alive, plotter.XY{X: at, Y: sum - max(0, min((at-sessionLives)*sessionsRate, n))})
	}
	for i, line := range []plotter.XYs{points, made, alive} {
		if err := addLine(p, i, line); err != nil {
			return err
		}
	}
	last := points[len(points)-1]
	p.X.Label.Text, p.Y.Label.Text = "time since the start (log)", "links or sessions"
	p.X.Scale, p.X.Min, p.X.Max = plot.LogScale{}, first, end*1.5
	p.X.Tick.Marker = plot.ConstantTicks(ticksWithin(first, end*1.5, []plot.Tick{
		{Value: 0.1, Label: "0.1 s"}, {Value: 1, Label: "1 s"}, {Value: 10, Label: "10 s"}, {Value: 60, Label: "1 min"}, {Value: 600, Label: "10 min"}, {Value: 3600, Label: "1 h"}}))
	p.Y.Min, p.Y.Max = 0, n*1.05
	p.Y.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: n / 4, Label: grouped(n / 4)}, {Value: n / 2, Label: grouped(n / 2)}, {Value: n * 3 / 4, Label: grouped(n * 3 / 4)}, {Value: n, Label: grouped(n)}}
	for _, err := range []error{
		label(p, last.X*1.2, n*0.97, text.XLeft, text.YTop, "links in the\nsender's file"),
		label(p, end*0.26, n*0.45, text.XRight, text.YCenter, "sessions made\nat 25 a second"),
		label(p, sessionLives/4, min(sessionsRate*sessionLives, n)+n*0.02, text.XRight, text.YBottom, "of these alive"),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// plotLatencies has the quantiles, from 0 to below 1, of durations in ms. Each nine of a quantile is as wide as the next.
func plotLatencies(p *plot.Plot, all []series) error {
	var most float64
	least := math.Inf(1)
	for i, s := range all {
		points := make(plotter.XYs, len(s.X))
		for j, q := range s.X {
			points[j] = plotter.XY{X: -math.Log10(1 - q), Y: s.Y[j]}
			least, most = min(least, s.Y[j]), max(most, s.Y[j])
		}
		if err := addLine(p, i, points); err != nil {
			return err
		}
		thumb := &plotter.Line{LineStyle: rig.LineStyle(i)}
		p.Legend.Add(s.Name, thumb)
	}
	p.Legend.Top, p.Legend.Left, p.Legend.XOffs, p.Legend.YOffs, p.Legend.Padding = true, true, 8, -4, 2
	p.X.Label.Text, p.Y.Label.Text = "share of requests that are as quick (percent)", "ms (log)"
	p.X.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: -math.Log10(0.5), Label: "50"}, {Value: 1, Label: "90"}, {Value: 2, Label: "99"}, {Value: 3, Label: "99.9"}}
	p.X.Min, p.X.Max = 0, 3
	logAxis(&p.Y, least*0.8, most*1.2*math.Pow(1.3, float64(len(all)))) // with room for the legend
	return nil
}

func addLine(p *plot.Plot, i int, points plotter.XYs) error {
	line, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	line.LineStyle = rig.LineStyle(i)
	p.Add(line)
	return nil
}

// label writes beside a point.
func label(p *plot.Plot, x, y float64, xAlign text.XAlignment, yAlign text.YAlignment, what string) error {
	labels, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: x, Y: y}}, Labels: []string{what}})
	if err != nil {
		return err
	}
	style := &labels.TextStyle[0]
	style.Font, style.XAlign, style.YAlign = p.X.Tick.Label.Font, xAlign, yAlign
	p.Add(labels)
	return nil
}

// logAxis has labels at 1, 2 and 5 of each decade.
func logAxis(axis *plot.Axis, least, most float64) {
	var ticks []plot.Tick
	for decade := math.Floor(math.Log10(least)); decade <= math.Log10(most); decade++ {
		for digit := 1.0; digit < 10; digit++ {
			tick := plot.Tick{Value: digit * math.Pow(10, decade)}
			if digit == 1 || digit == 2 || digit == 5 {
				tick.Label = grouped(tick.Value)
			}
			ticks = append(ticks, tick)
		}
	}
	axis.Scale, axis.Min, axis.Max = plot.LogScale{}, least, most
	axis.Tick.Marker = plot.ConstantTicks(ticksWithin(least, most, ticks))
}

func ticksWithin(least, most float64, all []plot.Tick) (ticks []plot.Tick) {
	for _, tick := range all {
		if tick.Value >= least && tick.Value <= most {
			ticks = append(ticks, tick)
		}
	}
	return ticks
}

// grouped is a number as one reads it: 12,345 or 0.05.
func grouped(v float64) string {
	if v < 1 {
		return strconv.FormatFloat(v, 'g', 1, 64)
	}
	return message.NewPrinter(language.English).Sprintf("%.0f", v)
}

// quantiles thins durations out to a line: 8 points a nine, up to 99.9 %.
func quantiles(took []time.Duration) (q, milliseconds []float64) {
	for i := range 3*8 + 1 {
		at := 1 - math.Pow(10, -float64(i)/8)
		q, milliseconds = append(q, at), append(milliseconds, float64(quantile(took, at).Microseconds())/1000)
	}
	return q, milliseconds
}
