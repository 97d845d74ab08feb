package mailcatcher

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset" // mails in other charsets than UTF-8
)

// Limits on structure; size is limited already. A mail beyond them is shown as
// far as they go.
const (
	maxDepth = 8   // of multiparts in multiparts
	maxParts = 100 // of all levels together
)

// Content is what a mail says, decoded.
type Content struct {
	Subject string   `json:"subject"`
	Header  []Field  `json:"header"` // in the mail's order
	Text    string   `json:"text"`   // first text/plain part
	HTML    string   `json:"html"`   // first text/html part
	Files   []File   `json:"files"`  // all other parts
	Faults  []string `json:"faults"` // what could not be parsed
}

// Field is a line of a mail's header.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// File is an attachment or another part that is only named.
type File struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Size int    `json:"size"`
}

// parse decodes a mail as far as it can. It never fails: faults are part of what
// is shown (invariant 2).
func parse(raw []byte) (c Content) {
	c = Content{Header: []Field{}, Files: []File{}, Faults: []string{}}
	// The library is well kept, but what it is fed here is anything at all, and a
	// panic would refuse the mail that one most wants to look at.
	defer func() {
		if r := recover(); r != nil {
			c.Faults = append(c.Faults, fmt.Sprintf("the parser gave up: %v", r))
		}
	}()
	e, err := message.Read(bytes.NewReader(raw))
	if err != nil {
		c.Faults = append(c.Faults, err.Error())
	}
	if e == nil {
		return c
	}
	c.readHeader(e.Header)
	parts := maxParts
	c.walk(e, maxDepth, &parts)
	return c
}

func (c *Content) readHeader(h message.Header) {
	for fields := h.Fields(); fields.Next(); {
		value, err := fields.Text()
		if err != nil {
			value = fields.Value()
		}
		value = clean(value)
		c.Header = append(c.Header, Field{Name: clean(fields.Key()), Value: value})
		if c.Subject == "" && strings.EqualFold(fields.Key(), "Subject") {
			c.Subject = value
		}
	}
}

// walk visits the parts in order. parts is what is left of maxParts.
func (c *Content) walk(e *message.Entity, depth int, parts *int) {
	multi := e.MultipartReader()
	if multi == nil {
		c.leaf(e)
		return
	}
	if depth == 0 {
		c.Faults = append(c.Faults, "multiparts are nested too deeply: the inner ones are left out")
		return
	}
	for {
		part, err := multi.NextPart()
		if err == io.EOF {
			return
		}
		if err != nil {
			c.Faults = append(c.Faults, err.Error())
		}
		if part == nil {
			return
		}
		if *parts--; *parts < 0 {
			c.Faults = append(c.Faults, "too many parts: the rest is left out")
			return
		}
		c.walk(part, depth-1, parts)
	}
}

// leaf takes one part that is no multipart.
func (c *Content) leaf(e *message.Entity) {
	body, err := io.ReadAll(e.Body)
	if err != nil {
		c.Faults = append(c.Faults, err.Error())
	}
	kind, typeParams, _ := e.Header.ContentType() // what it means to the reader of a bad one: text/plain or a file
	disposition, params, _ := e.Header.ContentDisposition()
	switch {
	case disposition == "attachment":
	case kind == "text/plain" && c.Text == "":
		c.Text = clean(string(body))
		return
	case kind == "text/html" && c.HTML == "":
		c.HTML = clean(string(body))
		return
	}
	name := params["filename"]
	if name == "" {
		name = typeParams["name"]
	}
	c.Files = append(c.Files, File{Name: clean(name), Type: clean(kind), Size: len(body)})
}

// clean makes any bytes valid UTF-8 without NULs.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
