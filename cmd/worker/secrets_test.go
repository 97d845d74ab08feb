package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/config"
	"latchkey/internal/jobs"
	"latchkey/internal/stripesim"
)

// secretSettings are settings that a worker runs with, each with a secret that is known when seen.
func (d *deployment) secretSettings(smtp string) (settings map[string]string, secrets []string) {
	d.t.Helper()
	_, key, _ := strings.Cut(d.keys, ":")
	settings = map[string]string{
		"DATABASE_URL":          d.replaced(d.database, "@/", ":zebra-database@/"),
		"NATS_URL":              d.replaced(d.nats, "nats://", "nats://worker:zebra-nats@"),
		"SMTP_URL":              "smtp://courier:zebra-smtp@" + smtp,
		"WEBHOOK_SECRETS":       "whsec_emVicmEtemVicmEtemVicmEtemVicmEtemVicmE=",
		"WEBHOOK_SUBSCRIPTIONS": "*=" + d.simURL + "/zebra-hook",
		"ADMIN_TOKEN":           "zebra-admin-" + testAdminToken,
		"STRIPE_API_KEY":        stripesim.TestKey,
		"LINK_KEYS":             d.keys,
	}
	return settings, []string{"zebra", "emVicmE", stripesim.TestKey, key}
}

// replaced puts a secret into an address, which must have the place for it: else nothing would be looked for.
func (d *deployment) replaced(address, place, secret string) string {
	d.t.Helper()
	if !strings.Contains(address, place) {
		d.t.Fatalf("%s has no %s", address, place)
	}
	return strings.Replace(address, place, secret, 1)
}

func environ(settings map[string]string, more ...string) (env []string) {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		env = append(env, name+"="+settings[name])
	}
	return append(env, more...)
}

// No secret of a setting is in what a worker process prints, logs at debug level, dumps when it is told to by
// SIGQUIT, stores, publishes or measures, nor are tokens and session URLs.
func TestSecretsOfAProcessStandNowhere(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.keepJobs()
	catcher, smtp := catch(t)
	settings, secrets := d.secretSettings(smtp)
	p := d.serve(environ(settings, "MAIL_FROM=billing@example.com", "WEBHOOK_ALLOW_PRIVATE=true")...)
	req := request("r1")
	req.Deliver = []jobs.Delivery{{Channel: "email", To: "jo@example.org", Template: "generic"}}
	link := d.link(req)
	d.until("the mail", func() bool { return len(catcher.Mails()) == 1 })
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut} {
		d.do(method, link.URL)
	}
	token := tokenOf(link.URL)
	secrets = append(secrets, token, token[:30], d.sim.Sessions()[0].URL)
	const created = "PORTAL_EVENTS portal.events.session.created"
	d.until("the event of the session", func() bool { return d.published()[created] != "" })
	metrics := d.metrics(p, settings["ADMIN_TOKEN"])
	release := d.holdLinks()
	defer release()
	go func() { _, _, _, _ = do(t.Context(), http.MethodPost, link.URL) }() // whose token is on a stack
	d.until("a press to wait for the database", func() bool {
		return d.number(`SELECT count(*) FROM pg_locks WHERE relation = 'links'::regclass AND NOT granted`) > 0
	})
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	if code := p.exit(); code != 2 || !strings.Contains(p.out.String(), "SIGQUIT") || !strings.Contains(p.out.String(), "ServeHTTP") {
		t.Errorf("exit %d, and no dump:\n%s", code, tail(p.out.String()))
	}
	release()
	places := map[string]string{"the process' output": p.out.String(), "metrics": metrics}
	maps.Copy(places, d.dump())
	maps.Copy(places, d.published())
	for _, name := range []string{"river_job", "audit_events", created} {
		if places[name] == "" {
			t.Errorf("nothing to search in %s", name)
		}
	}
	delete(places, "PORTAL_EVENTS portal.events.link.issued") // has the URL: it is what the link is sent by
	wantNone(t, places, secrets)
}

// metrics is all that a worker process measures.
func (d *deployment) metrics(p *process, token string) string {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, p.admin+"/metrics", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := noRedirect.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), "latchkey_") {
		d.t.Fatalf("no metrics: %s, %v", resp.Status, err)
	}
	return string(body)
}

