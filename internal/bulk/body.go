package bulk

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// node is a part of the request's JSON, made from the header once and filled from each row: an object,
// an array, or a cell's value. A node without a value is left out, with what would be around it.
type node struct {
	key   string // as it is written before the value, `"customer":`; empty in an array
	name  string
	array bool
	kids  []*node

	fixed string                    // a value that goes along with others
	needs int                       // a column without which the whole node is left out; -1 = none
	cell  int                       // the column of the value; -1 = not a cell
	kind  kind                      // of the cell
	fits  func(cells []string) bool // nil = always; else whether the cell's value goes here
}

func newNode(name string) *node {
	n := &node{name: name, needs: -1, cell: -1}
	if name != "" {
		quoted, _ := jsontext.AppendQuote(nil, name) // the header is valid UTF-8
		n.key = string(quoted) + ":"
	}
	return n
}

// at finds or makes the node at a path.
func (n *node) at(path []string) *node {
	if len(path) == 0 {
		return n
	}
	for _, kid := range n.kids {
		if kid.name == path[0] {
			return kid.at(path[1:])
		}
	}
	kid := newNode(path[0])
	n.kids = append(n.kids, kid)
	return kid.at(path[1:])
}

var errMixed = errors.New("stands beside columns of what is inside of it")

// settle finds the arrays, once all columns are there.
func (n *node) settle(inMap bool) error {
	if len(n.kids) > 0 && n.cell >= 0 {
		return errMixed
	}
	n.array = len(n.kids) > 0 && !inMap
	for _, kid := range n.kids {
		if _, err := strconv.Atoi(kid.name); err != nil {
			n.array = false
		}
	}
	if n.array {
		slices.SortFunc(n.kids, func(a, b *node) int { return cmp.Compare(index(a), index(b)) })
	}
	for _, kid := range n.kids {
		if n.array {
			kid.key = ""
		}
		if err := kid.settle(inMap || kid.name == "data" || kid.name == "metadata"); err != nil {
			return err
		}
	}
	return nil
}

func index(n *node) int {
	i, _ := strconv.Atoi(n.name)
	return i
}

// append adds the node's value; there tells whether it has one.
func (n *node) append(dst []byte, cells []string) (_ []byte, there bool, err error) {
	if n.needs >= 0 && cells[n.needs] == "" {
		return dst, false, nil
	}
	if n.cell >= 0 {
		return n.appendCell(dst, cells)
	}
	start := len(dst)
	if n.array {
		dst = append(dst, '[')
	} else {
		dst = append(dst, '{')
	}
	empty := len(dst)
	for _, kid := range n.kids {
		mark := len(dst)
		if mark > empty {
			dst = append(dst, ',')
		}
		dst = append(dst, kid.key...)
		if kid.fixed != "" {
			dst, there = append(dst, kid.fixed...), true
		} else if dst, there, err = kid.append(dst, cells); err != nil {
			return dst, false, err
		}
		if !there {
			dst = dst[:mark]
		}
	}
	if len(dst) == empty {
		return dst[:start], false, nil
	}
	if n.array {
		return append(dst, ']'), true, nil
	}
	return append(dst, '}'), true, nil
}

func (n *node) appendCell(dst []byte, cells []string) (_ []byte, there bool, err error) {
	cell := cells[n.cell]
	if cell == "" || n.fits != nil && !n.fits(cells) {
		return dst, false, nil
	}
	switch n.kind {
	case kindNumber:
		number, err := strconv.ParseInt(cell, 10, 64)
		if err != nil {
			return dst, false, fmt.Errorf("%s: must be a whole number (got %s)", n.name, characters(cell))
		}
		return strconv.AppendInt(dst, number, 10), true, nil
	case kindBool:
		value := strings.ToLower(cell)
		if value != "true" && value != "false" {
			return dst, false, fmt.Errorf("%s: must be true or false (got %s)", n.name, characters(cell))
		}
		return append(dst, value...), true, nil
	case kindJSON:
		if value := jsontext.Value(cell); !value.IsValid() || value.Kind() != '{' && value.Kind() != '[' {
			return dst, false, fmt.Errorf("%s: must be JSON, an object or an array (got %s)", n.name, characters(cell))
		}
		return append(dst, cell...), true, nil
	}
	dst, err = jsontext.AppendQuote(dst, cell)
	return dst, err == nil, err
}

// characters describes a cell without giving it away.
func characters(cell string) string { return fmt.Sprintf("a cell of %d characters", len([]rune(cell))) }
