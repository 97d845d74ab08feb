package rig

import (
	"bytes"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A phone scales a plot down to some 360 px, which must leave its letters readable: it is small, and they are large.
const plotWidth, plotHeight, letters = 400, 280, 12 // points

// lineColors are Okabe and Ito's, which the colour-blind tell apart.
var lineColors = []color.Color{color.RGBA{0, 114, 178, 255}, color.RGBA{213, 94, 0, 255}, color.RGBA{0, 158, 115, 255}, color.RGBA{150, 90, 140, 255}, color.RGBA{90, 90, 90, 255}, color.RGBA{0, 0, 0, 255}}

// Draw is the SVG of what fill adds to a plot. Its ground is white, since pages are dark or light.
func Draw(fill func(*plot.Plot) error) ([]byte, error) {
	p := plot.New()
	for _, style := range []*text.Style{&p.X.Label.TextStyle, &p.X.Tick.Label, &p.Y.Label.TextStyle, &p.Y.Tick.Label, &p.Legend.TextStyle} {
		style.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: letters}
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{225}, color.Gray{225}
	p.Add(grid)
	if err := fill(p); err != nil {
		return nil, err
	}
	canvas := vgsvg.New(plotWidth, plotHeight)
	area := draw.New(canvas)
	area.SetColor(p.BackgroundColor)
	area.Fill(area.Rectangle.Path())
	p.Draw(draw.Crop(area, 8, -14, 8, -10))
	var out bytes.Buffer
	_, err := canvas.WriteTo(&out)
	// The letters were measured in Liberation Sans, whose widths are Helvetica's and Arial's.
	return bytes.ReplaceAll(out.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Helvetica,Arial,sans-serif;")), err
}

// LineStyle is the i-th line's; dashes tell lines apart in print.
func LineStyle(i int) draw.LineStyle {
	dashes := [][]vg.Length{nil, {7, 3}, {2, 2}, {8, 3, 2, 3}, {1, 3}, {12, 4}}
	return draw.LineStyle{Color: lineColors[i%len(lineColors)], Width: 2, Dashes: dashes[i%len(dashes)]}
}