// published is every message of every stream, by stream and subject.
func (d *deployment) published() map[string]string {
	d.t.Helper()
	js, err := jetstream.New(d.nc)
	if err != nil {
		d.t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range []string{jobs.RequestsStream, "PORTAL_EVENTS", "PORTAL_DEAD"} {
		stream, err := js.Stream(d.t.Context(), name)
		if err != nil {
			d.t.Fatal(err)
		}
		for seq := stream.CachedInfo().State.FirstSeq; seq <= stream.CachedInfo().State.LastSeq; seq++ {
			if msg, err := stream.GetMsg(d.t.Context(), seq); err == nil { // else it was deleted
				out[name+" "+msg.Subject] += fmt.Sprintf("%v %s\n", msg.Header, msg.Data)
			}
		}
	}
	return out
}

func wantNone(t *testing.T, places map[string]string, secrets []string) {
	t.Helper()
	for place, text := range places {
		for i, secret := range secrets {
			if at := strings.Index(text, secret); at >= 0 {
				t.Errorf("secret %d stands in %s: …%s", i, place, text[max(0, at-200):at])
			}
		}
	}
}

// What commands say of settings that are wrong, and of servers that refuse or are away, has none of the secrets.
func TestSecretsAreNotInErrors(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	settings, secrets := d.secretSettings("127.0.0.1:1")
	more := []string{"MAIL_FROM=billing@example.com", "LINK_BASE_URL=http://127.0.0.1:1", "HTTP_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0", "WEBHOOK_ALLOW_PRIVATE=true"}
	with := func(change map[string]string) []string {
		all := maps.Clone(settings)
		maps.Copy(all, change)
		return environ(all, more...)
	}
	wrong := with(map[string]string{
		"DATABASE_URL": "postgres://u:zebra@[::1/x", "NATS_URL": "nats://u:zebra@[::1", "STRIPE_API_KEY": "pk_zebra", "LINK_KEYS": "1:zebra,zebra:zebra", "SMTP_URL": "smtp://zebra:zebra/zebra@x",
		"WEBHOOK_SECRETS": "zebra", "WEBHOOK_SUBSCRIPTIONS": "zebra=zebra", "ADMIN_TOKEN": "zebra",
	})
	away := with(map[string]string{"DATABASE_URL": "postgres://u:zebra@127.0.0.1:1/x", "NATS_URL": "nats://u:zebra@127.0.0.1:1", "STRIPE_API_KEY": "sk_test_zebra"})
	said := map[string]string{}
	for name, test := range map[string]struct {
		env  []string
		args []string
		says string
	}{
		"run, all wrong":       {wrong, []string{"run"}, "settings are not right"},
		"check, away":          {away, []string{"check"}, "FAIL"},
		"migrate, away":        {away, []string{"migrate"}, "no connection"},
		"the database refuses": {with(map[string]string{"DATABASE_URL": d.replaced(d.database, "postgres@/", "nobody:zebra@/")}), []string{"run"}, "no connection to the database"},
	} {
		_, out := d.command(test.env, test.args...)
		if !strings.Contains(out, test.says) {
			t.Errorf("%s: %q is not in\n%s", name, test.says, out)
		}
		said[name] = out
	}
	waits := d.exec(away, "run")
	d.until("it to wait for both servers", func() bool {
		out := waits.out.String()
		return strings.Contains(out, "waiting for a server") && strings.Contains(out, "NATS is away")
	})
	said["run, away"] = waits.out.String()
	wantNone(t, said, secrets)
}

// A dump of the settings, as a panic or a careless log line would make it, shows none.
func TestConfigPrintsNoSecret(t *testing.T) {
	t.Parallel()
	u := &url.URL{Scheme: "nats", User: url.UserPassword("u", "zebra"), Host: "nats:4222"}
	cfg := &Config{DatabaseURL: "zebra", StripeAPIKey: "zebra", LinkKeys: "zebra", SMTPURL: "zebra", WebhookSecrets: "zebra", WebhookSubs: "zebra", AdminToken: "zebra", NATS: config.NATS{URL: u.String()}}
	var logged strings.Builder
	for _, handler := range []slog.Handler{slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil)} {
		slog.New(handler).Info("settings", "cfg", cfg, "value", *cfg, "nats", cfg.NATS, slog.Group("g", "cfg", cfg))
	}
	asJSON, err := json.Marshal(map[string]any{"cfg": cfg, "nats": cfg.NATS})
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{"log": logged.String(), "JSON": string(asJSON), "error": fmt.Errorf("%v: %w", cfg, http.ErrAbortHandler).Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		said[verb] = fmt.Sprintf(verb+verb+verb+verb, cfg, *cfg, cfg.NATS, []any{cfg, &cfg.NATS})
	}
	wantNone(t, said, []string{"zebra", fmt.Sprintf("%x", "zebra")})
}
