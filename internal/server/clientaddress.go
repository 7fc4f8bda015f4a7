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

// forwardingHeaders are the headers that proxies add. If a request has one of them, a proxy has forwarded it.
var forwardingHeaders = []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "X-Forwarded-Host", "X-Forwarded-Proto", "Via"}

// clientAddress returns the address of the client that sent the request. It is the address of the peer or, if the peer is a trusted proxy,
// the last address in X-Forwarded-For that is not a trusted proxy. If an entry is not an address, the entries before it are ignored.
func (s *Server) clientAddress(r *http.Request, proxies []netip.Prefix) (addr netip.Addr, forwarded bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err == nil {
		addr, _ = netip.ParseAddr(host)
		addr = addr.Unmap().WithZone("")
	}
	a, _ := r.Context().Value(arrivalKey{}).(*arrival)
	forwarded = !addr.IsValid() || a != nil && a.proxied // a program that connects to a Unix socket may forward other clients' requests
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
			s.badForwardedFor.report(s.Log, addr, list[i])
			break
		}
		addr = next
	}
	return addr, forwarded
}

// forwardedAddress parses an entry of X-Forwarded-For. Some proxies also write the client's port (Azure's gateways, IIS), or brackets
// around an IPv6 address.
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

// maxReportedProxies bounds the number of proxies that badForwardedFor remembers.
const maxReportedProxies = 100

// badForwardedFor logs, once for each trusted proxy, that the proxy sends entries that are not addresses.
type badForwardedFor struct {
	mu       sync.Mutex
	reported map[netip.Addr]bool
}

// report logs the kind of the entry, and never the entry itself, because a client may have written it.
func (o *badForwardedFor) report(log *slog.Logger, proxy netip.Addr, entry string) {
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
	if o.reported[proxy] || len(o.reported) >= maxReportedProxies {
		return
	}
	if o.reported == nil {
		o.reported = make(map[netip.Addr]bool)
	}
	o.reported[proxy] = true
	log.Warn("a proxy in TRUSTED_PROXIES sends an X-Forwarded-For entry that is not an IP address, so the requests of its clients count as its own: configure it to send the client's address",
		"proxy", addressText(proxy), "entry", kind)
}

// addressText returns an address as the log and the books show it. The peers of a Unix socket have no address.
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return "unknown"
	}
	return a.String()
}

// foreignPage reports whether a page of another site may have made a browser send this request: through a form or a link (the headers
// Origin and Sec-Fetch-Site show it), or through a host name that was made to point to this machine (the Host header shows it).
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
