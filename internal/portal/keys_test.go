package portal

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// otherKey is a key beside that of testKeys. Its id is 0, which is one like any other.
const otherKey = "0:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// ownerStore is the store of who owns the schema, and may retire keys.
func (b *bundle) ownerStore() *Store { return NewStore(b.owner, publish, b.clock.now) }

func (b *bundle) ofKey(id byte) *Link { return b.link(func(l *Link) { l.KeyID = id }) }

// retire retires key 0.
func (b *bundle) retire() int {
	b.t.Helper()
	n, err := b.ownerStore().RetireKey(b.t.Context(), 0, "jo", "leaked")
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// insertUnder0 makes a link of key 0 in a transaction.
func (b *bundle) insertUnder0(db Querier, like *Link) error {
	rows, err := db.Query(b.t.Context(), `INSERT INTO links (id, request_id, request_hash, published_at, source, stripe_customer, session, key_id, created_at, expires_at)
		SELECT gen_random_uuid(), request_id || '-2', request_hash, published_at, source, stripe_customer, session, 0, created_at, expires_at FROM links WHERE id = $1`, like.ID)
	if err == nil {
		rows.Close()
		err = rows.Err()
	}
	return err
}

func TestARetiredKeySignsAndServesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.keys.Replace(parseKeys(t, testKeys+","+otherKey))
	mine, other, expired := b.ofKey(0), b.ofKey(7), b.link(func(l *Link) { l.KeyID, l.ExpiresAt = 0, b.clock.now().Add(time.Second) })
	b.clock.advance(time.Second)
	for _, want := range []int{1, 0} { // the second time there is nothing left to end
		if n := b.retire(); n != want {
			t.Errorf("%d links were revoked, want %d", n, want)
		}
	}
	if rows := b.audit(mine); len(rows) != 1 || rows[0].Kind != LinkRevoked || rows[0].Detail["by"] != "jo" || rows[0].Detail["reason"] != "leaked" {
		t.Errorf("audit %v", rows)
	}
	if n := b.number(`SELECT count(*) FROM audit_events WHERE kind = 'key.retired' AND link_id IS NULL AND detail = '{"key_id": 0, "by": "jo", "reason": "leaked"}'`); n != 1 {
		t.Errorf("%d rows of key.retired", n)
	}
	if n := b.number(`SELECT count(*) FROM published`); n != 1 {
		t.Errorf("%d publish jobs", n)
	}
	b.post(mine).want(t, 410, pageRevoked)
	b.get(expired).want(t, 410, pageRevoked) // and is not renewed: whoever has the key could ask
	b.post(other).want(t, 303, "")
	err := b.insertUnder0(b.owner, mine)
	if !RefusesKey(err) || RefusesValue(err) { // a request refused for its value would be rejected, and lost
		t.Errorf("a link under the retired key: %v", err)
	}
	if err := b.insertUnder0(b.owner, &Link{ID: newClickID()}); err != nil {
		t.Errorf("no link at all under the retired key: %v", err)
	}
	if ids, err := RetiredKeys(t.Context(), b.pool); err != nil || !slices.Equal(ids, []byte{0}) {
		t.Errorf("retired keys %v, %v", ids, err)
	}
	b.checkBooks()
}

