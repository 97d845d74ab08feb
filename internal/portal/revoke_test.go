package portal

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestRevokeBySelector(t *testing.T) {
	t.Parallel()
	b := setup(t)
	byID, byRequest := b.link(nil), b.link(nil)
	byCustomer := []*Link{b.link(customer("cus_gone")), b.link(customer("cus_gone"))}
	b.keys.Replace(parseKeys(t, testKeys+","+otherKey))
	of := func(key byte, left time.Duration) *Link {
		return b.link(func(l *Link) { l.KeyID, l.ExpiresAt = key, b.clock.now().Add(left) })
	}
	byKey := []*Link{of(0, time.Hour), of(0, time.Second)}
	expired := of(0, time.Second)
	if _, err := b.owner.Exec(t.Context(), `UPDATE links SET created_at = created_at - interval '1 hour', expires_at = $2 WHERE id = $1`, expired.ID, b.clock.now()); err != nil {
		t.Fatal(err)
	}
	key := byte(0)
	byCampaign := []*Link{b.link(func(l *Link) { l.Campaign = "2026-11" }), b.link(func(l *Link) { l.Campaign = "2026-11" })}
	others := []*Link{expired, b.link(nil), b.link(customer("cus_gone2")), b.link(func(l *Link) { l.Campaign = "2026-1" })}
	for _, c := range []struct {
		r     Revocation
		links []*Link
	}{
		{Revocation{LinkID: byID.ID.String()}, []*Link{byID}},
		{Revocation{RequestID: byRequest.RequestID}, []*Link{byRequest}},
		{Revocation{Customer: "cus_gone"}, byCustomer},
		{Revocation{Campaign: "2026-11"}, byCampaign},
		{Revocation{KeyID: &key}, byKey},
	} {
		c.r.By, c.r.Reason = "jo@example.com", "wrong price"
		for _, want := range []int{len(c.links), 0} { // the second time there is nothing left to end
			if n, err := b.store.Revoke(t.Context(), c.r); n != want || err != nil {
				t.Errorf("%+v: %d (%v), want %d", c.r, n, err, want)
			}
		}
		for _, l := range c.links {
			rows := b.audit(l)
			if len(rows) != 1 || rows[0].Kind != LinkRevoked || rows[0].RequestID != l.RequestID || rows[0].Detail["by"] != c.r.By || rows[0].Detail["reason"] != c.r.Reason {
				t.Errorf("%+v: audit %v", c.r, rows)
			}
			if got := b.reload(l); !got.RevokedAt.Equal(b.clock.now()) || got.StateAt(b.clock.now()) != StateRevoked {
				t.Errorf("%+v: %+v", c.r, got)
			}
		}
	}
	for _, l := range others {
		if !b.reload(l).RevokedAt.IsZero() {
			t.Errorf("%+v is revoked, too", l)
		}
	}
	if n := b.number(`SELECT count(*) FROM links WHERE revoked_by = 'jo@example.com' AND revoke_reason = 'wrong price'`); n != 8 {
		t.Errorf("%d rows tell by whom and why", n)
	}
	b.checkBooks()
}

