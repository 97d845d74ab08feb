// Package config reads settings from the environment by envconfig, with what envconfig leaves
// out: every problem at once, each by name and never by value, and secrets from files.
//
// A field `envconfig:"NAME"` is read from LATCHKEY_NAME or NAME; one tagged secret:"true" also
// from the file that LATCHKEY_NAME_FILE or NAME_FILE names. A variable that is set but empty, as
// compose files leave them, counts as not set: Load takes it out of the environment.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// Prefix is the one that every name also works with.
const Prefix = "LATCHKEY"

// Problems is returned by Load and by validation: every setting that is not right.
type Problems []string

// Error lists them, one a line where there are several.
func (p Problems) Error() string {
	if len(p) == 1 {
		return p[0]
	}
	return fmt.Sprintf("%d settings are not right:\n  %s", len(p), strings.Join(p, "\n  "))
}

// Add appends a problem of a named setting.
func (p *Problems) Add(name, format string, args ...any) {
	*p = append(*p, name+": "+fmt.Sprintf(format, args...))
}

// Has tells whether a setting has been complained of.
func (p Problems) Has(name string) bool {
	return slices.ContainsFunc(p, func(s string) bool { return strings.HasPrefix(s, name+":") })
}

// Load fills the struct that dst points to. Fields are processed one by one, because envconfig
// itself stops at the first error and quotes the value in it.
func Load(dst any) Problems {
	var problems Problems
	v := reflect.ValueOf(dst).Elem()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue // what validation derives
		}
		name := f.Tag.Get("envconfig")
		if name == "" { // a group of settings
			problems = append(problems, Load(v.Field(i).Addr().Interface())...)
			continue
		}
		for _, key := range []string{Prefix + "_" + name, name} {
			if os.Getenv(key) == "" {
				_ = os.Unsetenv(key) // fails for names that no variable can have
			}
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{f}))
		if err := envconfig.Process(Prefix, one.Interface()); err != nil {
			problems.Add(name, "must be %s", expected(f.Type))
			continue
		}
		v.Field(i).Set(one.Elem().Field(0))
		if f.Tag.Get("secret") == "true" {
			if err := fromFile(name, v.Field(i)); err != nil {
				problems.Add(name+"_FILE", "%v", err)
			}
		}
	}
	return problems
}

// fromFile reads a secret from the file that NAME_FILE names; both at once is a mistake.
func fromFile(name string, field reflect.Value) error {
	path := SecretFile(name)
	if path == "" {
		return nil
	}
	if os.Getenv(Prefix+"_"+name) != "" || os.Getenv(name) != "" {
		return fmt.Errorf("is set beside %s; use one of them", name)
	}
	content, err := readSecret(path)
	if err != nil {
		return err
	}
	field.SetString(content)
	return nil
}

// SecretFile is the path of the file that a secret is read from, or "" where it is not.
func SecretFile(name string) string {
	return cmp.Or(os.Getenv(Prefix+"_"+name+"_FILE"), os.Getenv(name+"_FILE"))
}

// readSecret leaves the path out of its error: a secret set as NAME_FILE by mistake would stand there.
func readSecret(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return "", fmt.Errorf("the file can't be read: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

func expected(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration, such as 336h or 90m"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int, t.Kind() == reflect.Float64:
		return "a number"
	}
	return "of the form that the documentation gives"
}