// A key signs for its own links only. Who has found one that stays in LINK_KEYS, to verify what is out, opens no
// link of the key that came after it, and leaves no trace on it.
func TestAKeyOpensNoLinkOfAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.keys.Replace(parseKeys(t, testKeys+","+otherKey))
	renewed := false
	b.click.Renew = func(context.Context, uuid.UUID, *Visitor) (bool, error) { renewed = true; return true, nil }
	l := b.ofKey(7)
	forged, err := b.keys.Sign(0, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	end := b.clock.now().Add(placeLife)
	refused := func() {
		t.Helper()
		for _, method := range []string{"GET", "HEAD", "POST"} {
			b.do(method, "/l/"+forged).want(t, 404, "")
		}
		b.do("POST", "/l/"+forged+"/renew").want(t, 404, pageNotFound)
		for _, key := range []byte{0, 7} {
			b.do("GET", "/l/"+forged+"/wait/"+b.keys.SignPlace(key, l.ID, newClickID(), end)).want(t, 404, pageNotFound)
		}
		b.stripe.breaker.Open()
		b.do("POST", "/l/"+forged).want(t, 404, pageNotFound)
		b.stripe.breaker.Close()
	}
	refused()
	b.clock.advance(time.Hour)
	refused() // nor when it has expired
	if got := b.kinds(l); got != "" || renewed || len(b.sim.Sessions()) > 0 {
		t.Errorf("audit %q, renewed %t, Stripe was asked %d times", got, renewed, len(b.sim.Sessions()))
	}
	// The place of a key other than the link's is what a mail gateway appended: the page with the button.
	own := b.ofKey(7)
	b.do("GET", "/l/"+b.token(own)+"/wait/"+b.keys.SignPlace(0, own.ID, newClickID(), b.clock.now().Add(placeLife))).want(t, 200, pageConfirm)
	b.post(own).want(t, 303, "")
	b.checkBooks()
}

// In the transaction that it shares with the link's own press, a press by another key takes nothing away.
func TestAPressByAnotherKeyTakesNoTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(nil)
	starts := []*clickStart{{id: l.ID, keyID: 0, click: newClickID(), look: noDetail}, {id: l.ID, keyID: 7, click: newClickID(), look: noDetail}}
	if err := b.store.startClicks(t.Context(), starts); err != nil {
		t.Fatal(err)
	}
	if forged, own := starts[0], starts[1]; forged.started || forged.link != nil || !own.started || own.link == nil {
		t.Errorf("by another key: started %t, link %v; by its own: started %t, link %v", forged.started, forged.link, own.started, own.link)
	}
	if got := b.kinds(l); got != "click.started" {
		t.Errorf("audit %s", got)
	}
}

// Who tries a key on links of others is limited as a forger is.
func TestTokensByAnotherKeyAreLimited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.keys.Replace(parseKeys(t, testKeys+","+otherKey))
	for range forgedBurst {
		forged, _ := b.keys.Sign(0, b.ofKey(7).ID)
		b.do("GET", "/l/"+forged).want(t, 404, pageNotFound)
	}
	l := b.ofKey(7)
	forged, _ := b.keys.Sign(0, l.ID)
	b.do("GET", "/l/"+forged).want(t, 429, pageTooManyForged)
	b.get(l).want(t, 200, pageConfirm)
}

// From the commit on that retires a key its links are dead, though none of them was revoked yet: the process died
// there. Doing it again revokes them.
func TestRetireAfterACrash(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.keys.Replace(parseKeys(t, testKeys+","+otherKey))
	l := b.ofKey(0)
	b.grantRetire()
	b.commits.Script(fine, failed)
	if n, err := b.store.RetireKey(t.Context(), 0, "jo", ""); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	if n := b.number(`SELECT count(*) FROM links WHERE revoked_at IS NOT NULL`); n != 0 {
		t.Fatalf("%d links were revoked by a commit that failed", n)
	}
	b.post(l).want(t, 410, pageRevoked)
	b.on(b.replica(), "POST", "/l/"+b.token(l)).want(t, 410, pageRevoked)
	b.commits.Script(failedButTook)
	if _, err := b.store.RetireKey(t.Context(), 0, "jo", ""); err == nil {
		t.Error("a lost answer is taken for success")
	}
	if n, err := b.store.RetireKey(t.Context(), 0, "jo", ""); n != 1 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	b.checkBooks()
}

// grantRetire lets the worker's role do what only the owner may, for the sake of its pool's scripted commits.
func (b *bundle) grantRetire() {
	b.t.Helper()
	if _, err := b.owner.Exec(b.t.Context(), `GRANT INSERT ON retired_keys TO latchkey_app; ALTER TABLE audit_events DISABLE TRIGGER audit_events_by_owner`); err != nil {
		b.t.Fatal(err)
	}
}

