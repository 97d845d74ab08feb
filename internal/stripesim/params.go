package stripesim

import (
	"cmp"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxBody is far above any create call; it only keeps a broken caller in check.
const maxBody = 1 << 20

// value is one parameter as sent: a text, or a hash (also a list, whose names
// are numbers) of more values.
type value struct {
	path   string // in bracket notation, as errors name it
	text   string
	isText bool
	fields map[string]*value
}

func (v *value) field(name string) *value {
	if v == nil {
		return nil
	}
	return v.fields[name]
}

// textAt returns the text under a path of names, "" where there is none.
func (v *value) textAt(names ...string) string {
	for _, n := range names {
		v = v.field(n)
	}
	if v == nil {
		return ""
	}
	return v.text
}

func (v *value) names() []string { return slices.Sorted(maps.Keys(v.fields)) }

// items returns the values of a list in order, and whether it is one.
func (v *value) items() ([]*value, bool) {
	type item struct {
		n int
		v *value
	}
	var list []item
	for name, f := range v.fields {
		n, err := strconv.Atoi(name)
		if err != nil || n < 0 {
			return nil, false
		}
		list = append(list, item{n, f})
	}
	slices.SortFunc(list, func(a, b item) int { return cmp.Compare(a.n, b.n) })
	out := make([]*value, len(list))
	for i, it := range list {
		out[i] = it.v
	}
	return out, !v.isText
}

// fieldItems returns the items of a list in a hash, none where it was not given.
func (v *value) fieldItems(name string) ([]*value, bool) {
	if f := v.field(name); f != nil {
		return f.items()
	}
	return nil, true
}

// child returns the named part of v, made where it is missing.
func (v *value) child(name string) *value {
	if c := v.fields[name]; c != nil {
		return c
	}
	path := name
	if v.path != "" {
		path = v.path + "[" + name + "]"
	}
	if v.fields == nil {
		v.fields = map[string]*value{}
	}
	c := &value{path: path}
	v.fields[name] = c
	return c
}

// readForm reads the body's parameters. Only form encoding is accepted: JSON
// sent to the v1 API is the mistake this has to catch (rule 2).
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, *apiError) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, bad("", "", "Invalid request: the body could not be read.")
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if len(body) > 0 && kind != "application/x-www-form-urlencoded" {
		return nil, bad("", "", "Invalid request (check that your POST content type is application/x-www-form-urlencoded).")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, bad("", "", "Invalid request: the body is not valid form encoding.")
	}
	return form, nil
}

// tree turns bracket notation (a[b][0][c]=x, a[]=x) into values. Of a repeated
// scalar the last one counts, as with Stripe.
func tree(form url.Values) (*value, *apiError) {
	root := &value{}
	for _, key := range slices.Sorted(maps.Keys(form)) {
		for i, text := range form[key] {
			v := root
			for _, name := range segments(key) {
				if v.isText {
					return nil, errTwoKinds(v)
				}
				if name == "" {
					name = strconv.Itoa(i) // a[]: the next place of the list
				}
				v = v.child(name)
			}
			if v.fields != nil {
				return nil, errTwoKinds(v)
			}
			v.text, v.isText = text, true
		}
	}
	return root, nil
}

func errTwoKinds(v *value) *apiError {
	return bad(v.path, "", "Invalid %s: it is given both as a string and as an object.", v.path)
}

// maxDepth is above any parameter's; each level repeats the path of those above.
const maxDepth = 10

// segments splits a key at its brackets. A key with brackets out of order, or
// too many, is one name, which no schema knows.
func segments(key string) []string {
	name, rest, found := strings.Cut(key, "[")
	if !found || name == "" {
		return []string{key}
	}
	out := []string{name}
	for rest = "[" + rest; rest != ""; {
		inner, after, closed := strings.Cut(rest[1:], "]")
		if rest[0] != '[' || !closed || strings.Contains(inner, "[") || len(out) == maxDepth {
			return []string{key}
		}
		out, rest = append(out, inner), after
	}
	return out
}
