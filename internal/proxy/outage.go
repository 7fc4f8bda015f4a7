package proxy

import (
	"errors"
	"net/netip"
	"time"

	"ollama-api-service/internal/dial"
)

const (
	lookEvery = time.Second
	// lostAfter is how long a server that is known to be down, or whose name leads elsewhere, may acknowledge nothing.
	lostAfter = 6 * time.Second
	// hungAfter is how long one that is known to be down may send nothing at all, although its system acknowledges or does not say.
	hungAfter = 30 * time.Second
	largeBody = 64 << 10 // more may not fit into what the other end has room for
)

// errLost is in the errors of requests whose connection was closed because its server was found to be gone.
var errLost = errors.New("the server is down and sends nothing")

// outage is what is known of a server that may be gone. Its fields are guarded by the mutex of the Upstream.
type outage struct {
	down      bool
	since     time.Time   // when it went down
	stirred   time.Time   // when anything last came from it meanwhile
	elsewhere func() bool // reports whether requests have another server to go to
	watching  bool
	wake      chan struct{}
}

// watched is what is known of a connection with a request on it. But for the first two it belongs to Upstream.watch.
type watched struct {
	large   bool // what is sent may not fit into what the other end has room for
	patient bool // what it waits for may be silent for long, and cannot be repeated elsewhere
	astray  bool // the server's name leads elsewhere by now

	got    int64
	still  time.Time // since when nothing came; zero: not looked at yet
	asking bool      // the last look found an answer of the other system missing
}

// Down says that the server does not answer, and Up that it does again. While it is down, no connection is kept for a later request, and
// those in use are given up when the other end acknowledges nothing or falls silent: requests without a byte of an answer fail with
// ErrUnanswered. One that still moves stays. elsewhere reports whether such requests have another server to go to.
func (u *Upstream) Down(elsewhere func() bool) {
	u.mu.Lock()
	if u.down || u.closed {
		u.mu.Unlock()
		return
	}
	u.down, u.since, u.elsewhere = true, time.Now(), elsewhere
	idle := u.idle
	u.idle = nil
	u.watchLocked()
	u.mu.Unlock()
	for _, c := range idle {
		c.shut()
	}
}

// Up ends what Down began.
func (u *Upstream) Up() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.down = false
}

// moved drops the connections to addresses that the server's name has left.
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
		c.watch.astray = !leads(c.to)
	}
	u.watchLocked()
	u.mu.Unlock()
	for _, c := range drop {
		c.shut()
	}
}

// Renew drops the idle connections, and those in use as soon as they are idle: the server is reached with other means now.
func (u *Upstream) Renew() { u.moved(func(netip.Addr) bool { return false }) }

// enter notes that a request is on c.
func (u *Upstream) enter(c *conn, r *Request) {
	large := r.Upload != nil || len(r.Body) > largeBody
	if large && c.raw != nil {
		dial.Bound(c.raw, false)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if c.in == nil {
		c.in = u
	}
	c.watch = watched{large: large, patient: r.Once || r.Upload != nil, astray: c.watch.astray}
	if c.closed.Load() {
		return
	}
	u.busy[c] = struct{}{}
	if large || u.down {
		u.watchLocked()
	}
}

// leave notes that c is closed.
func (u *Upstream) leave(c *conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.busy, c)
}

// loose readies a connection whose request has ended for the next one.
func (c *conn) loose() {
	if c.watch.large && c.raw != nil {
		dial.Bound(c.raw, true)
	}
}

// again reports whether a request that got no byte of an answer on c is sent once more on a new connection: c may have been stale, or led
// to where the server is no more. What changes a server is sent once, and one that is down is not asked again.
func (u *Upstream) again(c *conn, r *Request, tried bool) bool {
	if tried || r.Once || r.Upload != nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.down && (c.used || c.lost.Load())
}

// watchLocked looks after the connections in use until there is no more reason to.
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

// suspectLocked reports whether any connection in use has to be looked at.
func (u *Upstream) suspectLocked() bool {
	if u.down && len(u.busy) > 0 {
		return true
	}
	for c := range u.busy {
		if c.watch.large || c.watch.astray {
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

// lookLocked finds the connections in use behind which no server is.
func (u *Upstream) lookLocked(now time.Time) (gone []*conn) {
	for c := range u.busy {
		w := &c.watch
		if got := c.got.Load(); w.still.IsZero() || got != w.got || !c.silent() {
			if !w.still.IsZero() {
				u.stirred = now
			}
			w.got, w.still = got, now
		}
	}
	for c := range u.busy {
		if u.goneLocked(c, now) {
			gone = append(gone, c)
		}
	}
	return gone
}

// goneLocked reports whether the server behind c is not there any more, or does nothing for its request.
func (u *Upstream) goneLocked(c *conn, now time.Time) bool {
	w := &c.watch
	wait, known := c.unacknowledged()
	bound := dial.Lost // a large body is bounded here, because the system's own bound is off
	if u.down || w.astray {
		bound = lostAfter
	}
	// Two looks in a row: the answer to the system's question may be under way.
	missing := known && wait >= bound
	lost := missing && w.asking
	w.asking = missing
	if lost {
		return true
	}
	if !u.down || w.patient || c.got.Load() == 0 && !u.elsewhere() {
		return false
	}
	quiet := u.since
	for _, at := range []time.Time{u.stirred, w.still} {
		if at.After(quiet) {
			quiet = at
		}
	}
	return now.Sub(quiet) >= hungAfter
}

// silent reports whether nothing of the server waits to be read.
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
