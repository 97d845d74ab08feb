// Package brand is the brand's colour and what can be read on it and beside it, by WCAG 2.2 AA.
package brand

import (
	"errors"
	"fmt"
	"math"
	"strconv"
)

// Color is an opaque sRGB colour.
type Color struct{ R, G, B uint8 }

// Default is the button's where the brand names none.
var Default = Color{0x3d, 0x3b, 0xc9}

// ParseColor reads #rgb or #rrggbb.
func ParseColor(s string) (Color, error) {
	if len(s) == 4 {
		s = string([]byte{s[0], s[1], s[1], s[2], s[2], s[3], s[3]})
	}
	if len(s) == 7 && s[0] == '#' {
		if n, err := strconv.ParseUint(s[1:], 16, 32); err == nil {
			return Color{uint8(n >> 16), uint8(n >> 8), uint8(n)}, nil
		}
	}
	return Color{}, errors.New("must be a colour like #3d3bc9 or #39c")
}

// String is #rrggbb, as CSS takes it.
func (c Color) String() string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }

// luminance is WCAG's relative luminance.
func (c Color) luminance() float64 {
	linear := func(v uint8) float64 {
		s := float64(v) / 255
		if s <= 0.04045 {
			return s / 12.92
		}
		return math.Pow((s+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(c.R) + 0.7152*linear(c.G) + 0.0722*linear(c.B)
}

// Contrast is WCAG's ratio of two colours, 1 to 21.
func (c Color) Contrast(other Color) float64 {
	a, b := c.luminance(), other.luminance()
	return (max(a, b) + 0.05) / (min(a, b) + 0.05)
}

// Mix goes from c to other, all the way at 1.
func (c Color) Mix(other Color, share float64) Color {
	between := func(a, b uint8) uint8 { return uint8(math.Round(float64(a) + (float64(b)-float64(a))*share)) }
	return Color{between(c.R, other.R), between(c.G, other.G), between(c.B, other.B)}
}

var black, white = Color{}, Color{255, 255, 255}

// WCAG 2.2 AA: of text (1.4.3), and of what makes a control recognizable (1.4.11).
const (
	TextContrast    = 4.5
	ControlContrast = 3
)

// Scheme is the palette of light or dark. What is fixed in it is readable in itself; Edge
// and Link fit the brand's colour to it.
type Scheme struct{ Back, Card, Text, Soft, Line Color }

// Light and Dark are the palettes of pages and mails.
var (
	Light = Scheme{Back: Color{0xf5, 0xf6, 0xf8}, Card: white, Text: Color{0x1a, 0x1f, 0x36}, Soft: Color{0x4f, 0x56, 0x6b}, Line: Color{0xe3, 0xe8, 0xee}}
	Dark  = Scheme{Back: Color{0x10, 0x13, 0x1c}, Card: Color{0x1b, 0x20, 0x30}, Text: Color{0xee, 0xf0, 0xf6}, Soft: Color{0xb3, 0xba, 0xcb}, Line: Color{0x31, 0x38, 0x4d}}
)

// Label is what reads on c: white where it can, as people expect on a button, else black, which
// then has at least 4.6.
func (c Color) Label() Color {
	if c.Contrast(white) >= TextContrast {
		return white
	}
	return black
}

// Edge outlines a button of colour c: c itself where that stands out from the card, else the
// nearest shade of it that does. The brand's own colour stays in the button's face.
func (s Scheme) Edge(c Color) Color {
	for share := 0.0; share < 1; share += 0.05 {
		if e := c.Mix(s.Text, share); e.Contrast(s.Card) >= ControlContrast {
			return e
		}
	}
	return s.Text
}

// Link is c where it can be read as text, else the colour of text.
func (s Scheme) Link(c Color) Color {
	if c.Contrast(s.Card) >= TextContrast {
		return c
	}
	return s.Text
}
