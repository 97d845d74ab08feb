package portal

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
)

// A token is the 48 characters of base64url (RFC 4648 §5, no padding) over 36 bytes:
//
//	byte 0      version, 1
//	byte 1      key id
//	bytes 2–17  link id (UUID)
//	bytes 18–35 the first 18 bytes (144 bits) of HMAC-SHA256(K, bytes 0–17)
//
// K is HKDF-SHA256 of the key with the info string below, so that a key of LINK_KEYS signs
// nothing but link tokens here and can serve other purposes under other info strings. 36 bytes
// fill 48 characters without spare bits: each token has one spelling.
//
// Verify checks, in this order: length, alphabet, version and that the key id is known, the MAC in
// constant time. It needs no database. docs/token.md specifies the format for others.
const (
	tokenVersion  = 1
	tokenMACLen   = 18
	tokenRawLen   = 2 + 16 + tokenMACLen
	tokenLen      = tokenRawLen / 3 * 4
	tokenKeyInfo  = "latchkey link token v1"
	signingKeyLen = 32
)

// ErrToken is returned when a token is not one that these keys signed. It does not tell which
// check failed: to whoever forges one they all look the same.
var ErrToken = errors.New("not a valid link token")

// Keyring signs and verifies link tokens. The first key of its list that is not retired signs; all
// verify. Its keys may be changed while it is used: each call goes by those of one moment. It is safe
// for concurrent use, and prints as nothing but its key ids.
type Keyring struct{ now atomic.Pointer[keySet] }

// keySet is a ring's keys at one moment; nothing in it changes.
type keySet struct {
	order   []byte // of LINK_KEYS
	byID    map[byte]*linkKey
	retired map[byte]bool // they sign no more; an id stays here for ever, in LINK_KEYS or not
	signer  byte
}

// linkKey is what is derived from one key of LINK_KEYS, one key for each purpose.
type linkKey struct{ tokens, places *macKey }

// macKey holds MAC states of one derived key; making one costs more than the MAC itself.
type macKey struct{ states sync.Pool }

func newMACKey(key []byte, info string) (*macKey, error) {
	derived, err := hkdf.Key(sha256.New, key, nil, info, sha256.Size)
	if err != nil {
		return nil, err
	}
	return &macKey{states: sync.Pool{New: func() any { return hmac.New(sha256.New, derived) }}}, nil
}

// lineEnd ends an entry too: a key that was printed is appended to a file as a line.
var lineEnd = regexp.MustCompile(`\s*,?[ \t]*\r?\n\s*`)

// ParseKeys reads LINK_KEYS: id:base64key, ids 0–255, keys of 32 bytes, with a comma or a line's end between. Its
// errors name entries by their place, never by their content.
func ParseKeys(s string) (*Keyring, error) {
	ring := &keySet{byID: map[byte]*linkKey{}}
	for i, entry := range strings.Split(lineEnd.ReplaceAllString(strings.TrimSpace(s), ","), ",") {
		idText, keyText, ok := strings.Cut(strings.TrimSpace(entry), ":")
		if !ok {
			return nil, fmt.Errorf("entry %d is not of the form id:base64key (worker keys new prints one)", i+1)
		}
		id, err := strconv.ParseUint(idText, 10, 8)
		if err != nil {
			return nil, fmt.Errorf("entry %d: the id must be a number from 0 to 255", i+1)
		}
		key, err := decodeKey(keyText)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		if ring.byID[byte(id)] != nil {
			return nil, fmt.Errorf("entry %d: the id %d stands twice", i+1, id)
		}
		tokens, err := newMACKey(key, tokenKeyInfo)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		places, err := newMACKey(key, placeKeyInfo)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		ring.byID[byte(id)], ring.order = &linkKey{tokens, places}, append(ring.order, byte(id))
	}
	k := &Keyring{}
	k.now.Store(ring.without(nil))
	return k, nil
}

// without is the same keys, of which the first that is not retired signs. Where all are, it is the first: the
// database refuses its links, and the requests wait.
func (k *keySet) without(retired map[byte]bool) *keySet {
	next := &keySet{order: k.order, byID: k.byID, retired: retired, signer: k.order[0]}
	if i := slices.IndexFunc(k.order, func(id byte) bool { return !retired[id] }); i >= 0 {
		next.signer = k.order[i]
	}
	return next
}

// Replace takes the keys of another ring in place of its own, for every call from now on.
func (k *Keyring) Replace(by *Keyring) {
	k.change(func(now *keySet) *keySet { return by.now.Load().without(now.retired) })
}

// Retire has keys sign no more, and tells whether one is left that does. They still verify: it is the link's row
// that says what became of it.
func (k *Keyring) Retire(ids ...byte) (signs bool) {
	now := k.change(func(now *keySet) *keySet {
		retired := maps.Clone(now.retired)
		if retired == nil {
			retired = map[byte]bool{}
		}
		for _, id := range ids {
			retired[id] = true
		}
		return now.without(retired)
	})
	return !now.retired[now.signer]
}

