// Package compose holds docker-compose.yml to rules that its readers rely on. It parses the file
// with Compose's own library; no container engine is needed and none is started.
package compose

import (
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"go.uber.org/goleak"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pinned is a tag that names a version: a digit, then more than a major number.
var pinned = regexp.MustCompile(`:v?\d+\.\d+[\w.-]*$`)

// stateful services and where they keep their state; it must be in a named volume.
var stateful = map[string]string{"postgres": "/var/lib/postgresql/data", "nats": "/data", "mailpit": "/data"}

func load(t *testing.T) *types.Project {
	t.Helper()
	path := filepath.Join("..", "..", "docker-compose.yml")
	opts, err := cli.NewProjectOptions([]string{path}) // without the environment: the file stands alone
	if err != nil {
		t.Fatal(err)
	}
	project, err := opts.LoadProject(t.Context())
	if err != nil {
		t.Fatalf("docker-compose.yml: %v", err)
	}
	return project
}

func TestServices(t *testing.T) {
	t.Parallel()
	project := load(t)
	want := []string{"mailpit", "migrate", "nats", "postgres", "stripe-simulator", "worker"}
	if got := project.ServiceNames(); !slices.Equal(got, want) {
		t.Fatalf("services %v, want %v", got, want)
	}
	for name, s := range project.Services {
		if !pinned.MatchString(s.Image) {
			t.Errorf("%s: image %q has no tag that names a version", name, s.Image)
		}
		runsOnce := completes(project, name)
		switch {
		case runsOnce && s.Restart != types.RestartPolicyNo:
			t.Errorf("%s runs once and has restart %q", name, s.Restart)
		case !runsOnce && s.Restart != types.RestartPolicyUnlessStopped:
			t.Errorf("%s: restart %q", name, s.Restart)
		case !runsOnce && (s.HealthCheck == nil || s.HealthCheck.Disable || len(s.HealthCheck.Test) < 2):
			t.Errorf("%s has no health check", name)
		case !runsOnce && s.HealthCheck.Test[0] != "CMD":
			t.Errorf("%s: the health check is %s; the worker's image has no shell", name, s.HealthCheck.Test[0])
		}
		if target, ok := stateful[name]; ok && !hasNamedVolume(project, s, target) {
			t.Errorf("%s keeps its state in %s, which is no named volume", name, target)
		}
		for _, p := range s.Ports {
			if ip, err := netip.ParseAddr(p.HostIP); err != nil || !ip.IsLoopback() {
				t.Errorf("%s: port %s is bound to %q, not to loopback", name, p.Published, p.HostIP)
			}
		}
	}
}

// completes tells whether another service waits for this one to end well.
func completes(project *types.Project, name string) bool {
	for _, s := range project.Services {
		if s.DependsOn[name].Condition == types.ServiceConditionCompletedSuccessfully {
			return true
		}
	}
	return false
}

func hasNamedVolume(project *types.Project, s types.ServiceConfig, target string) bool {
	return slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool {
		_, declared := project.Volumes[v.Source]
		return v.Type == types.VolumeTypeVolume && v.Target == target && declared
	})
}

// A session URL with http is accepted only where Stripe is on loopback, so the simulator must be
// on the worker's loopback and its port published by the worker, under the same number.
func TestSimulatorIsOnTheWorkersLoopback(t *testing.T) {
	t.Parallel()
	project := load(t)
	worker, sim := project.Services["worker"], project.Services["stripe-simulator"]
	if sim.NetworkMode != "service:worker" {
		t.Errorf("the simulator's network_mode is %q", sim.NetworkMode)
	}
	base := env(worker, "STRIPE_API_BASE")
	u, err := portal.ParseWebURL(base)
	if err != nil || !portal.IsLoopback(u.Hostname()) {
		t.Fatalf("STRIPE_API_BASE %q is not on loopback (%v)", base, err)
	}
	published := func(p types.ServicePortConfig) bool {
		return p.Published == u.Port() && strconv.Itoa(int(p.Target)) == u.Port()
	}
	if !slices.ContainsFunc(worker.Ports, published) {
		t.Errorf("the worker does not publish the simulator's port %s", u.Port())
	}
}

// Mails leave without TLS to loopback only, so the catcher is there too.
func TestMailCatcherIsOnTheWorkersLoopback(t *testing.T) {
	t.Parallel()
	project := load(t)
	worker := project.Services["worker"]
	if mode := project.Services["mailpit"].NetworkMode; mode != "service:worker" {
		t.Errorf("the mail catcher's network_mode is %q", mode)
	}
	mailer, err := notify.NewMailer(notify.MailerConfig{URL: env(worker, "SMTP_URL"), From: env(worker, "MAIL_FROM")})
	if err != nil || mailer.Server() != "localhost:1025" {
		t.Errorf("SMTP_URL does not lead to it (%v)", err)
	}
	for _, port := range []string{"1025", "8025"} {
		if !slices.ContainsFunc(worker.Ports, func(p types.ServicePortConfig) bool { return p.Published == port }) {
			t.Errorf("the worker does not publish the mail catcher's port %s", port)
		}
	}
}

func TestWorkersSettings(t *testing.T) {
	t.Parallel()
	worker := load(t).Services["worker"]
	if _, err := portal.ParseKeys(env(worker, "LINK_KEYS")); err != nil {
		t.Errorf("LINK_KEYS: %v", err)
	}
	for _, name := range []string{"LINK_BASE_URL", "RETURN_URL"} {
		if _, err := portal.ParseWebURL(env(worker, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if live, known := portal.KeyMode(env(worker, "STRIPE_API_KEY")); live || !known {
		t.Error("STRIPE_API_KEY is not a test key")
	}
	if !strings.HasPrefix(env(worker, "ADMIN_ADDR"), "127.") && len(env(worker, "ADMIN_TOKEN")) < 32 {
		t.Error("the internal server is not on loopback and has no ADMIN_TOKEN; the worker won't start")
	}
	for _, service := range []string{"worker", "migrate"} {
		if url := env(load(t).Services[service], "DATABASE_URL"); !strings.Contains(url, "sslmode=disable") {
			t.Errorf("%s demands TLS of a Postgres that has none", service)
		}
	}
	if worker.StopGracePeriod == nil || worker.StopGracePeriod.String() != "20s" {
		t.Errorf("stop_grace_period is %v; a stop may take 15 s", worker.StopGracePeriod)
	}
}

func TestNATSSyncsEachMessage(t *testing.T) {
	t.Parallel()
	conf := load(t).Configs["nats.conf"].Content
	if !strings.Contains(conf, "sync_interval: always") || !strings.Contains(conf, "store_dir: "+stateful["nats"]) {
		t.Errorf("nats.conf does not sync each message into the volume:\n%s", conf)
	}
}

func env(s types.ServiceConfig, name string) string {
	if v := s.Environment[name]; v != nil {
		return *v
	}
	return ""
}
