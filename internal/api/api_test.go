package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

const minute = time.Minute

// broken provokes a panic in each route.
func (w *world) broken(token string) {
	w.t.Helper()
	service := jobs.NewService(nil, &portal.Store{Pool: w.pool, Now: w.clock.Now}, w.service.Log)
	healthy := w.api
	defer func() { w.api = healthy }()
	w.serve(service)
	w.api.mux = http.NewServeMux()
	for _, rt := range routes {
		rt.serve = func(*Server, *http.Request, *Token) (*answer, error) { panic("secret-of-the-panic " + token) }
		w.api.handle(rt.method+" "+rt.path, rt)
	}
	for _, rt := range routes {
		w.do(rt.method, strings.ReplaceAll(rt.path, "{id}", "x"), token, "").want(500, "internal")
	}
	if log := w.logs.String(); strings.Contains(log, "secret-of-the-panic") || !strings.Contains(log, "panic in the HTTP API") {
		w.t.Errorf("the log shows a panic's value, or no panic:\n%s", log)
	}
}

// away provokes a database that does not answer.
func (w *world) away(token string) {
	w.t.Helper()
	w.pool.Close()
	for _, rt := range routes {
		w.do(rt.method, strings.ReplaceAll(rt.path, "{id}", "x"), token, "").want(503, "unavailable")
	}
}

