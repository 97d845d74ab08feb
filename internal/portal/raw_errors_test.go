package portal

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// hardServer serves a handler behind a hardened listener and returns its address.
func hardServer(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.MaxHeaderBytes = 1 << 10
	srv.Listener = hardenListener(srv.Listener, http.Header{"X-Marker": {"ours"}, "X-Other": {"too"}})
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// converse sends bytes and reads what comes back until the server closes.
func converse(t *testing.T, address, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = io.WriteString(conn, request) // a server that refuses reads no further
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	answer, _ := io.ReadAll(conn) // a reset at the end is a refusal, too
	return string(answer)
}

func TestRawErrors(t *testing.T) {
	t.Parallel()
	address := hardServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})
	for request, line := range map[string]string{
		"nonsense\r\n\r\n":               "HTTP/1.1 400 Bad Request",
		"GET / HTTP/1.1\r\n\r\n":         "HTTP/1.1 400 Bad Request", // "missing required Host header"
		"GET / HTTP/1.1\r\nHost: a\r\nX": "HTTP/1.1 400 Bad Request", // cut off
		"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 9000) + "\r\n\r\n": "HTTP/1.1 431 Request Header Fields Too Large",
		"GET / HTTP/3.7\r\nHost: x\r\n\r\n":                                         "HTTP/1.1 505 HTTP Version Not Supported",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n":             "HTTP/1.1 501 Not Implemented",
		"GET / HTTP/1.1\r\nHost: x\r\nExpect: cake\r\n\r\n":                         "HTTP/1.1 417 Expectation Failed",
		"GET / HTTP/1.0\r\nExpect: cake\r\n\r\n":                                    "HTTP/1.0 417 Expectation Failed",
	} {
		got := converse(t, address, request)
		if !strings.HasPrefix(got, line+"\r\n") || strings.Count(got, "\r\nX-Marker: ours\r\n") != 1 || strings.Count(got, "\r\nX-Other: too\r\n") != 1 ||
			strings.Count(got, "\r\nConnection: close\r\n") != 1 {
			t.Errorf("%.40q: %q", request, got)
		}
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
		if err != nil {
			t.Fatalf("%.40q: %v", request, err)
		}
		body, err := io.ReadAll(resp.Body)
		if _, reason, _ := strings.Cut(resp.Status, " "); err != nil || string(body) != reason+"\n" && resp.StatusCode != 417 {
			t.Errorf("%.40q: body %q, %v", request, body, err)
		}
	}
}

// The second request of a connection is as broken as the first.
func TestRawErrorAfterAnAnswer(t *testing.T) {
	t.Parallel()
	address := hardServer(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "fine")
	})
	got := converse(t, address, "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n")
	if strings.Count(got, "HTTP/1.1 200 OK\r\n") != 2 || strings.Count(got, "X-Marker: ours") != 1 || !strings.Contains(got, "HTTP/1.1 400 Bad Request\r\nX-Marker: ours\r\n") {
		t.Errorf("%q", got)
	}
}

// A handler's answer passes as it is, even where it looks like net/http's own.
func TestRawErrorsLeaveHandlersAlone(t *testing.T) {
	t.Parallel()
	const raw = "HTTP/1.1 400 Bad Request" + rawErrorHeaders + "400 Bad Request"
	address := hardServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/body": // in a write of its own
			w.Header().Set("Content-Length", strconv.Itoa(2*len(raw)))
			_ = http.NewResponseController(w).Flush()
		case "/error":
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.WriteHeader(http.StatusBadRequest)
		case "/continue":
			_, _ = io.Copy(io.Discard, r.Body)
		}
		_, _ = io.WriteString(w, raw)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, raw)
	})
	for path, more := range map[string]string{"/body": "", "/error": "", "/both": "", "/continue": "Expect: 100-continue\r\nContent-Length: 2\r\n"} {
		body := ""
		if more != "" {
			body = "ab"
		}
		got := converse(t, address, "POST "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+more+"\r\n"+body)
		if strings.Contains(got, "X-Marker") || !strings.Contains(got, raw) {
			t.Errorf("%s: %q", path, got)
		}
		if more != "" && !strings.HasPrefix(got, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// What the wrapper stands before keeps working: deadlines, closing one half, errors.
func TestHardConn(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := hardenListener(inner, http.Header{})
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Unix(1, 0))
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read past a deadline: %v", err)
	}
	if n, err := conn.Write([]byte("HTTP/1.1 400 Bad Request" + rawErrorHeaders)); n != 0 || !errors.As(err, &timeout) {
		t.Errorf("write past a deadline: %d, %v", n, err)
	}
	_ = conn.SetDeadline(time.Time{})
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(client); err != nil || len(rest) != 0 {
		t.Errorf("%q, %v", rest, err)
	}
	if _, err := io.WriteString(client, "x"); err != nil {
		t.Error(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("the other half is closed too: %d, %v", n, err)
	}
	_ = l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
}
