package auth

import (
	"context"
	"crypto/hmac"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

const (
	// cacheTTL limits how long a change stays unnoticed if Forget was not called.
	cacheTTL     = 30 * time.Second
	cacheEntries = 100_000
	// loadTimeout limits one read of the database, which several requests may wait for.
	loadTimeout = 5 * time.Second
	// maxCredential limits the work for an unknown text, in bytes. All keys are shorter.
	maxCredential = 512
)

// Static is a key from a setting. It is never stored.
type Static struct {
	Preview string
	Key     api.Key
	Secret  string
	// Demo marks a public key: it is refused on requests that a proxy forwarded.
	Demo bool
}

// Authenticator turns key texts into keys. Its methods may be called concurrently.
type Authenticator struct {
	store   *store.Store
	secret  Secret
	statics atomic.Pointer[[]static]
	now     func() time.Time
	cache   *otter.Cache[cacheKey, *api.Key]
	// generation is part of each cache key, so that a key loaded before Forget is not found after it, even if its load ends later.
	generation atomic.Uint64
	throttle   *Throttle // or nil
	secrets    secrets
}

type static struct {
	mac  mac
	key  *api.Key
	demo bool
}

// cacheKey contains the whole MAC: with only the preview, any secret would match.
type cacheKey struct {
	mac        mac
	generation uint64
}

// New returns an Authenticator for the store. now returns the time for expiry and grace periods.
func New(st *store.Store, secret Secret, statics []Static, now func() time.Time) *Authenticator {
	a := &Authenticator{
		store: st, secret: secret, now: now,
		cache: otter.Must(&otter.Options[cacheKey, *api.Key]{
			MaximumSize:      cacheEntries,
			ExpiryCalculator: otter.ExpiryWriting[cacheKey, *api.Key](cacheTTL),
		}),
	}
	a.ChangeStatics(statics)
	return a
}

// Forget clears the key cache. After it returns, each key is read from the store again. Call it after every change.
func (a *Authenticator) Forget() {
	a.generation.Add(1)
	a.cache.InvalidateAll()
}

// Close stops the background work of the cache.
func (a *Authenticator) Close() { a.cache.StopAllGoroutines() }

// Identify finds the key for a credential from Credential. from is the client's address; forwarded reports that the request has a
// forwarding header. The returned key is shared and must not be changed. If the secret was replaced by a rotation, OldSecretUntil is set.
//
// It returns CodeUnauthorized, always with the same message, for a text that is not a key, for an unknown, revoked or expired key, and
// for an old secret after its grace period. It returns CodeForbidden for an address that is not in the key's list, and CodeUnavailable if
// the store fails, because that does not mean that the key is wrong.
func (a *Authenticator) Identify(ctx context.Context, credential string, from netip.Addr, forwarded bool) (*api.Key, error) {
	if len(credential) > maxCredential {
		return nil, errInvalid("longer than any key")
	}
	m := a.secret.current.sign(credential)
	key, err := a.staticKey(&m, forwarded || !from.IsLoopback())
	if err != nil {
		return nil, err
	}
	if key == nil {
		if key, err = a.storedKey(ctx, credential, m, from); err != nil {
			return nil, err
		}
	}
	// Check this for cached keys too, because time passes.
	now := a.now()
	if !key.Live(now) {
		return nil, errInvalid(key.Preview + " is revoked or expired")
	}
	if key.OldSecretUntil != nil && !now.Before(*key.OldSecretUntil) {
		return nil, errInvalid(key.Preview + ": secret replaced and its grace period has ended")
	}
	if !key.Allows(from) {
		return nil, api.Wrap(api.CodeForbidden, fmt.Errorf("%s used from outside its allowed_ips", key.Preview),
			"this API key is not allowed from your address: ask an administrator to add it to the key's allowed_ips")
	}
	return key, nil
}

// matchStatic returns the index of the static key with this MAC, or -1. It compares all of them without stopping at a match, so that its
// duration reveals nothing.
func matchStatic(statics []static, m *mac) int {
	match := -1
	for i := range statics {
		match = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(statics[i].mac[:], m[:]), i, match)
	}
	return match
}

func (a *Authenticator) staticKey(m *mac, forwarded bool) (*api.Key, error) {
	statics := *a.statics.Load()
	match := matchStatic(statics, m)
	if match < 0 {
		return nil, nil
	}
	if statics[match].demo && forwarded {
		return nil, api.Errorf(api.CodeUnauthorized, "demo keys work only on the machine itself, not through a proxy: create your own key with \"ollama-api-service keys create\"")
	}
	return statics[match].key, nil
}

func (a *Authenticator) storedKey(ctx context.Context, credential string, m mac, from netip.Addr) (*api.Key, error) {
	preview, ok := Parse(credential)
	if !ok {
		return nil, errInvalid("not a key, or its checksum is wrong")
	}
	ck := cacheKey{mac: m, generation: a.generation.Load()}
	// Look up without a loader first: its closure would be the only allocation of a cached request.
	if key, ok := a.cache.GetIfPresent(ck); ok {
		return key, nil
	}
	if a.throttle.Spent(from, credential) {
		switch has, err := a.inStore(ctx, credential, m); {
		case err != nil:
			return nil, errUnreadable(err)
		case !has:
			return nil, errNoSecret(preview)
		}
	}
	key, err := a.cache.Get(ctx, ck, otter.LoaderFunc[cacheKey, *api.Key](func(ctx context.Context, ck cacheKey) (*api.Key, error) {
		// Other requests wait for this load too, so it must not end with the first request.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		return a.load(ctx, preview, credential, ck.mac)
	}))
	switch {
	case err == nil:
		return key, nil
	case errors.Is(err, otter.ErrNotFound):
		return nil, errNoSecret(preview)
	default:
		return nil, errUnreadable(err)
	}
}

func errUnreadable(err error) error {
	e := api.Wrap(api.CodeUnavailable, err, "the key database cannot be read now: try again in a few seconds")
	e.RetryAfter = 5 * time.Second
	return e
}

// load reads a key and checks the secret. otter.ErrNotFound means "no such key or another secret" and is not cached, so that a flood of
// guesses cannot evict real keys.
func (a *Authenticator) load(ctx context.Context, preview, credential string, m mac) (*api.Key, error) {
	stored, err := a.store.Key(ctx, preview)
	if err != nil {
		if e := (*api.Error)(nil); errors.As(err, &e) && e.Code == api.CodeNotFound {
			return nil, otter.ErrNotFound
		}
		return nil, err
	}
	current, replaced := hmac.Equal(stored.MAC, m[:]), hmac.Equal(stored.PreviousMAC, m[:])
	if !current && !replaced && a.secret.previous != nil {
		old := a.secret.previous.sign(credential)
		current, replaced = hmac.Equal(stored.MAC, old[:]), hmac.Equal(stored.PreviousMAC, old[:])
		if current || replaced {
			// The key is valid even if this fails, and the next load tries again.
			_ = a.store.RehashKey(ctx, preview, old[:], m[:])
		}
	}
	key := stored.Key
	switch {
	case current:
	case replaced:
		until := stored.PreviousUntil
		key.OldSecretUntil = &until
	default:
		return nil, otter.ErrNotFound
	}
	return &key, nil
}

func errNoSecret(preview string) error { return errInvalid(preview + ": no key has this secret") }

// errInvalid has the same message in all cases, so that it does not reveal which keys exist. The cause is only for the log.
func errInvalid(cause string) error {
	return api.Wrap(api.CodeUnauthorized, errors.New(cause), "this API key is not valid: unknown, revoked or expired; check that it is complete, or ask an administrator for a new one")
}
