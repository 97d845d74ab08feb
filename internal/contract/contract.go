// Package contract holds the code against the machine-readable contract: docs/schemas and
// docs/asyncapi.yaml. Only tests import it.
//
// The schemas are written by hand. What keeps them true:
//
//  1. A schema has the fields that the Go type has, and no other (SameFields).
//  2. Kinds, codes and states are the Go constants (Enum, Constants).
//  3. What the service accepts is valid, and what it refuses for a reason that a schema can tell is
//     not: the tables and the mutations in the tests of internal/jobs and internal/portal.
//  4. What the service sends is valid: the events and answers in the tests of cmd/worker.
//  5. Whoever else reads the schemas can: interop/ has the validators of other languages.
package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Root returns the module's folder.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test's folder")
		}
		dir = parent
	}
}

// Schema compiles a schema of docs/schemas. ref is a file and a JSON pointer into it, such as
// request.schema.json#/$defs/session. Formats are asserted.
func Schema(t testing.TB, ref string) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(filepath.Join(Root(t), "docs", "schemas", ref))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Validate holds a JSON text against a schema.
func Validate(s *jsonschema.Schema, body []byte) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

// CheckEvent fails the test where an event is not valid, or has a field that its schema does not tell of:
// the schema leaves room for new fields, so that readers do, but each is to stand in it.
func CheckEvent(t testing.TB, events *jsonschema.Schema, body []byte) {
	t.Helper()
	var event struct {
		Type string
		Data map[string]any
	}
	if err := json.Unmarshal(body, &event); err != nil {
		t.Fatal(err)
	}
	if err := Validate(events, body); err != nil {
		t.Errorf("%s\n%v", body, err)
	}
	for _, one := range events.OneOf {
		if slices.Contains(Enum(t, one, "type"), event.Type) {
			known := properties(properties([]*jsonschema.Schema{one})["data"])
			for name := range event.Data {
				if known[name] == nil {
					t.Errorf("the data of %s has the field %s, which its schema lacks", event.Type, name)
				}
			}
		}
	}
}

// SameFields fails the test where a type's JSON fields are not the schema's properties, in any depth.
func SameFields(t testing.TB, typ reflect.Type, s *jsonschema.Schema) {
	t.Helper()
	sameFields(t, typ.Name(), typ, []*jsonschema.Schema{s})
}

func sameFields(t testing.TB, at string, typ reflect.Type, schemas []*jsonschema.Schema) {
	t.Helper()
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		if typ.Kind() == reflect.Slice {
			schemas = items(schemas)
		}
		typ = typ.Elem()
	}
	fields := jsonFields(typ)
	if len(fields) == 0 {
		return
	}
	props := properties(schemas)
	for name, field := range fields {
		if len(props[name]) == 0 {
			t.Errorf("%s: the schema lacks the field %s", at, name)
			continue
		}
		sameFields(t, at+"."+name, field, props[name])
	}
	for name := range props {
		if fields[name] == nil {
			t.Errorf("%s: the schema has a field that the Go type lacks: %s", at, name)
		}
	}
}

// jsonFields are a struct's fields by the name in their json tag, those of embedded structs included.
func jsonFields(typ reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	if typ.Kind() != reflect.Struct {
		return fields
	}
	for _, f := range reflect.VisibleFields(typ) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	return fields
}

// spread returns schemas with all that they consist of.
func spread(schemas []*jsonschema.Schema) (all []*jsonschema.Schema) {
	for _, s := range schemas {
		all = append(all, s)
		if s.Ref != nil {
			all = append(all, spread([]*jsonschema.Schema{s.Ref})...)
		}
		all = append(all, spread(slices.Concat(s.AllOf, s.AnyOf, s.OneOf))...)
	}
	return all
}

func properties(schemas []*jsonschema.Schema) map[string][]*jsonschema.Schema {
	props := map[string][]*jsonschema.Schema{}
	for _, s := range spread(schemas) {
		for name, p := range s.Properties {
			props[name] = append(props[name], p)
		}
	}
	return props
}

func items(schemas []*jsonschema.Schema) (out []*jsonschema.Schema) {
	for _, s := range spread(schemas) {
		if s.Items2020 != nil {
			out = append(out, s.Items2020)
		}
	}
	return out
}

// Enum returns the values of the enum or const at the end of a path of property names, sorted and
// without null.
func Enum(t testing.TB, s *jsonschema.Schema, path ...string) []string {
	t.Helper()
	schemas := []*jsonschema.Schema{s}
	for _, name := range path {
		schemas = properties(schemas)[name]
	}
	var values []string
	for _, s := range spread(schemas) {
		if s.Enum != nil {
			for _, v := range s.Enum.Values {
				if v != nil {
					values = append(values, fmt.Sprint(v))
				}
			}
		}
		if s.Const != nil {
			values = append(values, fmt.Sprint(*s.Const))
		}
	}
	if len(values) == 0 {
		t.Fatalf("%s has no enum at %v", s.Location, path)
	}
	slices.Sort(values)
	return slices.Compact(values)
}

// Constants returns the values of a package's string constants of one type, sorted. dir is the
// package's folder, below Root.
func Constants(t testing.TB, dir, typ string) (values []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(Root(t), dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no Go file in %s (%v)", dir, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok {
				values = append(values, constant(t, spec, typ)...)
			}
			return true
		})
	}
	slices.Sort(values)
	return values
}

// constant returns the value of a declaration such as `X Kind = "x"`.
func constant(t testing.TB, spec *ast.ValueSpec, typ string) []string {
	t.Helper()
	name, named := spec.Type.(*ast.Ident)
	if !named || name.Name != typ || len(spec.Values) != 1 {
		return nil
	}
	value, literal := spec.Values[0].(*ast.BasicLit)
	if !literal {
		t.Fatalf("a constant of the type %s is no literal", typ)
	}
	s, err := strconv.Unquote(value.Value)
	if err != nil {
		t.Fatal(err)
	}
	return []string{s}
}