func (k *Keyring) change(f func(*keySet) *keySet) *keySet {
	for {
		now := k.now.Load()
		if next := f(now); k.now.CompareAndSwap(now, next) {
			return next
		}
	}
}

// IDs are the ids of its keys, in the order of LINK_KEYS.
func (k *Keyring) IDs() []byte { return slices.Clone(k.now.Load().order) }

// Lost are the ids of an earlier ring's keys whose tokens this one does not verify: the key is gone, or another one
// has its id.
func (k *Keyring) Lost(earlier *Keyring) (ids []byte) {
	for _, id := range earlier.IDs() {
		token, err := earlier.Sign(id, uuid.Nil)
		if err == nil {
			_, _, err = k.Verify(token)
		}
		if err != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// decodeKey takes base64 in the standard or the URL alphabet, with or without padding.
func decodeKey(s string) ([]byte, error) {
	s = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
	key, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, errors.New("the key is not base64")
	}
	if len(key) != signingKeyLen {
		return nil, fmt.Errorf("the key has %d bytes, it must have %d", len(key), signingKeyLen)
	}
	return key, nil
}

// FormatKey writes a key as ParseKeys reads it.
func FormatKey(id byte, key [signingKeyLen]byte) string {
	return strconv.Itoa(int(id)) + ":" + base64.StdEncoding.EncodeToString(key[:])
}

// SignerID is the id of the key that signs new links; it is stored with each link.
func (k *Keyring) SignerID() byte { return k.now.Load().signer }

// Sign returns the token of a link under the key whose id the link's row holds, so that every
// call for ever gives the same token. The error says that the key is not in LINK_KEYS any more.
func (k *Keyring) Sign(keyID byte, link uuid.UUID) (string, error) {
	key := k.now.Load().byID[keyID]
	if key == nil {
		return "", fmt.Errorf("link %s was signed by key %d, which LINK_KEYS lacks", link, keyID)
	}
	var raw [tokenRawLen]byte
	raw[0], raw[1] = tokenVersion, keyID
	copy(raw[2:], link[:])
	mac := key.tokens.mac(raw[:tokenRawLen-tokenMACLen])
	copy(raw[tokenRawLen-tokenMACLen:], mac[:])
	return base64.RawURLEncoding.EncodeToString(raw[:]), nil
}

// TokenLinkID reads the link's id off a link's URL or token without any key, so without knowing
// that the token is valid: for a support agent who has the link and wants its status.
func TokenLinkID(s string) (uuid.UUID, bool) {
	if _, after, ok := strings.Cut(s, "/l/"); ok {
		s = leadingToken(after)
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(raw) != tokenRawLen || raw[0] != tokenVersion {
		return uuid.Nil, false
	}
	return uuid.UUID(raw[2:18]), true
}

// Verify returns the link that a token names and the key that signed it, or ErrToken. That this is the
// link's own key, only its row can tell: who has another key of LINK_KEYS could sign for any link.
func (k *Keyring) Verify(token string) (link uuid.UUID, keyID byte, err error) {
	var raw [tokenRawLen]byte
	if len(token) != tokenLen {
		return uuid.Nil, 0, ErrToken
	}
	// Decode skips line breaks, and then yields too few bytes.
	if n, err := base64.RawURLEncoding.Decode(raw[:], []byte(token)); err != nil || n != tokenRawLen {
		return uuid.Nil, 0, ErrToken
	}
	key := k.now.Load().byID[raw[1]]
	if raw[0] != tokenVersion || key == nil {
		return uuid.Nil, 0, ErrToken
	}
	mac := key.tokens.mac(raw[:tokenRawLen-tokenMACLen])
	if !hmac.Equal(mac[:], raw[tokenRawLen-tokenMACLen:]) {
		return uuid.Nil, 0, ErrToken
	}
	return uuid.UUID(raw[2:18]), raw[1], nil
}

func (k *macKey) mac(parts ...[]byte) (out [tokenMACLen]byte) {
	h := k.states.Get().(hash.Hash)
	defer k.states.Put(h)
	h.Reset()
	for _, part := range parts {
		h.Write(part)
	}
	var sum [sha256.Size]byte
	copy(out[:], h.Sum(sum[:0]))
	return out
}

// leadingToken returns the longest prefix of s in the token's alphabet. What mail gateways append
// to a link (%27, a bracket, &utm_…) starts with a character outside of it.
func leadingToken(s string) string {
	for i := range len(s) {
		c := s[i]
		if !('A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return s[:i]
		}
	}
	return s
}

// String keeps keys out of logs and panics.
func (k *Keyring) String() string {
	now := k.now.Load()
	return fmt.Sprintf("Keyring(signer %d of %v)", now.signer, now.order)
}

// GoString is String, for %#v.
func (k *Keyring) GoString() string { return k.String() }
