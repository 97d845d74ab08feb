package jobs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/testkit"
)

var webhookSecret = "whsec_" + base64.StdEncoding.EncodeToString([]byte("wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww"))

// receiver is a webhook's target: it verifies what comes and answers as it is told to.
type receiver struct {
	*httptest.Server

	mu      sync.Mutex
	answers []int // statuses to come, then 204; 0 = take it and cut the connection
	posts   []notify.Event
	ids     []string
}

func newReceiver(t *testing.T, answers ...int) *receiver {
	t.Helper()
	r := &receiver{answers: answers}
	verify, err := standardwebhooks.NewWebhook(webhookSecret)
	must(t, err)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err == nil {
			err = verify.VerifyIgnoringTimestamp(body, req.Header)
		}
		var event notify.Event
		if err == nil {
			err = json.Unmarshal(body, &event)
		}
		if err != nil {
			t.Errorf("the target got something else than a signed event: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		status := http.StatusNoContent
		if len(r.answers) > 0 {
			status, r.answers = r.answers[0], r.answers[1:]
		}
		if status == 0 || status < 300 {
			r.posts, r.ids = append(r.posts, event), append(r.ids, req.Header.Get("webhook-id"))
		}
		if status == 0 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) got() ([]notify.Event, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.posts, r.ids
}

// withWebhooks gives the world webhooks, and a clock that is behind by a day: what is put off until later
// is due at once.
func (w *world) withWebhooks(subscriptions ...Subscription) *world {
	w.t.Helper()
	webhooks, err := notify.NewWebhooks(notify.WebhookConfig{Secrets: []string{webhookSecret}, AllowPrivate: true})
	must(w.t, err)
	w.t.Cleanup(webhooks.Close)
	w.river, err = NewRiver(RiverConfig{Pool: w.pool, JobPool: w.pool, JetStream: w.js, Keys: w.keys, BaseURL: testBaseURL, Now: yesterday, Log: w.log,
		Webhooks: webhooks, Subscriptions: subscriptions})
	must(w.t, err)
	w.issuer = w.newIssuer(w.pool)
	w.issuer.Rules.Webhooks = webhooks
	return w
}

func yesterday() time.Time { return time.Now().Add(-24 * time.Hour) }

func webhookRequest(id, url string) []byte {
	return request(id, "deliver", []any{map[string]any{"channel": "webhook", "url": url}})
}

// outcomes are the details of a link's delivery rows.
func (w *world) outcomes(link uuid.UUID) (rows []portal.AuditEvent) {
	w.t.Helper()
	rows, err := portal.LoadAudit(w.ctx, w.owner, `link_id = $2 AND kind IN ('link.delivered', 'link.delivery_failed')`, link)
	must(w.t, err)
	return rows
}

func (w *world) wantOutcome(link uuid.UUID, kind portal.Kind, detail string) {
	w.t.Helper()
	w.eventually("an outcome of the delivery", func() bool { return len(w.outcomes(link)) > 0 })
	rows := w.outcomes(link)
	got, err := json.Marshal(rows[0].Detail)
	must(w.t, err)
	if len(rows) != 1 || rows[0].Kind != kind || string(got) != detail {
		w.t.Errorf("%d outcomes, the first is %s %s, want %s %s", len(rows), rows[0].Kind, got, kind, detail)
	}
}

// The target gets link.issued, as the events stream has it, and that it did is an event too.
func TestWebhookDelivers(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	target := newReceiver(t)
	w.startRiver()
	link := w.issue(webhookRequest("r1", target.URL+"/hook"))
	w.wantOutcome(link.ID, portal.LinkDelivered, `{"attempts":1,"channel":"webhook"}`)
	events := w.events(2)
	posts, ids := target.got()
	if len(posts) != 1 || posts[0].ID != ids[0] || posts[0].Type != "latchkey.link.issued" {
		t.Fatalf("the target got %+v with %v", posts, ids)
	}
	same, err := json.Marshal(events[ids[0]])
	must(t, err)
	posted, err := json.Marshal(posts[0])
	must(t, err)
	if string(same) != string(posted) {
		t.Errorf("the target got %s, the stream has %s", posted, same)
	}
	if !strings.Contains(string(posted), `"url":"`+testBaseURL+"/l/") {
		t.Errorf("no URL in %s", posted)
	}
	// A repeat of the request is answered by link.issued, not by another delivery.
	w.issue(webhookRequest("r1", target.URL+"/hook"))
	w.events(3)
	w.eventually("no job left", func() bool {
		return w.count(`SELECT count(*) FROM river_job WHERE finalized_at IS NULL AND queue <> 'maintenance'`) == 0
	})
	if posts, _ := target.got(); len(posts) != 1 {
		t.Errorf("the target got %d posts", len(posts))
	}
}

// The crash table's row of webhooks: the post failed; it failed but took effect; the process died right
// after it. Then all is fine again, and everything adds up.
func TestWebhookCrashes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers  []int
		commits  []testkit.Fate // of the outcome
		attempts int
		posts    int // that the target took
	}{
		"failed":                                 {[]int{500, 503}, nil, 3, 1},
		"took effect and the answer was lost":    {[]int{0}, nil, 2, 2},
		"died after the post, before the commit": {nil, []testkit.Fate{testkit.Failed}, 1, 2},
		"died after the commit":                  {nil, []testkit.Fate{testkit.FailedButTook}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t).withWebhooks()
			target := newReceiver(t, c.answers...)
			link := w.issue(webhookRequest("r1", target.URL))
			if c.commits != nil { // this worker's outcome meets the fault, and its job is somebody else's then
				w.dieAtOutcome(t, link, c.commits)
			}
			w.startRiver()
			w.jobEnds("webhook")
			w.wantOutcome(link.ID, portal.LinkDelivered, fmt.Sprintf(`{"attempts":%d,"channel":"webhook"}`, c.attempts))
			posts, ids := target.got()
			if len(posts) != c.posts {
				t.Errorf("the target took %d posts, want %d", len(posts), c.posts)
			}
			for _, id := range ids {
				if id != ids[0] {
					t.Errorf("the posts' ids are %v; a receiver can't drop repeats", ids)
				}
			}
			w.events(2)
			if w.count(`SELECT count(*) FROM webhook_targets WHERE failing_since IS NOT NULL`) != 0 {
				t.Error("a target that works counts as failing")
			}
		})
	}
}

