package portal

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// marker stands in what a stranger sends wherever it could be echoed; no answer and no log line
// may have it.
const marker = "zq9marker"

// publicServer serves a click server as cmd/worker does, behind the hardened listener; change may
// be nil. It returns the address.
func publicServer(t *testing.T, s *ClickServer, change func(*http.Server)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := s.HTTPServer()
	if change != nil {
		change(srv)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(s.Listener(l)) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}

var statusLines = regexp.MustCompile(`HTTP/1\.[01] (\d\d\d) `)

// statuses checks what came back on a connection: every answer in it has the security headers, and
// none has the marker. It returns their statuses.
func statuses(t *testing.T, about, answers string) string {
	t.Helper()
	var got []string
	for _, m := range statusLines.FindAllStringSubmatch(answers, -1) {
		if m[1] != "100" {
			got = append(got, m[1])
		}
	}
	for name, value := range securityHeaders {
		if n := strings.Count(answers, "\r\n"+name+": "+value+"\r\n"); n != len(got) {
			t.Errorf("%s: %d answers, %d of them with %s:\n%.2000s", about, len(got), n, name, answers)
		}
	}
	if n := strings.Count(answers, "\r\nContent-Security-Policy: default-src 'none';"); n != len(got) {
		t.Errorf("%s: %d answers, %d of them with a policy:\n%.2000s", about, len(got), n, answers)
	}
	if strings.Contains(answers, marker) {
		t.Errorf("%s: reflected:\n%.2000s", about, answers)
	}
	return strings.Join(got, " ")
}

// hostile sends each request on a connection of its own, with TOKEN made a valid link's, and holds
// the statuses of what comes back, the log and Stripe to what must be.
func hostile(t *testing.T, requests map[string]string) {
	t.Helper()
	b := setup(t)
	address := publicServer(t, b.click, nil)
	token := b.token(b.link(nil))
	var wait sync.WaitGroup
	for request, want := range requests {
		wait.Go(func() {
			about := fmt.Sprintf("%.70q", request)
			if got := statuses(t, about, converse(t, address, strings.ReplaceAll(request, "TOKEN", token))); got != want {
				t.Errorf("%s: got %q, want %q", about, got, want)
			}
		})
	}
	wait.Wait()
	for _, word := range []string{"panic", "level\":\"ERROR", marker, token} {
		if log := b.log.String(); strings.Contains(log, word) {
			t.Errorf("the log has %q:\n%s", word, log)
		}
	}
	if n := len(b.sim.Calls()); n != 0 {
		t.Errorf("Stripe was called %d times", n)
	}
}

// end is the end of a request whose headers don't matter.
const end = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

func TestHostileSizes(t *testing.T) {
	t.Parallel()
	big, some := strings.Repeat(marker, 1<<20/len(marker)), strings.Repeat(marker, 1000)
	get := "GET /l/TOKEN HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	hostile(t, map[string]string{
		get + "X: " + big + "\r\n\r\n":                                        "431",
		get + big + ": x\r\n\r\n":                                             "431",
		get + strings.Repeat("X-"+marker+": x\r\n", 60_000) + "\r\n":          "431",
		get + "Cookie: " + big + "\r\n\r\n":                                   "431",
		get + "Cookie: " + some + "\r\n\r\n":                                  "200",
		get + strings.Repeat("Cookie: "+marker+"=1\r\n", 500) + "\r\n":        "200",
		get + "Accept-Language: " + some + "\r\n\r\n":                         "200",
		get + "User-Agent: " + some + "\r\n\r\n":                              "200",
		get + "X-Forwarded-For: " + strings.Repeat("::1,", 2500) + "\r\n\r\n": "200",
		"GET /l/" + big + end:                                                 "431",
		"GET /l/" + some + end:                                                "404",
		"GET /l/TOKEN?" + some + end:                                          "200",
		"GET /" + strings.Repeat("../", 3000) + "l/TOKEN" + end:               "404",
		"GET /l/" + strings.Repeat("%2e", 3000) + end:                         "404",
		big + " / HTTP/1.1\r\n\r\n":                                           "431",
		some + " /l/TOKEN" + end:                                              "405",
		strings.Repeat("\r\n", 1<<19):                                         "400",
		strings.Repeat("\x00", 1<<20):                                         "431",
		strings.Repeat("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 50):               strings.TrimSpace(strings.Repeat("404 ", 50)),
	})
}

