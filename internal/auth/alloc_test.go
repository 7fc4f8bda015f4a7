//go:build !race

package auth

import (
	"testing"

	"ollama-api-service/internal/api"
)

// Under the race detector, pools drop entries at random, so this counts allocations without it.
func TestIdentifyCachedAllocatesNothing(t *testing.T) {
	b := newBed(t)
	text, preview := b.key(api.Key{})
	b.accepts(text, preview)
	if n := testing.AllocsPerRun(200, func() { b.Identify(t.Context(), text, home, false) }); n >= 1 {
		t.Errorf("%v allocations, want less than 1", n)
	}
}
