package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// refusalReason is why a connection was turned away, or ended, before a whole request was read from it.
type refusalReason string

const (
	overConnections refusalReason = "connections"
	badHandshake    refusalReason = "tls_handshake"
	badHeader       refusalReason = "bad_header"
	largeHeader     refusalReason = "header_too_large"
	lateHeader      refusalReason = "header_timeout"
	brokeHTTP2      refusalReason = "http2"
	notAccepted     refusalReason = "accept"
	badProxyHeader  refusalReason = "proxy_protocol"
)

// refusalWords are what the log says of each.
var refusalWords = map[refusalReason]string{
	overConnections: "connections were refused: an address has as many as MAX_CONNECTIONS_PER_ADDRESS allows; raise it, or name the proxy they come through in TRUSTED_PROXIES",
	badHandshake:    "connections were refused: their TLS could not be set up; look at the cause, and at whether the clients trust the certificate",
	badHeader:       "requests were refused before they could be read: they are no HTTP that this service understands",
	largeHeader:     "requests were refused before they could be read: their headers have more than 32 KiB; a large cookie is the usual cause",
	lateHeader:      "connections were closed: no whole request header came within 10 seconds",
	brokeHTTP2:      "connections were ended: they break HTTP/2, or send more of it than is allowed",
	badProxyHeader:  "connections were refused: PROXY_PROTOCOL is required, and a proxy in TRUSTED_PROXIES must begin each with its header",
	notAccepted:     "connections could not be accepted: if too many files are open, raise the limit of open files (LimitNOFILE)",
}

// refusalEvery is how often each reason is logged at most.
const refusalEvery = time.Minute

// refusals count what is turned away before a request is read: the access log has nothing of it.
type refusals struct {
	log   *slog.Logger
	count func(refusalReason)
	show  func(netip.Addr) string // of the network of an address, as much as the log may have; "" is nothing
	hide  func(text string) string

	mu     sync.Mutex
	by     map[refusalReason]*refusalSum
	blamed map[string]bool // addresses of connections that are counted and not closed yet

	stopping <-chan struct{}
}

// newRefusals needs the metrics of s.
func newRefusals(s *Server) *refusals {
	return &refusals{
		log: s.Log, count: s.metrics.refuse, show: s.network, hide: s.withoutAnyClient, stopping: s.stopping.Done(),
		by: make(map[refusalReason]*refusalSum), blamed: make(map[string]bool),
	}
}

// refusalSum is what the log has not had yet.
type refusalSum struct {
	n       int
	network string // of one of them
	cause   string
	timer   *time.Timer // runs since the last line
}

// note counts one. The first is logged at once, and those of the minute that follows together.
func (r *refusals) note(reason refusalReason, from netip.Addr, cause string) {
	r.count(reason)
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := r.by[reason]
	if sum == nil {
		sum = &refusalSum{}
		r.by[reason] = sum
	}
	sum.n++
	sum.cause = cause
	if from.IsValid() {
		sum.network = r.show(from)
	}
	if sum.timer == nil {
		r.tellLocked(reason, sum)
	}
}

// tellLocked writes the line of a sum and begins its next minute, or ends the minutes if there is nothing to tell.
func (r *refusals) tellLocked(reason refusalReason, sum *refusalSum) {
	sum.timer = nil
	if sum.n == 0 {
		return
	}
	attrs := []any{"reason", string(reason), "count", sum.n}
	if sum.network != "" {
		attrs = append(attrs, "network", sum.network) // of several it is one
	}
	if sum.cause != "" {
		attrs = append(attrs, "cause", sum.cause)
	}
	r.log.Warn(refusalWords[reason], attrs...)
	*sum = refusalSum{}
	sum.timer = time.AfterFunc(refusalEvery, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tellLocked(reason, sum)
	})
}

// close tells what has not been told.
func (r *refusals) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for reason, sum := range r.by {
		if sum.timer != nil {
			sum.timer.Stop()
		}
		r.tellLocked(reason, sum)
		if sum.timer != nil {
			sum.timer.Stop()
		}
	}
}

// maxCause bounds what the log has of a client's doing.
const maxCause = 200

// Write takes a line of net/http's own log: it is the only place that tells of a handshake that failed, of HTTP/2 that was broken, and
// of connections that the system does not give.
func (r *refusals) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	for prefix, reason := range map[string]refusalReason{
		"http: TLS handshake error from ":      badHandshake,
		"http2: server connection error from ": brokeHTTP2,
		"http: Accept error: ":                 notAccepted,
	} {
		rest, ok := strings.CutPrefix(text, prefix)
		if !ok {
			continue
		}
		var from netip.Addr
		cause := rest
		if address, why, ok := strings.Cut(rest, ": "); ok && reason != notAccepted {
			if at, err := netip.ParseAddrPort(address); err == nil {
				from, cause = at.Addr().Unmap(), why
			}
			if reason == brokeHTTP2 {
				r.blame(address)
			}
		}
		if !left(cause) {
			r.note(reason, from, r.hide(cause[:min(len(cause), maxCause)]))
		}
		break
	}
	if r.log.Enabled(context.Background(), slog.LevelDebug) {
		r.log.Debug(r.hide(text))
	}
	return len(line), nil
}

