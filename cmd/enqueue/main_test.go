package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/cli"
	"latchkey/internal/config"
	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/stripesim"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

const asEnqueue = "LATCHKEY_TEST_AS_ENQUEUE"

func TestMain(m *testing.M) {
	if os.Getenv(asEnqueue) != "" {
		os.Exit(cli.Main(newRoot()))
	}
	os.Exit(testkit.Main(m))
}

// setup runs a deployment and returns the NATS URL.
func setup(t *testing.T) string {
	t.Helper()
	return deploy(t).url
}

// deployment is intake, jobs and the micro service in this process.
type deployment struct {
	url    string // of NATS
	js     jetstream.JetStream
	pool   *pgxpool.Pool
	issuer *jobs.Issuer
}

func deploy(t *testing.T) *deployment {
	t.Helper()
	return deployOn(t, testkit.NATS(t))
}

// deployOn is deploy with a NATS server of the test's own.
func deployOn(t *testing.T, url string) *deployment {
	t.Helper()
	return deployWith(t, url, testkit.Database(t, migrate))
}

func migrate(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = migrations.Up(ctx, pool)
	return err
}

// deployWith is deploy on a migrated database.
func deployWith(t *testing.T, url, database string) *deployment {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), database)
	check(t, err)
	nc, err := config.NATS{URL: url}.Connect("test worker")
	check(t, err)
	js, err := jetstream.New(nc)
	check(t, err)
	check(t, jobs.EnsureStreams(t.Context(), js, true))
	var key [32]byte
	_, _ = rand.Read(key[:])
	keys, err := portal.ParseKeys(portal.FormatKey(1, key))
	check(t, err)
	log := slog.New(slog.DiscardHandler)
	const base = "https://pay.example.com"
	queue, err := jobs.NewRiver(jobs.RiverConfig{Pool: pool, JobPool: pool, JetStream: js, Keys: keys, BaseURL: base, Now: time.Now, Log: log})
	check(t, err)
	templates, err := notify.LoadTemplates(notify.TemplatesConfig{})
	check(t, err)
	issuer := &jobs.Issuer{Pool: pool, Keys: keys, BaseURL: base, Publish: queue.Publish, Deliver: queue.Deliver, Now: time.Now,
		Rules: jobs.Rules{TTL: time.Hour, TTLMax: time.Hour, Templates: templates}}
	service := jobs.NewService(issuer, portal.NewStore(pool, queue.Publish, time.Now), log)
	simulator := httptest.NewServer(stripesim.New(stripesim.Config{}))
	stripe := portal.NewStripe(portal.StripeConfig{Key: stripesim.TestKey, APIBase: simulator.URL})
	service.Preflight = &portal.Preflight{Stripe: stripe, Reads: portal.NewBudget(pool, 1000, time.Now, nil)}
	ctx, stop := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { _ = jobs.NewIntake(js, issuer, log, nil).Run(ctx) })
	parts.Go(func() { _ = service.Serve(ctx, nc, cli.Version, func() {}) })
	check(t, queue.Start(context.Background()))
	t.Cleanup(func() {
		stop()
		parts.Wait()
		check(t, queue.Stop(context.Background()))
		nc.Close()
		stripe.Close()
		simulator.Close()
		pool.Close()
	})
	return &deployment{url: url, js: js, pool: pool, issuer: issuer}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// enqueue runs the tool as its users do.
func enqueue(t *testing.T, url, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := command(t, url, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), out.String(), errOut.String()
	}
	check(t, err)
	return 0, out.String(), errOut.String()
}

func command(t *testing.T, url string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = []string{asEnqueue + "=1", "NATS_URL=" + url}
	return cmd
}

