package proxy

import (
	"errors"
	"net/netip"
	"time"

	"ollama-api-service/internal/dial"
)

const (
	lookEvery = time.Second
	// lostAfter is how long a server may leave bytes unacknowledged if it is down or its name now leads to another address.
	lostAfter = 6 * time.Second
	// hungAfter is how long a server that is down may send nothing, even if its system acknowledges bytes or acknowledgments are unknown.
	hungAfter = 30 * time.Second
	largeBody = 64 << 10 // a larger body may not fit into the receive buffer of the other end
)

// errLost is in the errors of requests whose connection was closed because its server is gone.
var errLost = errors.New("the server is down and sends nothing")

// outage is the state of a server that may be gone. The mutex of the Upstream guards its fields.
type outage struct {
	down     bool
	since    time.Time   // when it went down
	lastByte time.Time   // when a byte last came from it since then
	hasOther func() bool // reports whether another server can take its requests
	watching bool
	wake     chan struct{}
}

// watched is the state of a connection with a request on it. Only Upstream.watch uses the fields of the second group.
type watched struct {
	large       bool // the body may not fit into the receive buffer of the other end
	mayBeSilent bool // the request may wait long for a byte, and cannot be repeated on another server
	moved       bool // the server's name now leads to another address

	got            int64
	quietSince     time.Time // when the last byte came; zero before the first look
	unacknowledged bool      // at the last look, acknowledgments were overdue
}

// Down marks the server as not answering; Up marks it as answering again. While the server is down, no connection is kept for a later
// request. A connection in use is closed when the other end acknowledges nothing or stops sending; its request fails with ErrUnanswered
// if no byte of an answer has come. A connection that still delivers bytes stays open. hasOther reports whether another server can take
// such requests.
func (u *Upstream) Down(hasOther func() bool) {
	u.mu.Lock()
	if u.down || u.closed {
		u.mu.Unlock()
		return
	}
	u.down, u.since, u.hasOther = true, time.Now(), hasOther
	idle := u.idle
	u.idle = nil
	u.watchLocked()
	u.mu.Unlock()
	for _, c := range idle {
		c.shut()
	}
}

// Up undoes Down.
func (u *Upstream) Up() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.down = false
}

// moved closes the connections to addresses that the server's name no longer leads to.
func (u *Upstream) moved(leads func(netip.Addr) bool) {
	u.mu.Lock()
	var drop []*conn
	kept := u.idle[:0]
	for _, c := range u.idle {
		if leads(c.to) {
			kept = append(kept, c)
		} else {
			drop = append(drop, c)
		}
	}
	clear(u.idle[len(kept):])
	u.idle = kept
	for c := range u.busy {
		c.watch.moved = !leads(c.to)
	}
	u.watchLocked()
	u.mu.Unlock()
	for _, c := range drop {
		c.shut()
	}
}

// Renew closes the idle connections, and those in use as soon as they are idle, because the way to reach the server has changed.
func (u *Upstream) Renew() { u.moved(func(netip.Addr) bool { return false }) }

// addBusy notes that a request is on c.
func (u *Upstream) addBusy(c *conn, r *Request) {
	large := r.Upload != nil || r.Body.Len() > largeBody
	if large && c.raw != nil {
		dial.Bound(c.raw, false)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if c.in == nil {
		c.in = u
	}
	c.watch = watched{large: large, mayBeSilent: r.Once || r.Upload != nil, moved: c.watch.moved}
	if c.closed.Load() {
		return
	}
	u.busy[c] = struct{}{}
	if large || u.down {
		u.watchLocked()
	}
}

// removeBusy notes that c is closed.
func (u *Upstream) removeBusy(c *conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.busy, c)
}

// restoreBound sets the system's bound on unacknowledged bytes again, which addBusy removes for a large body.
func (c *conn) restoreBound() {
	if c.watch.large && c.raw != nil {
		dial.Bound(c.raw, true)
	}
}

// resend reports whether a request that got no byte of an answer on c is sent once more on a new connection, because c was stale or led to
// an address that the server has left. A request that changes a server is sent once. A server that is down gets no second request.
func (u *Upstream) resend(c *conn, r *Request, tried bool) bool {
	if tried || r.Once || r.Upload != nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.down && (c.used || c.lost.Load())
}

// watchLocked starts watching the connections in use if there is a reason to.
func (u *Upstream) watchLocked() {
	if u.watching || !u.suspectLocked() {
		return
	}
	u.watching = true
	go u.watch()
}

func (u *Upstream) wakeLocked() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// suspectLocked reports whether any connection in use must be watched.
func (u *Upstream) suspectLocked() bool {
	if u.down && len(u.busy) > 0 {
		return true
	}
	for c := range u.busy {
		if c.watch.large || c.watch.moved {
			return true
		}
	}
	return false
}

func (u *Upstream) watch() {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-u.wake:
		}
		u.mu.Lock()
		gone := u.lookLocked(time.Now())
		more := u.suspectLocked()
		u.watching = more
		u.mu.Unlock()
		for _, c := range gone {
			c.lost.Store(true)
			c.shut()
		}
		if !more {
			return
		}
	}
}

// lookLocked returns the connections in use whose server is gone.
func (u *Upstream) lookLocked(now time.Time) (gone []*conn) {
	for c := range u.busy {
		w := &c.watch
		if got := c.got.Load(); w.quietSince.IsZero() || got != w.got || !c.silent() {
			if !w.quietSince.IsZero() {
				u.lastByte = now
			}
			w.got, w.quietSince = got, now
		}
	}
	for c := range u.busy {
		if u.goneLocked(c, now) {
			gone = append(gone, c)
		}
	}
	return gone
}

// goneLocked reports whether the server of c is gone, or no longer works on the request.
func (u *Upstream) goneLocked(c *conn, now time.Time) bool {
	w := &c.watch
	wait, known := c.unacknowledged()
	bound := dial.Lost // a large body is bounded here, because the system's own bound is off
	if u.down || w.moved {
		bound = lostAfter
	}
	// Two looks in a row must find it missing: an acknowledgment may be under way.
	missing := known && wait >= bound
	lost := missing && w.unacknowledged
	w.unacknowledged = missing
	if lost {
		return true
	}
	if !u.down || w.mayBeSilent || c.got.Load() == 0 && !u.hasOther() {
		return false
	}
	quiet := u.since
	for _, at := range []time.Time{u.lastByte, w.quietSince} {
		if at.After(quiet) {
			quiet = at
		}
	}
	return now.Sub(quiet) >= hungAfter
}

// silent reports whether no byte from the server is waiting to be read.
func (c *conn) silent() bool {
	if c.raw == nil {
		return true
	}
	quiet := true
	if err := c.raw.Control(func(fd uintptr) { quiet = quietSocket(fd) }); err != nil {
		return true // closed
	}
	return quiet
}

func (c *conn) unacknowledged() (time.Duration, bool) {
	if c.raw == nil {
		return 0, false
	}
	return dial.Unacknowledged(c.raw)
}
