package proxy

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ollama-api-service/internal/dial"
)

const (
	maxIdle       = 512              // connections kept per server
	maxIdleTime   = 90 * time.Second // how long a connection is kept: routers silently forget an idle connection
	readBuffer    = 2 << 10          // records have a few hundred bytes; larger reads bypass it
	deadlineGrain = time.Second      // how often a rolling deadline is moved at most: each move takes a lock in the poller
)

// conn is a connection to an upstream, with the state that shows whether it is stale. It belongs to one goroutine; other goroutines may
// call only shut.
type conn struct {
	net.Conn
	br     *bufio.Reader // from begin until the connection is in the pool, or until a stream has read what it holds; otherwise nil
	used   bool          // it carried a request before this one
	since  time.Time     // when it was returned to the pool
	got    atomic.Int64  // bytes read since the request began
	err    error         // of the last read
	budget int64         // bytes that may still be read of a header; negative: unbounded
	closed atomic.Bool

	rolling bool // reads set their own deadline, from idle and end
	idle    time.Duration
	end     time.Time
	pushed  time.Time // when the rolling deadline was last set; zero: not yet for this answer

	raw   syscall.RawConn // to inspect the socket; nil if the connection has no socket
	look  func(fd uintptr)
	quiet bool // the result of look: the socket is open and has nothing to read

	fill   func(fd uintptr) bool // reads into piece what has come; nil if that is not possible on this connection
	piece  *[]byte               // from pieces, while it is in use
	filled int                   // the result of fill, with err

	in    *Upstream   // the pool it belongs to; nil before its first request
	to    netip.Addr  // the address of the other end
	lost  atomic.Bool // it was closed because its server is gone
	watch watched
}

var errHeaderTooLong = errors.New("the header of the answer is longer than 64 KiB")

func newConn(c net.Conn, socket any) *conn {
	n := &conn{Conn: c, budget: -1}
	if s, ok := socket.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			n.raw, n.look = raw, func(fd uintptr) { n.quiet = quietSocket(fd) }
			if socketsRead && socket == any(c) {
				n.fill = n.fillPiece
			}
		}
	}
	return n
}

// begin makes the connection ready for a request.
func (c *conn) begin() {
	c.br = readers.Get().(*bufio.Reader)
	c.br.Reset(c)
	c.got.Store(0)
	c.rolling = false
}

// readers and pieces are buffers that connections have only while they use them: thousands of streams wait for their next record, and as
// many connections for their next request.
var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}
	pieces  = sync.Pool{New: func() any { b := make([]byte, readBuffer); return &b }}
)

// dropReader gives back the buffer of c.br, which must be empty.
func (c *conn) dropReader() {
	if c.br != nil {
		c.br.Reset(nil)
		readers.Put(c.br)
		c.br = nil
	}
}

func (c *conn) takePiece() []byte {
	if c.piece == nil {
		c.piece = pieces.Get().(*[]byte)
	}
	return *c.piece
}

// dropPiece gives back the buffer that readPiece has returned.
func (c *conn) dropPiece() {
	if c.piece != nil {
		pieces.Put(c.piece)
		c.piece = nil
	}
}

// readBody reads what the buffer still holds, or from the connection.
func (c *conn) readBody(p []byte) (int, error) {
	if c.br != nil {
		return c.br.Read(p)
	}
	return c.Read(p)
}

// readPiece returns the next bytes of a stream, in a buffer that the caller has until its next call or dropPiece. If possible, it waits
// without a buffer.
func (c *conn) readPiece() ([]byte, error) {
	if c.br != nil && c.br.Buffered() == 0 {
		c.dropReader()
	}
	if c.br != nil || c.fill == nil {
		p := c.takePiece()
		n, err := c.readBody(p)
		return p[:n], err
	}
	if c.rolling {
		if err := c.push(); err != nil {
			return nil, err
		}
	}
	c.filled, c.err = 0, nil
	if err := c.raw.Read(c.fill); err != nil {
		c.err = err
	}
	c.got.Add(int64(c.filled))
	return c.takePiece()[:c.filled], c.err
}

