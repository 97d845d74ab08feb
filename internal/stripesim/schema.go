package stripesim

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// kind is the type of a parameter.
type kind int

const (
	kindText kind = iota
	kindEnum
	kindID
	kindLink
	kindInteger
	kindHash
	kindList
)

// maxText is Stripe's limit for strings that name no limit of their own.
const maxText = 5000

// spec describes one parameter and, of a hash, what is in it. The same spec
// checks what was sent and renders it into the answer.
type spec struct {
	name     string
	kind     kind
	required bool
	// only names the value of the hash's "type" that this field belongs to.
	// With another type it is an error, and required is meant for that type.
	only string

	allowed   []string // enum
	blankOK   bool     // enum: "" means as if not given
	prefix    string   // id
	noun      string   // id: "No such <noun>"
	customer  bool     // id: whether it exists is for the world to say
	max       int      // text: characters; list: items
	since     string   // first Stripe-Version that knows the parameter
	fields    []spec   // hash, "type" first
	item      *spec    // list
	constrain func(*value) *apiError
}

// known reports whether the version has this parameter.
func (s *spec) known(version string) bool { return s.since == "" || version >= s.since }

func (s *spec) sub(name, version string) *spec {
	for i := range s.fields {
		if f := &s.fields[i]; f.name == name && f.known(version) {
			return f
		}
	}
	return nil
}

// unknown lists the parameters that the spec does not have, in all depths.
func (s *spec) unknown(v *value, version string) []string {
	var out []string
	switch {
	case s.kind == kindHash:
		for _, name := range v.names() {
			if f := s.sub(name, version); f == nil {
				out = append(out, v.fields[name].path)
			} else {
				out = append(out, f.unknown(v.fields[name], version)...)
			}
		}
	case s.kind == kindList && s.item.kind == kindHash:
		items, _ := v.items()
		for _, it := range items {
			out = append(out, s.item.unknown(it, version)...)
		}
	}
	return out
}

// check validates a parameter and everything in it (rules 2 to 4, 6).
func (s *spec) check(v *value, version string) *apiError {
	switch s.kind {
	case kindHash:
		return s.checkHash(v, version)
	case kindList:
		return s.checkList(v, version)
	}
	if !v.isText {
		return bad(v.path, "", "Invalid string: %s must be a string, not an object.", v.path)
	}
	if v.text == "" && !s.blankOK {
		return errEmpty(v.path)
	}
	return s.checkText(v)
}

func (s *spec) checkText(v *value) *apiError {
	limit := maxText
	if s.max > 0 {
		limit = s.max
	}
	if utf8.RuneCountInString(v.text) > limit {
		return errTooLong(v.path, v.text, limit)
	}
	switch s.kind {
	case kindEnum:
		if !slices.Contains(s.allowed, v.text) && !(s.blankOK && v.text == "") {
			return errEnum(v.path, s.allowed)
		}
	case kindID:
		// Stripe does not judge the form of an id, it just finds nothing.
		if !strings.HasPrefix(v.text, s.prefix) || v.text == s.prefix {
			return errNoSuch(v.path, s.noun, v.text)
		}
	case kindLink:
		return checkURL(v)
	case kindInteger:
		if n, err := strconv.ParseInt(v.text, 10, 64); err != nil {
			return bad(v.path, "parameter_invalid_integer", "Invalid integer: %s", v.text)
		} else if n < 0 {
			return bad(v.path, "parameter_invalid_integer", "This value must be greater than or equal to 0.")
		}
	}
	return nil
}

func checkURL(v *value) *apiError {
	u, err := url.Parse(v.text)
	switch {
	case err == nil && u.Scheme == "":
		return bad(v.path, "url_invalid", "Invalid URL: An explicit scheme (such as https) must be provided.")
	case err != nil, u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "":
		return bad(v.path, "url_invalid", "Not a valid URL")
	}
	return nil
}

func (s *spec) checkHash(v *value, version string) *apiError {
	if v.isText {
		return bad(v.path, "", "Invalid object")
	}
	for i := range s.fields {
		f := &s.fields[i]
		if !f.known(version) {
			continue
		}
		if err := f.checkIn(v, version); err != nil {
			return err
		}
	}
	if s.constrain != nil {
		return s.constrain(v)
	}
	return nil
}

// checkIn checks the field f of the hash parent, where it may be missing.
func (f *spec) checkIn(parent *value, version string) *apiError {
	active := f.only == "" || f.only == parent.textAt("type")
	v := parent.field(f.name)
	switch {
	case v == nil && f.required && active:
		path := f.name
		if parent.path != "" {
			path = parent.path + "[" + f.name + "]"
		}
		return errMissing(path)
	case v == nil:
		return nil
	case !active:
		return bad(v.path, "", "You may only specify `%s` when `%s[type]` is `%s`.", v.path, parent.path, f.only)
	}
	return f.check(v, version)
}

func (s *spec) checkList(v *value, version string) *apiError {
	items, ok := v.items()
	if !ok {
		return bad(v.path, "", "Invalid array")
	}
	if s.max > 0 && len(items) > s.max {
		return bad(v.path, "", "Array %s exceeded maximum %d allowed elements.", v.path, s.max)
	}
	for _, it := range items {
		if err := s.item.check(it, version); err != nil {
			return err
		}
	}
	return nil
}

// findMissing returns the error for the first id that never exists (rule 12),
// other than the customer, who has rules of their own.
func (s *spec) findMissing(v *value) *apiError {
	if v == nil {
		return nil
	}
	switch s.kind {
	case kindHash:
		for i := range s.fields {
			if err := s.fields[i].findMissing(v.field(s.fields[i].name)); err != nil {
				return err
			}
		}
	case kindList:
		items, _ := v.items()
		for _, it := range items {
			if err := s.item.findMissing(it); err != nil {
				return err
			}
		}
	case kindID:
		if !s.customer && isMissing(v.text) {
			return errNoSuch(v.path, s.noun, v.text)
		}
	}
	return nil
}

// render turns the parameter into what the answer shows of it: every field of
// the spec, null where it was not given.
func (s *spec) render(v *value) any {
	if v == nil {
		return nil
	}
	switch s.kind {
	case kindHash:
		out := map[string]any{}
		for i := range s.fields {
			out[s.fields[i].name] = s.fields[i].render(v.field(s.fields[i].name))
		}
		return out
	case kindList:
		items, _ := v.items()
		out := make([]any, len(items))
		for i, it := range items {
			out[i] = s.item.render(it)
		}
		return out
	case kindInteger:
		n, _ := strconv.ParseInt(v.text, 10, 64) // checked before
		return n
	}
	if v.text == "" {
		return nil
	}
	return v.text
}
