package server

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// Of 1,000 bad keys of an address, one line a second is written, and the lines say how many there were.
func TestBadKeysWriteALineASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines, counted := 0, 0
		b := &badKeys{by: map[netip.Prefix]*badKeyLines{}, tell: func(_ netip.Addr, leftOut int) {
			lines++
			counted += leftOut
		}}
		note := func(from string) {
			if leftOut, write := b.note(netip.MustParseAddr(from)); write {
				lines++
				counted += leftOut + 1
			}
		}
		began := time.Now()
		for range 1000 { // a hundred a second
			note("192.0.2.1")
			time.Sleep(10 * time.Millisecond)
		}
		if lines != 10 {
			t.Errorf("%d lines in %s, want 10", lines, time.Since(began))
		}
		note("198.51.100.7")
		if lines != 11 {
			t.Errorf("the first line of another address is not written")
		}
		time.Sleep(10 * time.Second) // without another request
		synctest.Wait()
		if lines != 12 || counted != 1001 || len(b.by) != 0 {
			t.Errorf("%d lines say %d requests and %d addresses are kept, want 12 lines, 1001 requests and no address", lines, counted, len(b.by))
		}
		for i := range mostBadKeys + 500 {
			b.note(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		}
		if len(b.by) > mostBadKeys+1 {
			t.Errorf("%d addresses are kept, want at most %d", len(b.by), mostBadKeys+1)
		}
		lines, counted = 0, 0
		b.close()
		if lines != 1 || counted != 499 {
			t.Errorf("at the stop %d lines tell of %d, want 1 of the 499 beyond the bound", lines, counted)
		}
	})
}