// jobEnds waits for the end of the one job of a kind. What is due again becomes available at once, for
// which River's own scheduler takes up to five seconds.
func (w *world) jobEnds(kind string) {
	w.t.Helper()
	w.eventually("the job's end", func() bool {
		w.exec(`UPDATE river_job SET state = 'available' WHERE kind = $1 AND state = 'retryable' AND scheduled_at <= now()`, kind)
		return w.count(`SELECT count(*) FROM river_job WHERE kind = $1 AND state = 'completed'`, kind) == 1
	})
}

// dieAtOutcome works the one webhook job, as River would, in a worker whose commit meets a fault, and
// leaves the job as a killed process does.
func (w *world) dieAtOutcome(t *testing.T, link *portal.Link, fates []testkit.Fate) {
	t.Helper()
	faults := &testkit.Commits{}
	pool := w.workerPool(faults)
	worker := w.webhookWorker()
	worker.deliveries.pool = pool
	faults.Script(fates...)
	var snooze *rivertype.JobSnoozeError
	if err := worker.Work(w.ctx, w.webhookJob(t, link, 1)); !errors.As(err, &snooze) {
		t.Fatalf("the job ends with %v, not to come back", err)
	}
}

func (w *world) webhookWorker() *webhookWorker {
	maker := eventMaker{w.keys, testBaseURL}
	return &webhookWorker{deliveries: &deliveries{pool: w.pool, publish: w.river.Publish, now: time.Now, log: w.log},
		webhooks: w.issuer.Rules.Webhooks, event: maker.event, metrics: newMetrics(nil)}
}

// webhookJob is the job of a link's only delivery.
func (w *world) webhookJob(t *testing.T, link *portal.Link, attempt int) *river.Job[WebhookArgs] {
	t.Helper()
	rows, err := portal.LoadAudit(w.ctx, w.owner, `link_id = $2 AND kind = 'link.issued'`, link.ID)
	must(t, err)
	return &river.Job[WebhookArgs]{JobRow: &rivertype.JobRow{Attempt: attempt}, Args: WebhookArgs{Event: rows[0].ID, Lane: "a lane"}}
}