func TestCreateAnswersWithTheLinkAndAgainWithTheSame(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	first := w.do("POST", "/v1/links", token, request("T-4711")).want(201, "")
	var issued jobs.IssuedData
	first.into(&issued)
	if !strings.HasPrefix(issued.URL, "https://pay.example.com/l/") || issued.RequestID != "T-4711" || first.header.Get("Location") != "/v1/links/"+issued.LinkID.String() {
		t.Errorf("%v %s", first.header, first.body)
	}
	if again := w.do("POST", "/v1/links", token, request("T-4711"), "Content-Type", "application/vnd.acme+json; charset=UTF-8").want(201, ""); again.body != first.body {
		t.Errorf("the answer was\n%s\nand is\n%s", first.body, again.body)
	}
	if n := w.count(`SELECT count(*) FROM links`); n != 1 {
		t.Errorf("%d links", n)
	}
	for _, id := range []string{issued.LinkID.String(), "T-4711"} {
		var status jobs.Status
		got := w.do("GET", "/v1/links/"+id, token, "").want(200, "").into(&status)
		if status.Link.LinkID != issued.LinkID || status.Link.State != portal.StateLive || strings.Contains(got.body, "/l/") {
			t.Errorf("by %s: %s", id, got.body)
		}
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"} {
		if got := first.header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestIdempotencyKeyStandsForTheID(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	const keyless = `{"source":"support","session":{"customer":"cus_9s6XKzkNRiz8i3"}}`
	send := func(body string, headers ...string) reply { return w.do("POST", "/v1/links", token, body, headers...) }
	first := send(keyless, "Idempotency-Key", "K-1").want(201, "").body
	for name, again := range map[string]reply{
		"the same":                send(keyless, "Idempotency-Key", "K-1"),
		"a structured field":      send(keyless, "Idempotency-Key", `"K-1"`),
		"id of null":              send(strings.Replace(keyless, "{", `{"id":null,`, 1), "Idempotency-Key", "K-1"),
		"both, equal":             send(request("K-1"), "Idempotency-Key", "K-1"),
		"equal, in other letters": send(strings.Replace(request("K-1"), "K-1", `\u004b-1`, 1), "Idempotency-Key", "K-1"),
		"the id":                  send(request("K-1")),
	} {
		if again.want(201, "").body != first {
			t.Errorf("%s: %s, not %s", name, again.body, first)
		}
	}
	send(strings.Replace(keyless, "support", "other", 1), "Idempotency-Key", "K-1").want(409, "id_conflict")
	send(request("K-2"), "Idempotency-Key", "K-1").want(400, "bad_request")
	send(strings.Replace(request("K-1"), `"K-1"`, "1", 1), "Idempotency-Key", "1").want(400, "bad_request")
	send(keyless, "Idempotency-Key", "\xff").want(400, "bad_request")
	send(keyless, "Idempotency-Key", `""`).want(400, "bad_request")
	send(keyless, "Idempotency-Key", strings.Repeat("k", 201)).want(422, "invalid_field")
	send(keyless).want(422, "invalid_field")
	for _, body := range []string{`null`, `[]`, `{"id":"a","id":"a"}`, `{`, ` `, `{} {}`} {
		send(body, "Idempotency-Key", "K-3").want(400, "invalid_json")
	}
	if n := w.count(`SELECT count(*) FROM links`); n != 1 {
		t.Errorf("%d links", n)
	}
}

// Invariant 1.
func TestATokenWorksUntilItIsRevoked(t *testing.T) {
	t.Parallel()
	w := setup(t)
	secret := w.token("zendesk", nil)
	link := w.create(secret, request("r1")).LinkID.String()
	for name, header := range map[string]string{"none": "", "another scheme": "Basic " + secret, "no token": "Bearer", "another": "Bearer lk_" + strings.Repeat("A", 43),
		"its hash": fmt.Sprintf("Bearer %x", hashToken(secret)), "more": "Bearer " + secret + "A", "SQL": `Bearer ' OR true --`} {
		got := w.do("GET", "/v1/links/"+link, "", "", "Authorization", header).want(401, "unauthorized")
		if challenge := got.header.Get("WWW-Authenticate"); !strings.HasPrefix(challenge, `Bearer realm="latchkey"`) || strings.Contains(challenge, "invalid_token") != strings.HasPrefix(header, "Bearer") {
			t.Errorf("%s: WWW-Authenticate: %s", name, challenge)
		}
	}
	w.do("GET", "/v1/links/"+link, "", "", "authorization", "bearer  "+secret).want(200, "")
	first := w.http
	w.serve(w.service) // another replica
	w.do("GET", "/v1/links/"+link, secret, "").want(200, "")
	must(t, RevokeToken(w.ctx, w.owner, "zendesk", w.clock.Now()))
	must(t, RevokeToken(w.ctx, w.owner, "zendesk", w.clock.Now()))
	w.do("GET", "/v1/links/"+link, secret, "").want(401, "unauthorized")
	w.http = first
	w.do("GET", "/v1/links/"+link, secret, "").want(401, "unauthorized")
	w.do("GET", "/v1/nothing", secret, "").want(401, "unauthorized")
}

func TestScopesAllowTheirRoutesOnly(t *testing.T) {
	t.Parallel()
	w := setup(t)
	all := w.token("all", nil)
	link := w.create(all, request("r1")).LinkID.String()
	for _, scope := range Scopes() {
		token := w.token(string(scope), []Scope{scope})
		for _, rt := range routes {
			body := ""
			if rt.path == "/v1/links" {
				body = request("r1")
			}
			got := w.do(rt.method, strings.ReplaceAll(rt.path, "{id}", link), token, body)
			if rt.scope == scope {
				if got.status >= 300 {
					t.Errorf("%s on %s: %d %s", scope, rt.path, got.status, got.body)
				}
				continue
			}
			got.want(403, "forbidden")
			if challenge := got.header.Get("WWW-Authenticate"); !strings.Contains(challenge, `error="insufficient_scope", scope="`+string(rt.scope)+`"`) {
				t.Errorf("%s on %s: WWW-Authenticate: %s", scope, rt.path, challenge)
			}
		}
	}
}

// Invariant 2.
func TestOtherSourcesDoNotExist(t *testing.T) {
	t.Parallel()
	w := setup(t)
	all, limited := w.token("all", nil), w.token("limited", nil, "support", "campaign")
	foreign, own := w.create(all, request("foreign", "dunning")), w.create(limited, request("own"))
	w.do("POST", "/v1/links", all, `{"id":"rejected","source":"support"}`).want(422, "invalid_field")
	unknown := uuid.Must(uuid.NewV7()).String()
	for _, route := range []struct{ method, suffix string }{{"GET", ""}, {"POST", "/revoke"}} {
		want := w.do(route.method, "/v1/links/"+unknown+route.suffix, limited, "").want(404, "not_found")
		for _, id := range []string{foreign.LinkID.String(), "foreign", "rejected"} {
			if got := w.do(route.method, "/v1/links/"+id+route.suffix, limited, ""); got.body != want.body || got.status != want.status {
				t.Errorf("%s %s: %d %s, and an unknown one is %d %s", route.method, id, got.status, got.body, want.status, want.body)
			}
		}
	}
	if n := w.count(`SELECT count(*) FROM links WHERE revoked_at IS NOT NULL`); n != 0 {
		t.Error("a link of another source was revoked")
	}
	var listed page
	w.do("GET", "/v1/customers/cus_9s6XKzkNRiz8i3/links", limited, "").into(&listed)
	if len(listed.Data) != 1 || listed.Data[0].LinkID != own.LinkID {
		t.Errorf("listed: %+v", listed)
	}
	w.do("POST", "/v1/links", limited, request("new", "dunning")).want(403, "forbidden")
	w.do("POST", "/v1/links", limited, request("foreign", "dunning")).want(403, "forbidden") // not the link again
	w.do("POST", "/v1/links", limited, `{"id":"new","source":"dunning"}`).want(403, "forbidden")
	w.do("POST", "/v1/links", limited, `{"id":"new"}`).want(422, "invalid_field")
	w.do("POST", "/v1/links", limited, `{"source":"support","source":"dunning","id":"new","session":{"customer":"cus_1"}}`).want(400, "invalid_json")
	if n := w.count(`SELECT count(*) FROM links`); n != 2 {
		t.Errorf("%d links", n)
	}
	w.do("GET", "/v1/links/own", limited, "").want(200, "")
	w.do("POST", "/v1/links/own/revoke", limited, "").want(200, "")
}

func TestRevokeEndsTheChainInTheTokensName(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("zendesk", []Scope{ScopeCreate, ScopeRevoke})
	first := w.create(token, request("r1"))
	renewal := w.create(token, request("r1-renewed"))
	if _, err := w.owner.Exec(w.ctx, `UPDATE links SET renewal_of = $1 WHERE id = $2`, first.LinkID, renewal.LinkID); err != nil {
		t.Fatal(err)
	}
	if got := w.do("POST", "/v1/links/r1-renewed/revoke", token, `{"reason":"ticket 4711"}`).want(200, ""); got.body != `{"revoked":2}` {
		t.Error(got.body)
	}
	if got := w.do("POST", "/v1/links/r1/revoke", token, "").want(200, ""); got.body != `{"revoked":0}` {
		t.Error(got.body)
	}
	if n := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.revoked' AND detail = '{"by": "zendesk", "reason": "ticket 4711"}'`); n != 2 {
		t.Errorf("%d rows in the audit", n)
	}
}

func TestPagesOfAListDoNotShift(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	var want []string
	for i := range 7 {
		want = append(want, w.create(token, request(fmt.Sprintf("r%d", i))).LinkID.String())
	}
	w.create(token, strings.Replace(request("other"), "cus_9s6XKzkNRiz8i3", "cus_other", 1))
	slices.Reverse(want)
	var got []string
	for cursor := ""; ; {
		var p page
		w.do("GET", "/v1/customers/cus_9s6XKzkNRiz8i3/links?limit=3"+cursor, token, "").want(200, "").into(&p)
		for _, link := range p.Data {
			got = append(got, link.LinkID.String())
		}
		if p.NextCursor == "" {
			break
		}
		cursor = "&cursor=" + p.NextCursor
		w.create(token, request("late"+cursor))
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed\n%v, want\n%v", got, want)
	}
	for _, query := range []string{"limit=101", "limit=x", "limit=", "cursor=", "cursor=1", "cursor=%00", "limt=5", "limit=5&limit=6", "a;b", "limit=%zz"} {
		w.do("GET", "/v1/customers/cus_1/links?"+query, token, "").want(400, "bad_request")
	}
	if got := w.do("GET", "/v1/customers/cus_nobody/links", token, "").want(200, ""); got.body != `{"data":[]}` {
		t.Error(got.body)
	}
}

// Whatever stands in a path is a value, never a part of a statement, a pattern or another path.
func TestHostilePaths(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	w.create(token, request("r1"))
	slash := w.create(token, request("a/b?c=d"))
	for _, id := range []string{"%25", "_", "r_", "r%25", "r1'--", "r1%0a", "%5C", "{id}", "..%2Fr1", "%2E%2E", strings.Repeat("x", 8000), "%F0%9F%92%B3", "r1%20"} {
		w.do("GET", "/v1/links/"+id, token, "").want(404, "not_found")
		w.do("POST", "/v1/links/"+id+"/revoke", token, "").want(404, "not_found")
	}
	for _, id := range []string{"%00", "r1%00", "%ff", "%C3"} {
		w.do("GET", "/v1/links/"+id, token, "").want(400, "bad_request")
		w.do("POST", "/v1/links/"+id+"/revoke", token, "").want(400, "bad_request")
		w.do("GET", "/v1/customers/"+id+"/links", token, "").want(400, "bad_request")
	}
	for _, path := range []string{"/v1/", "/v1", "/v1//links/r1", "/v1/links/", "/v1/links//r1", "/v1/links/r1/", "/v1/x/../links/r1", "/v1/links/r1/revoke/x", "/v2/links", "//v1/links/r1"} {
		w.do("GET", path, token, "").want(404, "not_found")
	}
	var listed page
	w.do("GET", "/v1/customers/cus_%25/links", token, "").into(&listed)
	if len(listed.Data) != 0 {
		t.Errorf("a wildcard found %d links", len(listed.Data))
	}
	var status jobs.Status
	w.do("GET", "/v1/links/a%2Fb%3Fc=d", token, "").want(200, "").into(&status)
	if status.Link.LinkID != slash.LinkID {
		t.Errorf("an id with a slash: %+v", status)
	}
	if n := w.count(`SELECT count(*) FROM links WHERE revoked_at IS NOT NULL`); n != 0 {
		t.Errorf("%d links were revoked", n)
	}
}

func TestConcurrentCreatesMakeOneLink(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	bodies := make([]string, 64) // the token's first requests of all: none may count as a stranger's
	var all sync.WaitGroup
	for i := range bodies {
		all.Go(func() { bodies[i] = w.do("POST", "/v1/links", token, request(fmt.Sprint("r", i%4))).want(201, "").body })
	}
	all.Wait()
	slices.Sort(bodies)
	if distinct := len(slices.Compact(bodies)); distinct != 4 || w.count(`SELECT count(*) FROM links`) != 4 {
		t.Errorf("%d answers, %d links", distinct, w.count(`SELECT count(*) FROM links`))
	}
}

func TestATokenIsLimited(t *testing.T) {
	t.Parallel()
	w := setup(t)
	busy, other := w.token("busy", nil), w.token("other", nil)
	got := w.do("GET", "/v1/links/x", busy, "").want(404, "not_found")
	if got.header.Get("RateLimit-Policy") != `"token";q=100;w=2` || got.header.Get("RateLimit") != `"token";r=99;t=1` {
		t.Errorf("%v", got.header)
	}
	for range tokenBurst - 1 {
		got = w.do("HEAD", "/v1/links/x", busy, "")
	}
	if got.status != 404 || got.header.Get("RateLimit") != `"token";r=0;t=2` {
		t.Errorf("the last of the burst: %d %v", got.status, got.header)
	}
	got = w.do("GET", "/v1/links/x", busy, "").want(429, "rate_limited")
	if got.header.Get("Retry-After") != "1" || got.header.Get("RateLimit") != `"token";r=0;t=2` {
		t.Errorf("over the limit: %v", got.header)
	}
	w.do("GET", "/v1/links/x", other, "").want(404, "not_found")
	w.clock.advance(time.Second)
	if got = w.do("GET", "/v1/links/x", busy, "").want(404, "not_found"); got.header.Get("RateLimit") != `"token";r=49;t=2` {
		t.Errorf("after a second: %v", got.header)
	}
}

func TestGuessingIsLimitedByAddress(t *testing.T) {
	t.Parallel()
	w := setup(t)
	known, fresh := w.token("known", nil), w.token("fresh", nil)
	from := func(ip, token string) reply {
		return w.do("GET", "/v1/links/x", token, "", "X-Forwarded-For", ip)
	}
	from("192.0.2.1", known).want(404, "not_found")
	tries := 0
	for ; from("192.0.2.1", fmt.Sprint("lk_guess", tries)).status == 401; tries++ {
		if tries > 1000 {
			t.Fatal("guessing is not limited")
		}
	}
	if got := from("192.0.2.1", "lk_more").want(429, "rate_limited"); got.header.Get("Retry-After") != "2" {
		t.Errorf("%v", got.header)
	}
	from("192.0.2.1", known).want(404, "not_found")
	from("192.0.2.2", "lk_elsewhere").want(401, "unauthorized") // another address has a limit of its own
	// A tool that goes on with a wrong token locks out no token that is new here from behind its address.
	w.clock.advance(100 * time.Millisecond)
	from("192.0.2.1", "lk_more").want(401, "unauthorized")
	from("192.0.2.1", fresh).want(404, "not_found")
	must(t, RevokeToken(w.ctx, w.owner, "known", w.clock.Now()))
	from("192.0.2.1", known).want(401, "unauthorized")
}

// A request id that somebody else's transaction holds is that request's affair: the others get their links.
func TestHeldRequestHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	lock, err := w.owner.Begin(w.ctx)
	must(t, err)
	defer func() { _ = lock.Rollback(context.Background()) }()
	_, err = lock.Exec(w.ctx, `INSERT INTO links (id, request_id, request_hash, published_at, source, stripe_customer, session, key_id, created_at, expires_at)
		VALUES (gen_random_uuid(), 'held', decode(repeat('00', 32), 'hex'), now(), 'support', 'cus_1', '{}', 7, now(), now() + interval '1 hour')`)
	must(t, err)
	answers := make(chan reply, 8)
	for i := range cap(answers) {
		id := fmt.Sprint("free", i)
		if i%4 == 0 {
			id = "held"
		}
		go func() { answers <- w.do("POST", "/v1/links", token, request(id)) }()
	}
	made, refused := 0, 0
	for range cap(answers) {
		switch r := <-answers; r.status {
		case 201:
			made++
		case 503:
			refused++
		}
	}
	if made != 6 || refused != 2 {
		t.Errorf("%d links were made and %d refused", made, refused)
	}
}