// A POST whose body did not arrive as announced presses nothing. Where both lengths are given,
// net/http goes by the chunks, as RFC 9112 has it, and what it takes for the next request is
// answered like anybody's: connections carry no one's rights here, so there is nothing to smuggle.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	post, get := "POST /l/TOKEN HTTP/1.1\r\nHost: x\r\n", "GET /l/TOKEN HTTP/1.1\r\nHost: x\r\n"
	next := "GET /" + marker + " HTTP/1.1\r\nHost: x\r\n\r\n"
	hostile(t, map[string]string{
		post + "Transfer-Encoding: chunked\r\n\r\n" + marker + "\r\n":                                      "400",
		post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n0\r\n\r\n":                    "400",
		post + "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n":                                    "400",
		post + "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n":                                   "400",
		post + "Transfer-Encoding: chunked\r\n\r\n2\r\nab":                                                 "400",
		post + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat(marker, 2000) + "\r\na\r\n":         "400",
		post + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+marker+"\r\na\r\n", 50_000):      "400",
		post + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: "+marker+"\r\n", 100_000):    "400",
		post + "Content-Length: 10\r\n\r\nabc":                                                             "400",
		post + "Content-Length: 99999999999999999999\r\n\r\nabc":                                           "400",
		post + "Content-Length: 9223372036854775807\r\n\r\nabc":                                            "400",
		post + "Content-Length: -1\r\n\r\nabc":                                                             "400",
		post + "Content-Length: +3\r\n\r\nabc":                                                             "400",
		post + "Content-Length: 0x3\r\n\r\nabc":                                                            "400",
		post + "Content-Length: 3, 3\r\n\r\nabc":                                                           "400",
		post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd":                                        "400",
		post + "Content-Length : 3\r\n\r\nabc":                                                             "400",
		post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n":                                              "400",
		post + "Transfer-Encoding: " + marker + "\r\n\r\n0\r\n\r\n":                                        "501",
		post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n":                                     "501",
		post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n":                                           "400",
		post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: " + marker + "\r\n\r\n0\r\n\r\n":          "501",
		post + "Expect: " + marker + "\r\n\r\n":                                                            "417",
		post + "Expect: 100-continue\r\nContent-Length: 10\r\n\r\nabc":                                     "400",
		get + "Content-Length: 3\r\n\r\nabcX" + next:                                                       "200 405",
		get + "Content-Length: 3\r\n\r\nabc" + marker + "\r\n" + next:                                      "200 400",
		get + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next:                    "200 404",
		get + "Transfer-Encoding: chunked\r\nContent-Length: " + "4\r\n\r\n0\r\n\r\n" + next:               "200 404",
		get + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + next:                "200 404",
		get + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + next:                                   "200 404",
		"GET /l/TOKEN HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + next: "200",
	})
}

