package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"latchkey/internal/api"
	"latchkey/internal/jobs"
)

// api sends a request to the HTTP API of a worker.
func (d *deployment) api(in *instance, method, path, token, body string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.soon(), method, in.admin+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := noRedirect.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// A token of the command line opens the API of every process, until it is revoked there.
func TestTokensOfTheCommandLineOpenTheAPI(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	w, clicks := d.start(), d.start(func(c *Config) { c.Roles = []string{roleClick} })
	code, out := d.command(nil, "tokens", "new", "--name", "zendesk", "--scope", "create,read", "--source", "support,test")
	token := strings.TrimSpace(out)
	if code != 0 || !regexp.MustCompile(`^lk_[A-Za-z0-9_-]{43}$`).MatchString(token) {
		t.Fatalf("tokens new: exit %d\n%s", code, out)
	}
	body := mustJSON(t, request("T-4711"))
	status, first := d.api(w, http.MethodPost, "/v1/links", token, body)
	var link jobs.IssuedData
	if err := json.Unmarshal([]byte(first), &link); status != http.StatusCreated || err != nil {
		t.Fatalf("create: %d %s", status, first)
	}
	if status, page, _ := d.do(http.MethodGet, link.URL); status != http.StatusOK || !strings.Contains(page, "<form") {
		t.Errorf("the link: %d", status)
	}
	if byNATS := d.link(request("T-4711")); byNATS.URL != link.URL {
		t.Error("the same request by NATS is another link")
	}
	if status, answer := d.api(clicks, http.MethodGet, "/v1/links/T-4711", token, ""); status != http.StatusOK || !strings.Contains(answer, "link.opened") {
		t.Errorf("on a process of clicks only: %d %s", status, answer)
	}
	if status, _ := d.api(w, http.MethodPost, "/v1/links/T-4711/revoke", token, ""); status != http.StatusForbidden {
		t.Errorf("revoke without the scope: %d", status)
	}
	if status, answer := d.api(w, http.MethodGet, "/v1//links/T-4711", token, ""); status != http.StatusNotFound || !strings.Contains(answer, "not_found") {
		t.Errorf("a path that is none: %d %s", status, answer)
	}
	if code, out := d.command(nil, "tokens", "revoke", "zendesk"); code != 0 || out != "revoked zendesk\n" {
		t.Errorf("revoke: exit %d\n%s", code, out)
	}
	for _, in := range []*instance{w, clicks} {
		if status, answer := d.api(in, http.MethodGet, "/v1/links/T-4711", token, ""); status != http.StatusUnauthorized {
			t.Errorf("a revoked token: %d %s", status, answer)
		}
		if strings.Contains(in.log.String(), token) {
			t.Error("the log shows a token")
		}
	}
}

func TestTokensCommands(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	if code, out := d.command(nil, "tokens", "list"); code != 0 || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "NAME") {
		t.Errorf("an empty list: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "tokens", "list", "--json"); code != 0 || out != "[]\n" {
		t.Errorf("an empty list in JSON: exit %d\n%s", code, out)
	}
	_, all := d.command(nil, "tokens", "new", "--name", "all")
	_, _ = d.command(nil, "tokens", "new", "--name", "crm", "--scope", "read", "--source", "support")
	code, out := d.command(nil, "tokens", "list")
	if lines := strings.Split(out, "\n"); code != 0 || len(lines) != 4 || !regexp.MustCompile(`^all +create,read,revoke +all +2\S+ \S+ \S+ +- +-$`).MatchString(lines[1]) ||
		!regexp.MustCompile(`^crm +read +support `).MatchString(lines[2]) || strings.Contains(out, strings.TrimSpace(all)) {
		t.Errorf("list: exit %d\n%s", code, out)
	}
	_, out = d.command(nil, "tokens", "list", "--json")
	var list []api.Token
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 2 || list[0].Sources != nil || len(list[1].Sources) != 1 || list[1].Scopes[0] != api.ScopeRead {
		t.Errorf("list in JSON, %v:\n%s", err, out)
	}
	for _, wrong := range [][]string{{"new"}, {"new", "--name", ""}, {"new", "--name", "a b"}, {"new", "--name", "x", "--scope", "admin"}, {"new", "--name", "x", "--scope", ""},
		{"new", "--name", "x", "--source", ""}, {"new", "--name", "x", "--source", "Support"}, {"new", "x"}, {"revoke"}, {"revoke", "a", "b"}, {"list", "x"}} {
		if code, out := d.command(nil, append([]string{"tokens"}, wrong...)...); code != 2 || strings.Contains(out, "lk_") {
			t.Errorf("tokens %v: exit %d\n%s", wrong, code, out)
		}
	}
	if code, out := d.command(nil, "tokens", "new", "--name", "crm"); code != 1 || !strings.Contains(out, "choose another") {
		t.Errorf("a name twice: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "tokens", "revoke", "nobody"); code != 1 || !strings.Contains(out, "worker tokens list") {
		t.Errorf("an unknown name: exit %d\n%s", code, out)
	}
}

// Who may only run the worker can't make himself a token.
func TestTokensTakeTheOwner(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	for _, sql := range []string{"CREATE ROLE runner LOGIN", "GRANT latchkey_app TO runner"} { // of this process's own server
		if _, err := d.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	as, err := url.Parse(d.database)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.User("runner")
	if code, out := d.command([]string{"DATABASE_URL=" + as.String()}, "tokens", "new", "--name", "x"); code != 1 || !strings.Contains(out, "schema's owner") {
		t.Errorf("new: exit %d\n%s", code, out)
	}
	if n := d.number(`SELECT count(*) FROM api_tokens`); n != 0 {
		t.Errorf("%d tokens", n)
	}
}
