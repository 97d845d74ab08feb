package stripesim

import (
	"crypto/sha256"
	"net/url"
	"sync"
	"time"
)

// Stripe's numbers for idempotency keys.
const (
	maxKeyLength = 255
	keyLife      = 24 * time.Hour
)

// answer is what an execution answered, as it is saved.
type answer struct {
	status    int
	body      []byte
	requestID string
	sessionID string
	errorCode string
}

// idempotency holds the saved answers (rules 7 to 9).
type idempotency struct {
	mu      sync.Mutex
	entries map[string]*keyEntry
	queue   []*keyEntry // oldest first, so that a purge looks at expired ones only
}

type keyEntry struct {
	id          string
	fingerprint [sha256.Size]byte
	since       time.Time
	answer      *answer // nil while the call runs
}

func (k *idempotency) init() { k.entries = map[string]*keyEntry{} }

// fingerprint is what must be the same in each call under one key.
func fingerprint(c caller, params url.Values) [sha256.Size]byte {
	return sha256.Sum256([]byte(c.account + "\x00" + params.Encode()))
}

// begin claims the key for a call. It returns the entry to end, or the answer
// to replay, or the error to give. Without a key there is nothing to claim.
func (k *idempotency) begin(c caller, key string, params url.Values, now time.Time) (*keyEntry, *answer, *apiError) {
	if key == "" {
		return nil, nil, nil
	}
	if len(key) > maxKeyLength {
		return nil, nil, bad("", "", "Invalid idempotency key: must be at most %d characters.", maxKeyLength)
	}
	// The account is part of the fingerprint, not of the id: a key that comes
	// back with another account is an error. Modes are worlds apart.
	id := caller{live: c.live}.scope() + key
	sum := fingerprint(c, params)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.purge(now)
	if e := k.entries[id]; e != nil {
		switch {
		case e.fingerprint != sum:
			return nil, nil, errKeyReused(key)
		case e.answer == nil:
			return nil, nil, errKeyInUse(key)
		}
		return nil, e.answer, nil
	}
	e := &keyEntry{id: id, fingerprint: sum, since: now}
	k.entries[id] = e
	k.queue = append(k.queue, e)
	return e, nil, nil
}

// end saves the answer of the execution, or frees the key where a is nil.
func (k *idempotency) end(e *keyEntry, a *answer) {
	if e == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	e.answer = a
	// After 24 hours under way the key may be another call's by now.
	if a == nil && k.entries[e.id] == e {
		delete(k.entries, e.id)
	}
}

func (k *idempotency) purge(now time.Time) {
	for len(k.queue) > 0 && now.Sub(k.queue[0].since) >= keyLife {
		// A freed key may have been claimed again: then its place is another's.
		if e := k.queue[0]; k.entries[e.id] == e {
			delete(k.entries, e.id)
		}
		k.queue[0] = nil
		k.queue = k.queue[1:]
	}
}
