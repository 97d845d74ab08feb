// Package security holds SECURITY.md to the tests that it names.
package security

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// tests are the names of all tests and fuzz targets, each behind its folder's.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				found[filepath.Base(filepath.Dir(path))+"."+f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var named = regexp.MustCompile("`([a-z]+\\.(?:Test|Fuzz)\\w+)`")

// Each line of a threat has its tests, and they exist.
func TestEveryLineOfTheThreatModelHasItsTests(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(root + "/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	_, threats, _ := strings.Cut(string(doc), "\n## Threats\n")
	existing, lines := tests(t), 0
	for line := range strings.Lines(threats) {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| what holds |") || strings.HasPrefix(line, "|---") {
			continue
		}
		lines++
		names := named.FindAllStringSubmatch(line, -1)
		if len(names) == 0 {
			t.Errorf("no test is named in: %s", line)
		}
		for _, name := range names {
			if !existing[name[1]] {
				t.Errorf("there is no test %s, of the line: %s", name[1], line)
			}
		}
	}
	if threats := strings.Count(threats, "\n### "); threats < 9 || lines < 3*threats {
		t.Errorf("%d threats with %d lines", threats, lines)
	}
}
