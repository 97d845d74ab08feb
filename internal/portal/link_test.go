package portal

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestStateAt(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)
	later := now.Add(time.Hour)
	for _, c := range []struct {
		link Link
		want State
	}{
		{Link{ExpiresAt: later}, StateLive},
		{Link{ExpiresAt: now.Add(time.Nanosecond)}, StateLive},
		{Link{ExpiresAt: now}, StateExpired},
		{Link{ExpiresAt: now.Add(-time.Hour)}, StateExpired},
		{Link{ExpiresAt: later, SessionsCreated: 1000}, StateLive},
		{Link{ExpiresAt: later, MaxSessions: 2, SessionsCreated: 1, SessionsReserved: 1}, StateLive},
		{Link{ExpiresAt: later, MaxSessions: 2, SessionsCreated: 2}, StateUsedUp},
		{Link{ExpiresAt: now, MaxSessions: 2, SessionsCreated: 2}, StateExpired},
		{Link{ExpiresAt: later, RevokedAt: later}, StateRevoked}, // at once, whatever the clocks say
		{Link{ExpiresAt: now, RevokedAt: now, MaxSessions: 1, SessionsCreated: 1}, StateRevoked},
	} {
		if got := c.link.StateAt(now); got != c.want {
			t.Errorf("%+v is %s, want %s", c.link, got, c.want)
		}
	}
}

func TestLoadLink(t *testing.T) {
	t.Parallel()
	b := setup(t)
	want := b.link(func(l *Link) {
		l.Source, l.Campaign, l.StripeAccount, l.KeyID, l.MaxSessions = "support", "c", "acct_1", 255, 7
		l.Session, l.Metadata = []byte(`{"customer": "cus_jo"}`), []byte(`{"k": "ü"}`)
	})
	got := b.reload(want)
	got.CreatedAt, got.ExpiresAt = got.CreatedAt.UTC(), got.ExpiresAt.UTC()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back\n%+v, want\n%+v", got, want)
	}
	if _, err := LoadLink(t.Context(), b.pool, uuid.New()); !errors.Is(err, ErrNoLink) {
		t.Errorf("%v, want ErrNoLink", err)
	}
	b.pool.Close()
	if _, err := LoadLink(t.Context(), b.pool, want.ID); err == nil || errors.Is(err, ErrNoLink) {
		t.Errorf("the database is away: %v", err)
	}
}

// The schema itself holds the limit of uses, whatever the code does.
func TestSchemaHoldsTheLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.link(maxSessions(1))
	for _, sql := range []string{
		`UPDATE links SET sessions_created = 1, sessions_reserved = 1 WHERE id = $1`,
		`UPDATE links SET sessions_reserved = -1 WHERE id = $1`,
		`UPDATE links SET revoked_at = now() WHERE id = $1`,
	} {
		if _, err := b.pool.Exec(t.Context(), sql, l.ID); err == nil {
			t.Errorf("%s is accepted", sql)
		}
	}
}
