package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"latchkey/internal/portal"
	"latchkey/internal/testkit"
)

// testDeliver has a number that no double holds, and both channels.
const testDeliver = `[{"channel": "email", "to": "jo@example.com", "template": "payment_failed",
	"data": {"name": "Jö", "amount": "€ 49.00", "invoice": 12345678901234567890.10, "lines": [null, "", {"a": true}]}},
	{"channel": "webhook", "url": "https://hooks.example.com/x"}]`

var testVisitor = &portal.Visitor{IP: netip.MustParseAddr("203.0.113.7"), UserAgent: "Mail/1.0"}

// at sets the issuer's clock to a time after testNow.
func (w *world) at(after time.Duration) {
	w.issuer.Now = func() time.Time { return testNow.Add(after) }
}

// emailed issues the contract's request at testNow, for an hour, and gives it deliveries: a
// request can't bring any in this version.
func (w *world) emailed(deliver string) *portal.Link {
	w.t.Helper()
	w.at(0)
	link := w.issue([]byte(strings.Replace(contractRequest, "336h", "1h", 1)))
	w.exec(`UPDATE links SET deliver = $2 WHERE id = $1`, link.ID, deliver)
	return link
}

func (w *world) renew(link uuid.UUID) bool {
	w.t.Helper()
	renewed, err := w.issuer.Renew(w.ctx, link, testVisitor)
	must(w.t, err)
	return renewed
}

// renewals are the links of a chain behind its first one, in the order in which they were made.
func (w *world) renewals(root uuid.UUID) []*portal.Link {
	w.t.Helper()
	links, err := portal.LoadLinks(w.ctx, w.owner, `renewal_of = $1 ORDER BY created_at, request_id`, root)
	must(w.t, err)
	return links
}

// wantRenewals holds all that a chain left behind together: each new link has a link.issued and a
// link.renewed that names it, each in a publish job, and there is no other link.renewed.
func (w *world) wantRenewals(root uuid.UUID, want int) {
	w.t.Helper()
	links := w.renewals(root)
	if len(links) != want {
		w.t.Errorf("%d renewals, want %d", len(links), want)
	}
	for i, l := range links {
		if id := fmt.Sprintf("renew_%s_%d", root, i+1); l.RequestID != id {
			w.t.Errorf("request id %s, want %s", l.RequestID, id)
		}
		if n := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.renewed' AND detail->>'new_link_id' = $1`, l.ID.String()); n != 1 {
			w.t.Errorf("%d rows of link.renewed tell of renewal %d, want 1", n, i+1)
		}
		if n := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.issued' AND link_id = $1`, l.ID); n != 1 {
			w.t.Errorf("%d rows of link.issued tell of renewal %d, want 1", n, i+1)
		}
	}
	if n := w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.renewed'`); n != want {
		w.t.Errorf("%d rows of link.renewed, want %d", n, want)
	}
	if n := w.count(`SELECT count(*) FROM audit_events e WHERE NOT EXISTS (SELECT FROM river_job, jsonb_array_elements(args->'rows') r
		WHERE kind = 'publish' AND e.id BETWEEN (r->>'first')::uuid AND (r->>'last')::uuid)`); n != 0 {
		w.t.Errorf("%d audit rows without a publish job", n)
	}
}

// columns is a link's row without the columns in which any two links differ.
func (w *world) columns(id uuid.UUID) (row map[string]any) {
	w.t.Helper()
	var text string
	must(w.t, w.owner.QueryRow(w.ctx, `SELECT to_jsonb(l) - '{id,request_id,request_hash,published_at,created_at,expires_at}'::text[]
		FROM links l WHERE id = $1`, id).Scan(&text))
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber() // as a double, a number of deliver's would match another
	must(w.t, dec.Decode(&row))
	return row
}

