package portal

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

func campaign(name string, changes ...func(*Link)) func(*Link) {
	return func(l *Link) {
		l.Campaign = name
		for _, change := range changes {
			change(l)
		}
	}
}

func source(name string) func(*Link) { return func(l *Link) { l.Source = name } }

func (b *bundle) livesFor(d time.Duration) func(*Link) {
	return func(l *Link) { l.ExpiresAt = l.CreatedAt.Add(d) }
}

// happens appends a row to a link's audit.
func (b *bundle) happens(l *Link, kind Kind, detail map[string]any) {
	b.t.Helper()
	if err := b.insert(AuditEvent{ID: uuid.Must(uuid.NewV7()), At: b.clock.now(), Kind: kind, LinkID: l.ID, RequestID: l.RequestID, Detail: detail}); err != nil {
		b.t.Fatal(err)
	}
}

// presses makes a session of a link, or the outcome that cause says.
func (b *bundle) presses(l *Link, cause *SessionError) {
	b.t.Helper()
	click := uuid.Must(uuid.NewV7())
	_, err := b.store.StartClick(b.t.Context(), l.ID, l.KeyID, click, func(*Link) map[string]any { return nil }, nil)
	if err == nil {
		err = b.store.EndClick(b.t.Context(), l, click, Session{ID: "bps_1"}, cause)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// Each thing happens to a link of the campaign, most of them twice, and to one of another campaign and one of
// none.
func (b *bundle) makeCampaign() (begin time.Time) {
	b.t.Helper()
	begin = b.clock.now()
	b.link(campaign("c", b.livesFor(2*time.Hour))) // nobody has looked at it
	read, scanned, paid := b.link(campaign("c")), b.link(campaign("c")), b.link(campaign("c"))
	usedUp := b.link(campaign("c", maxSessions(1)))
	b.clock.advance(time.Minute)
	expired, gone := b.link(campaign("c", b.livesFor(time.Second))), b.link(campaign("c", b.livesFor(time.Second)))
	revoked := b.link(campaign("c"))
	for _, l := range []*Link{read, b.link(campaign("other")), b.link(nil)} {
		b.happens(l, LinkOpened, map[string]any{"verdict": "person"})
		b.happens(l, LinkOpened, map[string]any{"verdict": "person"})
		b.happens(l, LinkOpened, map[string]any{"verdict": "scanner"})
		b.happens(l, LinkDelivered, nil) // by mail
		b.happens(l, LinkDelivered, nil) // and by webhook
		b.presses(l, &SessionError{Code: CodeCustomerGone})
		b.presses(l, &SessionError{Code: CodeCustomerGone})
	}
	b.happens(scanned, LinkOpened, map[string]any{"verdict": "scanner"})
	b.happens(scanned, LinkDelivered, nil)
	b.happens(scanned, LinkDeliveryFailed, nil)
	b.happens(expired, LinkDeliveryFailed, nil)
	b.happens(paid, LinkOpened, map[string]any{"verdict": "person"})
	for range 3 {
		b.presses(paid, nil)
	}
	b.presses(usedUp, nil)
	b.clock.advance(time.Minute)
	renewal := b.link(campaign("c"))
	if _, err := b.owner.Exec(b.t.Context(), `UPDATE links SET renewal_of = $1 WHERE id = $2`, expired.ID, renewal.ID); err != nil {
		b.t.Fatal(err)
	}
	b.happens(expired, LinkRenewed, nil)
	for _, l := range []*Link{revoked, gone} {
		if _, err := b.store.Revoke(b.t.Context(), Revocation{LinkID: l.ID.String(), By: "jo"}); err != nil {
			b.t.Fatal(err)
		}
	}
	return begin
}

func TestCampaignCountsWhatBecameOfItsLinks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	begin := b.makeCampaign()
	want := &Campaign{Campaign: "c", Issued: 9, Renewals: 1, Delivered: 2, DeliveryFailed: 2, Opened: 2, Clicked: 3, Sessions: 4, SessionsFailed: 2,
		Live: 5, UsedUp: 1, Expired: 1, Revoked: 2, FirstCreatedAt: begin, LastCreatedAt: begin.Add(2 * time.Minute),
		FirstExpiresAt: begin.Add(time.Minute + time.Second), LastExpiresAt: begin.Add(2 * time.Hour)}
	got, err := b.store.Campaign(t.Context(), "c")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v (%v), want\n%+v", got, err, want)
	}
	b.clock.advance(2 * time.Hour) // all but the revoked ones expire, the one that is used up as well
	got, err = b.store.Campaign(t.Context(), "c")
	if err != nil || got.Live != 0 || got.UsedUp != 0 || got.Expired != 7 || got.Revoked != 2 {
		t.Errorf("later: %+v (%v)", got, err)
	}
	for _, name := range []string{"", "C", "nobody", "%", "' OR true --"} {
		if _, err := b.store.Campaign(t.Context(), name); !errors.Is(err, ErrNoCampaign) {
			t.Errorf("campaign %q: %v, want ErrNoCampaign", name, err)
		}
	}
}

