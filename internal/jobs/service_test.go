package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"latchkey/internal/portal"
)

// serveLinks runs the micro service until the returned function or the test ends it.
func (w *world) serveLinks() (stop func() error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	service := NewService(w.issuer, w.store, w.log)
	up := make(chan struct{})
	go func() { ended <- service.Serve(ctx, w.nc, "1.2.3", func() { close(up) }) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	w.t.Cleanup(func() {
		if err := stop(); err != nil {
			w.t.Errorf("service: %v", err)
		}
	})
	select {
	case <-up:
	case err := <-ended:
		w.t.Fatal(err)
	case <-w.ctx.Done():
		w.t.Fatal("the service does not come up")
	}
	return stop
}

// ask sends a request to an endpoint and returns the answer, or the error's code and text.
func (w *world) ask(subject string, body []byte) (data []byte, code, text string) {
	w.t.Helper()
	msg, err := w.nc.RequestWithContext(w.ctx, subject, body)
	must(w.t, err)
	return msg.Data, msg.Header.Get(micro.ErrorCodeHeader), msg.Header.Get(micro.ErrorHeader)
}

// answer is ask where the answer has to be good.
func (w *world) answer(subject string, body []byte, into any) string {
	w.t.Helper()
	data, code, text := w.ask(subject, body)
	if code != "" {
		w.t.Fatalf("%s answers %s: %s", subject, code, text)
	}
	must(w.t, json.Unmarshal(data, into))
	return string(data)
}

func TestServiceIsDiscoverable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	var ping micro.Ping
	w.answer("$SRV.PING", nil, &ping)
	if ping.Name != "latchkey" || ping.Version != "1.2.3" {
		t.Errorf("PING answers %+v", ping)
	}
	var info micro.Info
	w.answer("$SRV.INFO.latchkey", nil, &info)
	subjects := map[string]string{}
	for _, e := range info.Endpoints {
		subjects[e.Name] = e.Subject
	}
	if want := map[string]string{"create": "portal.links.create", "get": "portal.links.get", "revoke": "portal.links.revoke",
		"campaigns-list": "portal.campaigns.list", "campaigns-get": "portal.campaigns.get", "campaigns-check": "portal.campaigns.check"}; !maps.Equal(subjects, want) {
		t.Errorf("INFO tells of %v", subjects)
	}
	w.ask(CreateSubject, request("r1"))
	var stats micro.Stats
	w.answer("$SRV.STATS.latchkey", nil, &stats)
	for _, e := range stats.Endpoints {
		if e.Name == "create" && e.NumRequests != 1 {
			t.Errorf("STATS tell of %d creates, want 1", e.NumRequests)
		}
	}
}

func TestServiceCreate(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	var first, again IssuedData
	w.answer(CreateSubject, []byte(contractRequest), &first)
	w.answer(CreateSubject, []byte(contractRequest), &again)
	token, ok := strings.CutPrefix(first.URL, testBaseURL+"/l/")
	if id, _, err := w.keys.Verify(token); !ok || err != nil || id != first.LinkID {
		t.Errorf("URL %s of link %s (%v)", first.URL, first.LinkID, err)
	}
	if first.RequestID != "in_1PqR-attempt-2" || first.Customer != "cus_9s6XKzkNRiz8i3" || first.Campaign != "2026-11-card-expiry" ||
		first.Source != "dunning" || !strings.Contains(string(first.Metadata), "in_1PqR") || !first.ExpiresAt.After(time.Now()) {
		t.Errorf("answer %+v", first)
	}
	if again.URL != first.URL || !again.ExpiresAt.Equal(first.ExpiresAt) {
		t.Errorf("a repeat answers %s, want %s", again.URL, first.URL)
	}
	w.wantTotal(total{links: 1, issued: 1, duplicates: 1})

	// The same request by way of the stream finds the same link.
	w.publish("dunning", []byte(contractRequest))
	w.startIntake(w.intake)
	w.drained()
	w.wantTotal(total{links: 1, issued: 1, duplicates: 2})
}