// Whichever link of a chain is named, all of it ends, and nothing else.
func TestRevokeEndsTheChain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for pick, name := range []func(*Link) Revocation{
		func(l *Link) Revocation { return Revocation{LinkID: l.ID.String(), By: "jo"} },
		func(l *Link) Revocation { return Revocation{RequestID: l.RequestID, By: "jo"} },
		func(l *Link) Revocation { return Revocation{LinkID: l.ID.String(), By: "jo"} },
	} {
		chain := []*Link{b.link(nil), b.link(nil), b.link(nil)}
		other := []*Link{b.link(nil), b.link(nil)}
		for _, links := range [][]*Link{chain, other} {
			for _, l := range links[1:] {
				if _, err := b.owner.Exec(t.Context(), `UPDATE links SET renewal_of = $2 WHERE id = $1`, l.ID, links[0].ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n, err := b.store.Revoke(t.Context(), name(chain[pick])); n != 3 || err != nil {
			t.Errorf("link %d of the chain: %d, %v", pick, n, err)
		}
		for _, l := range chain {
			if b.reload(l).RevokedAt.IsZero() {
				t.Errorf("link %d of the chain named, %s lives on", pick, l.RequestID)
			}
		}
		for _, l := range other {
			if !b.reload(l).RevokedAt.IsZero() {
				t.Errorf("link %d of the chain named, and another chain's ended", pick)
			}
		}
	}
	b.checkBooks()
}

func TestRevokeNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, r := range []Revocation{{LinkID: uuid.New().String(), By: "jo"}, {Customer: "cus_x", By: "jo"}, {Campaign: "' OR true --", By: "jo"}} {
		if n, err := b.store.Revoke(t.Context(), r); n != 0 || err != nil {
			t.Errorf("%+v: %d, %v", r, n, err)
		}
	}
	if n := b.number(`SELECT count(*) FROM published`); n != 0 {
		t.Errorf("%d publish jobs for nothing", n)
	}
}

// A campaign takes many transactions, each with one publish job.
func TestRevokeInChunks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const links = 2*revokeChunk + 1
	first := b.link(func(l *Link) { l.Campaign = "big" })
	_, err := b.owner.Exec(t.Context(), `INSERT INTO links (id, request_id, request_hash, published_at, source, campaign, stripe_customer, session, key_id, created_at, expires_at)
		SELECT gen_random_uuid(), 'r' || n, request_hash, published_at, source, campaign, stripe_customer, session, key_id, created_at, expires_at
		FROM links, generate_series(2, $2) n WHERE id = $1`, first.ID, links)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := b.store.Revoke(t.Context(), Revocation{Campaign: "big", By: "jo"}); n != links || err != nil {
		t.Fatalf("%d (%v), want %d", n, err, links)
	}
	if n := b.number(`SELECT count(*) FROM published`); n != 3 {
		t.Errorf("%d publish jobs, want 3", n)
	}
	if n := b.number(`SELECT count(DISTINCT link_id) FROM audit_events WHERE kind = 'link.revoked'`); n != links {
		t.Errorf("%d audit rows", n)
	}
	b.checkBooks()
}

// A crash between chunks leaves the first ones revoked, and a second call ends the rest.
func TestRevokeAfterACrash(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 3 {
		b.link(func(l *Link) { l.Campaign = "c" })
	}
	r := Revocation{Campaign: "c", By: "jo"}
	b.commits.Script(failed)
	if n, err := b.store.Revoke(t.Context(), r); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	if n := b.number(`SELECT count(*) FROM audit_events`); n != 0 {
		t.Errorf("%d audit rows of a commit that failed", n)
	}
	b.commits.Script(failedButTook)
	if _, err := b.store.Revoke(t.Context(), r); err == nil {
		t.Error("a lost answer is taken for success")
	}
	if n, err := b.store.Revoke(t.Context(), r); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n := b.number(`SELECT count(*) FROM audit_events WHERE kind = 'link.revoked'`); n != 3 {
		t.Errorf("%d audit rows, want one for each link", n)
	}
	b.checkBooks()
}