func TestCampaignsAreListedByTheirNewestLink(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if list, err := b.store.Campaigns(t.Context(), 50); err != nil || list.Total != 0 || len(list.Campaigns) != 0 || list.Campaigns == nil {
		t.Errorf("of none: %+v (%v)", list, err)
	}
	begin := b.clock.now()
	b.link(nil)
	for i, name := range []string{"m", "z", "a", "m", "Z", "q"} { // m is the third newest
		b.link(campaign(name, source(fmt.Sprintf("s%d", 9-i))))
		b.clock.advance(time.Minute)
	}
	b.link(campaign("m", source("s9"), b.livesFor(time.Second)))
	b.clock.advance(time.Second)
	names := func(limit int) (names []string) {
		t.Helper()
		list, err := b.store.Campaigns(t.Context(), limit)
		if err != nil || list.Total != 5 {
			t.Fatalf("%+v (%v)", list, err)
		}
		for _, c := range list.Campaigns {
			names = append(names, c.Campaign)
		}
		return names
	}
	if got := names(5); !slices.Equal(got, []string{"m", "q", "Z", "a", "z"}) {
		t.Errorf("listed %v", got)
	}
	if got := names(2); !slices.Equal(got, []string{"m", "q"}) {
		t.Errorf("the first two are %v", got)
	}
	// A click moves a row: where it lies says no more when it was made.
	if _, err := b.owner.Exec(t.Context(), `UPDATE links SET stripe_customer = 'cus_x' WHERE campaign = 'z'`); err != nil {
		t.Fatal(err)
	}
	if got := names(4); !slices.Equal(got, []string{"m", "q", "Z", "a"}) {
		t.Errorf("the first four are %v", got)
	}
	list, err := b.store.Campaigns(t.Context(), 1)
	want := []CampaignSummary{{Campaign: "m", Sources: []string{"s6", "s9"}, Links: 3, Live: 2, FirstCreatedAt: begin, LastCreatedAt: begin.Add(6 * time.Minute)}}
	if err != nil || !reflect.DeepEqual(list.Campaigns, want) {
		t.Errorf("%+v (%v), want %+v", list, err, want)
	}
	for _, limit := range []int{-1, 0, MostCampaigns + 1} {
		if _, err := b.store.Campaigns(t.Context(), limit); !errors.Is(err, ErrCampaignLimit) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

// Neither looks through all links or all of the audit, whatever is known of the tables' sizes.
func TestCampaignsAreFoundByKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, q := range []struct {
		sql     string
		args    []any
		lookups map[string]int
	}{
		{countCampaign, []any{"c", b.clock.now()}, map[string]int{"Index Scan using links_campaign_idx": 1, "_link_id_idx on audit_events_": 5}},
		{listCampaigns, []any{50, b.clock.now()}, map[string]int{"Index Only Scan using links_campaign_idx": 2,
			"Index Scan Backward using links_campaign_idx": 1, "Index Scan using links_campaign_idx": 1, "HashAggregate": 1}},
	} {
		var plan []string
		err := b.store.count(t.Context(), func(tx pgx.Tx) error {
			rows, err := tx.Query(t.Context(), "EXPLAIN (ANALYZE, TIMING OFF) "+q.sql, q.args...)
			if err != nil {
				return err
			}
			plan, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join(plan, "\n")
		for lookup, n := range q.lookups {
			if strings.Count(text, lookup) != n {
				t.Errorf("%d of %s, want %d:\n%s", strings.Count(text, lookup), lookup, n, text)
			}
		}
		if strings.Contains(text, "Seq Scan") || strings.Contains(text, "Bitmap") {
			t.Error(text)
		}
	}
}

// What takes too long is ended, and who asks meanwhile is told why there is no answer.
func TestCountingIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.link(campaign("c"))
	lock, err := b.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), `LOCK TABLE audit_events`); err != nil {
		t.Fatal(err)
	}
	b.store.countTime = 10 * time.Millisecond
	if _, err := b.store.Campaign(t.Context(), "c"); !errors.Is(err, ErrCountTooLong) {
		t.Errorf("a query that does not end: %v", err)
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	b.store.countTime = time.Minute
	b.store.counting <- struct{}{}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.store.Campaigns(ended, 50); !errors.Is(err, ErrCounting) {
		t.Errorf("beside another: %v", err)
	}
	<-b.store.counting
	if _, err := b.store.Campaign(t.Context(), "c"); err != nil {
		t.Errorf("then: %v", err)
	}
}
