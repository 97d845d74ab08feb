package bulk

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"latchkey/internal/jobs"
)

// kind is how a cell becomes JSON.
type kind int

const (
	kindString kind = iota
	kindNumber
	kindBool
	kindJSON // the cell holds JSON: an object, an array
)

// Short names of columns.
var shortNames = map[string]string{
	"customer":         "session.customer", // or customer_account, by the cell
	"flow":             "session.flow_data.type",
	"subscription":     "session.flow_data.<flow>.subscription", // by the flow's column
	"email":            "deliver.0.to",
	"template":         "deliver.0.template",
	"list_unsubscribe": "deliver.0.list_unsubscribe",
	"webhook":          "deliver.1.url",
}

// field finds the field of a request that a dotted path names. An index is a segment of its own, or in
// brackets. The rest behind metadata is one key, dots and all.
func field(path string) (segments []string, k kind, ok bool) {
	segments = strings.Split(strings.ReplaceAll(strings.ReplaceAll(path, "[", "."), "]", ""), ".")
	if segments[0] == "metadata" && len(segments) > 1 {
		_, key, _ := strings.Cut(path, ".")
		return []string{"metadata", key}, kindString, key != "" && strings.HasPrefix(path, "metadata.")
	}
	k, ok = walk(reflect.TypeFor[jobs.Request](), segments)
	return segments, k, ok
}

func walk(t reflect.Type, path []string) (kind, bool) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if len(path) == 0 {
		return kindOf(t), true
	}
	switch {
	case path[0] == "":
		return 0, false
	case t == reflect.TypeFor[jsontext.Value](): // data of a mail: text, at any depth
		return kindString, !slices.Contains(path, "")
	case t.Kind() == reflect.Slice:
		if n, err := strconv.Atoi(path[0]); err != nil || n < 0 || n > 99 || strconv.Itoa(n) != path[0] {
			return 0, false
		}
		return walk(t.Elem(), path[1:])
	case t.Kind() == reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			if jsonName(f) == path[0] {
				return walk(f.Type, path[1:])
			}
		}
	}
	return 0, false
}

func kindOf(t reflect.Type) kind {
	switch t.Kind() {
	case reflect.String:
		return kindString
	case reflect.Bool:
		return kindBool
	case reflect.Int, reflect.Int64:
		return kindNumber
	}
	return kindJSON
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// names are what a column may be called, for suggestions.
func names() []string {
	all := []string{"metadata.…", "data.…"}
	for short := range shortNames {
		all = append(all, short)
	}
	for _, path := range leaves(reflect.TypeFor[jobs.Request](), "") {
		all = append(all, path, strings.TrimPrefix(path, "session."))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func leaves(t reflect.Type, at string) (paths []string) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Slice && t != reflect.TypeFor[jsontext.Value]():
		return leaves(t.Elem(), at+".0")
	case t.Kind() == reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			paths = append(paths, leaves(f.Type, strings.TrimPrefix(at+"."+jsonName(f), "."))...)
		}
		return paths
	}
	return []string{at}
}

// suggest finds the name that was most likely meant, or returns "".
func suggest(column string) string {
	column = strings.NewReplacer(" ", "_", "-", "_").Replace(strings.ToLower(column))
	best, least := "", max(2, len(column)/3)+1
	for _, name := range names() {
		d := distance(column, name)
		if d < least || d == least && best != "" && len(name) < len(best) {
			best, least = name, d
		}
	}
	if best == "" && len(column) >= 3 {
		for _, name := range names() {
			if strings.HasPrefix(name, column) || len(name) >= 4 && strings.Contains(column, name) {
				return name
			}
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
