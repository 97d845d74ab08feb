package bulk

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// csvInput reads RFC 4180 with any of three delimiters. The output has each row's own bytes, so quotes
// and spaces stay as they were.
type csvInput struct {
	tape   *tape
	reader *csv.Reader
	header *header
	first  []byte // the header line, and the mark of the encoding before it
	end    string // of a line
	fields int    // columns
	last   int    // line where the last row began
	done   bool   // the file ended or can't be read on
}

// tape keeps what the CSV reader has read ahead, back to the last row's end.
type tape struct {
	r    io.Reader
	kept []byte
	from int64 // offset of kept[0]
}

var errNoEnd = fmt.Errorf("has more than %d bytes; perhaps a quote is opened and not closed", maxRow)

// Read gives up on a row without end, which the CSV reader would take into memory whole.
func (t *tape) Read(p []byte) (int, error) {
	if len(t.kept) > maxRow {
		return 0, errNoEnd
	}
	n, err := t.r.Read(p)
	t.kept = append(t.kept, p[:n]...)
	return n, err
}

// cut takes what lies before an offset off the tape.
func (t *tape) cut(offset int64) []byte {
	n := int(offset - t.from)
	raw := bytes.Clone(t.kept[:n])
	t.kept = append(t.kept[:0], t.kept[n:]...)
	t.from = offset
	return raw
}

func newCSV(r *bufio.Reader, bom bool, defaults Defaults) (Input, error) {
	c := &csvInput{tape: &tape{r: r}, end: "\n", last: 1}
	line := lookAhead(r, func(head []byte) bool { return bytes.IndexByte(head, '\n') >= 0 })
	if i := bytes.IndexByte(line, '\n'); i >= 0 {
		line = line[:i]
	}
	c.reader = csv.NewReader(c.tape)
	c.reader.Comma = delimiter(line)
	c.reader.FieldsPerRecord = -1 // told with a line number here
	c.reader.ReuseRecord = true
	columns, err := c.reader.Read()
	switch {
	case errors.Is(err, io.EOF):
		return nil, headerErrorf("the file is empty; its first line must name the columns")
	case err != nil:
		return nil, headerErrorf("the first line can't be read: %v", reason(err))
	}
	first := c.tape.cut(c.reader.InputOffset())
	if !utf8.Valid(first) {
		return nil, headerErrorf("the first line %v", ErrEncoding)
	}
	if bytes.HasSuffix(first, []byte("\r\n")) {
		c.end = "\r\n"
	}
	if bom {
		c.first = []byte("\ufeff")
	}
	c.first = append(c.first, trimEnd(first)...)
	c.fields = len(columns)
	c.header, err = compileHeader(columns, defaults)
	return c, err
}

// delimiter is the one of the three that the header has most of, outside of quotes.
func delimiter(line []byte) rune {
	count := map[byte]int{}
	quoted := false
	for _, b := range line {
		if b == '"' {
			quoted = !quoted
		} else if !quoted {
			count[b]++
		}
	}
	best := byte(',')
	for _, d := range []byte(";\t") {
		if count[d] > count[best] {
			best = d
		}
	}
	return rune(best)
}

func trimEnd(line []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
}

// reason is a CSV error without the line, which is told elsewhere.
func reason(err error) error {
	var parse *csv.ParseError
	if errors.As(err, &parse) {
		return parse.Err
	}
	return err
}

func (c *csvInput) Offset() int64 { return c.tape.from }

// Read skips empty lines, and those that spreadsheets leave behind: delimiters and nothing else.
func (c *csvInput) Read() (*Row, error) {
	for !c.done {
		cells, err := c.reader.Read()
		var parse *csv.ParseError
		switch {
		case errors.Is(err, errNoEnd):
			c.done = true
			return nil, fmt.Errorf("the row behind line %d %w", c.last, errNoEnd)
		case err != nil && !errors.As(err, &parse):
			c.done = true
			return nil, err // io.EOF too
		}
		row := &Row{Raw: trimStart(trimEnd(c.tape.cut(c.reader.InputOffset()))), fields: len(cells)}
		if err != nil {
			row.Line, row.fields, row.Err = parse.StartLine, 0, fmt.Errorf("the row can't be read: %w", parse.Err)
			row.check()
			return row, nil
		}
		if blank(cells) {
			continue
		}
		row.Line, _ = c.reader.FieldPos(0)
		c.last = row.Line
		row.Err = c.fill(row, cells)
		row.check()
		return row, nil
	}
	return nil, io.EOF
}

// trimStart takes off empty lines that the CSV reader has skipped.
func trimStart(raw []byte) []byte { return bytes.TrimLeft(raw, "\r\n") }

func blank(cells []string) bool {
	for _, cell := range cells {
		if cell != "" {
			return false
		}
	}
	return true
}

func (c *csvInput) fill(row *Row, cells []string) error {
	if !utf8.Valid(row.Raw) {
		return fmt.Errorf("the row %w", ErrEncoding)
	}
	if len(cells) != c.fields {
		return fmt.Errorf("the row has %d fields, and the first line has %d", len(cells), c.fields)
	}
	return c.header.fill(row, cells)
}

func (c *csvInput) Header() []byte {
	d := string(c.reader.Comma)
	return append(bytes.Clone(c.first), d+"link_url"+d+"link_id"+d+"expires_at"+d+"error"+c.end...)
}

// Append keeps the columns in their places: a row with too few fields is filled up; one with too many, or that can't
// be read, is left empty, and its error names its line.
func (c *csvInput) Append(dst []byte, row *Row, result *Result) []byte {
	d := byte(c.reader.Comma)
	fields := row.fields
	if fields > c.fields || !utf8.Valid(row.Raw) {
		fields = 0
	}
	if fields > 0 {
		dst = append(dst, row.Raw...)
	}
	for range c.fields - max(fields, 1) {
		dst = append(dst, d)
	}
	failed := result.Err
	if failed != "" && fields == 0 {
		failed = fmt.Sprintf("line %d: %s", row.Line, failed)
	}
	for _, value := range [...]string{result.URL, result.LinkID, result.ExpiresAt, failed} {
		dst = append(dst, d)
		dst = c.appendCell(dst, value)
	}
	return append(dst, c.end...)
}

func (c *csvInput) appendCell(dst []byte, value string) []byte {
	if !strings.ContainsAny(value, "\"\r\n,;\t") {
		return append(dst, value...)
	}
	dst = append(dst, '"')
	dst = append(dst, strings.ReplaceAll(value, `"`, `""`)...)
	return append(dst, '"')
}