func TestHostileTargets(t *testing.T) {
	t.Parallel()
	hostile(t, map[string]string{
		"GET /l/%zz" + marker + end: "400", "GET /l/TOKEN%" + end: "400", "GET /l/%4" + end: "400", "GET /l/TOKEN%%27" + end: "400",
		"GET /l/\x00TOKEN" + end: "400", "GET /l/TOKEN\x00" + end: "400", "GET /l/TOKEN\x01" + marker + end: "400", "GET /l/TOKEN\x7f" + end: "400",
		"GET /l/TOKEN\r" + end: "400", "GET /l/TOKEN\n" + end: "400", "GET /l/TOKEN\t" + end: "400", "GET /l/ TOKEN" + end: "400",
		"GET /l/%00TOKEN" + end: "404", "GET /l/TOKEN%00" + marker + end: "200", "GET /l/TOKEN%0d%0aX:%20" + marker + end: "200",
		"GET /l/TOKEN\xff" + marker + end: "200", "GET /l/\xffTOKEN" + end: "404", "GET /l/TOKEN%c0%ae" + end: "200", "GET /" + marker + "%ff" + end: "404",
		"GET //l/TOKEN" + end: "404", "GET /l//TOKEN" + end: "404", "GET ///" + marker + end: "404", "GET //" + marker + "/l/TOKEN" + end: "404",
		"GET /../l/TOKEN" + end: "404", "GET /l/../l/TOKEN" + end: "404", "GET /%2e%2e/l/TOKEN" + end: "404", "GET /l/%2e%2e/%2e%2e/TOKEN" + end: "404",
		"GET /l%2fTOKEN" + end: "200", "GET /l/%2fTOKEN" + end: "404", "GET %2fl%2fTOKEN" + end: "400", "GET /l\\TOKEN" + end: "404",
		"GET /l/TOKEN/../../" + marker + end: "200", "GET /l/TOKEN;" + marker + end: "200", "GET /l/TOKEN#" + marker + end: "200",
		"GET /l/<script>" + marker + "</script>" + end: "404", "GET /l/TOKEN\"><script>" + marker + "</script>" + end: "200",
		"GET http://" + marker + ".example/l/TOKEN" + end: "200", "GET https://u:" + marker + "@x/l/TOKEN" + end: "200", "GET " + marker + "://x/l/TOKEN" + end: "200",
		"GET http://[::1" + marker + "/l/TOKEN" + end: "400", "GET http:///l/TOKEN" + end: "200", "GET http:l/TOKEN" + end: "404", "GET javascript:" + marker + end: "404",
		"GET l/TOKEN" + end: "400", "GET " + marker + end: "400", "GET *" + end: "404", "GET ?" + marker + end: "400", "GET  /l/TOKEN" + end: "400", "GET " + end: "400",
		"CONNECT " + marker + ":443" + end: "405", "CONNECT /l/TOKEN" + end: "405", "CONNECT http://" + marker + "/" + end: "405",
		"OPTIONS *" + end: "405", "OPTIONS /l/TOKEN" + end: "405", "OPTIONS " + marker + end: "400",
		marker + " /l/TOKEN" + end: "405", "get /l/TOKEN" + end: "405", "G\x00T /l/TOKEN" + end: "400", " GET /l/TOKEN" + end: "400", "\xff /l/TOKEN" + end: "400",
		"TRACE /l/TOKEN HTTP/1.1\r\nHost: x\r\nX: " + marker + "\r\nConnection: close\r\n\r\n": "405",
		"GET /l/TOKEN HTTP/9.9\r\nHost: x\r\n\r\n":                                             "505", "GET /l/TOKEN HTTP/2.0\r\nHost: x\r\n\r\n": "505",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "405", "GET /l/TOKEN HTTP/1.1" + marker + "\r\nHost: x\r\n\r\n": "400",
		"GET /l/TOKEN\r\n\r\n": "400", "GET\r\n\r\n": "400", "\r\n\r\n": "400", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n": "400",
		"GET /robots.txt/.." + end: "404", "GET /favicon.ico" + end: "404", "GET /l/" + end: "404",
	})
}

// Every byte of the token encoded is the same link; nothing of the spelling comes back.
func TestHostileEncodedToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	address, token := publicServer(t, b.click, nil), b.token(b.link(nil))
	var encoded strings.Builder
	for _, c := range []byte(token) {
		fmt.Fprintf(&encoded, "%%%02x", c)
	}
	got := converse(t, address, "GET /%6c/"+encoded.String()+end)
	if statuses(t, "encoded", got) != "200" || strings.Contains(got, encoded.String()) || !strings.Contains(got, `action="/l/`+token+`"`) {
		t.Errorf("%s", got)
	}
	if got := statuses(t, "encoded twice", converse(t, address, "GET /l/"+strings.ReplaceAll(encoded.String(), "%", "%25")+end)); got != "404" {
		t.Errorf("encoded twice: %s", got)
	}
}

