package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// Scope is what a token may do.
type Scope string

// The scopes. Reading is a link's state and timeline, and a customer's links; no answer to it has a URL.
const (
	ScopeCreate Scope = "create"
	ScopeRead   Scope = "read"
	ScopeRevoke Scope = "revoke"
)

// Scopes are all there are.
func Scopes() []Scope { return []Scope{ScopeCreate, ScopeRead, ScopeRevoke} }

// Token is a row of api_tokens. The token itself is not in it.
type Token struct {
	Name       string     `json:"name"`
	Scopes     []Scope    `json:"scopes"`
	Sources    []string   `json:"sources"` // links of which sources; null = of all
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"` // to the hour; null = never
	RevokedAt  *time.Time `json:"revoked_at"`   // null = it works

	id uuid.UUID
}

// Errors of the functions below.
var (
	ErrNoToken   = errors.New("no such token")                                        // is returned for an unknown token or name, and a revoked token that is used
	ErrNameTaken = errors.New("a token has this name already, perhaps a revoked one") // is returned by NewToken; names are not used twice, because revocations bear them
	ErrTokenForm = errors.New("not the name, scopes and sources of a token")          // is returned by NewToken
)

// tokenPrefix lets scanners for leaked secrets, and people, tell what a token is.
const tokenPrefix = "lk_"

var namePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

// NewToken makes a token and returns it; nobody can tell it again. Sources nil means all of them.
func NewToken(ctx context.Context, db *pgxpool.Pool, name string, scopes []Scope, sources []string, now time.Time) (secret string, err error) {
	if err := checkToken(name, scopes, sources); err != nil {
		return "", err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return "", err
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the process instead
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(random[:])
	hash := hashToken(secret)
	_, err = db.Exec(ctx, `INSERT INTO api_tokens (id, name, hash, scopes, sources, created_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		id, name, hash[:], scopes, sources, now)
	if err != nil {
		return "", tokenError("store the token", err)
	}
	return secret, nil
}

func checkToken(name string, scopes []Scope, sources []string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%w: a name must match [A-Za-z0-9._-]{1,100}", ErrTokenForm)
	}
	if len(scopes) == 0 || slices.ContainsFunc(scopes, func(s Scope) bool { return !slices.Contains(Scopes(), s) }) {
		return fmt.Errorf("%w: scopes must be create, read or revoke", ErrTokenForm)
	}
	if sources != nil && len(sources) == 0 || slices.ContainsFunc(sources, func(s string) bool { return !jobs.ValidSource(s) }) {
		return fmt.Errorf("%w: sources must match [a-z0-9_-]{1,40}", ErrTokenForm)
	}
	return nil
}

// RevokeToken ends a token for ever, from its next request on. It returns ErrNoToken for an unknown name;
// to revoke once more changes nothing.
func RevokeToken(ctx context.Context, db *pgxpool.Pool, name string, now time.Time) error {
	tag, err := db.Exec(ctx, `UPDATE api_tokens SET revoked_at = coalesce(revoked_at, $2) WHERE name = $1`, name, now)
	if err != nil {
		return tokenError("revoke the token", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrNoToken
	}
	return nil
}

const selectTokens = `SELECT id, name, scopes, sources, created_at, last_used_at, revoked_at FROM api_tokens `

// ListTokens returns all tokens, by name, those that are revoked too.
func ListTokens(ctx context.Context, db *pgxpool.Pool) ([]Token, error) {
	rows, err := db.Query(ctx, selectTokens+`ORDER BY name`)
	if err != nil {
		return nil, tokenError("list tokens", err)
	}
	tokens, err := pgx.CollectRows(rows, scanToken)
	if err != nil {
		return nil, tokenError("list tokens", err)
	}
	return tokens, nil
}

// findToken looks up a token that works by its hash, or returns ErrNoToken.
func findToken(ctx context.Context, db *pgxpool.Pool, hash [sha256.Size]byte) (*Token, error) {
	rows, err := db.Query(ctx, selectTokens+`WHERE hash = $1 AND revoked_at IS NULL`, hash[:])
	if err != nil {
		return nil, fmt.Errorf("look up an API token: %w", err)
	}
	t, err := pgx.CollectExactlyOneRow(rows, scanToken)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoToken
	}
	if err != nil {
		return nil, fmt.Errorf("look up an API token: %w", err)
	}
	return &t, nil
}

func scanToken(row pgx.CollectableRow) (t Token, err error) {
	err = row.Scan(&t.id, &t.Name, &t.Scopes, &t.Sources, &t.CreatedAt, &t.LastUsedAt, &t.RevokedAt)
	return t, err
}

// usedEvery is how exact last_used_at is.
const usedEvery = time.Hour

// dueMark tells whether it is time to write that the token is in use.
func (t *Token) dueMark(now time.Time) bool {
	return t.LastUsedAt == nil || now.Sub(*t.LastUsedAt) >= usedEvery
}

// markUsed writes that a token is in use, once an hour whoever finds it due.
func markUsed(ctx context.Context, db *pgxpool.Pool, t *Token, now time.Time) error {
	_, err := db.Exec(ctx, `UPDATE api_tokens SET last_used_at = $2 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at <= $3)`,
		t.id, now, now.Add(-usedEvery))
	return err
}

func hashToken(secret string) [sha256.Size]byte { return sha256.Sum256([]byte(secret)) }

func tokenError(what string, err error) error {
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "23505": // unique_violation
		return ErrNameTaken
	case portal.RefusesUser(err):
		return portal.ErrNotOwner
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (t *Token) has(scope Scope) bool { return slices.Contains(t.Scopes, scope) }

// sees tells whether links of a source exist for the token.
func (t *Token) sees(source string) bool {
	return t.Sources == nil || slices.Contains(t.Sources, source)
}