func TestRevocationErrors(t *testing.T) {
	t.Parallel()
	b := setup(t)
	long := strings.Repeat("ü", 201)
	for about, r := range map[string]Revocation{
		"nothing":       {By: "jo"},
		"nobody":        {Customer: "cus_1"},
		"two":           {Customer: "cus_1", Campaign: "c", By: "jo"},
		"two with key":  {Customer: "cus_1", KeyID: new(byte), By: "jo"},
		"key, nobody":   {KeyID: new(byte)},
		"all":           {LinkID: uuid.NewString(), RequestID: "r", Customer: "c", Campaign: "c", By: "jo"},
		"no UUID":       {LinkID: "42", By: "jo"},
		"long name":     {Customer: "cus_1", By: long},
		"long reason":   {Customer: "cus_1", By: "jo", Reason: long},
		"NUL":           {Customer: "cus_1\x00", By: "jo"},
		"NUL in by":     {Customer: "cus_1", By: "j\x00o"},
		"invalid UTF-8": {Customer: "cus_1", By: "jo", Reason: "\xff"},
	} {
		if n, err := b.store.Revoke(t.Context(), r); n != 0 || !errors.Is(err, ErrRevocation) {
			t.Errorf("%s: %d, %v", about, n, err)
		}
	}
	if n, err := b.store.Revoke(t.Context(), Revocation{Customer: "cus_1", By: long[2:], Reason: long[2:]}); n != 0 || err != nil {
		t.Errorf("200 characters: %d, %v", n, err)
	}
	b.pool.Close()
	if _, err := b.store.Revoke(t.Context(), Revocation{Customer: "cus_1", By: "jo"}); err == nil || errors.Is(err, ErrRevocation) {
		t.Errorf("the database is away: %v", err)
	}
}

// Whichever way a link ends, the next click on every replica is told so: of one that has just given a session, which a
// second tap would get again for a minute, of one that is used up, and of a page that waits in line.
func TestRevocationHoldsOnTheNextClickOfEveryReplica(t *testing.T) {
	t.Parallel()
	key := byte(0)
	for way, revoke := range map[string]func(*bundle, *Link) (int, error){
		"link": func(b *bundle, l *Link) (int, error) {
			return b.store.Revoke(b.t.Context(), Revocation{LinkID: l.ID.String(), By: "jo"})
		},
		"request": func(b *bundle, l *Link) (int, error) {
			return b.store.Revoke(b.t.Context(), Revocation{RequestID: l.RequestID, By: "jo"})
		},
		"customer": func(b *bundle, l *Link) (int, error) {
			return b.store.Revoke(b.t.Context(), Revocation{Customer: l.Customer, By: "jo"})
		},
		"campaign": func(b *bundle, l *Link) (int, error) {
			return b.store.Revoke(b.t.Context(), Revocation{Campaign: l.Campaign, By: "jo"})
		},
		"key": func(b *bundle, _ *Link) (int, error) {
			return b.store.Revoke(b.t.Context(), Revocation{KeyID: &key, By: "jo"})
		},
		"retired key": func(b *bundle, _ *Link) (int, error) { return b.ownerStore().RetireKey(b.t.Context(), key, "jo", "") },
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.keys.Replace(parseKeys(t, testKeys+","+otherKey))
			replicas := []*httptest.Server{b.http, b.replica(), b.replica()}
			n := 0
			link := func(most int) *Link {
				n++
				return b.link(func(l *Link) {
					l.KeyID, l.MaxSessions, l.Campaign, l.Customer = key, most, fmt.Sprint("c", n), fmt.Sprint("cus_", n)
				})
			}
			clicked, usedUp, waiting := link(0), link(1), link(0)
			for _, l := range []*Link{clicked, usedUp} {
				b.post(l).want(t, 303, "")
				b.on(replicas[1], "POST", "/l/"+b.token(l)).want(t, 303, "") // the same session
			}
			b.busy("", time.Hour)
			place, _ := b.post(waiting).place(t)
			b.busy("", 0)
			ended := 0
			for _, l := range []*Link{clicked, usedUp, waiting} {
				n, err := revoke(b, l)
				if err != nil {
					t.Fatal(err)
				}
				ended += n
			}
			if ended != 3 {
				t.Errorf("%d links ended", ended)
			}
			sessions := len(b.sim.Sessions())
			for _, srv := range replicas {
				for _, l := range []*Link{clicked, usedUp, waiting} {
					b.on(srv, "POST", "/l/"+b.token(l)).want(t, 410, pageRevoked)
					b.on(srv, "GET", "/l/"+b.token(l)).want(t, 410, pageRevoked)
				}
				b.on(srv, "GET", place).want(t, 410, pageRevoked)
			}
			if n := len(b.sim.Sessions()); n != sessions {
				t.Errorf("%d sessions were made for links that had ended", n-sessions)
			}
		})
	}
}
