package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// A token's limit in one process: behind a load balancer each replica allows as much again. A token whose
// burst is spent has it back after a window of burst ÷ rate.
const (
	tokenRate  = 50 // a second
	tokenBurst = 100
)

// limitPolicy is that limit in the words of draft-ietf-httpapi-ratelimit-headers-10.
var limitPolicy = fmt.Sprintf(`"token";q=%d;w=%d`, tokenBurst, tokenBurst/tokenRate)

// spareRate are look-ups a second of tokens from addresses over their limit: a read by a unique index each.
const spareRate = 100

const realm = `Bearer realm="latchkey"`

// guard decides who is let in. A token gets a bucket at its first use; whatever has none is a stranger's and
// counts against its address before the database is asked. Over the limit, addresses share a few look-ups a
// second: so guessing costs next to nothing, and a tool that goes on with a revoked token does not lock out a
// token that is new to this process from behind the same proxy.
type guard struct {
	strangers *portal.Limits
	spare     *rate.Limiter // look-ups for addresses that are over their limit
	buckets   sync.Map      // *rate.Limiter by the token's hash; as many as there are tokens
	first     singleflight.Group
}

// authenticate returns the token that a request bears, and tells in header how much of its limit is left.
// Its errors are those of RFC 6750.
func (s *Server) authenticate(header http.Header, r *http.Request) (*Token, error) {
	hash, err := bearer(r)
	if err != nil {
		return nil, err
	}
	if bucket, known := s.guard.buckets.Load(hash); known {
		if err := s.take(header, bucket.(*rate.Limiter)); err != nil {
			return nil, err
		}
		return s.lookUp(r.Context(), hash)
	}
	// A burst of a token's first requests counts as one stranger. It hangs on no connection of them.
	token, err, _ := s.guard.first.Do(string(hash[:]), func() (any, error) {
		now := s.service.Store.Now()
		if after, ok := s.guard.strangers.Forged(portal.ClientIP(r, s.proxies), now); !ok && !s.guard.spare.AllowN(now, 1) {
			return nil, &problem{code: codeRateLimited, detail: "too many unknown tokens from this address", retryAfter: after}
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), requestTimeout)
		defer cancel()
		return s.lookUp(ctx, hash)
	})
	if err != nil {
		return nil, err
	}
	bucket, _ := s.guard.buckets.LoadOrStore(hash, rate.NewLimiter(tokenRate, tokenBurst))
	return token.(*Token), s.take(header, bucket.(*rate.Limiter))
}

// bearer returns the hash of the token that a request bears.
func bearer(r *http.Request) (hash [sha256.Size]byte, err error) {
	values := r.Header.Values("Authorization")
	if len(values) > 1 {
		return hash, &problem{code: jobs.CodeBadRequest, detail: "more than one Authorization header", header: "WWW-Authenticate", value: realm + `, error="invalid_request"`}
	}
	scheme, secret, _ := strings.Cut(strings.Join(values, ""), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return hash, &problem{code: codeUnauthorized, detail: "send 'Authorization: Bearer <token>'; 'worker tokens new' makes one", header: "WWW-Authenticate", value: realm}
	}
	return hashToken(strings.TrimSpace(secret)), nil
}

func (s *Server) lookUp(ctx context.Context, hash [sha256.Size]byte) (*Token, error) {
	token, err := findToken(ctx, s.service.Store.Pool, hash)
	if errors.Is(err, ErrNoToken) {
		s.guard.buckets.Delete(hash) // if it was revoked, it is a stranger's from now on
		return nil, &problem{code: codeUnauthorized, detail: "the token is unknown or was revoked", header: "WWW-Authenticate", value: realm + `, error="invalid_token"`}
	}
	return token, err
}

// take counts a request of a token.
func (s *Server) take(header http.Header, bucket *rate.Limiter) error {
	now := s.service.Store.Now()
	ok := bucket.AllowN(now, 1)
	left := max(0, bucket.TokensAt(now))
	header.Set("RateLimit-Policy", limitPolicy)
	header.Set("RateLimit", fmt.Sprintf(`"token";r=%d;t=%d`, int(left), int(math.Ceil((tokenBurst-left)/tokenRate))))
	if !ok {
		return &problem{code: codeRateLimited, detail: fmt.Sprintf("a token may send %d requests a second", tokenRate), retryAfter: time.Second}
	}
	return nil
}
