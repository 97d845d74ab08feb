package main

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"latchkey/internal/config"
)

const testAdminToken = "0123456789abcdef0123456789abcdef"

// Whoever can be reached by others has to tell them apart.
func TestInternalServerNeedsATokenOffLoopback(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		addr, token string
		ok          bool
	}{
		{"127.0.0.1:9090", "", true}, {"localhost:9090", "", true}, {"[::1]:9090", "", true}, {"127.8.0.1:9090", testAdminToken, true},
		{":9090", "", false}, {"0.0.0.0:9090", "", false}, {"[::]:9090", "", false}, {"10.0.0.7:9090", "", false}, {"203.0.113.9:9090", "", false}, {"[fd00::1]:9090", "", false},
		{":9090", testAdminToken, true}, {"10.0.0.7:9090", testAdminToken, true},
		{"127.0.0.1:9090", "short", false}, {":9090", testAdminToken[1:], false}, {":9090", testAdminToken + " ", false}, {":9090", testAdminToken + "ü", false},
	} {
		var problems config.Problems
		(&Config{AdminAddr: test.addr, AdminToken: test.token}).validateAdmin(&problems)
		if (len(problems) == 0) != test.ok || strings.Contains(problems.Error(), "short") {
			t.Errorf("%s, %q: %v", test.addr, test.token, problems)
		}
	}
	d := &deployment{t: t, database: "postgres://u@127.0.0.1:1/x", nats: "nats://127.0.0.1:1", keys: "1:" + strings.Repeat("A", 43)}
	if code, out := d.command([]string{"ADMIN_ADDR=:0", "LINK_BASE_URL=https://pay.example.com"}, "run"); code != 1 || !strings.Contains(out, "ADMIN_TOKEN: is required where ADMIN_ADDR is not on loopback") {
		t.Errorf("run: exit %d\n%s", code, out)
	}
}

// With ADMIN_TOKEN, health is all that can be had without; the API goes by its own tokens, and /debug is nowhere.
func TestAdminToken(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	w := d.start(func(c *Config) { c.AdminToken = testAdminToken })
	get := func(url, authorization string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", authorization)
		resp, err := noRedirect.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	right := "Bearer " + testAdminToken
	for _, test := range []struct {
		path, authorization string
		want                int
	}{
		{"/metrics", right, 200}, {"/metrics", "bearer  " + testAdminToken, 200},
		{"/metrics", "", 401}, {"/metrics", "Bearer", 401}, {"/metrics", "Basic " + testAdminToken, 401}, {"/metrics", right + "0", 401}, {"/metrics", right[:len(right)-1], 401}, {"/metrics", testAdminToken, 401},
		{"/healthz", "", 200}, {"/readyz", "", 200},
		{"/", "", 401}, {"/debug/pprof/heap", "", 401}, {"/debug/pprof/heap", right, 404}, {"/debug/vars", right, 404}, {"/", right, 404},
		{"/v1/links/x", "", 401}, {"/v1/links/x", right, 401},
	} {
		if status, body := get(w.admin+test.path, test.authorization); status != test.want || strings.Contains(body, testAdminToken) || status != 200 && strings.Contains(body, "go_") {
			t.Errorf("%s by %q: %d, want %d\n%.200s", test.path, test.authorization, status, test.want, body)
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/vars", "/metrics", "/healthz", "/v1/links/x"} {
		if status, _ := get(w.click+path, right); status != 404 {
			t.Errorf("%s on the public server: %d", path, status)
		}
	}
	if code, out := d.command([]string{"ADMIN_ADDR=" + strings.TrimPrefix(w.admin, "http://")}, "health"); code != 0 {
		t.Errorf("health: exit %d\n%s", code, out)
	}
}
