package bulk

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"

	"latchkey/internal/jobs"
)

// Row is one request of the file.
type Row struct {
	Line    int    // in the file, counted from 1, of the row's first line
	Raw     []byte // as it came, without its line's end
	ID      string // of the request
	Derived bool   // the id comes from campaign and customer
	Source  string
	Body    []byte // the request
	Err     error  // why there is none; ID, Source and Body are empty then

	offset int64 // in the file, of the row's end
	fields int   // that Raw has, in CSV
	object bool  // Raw is a JSON object
	dated  bool  // which has an expires_at
}

// Result is what became of a row: a link, or Err.
type Result struct {
	URL, LinkID, ExpiresAt string
	Code                   jobs.Code // of a rejection by the worker
	Err                    string
}

// Input reads a file's rows and writes them again with their results. Read and Append may be called at
// the same time.
type Input interface {
	// Read returns io.EOF behind the last row. What is wrong with one row is in its Err; any other
	// error ends the file.
	Read() (*Row, error)
	// Offset is how many bytes of the file have been read into rows.
	Offset() int64
	// Header is what the output begins with; empty where there is none.
	Header() []byte
	// Append adds the row and its result, with a line's end.
	Append(dst []byte, row *Row, result *Result) []byte
}

// Format is how a file is written.
type Format string

// The formats that are read.
const (
	CSV   Format = "csv"
	JSONL Format = "jsonl"
)

// Defaults fill in what rows leave out.
type Defaults struct {
	Campaign      string // empty = rows name theirs, or their id
	Source        string
	IgnoreUnknown bool // columns that are no field go to the output only
}

// maxRow bounds one row of the file. A request may have 64 KiB; a CSV row may hold columns of its
// owner's beside it.
const maxRow = 1 << 20

// ErrEncoding is the Err of a row that is not UTF-8.
var ErrEncoding = errors.New("is not UTF-8; save the file as UTF-8 (in a spreadsheet: CSV UTF-8)")

// Open looks at the beginning of a file, and for CSV at its header. name tells the format by its ending, if
// format is empty and it does; else the first character does: a JSON object begins with {.
func Open(r io.Reader, name string, format Format, defaults Defaults) (Input, error) {
	raw := bufio.NewReaderSize(r, 64<<10)
	mark, _ := raw.Peek(3) // a short or broken file shows itself below
	bom := bytes.HasPrefix(mark, []byte("\ufeff")) || bytes.HasPrefix(mark, []byte{0xff, 0xfe}) || bytes.HasPrefix(mark, []byte{0xfe, 0xff})
	var text io.Reader = raw
	if bom { // UTF-16 too: spreadsheets call it Unicode text
		text = transform.NewReader(raw, unicode.BOMOverride(encoding.Nop.NewDecoder()))
	}
	buffered := bufio.NewReaderSize(text, 128<<10)
	if format == "" {
		format = formatOf(name, buffered)
	}
	switch format {
	case CSV:
		return newCSV(buffered, bom, defaults)
	case JSONL:
		return newJSONL(buffered, defaults), nil
	}
	return nil, fmt.Errorf("there is no format %q; take csv or jsonl", format)
}

func formatOf(name string, r *bufio.Reader) Format {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".csv", ".tsv":
		return CSV
	case ".jsonl", ".ndjson":
		return JSONL
	}
	head := lookAhead(r, func(head []byte) bool { return len(bytes.TrimSpace(head)) > 0 })
	if bytes.HasPrefix(bytes.TrimSpace(head), []byte("{")) {
		return JSONL
	}
	return CSV
}

// lookAhead returns what comes first, as much as is enough, or all that there is, or the buffer's size. It waits for
// no more than that: whoever writes into a pipe may be slow.
func lookAhead(r *bufio.Reader, enough func([]byte) bool) []byte {
	for {
		head, _ := r.Peek(r.Buffered())
		if enough(head) {
			return head
		}
		if head, err := r.Peek(r.Buffered() + 1); err != nil {
			return head
		}
	}
}

var errNoID = errors.New("the row has no id; give it one, or name the campaign (--campaign) and the customer (of JSON Lines, session.customer), of which one is made")

// deriveID makes the id of a request that names none: the same campaign, customer and account give the same
// one, for ever. Changing it would give every customer of a campaign that is run again a second link.
func deriveID(campaign, customer, account string) (string, error) {
	if campaign == "" || customer == "" {
		return "", errNoID
	}
	id := campaign + ":" + customer
	if account != "" {
		id += ":" + account
	}
	if utf8.RuneCountInString(id) <= 200 {
		return id, nil
	}
	sum := sha256.Sum256([]byte(id))
	return "bulk-" + hex.EncodeToString(sum[:]), nil
}

// check holds what must be right for the request to be sent at all; the rest is the worker's to judge.
func (r *Row) check() {
	switch {
	case r.Err != nil:
	case !jobs.ValidSource(r.Source):
		r.Err = errors.New("$.source: must match [a-z0-9_-]{1,40}")
	case len(r.Body) > jobs.MaxRequestBytes:
		r.Err = fmt.Errorf("the request has %d bytes, and may have %d", len(r.Body), jobs.MaxRequestBytes)
	}
	if r.Err != nil {
		r.ID, r.Source, r.Body = "", "", nil
	}
}
