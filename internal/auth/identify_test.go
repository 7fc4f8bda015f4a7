package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

var (
	noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	home = netip.MustParseAddr("127.0.0.1")
)

// bed is an Authenticator with a real database and a clock that tests can set.
type bed struct {
	testing.TB
	*Authenticator
	store  *store.Store
	secret Secret
	clock  atomic.Int64
}

func newBed(t testing.TB) *bed {
	t.Helper()
	st, err := store.Create(t.Context(), filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{TB: t, store: st, secret: NewSecret("the secret of this test, long enough", "")}
	b.clock.Store(noon.UnixNano())
	b.Authenticator = b.over(b.secret)
	t.Cleanup(func() { st.Close() })
	return b
}

func (b *bed) now() time.Time       { return time.Unix(0, b.clock.Load()).UTC() }
func (b *bed) pass(d time.Duration) { b.clock.Add(int64(d)) }
func (b *bed) by() api.Change       { return api.Change{Actor: "test", From: "local", At: b.now()} }
func (b *bed) over(s Secret) *Authenticator {
	a := New(b.store, s, []Static{
		{Preview: "env-admin", Secret: "an-admin-key-from-the-settings", Key: api.Key{Name: "ADMIN_API_KEY", Role: api.RoleAdmin}},
		{Preview: "demo-user", Secret: "demo-user-key-67890", Key: api.Key{Name: "demo", Role: api.RoleUser}, Demo: true},
	}, b.now)
	b.Cleanup(a.Close)
	return a
}

func (b *bed) key(k api.Key) (text, preview string) {
	b.Helper()
	text, _, err := Mint(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	return text, b.save(text, k)
}

func (b *bed) save(text string, k api.Key) (preview string) {
	b.Helper()
	k.Preview, _ = Parse(text)
	if k.Role == "" {
		k.Role = api.RoleUser
	}
	usual := api.NewKey("test key", api.RoleUser, nil)
	k.Name, k.Weight, k.Class = usual.Name, usual.Weight, usual.Class
	if err := b.store.CreateKey(b.Context(), k, b.secret.MAC(text), b.by()); err != nil {
		b.Fatal(err)
	}
	return k.Preview
}

func (b *bed) accepts(text, preview string) *api.Key {
	b.Helper()
	k, err := b.Identify(b.Context(), text, home, false)
	if err != nil {
		b.Fatalf("key refused: %v", err)
	}
	if k.Preview != preview {
		b.Fatalf("key is %s, want %s", k.Preview, preview)
	}
	return k
}

func (b *bed) refuses(text string) {
	b.Helper()
	k, err := b.Identify(b.Context(), text, home, false)
	if k != nil || err == nil {
		b.Fatal("key accepted")
	}
	e := api.AsError(err)
	if want := api.AsError(errInvalid("")).Message; e.Code != api.CodeUnauthorized || e.Message != want {
		b.Fatalf("error is %v, want the common message for invalid keys", err)
	}
	if strings.Contains(err.Error(), text) && len(text) > 0 {
		b.Fatal("the error repeats the credential")
	}
}

func TestIdentify(t *testing.T) {
	b := newBed(t)
	limit := int64(7)
	text, preview := b.key(api.Key{RateLimit: &limit, Models: []string{"tiny"}})
	for range 2 { // loaded, then cached
		if k := b.accepts(text, preview); *k.RateLimit != 7 || k.Models[0] != "tiny" || k.OldSecretUntil != nil || k.Static {
			t.Errorf("key is %+v", k)
		}
	}
}

// With the store closed, each read of the database is CodeUnavailable. These refusals need no read.
func TestNoDatabaseForWhatIsNoKey(t *testing.T) {
	b := newBed(t)
	text, _ := b.key(api.Key{})
	b.store.Close()
	sum := sha256.Sum256([]byte(text))
	for name, bad := range map[string]string{
		"bad checksum":     text[:52] + string(base62[(strings.IndexByte(base62, text[52])+1)%62]),
		"other prefix":     "oaz_" + text[4:],
		"truncated":        text[:52],
		"newline":          text + "\n",
		"NUL":              text + "\x00",
		"zero width space": text + "\u200b",
		"full width":       "\uff4f\uff41\uff53_" + text[4:],
		"space in front":   " " + text,
		"or":               "' OR 1=1--",
		"drop":             "'; DROP TABLE keys",
		"64 KiB":           strings.Repeat("a", 64<<10),
		"not UTF-8":        "\xff\xfe" + text[2:],
		"SHA-256":          hex.EncodeToString(sum[:]),
		"empty":            "",
		"preview alone":    text[:previewLength],
	} {
		t.Run(name, func(t *testing.T) {
			b.TB = t
			b.refuses(bad)
		})
	}
	_, err := b.Identify(t.Context(), text, home, false)
	if e := api.AsError(err); e.Code != api.CodeUnavailable || e.RetryAfter == 0 {
		t.Errorf("error is %v, want unavailable: the database is closed", err)
	}
}

func TestKeysThatShareAllButTheLastCharacter(t *testing.T) {
	b := newBed(t)
	// There are no two valid texts with the same ID that differ only in their last character (CRC32 detects each change of one
	// character), so the closest pair differs in the last character of the secret and in the checksum.
	body := "oas_SameSameSa_" + strings.Repeat("x", secretLength-1)
	pair := [2]string{}
	for i, c := range []string{"1", "2"} {
		pair[i] = body + c + checksumText(crc32.ChecksumIEEE([]byte(body+c)))
	}
	preview := b.save(pair[0], api.Key{})
	b.accepts(pair[0], preview)
	b.refuses(pair[1])
	// Two keys whose IDs differ only in the last character are two keys.
	other := "oas_SameSameSb_" + strings.Repeat("x", secretLength)
	other += checksumText(crc32.ChecksumIEEE([]byte(other)))
	b.accepts(other, b.save(other, api.Key{Role: api.RoleAdmin}))
	if k := b.accepts(pair[0], preview); k.Role != api.RoleUser {
		t.Errorf("role is %s, want %v", k.Role, api.RoleUser)
	}
}

func TestRevokedIsGoneAfterForget(t *testing.T) {
	b := newBed(t)
	text, preview := b.key(api.Key{})
	b.accepts(text, preview)
	if _, err := b.store.RevokeKey(t.Context(), preview, b.by()); err != nil {
		t.Fatal(err)
	}
	b.accepts(text, preview) // answered by the cache: otherwise this test would prove nothing
	b.Forget()
	b.refuses(text)
}

func TestUnknownKeyIsNotCached(t *testing.T) {
	b := newBed(t)
	text, preview, _ := Mint(rand.Reader)
	b.refuses(text)
	b.save(text, api.Key{})
	b.accepts(text, preview)
}

func TestExpiryCountsAlsoForACachedKey(t *testing.T) {
	b := newBed(t)
	at := noon.Add(10 * time.Second)
	text, preview := b.key(api.Key{ExpiresAt: &at})
	b.accepts(text, preview)
	b.pass(10*time.Second - time.Millisecond)
	b.accepts(text, preview)
	b.pass(time.Millisecond)
	b.refuses(text)
}

func TestRotation(t *testing.T) {
	b := newBed(t)
	old, preview := b.key(api.Key{})
	fresh, _ := Reissue(rand.Reader, preview)
	if _, err := b.store.RotateKey(t.Context(), preview, b.secret.MAC(fresh), time.Minute, b.by()); err != nil {
		t.Fatal(err)
	}
	b.Forget()
	if k := b.accepts(fresh, preview); k.OldSecretUntil != nil {
		t.Error("the new secret is reported as old")
	}
	k := b.accepts(old, preview)
	if k.OldSecretUntil == nil || !k.OldSecretUntil.Equal(noon.Add(time.Minute)) {
		t.Errorf("OldSecretUntil is %v", k.OldSecretUntil)
	}
	b.pass(time.Minute - time.Millisecond)
	b.accepts(old, preview)
	b.pass(time.Millisecond)
	b.refuses(old)
	b.Forget()
	b.refuses(old)
	b.accepts(fresh, preview)
}

func TestChangeOfSecretKey(t *testing.T) {
	b := newBed(t)
	replaced, preview := b.key(api.Key{})
	text, _ := Reissue(rand.Reader, preview)
	if _, err := b.store.RotateKey(t.Context(), preview, b.secret.MAC(text), time.Hour, b.by()); err != nil {
		t.Fatal(err)
	}
	const next = "the next secret, which is long enough too"
	before := b.Authenticator

	b.Authenticator = b.over(NewSecret(next, ""))
	b.refuses(text)
	b.Authenticator = b.over(NewSecret(next, "the secret of this test, long enough"))
	b.accepts(text, preview)
	if b.accepts(replaced, preview).OldSecretUntil == nil {
		t.Error("the replaced secret is reported as current")
	}
	// Both were hashed again on use: the old SECRET_KEY is no longer needed and no longer works.
	b.Authenticator = b.over(NewSecret(next, ""))
	b.accepts(text, preview)
	b.accepts(replaced, preview)
	b.Authenticator = before
	b.refuses(text)
}

func TestAllowedIPs(t *testing.T) {
	b := newBed(t)
	var office api.Network
	if err := office.UnmarshalText([]byte("10.1.0.0/16")); err != nil {
		t.Fatal(err)
	}
	text, _ := b.key(api.Key{AllowedIPs: []api.Network{office}})
	for addr, allowed := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.2.0.1": false, "::1": false} {
		_, err := b.Identify(t.Context(), text, netip.MustParseAddr(addr), false)
		if allowed && err != nil || !allowed && (err == nil || api.AsError(err).Code != api.CodeForbidden) {
			t.Errorf("from %s: %v", addr, err)
		}
	}
	if _, err := b.Identify(t.Context(), text, netip.Addr{}, false); err == nil {
		t.Error("allowed from an unknown address")
	}
}

func TestStaticKeys(t *testing.T) {
	b := newBed(t)
	b.store.Close() // static keys are in memory
	k := b.accepts("an-admin-key-from-the-settings", "env-admin")
	if k.Role != api.RoleAdmin || !k.Static {
		t.Errorf("key is %+v", k)
	}
	if _, err := b.Identify(t.Context(), "an-admin-key-from-the-settings", home, true); err != nil {
		t.Errorf("behind a proxy: %v", err)
	}
	b.accepts("demo-user-key-67890", "demo-user")
	if _, err := b.Identify(t.Context(), "demo-user-key-67890", home, true); err == nil || api.AsError(err).Code != api.CodeUnauthorized {
		t.Errorf("demo key behind a proxy: %v, want an error, %s", err, api.CodeUnauthorized)
	}
	b.refuses("an-admin-key-from-the-setting")
	b.refuses("env-admin")
}

func TestConcurrentRequestsAndChanges(t *testing.T) {
	b := newBed(t)
	text, preview := b.key(api.Key{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if _, err := b.Identify(t.Context(), text, home, false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 20 {
		note := fmt.Sprint(i)
		var patch api.KeyPatch
		if err := patch.UnmarshalJSON([]byte(`{"note":"` + note + `"}`)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.store.ChangeKey(t.Context(), preview, patch, b.by()); err != nil {
			t.Fatal(err)
		}
		b.Forget()
		// A key that was being loaded during the change must not be found after Forget.
		if k := b.accepts(text, preview); k.Note != note {
			t.Fatalf("note is %q after Forget, want %q", k.Note, note)
		}
	}
	wg.Wait()
}

// A request that gives up must not fail others that wait for the same load.
func TestCancelledRequestDoesNotReadAsBadKey(t *testing.T) {
	b := newBed(t)
	text, preview := b.key(api.Key{})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Identify(gone, text, home, false); err == nil || api.AsError(err).Code == api.CodeUnauthorized {
		t.Errorf("error is %v, want an error, not %s", err, api.CodeUnauthorized)
	}
	b.accepts(text, preview)
}

func BenchmarkIdentify(b *testing.B) {
	bed := newBed(b)
	text, preview := bed.key(api.Key{})
	bed.accepts(text, preview)
	for name, credential := range map[string]string{"cached": text, "static": "an-admin-key-from-the-settings", "bad": text[:52] + "?"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx := b.Context()
			for b.Loop() {
				bed.Identify(ctx, credential, home, false)
			}
		})
	}
}
