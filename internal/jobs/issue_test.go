package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"latchkey/internal/portal"
	"latchkey/internal/testkit"
)

func TestIssueStoresWhatWasAsked(t *testing.T) {
	t.Parallel()
	w := database(t)
	w.issuer.Now = func() time.Time { return testNow.Add(999 * time.Nanosecond) }
	link := w.issue([]byte(contractRequest))
	stored, err := portal.LoadLink(w.ctx, w.pool, link.ID)
	must(t, err)
	if stored.RequestID != "in_1PqR-attempt-2" || stored.Source != "dunning" || stored.Campaign != "2026-11-card-expiry" ||
		stored.Customer != "cus_9s6XKzkNRiz8i3" || stored.StripeAccount != "acct_1032D82eZvKYlo2C" || stored.MaxSessions != 20 ||
		stored.KeyID != 7 || !stored.CreatedAt.Equal(testNow) || !stored.ExpiresAt.Equal(testNow.Add(336*time.Hour)) {
		t.Errorf("stored link: %+v", stored)
	}
	var want struct{ Session, Metadata any }
	must(t, json.Unmarshal([]byte(contractRequest), &want))
	for name, pair := range map[string][2]any{"session": {want.Session, stored.Session}, "metadata": {want.Metadata, stored.Metadata}} {
		var got any
		must(t, json.Unmarshal(pair[1].([]byte), &got))
		if fmt.Sprint(got) != fmt.Sprint(pair[0]) {
			t.Errorf("%s: stored %v, want %v", name, got, pair[0])
		}
	}
	if n := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.issued' AND link_id = $1 AND request_id = $2 AND at = $3`,
		link.ID, link.RequestID, testNow); n != 1 {
		t.Errorf("%d audit rows, want 1", n)
	}
}

// Seals are over the audit and not over links: whose link it is stands in the row.
func TestIssuedRowTellsWhose(t *testing.T) {
	t.Parallel()
	w := database(t)
	for body, want := range map[string]string{
		contractRequest:       `{"customer": "cus_9s6XKzkNRiz8i3", "source": "dunning", "campaign": "2026-11-card-expiry", "stripe_account": "acct_1032D82eZvKYlo2C"}`,
		string(request("r1")): `{"customer": "cus_9s6XKzkNRiz8i3", "source": "dunning"}`,
	} {
		link := w.issue([]byte(body))
		if n := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.issued' AND link_id = $1 AND detail = $2`, link.ID, want); n != 1 {
			t.Errorf("link.issued of %s does not say %s", link.RequestID, want)
		}
	}
}

// Between parsing and committing, while the database did not answer, the time of a link may pass in part or whole.
func TestShortLivedLinksParsedAhead(t *testing.T) {
	t.Parallel()
	w := database(t)
	w.issuer.Now = func() time.Time { return testNow }
	short := func(id, life string) []byte { return request(id, "expires_in", life) }
	var items []*Item
	for _, body := range [][]byte{short("a", "10s"), request("b"), short("c", "12s")} {
		item := newTestItem(body)
		w.issuer.parseAhead(item, testNow)
		items = append(items, item)
	}
	w.at(11 * time.Second)
	for _, part := range [][]*Item{items[:1], items[1:]} {
		parts := w.issuer.issueApart(w.ctx, part)
		if len(parts) != 1 || parts[0].err != nil {
			t.Fatalf("%d transactions: %v", len(parts), parts[0].err)
		}
	}
	w.wantTotal(total{links: 3, issued: 3})
	if n := w.count(`SELECT count(*) FROM links WHERE expires_at - created_at IN ('10 s', '12 s')`); n != 2 {
		t.Errorf("%d links live for what they were to", n)
	}
}

