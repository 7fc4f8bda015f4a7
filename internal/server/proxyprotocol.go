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
	mostProxyHeaders = 1024 // connections whose header is being read at the same time
)

// proxyProtocol is a listener whose connections begin with a header of the PROXY protocol (version 1 or 2). The header contains the
// client's address. Only trusted proxies may send such a header. Programs on this machine may connect with a header without an address
// (LOCAL), as health checks do.
type proxyProtocol struct {
	net.Listener
	trusted  func() []netip.Prefix
	refusals *refusals

	ready   chan net.Conn
	failed  chan error
	done    context.Context // ends when the listener is closed
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

// accept reads several headers at the same time, so that a slow client does not delay the others.
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
			case p.failed <- err: // net/http decides whether to continue
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

// greet reads the header of a connection, and passes the connection to Accept or closes it.
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

// ownAddress returns the local address of c. A program on this machine that connects to this address also connects from it.
func ownAddress(c net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(c.LocalAddr().String())
	return a.Addr().Unmap().WithZone("")
}

// proxiedConn is a connection that a proxy has forwarded.
type proxiedConn struct{ *proxyproto.Conn }

// CloseWrite lets net/http end a connection whose client is still sending.
func (c proxiedConn) CloseWrite() error {
	if half, ok := c.Raw().(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