// A link that was being made when its key was retired is revoked with the others, and no other one comes after.
func TestRetireWaitsForLinksThatAreBeingMade(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.keys.Replace(parseKeys(t, testKeys+","+otherKey))
	l := b.ofKey(0)
	tx, err := b.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if err := b.insertUnder0(tx, l); err != nil {
		t.Fatal(err)
	}
	type result struct {
		n   int
		err error
	}
	retired := make(chan result, 1)
	go func() {
		n, err := b.ownerStore().RetireKey(context.WithoutCancel(t.Context()), 0, "jo", "")
		retired <- result{n, err}
	}()
	for b.number(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`) == 0 {
		if t.Context().Err() != nil || len(retired) > 0 {
			t.Fatal("the key was retired while a link of it was being made")
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-retired; got.n != 2 || got.err != nil {
		t.Errorf("%d links were revoked (%v), want 2", got.n, got.err)
	}
	if n := b.number(`SELECT count(*) FROM links WHERE revoked_at IS NULL`); n != 0 {
		t.Errorf("%d links live", n)
	}
}

// Who makes links waits behind who retires a key: not for ever, where a transaction does not end.
func TestRetireGivesUpOnATransactionThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.ofKey(0)
	tx, err := b.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if err := b.insertUnder0(tx, l); err != nil {
		t.Fatal(err)
	}
	if n, err := b.ownerStore().RetireKey(t.Context(), 0, "jo", ""); n != 0 || !errors.Is(err, ErrRetireBusy) {
		t.Errorf("%d, %v", n, err)
	}
	if n := b.number(`SELECT count(*) FROM retired_keys`) + b.number(`SELECT count(*) FROM audit_events`); n != 0 {
		t.Error("something was done")
	}
}

func TestRetireErrors(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.ownerStore().RetireKey(t.Context(), 0, "", ""); !errors.Is(err, ErrRevocation) {
		t.Errorf("by nobody: %v", err)
	}
	if _, err := b.store.RetireKey(t.Context(), 0, "jo", ""); !errors.Is(err, ErrNotOwner) {
		t.Errorf("by the worker's role: %v", err)
	}
	if n := b.number(`SELECT count(*) FROM retired_keys`); n != 0 {
		t.Errorf("%d keys are retired", n)
	}
}

func TestKeyUses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := b.clock.now()
	at := func(d time.Duration) *time.Time { at := now.Add(d); return &at }
	link := func(key byte, life time.Duration) *Link {
		return b.link(func(l *Link) { l.KeyID, l.ExpiresAt = key, l.CreatedAt.Add(life) })
	}
	revoked := link(7, 9*time.Hour)
	link(7, 2*time.Hour)
	link(7, time.Hour)
	link(7, time.Minute)
	link(9, time.Minute)
	link(0, time.Hour)
	if _, err := b.store.Revoke(t.Context(), Revocation{LinkID: revoked.ID.String(), By: "jo"}); err != nil {
		t.Fatal(err)
	}
	b.retire()
	b.clock.advance(time.Minute)
	for _, db := range map[string]Querier{"worker": b.pool, "owner": b.owner} {
		uses, err := KeyUses(t.Context(), db, b.clock.now())
		for i := range uses {
			for _, at := range []*time.Time{uses[i].LastExpires, uses[i].RetiredAt} {
				if at != nil {
					*at = at.UTC()
				}
			}
		}
		want := []KeyUse{{ID: 0, Issued: 1, RetiredAt: at(0), RetiredBy: "jo", Reason: "leaked"}, {ID: 7, Live: 2, LastExpires: at(2 * time.Hour), Issued: 4}, {ID: 9, Issued: 1}}
		if err != nil || !reflect.DeepEqual(uses, want) {
			t.Errorf("%+v (%v)\nwant %+v", uses, err, want)
		}
	}
	for want, ids := range map[int][]byte{2: {7, 9}, 0: {0, 9, 200}} {
		if n, err := LiveOf(t.Context(), b.pool, ids, b.clock.now()); n != want || err != nil {
			t.Errorf("live of %v: %d, %v", ids, n, err)
		}
	}
	if _, err := b.owner.Exec(t.Context(), `INSERT INTO retired_keys (id, retired_at, retired_by) VALUES (7, now(), 'jo')`); err != nil { // its links are not revoked yet
		t.Fatal(err)
	}
	if n, err := LiveOf(t.Context(), b.pool, []byte{7}, b.clock.now()); n != 0 || err != nil {
		t.Errorf("live of a retired key: %d, %v", n, err)
	}
}

func TestKeyringChangesWhileItIsUsed(t *testing.T) {
	t.Parallel()
	const one, two = testKeys, otherKey
	ring := parseKeys(t, one)
	id := newClickID()
	before, err := ring.Sign(7, id)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		change func()
		signer byte
		ids    []byte
	}{
		{func() { ring.Replace(parseKeys(t, one+","+two)) }, 7, []byte{7, 0}}, // it can verify what the next step signs
		{func() { ring.Replace(parseKeys(t, two+","+one)) }, 0, []byte{0, 7}},
		{func() { ring.Retire(0) }, 7, []byte{0, 7}},
		{func() { ring.Replace(parseKeys(t, two+","+one)) }, 7, []byte{0, 7}}, // what was retired stays so
		{func() { ring.Replace(parseKeys(t, two)) }, 0, []byte{0}},            // there is no other; the database refuses it
		{func() { ring.Replace(parseKeys(t, one)) }, 7, []byte{7}},
	} {
		step.change()
		if ring.SignerID() != step.signer || !slices.Equal(ring.IDs(), step.ids) {
			t.Errorf("step %d: %v", i, ring)
		}
		if got, _, err := ring.Verify(before); slices.Contains(step.ids, 7) != (err == nil && got == id) {
			t.Errorf("step %d: the token of before: %s, %v", i, got, err)
		}
		place := ring.SignPlace(7, id, id, time.Now().Add(time.Hour))
		if got, _, err := ring.VerifyPlace(place, 7, id, time.Now()); slices.Contains(step.ids, 7) != (err == nil && got == id) {
			t.Errorf("step %d: a place of the link: %s, %v", i, got, err)
		}
		if _, _, err := ring.VerifyPlace(ring.SignPlace(0, id, id, time.Now().Add(time.Hour)), 0, id, time.Now()); (i < 2) != (err == nil) {
			t.Errorf("step %d: a place under the key that is retired in step 2: %v", i, err)
		}
	}
	if !ring.Retire(9) || ring.Retire(7) {
		t.Error("Retire does not tell whether a key is left")
	}
}

func TestKeyringTellsWhichKeysItLost(t *testing.T) {
	t.Parallel()
	old := parseKeys(t, testKeys+","+otherKey)
	for text, want := range map[string][]byte{
		otherKey + "," + testKeys: nil,
		testKeys:                  {0},
		"7:" + otherKey[2:]:       {7, 0}, // another key under the same id
	} {
		if got := parseKeys(t, text).Lost(old); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

// A click that is under way while the keys change is served by those of before or of after, never by half of each.
func TestKeyringIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	ring := parseKeys(t, testKeys)
	one, two := parseKeys(t, testKeys+","+otherKey), parseKeys(t, otherKey+","+testKeys)
	id := newClickID()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				token, err := ring.Sign(ring.SignerID(), id)
				if err == nil {
					_, _, err = ring.Verify(token)
				}
				if err == nil {
					_, _, err = ring.VerifyPlace(ring.SignPlace(7, id, id, time.Now().Add(time.Hour)), 7, id, time.Now())
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range 500 {
			ring.Replace(one)
			ring.Replace(two)
			ring.Retire(200)
		}
	})
	wg.Wait()
}
