package stripesim_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"latchkey/internal/stripesim"
)

// Rule 11.
func TestRule11Expiry(t *testing.T) {
	t.Parallel()
	sim, clock := setup(t)
	visit := func(p string, want int) {
		t.Helper()
		if r := do(t, sim, http.MethodGet, p, ""); r.status != want {
			t.Fatalf("status %d, want %d", r.status, want)
		}
	}
	unvisited := path(t, mustCreate(t, sim, form("customer=cus_1")).object["url"])
	visited := path(t, mustCreate(t, sim, form("customer=cus_2")).object["url"])
	clock.Advance(5*time.Minute - 1)
	if r := do(t, sim, http.MethodHead, unvisited, ""); r.status != 200 {
		t.Fatalf("HEAD: %d", r.status)
	}
	visit(visited, 200)
	clock.Advance(1)
	visit(unvisited, 410)
	clock.Advance(time.Hour - 2)
	visit(visited, 200)
	clock.Advance(time.Hour - 1)
	visit(visited, 200)
	clock.Advance(time.Hour)
	visit(visited, 410)
	visit("/p/session/test_unknown", 404)

	all := sim.Sessions()
	if !all[0].Visited.IsZero() || all[1].Visited != all[1].Created.Add(5*time.Minute-1) || !all[1].LastActivity.After(all[1].Visited) {
		t.Fatalf("visits: %+v", all)
	}
	if !all[0].Expired(clock.Now()) || all[0].Expired(all[0].Created) {
		t.Fatal("Expired disagrees with the page")
	}
}

func TestPortalPage(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	r := mustCreate(t, sim, form("customer=cus_<script>", "locale=pt-BR", payment, "return_url=https://app.example.com/billing?a=1&b=\"><script>",
		after+"[type]=redirect", after+"[redirect][return_url]=https://app.example.com/thanks"))
	page := do(t, sim, http.MethodGet, path(t, r.object["url"]), "")
	for _, want := range []string{
		"Simulator", `lang="pt-BR"`, "payment_method_update", "cus_&lt;script&gt;", "Return to app.example.com",
		`id="return" href="https://app.example.com/billing?a=1&amp;b=%22%3e%3cscript%3e"`, `id="done" href="https://app.example.com/thanks"`,
	} {
		if !strings.Contains(page.body, want) {
			t.Errorf("page lacks %q", want)
		}
	}
	if strings.Contains(page.body, "<script>") {
		t.Error("something is not escaped")
	}
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(page.body)
	sum := sha256.Sum256([]byte(style[1]))
	if csp := page.header.Get("Content-Security-Policy"); !strings.Contains(csp, base64.StdEncoding.EncodeToString(sum[:])) || !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("the policy does not fit the page: %s", csp)
	}
	if page.header.Get("Cache-Control") != "no-store" || page.header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("headers %v", page.header)
	}
}

func TestPortalPageVariants(t *testing.T) {
	t.Parallel()
	sim, _ := setup(t)
	r := mustCreate(t, sim, form("customer=cus_1", payment, after+"[type]=hosted_confirmation", after+"[hosted_confirmation][custom_message]=Danke <3"))
	page := do(t, sim, http.MethodGet, path(t, r.object["url"]), "").body
	if !strings.Contains(page, "Danke &lt;3") || strings.Contains(page, `id="done"`) || !strings.Contains(page, `href="https://example.com/account"`) {
		t.Error("message, no redirect, and the default return URL expected")
	}
	index := do(t, sim, http.MethodGet, "/", "").body
	doc := "cus_deleted cus_missing cus_live cus_test cus_noconfig cus_featureoff cus_slow cus_hang cus_409 cus_429lock cus_429 cus_500 cus_503 cus_flaky cus_dropped cus_garbage cus_badurl"
	for _, id := range strings.Fields(doc) {
		if !strings.Contains(index, id+"…") {
			t.Errorf("index lacks %s", id)
		}
	}
	if p := do(t, sim, http.MethodGet, "/p/login/test_simulator?prefilled_email=jo%40example.com", ""); !strings.Contains(p.body, "jo@example.com") {
		t.Error("login page lacks the email")
	}
}

func TestPublicURL(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(stripesim.Config{PublicURL: "http://localhost:12111/"})
	url := mustCreate(t, sim, form("customer=cus_1")).object["url"].(string)
	if !strings.HasPrefix(url, "http://localhost:12111/p/session/test_") {
		t.Fatalf("url %s", url)
	}
	sim, _ = setup(t)
	url = mustCreate(t, sim, form("customer=cus_1")).object["url"].(string)
	if !strings.HasPrefix(url, "http://example.com/p/session/test_") || len(path(t, url)) < 50 {
		t.Fatalf("url %s", url)
	}
}