func TestLinkPrintsTheURLAloneAndTheSameOneAgain(t *testing.T) {
	t.Parallel()
	url := setup(t)
	code, first, stderr := enqueue(t, url, "", "link", "--id", "a", "--customer", "cus_1", "--flow", "payment_method_update", "--metadata", "invoice=in_1", "--wait")
	if code != 0 || stderr != "" || !strings.HasPrefix(first, "https://pay.example.com/l/") || strings.Count(first, "\n") != 1 {
		t.Fatalf("exit %d\n%s%s", code, first, stderr)
	}
	if _, again, _ := enqueue(t, url, "", "link", "--id", "a", "--customer", "cus_1", "--flow", "payment_method_update", "--metadata", "invoice=in_1", "--wait"); again != first {
		t.Errorf("again: %s, first: %s", again, first)
	}
	code, out, _ := enqueue(t, url, "", "link", "--id", "a", "--customer", "cus_1", "--flow", "payment_method_update", "--metadata", "invoice=in_1", "--wait", "--json")
	var data jobs.IssuedData
	if err := json.Unmarshal([]byte(out), &data); code != 0 || err != nil || data.URL+"\n" != first || data.Source != "cli" || data.RequestID != "a" {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	code, _, stderr = enqueue(t, url, "", "link", "--id", "a", "--customer", "cus_2", "--wait")
	if code != 1 || !strings.Contains(stderr, "id_conflict") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("other content: exit %d\n%s", code, stderr)
	}
	if code, out, _ := enqueue(t, url, "", "link", "--id", "b", "--customer", "acct_1"); code != 0 || out != "b\n" {
		t.Errorf("without --wait: exit %d, %q", code, out)
	}
}

// The flags of a mail make the same request as the JSON that names it.
func TestLinkWithAMail(t *testing.T) {
	t.Parallel()
	url := setup(t)
	flags := []string{"link", "--id", "m", "--customer", "cus_1", "--email", "jo@example.com", "--template", "payment_failed", "--data", "name=Jo", "--data", `message=Pay at x?a=b, "please"=now`, "--wait"}
	code, first, stderr := enqueue(t, url, "", flags...)
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	whole := `{"id": "m", "source": "cli", "session": {"customer": "cus_1"}, "deliver": [{"channel": "email", "to": "jo@example.com", "template": "payment_failed", "data": {"message": "Pay at x?a=b, \"please\"=now", "name": "Jo"}}]}`
	if _, again, stderr := enqueue(t, url, whole, "link", "--request", "-", "--wait"); again != first {
		t.Errorf("as JSON: %s%s", again, stderr)
	}
	if code, _, stderr := enqueue(t, url, "", "link", "--customer", "cus_1", "--email", "jo@example.com", "--template", "zebra", "--wait"); code != 1 || !strings.Contains(stderr, "payment_failed") {
		t.Errorf("a template that is none: exit %d\n%s", code, stderr)
	}
	if code, _, stderr := enqueue(t, url, "", "link", "--customer", "cus_1", "--webhook", "https://hooks.example.com/", "--wait"); code != 1 || !strings.Contains(stderr, "delivery_unavailable") {
		t.Errorf("a channel that is off: exit %d\n%s", code, stderr)
	}
	for _, wrong := range [][]string{{"--customer", "cus_1", "--template", "generic"}, {"--request", "-", "--email", "jo@example.com"}, {"--request", "-", "--locale", "de"},
		{"--customer", "cus_1", "--metadata", "=x"}, {"--customer", "cus_1", "--metadata", "x"}, {"--customer", "cus_1", "--email", "jo@example.com", "--data", "a=1", "--data", "a=2"}} {
		if code, _, stderr := enqueue(t, url, whole, append([]string{"link"}, wrong...)...); code != 2 || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit %d\n%s", wrong, code, stderr)
		}
	}
}