func TestRenewMakesTheSameLinkAgain(t *testing.T) {
	t.Parallel()
	w := database(t)
	old := w.emailed(testDeliver)
	w.exec(`UPDATE links SET sessions_created = 20, sessions_reserved = 0 WHERE id = $1`, old.ID)
	before := w.columns(old.ID)
	rotated, err := portal.ParseKeys(portal.FormatKey(8, [32]byte{8}) + "," + portal.FormatKey(7, [32]byte{1, 2, 3}))
	must(t, err)
	w.issuer.Keys = rotated
	now := testNow.Add(time.Hour)
	w.at(time.Hour + 999*time.Nanosecond)
	if !w.renew(old.ID) {
		t.Fatal("not renewed")
	}
	w.wantRenewals(old.ID, 1)
	renewal := w.renewals(old.ID)[0]

	if !reflect.DeepEqual(w.columns(old.ID), before) {
		t.Errorf("the expired link is now %v, was %v", w.columns(old.ID), before)
	}
	want := maps.Clone(before)
	want["sessions_created"], want["key_id"], want["renewal_of"] = json.Number("0"), json.Number("8"), old.ID.String()
	if got := w.columns(renewal.ID); !reflect.DeepEqual(got, want) {
		t.Errorf("renewal %v\nwant    %v", got, want)
	}
	if renewal.ID == old.ID || !renewal.CreatedAt.Equal(now) || !renewal.ExpiresAt.Equal(now.Add(time.Hour)) || !renewal.Renewable {
		t.Errorf("renewal %+v", renewal)
	}
	if n := w.count(`SELECT count(*) FROM links n JOIN links o ON o.id = $1 WHERE n.id = $2 AND n.request_hash <> o.request_hash AND n.published_at = $3`,
		old.ID, renewal.ID, now); n != 1 {
		t.Error("the renewal has the other one's hash, or another published_at than its own")
	}
	rows, err := portal.LoadAudit(w.ctx, w.owner, `kind = 'link.renewed'`)
	must(t, err)
	row := portal.AuditEvent{ID: rows[0].ID, At: rows[0].At, Kind: portal.LinkRenewed, LinkID: old.ID, RequestID: old.RequestID,
		Detail: map[string]any{"new_link_id": renewal.ID.String()}}
	if !rows[0].At.Equal(now) || !reflect.DeepEqual(rows[0], row) {
		t.Errorf("audit row %+v, want %+v", rows[0], row)
	}
	if n := w.count(`SELECT count(*) FROM audit_visitors WHERE event_id = $1 AND at = $2 AND ip = '203.0.113.7' AND user_agent = 'Mail/1.0'`, row.ID, now); n != 1 {
		t.Errorf("%d rows of the visitor, want 1", n)
	}
}

// What a request may leave out stays out.
func TestRenewTheSmallestLink(t *testing.T) {
	t.Parallel()
	w := database(t)
	w.at(0)
	old := w.issue(request("r1"))
	w.exec(`UPDATE links SET deliver = '[{"channel": "email", "to": "jo@example.com"}]' WHERE id = $1`, old.ID)
	w.at(336 * time.Hour)
	if renewed, err := w.issuer.Renew(w.ctx, old.ID, nil); err != nil || !renewed {
		t.Fatalf("renewed %t, %v", renewed, err)
	}
	w.wantRenewals(old.ID, 1)
	want := w.columns(old.ID)
	want["renewal_of"] = old.ID.String()
	if got := w.columns(w.renewals(old.ID)[0].ID); !reflect.DeepEqual(got, want) {
		t.Errorf("renewal %v\nwant    %v", got, want)
	}
}

// A link from before LINK_TTL_MAX was lowered lives as long as a link may now.
func TestRenewLivesNoLongerThanAllowed(t *testing.T) {
	t.Parallel()
	w := database(t)
	old := w.emailed(testDeliver)
	w.at(time.Hour)
	w.issuer.Rules.TTL, w.issuer.Rules.TTLMax = 10*time.Minute, 20*time.Minute
	if !w.renew(old.ID) {
		t.Fatal("not renewed")
	}
	if l := w.renewals(old.ID)[0]; l.ExpiresAt.Sub(l.CreatedAt) != 20*time.Minute {
		t.Errorf("it lives %s", l.ExpiresAt.Sub(l.CreatedAt))
	}
}

