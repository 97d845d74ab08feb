package stack

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// minPostgres is the oldest major version that the schema and River work on.
const minPostgres = 14

// ErrNoPostgres is returned when this machine has no usable Postgres binaries.
// The error that wraps it names the ways out.
var ErrNoPostgres = errors.New("no Postgres binaries found")

// FindPostgres returns the folder that holds initdb, pg_ctl and postgres of one
// Postgres of version 14 or newer. It looks at $PG_BIN, the folders of Debian's
// and Fedora's packages (newest first), PATH, Homebrew's folders and
// Postgres.app. $PG_BIN is an order: if it is set and unusable, that is an error
// and nothing else is tried. The last resort is FetchPostgres.
func FindPostgres() (string, error) {
	if dir := os.Getenv("PG_BIN"); dir != "" {
		if _, err := versionOf(dir); err != nil {
			return "", fmt.Errorf("PG_BIN=%s: %w", dir, err)
		}
		return filepath.Abs(dir)
	}
	return firstUsable(slices.Concat(
		newestFirst("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"),
		pathFolders(),
		newestFirst("/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
			"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin"),
		newestFirst("/Applications/Postgres.app/Contents/Versions/*/bin"),
	))
}

// firstUsable returns the first of the folders that holds a usable Postgres. The
// error tells why the folders that looked like one were passed over.
func firstUsable(dirs []string) (string, error) {
	var passed []string
	for _, dir := range dirs {
		if !isExecutable(filepath.Join(dir, exe("initdb"))) {
			continue
		}
		if _, err := versionOf(dir); err != nil {
			passed = append(passed, err.Error())
			continue
		}
		return dir, nil
	}
	if len(passed) > 0 {
		return "", fmt.Errorf("%w (passed over: %s): %s", ErrNoPostgres, strings.Join(passed, "; "), waysOut())
	}
	return "", fmt.Errorf("%w: %s", ErrNoPostgres, waysOut())
}

// pathFolders lists PATH. Behind each folder comes the one that its initdb links
// to: package managers and administrators put a link to initdb alone into PATH,
// while the server lies elsewhere.
func pathFolders() []string {
	var dirs []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if !filepath.IsAbs(dir) {
			continue // never run what happens to lie in the current folder
		}
		dirs = append(dirs, dir)
		if real, err := filepath.EvalSymlinks(filepath.Join(dir, exe("initdb"))); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	return dirs
}

// newestFirst expands the patterns and sorts all matches by the last number in
// the path: the version.
func newestFirst(patterns ...string) []string {
	var dirs []string
	for _, p := range patterns {
		m, _ := filepath.Glob(p) // the only error is a bad pattern, and these are constants
		dirs = append(dirs, m...)
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return cmp.Compare(pathVersion(b), pathVersion(a)) })
	return dirs
}

var versionInPath = regexp.MustCompile(`[0-9]+(\.[0-9]+)?`)

func pathVersion(path string) float64 {
	numbers := versionInPath.FindAllString(path, -1)
	if len(numbers) == 0 {
		return 0
	}
	v, _ := strconv.ParseFloat(numbers[len(numbers)-1], 64) // digits by the expression
	return v
}

// version is what a Postgres server says of itself.
type version struct {
	major int
	full  string // the line as printed, e.g. "postgres (PostgreSQL) 17.5 (Debian …)"
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) ([0-9]+)`)

// versionOf checks that dir holds the programs that a server of one's own takes,
// all of them, and returns the version. An initdb without the server beside it
// is a common half-installation.
func versionOf(dir string) (version, error) {
	for _, name := range []string{"initdb", "pg_ctl", "postgres"} {
		if !isExecutable(filepath.Join(dir, exe(name))) {
			return version{}, fmt.Errorf("%s holds no %s", dir, name)
		}
	}
	cmd := exec.Command(filepath.Join(dir, exe("postgres")), "--version")
	cmd.Env = serverEnv()
	out, err := cmd.Output()
	if err != nil {
		return version{}, fmt.Errorf("%s does not run: %w", cmd.Path, err)
	}
	full := strings.TrimSpace(string(out))
	m := versionLine.FindStringSubmatch(full)
	if m == nil {
		return version{}, fmt.Errorf("%s is no Postgres: it says %q", cmd.Path, full)
	}
	major, _ := strconv.Atoi(m[1]) // digits by the expression
	if major < minPostgres {
		return version{}, fmt.Errorf("%s is Postgres %d; %d or newer is needed", dir, major, minPostgres)
	}
	return version{major: major, full: full}, nil
}

func exe(name string) string {
	if runtime.GOOS == "windows" {
		return name + ".exe"
	}
	return name
}

func isExecutable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && (fi.Mode()&0o111 != 0 || runtime.GOOS == "windows")
}

// installers are looked for in this order; the first that exists is what the
// user of this machine would type.
var installers = []struct{ tool, command string }{
	{"apt-get", "apt-get install postgresql"},
	{"dnf", "dnf install postgresql-server"},
	{"zypper", "zypper install postgresql-server"},
	{"pacman", "pacman -S postgresql"},
	{"apk", "apk add postgresql"},
	{"brew", "brew install postgresql@17"},
}

// waysOut tells what a person without Postgres can do, in one line.
func waysOut() string {
	install := "install Postgres 14 or newer"
	for _, i := range installers {
		if _, err := exec.LookPath(i.tool); err == nil {
			install = "run `" + i.command + "`"
			break
		}
	}
	return install + ", or set DATABASE_URL to a server you have, or PG_BIN to the folder that holds initdb and postgres"
}
