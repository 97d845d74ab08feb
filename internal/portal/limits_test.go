package portal

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
)

var limitsNow = time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)

// testLink is the n-th of links that differ.
func testLink(n int) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:], uint64(n))
	return id
}

// testIP is the n-th of public IPv4 addresses that differ.
func testIP(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{8 + byte(n>>24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// Each limit lets its burst pass and nothing more, says when to come back, and is right about it.
func TestLimits(t *testing.T) {
	t.Parallel()
	ip, link := netip.MustParseAddr("203.0.113.9"), testLink(1)
	n := 0
	for name, c := range map[string]struct {
		burst int
		every time.Duration
		take  func(*Limits, time.Time) (time.Duration, bool)
	}{
		"forged": {30, 2 * time.Second, func(l *Limits, now time.Time) (time.Duration, bool) { return l.Forged(ip, now) }},
		"visits of an address": {6000, 5 * time.Millisecond, func(l *Limits, now time.Time) (time.Duration, bool) {
			n++
			return l.Visit(ip, testLink(n), "GET", now)
		}},
		"looks at a link": {120, 500 * time.Millisecond, func(l *Limits, now time.Time) (time.Duration, bool) {
			n++
			return l.Visit(testIP(n), link, []string{"GET", "HEAD"}[n%2], now)
		}},
		"presses of a link": {30, 2 * time.Second, func(l *Limits, now time.Time) (time.Duration, bool) {
			n++
			return l.Visit(testIP(n), link, "POST", now)
		}},
	} {
		l, now := NewLimits(), limitsNow
		passed := func() (n int, wait time.Duration) {
			for {
				wait, ok := c.take(l, now)
				if !ok {
					return n, wait
				}
				n++
			}
		}
		if got, wait := passed(); got != c.burst || wait != c.every {
			t.Errorf("%s: %d at once, then wait %s; want %d and %s", name, got, wait, c.burst, c.every)
		}
		now = now.Add(c.every - 1)
		if wait, ok := c.take(l, now); ok || wait != 1 {
			t.Errorf("%s: a nanosecond too early: %t, wait %s", name, ok, wait)
		}
		now = now.Add(1)
		if got, _ := passed(); got != 1 {
			t.Errorf("%s: %d after one interval, want 1", name, got)
		}
		now = now.Add(7 * c.every)
		if got, _ := passed(); got != 7 {
			t.Errorf("%s: %d after seven intervals", name, got)
		}
		now = now.Add(time.Duration(c.burst) * c.every)
		if got, _ := passed(); got != c.burst {
			t.Errorf("%s: %d when the bucket is full again", name, got)
		}
		now = now.Add(-24 * time.Hour)
		if got, _ := passed(); got != c.burst {
			t.Errorf("%s: %d after the clock was set back by a day", name, got)
		}
	}
}

// A bucket that is forgotten by time was full: forgetting changes no answer.
func TestLimitsForgetNothing(t *testing.T) {
	t.Parallel()
	l := NewLimits()
	for _, x := range []*limit{l.forged, l.visits, l.looks, l.presses} {
		if x.burst > forgetAfter {
			t.Errorf("a bucket that takes %s to fill is forgotten after %s", x.burst, forgetAfter)
		}
	}
	ip := netip.MustParseAddr("203.0.113.9")
	for range forgedBurst {
		l.Forged(ip, limitsNow)
	}
	for at := time.Duration(0); at < forgetAfter; at += time.Second { // others turn the generations
		l.Forged(testIP(int(at)), limitsNow.Add(at))
	}
	allowed := 0
	for range 100 {
		if _, ok := l.Forged(ip, limitsNow.Add(forgetAfter-2*time.Second)); ok {
			allowed++
		}
	}
	if allowed != 29 {
		t.Errorf("%d allowed after 58 s, want 29", allowed)
	}
}

func TestForgedTokensLimitNoValidLink(t *testing.T) {
	t.Parallel()
	l := NewLimits()
	ip := netip.MustParseAddr("203.0.113.9")
	for range 10_000 {
		l.Forged(ip, limitsNow)
	}
	if _, ok := l.Forged(ip, limitsNow); ok {
		t.Error("forged tokens without end")
	}
	for _, method := range []string{"GET", "HEAD", "POST"} {
		if _, ok := l.Visit(ip, testLink(1), method, limitsNow); !ok {
			t.Errorf("%s of a valid link is refused", method)
		}
	}
	if _, ok := l.Forged(netip.MustParseAddr("203.0.113.10"), limitsNow); !ok {
		t.Error("the address beside it is refused")
	}
	// Nor do looks, by scanners say, stop a press.
	for range 1000 {
		l.Visit(ip, testLink(1), "GET", limitsNow)
	}
	if _, ok := l.Visit(ip, testLink(1), "GET", limitsNow); ok {
		t.Error("looks without end")
	}
	if _, ok := l.Visit(ip, testLink(1), "POST", limitsNow); !ok {
		t.Error("a press is refused because of looks")
	}
}

func TestLimitsGroupAddresses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		one  bool
	}{
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"203.0.113.1", "203.0.113.2", false},
		{"203.0.113.1", "::ffff:203.0.113.1", true},
		{"::ffff:203.0.113.1", "::ffff:203.0.113.2", false},
	} {
		l := NewLimits()
		for range forgedBurst {
			l.Forged(netip.MustParseAddr(c.a), limitsNow)
		}
		if _, ok := l.Forged(netip.MustParseAddr(c.b), limitsNow); ok == c.one {
			t.Errorf("%s and %s: counted as one: %t", c.a, c.b, !ok)
		}
	}
}