func TestRenewThreeADay(t *testing.T) {
	t.Parallel()
	w := database(t)
	link := w.emailed(testDeliver)
	for _, press := range []struct {
		after time.Duration
		want  bool
	}{
		{time.Hour, true}, {time.Hour + time.Minute - time.Microsecond, false}, // a double tap
		{time.Hour + time.Minute, true}, {10 * time.Hour, true}, {11 * time.Hour, false},
		{25*time.Hour - time.Microsecond, false}, {25 * time.Hour, true}, {25*time.Hour + time.Minute, true}, {26 * time.Hour, false},
		{34 * time.Hour, true}, {35 * time.Hour, false},
	} {
		w.at(press.after)
		if got := w.renew(link.ID); got != press.want {
			t.Errorf("after %s: renewed %t, want %t", press.after, got, press.want)
		}
	}
	w.wantRenewals(link.ID, 6)
}

// A renewal that expired is renewed in its turn, and grants no three of its own.
func TestRenewChainCountsAsOne(t *testing.T) {
	t.Parallel()
	w := database(t)
	root := w.emailed(testDeliver)
	newest := root.ID
	for n := 1; n <= 3; n++ {
		w.at(time.Duration(n) * time.Hour)
		if !w.renew(newest) {
			t.Fatalf("renewal %d: refused", n)
		}
		newest = w.renewals(root.ID)[n-1].ID
	}
	w.at(4 * time.Hour)
	for _, l := range append(w.renewals(root.ID), root) {
		if w.renew(l.ID) {
			t.Errorf("%s: a fourth renewal in a day", l.RequestID)
		}
	}
	w.at(25 * time.Hour)
	if !w.renew(newest) {
		t.Error("refused after a day")
	}
	w.wantRenewals(root.ID, 4)
}

// 16 presses at once, at two replicas, of two links of one chain: one is let through.
func TestRenewConcurrently(t *testing.T) {
	t.Parallel()
	w := database(t)
	root := w.emailed(testDeliver)
	w.at(time.Hour)
	if !w.renew(root.ID) {
		t.Fatal("not renewed")
	}
	pressed := []uuid.UUID{root.ID, w.renewals(root.ID)[0].ID}
	w.at(48 * time.Hour)
	other := w.newIssuer(w.workerPool(nil))
	other.Now = w.issuer.Now
	issuers := []*Issuer{w.issuer, other}
	var renewed atomic.Int32
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			ok, err := issuers[i%2].Renew(w.ctx, pressed[i/2%2], testVisitor)
			if err != nil {
				t.Error(err)
			}
			if ok {
				renewed.Add(1)
			}
		})
	}
	all.Wait()
	if n := renewed.Load(); n != 1 {
		t.Errorf("%d renewed, want 1", n)
	}
	w.wantRenewals(root.ID, 2)
}

func TestRenewRefuses(t *testing.T) {
	t.Parallel()
	revoke := `UPDATE links SET revoked_at = created_at, revoked_by = 'jo' WHERE id = $1`
	for name, c := range map[string]struct {
		deliver string
		after   time.Duration
		sql     string // with the link's id as $1
		rules   func(*Rules)
	}{
		"not expired":          {deliver: testDeliver, after: time.Hour - time.Microsecond},
		"revoked":              {deliver: testDeliver, after: time.Hour, sql: revoke},
		"revoked, not expired": {deliver: testDeliver, sql: revoke},
		"not delivered":        {deliver: `[]`, after: time.Hour, sql: `UPDATE links SET deliver = NULL WHERE id = $1`},
		"delivered to nobody":  {deliver: `[]`, after: time.Hour},
		"webhook only":         {deliver: `[{"channel": "webhook", "url": "https://hooks.example.com/x"}]`, after: time.Hour},
		"first link gone":      {deliver: testDeliver, after: time.Hour, sql: `UPDATE links SET renewal_of = gen_random_uuid() WHERE id = $1`},
		"host gone":            {deliver: testDeliver, after: time.Hour, rules: func(r *Rules) { r.Session.ReturnURLHosts = []string{"www.example.com"} }},
		"no address":           {deliver: `[{"channel": "email"}]`, after: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := database(t)
			link := w.emailed(c.deliver)
			if c.sql != "" {
				w.exec(c.sql, link.ID)
			}
			if c.rules != nil {
				c.rules(&w.issuer.Rules)
			}
			w.at(c.after)
			if w.renew(link.ID) {
				t.Error("renewed")
			}
			w.wantNothingBut(link)
		})
	}
	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		w := database(t)
		link := w.emailed(testDeliver)
		if w.renew(uuid.Must(uuid.NewV7())) {
			t.Error("renewed")
		}
		w.wantNothingBut(link)
	})
}