// fillPiece reports whether something has come.
func (c *conn) fillPiece(fd uintptr) bool {
	n, wait, err := readSocket(fd, c.takePiece())
	if wait {
		c.dropPiece()
		return false
	}
	c.filled, c.err = n, err
	return true
}

// roll bounds each later read by idle (0: no bound) and all later reads together by end (zero: no bound).
func (c *conn) roll(idle time.Duration, end time.Time) {
	c.rolling, c.idle, c.end, c.pushed = true, idle, end, time.Time{}
}

// stopRolling lets the caller set the deadline of reads again.
func (c *conn) stopRolling() { c.rolling = false }

// push sets the deadline of the next read. The idle time counts from the start of the read, not from the last byte, so that a slow client
// does not look like a silent upstream. The deadline is at most one deadlineGrain late, and never early.
func (c *conn) push() error {
	if !c.pushed.IsZero() && c.idle <= 0 {
		return nil
	}
	now, grain := time.Now(), min(deadlineGrain, c.idle/8)
	if !c.pushed.IsZero() && now.Sub(c.pushed) < grain {
		return nil
	}
	c.pushed = now
	return c.SetReadDeadline(earlier(c.idle+grain, now, c.end))
}

func (c *conn) Read(p []byte) (int, error) {
	if c.rolling {
		if err := c.push(); err != nil {
			return 0, err
		}
	}
	if c.budget >= 0 {
		if c.budget == 0 {
			return 0, errHeaderTooLong
		}
		p = p[:min(int64(len(p)), c.budget)]
	}
	n, err := c.Conn.Read(p)
	c.err = err
	c.got.Add(int64(n))
	if c.budget >= 0 {
		c.budget -= int64(n)
	}
	return n, err
}

func (c *conn) shut() {
	if c.closed.Swap(true) {
		return
	}
	if c.in != nil {
		c.in.removeBusy(c)
	}
	_ = c.Conn.Close() // an error does not matter: the connection is not used again
}

// usable reports whether a pooled connection may carry a request. A connection with unread bytes may not: no request asked for them, and
// they would be read as the answer to the next request, which may be another client's.
func (c *conn) usable() bool {
	if time.Since(c.since) > maxIdleTime {
		return false
	}
	return c.raw == nil || c.raw.Control(c.look) == nil && c.quiet
}

// take returns the pooled connection that was used most recently, or nil.
func (u *Upstream) take() *conn {
	for {
		c := u.pop()
		if c == nil || c.usable() {
			return c
		}
		c.shut()
	}
}

func (u *Upstream) pop() *conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := len(u.idle)
	if n == 0 {
		return nil
	}
	c := u.idle[n-1]
	u.idle[n-1] = nil
	u.idle = u.idle[:n-1]
	return c
}

// give returns a connection to the pool, and closes the pool's oldest one if it was unused for too long. Nothing may read from c
// afterwards.
func (u *Upstream) give(c *conn) {
	c.used, c.since = true, time.Now()
	c.dropReader()
	c.restoreBound()
	var drop *conn
	u.mu.Lock()
	delete(u.busy, c)
	switch {
	case u.closed || u.down || c.watch.moved || len(u.idle) >= maxIdle:
		drop = c
	case len(u.idle) > 0 && c.since.Sub(u.idle[0].since) > maxIdleTime:
		drop = u.idle[0]
		copy(u.idle, u.idle[1:])
		u.idle[len(u.idle)-1] = c
	default:
		u.idle = append(u.idle, c)
	}
	u.mu.Unlock()
	if drop != nil {
		drop.shut()
	}
}

// Close closes the idle connections, and those in use as soon as they are idle.
func (u *Upstream) Close() {
	u.mu.Lock()
	idle := u.idle
	u.idle, u.closed, u.down = nil, true, false
	u.wakeLocked()
	u.mu.Unlock()
	for _, c := range idle {
		c.shut()
	}
}

func (u *Upstream) dial(ctx context.Context) (*conn, error) {
	c, socket, err := u.target.Conn(ctx)
	if err != nil {
		return nil, dial.Explain(err)
	}
	n := newConn(c, socket)
	n.to = dial.Remote(socket)
	return n, nil
}