// 20 goroutines of two issuers, which share nothing but the database, ask for one id at once.
func TestInvariant2OneLinkForOneRequestID(t *testing.T) {
	t.Parallel()
	w := database(t)
	issuers := []*Issuer{w.issuer, w.newIssuer(w.workerPool(nil))}
	body := request("one")
	items := make([]*Item, 20)
	var all sync.WaitGroup
	for i := range items {
		items[i] = newTestItem(body)
		items[i].Published = testNow.Add(time.Duration(i) * time.Second)
		all.Go(func() {
			if err := issuers[i%2].Issue(w.ctx, items[i:i+1]); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for _, item := range items {
		if item.Link == nil || item.Link.ID != items[0].Link.ID {
			t.Errorf("one request, two links: %v and %v", item.Link, items[0].Link)
		}
	}
	w.wantTotal(total{links: 1, issued: 1, duplicates: 19})
}

func TestInvariant2WithinABatch(t *testing.T) {
	t.Parallel()
	w := database(t)
	var items []*Item
	for i, body := range [][]byte{request("a"), request("b"), request("a"), request("a", "campaign", "other"), request("b")} {
		items = append(items, newTestItem(body))
		items[i].Published = testNow.Add(time.Duration(i) * time.Second)
	}
	must(t, w.issuer.Issue(w.ctx, items))
	var results []string
	for _, item := range items {
		results = append(results, item.result())
	}
	if want := []string{"issued", "issued", "duplicate", "id_conflict", "duplicate"}; !slices.Equal(results, want) {
		t.Errorf("results %v, want %v", results, want)
	}
	if items[0].Link.ID != items[2].Link.ID || items[1].Link.ID != items[4].Link.ID || items[3].Link != nil {
		t.Error("a duplicate did not get the first one's link, or a conflict got one")
	}
	w.wantTotal(total{links: 2, issued: 2, duplicates: 2, rejected: 1})
}

// Two workers get the same messages (an ack wait ran out) in opposite order: neither waits for
// the other while it waits for it, over the requests' ids or over the messages'.
func TestInvariant2OverlappingBatchesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	w := database(t)
	for _, body := range map[string]func(round, i int) []byte{
		"new":      func(round, i int) []byte { return request(fmt.Sprintf("r%d-%d", round, i)) },
		"rejected": func(int, int) []byte { return []byte("no JSON") },
	} {
		for round := range 5 {
			var both sync.WaitGroup
			for worker := range 2 {
				var items []*Item
				for i := range 500 {
					items = append(items, &Item{Body: body(round, i), Published: testNow,
						MessageID: messageID(RequestsStream, uint64(500*round+i), testNow)})
				}
				if worker == 1 {
					slices.Reverse(items)
				}
				both.Go(func() {
					if err := w.issuer.Issue(w.ctx, items); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
		}
	}
	w.wantTotal(total{links: 2500, issued: 2500, rejected: 2500})
}

// A repeat that comes when the link's time is over is a repeat all the same: only a request that
// was never served is rejected as expired.
func TestExpiredRepeatFindsItsLink(t *testing.T) {
	t.Parallel()
	w := database(t)
	w.issuer.Now = func() time.Time { return testNow }
	body := request("r1", "expires_at", "2026-11-20T13:00:00Z")
	first := newTestItem(body)
	must(t, w.issuer.Issue(w.ctx, []*Item{first}))
	w.issuer.Now = func() time.Time { return testNow.Add(2 * time.Hour) }

	redelivery := &Item{Body: body, Published: first.Published, MessageID: first.MessageID}
	repeat := newTestItem(body)
	conflict := newTestItem(request("r1", "expires_at", "2026-11-20T13:00:01Z"))
	late := newTestItem(request("r2", "expires_at", "2026-11-20T13:00:00Z"))
	must(t, w.issuer.Issue(w.ctx, []*Item{redelivery, repeat, conflict, late}))
	for want, item := range map[string]*Item{"redelivered": redelivery, "duplicate": repeat, "id_conflict": conflict, "expired": late} {
		if item.result() != want {
			t.Errorf("%s, want %s", item.result(), want)
		}
	}
	if redelivery.Link == nil || redelivery.Link.ID != first.Link.ID || repeat.Link.ID != first.Link.ID || late.Link != nil {
		t.Error("a repeat did not find its link, or an expired request got one")
	}
	w.wantTotal(total{links: 1, issued: 1, duplicates: 1, rejected: 2})
}

// After a rotation a repeat gives the URL of the key that signed the link.
func TestRepeatAfterRotationGivesTheSameURL(t *testing.T) {
	t.Parallel()
	w := database(t)
	before, err := w.issuer.Issued(w.issue(request("r1")))
	must(t, err)
	rotated, err := portal.ParseKeys(portal.FormatKey(8, [32]byte{8}) + "," + portal.FormatKey(7, [32]byte{1, 2, 3}))
	must(t, err)
	w.issuer.Keys = rotated
	after, err := w.issuer.Issued(w.issue(request("r1")))
	must(t, err)
	if before.URL != after.URL || !strings.HasPrefix(before.URL, testBaseURL+"/l/") {
		t.Errorf("URLs %s and %s", before.URL, after.URL)
	}
}

// A row that can't be written with its audit row, or its publish job, is not written at all.
func TestIssueIsOneTransaction(t *testing.T) {
	t.Parallel()
	w := database(t)
	w.issuer.Publish = func(context.Context, *portal.Tx, ...portal.IDRange) error { return testkit.ErrFault }
	if err := w.issuer.Issue(w.ctx, []*Item{newTestItem(request("r1")), newTestItem([]byte("bad"))}); err == nil {
		t.Error("issued without a publish job")
	}
	w.wantTotal(total{})
}

// The id of a message's audit row is a UUIDv7, the same for each delivery, another for each message.
func TestMessageID(t *testing.T) {
	t.Parallel()
	id := messageID("S", 1, testNow)
	if sec, nsec := id.Time().UnixTime(); id.Version() != 7 || id.Variant() != uuid.RFC4122 || !time.Unix(sec, nsec).Equal(testNow) {
		t.Errorf("%s: version %d, variant %s, time %v", id, id.Version(), id.Variant(), time.Unix(sec, nsec))
	}
	if id != messageID("S", 1, testNow) {
		t.Error("two deliveries, two ids")
	}
	for _, other := range []uuid.UUID{messageID("T", 1, testNow), messageID("S", 2, testNow), messageID("S", 1, testNow.Add(1))} {
		if other == id {
			t.Error("two messages, one id")
		}
	}
}

// Whatever happens to links leaves no token, no URL and no key in any table, nor in the log; and
// jobs name rows by id.
func TestInvariant8JobsCarryIDsOnly(t *testing.T) {
	t.Parallel()
	w := setup(t)
	link := w.everythingHappens()
	w.startIntake(w.intake)
	w.publish("dunning", request("secret1"))
	w.publish("dunning", []byte(`{"id":"secret1","id":"secret1"}`))
	w.drained()
	w.wantIDsOnly()
	w.startRiver()
	w.eventually("jobs done", func() bool {
		return w.count(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state <> 'completed'`) == 0
	})

	token, err := w.keys.Sign(link.KeyID, link.ID)
	must(t, err)
	for _, secret := range []string{token, token[8:30], "/l/", "AQIDAAAA"} {
		for table, rows := range w.everyRow() {
			if strings.Contains(rows, secret) {
				t.Errorf("table %s holds %s", table, secret)
			}
		}
		if strings.Contains(w.logs.String(), secret) {
			t.Errorf("the log holds %s", secret)
		}
	}
}

// wantIDsOnly holds the arguments of all jobs against a form that has room for ids only.
func (w *world) wantIDsOnly() {
	w.t.Helper()
	rows, err := w.owner.Query(w.ctx, `SELECT args::text FROM river_job WHERE kind = 'publish'`)
	must(w.t, err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(w.t, err)
	if len(list) == 0 {
		w.t.Error("no jobs")
	}
	for _, args := range list {
		var only struct {
			Rows []map[string]uuid.UUID `json:"rows"`
		}
		dec := json.NewDecoder(strings.NewReader(args))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&only); err != nil || len(only.Rows) == 0 {
			w.t.Errorf("job arguments %s: %v", args, err)
		}
	}
}

// everyRow is the content of every table, as text.
func (w *world) everyRow() map[string]string {
	w.t.Helper()
	rows, err := w.owner.Query(w.ctx, `SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace`)
	must(w.t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(w.t, err)
	content := map[string]string{}
	for _, table := range tables {
		var all string
		must(w.t, w.owner.QueryRow(w.ctx, `SELECT coalesce(string_agg(r::text, E'\n'), '') FROM `+pgx.Identifier{table}.Sanitize()+` r`).Scan(&all))
		content[table] = all
	}
	if content["links"] == "" || content["audit_events"] == "" || content["river_job"] == "" {
		w.t.Error("a table is empty")
	}
	return content
}

// Two transactions that make the link of one request at the same time: the second one waits, loses, begins
// again, and loses nothing of the rest of its batch.
func TestInvariant2TwoAtTheSameTime(t *testing.T) {
	t.Parallel()
	w := database(t)
	written, release := make(chan struct{}), make(chan struct{})
	slow := w.newIssuer(w.pool)
	slow.Publish = func(ctx context.Context, tx *portal.Tx, rows ...portal.IDRange) error {
		err := errors.Join(w.river.Publish(ctx, tx, rows...), tx.Await(ctx))
		written <- struct{}{}
		<-release
		return err
	}
	first, second := newTestItem(request("both")), newTestItem(request("both"))
	ended := make(chan error, 2)
	go func() { ended <- slow.Issue(w.ctx, []*Item{first}) }()
	<-written
	other := newTestItem(request("other"))
	go func() { ended <- w.issuer.Issue(w.ctx, []*Item{second, other}) }()
	w.eventually("one that waits for the other", func() bool {
		return w.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	close(release)
	must(t, errors.Join(<-ended, <-ended))
	if !second.Repeat || other.Repeat || second.Link.ID != first.Link.ID {
		t.Errorf("second is a repeat: %t, other: %t; links %s and %s", second.Repeat, other.Repeat, first.Link.ID, second.Link.ID)
	}
	w.wantTotal(total{links: 2, issued: 2, duplicates: 1})
}
