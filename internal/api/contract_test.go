package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"latchkey/internal/jobs"
)

// contract is docs/openapi.yaml.
type contract struct {
	model     *v3.Document
	validator validator.Validator
	mu        sync.Mutex
}

var theContract = sync.OnceValues(func() (*contract, error) {
	raw, err := os.ReadFile("../../docs/openapi.yaml")
	if err != nil {
		return nil, err
	}
	doc, err := libopenapi.NewDocument(raw)
	if err != nil {
		return nil, err
	}
	model, err := doc.BuildV3Model()
	if err != nil {
		return nil, err
	}
	v, errs := validator.NewValidator(doc, config.WithFormatAssertions())
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return &contract{model: &model.Model, validator: v}, nil
})

func loadContract(t *testing.T) *contract {
	t.Helper()
	c, err := theContract()
	must(t, err)
	return c
}

// operations are the contract's, as "POST /v1/links".
func (c *contract) operations() map[string]*v3.Operation {
	ops := map[string]*v3.Operation{}
	for path, item := range c.model.Paths.PathItems.FromOldest() {
		for method, op := range item.GetOperations().FromOldest() {
			ops[strings.ToUpper(method)+" "+path] = op
		}
	}
	return ops
}

// holds checks an answer of a documented path against its schema and headers, and keeps that it was seen.
func (w *world) holds(req *http.Request, resp *http.Response, body []byte) {
	w.t.Helper()
	_, pattern := w.api.mux.Handler(req)
	method, path, found := strings.Cut(pattern, " ")
	if !found { // another method of a path, or no path: the answer is that of any operation there
		i := slices.IndexFunc(routes, func(rt route) bool { return rt.path == pattern })
		if i < 0 {
			return
		}
		method, path = routes[i].method, pattern
	}
	c := loadContract(w.t)
	op := method + " " + path
	as := httptest.NewRequest(method, strings.NewReplacer("{id}", "x").Replace(path), nil)
	shown := &http.Response{StatusCode: resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(body)), Request: as}
	if req.Method != http.MethodHead {
		c.mu.Lock()
		ok, errs := c.validator.ValidateHttpResponse(as, shown)
		c.mu.Unlock()
		if !ok {
			w.t.Errorf("%s answers %d %s, which the contract does not allow: %v", op, resp.StatusCode, body, errs)
			for _, e := range errs {
				for _, s := range e.SchemaValidationErrors {
					w.t.Errorf("  %s: %s", s.KeywordLocation, s.Reason)
				}
			}
		}
	}
	if documented := c.operations()[op].Responses.Codes.GetOrZero(fmt.Sprint(resp.StatusCode)); documented != nil && documented.Headers != nil {
		for name, header := range documented.Headers.FromOldest() {
			if header.Required && resp.Header.Get(name) == "" {
				w.t.Errorf("%s answers %d without the header %s", op, resp.StatusCode, name)
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[fmt.Sprintf("%s %d", op, resp.StatusCode)] = true
}

func TestContractIsValidAndHasExactlyTheRoutes(t *testing.T) {
	t.Parallel()
	c := loadContract(t)
	if ok, errs := c.validator.ValidateDocument(); !ok {
		t.Errorf("not a document of OpenAPI 3.1: %v", errs)
	}
	var have []string
	for _, rt := range routes {
		have = append(have, rt.method+" "+rt.path)
	}
	slices.Sort(have)
	if documented := slices.Sorted(maps.Keys(c.operations())); !slices.Equal(have, documented) {
		t.Errorf("the routes are\n%s\nand the contract has\n%s", strings.Join(have, "\n"), strings.Join(documented, "\n"))
	}
}

// An example is worth nothing unless it works.
func TestRequestExamplesAreServed(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token := w.token("all", nil)
	link := w.create(token, request("for-revoke"))
	examples := 0
	for op, operation := range loadContract(t).operations() {
		if operation.RequestBody == nil {
			continue
		}
		method, path, _ := strings.Cut(op, " ")
		for name, example := range operation.RequestBody.Content.GetOrZero("application/json").Examples.FromOldest() {
			var value any
			must(t, example.Value.Decode(&value))
			body, err := json.Marshal(value)
			must(t, err)
			path := strings.ReplaceAll(path, "{id}", link.LinkID.String())
			req := httptest.NewRequest(method, path, bytes.NewReader(body))
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Authorization", "Bearer "+token)
			if ok, errs := loadContract(t).validator.ValidateHttpRequestSync(req); !ok {
				t.Errorf("%s, example %s: %v", op, name, errs)
			}
			headers := []string{}
			if name == "by_idempotency_key" {
				headers = []string{"Idempotency-Key", "ticket-4711-1"}
			}
			if got := w.do(method, path, token, string(body), headers...); got.status >= 300 {
				t.Errorf("%s, example %s: %d %s", op, name, got.status, got.body)
			}
			examples++
		}
	}
	if examples < 5 {
		t.Errorf("only %d examples", examples)
	}
}

// Invariant 3. Every answer that the contract has is given, each in its form; do looks at that.
func TestEveryAnswerOfTheContract(t *testing.T) {
	t.Parallel()
	w := setup(t)
	token, limited, none := w.token("all", nil), w.token("limited", nil, "dunning"), w.token("reader", []Scope{ScopeRead})
	creator := w.token("creator", []Scope{ScopeCreate})
	link := w.create(token, request("r1")).LinkID.String()
	const links, customer = "/v1/links", "/v1/customers/cus_9s6XKzkNRiz8i3/links"
	one, revoke := links+"/"+link, links+"/"+link+"/revoke"
	large := `{"id":"` + strings.Repeat("x", jobs.MaxRequestBytes) + `"}`

	w.do("POST", links, token, `{"id":"a","id":"b"}`).want(400, "invalid_json")
	w.do("POST", links, token, request("r1", "other")).want(409, "id_conflict")
	w.do("POST", links, token, large).want(413, "too_large")
	w.do("POST", links, token, request("r2"), "Content-Type", "text/plain").want(415, "unsupported_media_type")
	w.do("POST", links, token, request("r2"), "Content-Encoding", "gzip").want(415, "unsupported_media_type")
	w.do("POST", links, token, request("r2"), "Content-Type", "application/json; charset=latin1").want(415, "unsupported_media_type")
	w.do("POST", links, token, request("r2"), "Content-Type", "").want(415, "unsupported_media_type")
	w.do("POST", links, token, `{"id":"r2"}`).want(422, "invalid_field")
	for code, field := range map[string]string{"expired": `"expires_at":"2001-01-01T00:00:00Z"`, "mode_mismatch": `"livemode":true`} {
		w.do("POST", links, token, strings.Replace(request("r3"), "{", "{"+field+",", 1)).want(422, code)
	}
	w.do("POST", links, limited, request("r2")).want(403, "forbidden")
	w.do("GET", one, token, "").want(200, "")
	w.do("GET", links+"/r3", token, "").want(200, "") // rejected; it has a timeline only
	w.do("GET", links+"/%00", token, "").want(400, "bad_request")
	w.do("GET", links+"/unknown", token, "").want(404, "not_found")
	w.do("POST", revoke, token, `{"reason":"asked for"}`).want(200, "")
	w.do("POST", revoke, token, `{`).want(400, "invalid_json")
	w.do("POST", revoke, token, large).want(413, "too_large")
	w.do("POST", revoke, token, `{}`, "Content-Type", "text/plain").want(415, "unsupported_media_type")
	for _, body := range []string{`{"reason":1}`, `{"why":"x"}`, `{"reason":"a\u0000b"}`, `{"reason":"` + strings.Repeat("é", maxReason+1) + `"}`} {
		w.do("POST", revoke, token, body).want(422, "invalid_field")
	}
	w.do("POST", links+"/unknown/revoke", token, "").want(404, "not_found")
	w.do("GET", customer, token, "").want(200, "")
	w.do("GET", customer+"?limit=0", token, "").want(400, "bad_request")

	for _, rt := range routes {
		path := strings.Replace(strings.ReplaceAll(rt.path, "customers/{id}", "customers/cus_9s6XKzkNRiz8i3"), "{id}", link, 1)
		w.do(rt.method, path, "", "").want(401, "unauthorized")
		w.do(rt.method, path, token, "", "Accept", "text/html").want(406, "not_acceptable")
		if got := w.do("PATCH", path, token, "").want(405, "method_not_allowed"); !strings.Contains(got.header.Get("Allow"), rt.method) {
			t.Errorf("%s: Allow: %s", path, got.header.Get("Allow"))
		}
		lacking := none
		if rt.scope == ScopeRead {
			lacking = creator
		}
		w.do(rt.method, path, lacking, "").want(403, "forbidden")
	}
	w.do("GET", "/v1/nothing", token, "").want(404, "not_found")
	w.do("POST", revoke, token, "", "Authorization", "Bearer a", "Authorization", "").want(401, "unauthorized")

	for range 2 * tokenBurst {
		if w.do("HEAD", one, none, "").status == 429 {
			break
		}
	}
	for _, rt := range routes {
		w.do(rt.method, strings.ReplaceAll(rt.path, "{id}", "x"), none, "").want(429, "rate_limited")
	}
	w.clock.advance(minute)
	w.broken(token)
	w.away(token)

	for op, operation := range loadContract(t).operations() {
		for status := range operation.Responses.Codes.KeysFromOldest() {
			if !w.seen[op+" "+status] {
				t.Errorf("%s: the contract has %s, which was not provoked", op, status)
			}
		}
	}
}