func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	line := "GET /l/TOKEN HTTP/1.1\r\nConnection: close\r\n"
	get := line + "Host: x\r\n"
	hostile(t, map[string]string{
		line + "\r\n": "400", line + "Host: \r\n\r\n": "200", line + "Host: x\r\nHost: " + marker + "\r\n\r\n": "400", line + "Host: " + marker + "\r\n\r\n": "200",
		line + "Host: " + marker + " x\r\n\r\n": "400", line + "Host: x\rX: " + marker + "\r\n\r\n": "400", line + "Host: x\x00" + marker + "\r\n\r\n": "400",
		line + "Host: x\r\n " + marker + "\r\n\r\n": "400", line + "Host: <" + marker + ">\r\n\r\n": "400", line + "Host: x\nX-" + marker + ": 1\r\n\r\n": "200",
		line + "Host: " + marker + "@y:99999\r\n\r\n": "400", line + "Host: \xff" + marker + "\r\n\r\n": "400", line + "Host: ../" + marker + "\r\n\r\n": "400",
		get + "Accept-Language: ../../" + marker + "\r\n\r\n": "200", get + "Accept-Language: \xff\xfe" + marker + "\r\n\r\n": "200", get + "Accept-Language: x\x00\r\n\r\n": "400",
		get + "Accept-Language: *;q=" + marker + "\r\n\r\n": "200", get + "Accept-Language: <script>" + marker + "\r\n\r\n": "200",
		get + "Accept-Language: " + strings.Repeat("a-", 6000) + "\r\n\r\n": "200", get + "Accept-Language: de;q=99999999999999999999,;;,=," + marker + "\r\n\r\n": "200",
		get + "X-Forwarded-For: " + marker + "\r\n\r\n": "200", get + "X-Forwarded-For: 1.2.3.4, ::ffff:999.1.1.1, [" + marker + "]:1\r\n\r\n": "200",
		get + "X-Forwarded-Host: " + marker + ".example\r\n\r\n": "200", get + "X-Forwarded-Proto: javascript:" + marker + "\r\n\r\n": "200", get + "Forwarded: for=" + marker + "\r\n\r\n": "200",
		get + "X-Original-URL: /" + marker + "\r\n\r\n": "200", get + "X-HTTP-Method-Override: POST\r\n\r\n": "200", get + "Referer: http://" + marker + "/\r\n\r\n": "200",
		get + "User-Agent: x\xff\xfe\xc3(" + marker + "\r\n\r\n": "200", get + "User-Agent: x\rSet-Cookie: " + marker + "\r\n\r\n": "400", get + "User-Agent: x\n" + marker + "\r\n\r\n": "400",
		get + "User-Agent: x\x00" + marker + "\r\n\r\n": "400", get + "User-Agent: \x1b[31m" + marker + "\r\n\r\n": "400", get + "User-Agent: x\r\n " + marker + "\r\n\r\n": "200",
		get + "User-Agent: {{.Token}} %s %n ${jndi:ldap://" + marker + "/a}\r\n\r\n": "200", get + "User-Agent: '; DROP TABLE links; -- " + marker + "\r\n\r\n": "200",
		get + "Cookie: " + marker + "=\xff;;;=;\r\n\r\n": "200", get + marker + "\r\n\r\n": "400", get + ": " + marker + "\r\n\r\n": "400", get + "X\x00: " + marker + "\r\n\r\n": "400",
		get + "X " + marker + ": x\r\n\r\n": "400", get + "\xff: " + marker + "\r\n\r\n": "400", " " + get + "\r\n": "400", get + "Range: bytes=0-1\r\nIf-None-Match: *\r\n\r\n": "200",
		get + "Upgrade: h2c\r\nHTTP2-Settings: " + marker + "\r\n\r\n": "200", get + "Upgrade: websocket\r\nSec-WebSocket-Key: " + marker + "\r\n\r\n": "200",
		get + "Accept: " + marker + "/json\r\n\r\n": "200", get + "Accept-Encoding: gzip\r\nTE: trailers\r\n\r\n": "200", get + "Sec-Fetch-Mode: \xff" + marker + "\r\n\r\n": "200",
		"GET /" + marker + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: application/json\r\n\r\n":         "404",
		"PUT /l/TOKEN?" + marker + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: application/json\r\n\r\n": "405",
		"GET /l/TOKEN HTTP/1.0\r\n\r\n": "200", "GET /l/TOKEN HTTP/1.0\r\nHost: " + marker + "\r\nHost: y\r\n\r\n": "400",
	})
}