// blame notes that a connection is counted already, until it is closed.
func (r *refusals) blame(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blamed[address] = true
}

func (r *refusals) unblame(address string) (was bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was = r.blamed[address]
	delete(r.blamed, address)
	return was
}

// left reports whether a connection ended because its client closed it: nothing was refused then.
func left(cause string) bool {
	return cause == "EOF" || strings.HasSuffix(cause, ": EOF") ||
		strings.HasSuffix(cause, "connection reset by peer") || strings.HasSuffix(cause, "broken pipe")
}

// arrival is one connection, as net/http sees it come and go.
type arrival struct {
	net.Conn
	outer net.Conn // what net/http writes to: the arrival itself, or the TLS around it
	done  func()   // gives its place back; nil if it has none
	// proxied says that a proxy has named the client's address, as a forwarding header does.
	proxied bool
	addr    netip.Addr

	read    atomic.Int64 // bytes since the last request
	heard   atomic.Int64 // when the last came, in nanoseconds
	gone    atomic.Bool  // the last read found that the client has closed
	late    atomic.Bool  // or that it was too slow
	served  atomic.Bool  // a handler has seen what came
	settled atomic.Bool  // it has been idle
	closed  atomic.Bool

	early []byte                   // came with or after the request of a stream for which the connection was taken over
	waits atomic.Pointer[sync.Map] // has the connection as a key until its next bytes come; nil if it is not in one
}

func (a *arrival) Read(p []byte) (int, error) {
	n, err := a.readNext(p)
	a.read.Add(int64(n))
	a.heard.Store(time.Now().UnixNano())
	a.late.Store(errors.Is(err, os.ErrDeadlineExceeded))
	a.gone.Store(err != nil && !a.late.Load())
	return n, err
}

// CloseWrite is what net/http looks for to end a connection whose client still sends: without it the answer may be lost in a reset.
func (a *arrival) CloseWrite() error {
	if half, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (a *arrival) Close() error {
	if waiting := a.waits.Load(); waiting != nil {
		waiting.Delete(a)
	}
	if a.done != nil && !a.closed.Swap(true) {
		defer a.done()
	}
	return a.Conn.Close()
}

type arrivalKey struct{}

// arrivalOf is the arrival below a connection of net/http, or nil.
func arrivalOf(c net.Conn) *arrival {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	a, _ := c.(*arrival)
	return a
}

// withArrival lets a handler's context lead to its connection.
func withArrival(ctx context.Context, c net.Conn) context.Context {
	a := arrivalOf(c)
	if a != nil {
		a.outer = c
	}
	return context.WithValue(ctx, arrivalKey{}, a)
}

// reached notes that a request was read.
func reached(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a, _ := r.Context().Value(arrivalKey{}).(*arrival); a != nil {
			a.served.Store(true)
		}
		next.ServeHTTP(w, r)
	})
}

// follow sees each change of a connection. The connection was refused if bytes arrived, or none in time, and no handler saw them.
func (r *refusals) follow(c net.Conn, state http.ConnState) {
	a := arrivalOf(c)
	if a == nil || state != http.StateIdle && state != http.StateClosed {
		return
	}
	name, begun := protocol(c)
	first := !a.settled.Swap(true)
	read, served := a.read.Swap(0), a.served.Swap(false)
	reason := refusalReason("")
	switch {
	case !begun: // its failure is told by itself
	case name == "h2" && first && state == http.StateIdle: // its first bytes are no request
	case name == "h2" && state == http.StateClosed:
		if !r.unblame(c.RemoteAddr().String()) && r.cutShort(a) {
			reason = brokeHTTP2
		}
	case served || a.gone.Load() || read == 0 && !first:
	case a.late.Load():
		reason = lateHeader
	case read >= maxHeader:
		reason = largeHeader
	case read > 0:
		reason = badHeader
	}
	if reason != "" {
		r.note(reason, a.addr, "")
	}
}

// justHeard is how long after its last bytes a connection is closed that has done wrong.
const justHeard = 3 * time.Second

// cutShort reports whether HTTP/2 was ended by this side while its client was sending: net/http says nothing of a flood of frames.
func (r *refusals) cutShort(a *arrival) bool {
	select {
	case <-r.stopping:
		return false
	default:
		return !a.gone.Load() && !a.late.Load() && time.Since(time.Unix(0, a.heard.Load())) < justHeard
	}
}

// protocol is what was agreed in the handshake: "h2" for HTTP/2. begun is false while there is a handshake to come.
func protocol(c net.Conn) (name string, begun bool) {
	t, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return "", true
	}
	state := t.ConnectionState()
	return state.NegotiatedProtocol, state.HandshakeComplete
}