// wantNothingBut looks for what the issuing of one link leaves, and for nothing else.
func (w *world) wantNothingBut(link *portal.Link) {
	w.t.Helper()
	w.wantTotal(total{links: 1, issued: 1})
	if n := w.count(`SELECT count(*) FROM audit_events WHERE link_id <> $1 OR kind <> 'link.issued'`, link.ID); n != 0 {
		w.t.Errorf("%d audit rows of something else", n)
	}
	if n := w.count(`SELECT (SELECT count(*) FROM river_job WHERE kind = 'publish') + (SELECT count(*) FROM audit_visitors)`); n != 1 {
		w.t.Errorf("%d publish jobs and visitors, want 1 and none", n)
	}
}

// Whoever took one link of a chain away does not want it back by another one of it.
func TestRenewEndsWithARevocationInTheChain(t *testing.T) {
	t.Parallel()
	w := database(t)
	for name, revoked := range map[string]int{"first": 0, "in the middle": 1, "last": 2} {
		root := w.emailed(testDeliver)
		w.exec(`UPDATE links SET request_id = $2 WHERE id = $1`, root.ID, name) // the next round needs the id
		for n := range 2 {
			w.at(time.Hour + time.Duration(n)*time.Minute)
			if !w.renew(root.ID) {
				t.Fatal("not renewed")
			}
		}
		chain := append([]*portal.Link{root}, w.renewals(root.ID)...)
		w.exec(`UPDATE links SET revoked_at = created_at, revoked_by = 'jo' WHERE id = $1`, chain[revoked].ID)
		w.at(48 * time.Hour)
		for _, l := range chain {
			if w.renew(l.ID) {
				t.Errorf("%s revoked: %s renewed", name, l.RequestID)
			}
		}
	}
}

// A revocation that meets a renewal in the middle of its transaction ends the new link as well.
func TestRenewDoesNotSlipThroughARevocation(t *testing.T) {
	t.Parallel()
	w := setup(t)
	old := w.emailed(testDeliver)
	w.at(time.Hour)
	publish, revoked := w.issuer.Publish, make(chan error, 1)
	var once sync.Once
	w.issuer.Publish = func(ctx context.Context, tx *portal.Tx, rows ...portal.IDRange) error {
		once.Do(func() {
			go func() {
				_, err := w.store.Revoke(w.ctx, portal.Revocation{Customer: old.Customer, By: "jo"})
				revoked <- err
			}()
			w.eventually("a revocation that waits", func() bool {
				return w.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
			})
		})
		return publish(ctx, tx, rows...)
	}
	if !w.renew(old.ID) {
		t.Fatal("not renewed")
	}
	must(t, <-revoked)
	if n := w.count(`SELECT count(*) FROM links WHERE revoked_at IS NULL`); n != 0 {
		t.Errorf("%d links live on", n)
	}
}

// A producer may have chosen the id that a renewal would have.
func TestRenewNeverTakesAProducersLink(t *testing.T) {
	t.Parallel()
	w := database(t)
	old := w.emailed(testDeliver)
	w.issue(request(fmt.Sprintf("renew_%s_1", old.ID)))
	w.at(time.Hour)
	if renewed, err := w.issuer.Renew(w.ctx, old.ID, testVisitor); renewed || err == nil {
		t.Errorf("renewed %t, %v", renewed, err)
	}
	w.wantTotal(total{links: 2, issued: 2})
	w.wantRenewals(old.ID, 0)
}

