package jobs

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/riverqueue/river"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// everythingHappens writes at least one audit row of each kind, about one link mostly.
func (w *world) everythingHappens() *portal.Link {
	w.t.Helper()
	link := w.issue([]byte(contractRequest))
	w.issue([]byte(contractRequest)) // a duplicate
	must(w.t, w.issuer.Issue(w.ctx, []*Item{newTestItem([]byte("no JSON"))}))
	visitor := &portal.Visitor{IP: netip.MustParseAddr("203.0.113.7"), UserAgent: "Mail/1.0"}
	must(w.t, w.open(link, visitor))
	for _, cause := range []*portal.SessionError{nil, {Code: portal.CodeCustomerGone, RequestID: "req_2"}} {
		click := uuid.New()
		w.startClick(w.store, link, click, visitor)
		session := portal.Session{ID: "bps_1", URL: "https://billing.example.com/secret", RequestID: "req_1"}
		must(w.t, w.store.EndClick(w.ctx, link, click, session, cause))
	}
	must(w.t, w.store.Denied(w.ctx, link, uuid.Nil, map[string]any{"reason": "used_up"}, visitor))
	_, err := w.store.Revoke(w.ctx, portal.Revocation{LinkID: link.ID.String(), By: "jo", Reason: "test"})
	must(w.t, err)
	return link
}

