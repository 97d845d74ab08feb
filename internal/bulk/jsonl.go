package bulk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"latchkey/internal/jobs"
)

// jsonInput reads a request a line.
type jsonInput struct {
	reader   *bufio.Reader
	defaults Defaults
	line     int
	offset   int64
}

func newJSONL(r *bufio.Reader, defaults Defaults) *jsonInput {
	return &jsonInput{reader: r, defaults: defaults}
}

func (j *jsonInput) Offset() int64  { return j.offset }
func (j *jsonInput) Header() []byte { return nil }

// Read skips empty lines.
func (j *jsonInput) Read() (*Row, error) {
	for {
		raw, size, err := j.readLine()
		if err != nil && !(errors.Is(err, io.EOF) && size > 0) {
			return nil, err
		}
		j.line++
		j.offset += int64(size)
		row := &Row{Line: j.line, Raw: bytes.Clone(bytes.TrimSpace(raw))}
		switch {
		case raw == nil:
			row.Err = fmt.Errorf("the line has %d bytes, and a request may have %d", size, jobs.MaxRequestBytes)
		case len(row.Raw) == 0:
			continue
		default:
			row.Err = j.fill(row)
		}
		row.check()
		return row, nil
	}
}

// readLine returns a line, and how many bytes it had. One that is longer than the buffer, and so than any request, is
// nil. The line is good until the next call.
func (j *jsonInput) readLine() (line []byte, size int, err error) {
	line, err = j.reader.ReadSlice('\n')
	size = len(line)
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = j.reader.ReadSlice('\n')
		size += len(line)
		line = nil
	}
	return line, size, err
}

// members are those of a request that may be filled in, and those that an id is made of.
type members struct {
	id, source, campaign, account string
	session                       jsontext.Value
	empty                         bool // one of the first three is there without a value
	dated                         bool // there is an expires_at
}

func (j *jsonInput) fill(row *Row) error {
	m, err := readMembers(row.Raw)
	if err != nil {
		if worker := jobs.CheckRequest(row.Raw, time.Now()); worker != nil {
			return worker // it says where
		}
		return err
	}
	row.object, row.dated = true, m.dated
	body := row.Raw
	if m.empty {
		if body, err = withoutEmpty(row.Raw); err != nil {
			return err
		}
	}
	filled := []byte{'{'}
	if m.campaign == "" && j.defaults.Campaign != "" {
		m.campaign = j.defaults.Campaign
		filled = appendMember(filled, "campaign", m.campaign)
	}
	if row.Source = m.source; row.Source == "" {
		row.Source = j.defaults.Source
		filled = appendMember(filled, "source", row.Source)
	}
	if row.ID = m.id; row.ID == "" {
		row.Derived = true
		if row.ID, err = deriveID(m.campaign, m.customer(), m.account); err != nil {
			return err
		}
		filled = appendMember(filled, "id", row.ID)
	}
	row.Body = join(filled, body)
	return nil
}

// customer reads the session; what is wrong with it is the worker's to tell.
func (m *members) customer() string {
	var session struct {
		Customer        string `json:"customer"`
		CustomerAccount string `json:"customer_account"`
	}
	_ = json.Unmarshal(m.session, &session)
	if session.Customer != "" {
		return session.Customer
	}
	return session.CustomerAccount
}

var errNoObject = errors.New("the line is no JSON object")

// readMembers goes over the object's members once.
func readMembers(raw []byte) (m members, err error) {
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	if token, err := dec.ReadToken(); err != nil || token.Kind() != '{' {
		return m, errNoObject
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return m, err
		}
		key := name.String() // before the next call takes it away
		var to *string
		mayFill := true
		switch key {
		case "id":
			to = &m.id
		case "source":
			to = &m.source
		case "campaign":
			to = &m.campaign
		case "stripe_account":
			to, mayFill = &m.account, false
		case "session":
			value, err := dec.ReadValue()
			if err != nil {
				return m, err
			}
			m.session = value.Clone()
			continue
		case "link_url", "link_id", "error":
			return m, fmt.Errorf("$.%s: is a member that the output adds, so this may be an earlier output: take the original file", key)
		default:
			m.dated = m.dated || key == "expires_at"
			if err := dec.SkipValue(); err != nil {
				return m, err
			}
			continue
		}
		value, err := dec.ReadToken()
		if err != nil {
			return m, err
		}
		if kind := value.Kind(); kind == '"' {
			*to = value.String()
		} else if kind != 'n' {
			return m, fmt.Errorf("$.%s: must be a string", key)
		}
		m.empty = m.empty || mayFill && *to == ""
	}
	if _, err := dec.ReadToken(); err != nil {
		return m, err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return m, errors.New("something follows the JSON object")
	}
	return m, nil
}

// withoutEmpty leaves out id, source and campaign where they are null or empty, so that they can be filled in.
func withoutEmpty(raw []byte) ([]byte, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	out := []byte{'{'}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		value, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		fillable := key == "id" || key == "source" || key == "campaign"
		if fillable && (value.Kind() == 'n' || string(value) == `""`) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		if out, err = jsontext.AppendQuote(out, key); err != nil {
			return nil, err
		}
		out = append(append(out, ':'), value...)
	}
	return append(out, '}'), nil
}

// appendMember adds a string to an object that is not closed yet.
func appendMember(dst []byte, name, value string) []byte {
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	dst, _ = jsontext.AppendQuote(dst, name)
	dst = append(dst, ':')
	dst, _ = jsontext.AppendQuote(dst, value) // invalid UTF-8 becomes U+FFFD
	return dst
}

// join puts the members of an object behind those of one that is not closed yet.
func join(open, object []byte) []byte {
	rest := bytes.TrimLeft(object[1:], " \t\r\n")
	if len(open) > 1 && rest[0] != '}' {
		open = append(open, ',')
	}
	return append(open, rest...)
}

// Append adds the result's members to the object as it came; expires_at only where it has none. A line that is no
// object becomes one that has its number and error.
func (j *jsonInput) Append(dst []byte, row *Row, result *Result) []byte {
	if row.object {
		dst = append(dst, bytes.TrimRight(row.Raw[:len(row.Raw)-1], " \t\r\n")...)
	} else {
		dst = append(dst, fmt.Sprintf(`{"line":%d`, row.Line)...)
	}
	if result.Err != "" {
		return append(appendMember(dst, "error", result.Err), "}\n"...)
	}
	dst = appendMember(dst, "link_url", result.URL)
	dst = appendMember(dst, "link_id", result.LinkID)
	if !row.dated {
		dst = appendMember(dst, "expires_at", result.ExpiresAt)
	}
	return append(dst, "}\n"...)
}
