package portal

import (
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

var testProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}

func TestClientIP(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		remote, forwarded, want string
	}{
		{"203.0.113.9:1234", "", "203.0.113.9"},
		{"203.0.113.9:1234", "198.51.100.1", "203.0.113.9"}, // whoever connects directly is not believed
		{"10.0.0.1:1234", "", "10.0.0.1"},
		{"10.0.0.1:1234", "198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:1234", "6.6.6.6, 198.51.100.1", "198.51.100.1"}, // 6.6.6.6 was written by the visitor
		{"10.0.0.1:1234", "6.6.6.6,198.51.100.1 , 10.2.3.4", "198.51.100.1"},
		{"10.0.0.1:1234", "10.9.9.9, 10.2.3.4", "10.9.9.9"}, // all trusted: the first
		{"10.0.0.1:1234", "198.51.100.1, nonsense", "10.0.0.1"},
		{"10.0.0.1:1234", "nonsense, 10.2.3.4", "10.2.3.4"},
		{"10.0.0.1:1234", "198.51.100.1,", "10.0.0.1"},
		{"10.0.0.1:1234", "6.6.6.6|198.51.100.1", "198.51.100.1"}, // | = two header lines
		{"10.0.0.1:1234", "198.51.100.1|10.2.3.4", "198.51.100.1"},
		{"[fd00::1]:1234", "2001:db8::7", "2001:db8::7"},
		{"[fd00::1%eth0]:1234", "2001:db8::7", "2001:db8::7"},
		{"[2001:db8::9%eth0]:1", "", "2001:db8::9"},
		{"[::ffff:203.0.113.9]:1234", "", "203.0.113.9"},
		{"[::ffff:10.0.0.1]:1234", "::ffff:198.51.100.1", "198.51.100.1"},
		{"[::ffff:10.0.0.1]:1234", "6.6.6.6, ::ffff:10.0.0.2", "6.6.6.6"},
		{"10.0.0.1:1234", "fe80::1%eth0", "fe80::1"},
		{"10.0.0.1:1234", "198.51.100.1:4711", "198.51.100.1"}, // some proxies write the port too
		{"10.0.0.1:1234", "[2001:db8::7]:4711", "2001:db8::7"},
		{"", "198.51.100.1", "0.0.0.0"},
		{"@", "198.51.100.1", "0.0.0.0"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.remote
		for line := range strings.SplitSeq(c.forwarded, "|") {
			if line != "" {
				r.Header.Add("X-Forwarded-For", line)
			}
		}
		if got := ClientIP(r, testProxies); got.String() != c.want {
			t.Errorf("%s, forwarded for %q: %s, want %s", c.remote, c.forwarded, got, c.want)
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "10.0.0.1:1"
	r.Header.Set("X-Forwarded-For", "198.51.100.1")
	if got := ClientIP(r, nil); got.String() != "10.0.0.1" {
		t.Errorf("without TRUSTED_PROXIES: %s", got)
	}
}

func FuzzClientIP(f *testing.F) {
	f.Add("10.0.0.1:1", "1.2.3.4, 10.0.0.2")
	f.Add("1.2.3.4:1", "x")
	f.Add("[fd00::1%x]:1", "::1%y,")
	f.Fuzz(func(t *testing.T, remote, forwarded string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = remote
		r.Header["X-Forwarded-For"] = []string{forwarded}
		got := ClientIP(r, testProxies)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%#v", got)
		}
		peer, err := netip.ParseAddrPort(remote)
		if err != nil {
			return
		}
		if ip := peer.Addr().Unmap().WithZone(""); !contains(testProxies, ip) && got != ip {
			t.Fatalf("%s is no proxy and is believed: %s", ip, got)
		}
	})
}
