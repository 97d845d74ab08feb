package stripesim_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"latchkey/internal/stripesim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is the time of a test, moved by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func setup(t *testing.T) (*stripesim.Sim, *clock) {
	t.Helper()
	c := newClock()
	return stripesim.New(stripesim.Config{Now: c.Now}), c
}

// reply is an answer, with the error or the object of its body.
type reply struct {
	status int
	header http.Header
	body   string
	object map[string]any
	err    struct{ Type, Code, Message, Param string }
}

func do(t *testing.T, h http.Handler, method, target, body string, header ...string) reply {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	r.Header.Set("Authorization", "Bearer "+stripesim.TestKey)
	for i := 0; i < len(header); i += 2 {
		r.Header.Del(header[i])
		if header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	out := reply{status: w.Code, header: w.Header(), body: w.Body.String()}
	if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
		var e struct {
			Error struct{ Type, Code, Message, Param string }
		}
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
			t.Fatalf("%s %s: answer is not JSON: %v\n%s", method, target, err, w.Body)
		}
		out.err = e.Error
		_ = json.Unmarshal(w.Body.Bytes(), &out.object)
	}
	return out
}

const sessionsPath = "/v1/billing_portal/sessions"

// form encodes "name=value" pairs.
func form(pairs ...string) string {
	v := url.Values{}
	for _, p := range pairs {
		name, val, _ := strings.Cut(p, "=")
		v.Add(name, val)
	}
	return v.Encode()
}

func create(t *testing.T, h http.Handler, body string, header ...string) reply {
	t.Helper()
	return do(t, h, http.MethodPost, sessionsPath, body, header...)
}

func mustCreate(t *testing.T, h http.Handler, body string, header ...string) reply {
	t.Helper()
	r := create(t, h, body, header...)
	if r.status != http.StatusOK {
		t.Fatalf("status %d, want 200: %s", r.status, r.body)
	}
	return r
}

func (r reply) want(t *testing.T, status int, typ, code, param string) {
	t.Helper()
	if r.status != status || r.err.Type != typ || r.err.Code != code || r.err.Param != param {
		t.Fatalf("got %d type=%q code=%q param=%q, want %d %q %q %q\n%s",
			r.status, r.err.Type, r.err.Code, r.err.Param, status, typ, code, param, r.body)
	}
}

func (r reply) wantMessage(t *testing.T, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(r.err.Message, p) {
			t.Fatalf("message %q lacks %q", r.err.Message, p)
		}
	}
}

func path(t *testing.T, rawURL any) string {
	t.Helper()
	u, err := url.Parse(rawURL.(string))
	if err != nil {
		t.Fatal(err)
	}
	return u.Path
}