func TestLinkTakesAWholeRequest(t *testing.T) {
	t.Parallel()
	url := setup(t)
	body := `{"id": "whole", "source": "support", "session": {"customer": "cus_1", "flow_data": {"type": "subscription_update_confirm",
		"subscription_update_confirm": {"subscription": "sub_1", "items": [{"id": "si_1", "quantity": 0}]}}}}`
	file := filepath.Join(t.TempDir(), "request.json")
	check(t, os.WriteFile(file, []byte(body), 0o600))
	code, first, stderr := enqueue(t, url, "", "link", "--request", file, "--wait")
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	if _, again, stderr := enqueue(t, url, body, "link", "--request", "-", "--wait"); again != first {
		t.Errorf("from stdin: %s%s", again, stderr)
	}
	if code, _, stderr := enqueue(t, url, `{"id"`, "link", "--request", "-"); code != 2 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("broken JSON: exit %d\n%s", code, stderr)
	}
	if code, _, stderr := enqueue(t, url, `{"id": "u", "source": "support", "sesion": {}}`, "link", "--request", "-", "--wait"); code != 1 || !strings.Contains(stderr, "$.sesion") {
		t.Errorf("a misspelt field: exit %d\n%s", code, stderr)
	}
}

// Whoever looks up a link that was renewed is led to the new one.
func TestStatusOfARenewedLink(t *testing.T) {
	t.Parallel()
	id := uuid.NewString()
	var out strings.Builder
	printStatus(&out, &jobs.Status{Link: &jobs.LinkStatus{State: portal.StateExpired},
		Timeline: []jobs.Happening{{Kind: portal.LinkRenewed, Detail: map[string]any{"new_link_id": id}}}})
	if !strings.Contains(out.String(), "link.renewed       new_link_id="+id+"\n") {
		t.Errorf("%s", out.String())
	}
}

func TestStatusAndRevoke(t *testing.T) {
	t.Parallel()
	url := setup(t)
	_, link, _ := enqueue(t, url, "", "link", "--id", "s", "--customer", "cus_1", "--campaign", "c", "--wait")
	code, out, _ := enqueue(t, url, "", "status", "s")
	if code != 0 || !strings.Contains(out, "live") || !strings.Contains(out, "link.issued") || strings.Contains(out, strings.TrimSpace(link)[30:]) {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, out, _ := enqueue(t, url, "", "revoke", "--campaign", "c", "--reason", "a test"); code != 0 || out != "1\n" {
		t.Errorf("exit %d, %q", code, out)
	}
	if code, out, stderr := enqueue(t, url, "", "revoke", "--campaign", "c", "--json"); code != 0 || out != `{"revoked":0}`+"\n" || !strings.Contains(stderr, "nothing to end") {
		t.Errorf("again: exit %d, %q %q", code, out, stderr)
	}
	_, _, _ = enqueue(t, url, "", "link", "--id", "of-the-key", "--customer", "cus_2", "--wait")
	for key, want := range map[string]string{"0": "0\n", "1": "1\n"} {
		if code, out, _ := enqueue(t, url, "", "revoke", "--key", key); code != 0 || out != want {
			t.Errorf("key %s: exit %d, %q", key, code, out)
		}
	}
	_, leaked, _ := enqueue(t, url, "", "link", "--id", "leaked", "--customer", "cus_3", "--wait")
	if code, out, _ := enqueue(t, url, "", "revoke", "--link", strings.TrimSpace(leaked)); code != 0 || out != "1\n" {
		t.Errorf("revoke a pasted link: exit %d, %q", code, out)
	}
	if code, again, stderr := enqueue(t, url, "", "link", "--id", "s", "--customer", "cus_1", "--campaign", "c", "--wait"); code != 0 || again != link || !strings.Contains(stderr, "revoked") {
		t.Errorf("a revoked link again: exit %d, %q %q", code, again, stderr)
	}
	if code, out, _ := enqueue(t, url, "", "status", strings.TrimSpace(link)); code != 0 || !strings.Contains(out, "request   s ") {
		t.Errorf("status of a pasted link: exit %d\n%s", code, out)
	}
	if _, out, _ := enqueue(t, url, "", "status", "s"); !strings.Contains(out, "revoked") || !strings.Contains(out, "reason=a test") {
		t.Errorf("%s", out)
	}
	var status jobs.Status
	_, out, _ = enqueue(t, url, "", "status", "s", "--json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.Link.State != portal.StateRevoked || len(status.Timeline) != 3 {
		t.Errorf("%v: %s", err, out)
	}
	if code, _, stderr := enqueue(t, url, "", "status", "nobody"); code != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("unknown: exit %d\n%s", code, stderr)
	}
	for _, args := range [][]string{{"status"}, {"revoke"}, {"revoke", "--link", "1", "--customer", "2"}, {"link"}, {"frob"}, {"link", "--customer", "cus_1", "--subscription", "sub_1"},
		{"status", ""}, {"revoke", "--link", "b"}, {"revoke", "--key", "256"}, {"revoke", "--key", "1", "--campaign", "c"}, {"revoke", "--campaign", "c", "--by", ""}, {"link", "--customer", "cus_1", "--source", "Big Source"},
		{"link", "--customer", "cus_1", "--wait", "--timeout", "0"}} {
		if code, _, stderr := enqueue(t, url, "", args...); code != 2 || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit %d\n%s", args, code, stderr)
		}
	}
}

