package server

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ollama-api-service/internal/auth"
)

// perAddress is a listener that bounds the concurrent connections of one address, before any key is read: a client that opens thousands
// costs memory for each. It closes further connections at once.
type perAddress struct {
	net.Listener
	most     int
	exempt   func(netip.Addr) bool
	refusals *refusals

	mu   sync.Mutex
	open map[netip.Prefix]int
}

// limitAddresses bounds l by most; 0 is without bound. Loopback and trusted proxies stand for many clients and are exempt.
func limitAddresses(l net.Listener, most int, trusted func() []netip.Prefix, r *refusals) net.Listener {
	exempt := func(a netip.Addr) bool { return most <= 0 || a.IsLoopback() || within(a, trusted()) }
	return &perAddress{Listener: l, most: most, exempt: exempt, refusals: r, open: make(map[netip.Prefix]int)}
}

func (l *perAddress) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr, ok := peer(c)
		_, proxied := c.(proxiedConn)
		a := &arrival{Conn: c, addr: addr, proxied: proxied}
		if !ok || l.exempt(addr) {
			return a, nil
		}
		network := auth.Neighbourhood(addr)
		if !l.take(network) {
			_ = c.Close() // no request was read, so there is no answer
			l.refusals.note(overConnections, addr, "")
			continue
		}
		a.done = func() { l.give(network) }
		return a, nil
	}
}

func peer(c net.Conn) (netip.Addr, bool) {
	a, err := netip.ParseAddrPort(c.RemoteAddr().String())
	return a.Addr().Unmap().WithZone(""), err == nil
}

func (l *perAddress) take(network netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[network] >= l.most {
		return false
	}
	l.open[network]++
	return true
}

func (l *perAddress) give(network netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[network]--; l.open[network] == 0 {
		delete(l.open, network)
	}
}

// news are the connections that have not begun their first request. A stop waits for them, because net/http drops without an answer what
// it reads after its Shutdown, and the client of a new connection cannot know that it may try again.
type news struct {
	n     atomic.Int64
	conns sync.Map
}

// follow is for http.Server.ConnState.
func (f *news) follow(c net.Conn, state http.ConnState) {
	if f.n.Load() == 0 && state != http.StateNew {
		return // as it is for each request of a connection that is kept
	}
	var key any = c
	if a := arrivalOf(c); a != nil {
		if a.waits.Load() != nil {
			return // it has come back from a stream
		}
		key = a // in HTTP/2, what is around it becomes another
	}
	if state == http.StateNew {
		f.n.Add(1)
		f.conns.Store(key, nil)
		return
	}
	if _, ok := f.conns.LoadAndDelete(key); ok {
		f.n.Add(-1)
	}
}

// settle waits until there are none, for at most that long.
func (f *news) settle(longest time.Duration) {
	for end := time.Now().Add(longest); f.n.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// limits of HTTP/2, which is spoken over TLS alone: a client's streams, what it may send unasked, and how long it may be silent.
var http2Limits = &http.HTTP2Config{
	MaxConcurrentStreams: 100, MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 256 << 10,
	SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: writeProgress,
}
