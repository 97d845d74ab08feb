package portal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Link is a row of links, as far as a click, an event or a status needs it.
type Link struct {
	ID               uuid.UUID
	RequestID        string
	Source           string
	Campaign         string // empty = none
	Customer         string // session.customer or session.customer_account
	StripeAccount    string // connected account; empty = the key's own
	Session          []byte // JSON of SessionParams
	Locale           string // session.locale; empty = none
	Flow             string // session.flow_data.type; empty = none
	Renewable        bool   // it was delivered by email, so it can be asked for again
	Metadata         []byte // JSON object
	KeyID            byte
	MaxSessions      int // 0 = no limit
	SessionsCreated  int
	SessionsReserved int // clicks that wait for Stripe right now
	CreatedAt        time.Time
	ExpiresAt        time.Time
	RevokedAt        time.Time // zero = not revoked
}

// State is what a link can be to the person who presses its button.
type State string

// The states, in the order in which they are told.
const (
	StateRevoked State = "revoked"
	StateExpired State = "expired"
	StateUsedUp  State = "used_up"
	StateLive    State = "live"
)

// ErrNoLink is returned when no link has the id: a token that verifies, of a database that was
// lost or of another one. So it is where the token's key is not the link's: a key of LINK_KEYS that
// leaked opens its own links only.
var ErrNoLink = errors.New("no such link")

// StateAt is the link's state at a time.
func (l *Link) StateAt(now time.Time) State {
	switch {
	case !l.RevokedAt.IsZero():
		return StateRevoked
	case !now.Before(l.ExpiresAt):
		return StateExpired
	case l.MaxSessions > 0 && l.SessionsCreated >= l.MaxSessions:
		return StateUsedUp
	}
	return StateLive
}

// ifOf is the link, or nil where it was signed by another key.
func (l *Link) ifOf(keyID byte) *Link {
	if l == nil || l.KeyID != keyID {
		return nil
	}
	return l
}

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// RevokedAt is the SQL of when a link was revoked, by itself or with its key. A retired key's links are dead from
// its commit on, while Revoke is still on its way through them.
const RevokedAt = `coalesce(revoked_at, (SELECT retired_at FROM retired_keys WHERE retired_keys.id = key_id))`

const selectLinks = `SELECT id, request_id, source, coalesce(campaign, ''), stripe_customer, coalesce(stripe_account, ''),
	session, coalesce(session->>'locale', ''), coalesce(session->'flow_data'->>'type', ''),
	coalesce(deliver @> '[{"channel": "email"}]', false), metadata, key_id, coalesce(max_sessions, 0), sessions_created, sessions_reserved,
	created_at, expires_at, ` + RevokedAt + ` FROM links WHERE `

// LoadLink reads a link by its id, or returns ErrNoLink.
func LoadLink(ctx context.Context, db Querier, id uuid.UUID) (*Link, error) {
	links, err := LoadLinks(ctx, db, `id = $1`, id)
	if err != nil {
		return nil, err
	}
	if len(links) == 0 {
		return nil, ErrNoLink
	}
	return links[0], nil
}

// LoadLinks reads the links that a condition on the table's columns selects. The condition is
// ours, never a user's text.
func LoadLinks(ctx context.Context, db Querier, where string, args ...any) ([]*Link, error) {
	rows, err := db.Query(ctx, selectLinks+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read links: %w", err)
	}
	return collectLinks(rows)
}

func collectLinks(rows pgx.Rows) ([]*Link, error) {
	links, err := pgx.CollectRows(rows, scanLink)
	if err != nil {
		return nil, fmt.Errorf("read links: %w", err)
	}
	return links, nil
}

func scanLink(row pgx.CollectableRow) (*Link, error) {
	l := &Link{}
	var key int16
	var revoked *time.Time
	err := row.Scan((*[16]byte)(&l.ID), &l.RequestID, // as bytes: pgx would give a uuid.UUID a string to parse
		&l.Source, &l.Campaign, &l.Customer, &l.StripeAccount,
		&l.Session, &l.Locale, &l.Flow, &l.Renewable, &l.Metadata, &key, &l.MaxSessions, &l.SessionsCreated, &l.SessionsReserved,
		&l.CreatedAt, &l.ExpiresAt, &revoked)
	l.KeyID = byte(key)
	if revoked != nil {
		l.RevokedAt = *revoked
	}
	return l, err
}