// The renewal commit of the crash table. The customer presses again once the fault is lifted.
func TestRenewCommitFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault func(*Issuer, *testkit.Commits)
		took  int // renewals after the first press; after the second one there is one
	}{
		"before it took effect": {func(_ *Issuer, f *testkit.Commits) { f.Script(testkit.Failed) }, 0},
		"after it took effect":  {func(_ *Issuer, f *testkit.Commits) { f.Script(testkit.FailedButTook) }, 1},
		"at its last statement": {func(s *Issuer, _ *testkit.Commits) {
			publish, calls := s.Publish, 0
			s.Publish = func(ctx context.Context, tx *portal.Tx, rows ...portal.IDRange) error {
				if calls++; calls == 2 {
					return testkit.ErrFault
				}
				return publish(ctx, tx, rows...)
			}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := database(t)
			old := w.emailed(testDeliver)
			w.at(time.Hour)
			faults := &testkit.Commits{}
			issuer := w.newIssuer(w.workerPool(faults))
			issuer.Now = w.issuer.Now
			c.fault(issuer, faults)
			if renewed, err := issuer.Renew(w.ctx, old.ID, testVisitor); renewed || err == nil {
				t.Errorf("renewed %t, %v, though the commit failed", renewed, err)
			}
			w.wantRenewals(old.ID, c.took)
			if renewed, err := issuer.Renew(w.ctx, old.ID, testVisitor); renewed != (c.took == 0) || err != nil {
				t.Errorf("pressed again: renewed %t, %v", renewed, err)
			}
			w.wantRenewals(old.ID, 1)
		})
	}
}

// The new URL is in the new link's link.issued, and in nothing that tells of the expired link.
func TestInvariant7RenewalIsPublished(t *testing.T) {
	t.Parallel()
	w := setup(t)
	old := w.emailed(testDeliver)
	w.at(time.Hour)
	if !w.renew(old.ID) {
		t.Fatal("not renewed")
	}
	renewal := w.renewals(old.ID)[0]
	issued, err := w.issuer.Issued(renewal)
	must(t, err)
	rows := w.eventRows()
	w.wantIDsOnly()
	w.startRiver()
	events := w.events(3)
	if !slices.Equal(sortedKeys(rows), sortedKeys(events)) {
		t.Errorf("published %v, want %v", sortedKeys(events), sortedKeys(rows))
	}
	for id, e := range events {
		switch row := rows[id]; {
		case row.Kind == portal.LinkRenewed:
			checkEvent(t, e, row, old, map[string]any{"new_link_id": renewal.ID.String()})
		case row.LinkID == renewal.ID:
			checkEvent(t, e, row, renewal, map[string]any{"request_id": renewal.RequestID, "link_id": renewal.ID.String(),
				"url": issued.URL, "expires_at": renewal.ExpiresAt.UTC().Format(time.RFC3339Nano)})
		}
	}
}

// A helpdesk that looks the old link up is led to the new one.
func TestServiceGetOfARenewedLink(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.serveLinks()
	old := w.emailed(testDeliver)
	w.at(time.Hour)
	if !w.renew(old.ID) {
		t.Fatal("not renewed")
	}
	renewal := w.renewals(old.ID)[0]
	var got Status
	body, _ := json.Marshal(GetRequest{ID: old.RequestID})
	answer := w.answer(GetSubject, body, &got)
	if len(got.Timeline) != 2 || got.Timeline[1].Kind != portal.LinkRenewed || got.Timeline[1].Detail["new_link_id"] != renewal.ID.String() {
		t.Errorf("timeline %+v", got.Timeline)
	}
	for _, personal := range []string{"jo@example.com", "203.0.113.7"} {
		if strings.Contains(answer, personal) {
			t.Errorf("get gives %s away", personal)
		}
	}
	body, _ = json.Marshal(GetRequest{ID: renewal.RequestID})
	w.answer(GetSubject, body, &got)
	if got.Link.LinkID != renewal.ID {
		t.Errorf("a renewal's request id finds %+v", got.Link)
	}
}
