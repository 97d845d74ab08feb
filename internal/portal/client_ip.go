package portal

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// ClientIP is the address of the visitor: the connection's own, or, where that is a trusted
// proxy, the last address of X-Forwarded-For that is not one. What stands before that address was
// written by the visitor and is not believed.
func ClientIP(r *http.Request, trusted []netip.Prefix) netip.Addr {
	addrPort, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.IPv4Unspecified()
	}
	ip := addrPort.Addr().Unmap().WithZone("")
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		if !contains(trusted, ip) {
			return ip
		}
		next, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			return ip // the proxy passed on something that is no address
		}
		ip = next.Unmap().WithZone("")
	}
	return ip
}

func contains(prefixes []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(ip) })
}

func typeName(v any) string { return fmt.Sprintf("%T", v) }
