package jobs

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/internal/audit"
	"latchkey/internal/contract"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// A worker seals what happens, and tells the head to whoever reads events: the chain goes through it.
func TestSealsAreTold(t *testing.T) {
	t.Parallel()
	target := newReceiver(t)
	w := setup(t).withWebhooks(Subscription{URL: target.URL})
	w.sealing()
	w.issue(request("r1"))
	w.startRiver()
	w.eventually("a seal is told", func() bool {
		events, _ := target.got()
		return slices.ContainsFunc(events, func(e notify.Event) bool { return e.Kind() == string(portal.AuditSealed) })
	})
	var told notify.Event
	for _, e := range w.events(2) {
		if e.Kind() == string(portal.AuditSealed) {
			told = e
		}
	}
	contract.CheckEvent(t, contract.Schema(t, "event.schema.json"), encodeJSON(t, &told))
	var data struct {
		Head   string `json:"head"`
		LinkID string `json:"link_id"`
	}
	must(t, json.Unmarshal(told.Data, &data))
	head, err := audit.ParseHead(data.Head)
	must(t, err)
	v, err := audit.Verify(w.ctx, w.pool, audit.Head{}, head, nil)
	if err != nil || v.Rows < 1 || told.Subject != "" || data.LinkID != "" {
		t.Errorf("%+v, %v, %+v", v, err, told)
	}
}

// A subscription that is disabled by what is about no link is told without one.
func TestWebhookDisabledBySealsAlone(t *testing.T) {
	t.Parallel()
	target := newReceiver(t, 410)
	w := setup(t).withWebhooks(Subscription{URL: target.URL})
	w.sealing()
	w.issue(request("r1"))
	sealer := &audit.Sealer{Pool: w.pool, Publish: PublishByJob}
	if _, err := sealer.Seal(w.ctx); err != nil {
		t.Fatal(err)
	}
	rows, err := portal.LoadAudit(w.ctx, w.owner, `kind = 'audit.sealed'`)
	must(t, err)
	worker := w.webhookWorker()
	worker.subscriptions = []Subscription{{URL: target.URL}}
	job := w.webhookJob(t, w.issue(request("r1")), 1)
	job.Args = worker.subscriptions[0].args(rows[0].ID)
	_ = worker.Work(w.ctx, job) // cancelled
	if w.count(`SELECT count(*) FROM audit_events WHERE kind = 'webhook.disabled' AND link_id IS NULL`) != 1 {
		t.Error("no webhook.disabled")
	}
	w.checkEvents()
}

// The id of a request whose link was deleted makes no second link.
func TestSpentRequestIDs(t *testing.T) {
	t.Parallel()
	w := setup(t)
	link := w.issue(request("r1"))
	w.exec(`UPDATE links SET created_at = created_at - interval '3 days', expires_at = now() - interval '2 days'`)
	aged, err := audit.Retention{Links: 24 * time.Hour}.Age(w.ctx, w.pool)
	if err != nil || aged.Links != 1 || w.count(`SELECT count(*) FROM links WHERE id = $1`, link.ID) != 0 {
		t.Fatalf("%+v, %v", aged, err)
	}
	again, other := newTestItem(request("r1")), newTestItem(request("r2"))
	must(t, w.issuer.Issue(w.ctx, []*Item{again, other}))
	if again.Rejection == nil || again.Rejection.Code != IDConflict || again.Link != nil || other.Link == nil {
		t.Errorf("%+v, %+v", again, other)
	}
}

// After an erasure nothing of a customer's visitors and deliveries is left in any table, and the proof holds.
func TestErasedEverywhere(t *testing.T) {
	t.Parallel()
	server := newMailServer(t)
	w := setup(t).withEmail(server.addr, time.Now)
	link := w.issue(emailRequest("r1", "Jo.Doe@example.net"))
	must(t, w.open(link, &portal.Visitor{IP: netip.MustParseAddr("203.0.113.77"), UserAgent: "Erasable/1.0"}))
	w.startRiver()
	w.eventually("the mail is out", func() bool {
		return w.count(`SELECT count(*) FROM audit_events WHERE kind = 'link.delivered'`) == 1
	})
	// The amount with its sign: "49.00" alone is in the rows of every minute's 49th second.
	personal := []string{"Jo.Doe@example.net", "€ 49.00", "203.0.113.77", "Erasable"}
	held := func() (where []string) {
		for table, rows := range w.everyRow() {
			for _, p := range personal {
				if strings.Contains(rows, p) {
					where = append(where, table+" holds "+p)
				}
			}
		}
		return where
	}
	if before := held(); len(before) != len(personal) {
		t.Fatalf("not all is there to be erased: %q", before)
	}
	w.sealing()
	if _, err := (&audit.Sealer{Pool: w.pool, Publish: PublishByJob}).Seal(w.ctx); err != nil && !errors.Is(err, audit.ErrSealing) {
		t.Fatal(err)
	}
	_, err := audit.Erase(w.ctx, w.owner, audit.Erasure{Customer: link.Customer, By: "jo"})
	must(t, err)
	if left := held(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if _, err := audit.Verify(w.ctx, w.pool, audit.Head{}, audit.Head{}, nil); err != nil {
		t.Error(err)
	}
	// The link lives on; it is what its deliveries were that is gone.
	links, err := portal.LoadLinks(w.ctx, w.pool, `id = $1`, link.ID)
	if err != nil || len(links) != 1 || links[0].Renewable {
		t.Errorf("%+v, %v", links, err)
	}
	again := newTestItem(emailRequest("r1", "Jo.Doe@example.net"))
	must(t, w.issuer.Issue(w.ctx, []*Item{again}))
	if again.Rejection == nil || again.Rejection.Code != IDConflict {
		t.Errorf("the same request again: %+v", again)
	}
}

// A delivery that waits while its customer is erased ends with an outcome: who asked for it hears.
func TestErasedDeliveryHasAnOutcome(t *testing.T) {
	t.Parallel()
	w := setup(t).withWebhooks()
	target := newReceiver(t)
	link := w.issue(webhookRequest("r1", target.URL))
	_, err := audit.Erase(w.ctx, w.owner, audit.Erasure{Customer: link.Customer, By: "jo"})
	must(t, err)
	must(t, w.webhookWorker().Work(w.ctx, w.webhookJob(t, link, 1)))
	w.wantOutcome(link.ID, portal.LinkDeliveryFailed, `{"attempts":1,"channel":"webhook","error":"what it needed was erased before it could be delivered"}`)
	if posts, _ := target.got(); len(posts) != 0 {
		t.Errorf("%d posts", len(posts))
	}
}
