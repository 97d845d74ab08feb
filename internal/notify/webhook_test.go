package notify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"latchkey/internal/interop"
)

var secretA = "whsec_" + base64.StdEncoding.EncodeToString([]byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"))
var secretB = "whsec_" + base64.StdEncoding.EncodeToString([]byte("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"))

func newTestWebhooks(t *testing.T, cfg WebhookConfig) *Webhooks {
	t.Helper()
	if len(cfg.Secrets) == 0 {
		cfg.Secrets = []string{secretA}
	}
	w, err := NewWebhooks(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// postTo enters a target's lane and posts.
func postTo(ctx context.Context, w *Webhooks, target, id string, at time.Time, body []byte) error {
	place, err := w.Enter(Lane(target), at)
	if err != nil {
		return err
	}
	defer place.Leave()
	return place.Post(ctx, target, id, at, body)
}

// target is a server of the test's own.
func target(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

// A receiver may hold any of the secrets, so one can be exchanged for another without a gap.
func TestWebhookIsSignedByEachSecret(t *testing.T) {
	t.Parallel()
	var header http.Header
	var got []byte
	srv := target(t, func(w http.ResponseWriter, r *http.Request) {
		header = r.Header
		got, _ = io.ReadAll(r.Body)
	})
	w := newTestWebhooks(t, WebhookConfig{Secrets: []string{secretA, secretB}, AllowPrivate: true, UserAgent: "Latchkey/1"})
	body := []byte(`{"specversion":"1.0","data":"ü"}`)
	if err := postTo(t.Context(), w, srv.URL+"/hook?key=1", "evt-1", time.Now(), body); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(body) || header.Get("Content-Type") != "application/cloudevents+json; charset=utf-8" || header.Get("webhook-id") != "evt-1" || header.Get("User-Agent") != "Latchkey/1" {
		t.Errorf("got %s with %v", got, header)
	}
	for _, secret := range []string{secretA, secretB} {
		receiver, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := receiver.Verify(got, header); err != nil {
			t.Errorf("with one of the secrets: %v", err)
		}
		if receiver.Verify(append(got, ' '), header) == nil {
			t.Error("another body verifies")
		}
	}
}

// The official JavaScript library verifies what is sent, and nothing else.
func TestWebhookVerifiesInJavaScript(t *testing.T) {
	t.Parallel()
	type delivery struct {
		Secrets []string          `json:"secrets"`
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
	}
	got := delivery{Secrets: []string{secretB}, Headers: map[string]string{}}
	srv := target(t, func(_ http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
			got.Headers[name] = r.Header.Get(name)
		}
		body, _ := io.ReadAll(r.Body)
		got.Body = string(body)
	})
	w := newTestWebhooks(t, WebhookConfig{Secrets: []string{secretA, secretB}, AllowPrivate: true})
	const body = `{"specversion":"1.0","data":{"customer":"zoë \u2028"}}`
	if err := postTo(t.Context(), w, srv.URL, "01a2050a-ca60-7a8f-b275-087a5e540000", time.Now(), []byte(body)); err != nil {
		t.Fatal(err)
	}
	ask := func(d delivery) []byte {
		in, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	if out := interop.Node(t, "verify-webhook.mjs", ask(got)); strings.TrimSpace(out) != body {
		t.Errorf("the library returns %q", out)
	}
	forged := got
	forged.Body = strings.Replace(body, "zoë", "eve", 1)
	if _, err := interop.Run(t, "verify-webhook.mjs", ask(forged)); err == nil {
		t.Error("another body verifies")
	}
}

func TestWebhookSecrets(t *testing.T) {
	t.Parallel()
	for _, bad := range [][]string{nil, {""}, {"hush"}, {"whsec_!"}, {"whsec_c2hvcnQ="}, {secretA, "whsec_c2hvcnQ="}} {
		_, err := NewWebhooks(WebhookConfig{Secrets: bad})
		if err == nil {
			t.Errorf("%v is taken", bad)
			continue
		}
		for _, s := range bad {
			if len(s) > 3 && strings.Contains(err.Error(), strings.TrimPrefix(s, "whsec_")) {
				t.Errorf("the error quotes the secret: %v", err)
			}
		}
	}
}

// The address is looked at when it is dialled, whatever the name says.
func TestWebhookReachesNoPrivateAddress(t *testing.T) {
	t.Parallel()
	srv := target(t, func(http.ResponseWriter, *http.Request) { t.Error("the target was reached") })
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w := newTestWebhooks(t, WebhookConfig{})
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "10.0.0.1", "172.16.0.1", "192.168.1.1",
		"169.254.169.254", "100.64.0.1", "[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255"} {
		err := postTo(t.Context(), w, "http://"+host+":"+port+"/", "evt", time.Now(), nil)
		var refused *WebhookError
		if !errors.As(err, &refused) || refused.Status != 0 {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := postTo(t.Context(), w, srv.URL, "evt", time.Now(), nil); !strings.Contains(err.Error(), "WEBHOOK_ALLOW_PRIVATE") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func TestWebhookFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	other := target(t, func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") })
	srv := target(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	err := postTo(t.Context(), newTestWebhooks(t, WebhookConfig{AllowPrivate: true}), srv.URL, "evt", time.Now(), nil)
	var refused *WebhookError
	if !errors.As(err, &refused) || refused.Status != 307 {
		t.Errorf("%v", err)
	}
}

// What a target says, and its URL, stay out of the error; status and Retry-After are understood.
func TestWebhookErrors(t *testing.T) {
	t.Parallel()
	now := time.Now()
	srv := target(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/gone-zebra":
			w.WriteHeader(http.StatusGone)
		case "/busy-zebra":
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/date-zebra":
			w.Header().Set("Retry-After", now.Add(time.Hour).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusTooManyRequests)
		case "/forever-zebra":
			w.Header().Set("Retry-After", "4294967295")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/cut-zebra":
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write([]byte("zebra"))
	})
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	secure.Config.ErrorLog = nil
	w := newTestWebhooks(t, WebhookConfig{AllowPrivate: true})
	for _, c := range []struct {
		url    string
		status int
		gone   bool
		after  time.Duration
	}{
		{srv.URL + "/gone-zebra", 410, true, 0},
		{srv.URL + "/busy-zebra", 503, false, 2 * time.Minute},
		{srv.URL + "/date-zebra", 429, false, time.Hour},
		{srv.URL + "/forever-zebra", 429, false, 24 * time.Hour},
		{srv.URL + "/cut-zebra", 0, false, 0},
		{secure.URL + "/zebra", 0, false, 0}, // nobody vouches for its certificate
		{"http://zebra.invalid/", 0, false, 0},
		{"http://127.0.0.1:1/zebra", 0, false, 0},
	} {
		err := postTo(t.Context(), w, c.url, "evt", now, nil)
		var refused *WebhookError
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		if refused.Status != c.status || refused.Gone() != c.gone || refused.RetryAfter.Round(2*time.Second) != c.after {
			t.Errorf("%s: %+v", c.url, refused)
		}
		if strings.Contains(err.Error(), "zebra") {
			t.Errorf("the error quotes the target: %v", err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(secure.Certificate())
	trusting := newTestWebhooks(t, WebhookConfig{AllowPrivate: true, RootTLS: &tls.Config{RootCAs: pool}})
	var refused *WebhookError
	if err := postTo(t.Context(), trusting, secure.URL, "evt", now, nil); !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("with the certificate: %v", err)
	}
}

// A target that hangs has its place until the attempt ends, and others are told to come later, each at
// another time.
func TestWebhookTargetThatHangsHoldsUpItselfOnly(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	slow := target(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	fast := target(t, func(http.ResponseWriter, *http.Request) {})
	elsewhere := strings.Replace(fast.URL, "127.0.0.1", "localhost", 1) // a lane is a host's
	w := newTestWebhooks(t, WebhookConfig{AllowPrivate: true})
	ended := make(chan error, laneStart)
	for range laneStart {
		go func() { ended <- postTo(context.Background(), w, slow.URL, "evt", time.Now(), nil) }()
	}
	for range laneStart {
		<-arrived
	}
	now := time.Now()
	var last time.Duration
	for range 10 {
		var busy *BusyError
		if err := postTo(t.Context(), w, slow.URL, "evt", now, nil); !errors.As(err, &busy) || busy.Wait <= last {
			t.Fatalf("%v after %v", err, last)
		}
		last = busy.Wait
	}
	if err := postTo(t.Context(), w, elsewhere, "evt", now, nil); err != nil {
		t.Errorf("another target: %v", err)
	}
	close(release)
	for range laneStart {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestLaneIsTheHostsHoweverItIsSpelt(t *testing.T) {
	t.Parallel()
	for _, same := range []string{"https://X.example/a", "https://x.example:443/b?c", "http://x.example.:8080/", "https://x.EXAMPLE"} {
		if Lane(same) != Lane("https://x.example/") {
			t.Errorf("%s has a lane of its own", same)
		}
	}
	if Lane("https://y.example/") == Lane("https://x.example/") {
		t.Error("two hosts have one lane")
	}
}

func TestLanesWidenAndNarrow(t *testing.T) {
	t.Parallel()
	l := newLanes()
	now := time.Unix(1e9, 0)
	fill := func() (places []*lane) {
		for {
			place, err := l.enter("a", now)
			if err != nil {
				return places
			}
			places = append(places, place)
		}
	}
	width := func(took time.Duration, tried, ok bool) int {
		for range 10 {
			for _, place := range fill() {
				l.leave(place, tried, took, ok)
			}
		}
		places := fill()
		for _, place := range places {
			l.leave(place, false, 0, false)
		}
		return len(places)
	}
	if n := width(0, false, false); n != laneStart {
		t.Errorf("a target that was never tried has %d places, want %d", n, laneStart)
	}
	if n := width(1200*time.Millisecond, true, true); n != laneMost {
		t.Errorf("a target that answers in good time has %d places, want %d", n, laneMost)
	}
	if n := width(webhookTimeout, true, false); n != 1 {
		t.Errorf("a target that fails has %d places, want 1", n)
	}
	// Thousands that find it full are spread over the time that they need, or over a bound.
	fill()
	var previous time.Duration
	late := 0
	for range 10000 {
		var busy *BusyError
		_, err := l.enter("a", now)
		if !errors.As(err, &busy) || busy.Wait <= previous && late == 0 || busy.Wait > 2*waitMost {
			t.Fatalf("%v after %v", err, previous)
		}
		previous = busy.Wait
		if busy.Wait > waitMost {
			late++
		}
	}
	if late < 9000 {
		t.Errorf("%d wait beyond the bound", late)
	}
}

func TestLanesForgetIdleHosts(t *testing.T) {
	t.Parallel()
	l := newLanes()
	now := time.Unix(1e9, 0)
	for i := range 3 * lanesMost {
		place, err := l.enter(time.Duration(i).String(), now)
		if err != nil {
			t.Fatal(err)
		}
		l.leave(place, true, 0, true)
	}
	if len(l.hosts) > lanesMost {
		t.Errorf("%d hosts are remembered", len(l.hosts))
	}
}

func TestWebhookTargets(t *testing.T) {
	t.Parallel()
	public, private := newTestWebhooks(t, WebhookConfig{}), newTestWebhooks(t, WebhookConfig{AllowPrivate: true})
	for url, want := range map[string][2]bool{
		"https://hooks.example.com/a?b=c":        {true, true},
		"http://hooks.example.com/a":             {false, true},
		"ftp://hooks.example.com/a":              {false, false},
		"https://user:secret@hooks.example.com/": {false, false},
		"https://hooks.example.com/#a":           {false, false},
		"https:hooks.example.com":                {false, false},
		"//hooks.example.com/a":                  {false, false},
		"":                                       {false, false},
		"https://":                               {false, false},
		"https://hooks.example.com/" + strings.Repeat("a", 2048): {false, false},
	} {
		if got := [2]bool{public.CheckTarget(url) == nil, private.CheckTarget(url) == nil}; got != want {
			t.Errorf("%s: %v, want %v", url, got, want)
		}
	}
}
