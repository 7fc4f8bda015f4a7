// Package dial opens connections that notice when the machine at their other end has vanished. A Target is one server: where it is,
// and what it is reached with.
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
	// Lost is how long sent bytes may wait for an acknowledgement. The other system acknowledges them however slow its programs are.
	Lost    = 20 * time.Second
	timeout = 5 * time.Second

	// A connection that is silent in both directions has nothing to be acknowledged, so the system asks.
	askAfter = 5 * time.Second
	askEvery = 5 * time.Second
	askTimes = 3
)

var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: askAfter, Interval: askEvery, Count: askTimes},
	ControlContext:  boundSocket,
}

// Context opens a connection like net.Dialer.DialContext, for an http.Transport. It ends within about Lost when nothing that is sent
// to its other end is acknowledged.
func Context(ctx context.Context, network, address string) (net.Conn, error) {
	return dialer.DialContext(ctx, network, address)
}

// Access is what a server is reached with. Its zero value trusts what the machine trusts, and shows nothing.
type Access struct {
	// TLS is the configuration for a new connection; nil is the standard one. It is asked at each, so that a renewed file is taken up.
	TLS func() (*tls.Config, error)
	// Header and Value are a credential that is sent along with each request; Header is empty if there is none.
	Header, Value string
}

// Target is one server. To makes one; any goroutine may use it.
type Target struct {
	URL *url.URL

	address string // host:port
	access  atomic.Pointer[Access]

	mu    sync.Mutex
	at    netip.Addr // where the last connection led
	moved []func(leads func(netip.Addr) bool)
}

// To is the server at base (http or https, no path).
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

// Use reaches the server with other means from the next connection and request on.
func (t *Target) Use(a Access) { t.access.Store(&a) }

// Access is what the server is reached with now.
func (t *Target) Access() *Access { return t.access.Load() }

// OnMove has moved called when a new connection shows that the server's name leads elsewhere than before. leads reports whether an
// address is one that the name leads to now.
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

// Conn opens a connection to the server, with TLS if its address says https. socket is the TCP connection below.
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

// lookupTime bounds the question where a name leads, which is asked while a connection is made.
const lookupTime = time.Second

// note compares where a connection led with where the one before did. A name with several addresses has not moved.
func (t *Target) note(ctx context.Context, now netip.Addr) {
	t.mu.Lock()
	before := t.at
	if !before.IsValid() {
		t.at = now
	}
	told := t.moved
	t.mu.Unlock()
	if before == now || !before.IsValid() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.URL.Hostname())
	if err != nil {
		return // the next connection to it asks again
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
	for _, moved := range told {
		moved(func(a netip.Addr) bool { return all[a] })
	}
}

// Remote is the address at the other end of a TCP connection; of anything else it is not valid.
func Remote(c net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	return a.Addr().Unmap().WithZone("")
}