func TestLastUsedIsKeptToTheHour(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	at := func() (at *time.Time) {
		must(t, w.owner.QueryRow(w.ctx, `SELECT last_used_at FROM api_tokens`).Scan(&at))
		return at
	}
	use := func() {
		w.do("GET", "/v1/links/x", token, "").want(404, "not_found")
		w.http.Close() // waits for what is done behind the answer
		w.serve(w.service)
	}
	if at() != nil {
		t.Error("used before it was")
	}
	use()
	first := at()
	if first == nil || !first.Equal(w.clock.Now().Truncate(time.Microsecond)) {
		t.Fatalf("last used at %v", first)
	}
	w.clock.advance(59 * time.Minute)
	if use(); !at().Equal(*first) {
		t.Error("written twice within an hour")
	}
	w.clock.advance(2 * time.Minute)
	if use(); at().Equal(*first) {
		t.Error("not written after an hour")
	}
}

// Invariant 4.
func TestTokensShowNowhere(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	origin, linkToken, _ := strings.Cut(w.create(token, request("r1")).URL, "/l/")
	w.do("GET", "/v1/links/"+token, token, "").want(404, "not_found")
	w.do("GET", "/v1/"+token, "lk_unknown", "").want(401, "unauthorized")
	families, err := w.metrics.Gather()
	must(t, err)
	metrics := fmt.Sprint(families)
	w.broken(token)
	w.away(token)
	all := metrics + w.logs.String()
	for _, secret := range []string{token, "lk_unknown", linkToken, origin + "/l/"} { // "/l/" alone may be a folder of a stack's files
		if secret == "" || strings.Contains(all, secret) {
			t.Errorf("%q shows in\n%s", secret, all)
		}
	}
	for _, want := range []string{`value:"POST /v1/links"`, `value:"GET /v1/links/{id}"`, `value:"/"`, `value:"201"`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	if n := w.count(`SELECT count(*) FROM api_tokens t WHERE t::text LIKE '%' || $1 || '%'`, token); n != 0 {
		t.Error("the table holds the token")
	}
}

func TestAccept(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"": true, "*/*": true, "application/*": true, "application/json": true, "text/html, */*;q=0.1": true, "Application/JSON;q=0.5": true, "nonsense": true, ",": true,
		"text/html": false, "application/json;q=0": false, "application/json;q=0, */*": false, "*/*, application/json;q=0": false, "application/*;q=0": false, "image/*, text/*": false,
		"text/html, application/json": true, "application/json, text/html": true,
	} {
		if got := acceptsJSON([]string{accept}); got != want {
			t.Errorf("Accept: %q: %v", accept, got)
		}
	}
}