// Behind a proxy that is not named everybody has its address.
func TestProxiesAreNotLimited(t *testing.T) {
	t.Parallel()
	for ip, limited := range map[string]bool{
		"127.0.0.1": false, "::1": false, "10.1.2.3": false, "172.16.9.9": false, "192.168.0.1": false, "169.254.1.1": false,
		"fe80::1": false, "fd00::1": false, "100.64.0.1": false, "100.127.255.255": false, "0.0.0.0": false, "::ffff:10.0.0.1": false,
		"100.128.0.1": true, "100.63.255.255": true, "8.8.8.8": true, "172.32.0.1": true, "2001:db8::1": true,
	} {
		l := NewLimits()
		refused := false
		for n := range visitBurst + 100 {
			if _, ok := l.Visit(netip.MustParseAddr(ip), testLink(n), "GET", limitsNow); !ok {
				refused = true
			}
		}
		if refused != limited {
			t.Errorf("%s: limited: %t", ip, refused)
		}
	}
}

// A million addresses in no time: the tables stay at their bound, and whoever goes on trying
// meanwhile is not forgotten.
func TestLimitsStayBounded(t *testing.T) {
	t.Parallel()
	l := NewLimits()
	stubborn := netip.MustParseAddr("203.0.113.9")
	passed := 0
	for n := range 1_000_000 {
		l.Forged(testIP(n), limitsNow)
		l.Visit(testIP(n), testLink(n), "GET", limitsNow)
		l.Visit(testIP(n), testLink(n), "POST", limitsNow)
		if n%1000 == 0 {
			if _, ok := l.Forged(stubborn, limitsNow); ok {
				passed++
			}
		}
	}
	for _, x := range []*limit{l.forged, l.visits, l.looks, l.presses} {
		if n := x.fullAt.len(); n > 2*limitEntries {
			t.Errorf("%d entries, want at most %d", n, 2*limitEntries)
		}
	}
	if passed != forgedBurst {
		t.Errorf("%d forged tokens of one address passed in the flood, want %d", passed, forgedBurst)
	}
	// Two quiet minutes, and all of it is gone.
	for n := range 2 {
		l.Forged(testIP(n), limitsNow.Add(time.Duration(n+1)*forgetAfter))
	}
	if n := l.forged.fullAt.len(); n != 2 {
		t.Errorf("%d entries are left of the flood", n)
	}
}

func BenchmarkLimits(b *testing.B) {
	b.Run("flood", func(b *testing.B) {
		l := NewLimits()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var n atomic.Int64
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				i := int(n.Add(1))
				l.Visit(testIP(i), testLink(i), "GET", limitsNow)
			}
		})
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-held")
		runtime.KeepAlive(l)
	})
	b.Run("one address", func(b *testing.B) {
		l := NewLimits()
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				l.Forged(netip.MustParseAddr("203.0.113.9"), limitsNow)
			}
		})
	})
	b.Run("memory of all, full", func(b *testing.B) {
		for range b.N {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			l := NewLimits()
			for n := range 2*limitEntries - 1 {
				l.Forged(testIP(n), limitsNow)
				l.Visit(testIP(n), testLink(n), "GET", limitsNow)
				l.Visit(testIP(n), testLink(n), "POST", limitsNow)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-held")
			runtime.KeepAlive(l)
		}
	})
}
