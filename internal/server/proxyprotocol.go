package server

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"

	"ollama-api-service/internal/api"
)

const (
	proxyHeaderTime  = 5 * time.Second
	mostProxyHeaders = 1024 // connections at one time whose header is being read
)

// proxyProtocol is a listener whose connections begin with a header of the PROXY protocol (version 1 or 2), which says where each
// comes from. Only trusted proxies may say so. Programs on this machine may come too, with the header that names no client (LOCAL):
// that is how health checks come.
type proxyProtocol struct {
	net.Listener
	trusted  func() []netip.Prefix
	refusals *refusals

	ready   chan net.Conn
	failed  chan error
	done    context.Context // ends when it is closed
	close   context.CancelFunc
	reading chan struct{}
	begin   sync.Once
}

func newProxyProtocol(l net.Listener, trusted func() []netip.Prefix, r *refusals) *proxyProtocol {
	p := &proxyProtocol{
		Listener: l, trusted: trusted, refusals: r,
		ready: make(chan net.Conn), failed: make(chan error), reading: make(chan struct{}, mostProxyHeaders),
	}
	p.done, p.close = context.WithCancel(context.Background())
	return p
}

// Accept returns the next connection whose header was read.
func (p *proxyProtocol) Accept() (net.Conn, error) {
	p.begin.Do(func() { go p.accept() })
	select {
	case c := <-p.ready:
		return c, nil
	case err := <-p.failed:
		return nil, err
	case <-p.done.Done():
		return nil, net.ErrClosed
	}
}

// Close stops listening. Connections whose header is being read are closed.
func (p *proxyProtocol) Close() error {
	p.close()
	return p.Listener.Close()
}

// accept reads several headers at the same time: a client that is slow with its own must not hold the others.
func (p *proxyProtocol) accept() {
	for {
		select {
		case p.reading <- struct{}{}:
		case <-p.done.Done():
			return
		}
		c, err := p.Listener.Accept()
		if err != nil {
			<-p.reading
			select {
			case p.failed <- err: // net/http decides whether it goes on
				continue
			case <-p.done.Done():
				return
			}
		}
		go func() {
			defer func() { <-p.reading }()
			p.greet(c)
		}()
	}
}

// greet reads the header of a connection and hands it on, or refuses it.
func (p *proxyProtocol) greet(c net.Conn) {
	stop := context.AfterFunc(p.done, func() { c.Close() })
	defer stop()
	from, _ := peer(c)
	proxies := p.trusted()
	trusted := within(from, proxies) || !from.IsValid() && slices.Contains(proxies, api.SocketPeers)
	here := !from.IsValid() || from.IsLoopback() || from == ownAddress(c)
	cause := "the peer is not in TRUSTED_PROXIES"
	if trusted || here {
		proxied := proxyproto.NewConn(c, proxyproto.WithPolicy(proxyproto.REQUIRE), proxyproto.SetReadHeaderTimeout(proxyHeaderTime))
		header := proxied.ProxyHeader()
		switch {
		case header == nil:
			cause = "it does not begin with a header of the PROXY protocol"
		case trusted || header.Command.IsLocal():
			select {
			case p.ready <- proxiedConn{proxied}:
				return
			case <-p.done.Done():
				cause = ""
			}
		}
	}
	_ = c.Close() // no request was read, so there is no answer
	if cause != "" {
		p.refusals.note(badProxyHeader, from, cause)
	}
}

// ownAddress is the address of this end: programs on this machine that connect to it come from it too.
func ownAddress(c net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(c.LocalAddr().String())
	return a.Addr().Unmap().WithZone("")
}

// proxiedConn is a connection that a proxy has passed on.
type proxiedConn struct{ *proxyproto.Conn }

// CloseWrite is what net/http looks for to end a connection whose client still sends.
func (c proxiedConn) CloseWrite() error {
	if half, ok := c.Raw().(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