func TestServiceCreateRejects(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.exec(`ALTER TABLE links ADD CONSTRAINT no_zebra CHECK (request_id <> 'zebra')`)
	w.serveLinks()
	w.ask(CreateSubject, request("taken"))
	requests := rejectedRequests()
	for code, body := range requests {
		if data, got, text := w.ask(CreateSubject, body); got != string(code) || text == "" || len(data) > 0 {
			t.Errorf("%s: answers %q %q %q", code, got, text, data)
		}
		if n := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'request.rejected' AND detail->>'code' = $1`, code); n != 1 {
			t.Errorf("%s: %d audit rows, want 1", code, n)
		}
	}
	if _, code, text := w.ask(CreateSubject, request("zebra")); code != "invalid_field" || !strings.Contains(text, "refuses") {
		t.Errorf("what the database refuses: %s %s", code, text)
	}
	w.wantTotal(total{links: 1, issued: 1, rejected: len(requests) + 1})
	if n := w.stored(DeadStream); n != 0 {
		t.Errorf("%d dead letters of requests whose producer was told", n)
	}
}

// The inside of a failure stays inside; the caller hears what to do.
func TestServiceUnavailable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	w.exec(`REVOKE SELECT, INSERT ON links FROM latchkey_app`)
	for subject, body := range map[string]string{CreateSubject: string(request("r1")), GetSubject: `{"id":"r1"}`, RevokeSubject: `{"campaign":"c","by":"jo"}`,
		CampaignsSubject: `{}`, CampaignSubject: `{"campaign":"c"}`} {
		data, code, text := w.ask(subject, []byte(body))
		if code != CodeUnavailable || !strings.Contains(text, "try again") || strings.Contains(text, "SQLSTATE") || len(data) > 0 {
			t.Errorf("%s answers %s %q %q", subject, code, text, data)
		}
	}
	w.exec(`GRANT SELECT, INSERT ON links TO latchkey_app`)
	var issued IssuedData
	w.answer(CreateSubject, request("r1"), &issued)
}

func TestServiceGet(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	link := w.everythingHappens()
	var click uuid.UUID
	must(t, w.owner.QueryRow(w.ctx, `SELECT id FROM clicks LIMIT 1`).Scan(&click))
	issued, err := w.issuer.Issued(link)
	must(t, err)
	token := strings.TrimPrefix(issued.URL, testBaseURL+"/l/")
	for _, id := range []string{link.ID.String(), link.RequestID, click.String()} {
		var got Status
		body, _ := json.Marshal(GetRequest{ID: id})
		answer := w.answer(GetSubject, body, &got)
		for _, secret := range []string{token, "/l/", "billing.example.com", "203.0.113.7"} {
			if strings.Contains(answer, secret) {
				t.Errorf("get %s gives %s away", id, secret)
			}
		}
		if got.Link == nil {
			t.Fatalf("get %s answers %s", id, answer)
		}
		if got.Link.LinkID != link.ID || got.Link.State != portal.StateRevoked || got.Link.RevokedAt == nil || got.Link.SessionsCreated != 1 ||
			got.Link.MaxSessions != 20 || !got.Link.ExpiresAt.Equal(link.ExpiresAt) || !got.Link.CreatedAt.Equal(link.CreatedAt) {
			t.Errorf("get %s answers %s", id, answer)
		}
		if len(got.Timeline) != 9 || got.Timeline[0].Kind != portal.LinkIssued || got.Timeline[8].Kind != portal.LinkRevoked {
			t.Errorf("get %s: timeline %+v", id, got.Timeline)
		}
	}
}

func TestServiceGetWithoutALink(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	w.ask(CreateSubject, request("bad", "session.locale", "xx"))
	var got Status
	w.answer(GetSubject, []byte(`{"id":"bad"}`), &got)
	if got.Link != nil || len(got.Timeline) != 1 || got.Timeline[0].Kind != portal.RequestRejected || got.Timeline[0].Detail["code"] != "invalid_field" {
		t.Errorf("a rejected request: %+v", got)
	}
	for body, want := range map[string]string{
		`{"id":"nobody"}`:                   CodeNotFound,
		`{"id":"` + uuid.NewString() + `"}`: CodeNotFound,
		`{"id":"' OR true --"}`:             CodeNotFound,
		`{"id":"a\u0000"}`:                  CodeBadRequest,
		`{"id":""}`:                         CodeBadRequest,
		`{}`:                                CodeBadRequest,
		`{"id":1}`:                          CodeBadRequest,
		`{"ID":"bad"}`:                      CodeBadRequest,
		`{"id":"bad","x":1}`:                CodeBadRequest,
		`["bad"]`:                           CodeBadRequest,
		`bad`:                               CodeBadRequest,
		``:                                  CodeBadRequest,
		`{"id":"bad"}{"id":"bad"}`:          CodeBadRequest,
		"{\"id\":\"bad\xff\"}":              CodeBadRequest,
	} {
		if _, code, text := w.ask(GetSubject, []byte(body)); code != want || text == "" {
			t.Errorf("get %s answers %s %q, want %s", body, code, text, want)
		}
	}
}

// Whoever sent another request under the id of a link learns from the link's status that it was rejected.
func TestServiceGetTellsOfAConflict(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	w.issue(request("a"))
	w.issue(request("b"))
	if _, code, _ := w.ask(CreateSubject, request("a", "campaign", "other")); code != string(IDConflict) {
		t.Fatal(code)
	}
	for id, want := range map[string][]portal.Kind{"a": {portal.LinkIssued, portal.RequestRejected}, "b": {portal.LinkIssued}} {
		var got Status
		w.answer(GetSubject, []byte(`{"id":"`+id+`"}`), &got)
		var kinds []portal.Kind
		for _, h := range got.Timeline {
			kinds = append(kinds, h.Kind)
		}
		if !slices.Equal(kinds, want) || got.Omitted != 0 {
			t.Errorf("%s: %v, %d omitted", id, kinds, got.Omitted)
		}
	}
}

func TestServiceRevoke(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	links := map[string]*portal.Link{}
	for id, fields := range map[string][]any{
		"link": nil, "request": nil, "customer1": {"session.customer", "cus_x"}, "customer2": {"session.customer", "cus_x"},
		"campaign1": {"campaign", "c1"}, "campaign2": {"campaign", "c1"}, "campaign3": {"campaign", "c1"}, "other": {"campaign", "c2"},
	} {
		links[id] = w.issue(request(id, fields...))
	}
	for _, c := range []struct {
		body string
		want int
	}{
		{`{"link_id":"` + links["link"].ID.String() + `","by":"jo"}`, 1},
		{`{"link_id":"` + links["link"].ID.String() + `","by":"jo"}`, 0},
		{`{"link_id":"` + uuid.NewString() + `","by":"jo"}`, 0},
		{`{"request_id":"request","by":"jo","reason":"paid"}`, 1},
		{`{"customer":"cus_x","by":"jo"}`, 2},
		{`{"campaign":"c1","by":"jo"}`, 3},
		{`{"campaign":"none","by":"jo"}`, 0},
		{`{"key_id":8,"by":"jo"}`, 0},
		{`{"key_id":7,"by":"jo"}`, 1},
	} {
		var got RevokeResponse
		if w.answer(RevokeSubject, []byte(c.body), &got); got.Revoked != c.want {
			t.Errorf("revoke %s: %d links, want %d", c.body, got.Revoked, c.want)
		}
	}
	if n := w.count(`SELECT count(*) FROM links WHERE revoked_at IS NULL`); n != 0 {
		t.Errorf("%d links live, want none", n)
	}
	if n := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.revoked'`); n != 8 {
		t.Errorf("%d audit rows, want 8", n)
	}
}

