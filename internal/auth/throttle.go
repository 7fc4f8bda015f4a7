package auth

import (
	"net/netip"
	"sync"
	"time"
)

const (
	throttleWindow = time.Minute
	mostThrottled  = 100_000 // addresses counted in one window; more are answered like everybody
)

// Throttle counts failed authentications by address. It is asked only after a credential was found bad, so it refuses nothing
// that is good: guessing costs little and shows in the log, and a neighbour behind the same address notices nothing.
//
// Windows are fixed: across the edge of two of them an address has twice its number. Not for limits that must hold exactly.
type Throttle struct {
	most int
	now  func() time.Time

	mu     sync.Mutex
	window time.Time
	failed map[netip.Prefix]int
}

// NewThrottle lets an address fail most times a minute; 0 is without bound.
func NewThrottle(most int, now func() time.Time) *Throttle {
	return &Throttle{most: most, now: now}
}

// Failed counts a failure from addr. Where the address has had too many, it returns how long it should wait.
func (t *Throttle) Failed(addr netip.Addr) (wait time.Duration, over bool) {
	if t.most <= 0 || !addr.IsValid() {
		return 0, false
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.window) >= throttleWindow || now.Before(t.window) {
		t.window, t.failed = now, make(map[netip.Prefix]int)
	}
	network := neighbourhood(addr)
	n, known := t.failed[network]
	if !known && len(t.failed) >= mostThrottled {
		return 0, false
	}
	t.failed[network] = n + 1
	return t.window.Add(throttleWindow).Sub(now), n >= t.most
}

// neighbourhood is what one client has of addresses: one of IPv4, a /64 of IPv6.
func neighbourhood(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