// The standard's schedule is gone through, then it is final.
func TestWebhookGivesUp(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	target := newReceiver(t, make([]int, 0)...)
	target.answers = slicesOf(500, 20)
	link := w.issue(webhookRequest("r1", target.URL))
	worker := w.webhookWorker()
	start := time.Now()
	worker.deliveries.now = func() time.Time { return start }
	for attempt := 1; attempt <= len(WebhookSchedule); attempt++ {
		job := w.webhookJob(t, link, attempt)
		var refused *notify.WebhookError
		if err := worker.Work(w.ctx, job); !errors.As(err, &refused) || refused.Status != 500 {
			t.Fatalf("attempt %d: %v", attempt, err)
		}
		if at := worker.NextRetry(job); !at.Equal(start.Add(WebhookSchedule[attempt-1])) {
			t.Errorf("after attempt %d it is tried again in %v", attempt, at.Sub(start))
		}
	}
	must(t, worker.Work(w.ctx, w.webhookJob(t, link, len(WebhookSchedule)+1)))
	w.wantOutcome(link.ID, portal.LinkDeliveryFailed, `{"attempts":10,"channel":"webhook","error":"the target answered 500","http_status":500}`)
}

func slicesOf(v, n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = v
	}
	return s
}

// A target that fails for days is disabled, once, by an event; then nothing is sent to it, until somebody
// enables it again.
func TestWebhookTargetIsDisabledAfterDays(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	target := newReceiver(t)
	target.answers = slicesOf(500, 9)
	worker := w.webhookWorker()
	start := time.Now()
	var links []*portal.Link
	fail := func(after time.Duration) (disabled int) {
		links = append(links, w.issue(webhookRequest(fmt.Sprint("r", after), target.URL)))
		worker.deliveries.now = func() time.Time { return start.Add(after) }
		_ = worker.Work(w.ctx, w.webhookJob(t, links[len(links)-1], 1))
		return w.count(`SELECT count(*) FROM audit_events WHERE kind = 'webhook.disabled'`)
	}
	const day = 24 * time.Hour
	for _, after := range []time.Duration{-2 * day, 0, day, 2 * day, 3 * day, 4 * day, 5*day - time.Second} { // the first is too long ago to count
		if fail(after) != 0 {
			t.Fatalf("disabled %v after its first failure", after)
		}
	}
	for range 2 { // disabled, and not once more
		if n := fail(5 * day); n != 1 {
			t.Fatalf("%d events of a target that failed for five days", n)
		}
	}
	last := links[len(links)-1]
	w.wantOutcome(last.ID, portal.LinkDeliveryFailed, fmt.Sprintf(`{"attempts":1,"channel":"webhook","error":%q}`, errDisabled.Error()))
	if len(target.answers) != 1 {
		t.Error("a disabled target was posted to")
	}
	rows, err := portal.LoadAudit(w.ctx, w.owner, `kind = 'webhook.disabled'`)
	must(t, err)
	if rows[0].LinkID != links[len(links)-2].ID || rows[0].Detail["host"] != "127.0.0.1" || rows[0].Detail["failing_since"] != start.UTC().Format(time.RFC3339) {
		t.Errorf("the event tells %+v", rows[0])
	}
	w.exec(`DELETE FROM webhook_targets`)
	target.answers = nil
	must(t, worker.Work(w.ctx, w.webhookJob(t, w.issue(webhookRequest("r9", target.URL)), 1)))
	if posts, _ := target.got(); len(posts) != 1 {
		t.Error("an enabled target gets nothing")
	}
}

