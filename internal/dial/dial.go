// Package dial opens connections that detect when the machine at their other end has vanished. A Target is one server: its address, and
// how it is reached.
package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Lost is how long sent bytes may wait for an acknowledgement. The other system acknowledges them even if its programs are slow.
	Lost    = 20 * time.Second
	timeout = 5 * time.Second

	// A connection that is silent in both directions has nothing to acknowledge, so the system sends probes.
	probeAfter = 5 * time.Second
	probeEvery = 5 * time.Second
	probeCount = 3
)

var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeAfter, Interval: probeEvery, Count: probeCount},
	ControlContext:  boundSocket,
}

// Context opens a connection like net.Dialer.DialContext, for an http.Transport. The connection ends within about Lost if the other end
// acknowledges nothing.
func Context(ctx context.Context, network, address string) (net.Conn, error) {
	return dialer.DialContext(ctx, network, address)
}

// Access is how a server is reached. The zero value trusts the roots of this machine and sends no credential.
type Access struct {
	// TLS returns the configuration for a new connection; nil means the default. It is called for each connection, so that a renewed file
	// is used.
	TLS func() (*tls.Config, error)
	// Header and Value are a credential that is sent with each request. An empty Header means none.
	Header, Value string
}

// Target is one server. Create it with To. It is safe for concurrent use.
type Target struct {
	URL *url.URL

	address string // host:port
	access  atomic.Pointer[Access]

	mu    sync.Mutex
	at    netip.Addr // the address of the last connection
	moved []func(leads func(netip.Addr) bool)
}

// To returns the server at base (http or https, no path).
func To(base *url.URL, access Access) *Target {
	t := &Target{URL: base}
	if base != nil {
		if t.address = base.Host; base.Port() == "" {
			t.address = net.JoinHostPort(base.Hostname(), map[string]string{"http": "80", "https": "443"}[base.Scheme])
		}
	}
	t.Use(access)
	return t
}

// Use changes how the server is reached, from the next connection and request on.
func (t *Target) Use(a Access) { t.access.Store(&a) }

// Access returns how the server is reached now.
func (t *Target) Access() *Access { return t.access.Load() }

// OnMove registers moved, which is called if a new connection shows that the server's name leads to another address than before. leads
// reports whether the name leads to an address now.
func (t *Target) OnMove(moved func(leads func(netip.Addr) bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.moved = append(t.moved, moved)
}

// Socket opens a TCP connection to the server.
func (t *Target) Socket(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := Context(ctx, "tcp", t.address)
	if err == nil {
		t.note(ctx, Remote(c))
	}
	return c, err
}

// Conn opens a connection to the server, with TLS for an https address. socket is the TCP connection below it.
func (t *Target) Conn(ctx context.Context) (c, socket net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if socket, err = t.Socket(ctx); err != nil || t.URL.Scheme != "https" {
		return socket, socket, err
	}
	config := &tls.Config{}
	if f := t.Access().TLS; f != nil {
		if config, err = f(); err != nil {
			return nil, nil, errors.Join(err, socket.Close())
		}
		config = config.Clone()
	}
	config.ServerName, config.MinVersion = t.URL.Hostname(), tls.VersionTLS12
	secure := tls.Client(socket, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, nil, errors.Join(err, socket.Close())
	}
	return secure, socket, nil
}

// lookupTime limits the lookup of a name while a connection is made.
const lookupTime = time.Second

// note compares the address of a connection with that of the previous one. A name with several addresses has not moved.
func (t *Target) note(ctx context.Context, now netip.Addr) {
	t.mu.Lock()
	before := t.at
	if !before.IsValid() {
		t.at = now
	}
	callbacks := t.moved
	t.mu.Unlock()
	if before == now || !before.IsValid() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.URL.Hostname())
	if err != nil {
		return // the next connection looks it up again
	}
	t.mu.Lock()
	t.at = now
	t.mu.Unlock()
	all := map[netip.Addr]bool{now: true}
	for _, a := range list {
		all[a.Unmap().WithZone("")] = true
	}
	if all[before] {
		return
	}
	for _, moved := range callbacks {
		moved(func(a netip.Addr) bool { return all[a] })
	}
}

// Remote returns the address at the other end of a TCP connection. For other connections the result is not valid.
func Remote(c net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	return a.Addr().Unmap().WithZone("")
}