func TestWatchShowsEventsWithoutURLs(t *testing.T) {
	t.Parallel()
	url := setup(t)
	lines, raw := watch(t, url), watch(t, url, "--json")
	// Watching begins with the consumer: ask until both have seen a first link.
	id := 0
	ask := func() {
		id++
		enqueue(t, url, "", "link", "--id", "w"+strings.Repeat("x", id), "--customer", "cus_1", "--wait")
	}
	line := nextLine(t, lines, ask)
	if !strings.Contains(line, "link.issued") || !strings.Contains(line, "cus_1") || strings.Contains(line, "/l/") {
		t.Errorf("%q", line)
	}
	var event notify.Event
	if err := json.Unmarshal([]byte(nextLine(t, raw, ask)), &event); err != nil || event.Type != "latchkey.link.issued" {
		t.Errorf("%v: %+v", err, event)
	}
}

// watch starts a watcher and hands over its lines.
func watch(t *testing.T, url string, args ...string) <-chan string {
	t.Helper()
	cmd := command(t, url, append([]string{"watch"}, args...)...)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := make(chan string, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		scan := bufio.NewScanner(out)
		for scan.Scan() {
			lines <- scan.Text()
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		check(t, cmd.Process.Signal(os.Interrupt))
		<-done
		if err := cmd.Wait(); err != nil {
			t.Errorf("Ctrl-C: %v", err)
		}
	})
	return lines
}

func nextLine(t *testing.T, lines <-chan string, ask func()) string {
	t.Helper()
	for range 100 {
		ask()
		select {
		case line := <-lines:
			if !strings.Contains(line, "audit.sealed") { // when there is one is not the test's to say
				return line
			}
		default:
		}
	}
	t.Fatal("the watcher shows nothing after 100 links")
	return ""
}

// Without a server, without a worker: one line that says what to do.
func TestNobodyThere(t *testing.T) {
	t.Parallel()
	if code, _, stderr := enqueue(t, "nats://user:secret-password@127.0.0.1:1", "", "status", "x"); code != 1 || !strings.Contains(stderr, "NATS_URL") || strings.Contains(stderr, "secret-password") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("no server: exit %d\n%s", code, stderr)
	}
	url := testkit.NATS(t)
	if code, _, stderr := enqueue(t, url, "", "status", "x"); code != 1 || !strings.Contains(stderr, "worker run") {
		t.Errorf("no worker: exit %d\n%s", code, stderr)
	}
	if code, _, stderr := enqueue(t, url, "", "link", "--customer", "cus_1"); code != 1 || !strings.Contains(stderr, "start a worker once") {
		t.Errorf("no stream: exit %d\n%s", code, stderr)
	}
	nc, err := config.NATS{URL: url}.Connect("test")
	check(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	check(t, err)
	check(t, jobs.EnsureStreams(t.Context(), js, true))
	if code, _, stderr := enqueue(t, url, "", "link", "--customer", "cus_1", "--wait", "--timeout", "3s"); code != 1 || !strings.Contains(stderr, "stored") {
		t.Errorf("stored, nobody answers: exit %d\n%s", code, stderr)
	}
}