func TestServiceRevokeRefuses(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	w.issue(request("r1", "campaign", "c1"))
	for _, body := range []string{
		``, `c1`, `null`, `[]`, `{}`, `{"by":"jo"}`,
		`{"campaign":"c1"}`,
		`{"campaign":"c1","by":""}`,
		`{"campaign":"c1","customer":"cus_1","by":"jo"}`,
		`{"campaign":"c1","custommer":"cus_1","by":"jo"}`,
		`{"campaign":"c0","campaign":"c1","by":"jo"}`,
		`{"campaign":1,"by":"jo"}`,
		`{"key_id":256,"by":"jo"}`,
		`{"key_id":"7","by":"jo"}`,
		`{"key_id":7,"campaign":"c1","by":"jo"}`,
		`{"link_id":"c1","by":"jo"}`,
		`{"campaign":"c1","by":"jo\u0000"}`,
		`{"campaign":"c1\u0000","by":"jo"}`,
		`{"campaign":"c1","by":"` + strings.Repeat("j", 201) + `"}`,
	} {
		if _, code, text := w.ask(RevokeSubject, []byte(body)); code != CodeBadRequest || text == "" {
			t.Errorf("revoke %s answers %s %q, want %s", body, code, text, CodeBadRequest)
		}
	}
	if n := w.count(`SELECT count(*) FROM links WHERE revoked_at IS NOT NULL`); n != 0 {
		t.Error("a link was revoked")
	}
}