// eventRows are the audit rows that have an event.
func (w *world) eventRows() map[string]portal.AuditEvent {
	w.t.Helper()
	rows, err := portal.LoadAudit(w.ctx, w.owner, `kind NOT IN ('request.rejected', 'click.started', 'click.denied', 'audit.sealed')`)
	must(w.t, err)
	byID := map[string]portal.AuditEvent{}
	for _, row := range rows {
		byID[row.ID.String()] = row
	}
	return byID
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func TestInvariant7EachEventRowIsPublishedUnderItsID(t *testing.T) {
	t.Parallel()
	w := setup(t)
	link := w.everythingHappens()
	rows := w.eventRows()
	if len(rows) != 6 {
		t.Fatalf("%d event rows, want 6: %+v", len(rows), rows)
	}
	w.startRiver()
	events := w.events(len(rows))
	if !slices.Equal(sortedKeys(rows), sortedKeys(events)) {
		t.Errorf("published %v, want %v", sortedKeys(events), sortedKeys(rows))
	}
	issued, err := w.issuer.Issued(link)
	must(t, err)
	issuedData := map[string]any{"url": issued.URL, "expires_at": link.ExpiresAt.UTC().Format(time.RFC3339Nano)}
	adds := map[portal.Kind]map[string]any{
		portal.LinkIssued: issuedData, portal.RequestDuplicate: issuedData,
		portal.LinkOpened:     {"verdict": "person", "signals": []any{}, "method": "GET", "state": "live"},
		portal.SessionCreated: {"session_id": "bps_1", "stripe_request_id": "req_1", "livemode": false},
		portal.SessionFailed:  {"code": "customer_gone", "stripe_request_id": "req_2", "retryable": false},
		portal.LinkRevoked:    {"by": "jo", "reason": "test"},
	}
	for id, e := range events {
		checkEvent(t, e, rows[id], link, adds[rows[id].Kind])
	}
	w.eventually("jobs done", func() bool {
		return w.count(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state <> 'completed'`) == 0
	})
	if n := w.stored(notify.EventsStream); n != len(rows) {
		t.Errorf("%d events stored, want %d", n, len(rows))
	}
}

// checkEvent holds an event against CloudEvents 1.0 and the contract.
func checkEvent(t *testing.T, e notify.Event, row portal.AuditEvent, link *portal.Link, adds map[string]any) {
	t.Helper()
	kind := row.Kind
	if kind == portal.RequestDuplicate {
		kind = portal.LinkIssued
	}
	want := notify.Event{SpecVersion: "1.0", ID: row.ID.String(), Source: testBaseURL, Type: "latchkey." + string(kind),
		Subject: link.ID.String(), Time: row.At.UTC(), DataContentType: "application/json", Data: e.Data}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("event %+v\nwant  %+v", e, want)
	}
	var data map[string]any
	must(t, json.Unmarshal(e.Data, &data))
	wantData := map[string]any{"request_id": "in_1PqR-attempt-2", "link_id": link.ID.String(), "source": "dunning",
		"campaign": "2026-11-card-expiry", "customer": "cus_9s6XKzkNRiz8i3", "metadata": map[string]any{"invoice": "in_1PqR", "attempt": "2"}}
	maps.Copy(wantData, adds)
	if !reflect.DeepEqual(data, wantData) {
		t.Errorf("%s: data %v\nwant %v", kind, data, wantData)
	}
}

func (w *world) publisher(js jetstream.JetStream) *publisher {
	return &publisher{pool: w.pool, js: js, maker: eventMaker{w.keys, testBaseURL}, insert: w.river.insert, metrics: newMetrics(nil)}
}

// work runs a publish job outside of a client and returns what the worker tells River.
func (w *world) work(js jetstream.JetStream, rows ...portal.IDRange) error {
	worker := &publishWorker{publisher: w.publisher(js)}
	return worker.Work(w.ctx, &river.Job[PublishArgs]{Args: PublishArgs{Rows: rows}})
}

// rowRanges names all event rows.
func (w *world) rowRanges() (ranges []portal.IDRange) {
	for id := range w.eventRows() {
		ranges = append(ranges, portal.OneID(uuid.MustParse(id)))
	}
	return ranges
}

// A batch of redeliveries writes no row, and its publish job, inserted before that was known, ends.
func TestPublishOfABatchWithoutRows(t *testing.T) {
	t.Parallel()
	w := setup(t)
	ids, err := portal.NewIDs(10)
	must(t, err)
	must(t, w.work(w.js, ids))
	if n := w.stored(notify.EventsStream); n != 0 {
		t.Errorf("%d events", n)
	}
}

// A row whose link is gone fails its job, and the other rows of the job are published.
func TestPublishWithoutALink(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.issue(request("gone"))
	w.issue(request("here"))
	w.exec(`DELETE FROM links WHERE request_id = 'gone'`)
	w.exec(`DELETE FROM river_job`)
	must(t, w.work(w.js, w.rowRanges()...))
	// What can't be published has a job of its own by now, which does not publish the others again.
	var args PublishArgs
	must(t, w.owner.QueryRow(w.ctx, `SELECT args FROM river_job`).Scan(&args))
	if err := w.work(w.js, args.Rows...); len(args.Rows) != 1 || !errors.Is(err, portal.ErrNoLink) {
		t.Errorf("%d rows are left, and their job ends with %v, want ErrNoLink", len(args.Rows), err)
	}
	if n := w.stored(notify.EventsStream); n != 1 {
		t.Errorf("%d events were published", n)
	}
	for _, e := range w.events(1) {
		var data EventData
		must(t, json.Unmarshal(e.Data, &data))
		if data.RequestID != "here" {
			t.Errorf("published %+v", data)
		}
	}
}

// A key that was taken out of LINK_KEYS too early holds back link.issued, nothing else.
func TestPublishWithoutTheKey(t *testing.T) {
	t.Parallel()
	w := setup(t)
	link := w.issue(request("r1"))
	must(t, w.open(link, nil))
	keys, err := portal.ParseKeys(portal.FormatKey(9, [32]byte{9}))
	must(t, err)
	right := w.keys
	w.keys = keys
	must(t, w.work(w.js, w.rowRanges()...))
	if n := w.stored(notify.EventsStream); n != 1 {
		t.Errorf("%d events were published", n)
	}
	for _, e := range w.events(1) {
		if e.Type != "latchkey.link.opened" {
			t.Errorf("published %s", e.Type)
		}
	}
	w.keys = right
	must(t, w.work(w.js, w.rowRanges()...))
	w.events(2)
}
