package jobs

import (
	"strings"
	"testing"
	"time"

	"latchkey/internal/portal"
)

// twoKeys has the world's processes sign by key 8, and verify by 7 too.
func (w *world) twoKeys() {
	w.t.Helper()
	keys, err := portal.ParseKeys(portal.FormatKey(8, [32]byte{8}) + "," + portal.FormatKey(7, [32]byte{1, 2, 3}))
	must(w.t, err)
	w.keys.Replace(keys)
}

func (w *world) retire(key byte) {
	w.t.Helper()
	_, err := portal.NewStore(w.owner, w.river.Publish, time.Now).RetireKey(w.ctx, key, "jo", "")
	must(w.t, err)
}

// keyOf is the key of a request's link, by its row and by its URL.
func (w *world) keyOf(id string) int {
	w.t.Helper()
	links, err := portal.LoadLinks(w.ctx, w.owner, `request_id = $1`, id)
	must(w.t, err)
	if len(links) != 1 {
		w.t.Fatalf("request %s has %d links", id, len(links))
	}
	issued, err := w.issuer.Issued(links[0])
	must(w.t, err)
	if got, _, err := w.keys.Verify(issued.URL[strings.LastIndex(issued.URL, "/")+1:]); err != nil || got != links[0].ID {
		w.t.Errorf("the URL of %s names %s (%v)", id, got, err)
	}
	return int(links[0].KeyID)
}

// A process whose first key is retired signs by the next one, in a batch as for one who waits, and no request is
// rejected or lost for it.
func TestARetiredKeyIsPassedOver(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.twoKeys()
	w.serveLinks()
	w.issue(request("before"))
	w.retire(8)
	items := []*Item{newTestItem(request("a")), newTestItem(request("before")), newTestItem(request("a")), newTestItem([]byte("bad")), newTestItem(request("b"))}
	must(t, w.issuer.Issue(w.ctx, items))
	w.wantTotal(total{links: 3, issued: 3, duplicates: 2, rejected: 1})
	var created IssuedData
	w.answer(CreateSubject, request("c"), &created)
	for id, want := range map[string]int{"before": 8, "a": 7, "b": 7, "c": 7} {
		if got := w.keyOf(id); got != want {
			t.Errorf("%s is signed by key %d, want %d", id, got, want)
		}
	}
	if log := w.logs.String(); strings.Count(log, "the first key of LINK_KEYS is retired") != 1 {
		t.Errorf("it was not said once:\n%s", log)
	}
}

// The first that a process hears of it can be somebody who waits, or a renewal.
func TestARetiredKeyIsPassedOverByCreateAndRenew(t *testing.T) {
	t.Parallel()
	t.Run("create", func(t *testing.T) {
		t.Parallel()
		w := setup(t)
		w.twoKeys()
		w.serveLinks()
		w.retire(8)
		var created IssuedData
		w.answer(CreateSubject, request("c"), &created)
		if got := w.keyOf("c"); got != 7 {
			t.Errorf("signed by key %d", got)
		}
	})
	t.Run("renew", func(t *testing.T) {
		t.Parallel()
		w := database(t)
		old := w.emailed(testDeliver)
		w.twoKeys()
		w.retire(8)
		w.at(time.Hour)
		if !w.renew(old.ID) {
			t.Fatal("not renewed")
		}
		if got := w.renewals(old.ID)[0].KeyID; got != 7 {
			t.Errorf("signed by key %d", got)
		}
	})
}

// Requests wait, unharmed, until there is a key to sign by.
func TestWithoutAKeyToSignByRequestsWait(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.retire(7)
	stop := w.startIntake(w.intake)
	w.publish("dunning", request("r1"))
	w.eventually("the refusal to be logged", func() bool { return strings.Contains(w.logs.String(), "every key of LINK_KEYS is retired") })
	stop()
	w.wantTotal(total{})
	w.twoKeys()
	w.startIntake(NewIntake(w.js, w.issuer, w.log, nil))
	w.eventually("the link to be made", func() bool { return w.total() == total{links: 1, issued: 1} })
	if got := w.keyOf("r1"); got != 8 {
		t.Errorf("signed by key %d", got)
	}
}

// What an expired link of a retired key asks for, whoever has the key could ask for.
func TestLinksOfARetiredKeyAreNotRenewed(t *testing.T) {
	t.Parallel()
	w := database(t)
	old := w.emailed(testDeliver)
	w.twoKeys()
	w.retire(7)
	w.at(time.Hour)
	if w.renew(old.ID) {
		t.Error("renewed")
	}
}

// Nor is a link of another key that was renewed from one, or to one, of the retired key: as with a revoked one.
func TestAChainEndsWithARetiredKey(t *testing.T) {
	t.Parallel()
	for about, retired := range map[string]byte{"of the first link": 7, "of its renewal": 8} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			w := database(t)
			old := w.emailed(testDeliver)
			w.twoKeys()
			w.at(time.Hour)
			if !w.renew(old.ID) {
				t.Fatal("not renewed")
			}
			renewal := w.renewals(old.ID)[0]
			// As it is before Revoke has come to the links.
			w.exec(`INSERT INTO retired_keys (id, retired_at, retired_by) VALUES ($1, now(), 'jo')`, int(retired))
			w.at(48 * time.Hour)
			for _, l := range []*portal.Link{old, renewal} {
				if w.renew(l.ID) {
					t.Errorf("%s, of key %d: renewed", l.RequestID, l.KeyID)
				}
			}
		})
	}
}
