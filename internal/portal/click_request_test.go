package portal

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// What mail gateways append is no part of the token.
func TestJunkBehindTheToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	token := b.token(l)
	for _, junk := range []string{"/", "?", "?utm_source=mail&x=%zz", "?;", "%27", "'", ")", "%3E", ">", "&utm_campaign=x", ".", "%20", "%0A", "%00", ",", "%E2%80%9D", "=", "/x/y", "%2F..%2F", ";jsessionid=1"} {
		r := b.raw("GET /l/" + token + junk + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		r.want(t, 200, pageConfirm)
		if !strings.Contains(r.body, `action="/l/`+token+`"`) {
			t.Errorf("%q: the button leads elsewhere:\n%s", junk, r.body)
		}
	}
	r := b.do("POST", "/l/"+token+"%27?utm=1")
	r.want(t, 303, "")
}

// raw sends bytes as they are: Go's client would tidy the path up.
func (b *bundle) raw(request string) reply {
	b.t.Helper()
	conn, err := net.Dial("tcp", b.http.Listener.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	go func() { _, _ = io.WriteString(conn, request) }() // a server that refuses reads no further
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		b.t.Fatalf("%.60q: %v", request, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil && len(body) == 0 {
		b.t.Fatal(err)
	}
	if resp.Close {
		resp.Header.Set("Connection", "close") // ReadResponse takes it out
	}
	return reply{resp.StatusCode, resp.Header, string(body)}
}

// A path that is no link's never redirects: the token would be in the Location, and in a log.
func TestPathTricks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.token(b.link(nil))
	for target, want := range map[string]int{
		"//l/" + token: 404, "/l//" + token: 404, "/l/../l/" + token: 404, "/./l/" + token: 404, "/x/../l/" + token: 404,
		"/L/" + token: 404, "/l": 404, "/l/": 404, "/": 404, "/l/%2E%2E/l/" + token: 404, "/l/%2F" + token: 404, "/" + token: 404,
		"/%6C/" + token: 200, "/l%2F" + token: 200, "http://other.example/l/" + token: 200, "/l/" + token + "/../../x": 200,
		"/l/" + token + "/renew": 200, "/favicon.ico": 404, "/l/" + strings.Repeat("A", 4000): 404, "/l/" + token + token: 404, "/robots.txt": 200,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			r := b.raw(method + " " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if r.status != want {
				t.Errorf("%s %s: %d, want %d", method, target, r.status, want)
			}
			r.wantHeaders(t)
		}
	}
	if len(b.sim.Calls()) != 0 {
		t.Error("Stripe was called")
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.token(b.link(nil))
	for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"} {
		r := b.do(method, "/l/"+token)
		r.want(t, 405, pageMethod)
		r.wantHeaders(t)
		if r.header.Get("Allow") != "GET, HEAD, POST" {
			t.Errorf("%s: Allow %q", method, r.header.Get("Allow"))
		}
	}
	if r := b.raw("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); r.status/100 == 5 {
		t.Errorf("OPTIONS *: %d", r.status)
	}
	if n := b.number(`SELECT count(*) FROM audit_events`); n != 0 {
		t.Errorf("%d audit rows", n)
	}
}

func TestRequestsThatAreTooLarge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.token(b.link(nil))
	r := b.raw("GET /l/" + token + " HTTP/1.1\r\nHost: x\r\nX-Big: " + strings.Repeat("x", 1<<20) + "\r\n\r\n")
	if r.status != 431 {
		t.Errorf("a header of 1 MB: %d", r.status)
	}
	r = b.raw("GET /l/" + token + "?" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n")
	if r.status/100 != 4 {
		t.Errorf("a query of 1 MB: %d", r.status)
	}
	for about, head := range map[string]string{
		"declared":    "Content-Length: 1048576\r\n\r\n" + strings.Repeat("x", 1<<20),
		"chunked":     "Transfer-Encoding: chunked\r\n\r\n100000\r\n" + strings.Repeat("x", 1<<20) + "\r\n0\r\n\r\n",
		"a bit large": "Content-Length: 65537\r\n\r\n" + strings.Repeat("x", 65537),
	} {
		r = b.raw("POST /l/" + token + " HTTP/1.1\r\nHost: x\r\n" + head)
		r.want(t, 413, pageTooLarge)
		r.wantHeaders(t)
		if r.header.Get("Connection") != "close" {
			t.Errorf("%s: the connection stays open for the rest of the body", about)
		}
	}
	b.raw("POST /l/"+token+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\nok=please").want(t, 303, "")
	if n := len(b.sim.Calls()); n != 1 {
		t.Errorf("%d calls of Stripe, want that of the small body", n)
	}
}
