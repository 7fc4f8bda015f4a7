package server

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"ollama-api-service/internal/api"
)

// forwardingHeaders are those that a proxy adds. One of them means that a request was passed on.
var forwardingHeaders = []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "X-Forwarded-Host", "X-Forwarded-Proto", "Via"}

// clientAddress is the address of the client that sent the request: the peer, or, where the peer is a trusted proxy, the last address in
// X-Forwarded-For that is none. What comes before an entry that is no address is not believed.
func (s *Server) clientAddress(r *http.Request, proxies []netip.Prefix) (addr netip.Addr, forwarded bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err == nil {
		addr, _ = netip.ParseAddr(host)
		addr = addr.Unmap().WithZone("")
	}
	a, _ := r.Context().Value(arrivalKey{}).(*arrival)
	forwarded = !addr.IsValid() || a != nil && a.proxied // whatever connects to a Unix socket may pass requests of others on
	for _, name := range forwardingHeaders {
		if _, ok := r.Header[name]; ok {
			forwarded = true
		}
	}
	if len(proxies) == 0 || !forwarded {
		return addr, forwarded || foreignPage(r)
	}
	if len(r.Header["X-Forwarded-For"]) == 0 {
		return addr, forwarded
	}
	list := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	trusts := func() bool {
		return within(addr, proxies) || !addr.IsValid() && slices.Contains(proxies, api.SocketPeers)
	}
	for i := len(list) - 1; i >= 0 && trusts(); i-- {
		next, ok := forwardedAddress(list[i])
		if !ok {
			s.oddEntries.tell(s.Log, addr, list[i])
			break
		}
		addr = next
	}
	return addr, forwarded
}

// forwardedAddress reads an entry of X-Forwarded-For. Some proxies write the client's port too (Azure's gateways, IIS), and brackets
// around IPv6.
func forwardedAddress(entry string) (netip.Addr, bool) {
	entry = strings.Trim(strings.TrimSpace(entry), `"`)
	if a, err := netip.ParseAddr(entry); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if a, err := netip.ParseAddrPort(entry); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	if inner, ok := strings.CutPrefix(entry, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			a, err := netip.ParseAddr(inner)
			return a.Unmap().WithZone(""), err == nil && a.Is6()
		}
	}
	return netip.Addr{}, false
}

// maxOddProxies bounds of how many proxies it is kept that they were told of.
const maxOddProxies = 100

// oddEntries tell once of each trusted proxy that names its client in a way that is no address.
type oddEntries struct {
	mu   sync.Mutex
	told map[netip.Addr]bool
}

// tell logs what kind of entry it is, and never the entry: a client may have written it.
func (o *oddEntries) tell(log *slog.Logger, proxy netip.Addr, entry string) {
	kind := "something else"
	switch entry = strings.TrimSpace(entry); {
	case entry == "":
		kind = "nothing"
	case strings.EqualFold(entry, "unknown"):
		kind = "unknown"
	case strings.HasPrefix(entry, "_"):
		kind = "an obfuscated name"
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.told[proxy] || len(o.told) >= maxOddProxies {
		return
	}
	if o.told == nil {
		o.told = make(map[netip.Addr]bool)
	}
	o.told[proxy] = true
	log.Warn("a proxy in TRUSTED_PROXIES sends an X-Forwarded-For entry that is not an IP address, so the requests of its clients count as its own: configure it to send the client's address",
		"proxy", addressText(proxy), "entry", kind)
}

// addressText is an address as the log and the books have it. The peers of a Unix socket have none.
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return "unknown"
	}
	return a.String()
}

// foreignPage says whether a browser may have been sent here by a page of somebody else: by a form or a link (the Origin and
// the Sec-Fetch-Site header say so), or by a name that was made to point at this machine (the Host does).
func foreignPage(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if here := host == "localhost" || err == nil && a.IsLoopback(); !here {
		return true
	}
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	if origin := r.Header.Get("Origin"); origin != "" && origin != scheme+r.Host {
		return true
	}
	site := r.Header.Get("Sec-Fetch-Site")
	return site == "cross-site" || site == "same-site"
}

func within(a netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