// 410 means never again: for a link's own target that link's delivery, for a subscription's all.
func TestWebhookTargetThatIsGone(t *testing.T) {
	t.Parallel()
	target := newReceiver(t, 410, 410)
	w := setup(t).withWebhooks(Subscription{URL: target.URL + "/all"})
	link := w.issue(webhookRequest("r1", target.URL))
	must(t, w.webhookWorker().Work(w.ctx, w.webhookJob(t, link, 1)))
	w.wantOutcome(link.ID, portal.LinkDeliveryFailed, `{"attempts":1,"channel":"webhook","error":"the target answered 410","http_status":410}`)
	disabled := func() int { return w.count(`SELECT count(*) FROM webhook_targets WHERE disabled_at IS NOT NULL`) }
	if disabled() != 0 {
		t.Error("a link's own target is disabled")
	}
	worker := w.webhookWorker()
	worker.subscriptions = []Subscription{{URL: target.URL + "/all"}}
	job := w.webhookJob(t, link, 1)
	job.Args = worker.subscriptions[0].args(job.Args.Event)
	var cancel *river.JobCancelError
	if err := worker.Work(w.ctx, job); !errors.As(err, &cancel) || disabled() != 1 {
		t.Errorf("a subscription's: %v, %d disabled", err, disabled())
	}
}

// Who asks for time gets it, but no more attempts than anybody.
func TestWebhookRetryAfter(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Retry-After", "600")
		rw.WriteHeader(http.StatusTooManyRequests)
	}))
	t.Cleanup(srv.Close)
	link := w.issue(webhookRequest("r1", srv.URL))
	worker := w.webhookWorker()
	start := time.Now()
	worker.deliveries.now = func() time.Time { return start }
	for attempt, want := range map[int]time.Duration{1: 10 * time.Minute, 2: 10 * time.Minute, 3: 30 * time.Minute} {
		job := w.webhookJob(t, link, attempt)
		var refused *notify.WebhookError
		if err := worker.Work(w.ctx, job); !errors.As(err, &refused) {
			t.Errorf("attempt %d: %v", attempt, err)
		}
		if at := worker.NextRetry(job); !at.Equal(start.Add(want)) {
			t.Errorf("after attempt %d it is tried again in %v, want %v", attempt, at.Sub(start), want)
		}
	}
	must(t, worker.Work(w.ctx, w.webhookJob(t, link, len(WebhookSchedule)+1)))
	w.wantOutcome(link.ID, portal.LinkDeliveryFailed, `{"attempts":10,"channel":"webhook","error":"the target answered 429","http_status":429}`)
}

// A stop in the middle of a post is no attempt, and what was taken is written down all the same.
func TestWebhookWhileTheProcessStops(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	ctx, stop := context.WithCancel(w.ctx)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not notice that the client is gone
		stop()
		<-r.Context().Done()
	}))
	t.Cleanup(srv.Close)
	link := w.issue(webhookRequest("r1", srv.URL))
	if err := w.webhookWorker().Work(ctx, w.webhookJob(t, link, len(WebhookSchedule)+1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a post that was cut ends with %v", err)
	}
	if len(w.outcomes(link.ID)) != 0 {
		t.Error("it was given up")
	}
	worker := w.webhookWorker()
	ended, end := context.WithCancel(w.ctx)
	d, _, ok := worker.deliveries.begin(w.ctx, ChannelWebhook, w.webhookJob(t, link, 1).Args.Event, 0, 1)
	end()
	if !ok {
		t.Fatal("the delivery can't be loaded")
	}
	must(t, worker.deliveries.settle(ended, d, delivered(1)))
	w.wantOutcome(link.ID, portal.LinkDelivered, `{"attempts":1,"channel":"webhook"}`)
}

// An event that can't be made is given up at the schedule's end, like one that nobody takes.
func TestWebhookWhoseEventCannotBeMade(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	target := newReceiver(t)
	link := w.issue(webhookRequest("r1", target.URL))
	worker := w.webhookWorker()
	worker.event = func(portal.EventRow) (notify.Event, error) { return notify.Event{}, errors.New("no key") }
	var snooze *rivertype.JobSnoozeError
	if err := worker.Work(w.ctx, w.webhookJob(t, link, 1)); err == nil || errors.As(err, &snooze) {
		t.Errorf("the first attempt ends with %v", err)
	}
	must(t, worker.Work(w.ctx, w.webhookJob(t, link, len(WebhookSchedule)+1)))
	w.wantOutcome(link.ID, portal.LinkDeliveryFailed, `{"attempts":10,"channel":"webhook","error":"no key"}`)
}

