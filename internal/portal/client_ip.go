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
		next, ok := parseHop(strings.TrimSpace(hop))
		if !ok {
			return ip // the proxy passed on something that is no address
		}
		ip = next
	}
	return ip
}

// parseHop takes an address, or an address and a port, as some proxies write.
func parseHop(s string) (netip.Addr, bool) {
	if addrPort, err := netip.ParseAddrPort(s); err == nil {
		return addrPort.Addr().Unmap().WithZone(""), true
	}
	addr, err := netip.ParseAddr(s)
	return addr.Unmap().WithZone(""), err == nil
}

func contains(prefixes []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(ip) })
}

func typeName(v any) string { return fmt.Sprintf("%T", v) }