// A stop lets requests in flight end and answers them; the service is found no more meanwhile.
func TestServiceStopsAfterWhatIsInFlight(t *testing.T) {
	t.Parallel()
	w := setup(t)
	stop := w.serveLinks()
	lock, err := w.owner.Begin(w.ctx)
	must(t, err)
	defer func() { _ = lock.Rollback(context.Background()) }()
	_, err = lock.Exec(w.ctx, `LOCK TABLE links IN EXCLUSIVE MODE`)
	must(t, err)
	const n = 4
	answers := make(chan string, n)
	for _, id := range numbered("r%d", n) {
		go func() {
			msg, err := w.nc.RequestWithContext(w.ctx, CreateSubject, request(id))
			if err != nil {
				answers <- err.Error()
				return
			}
			answers <- msg.Header.Get(micro.ErrorCodeHeader)
		}()
	}
	w.eventually("requests in flight", func() bool {
		var stats micro.Stats
		w.answer("$SRV.STATS.latchkey", nil, &stats)
		requests := 0
		for _, e := range stats.Endpoints {
			requests += e.NumRequests
		}
		return requests == n && w.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	w.eventually("no responders", func() bool {
		_, err := w.nc.RequestWithContext(w.ctx, "$SRV.PING.latchkey", nil)
		return errors.Is(err, nats.ErrNoResponders)
	})
	select {
	case err := <-stopped:
		t.Fatalf("stopped with requests in flight: %v", err)
	default:
	}
	must(t, lock.Rollback(w.ctx))
	for range n {
		if code := <-answers; code != "" {
			t.Errorf("a request in flight was answered %s", code)
		}
	}
	must(t, <-stopped)
	w.wantTotal(total{links: n, issued: n})
}

// Whoever holds a link can open it as often as they like: its status still fits into an answer,
// and what happened beside the openings is in it.
func TestServiceGetOfALinkOpenedTenThousandTimes(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	link := w.issue(request("busy"))
	w.exec(`INSERT INTO audit_events (id, at, kind, link_id, request_id, detail)
		SELECT gen_random_uuid(), now() + n * interval '1 second', 'link.opened', $1, 'busy', '{"verdict": "scanner"}' FROM generate_series(1, 10000) n`, link.ID)
	var status Status
	w.answer(GetSubject, []byte(`{"id": "busy"}`), &status)
	if len(status.Timeline) != timelineRows || status.Omitted != 10001-timelineRows || status.Timeline[0].Kind != portal.LinkIssued {
		t.Errorf("%d rows, %d omitted, first %s", len(status.Timeline), status.Omitted, status.Timeline[0].Kind)
	}
}
