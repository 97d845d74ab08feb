package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/mailcatcher"
	"latchkey/internal/portal"
	"latchkey/internal/stripesim"
	"latchkey/internal/testkit"
)

// command runs the worker with arguments to its end.
func (d *deployment) command(env []string, args ...string) (code int, out string) {
	d.t.Helper()
	p := d.exec(env, args...)
	code = p.exit()
	return code, p.out.String()
}

func TestBadSettingsAreReportedTogetherWithoutTheirValues(t *testing.T) {
	t.Parallel()
	d := &deployment{t: t, database: "postgres://u:secret-password@:::/x", nats: "nats://127.0.0.1:1"}
	code, out := d.command([]string{"STRIPE_API_KEY=pk_wrong_kind", "LINK_BASE_URL=http://pay.example.com/path", "LINK_KEYS=1:c2VjcmV0",
		"LINK_TTL=fortnight", "NATS_URL=:::bad", "HTTP_ADDR=nonsense", "ADMIN_ADDR=127.0.0.1:port", "TRUSTED_PROXIES=10.0.0.0/99", "ROLES=intake,cook", "LOG_LEVEL=loud", "RETURN_URL=ftp://x",
		"BRAND_COLOR=mauve", "BRAND_LOGO_URL=http://cdn.example.com/logo.svg", "PORTAL_LOGIN_URL=javascript:alert(1)", "SUPPORT_URL=ftp://help"}, "run")
	if code != 1 {
		t.Errorf("exit %d", code)
	}
	for _, name := range []string{"STRIPE_API_KEY", "LINK_BASE_URL", "LINK_KEYS", "LINK_TTL", "TRUSTED_PROXIES", "ROLES", "LOG_LEVEL", "RETURN_URL", "NATS_URL", "HTTP_ADDR", "ADMIN_ADDR", "DATABASE_URL",
		"BRAND_COLOR", "BRAND_LOGO_URL", "PORTAL_LOGIN_URL", "SUPPORT_URL"} {
		if !strings.Contains(out, name+":") {
			t.Errorf("%s is not reported:\n%s", name, out)
		}
	}
	for _, value := range []string{"pk_wrong_kind", "c2VjcmV0", "fortnight", "secret-password", "mauve", "cdn.example.com"} {
		if strings.Contains(out, value) {
			t.Errorf("the value %s is shown:\n%s", value, out)
		}
	}
}

