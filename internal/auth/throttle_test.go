package auth

import (
	"net/netip"
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	th := NewThrottle(3, func() time.Time { return now })
	one, neighbour, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff:2"), netip.MustParseAddr("192.0.2.1")
	for i, from := range []netip.Addr{one, neighbour, one} {
		if _, over := th.Failed(from); over {
			t.Errorf("failure %d is one too many", i+1)
		}
	}
	now = now.Add(20 * time.Second)
	if wait, over := th.Failed(neighbour); !over || wait != 40*time.Second {
		t.Errorf("the fourth: %v, wait %v", over, wait)
	}
	if _, over := th.Failed(other); over {
		t.Error("another address is throttled")
	}
	now = now.Add(40 * time.Second)
	if _, over := th.Failed(one); over {
		t.Error("a minute later it still is")
	}
	now = now.Add(-time.Hour) // a clock that was set back must not throttle for an hour
	if _, over := th.Failed(one); over {
		t.Error("throttled after the clock was set back")
	}
	for i := range mostThrottled + 10 {
		th.Failed(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if len(th.failed) > mostThrottled {
		t.Errorf("%d addresses are kept", len(th.failed))
	}
	if _, over := NewThrottle(0, time.Now).Failed(one); over {
		t.Error("0 is a bound")
	}
}