func TestNewTokenRefuses(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for name, c := range map[string]struct {
		name    string
		scopes  []Scope
		sources []string
	}{
		"no name": {"", Scopes(), nil}, "a long name": {strings.Repeat("n", 101), Scopes(), nil}, "a name with a line break": {"a\nb", Scopes(), nil},
		"no scope": {"n", nil, nil}, "an unknown scope": {"n", []Scope{"admin"}, nil},
		"no source": {"n", Scopes(), []string{}}, "a bad source": {"n", Scopes(), []string{"Support"}},
	} {
		if _, err := NewToken(w.ctx, w.owner, c.name, c.scopes, c.sources, w.clock.Now()); !errors.Is(err, ErrTokenForm) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.token("zendesk", nil)
	if _, err := NewToken(w.ctx, w.owner, "zendesk", Scopes(), nil, w.clock.Now()); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a name twice: %v", err)
	}
	if err := RevokeToken(w.ctx, w.owner, "nobody", w.clock.Now()); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoke nobody's: %v", err)
	}
	if _, err := NewToken(w.ctx, w.pool, "by-the-worker", Scopes(), nil, w.clock.Now()); !errors.Is(err, portal.ErrNotOwner) {
		t.Errorf("the worker made a token: %v", err)
	}
	if err := RevokeToken(w.ctx, w.pool, "zendesk", w.clock.Now()); !errors.Is(err, portal.ErrNotOwner) {
		t.Errorf("the worker revoked a token: %v", err)
	}
}