// A link that died meanwhile is not sent out any more.
func TestDeadLinkIsNotDelivered(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	target := newReceiver(t)
	revoked, expired := w.issue(webhookRequest("r1", target.URL)), w.issue(webhookRequest("r2", target.URL))
	w.exec(`UPDATE links SET revoked_at = now(), revoked_by = 'jo' WHERE id = $1`, revoked.ID)
	worker := w.webhookWorker()
	must(t, worker.Work(w.ctx, w.webhookJob(t, revoked, 1)))
	worker.deliveries.now = func() time.Time { return expired.ExpiresAt }
	must(t, worker.Work(w.ctx, w.webhookJob(t, expired, 3)))
	w.wantOutcome(revoked.ID, portal.LinkDeliveryFailed, `{"attempts":1,"channel":"webhook","error":"the link was revoked before it could be delivered"}`)
	w.wantOutcome(expired.ID, portal.LinkDeliveryFailed, `{"attempts":3,"channel":"webhook","error":"the link expired before it could be delivered"}`)
	if posts, _ := target.got(); len(posts) != 0 {
		t.Error("the target got a dead link")
	}
}

// A subscription gets the events of its kinds, whatever requests say, and a second run of a publish job
// makes no second post.
func TestWebhookSubscriptions(t *testing.T) {
	t.Parallel()
	all, some := newReceiver(t), newReceiver(t)
	w := setup(t).withWebhooks(Subscription{URL: all.URL}, Subscription{URL: some.URL, Kinds: []portal.Kind{portal.LinkRevoked}})
	w.startRiver()
	link := w.issue(request("r1"))
	_, err := portal.NewStore(w.pool, w.river.Publish, time.Now).Revoke(w.ctx, portal.Revocation{LinkID: link.ID.String(), By: "jo"})
	must(t, err)
	w.eventually("two events and one", func() bool {
		a, _ := all.got()
		b, _ := some.got()
		return len(a) == 2 && len(b) == 1
	})
	if posts, _ := some.got(); posts[0].Type != "latchkey.link.revoked" {
		t.Errorf("the second one got %s", posts[0].Type)
	}
	must(t, w.river.insert(w.ctx, []river.InsertManyParams{{Args: PublishArgs{Rows: w.rowRanges()}}}))
	w.eventually("the events' second publishing", func() bool {
		return w.count(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state <> 'completed'`) == 0
	})
	if n := w.count(`SELECT count(*) FROM river_job WHERE kind = 'webhook'`); n != 3 {
		t.Errorf("%d webhook jobs", n)
	}
	if len(w.outcomes(link.ID)) != 0 {
		t.Error("a subscription's post is told as the link's delivery")
	}
}

// Nothing of a target's URL, which can hold a secret, is in a job or a log.
func TestWebhookURLStaysInTheLink(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	target := newReceiver(t, 500)
	w.startRiver()
	link := w.issue(webhookRequest("r1", target.URL+"/zebra?key=zebra"))
	w.wantOutcome(link.ID, portal.LinkDelivered, `{"attempts":2,"channel":"webhook"}`)
	if n := w.count(`SELECT count(*) FROM river_job j WHERE j::text LIKE '%zebra%'`); n != 0 {
		t.Error("the URL is in a job")
	}
	if strings.Contains(w.logs.tail(), "zebra") {
		t.Error("the URL is in the log")
	}
}

// One target that hangs holds up neither another one nor the events.
func TestSlowWebhookTargetHoldsUpNobody(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(release) })
	fast := newReceiver(t)
	const n = 3 * webhookWorkers
	for i := range n {
		w.issue(webhookRequest(fmt.Sprint("slow-", i), strings.Replace(slow.URL, "127.0.0.1", "localhost", 1))) // a lane is a host's
	}
	w.startRiver()
	link := w.issue(webhookRequest("fast", fast.URL))
	w.wantOutcome(link.ID, portal.LinkDelivered, `{"attempts":1,"channel":"webhook"}`)
	w.events(n + 2)
	if d := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.delivered'`); d != 1 {
		t.Errorf("%d deliveries", d)
	}
}
