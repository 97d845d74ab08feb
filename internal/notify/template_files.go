package notify

import (
	"bytes"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	texttemplate "text/template"
	"unicode/utf8"

	"latchkey/internal/locale"
)

// partNames are the parts of a mail, which are how its files' names end.
var partNames = []string{"subject", "txt", "html"}

// templateFile is a file NAME.PART or NAME.LOCALE.PART.
type templateFile struct{ name, locale, part string }

func (f templateFile) String() string {
	if f.locale == "" {
		return f.name + "." + f.part
	}
	return f.name + "." + f.locale + "." + f.part
}

// templateFiles are the parsed files, the operator's in place of built-in ones.
type templateFiles map[templateFile]template

// readTemplates parses the built-in templates and over them those of the operator's folder, where
// there is one.
func readTemplates(dir string) (templateFiles, error) {
	files := templateFiles{}
	for _, part := range partNames {
		source, err := mailFiles.ReadFile("templates/mail." + part)
		if err != nil {
			return nil, err
		}
		tmpl, err := parse(part, "mail."+part, source)
		if err != nil {
			return nil, err
		}
		for _, name := range builtin {
			files[templateFile{name: name, part: part}] = tmpl
		}
	}
	if dir == "" {
		return files, nil
	}
	return files, files.readFolder(dir)
}

// readFolder adds the operator's files.
func (t templateFiles) readFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("the folder of mail templates can't be read: %w", err)
	}
	var unknown []string
	for _, entry := range entries {
		if leftover(entry.Name()) {
			continue
		}
		file, ok := parseTemplateName(entry.Name())
		if !ok {
			unknown = append(unknown, entry.Name())
			continue
		}
		path := filepath.Join(dir, entry.Name())
		source, err := os.ReadFile(path) // follows links: a mounted config map is nothing else
		if err != nil {
			return fmt.Errorf("a mail template can't be read: %w", err)
		}
		if t[file], err = parse(file.part, path, source); err != nil {
			return err
		}
	}
	if len(unknown) > 0 {
		return fmt.Errorf("the folder of mail templates has files that are none: %q; their names are NAME.PART or NAME.LOCALE.PART, NAME of [a-z0-9_]{1,40}, LOCALE one of Stripe's such as pt-BR, PART subject, txt or html", unknown)
	}
	return nil
}

// leftover tells what editors, version control and mounts leave in a folder.
func leftover(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~") ||
		slices.Contains([]string{".bak", ".orig", ".swp", ".tmp"}, filepath.Ext(name))
}

// templateName is what a request's template may be, so that no file lies there unused.
var templateName = regexp.MustCompile(`^[a-z0-9_]{1,40}$`)

func parseTemplateName(name string) (templateFile, bool) {
	fields := strings.Split(name, ".")
	if len(fields) == 2 {
		fields = []string{fields[0], "", fields[1]}
	} else if len(fields) != 3 || !slices.Contains(locale.All(), fields[1]) {
		return templateFile{}, false
	}
	f := templateFile{fields[0], fields[1], fields[2]}
	return f, templateName.MatchString(f.name) && slices.Contains(partNames, f.part)
}

// resolve finds a mail's parts for each locale: the locale's own, that of the one whose words it
// inherits, or the one for all.
func (t templateFiles) resolve(name string) (map[string]parts, error) {
	mail := map[string]parts{}
	for _, tag := range locale.All() {
		mail[tag] = parts{}
		for _, part := range partNames {
			tmpl := t[templateFile{name, "", part}]
			for l := tag; l != ""; l = locale.Parent(l) {
				if own, ok := t[templateFile{name, l, part}]; ok {
					tmpl = own
					break
				}
			}
			if tmpl == nil {
				return nil, fmt.Errorf("the mail template %s lacks a file for %s; add %s", name, tag, templateFile{name: name, part: part})
			}
			mail[tag][part] = tmpl
		}
	}
	return mail, nil
}

// parse names the file in the template's errors.
func parse(part, file string, source []byte) (template, error) {
	source = bytes.TrimPrefix(source, []byte("\ufeff"))
	if !utf8.Valid(source) {
		return nil, fmt.Errorf("template: %s: is not UTF-8; save it as such", file)
	}
	text := lineEnds.Replace(string(source))
	if part == "html" {
		return parseHTML(file, text)
	}
	tmpl, err := texttemplate.New(file).Option("missingkey=zero").Parse(text)
	if err != nil {
		return nil, err
	}
	return tmpl, nil
}

// parseHTML keeps what html/template would drop: the comments by which a mail tells Outlook on
// Windows from the others. What stands between two of them is escaped as all else is, and since
// that leaves no '>' in a value, no value can end such a comment.
func parseHTML(file, source string) (template, error) {
	source = conditional.ReplaceAllStringFunc(source, func(c string) string { return fmt.Sprintf("{{outlook %q}}", c) })
	tmpl, err := htmltemplate.New(file).Funcs(htmltemplate.FuncMap{"outlook": outlook}).Option("missingkey=zero").Parse(source)
	if err != nil {
		return nil, err
	}
	return tmpl, nil
}

// conditional is the beginning or the end of a conditional comment of Outlook's, in the usual forms:
// <!--[if mso]>, <!--[if !mso]><!-->, <![endif]--> and <!--<![endif]-->.
var conditional = regexp.MustCompile(`<!--\[if [()!&|a-z0-9 ]+\]>(?:<!-->)?|(?:<!--)?<!\[endif\]-->`)

// outlook lets such a comment through, and nothing else: a template could call it with data.
func outlook(comment string) (htmltemplate.HTML, error) {
	if conditional.FindString(comment) != comment {
		return "", errors.New("is no conditional comment")
	}
	return htmltemplate.HTML(comment), nil
}
