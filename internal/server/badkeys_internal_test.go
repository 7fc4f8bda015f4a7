package server

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Of 1,000 bad keys of an address, one line a second is written, and the lines say how many there were.
func TestBadKeysWriteALineASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines, counted atomic.Int64
		b := &badKeys{by: map[netip.Prefix]*badKeyLines{}, tell: func(_ netip.Addr, leftOut int) {
			lines.Add(1)
			counted.Add(int64(leftOut))
		}}
		note := func(from string) {
			if leftOut, write := b.note(netip.MustParseAddr(from)); write {
				lines.Add(1)
				counted.Add(int64(leftOut) + 1)
			}
		}
		began := time.Now()
		for range 1000 { // a hundred a second
			note("192.0.2.1")
			time.Sleep(10 * time.Millisecond)
		}
		if n := lines.Load(); n != 10 {
			t.Errorf("%d lines in %s, want 10", n, time.Since(began))
		}
		note("198.51.100.7")
		if n := lines.Load(); n != 11 {
			t.Errorf("%d lines after the first bad key of another address, want 11", n)
		}
		time.Sleep(10 * time.Second) // without another request
		synctest.Wait()
		if lines.Load() != 12 || counted.Load() != 1001 || len(b.by) != 0 {
			t.Errorf("%d lines say %d requests and %d addresses are kept, want 12 lines, 1001 requests and no address", lines.Load(), counted.Load(), len(b.by))
		}
		for i := range mostBadKeys + 500 {
			b.note(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		}
		if len(b.by) > mostBadKeys+1 {
			t.Errorf("%d addresses are kept, want at most %d", len(b.by), mostBadKeys+1)
		}
		lines.Store(0)
		counted.Store(0)
		b.close()
		if lines.Load() != 1 || counted.Load() != 499 {
			t.Errorf("at the stop %d lines tell of %d, want 1 of the 499 beyond the bound", lines.Load(), counted.Load())
		}
	})
}
