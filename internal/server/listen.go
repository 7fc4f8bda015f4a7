package server

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"ollama-api-service/internal/auth"
)

// perAddress is a listener that takes at most so many connections of one address at one time, before anybody is asked for a
// key: a client that opens thousands costs memory for each. A connection above that is closed at once.
type perAddress struct {
	net.Listener
	most   int
	exempt func(netip.Addr) bool

	mu   sync.Mutex
	open map[netip.Prefix]int
}

// limitAddresses bounds l by most; 0 is without bound. Loopback and trusted proxies stand for many clients and are exempt.
func limitAddresses(l net.Listener, most int, trusted []netip.Prefix) net.Listener {
	if most <= 0 {
		return l
	}
	exempt := func(a netip.Addr) bool { return a.IsLoopback() || within(a, trusted) }
	return &perAddress{Listener: l, most: most, exempt: exempt, open: make(map[netip.Prefix]int)}
}

func (l *perAddress) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr, ok := peer(c)
		if !ok || l.exempt(addr) {
			return c, nil
		}
		network := auth.Neighbourhood(addr)
		if !l.take(network) {
			_ = c.Close() // there is nobody to tell
			continue
		}
		return &countedConn{Conn: c, done: sync.OnceFunc(func() { l.give(network) })}, nil
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

type countedConn struct {
	net.Conn
	done func()
}

// CloseWrite is what net/http looks for to end a connection whose client still sends: without it the answer may be lost in a reset.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *countedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}

// limits of HTTP/2, which is spoken over TLS alone: a client's streams, what it may send unasked, and how long it may be silent.
var http2Limits = &http.HTTP2Config{
	MaxConcurrentStreams: 100, MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 256 << 10,
	SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: writeProgress,
}
