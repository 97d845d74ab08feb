package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// settings has a field of each type in use. Its names are nobody else's; tests set them by
// t.Setenv, so they do not run in parallel.
type settings struct {
	URL    string        `envconfig:"CFGTEST_URL" default:"nats://here"`
	TTL    time.Duration `envconfig:"CFGTEST_TTL" default:"336h"`
	Manage bool          `envconfig:"CFGTEST_MANAGE" default:"true"`
	Rate   float64       `envconfig:"CFGTEST_RATE" default:"20"`
	Count  int           `envconfig:"CFGTEST_COUNT"`
	Roles  []string      `envconfig:"CFGTEST_ROLES" default:"intake,jobs"`
	Secret string        `envconfig:"CFGTEST_SECRET" secret:"true"`
	Server string        `envconfig:"CFGTEST_SERVER" default:"nats://here" secret:"true"`
	Group  group

	derived *group // by validation
}

type group struct {
	Name string `envconfig:"CFGTEST_NAME"`
	Key  string `envconfig:"CFGTEST_KEY" secret:"true"`
}

const hush = "hush-hush"

func load(t *testing.T, env map[string]string) (settings, Problems) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	var s settings
	problems := Load(&s)
	for _, p := range problems {
		if strings.Contains(p, hush) {
			t.Errorf("a problem repeats the value: %s", p)
		}
	}
	return s, problems
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaults(t *testing.T) {
	s, problems := load(t, nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if s.URL != "nats://here" || s.TTL != 336*time.Hour || !s.Manage || s.Rate != 20 || s.Count != 0 ||
		!slices.Equal(s.Roles, []string{"intake", "jobs"}) || s.Secret != "" || s.Group.Name != "" || s.derived != nil {
		t.Errorf("defaults: %+v", s)
	}
}

func TestValues(t *testing.T) {
	s, problems := load(t, map[string]string{"CFGTEST_URL": "a", "CFGTEST_TTL": "1h30m", "CFGTEST_MANAGE": "false", "CFGTEST_RATE": "0.5",
		"CFGTEST_COUNT": "7", "CFGTEST_ROLES": "click", "CFGTEST_SECRET": hush, "CFGTEST_NAME": "n", "CFGTEST_KEY": hush})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if s.URL != "a" || s.TTL != 90*time.Minute || s.Manage || s.Rate != 0.5 || s.Count != 7 || !slices.Equal(s.Roles, []string{"click"}) ||
		s.Secret != hush || s.Group.Name != "n" || s.Group.Key != hush {
		t.Errorf("values: %+v", s)
	}
}

func TestPrefix(t *testing.T) {
	s, problems := load(t, map[string]string{"LATCHKEY_CFGTEST_URL": "prefixed", "CFGTEST_URL": "plain", "LATCHKEY_CFGTEST_NAME": "n",
		"LATCHKEY_CFGTEST_SECRET_FILE": file(t, hush)})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if s.URL != "prefixed" || s.Group.Name != "n" || s.Secret != hush {
		t.Errorf("with the prefix: %+v", s)
	}
}

// A compose file passes on a variable that is not set as an empty one.
func TestEmptyCountsAsNotSet(t *testing.T) {
	s, problems := load(t, map[string]string{"CFGTEST_URL": "", "LATCHKEY_CFGTEST_URL": "", "CFGTEST_TTL": "", "CFGTEST_MANAGE": "",
		"CFGTEST_RATE": "", "CFGTEST_ROLES": "", "CFGTEST_COUNT": "", "LATCHKEY_CFGTEST_NAME": "", "CFGTEST_NAME": "n",
		"CFGTEST_SECRET": "", "CFGTEST_SECRET_FILE": file(t, hush), "CFGTEST_KEY_FILE": ""})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if s.URL != "nats://here" || s.TTL != 336*time.Hour || !s.Manage || s.Rate != 20 || len(s.Roles) != 2 || s.Group.Name != "n" || s.Secret != hush {
		t.Errorf("with empty variables: %+v", s)
	}
}

func TestSecretFromAFile(t *testing.T) {
	s, problems := load(t, map[string]string{"CFGTEST_SECRET_FILE": file(t, "\n "+hush+"\r\n"), "CFGTEST_KEY_FILE": file(t, "k"), "CFGTEST_SERVER_FILE": file(t, "in place of the default")})
	if len(problems) > 0 || s.Secret != hush || s.Group.Key != "k" || s.Server != "in place of the default" {
		t.Errorf("secrets %q, %q and %q (%v)", s.Secret, s.Group.Key, s.Server, problems)
	}
}

// A file is for secrets alone: another name's _FILE means nothing.
func TestNoFileForOtherSettings(t *testing.T) {
	s, problems := load(t, map[string]string{"CFGTEST_URL_FILE": file(t, "from the file")})
	if len(problems) > 0 || s.URL != "nats://here" {
		t.Errorf("URL %q (%v)", s.URL, problems)
	}
}

func TestAllProblemsAtOnceByNameAndWithoutValues(t *testing.T) {
	_, problems := load(t, map[string]string{
		"CFGTEST_TTL": hush, "LATCHKEY_CFGTEST_MANAGE": hush, "CFGTEST_RATE": hush, "CFGTEST_COUNT": "1" + hush,
		"CFGTEST_SECRET": hush, "CFGTEST_SECRET_FILE": file(t, hush), "CFGTEST_KEY_FILE": "/nonexistent/" + hush,
	})
	var names []string
	for _, p := range problems {
		name, _, _ := strings.Cut(p, ":")
		names = append(names, name)
	}
	want := []string{"CFGTEST_TTL", "CFGTEST_MANAGE", "CFGTEST_RATE", "CFGTEST_COUNT", "CFGTEST_SECRET_FILE", "CFGTEST_KEY_FILE"}
	if !slices.Equal(names, want) {
		t.Errorf("problems of %v, want of %v", names, want)
	}
	text := problems.Error()
	for _, part := range []string{"6 settings", "duration", "true or false", "a number", "use one of them", "can't be read"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}
}

func TestDurationsNeedAUnit(t *testing.T) {
	for _, value := range []string{"336", "14d", "1 h", "hush-hush"} {
		if _, problems := load(t, map[string]string{"CFGTEST_TTL": value}); len(problems) != 1 || !strings.HasPrefix(problems.Error(), "CFGTEST_TTL: must be a duration") {
			t.Errorf("%s: %v", value, problems)
		}
	}
}

func TestConnectNamesNoPassword(t *testing.T) {
	for _, url := range []string{
		"nats://user:" + hush + "@127.0.0.1:1",
		"nats://user:%zz" + hush + "@127.0.0.1:1",
		"nats://127.0.0.1:" + hush,
		"nats://a b:" + hush + "@127.0.0.1:1",
		"127.0.0.1:1,nats://user:" + hush + "@[::1:1",
	} {
		_, err := NATS{URL: url}.Connect("test")
		if err == nil || strings.Contains(err.Error(), hush) || !strings.Contains(err.Error(), "NATS_URL") {
			t.Errorf("Connect(%s) = %v", url, err)
		}
	}
	if _, err := (NATS{URL: "nats://127.0.0.1:1", CA: "/nonexistent/ca.pem"}).Connect("test"); err == nil {
		t.Error("connected without the CA's file")
	}
}
