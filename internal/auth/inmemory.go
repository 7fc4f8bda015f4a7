package auth

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// failedRead is for how long no further read of the secrets is tried when one has failed.
const failedRead = time.Second

// secrets knows in memory which secrets the store has, eight bytes of each MAC: an address that guesses cannot make the gateway read the
// database, and a key of a client behind the same address is still found, also on its first request. Without SECRET_KEY no client can
// make a text whose MAC begins like another; where two do by chance, the store decides.
type secrets struct {
	mu         sync.Mutex
	generation uint64
	known      bool
	sums       []uint64 // sorted

	failed   error
	failedAt time.Time
}

// SpareStore has texts that t has counted, and all texts of an address that is over the bound of t, looked up in the store only where the
// store has their secret. It must be called before the first Identify.
func (a *Authenticator) SpareStore(t *Throttle) { a.throttle = t }

// inStore reports whether the store has a secret with this MAC, without reading it again unless a key has changed.
func (a *Authenticator) inStore(ctx context.Context, credential string, m mac) (bool, error) {
	s := &a.secrets
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.readLocked(ctx, a); err != nil {
		return false, err
	}
	if s.hasLocked(m) {
		return true, nil
	}
	return a.secret.previous != nil && s.hasLocked(a.secret.previous.sign(credential)), nil
}

func (s *secrets) hasLocked(m mac) bool {
	_, ok := slices.BinarySearch(s.sums, summary(m[:]))
	return ok
}

func (s *secrets) readLocked(ctx context.Context, a *Authenticator) error {
	generation, now := a.generation.Load(), a.now()
	if s.known && s.generation == generation {
		return nil
	}
	if since := now.Sub(s.failedAt); s.failed != nil && since >= 0 && since < failedRead {
		return s.failed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	var sums []uint64
	if err := a.store.Secrets(ctx, func(mac []byte) { sums = append(sums, summary(mac)) }); err != nil {
		s.failed, s.failedAt = err, a.now()
		return err
	}
	slices.SortFunc(sums, cmp.Compare[uint64])
	s.generation, s.known, s.sums, s.failed = generation, true, sums, nil
	return nil
}

// summary is the first eight bytes of a MAC.
func summary(mac []byte) uint64 {
	var first [8]byte
	copy(first[:], mac)
	return binary.BigEndian.Uint64(first[:])
}
