package portal

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The limits, each a bucket that holds a burst and gets one token back in each interval. They are
// there for what costs us something, a forged token an HMAC and a log line, a visit a transaction;
// who stays below them never learns of them. All buckets are full again within forgetAfter.
const (
	// A gateway that mangles a link tries it a few times; whoever guesses tries without end. What
	// is limited are forged tokens only: a customer may share the address with whoever sends them.
	forgedBurst = 30
	forgedEvery = 2 * time.Second

	// The first minute of a campaign through one carrier's NAT, or a gateway that opens the 5,000
	// links of a company's mails, must pass.
	visitBurst = 6000
	visitEvery = time.Second / 200

	// A link is one customer's: the gateways on its way, a few devices, and a reload now and then.
	lookBurst = 120
	lookEvery = time.Second / 2

	// Nobody presses a button thirty times; each press can cost a call to Stripe.
	pressBurst = 30
	pressEvery = 2 * time.Second

	// A session is given out again to a browser that dropped the answer. Such a call goes ahead of the
	// line, so there are few.
	replayBurst = 3
	replayEvery = 20 * time.Second

	// A bucket that is full again is worth no memory.
	forgetAfter = time.Minute

	// Entries in one generation of a table; a table has two.
	limitEntries = 32 << 10
)

// Limits holds strangers and links to a number of requests, ahead of the database. It belongs to
// one process: behind a load balancer each replica allows as much again. It is safe for
// concurrent use.
//
// Addresses are counted one by one for IPv4, by /64 for IPv6, which is what one customer gets.
// Forged tokens, visits by address, and looks, presses and replays by link have each a table of its
// own, so that a flood of one cannot push out another; only who has valid links gets into the
// others.
//
// A table holds at most 64 Ki entries, of 53 bytes each with the map around them: 17 MB for all
// five when full (BenchmarkLimits), nothing before they are used, and a table that was full gives
// its memory back within two minutes of use. Under a flood of more than 32 Ki distinct addresses
// in a minute, which takes a botnet or a /48 of IPv6, the one that was quiet for longest is
// forgotten first and starts with a full bucket again: the limit then bounds no more than each
// address's burst, and what a forged token costs is its HMAC, about a microsecond.
//
// A bucket is the generic cell rate algorithm's, eight bytes: the time at which it will be full. A
// limiter of golang.org/x/time/rate in an LRU list of hashicorp/golang-lru was measured against it
// under a flood: 267 bytes and two allocations an entry and 1.3 µs, against 53 bytes, none, 0.2 µs.
type Limits struct {
	forged, visits, looks, presses, replays *limit
}

// NewLimits makes empty tables.
func NewLimits() *Limits {
	return &Limits{
		forged:  newLimit(forgedBurst, forgedEvery),
		visits:  newLimit(visitBurst, visitEvery),
		looks:   newLimit(lookBurst, lookEvery),
		presses: newLimit(pressBurst, pressEvery),
		replays: newLimit(replayBurst, replayEvery),
	}
}

// Forged counts a token that does not verify, or names no link of its key. Where ok is false the answer is 429, and the
// earliest that another try can succeed is after retryAfter. Valid links of the same address are
// not concerned.
func (l *Limits) Forged(ip netip.Addr, now time.Time) (retryAfter time.Duration, ok bool) {
	return l.forged.take(network(ip), now)
}

// Visit counts a request with a valid token: by its address, unless that can't be a customer's
// own, and by its link, POST apart from the rest.
func (l *Limits) Visit(ip netip.Addr, link uuid.UUID, method string, now time.Time) (retryAfter time.Duration, ok bool) {
	if !sharedByMany(ip) {
		if retryAfter, ok = l.visits.take(network(ip), now); !ok {
			return retryAfter, false
		}
	}
	if method == http.MethodPost {
		return l.presses.take(link, now)
	}
	return l.looks.take(link, now)
}

// Replay counts a session that is to be given out again. Where it returns false, its link is shown as it
// is.
func (l *Limits) Replay(link uuid.UUID, now time.Time) bool {
	_, ok := l.replays.take(link, now)
	return ok
}

// network is what counts as one visitor: an IPv4 address, or a /64 of IPv6.
func network(ip netip.Addr) [16]byte {
	ip = ip.Unmap()
	raw := ip.As16()
	if ip.Is6() {
		clear(raw[8:])
	}
	return raw
}

var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// sharedByMany is true for addresses from which no customer comes himself. On the public server
// they are a proxy that TRUSTED_PROXIES does not name (0.0.0.0: one on a Unix socket), and what
// one does behind it says nothing of the others: to limit it would lock everybody out at once.
func sharedByMany(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || carrierNAT.Contains(ip)
}

// limit is a table of buckets. One mutex serves: it is held for two or three map operations, 80 ns
// with all cores at one address, which is far from what the database behind it can take.
type limit struct {
	burst time.Duration // how far ahead of now a bucket may be borrowed from
	every time.Duration

	mu     sync.Mutex
	fullAt *recent[[16]byte, int64] // Unix nanoseconds
}

func newLimit(burst int, every time.Duration) *limit {
	return &limit{burst: time.Duration(burst) * every, every: every, fullAt: newRecent[[16]byte, int64](limitEntries, forgetAfter, 0)}
}

func (l *limit) take(key [16]byte, now time.Time) (retryAfter time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := now.UnixNano()
	fullAt, _ := l.fullAt.get(key)
	// Further ahead than any of our own times means that the clock was set back.
	if fullAt < at || fullAt > at+int64(l.burst+forgetAfter) {
		fullAt = at
	}
	retryAfter = time.Duration(fullAt-at) + l.every - l.burst
	if ok = retryAfter <= 0; ok {
		retryAfter = 0
		fullAt += int64(l.every)
	}
	l.fullAt.put(key, fullAt, now) // a refusal too: who goes on trying is not forgotten
	return retryAfter, ok
}

// recent is a map that stays bounded by two generations: what is put goes into the young one, and
// when that is full or has lasted its time, it becomes the old one and the old one is dropped. So
// it keeps, as an LRU list would, whatever was put within the last `most` other keys and the time
// `keep`; it needs no list, holds no pointers for the garbage collector to follow, takes memory
// beyond its room only as it fills and gives it back by itself. It is not safe for concurrent use.
type recent[K comparable, V any] struct {
	most       int
	keep       time.Duration
	room       int // of a generation from its start
	turned     time.Time
	young, old map[K]V
}

func newRecent[K comparable, V any](most int, keep time.Duration, room int) *recent[K, V] {
	return &recent[K, V]{most: most, keep: keep, room: room, young: make(map[K]V, room)}
}

func (m *recent[K, V]) get(key K) (V, bool) {
	if v, ok := m.young[key]; ok {
		return v, true
	}
	v, ok := m.old[key]
	return v, ok
}

func (m *recent[K, V]) put(key K, v V, now time.Time) {
	// Requests that run side by side bring times that are a little out of order; only a clock that
	// was really set back counts as a long time.
	switch age := now.Sub(m.turned).Abs(); {
	case age >= m.keep:
		m.old, m.young, m.turned = m.young, make(map[K]V, m.room), now
	case len(m.young) >= m.most: // a flood: the room of the dropped ones is needed again at once
		clear(m.old)
		m.old, m.young, m.turned = m.young, m.old, now
		if m.young == nil {
			m.young = make(map[K]V, m.room)
		}
	}
	m.young[key] = v
}

func (m *recent[K, V]) len() int { return len(m.young) + len(m.old) }