// A body that stalls is a press that did not arrive; a header that stalls is no request.
func TestHostileStall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	address := publicServer(t, b.click, func(s *http.Server) { s.ReadTimeout, s.ReadHeaderTimeout = time.Second, time.Second })
	token := b.token(b.link(nil))
	var wait sync.WaitGroup
	for request, want := range map[string]string{
		"POST /l/" + token + " HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab":                       "400",
		"POST /l/" + token + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab":          "400",
		"POST /l/" + token + " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n": "400",
		"POST /l/" + token + " HTTP/1.1\r\nHost: x\r\nX-" + marker:                                        "400",
		"": "",
	} {
		wait.Go(func() {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, request); err != nil {
				t.Error(err)
			}
			answer, _ := io.ReadAll(conn) // until the server gives up
			if got := statuses(t, request, string(answer)); got != want {
				t.Errorf("%.70q: got %q, want %q", request, got, want)
			}
		})
	}
	wait.Wait()
	if n := len(b.sim.Calls()); n != 0 {
		t.Errorf("Stripe was called %d times", n)
	}
}

// A proxy that is trusted may pass on nonsense, too.
func TestHostileForwardedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.click.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	address, l := publicServer(t, b.click, nil), b.link(nil)
	for _, value := range []string{marker, "", ",,,", "1.2.3.4.5", "::ffff:1.2.3.4%" + marker, "[::1", "\xff", "unix:@", strings.Repeat("127.0.0.1,", 1000), "fe80::1%" + strings.Repeat("z", 9000)} {
		got := converse(t, address, "GET /l/"+b.token(l)+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: "+value+"\r\n\r\n")
		if s := statuses(t, value, got); s != "200" {
			t.Errorf("%.40q: %s", value, s)
		}
	}
	if n := b.number(`SELECT count(*) FROM audit_visitors WHERE host(ip) NOT IN ('127.0.0.1', '1.2.3.4', 'fe80::1')`); n != 0 {
		t.Errorf("%d visitors have an address of somebody's choice", n)
	}
}

// FuzzRawRequest sends any bytes to the whole server but the database, which no forged token
// reaches: each answer has its headers, and nothing panics.
func FuzzRawRequest(f *testing.F) {
	for _, seed := range []string{
		"GET /l/x HTTP/1.1\r\nHost: x\r\n\r\n", "POST /l/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX: y\r\n\r\nGET /robots.txt HTTP/1.0\r\n\r\n", "GET %zz HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", "HEAD http://a/l/%00 HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nExpect: y\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	log := &syncBuffer{}
	s := (&ClickServer{Keys: parseKeys(f, testKeys), Pages: NewPages(PagesConfig{Brand: "Acme"}), Store: NewStore(nil, nil, time.Now), Limits: NewLimits(), Log: slog.New(slog.NewTextHandler(log, nil)), Abort: f.Context()}).Init(prometheus.NewRegistry())
	f.Fuzz(func(t *testing.T, request []byte) {
		if len(request) > 8<<10 {
			t.Skip() // net/http waits half a second before it closes on what is too large
		}
		conn := &memoryConn{in: bytes.NewReader(request), closed: make(chan struct{})}
		srv := s.HTTPServer()
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(s.Listener(&oneConn{conn: conn, until: conn.closed})) }()
		<-served
		_ = srv.Close()
		statuses(t, fmt.Sprintf("%q", request), conn.out.String())
		if strings.Contains(log.String(), "panic") {
			t.Fatal(log.String())
		}
	})
}

// oneConn is a listener for one connection; it ends with it.
type oneConn struct {
	conn  net.Conn
	until chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.until
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// memoryConn is a client that has sent all it will and takes what comes.
type memoryConn struct {
	net.Conn
	in     *bytes.Reader
	out    syncBuffer
	once   sync.Once
	closed chan struct{}
}

func (c *memoryConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *memoryConn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c *memoryConn) Close() error                { c.once.Do(func() { close(c.closed) }); return nil }
func (c *memoryConn) LocalAddr() net.Addr         { return &net.TCPAddr{} }
func (c *memoryConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 1}
}
func (c *memoryConn) SetDeadline(time.Time) error      { return nil }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }
