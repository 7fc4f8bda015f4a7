package server

import (
	"net/netip"
	"sync"
	"time"

	"ollama-api-service/internal/auth"
)

const (
	badKeyMessage = "authentication failed"
	badKeyEvery   = time.Second     // a line of an address at most
	badKeyQuiet   = 2 * time.Second // after its last line, what was left out is logged without waiting for another request
	mostBadKeys   = 100_000         // addresses that are told apart; all further ones have one line a second together
)

// badKeys bounds the log lines about keys that are not valid: one a second for each address, with the number of those left out. Guessing
// must not fill the log, where it would hide everything else.
type badKeys struct {
	tell func(from netip.Addr, leftOut int)

	mu     sync.Mutex
	by     map[netip.Prefix]*badKeyLines
	closed bool
}

// badKeyLines are those of one address.
type badKeyLines struct {
	from    netip.Addr
	last    time.Time
	leftOut int
	timer   *time.Timer
}

// note counts a request with a bad key. write reports whether to log it; leftOut is how many before it were not.
func (b *badKeys) note(from netip.Addr) (leftOut int, write bool) {
	now, network := time.Now(), auth.Neighbourhood(from)
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := b.by[network]
	if lines == nil && len(b.by) >= mostBadKeys {
		from, network = netip.Addr{}, netip.Prefix{}
		lines = b.by[network]
	}
	switch {
	case b.closed:
		return 0, true // a few at the end of a stop
	case lines == nil:
		lines = &badKeyLines{from: from}
		b.by[network] = lines
		lines.timer = time.AfterFunc(badKeyQuiet, func() { b.settle(network, lines) })
	case now.Sub(lines.last) < badKeyEvery:
		lines.leftOut++
		return 0, false
	default:
		lines.timer.Reset(badKeyQuiet)
	}
	leftOut = lines.leftOut
	lines.last, lines.leftOut = now, 0
	return leftOut, true
}

// settle tells what was left out of an address that has sent no bad key since, and forgets the address if that is nothing.
func (b *badKeys) settle(network netip.Prefix, lines *badKeyLines) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed || time.Since(lines.last) < badKeyQuiet: // there was a line meanwhile
	case lines.leftOut == 0:
		delete(b.by, network)
	default:
		b.tell(lines.from, lines.leftOut)
		lines.last, lines.leftOut = time.Now(), 0
		lines.timer.Reset(badKeyQuiet)
	}
}

// close tells what has not been told.
func (b *badKeys) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, lines := range b.by {
		lines.timer.Stop()
		if lines.leftOut > 0 {
			b.tell(lines.from, lines.leftOut)
		}
	}
	clear(b.by)
}

// tellBadKeys logs how many lines of an address were left out.
func (s *Server) tellBadKeys(from netip.Addr, leftOut int) {
	attrs := []any{"left_out", leftOut}
	if client := s.LogAddress.Show(from); client != "" {
		attrs = append(attrs, "client", client)
	}
	s.Log.Warn(badKeyMessage, attrs...)
}