func TestRunRefusesASchemaThatIsBehindAndMigrateMendsIt(t *testing.T) {
	t.Parallel()
	d := &deployment{t: t, database: testkit.Database(t, nil), nats: testkit.NATS(t), keys: "1:" + strings.Repeat("A", 43)}
	free := []string{"HTTP_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0", "LINK_BASE_URL=https://pay.example.com", "STRIPE_API_BASE="}
	code, out := d.command(free, "run")
	if code != 1 || !strings.Contains(out, "worker migrate") {
		t.Errorf("run on an empty database: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "migrate", "--status"); code != 0 || strings.Contains(out, "applied") || !strings.Contains(out, "missing") {
		t.Errorf("status of an empty database: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "migrate"); code != 0 || !strings.Contains(out, "latchkey") || !strings.Contains(out, "river") {
		t.Errorf("migrate: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "migrate"); code != 0 || !strings.Contains(out, "up to date") {
		t.Errorf("migrate again: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "migrate", "--status"); code != 0 || strings.Contains(out, "missing") {
		t.Errorf("status: exit %d\n%s", code, out)
	}
}

func TestCheckTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	w := d.start()
	code, out := d.command([]string{"LINK_BASE_URL=" + w.click}, "check")
	if code != 0 || strings.Contains(out, "FAIL") || strings.Count(out, "ok ") < 7 {
		t.Errorf("all is well: exit %d\n%s", code, out)
	}
	code, out = d.command([]string{"LINK_BASE_URL=" + w.click, "STRIPE_API_KEY=" + stripesim.NoPortalKey}, "check")
	if code != 1 || strings.Count(out, "FAIL") != 2 || !strings.Contains(out, "write permission for the customer portal") {
		t.Errorf("no permission: exit %d\n%s", code, out)
	}
	d.sim.SetDefaultConfiguration(false)
	code, out = d.command([]string{"LINK_BASE_URL=" + w.click}, "check")
	if code != 1 || strings.Count(out, "FAIL") != 1 || !strings.Contains(out, "save a default configuration") {
		t.Errorf("no configuration: exit %d\n%s", code, out)
	}
	file := filepath.Join(t.TempDir(), "c.csv")
	if err := os.WriteFile(file, []byte("customer,return_url\ncus_1,\ncus_missing,\ncus_2,https://elsewhere.example.com/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out = d.command([]string{"LINK_BASE_URL=" + w.click}, "check", "--campaign", file)
	for _, says := range []string{"line 3: cus_missing does not exist", "line 4: invalid_field: $.session.return_url: must be on a host of RETURN_URL_HOSTS",
		"line 2: there is no default portal configuration", "3 rows read, 2 of 2 customers and 1 portal configuration looked up in Stripe: 3 problems found"} {
		if code != 1 || !strings.Contains(out, says) {
			t.Errorf("a campaign: exit %d, want %q in\n%s", code, says, out)
		}
	}
	if err := os.WriteFile(file, []byte("customer,retrun_url\ncus_1,https://www.example.com/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out = d.command([]string{"LINK_BASE_URL=" + w.click}, "check", "--campaign", file)
	if code != 1 || !strings.Contains(out, "retrun_url") || !strings.Contains(out, "--ignore-unknown") {
		t.Errorf("a column that is no field: exit %d\n%s", code, out)
	}
	if code, out = d.command([]string{"LINK_BASE_URL=" + w.click}, "check", "--campaign", file, "--ignore-unknown"); !strings.Contains(out, "1 rows read") {
		t.Errorf("a column that is ignored: exit %d\n%s", code, out)
	}
	if n := len(d.sim.Sessions()); n != 0 {
		t.Errorf("check made %d sessions", n)
	}
	code, out = d.command([]string{"LINK_BASE_URL=" + d.simURL, "DATABASE_URL=postgres://nobody@127.0.0.1:1/x", "NATS_URL=nats://127.0.0.1:1"}, "check")
	if code != 1 || strings.Count(out, "FAIL") < 3 {
		t.Errorf("nothing answers: exit %d\n%s", code, out)
	}
}

func TestKeysNewPrintsAKeyThatLinkKeysTakes(t *testing.T) {
	t.Parallel()
	d := &deployment{t: t}
	code, out := d.command(nil, "keys", "new", "--id", "9")
	if keys, err := portal.ParseKeys(strings.TrimSpace(out)); code != 0 || err != nil || keys.SignerID() != 9 {
		t.Errorf("exit %d, %v:\n%s", code, err, out)
	}
	if code, out := d.command(nil, "keys", "new", "--id", "256"); code != 2 {
		t.Errorf("id 256: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "frobnicate"); code != 2 || !strings.Contains(out, "--help") {
		t.Errorf("unknown command: exit %d\n%s", code, out)
	}
}

// The worker takes its role even where the URL is a superuser's.
func TestWorkerRunsUnderItsRole(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	pool, err := openPool(t.Context(), d.database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var user string
	if err := pool.QueryRow(t.Context(), `SELECT current_user`).Scan(&user); err != nil || user != "latchkey_app" {
		t.Errorf("role %q, %v", user, err)
	}
	jobPool, err := newJobPool(d.database, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer jobPool.Close()
	for _, setting := range []struct {
		of         *pgxpool.Pool
		name, want string
	}{
		{pool, "idle_in_transaction_session_timeout", "10s"}, {jobPool, "idle_in_transaction_session_timeout", "10s"},
		{pool, "enable_seqscan", "off"}, {jobPool, "enable_seqscan", "on"},
		{pool, "synchronous_commit", "on"}, {jobPool, "synchronous_commit", "off"}, {jobPool, "role", "latchkey_app"},
	} {
		var got string
		if err := setting.of.QueryRow(t.Context(), `SELECT current_setting($1)`, setting.name).Scan(&got); err != nil || got != setting.want {
			t.Errorf("%s is %q (%v), want %q", setting.name, got, err, setting.want)
		}
	}
	if _, err := pool.Exec(t.Context(), `UPDATE audit_events SET kind = 'link.issued'`); err == nil {
		t.Error("the worker's role may update the audit")
	}
}

// The click server serves the logo itself; a logo that can't be had stops nothing.
func TestPagesCarryTheBrand(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	const svg = `<svg xmlns="http://www.w3.org/2000/svg"/>`
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "image/svg+xml")
		_, _ = w.Write([]byte(svg))
	}))
	t.Cleanup(cdn.Close)
	brand := func(logo string) func(*Config) {
		return func(c *Config) { c.BrandName, c.BrandColor, c.BrandLogoURL = "Acme", "#fe0", logo }
	}
	w := d.start(brand(cdn.URL))
	_, page, _ := d.do(http.MethodGet, w.click+"/l/x")
	src := regexp.MustCompile(`<img src="(/logo-[0-9a-f]{16})" alt="Acme">`).FindStringSubmatch(page)
	if src == nil || !strings.Contains(page, "--fill:#ffee00") {
		t.Fatalf("no logo, or not in its colour:\n%s", page)
	}
	if status, body, header := d.do(http.MethodGet, w.click+src[1]); status != 200 || body != svg || !strings.Contains(header.Get("Cache-Control"), "immutable") {
		t.Errorf("the logo: %d %v %q", status, header, body)
	}
	w = d.start(brand(d.simURL + "/nothing"))
	if _, page, _ := d.do(http.MethodGet, w.click+"/l/x"); strings.Contains(page, "<img") || !strings.Contains(page, `<p class="brand">Acme</p>`) {
		t.Errorf("no name in place of the logo:\n%s", page)
	}
	if !strings.Contains(w.log.String(), "mend BRAND_LOGO_URL") {
		t.Errorf("no warning:\n%s", w.log.String())
	}
}

func TestReadyzTellsWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	w := d.start()
	if status, body, _ := d.do(http.MethodGet, w.admin+"/readyz"); status != 200 || strings.Count(body, "ok") != 3 {
		t.Errorf("%d %s", status, body)
	}
	if status, body, _ := d.do(http.MethodGet, w.admin+"/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("%d %s", status, body)
	}
	admin := "ADMIN_ADDR=" + strings.TrimPrefix(w.admin, "http://")
	if code, out := d.command([]string{admin}, "health"); code != 0 || out != "" {
		t.Errorf("health: exit %d\n%s", code, out)
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if code, out := d.command([]string{admin}, "health"); code != 1 || strings.Count(out, "\n") != 1 {
		t.Errorf("health of a stopped worker: exit %d\n%s", code, out)
	}
}

// worker dev: samples go through, a click on one reaches the simulated portal, Ctrl-C leaves no
// process, a killed run is cleaned up, and the next start knows its links.
func TestDev(t *testing.T) {
	t.Parallel()
	d := &deployment{t: t}
	dir := filepath.Join(t.TempDir(), "dev")
	own := []string{"DATABASE_URL=", "NATS_URL=", "STRIPE_API_KEY=", "STRIPE_API_BASE=", "LINK_KEYS=", "RETURN_URL="}
	first := d.exec(own, "dev", "--dir", dir, "--ports-from", "0")
	state := d.devState(dir, first)
	if len(state.Samples) != 7 {
		t.Fatalf("%d samples", len(state.Samples))
	}
	for _, s := range state.Samples {
		status, _, header := d.do(http.MethodPost, s.LinkURL)
		if status != http.StatusSeeOther {
			t.Fatalf("%s: %d", s.What, status)
		}
		if status, body, _ := d.do(http.MethodGet, header.Get("Location")); status != 200 || !strings.Contains(strings.ToLower(body), "simulator") {
			t.Errorf("%s: the portal's page answers %d", s.What, status)
		}
	}
	d.mailsLeadToThePortal(state)
	for _, page := range []string{state.StartPage, state.MailCatcher, state.Simulator, state.Admin + "/readyz"} {
		if status, _, _ := d.do(http.MethodGet, page); status != 200 {
			t.Errorf("%s: %d", page, status)
		}
	}
	if code, out := d.command(own, "dev", "--dir", dir, "--ports-from", "0"); code != 1 || !strings.Contains(out, "in use") {
		t.Errorf("a second dev on the folder: exit %d\n%s", code, out)
	}
	d.devState(dir, first) // still there
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.exit()

	code, out := d.command(own, "dev", "--dir", dir, "--ports-from", "0", "--quit-after-samples")
	if code != 0 {
		t.Fatalf("after a kill: exit %d\n%s", code, out)
	}
	third := d.exec(own, "dev", "--dir", dir, "--ports-from", "0")
	again := d.devState(dir, third)
	u, err := url.Parse(state.Samples[0].LinkURL)
	if err != nil {
		t.Fatal(err)
	}
	if status, body, _ := d.do(http.MethodGet, again.ClickServer+u.Path); status != 200 || !strings.Contains(body, "<button") {
		t.Errorf("a link of the first run answers %d", status)
	}
	if err := third.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := third.exit(); code != 0 {
		t.Errorf("Ctrl-C: exit %d\n%s", code, tail(third.out.String()))
	}
	if left := processesOf(t, dir); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// mailsLeadToThePortal presses the button of each mail in the catcher as a customer does.
func (d *deployment) mailsLeadToThePortal(state devState) {
	d.t.Helper()
	_, list, _ := d.do(http.MethodGet, state.MailCatcher+"/mails.json")
	var mails []mailcatcher.Mail
	if err := json.Unmarshal([]byte(list), &mails); err != nil || len(mails) != len(state.Samples) {
		d.t.Fatalf("%d mails of %d samples (%v)", len(mails), len(state.Samples), err)
	}
	for _, m := range mails {
		button := regexp.MustCompile(`href="(` + regexp.QuoteMeta(state.ClickServer) + `/l/[^"]+)"`).FindStringSubmatch(m.HTML)
		if button == nil {
			d.t.Errorf("the mail to %v has no button", m.To)
			continue
		}
		if status, page, _ := d.do(http.MethodGet, button[1]); status != 200 || !strings.Contains(page, "<button") {
			d.t.Errorf("the button of the mail to %v leads to a page that answers %d", m.To, status)
		}
		if status, _, _ := d.do(http.MethodPost, button[1]); status != http.StatusSeeOther {
			d.t.Errorf("the page's button answers %d", status)
		}
	}
}

// devState waits for dev.json.
func (d *deployment) devState(dir string, p *process) (state devState) {
	d.t.Helper()
	d.until("dev.json", func() bool {
		content, err := os.ReadFile(filepath.Join(dir, "dev.json"))
		return err == nil && json.Unmarshal(content, &state) == nil && state.PID == p.cmd.Process.Pid
	})
	return state
}

// processesOf lists running programs that name a folder, where /proc tells.
func processesOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(content), dir) {
			found = append(found, strings.ReplaceAll(string(content), "\x00", " "))
		}
	}
	return found
}
