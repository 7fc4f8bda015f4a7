// Package auth authenticates requests: it creates key texts, finds the credential in a request, and finds the api.Key for it.
package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strings"
	"sync"
)

// A key text is oas_<id>_<secret><checksum>. The ID is public and names the key. The checksum keeps typing errors and guesses away from
// the database, and lets secret scanners tell leaked keys from similar text.
const (
	prefix         = "oas_"
	idLength       = 10
	secretLength   = 32 // 62^32 is 190 bits
	checksumLength = 6  // 62^6 > 2^32
	previewLength  = len(prefix) + idLength
	bodyLength     = previewLength + 1 + secretLength
	textLength     = bodyLength + checksumLength
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Mint creates a new key text and its preview. It returns the error of random.
func Mint(random io.Reader) (secret, preview string, err error) {
	id, err := randomText(random, idLength)
	if err != nil {
		return "", "", err
	}
	preview = prefix + id
	secret, err = Reissue(random, preview)
	return secret, preview, err
}

// Reissue creates a new key text for an existing preview, for a rotation. It returns the error of random, and an error for an invalid
// preview.
func Reissue(random io.Reader, preview string) (secret string, err error) {
	if !ValidPreview(preview) {
		return "", fmt.Errorf("a key preview is %q and %d letters or digits", prefix, idLength)
	}
	text, err := randomText(random, secretLength)
	if err != nil {
		return "", err
	}
	body := preview + "_" + text
	return body + checksumText(crc32.ChecksumIEEE([]byte(body))), nil
}

// Parse checks the format and the checksum of a key text and returns its preview. It does no I/O and allocates nothing.
func Parse(secret string) (preview string, ok bool) {
	if len(secret) != textLength || !ValidPreview(secret[:previewLength]) || secret[previewLength] != '_' {
		return "", false
	}
	// Use the table directly: hash/crc32 would move the bytes to the heap.
	sum := ^uint32(0)
	for i := range bodyLength {
		sum = crc32.IEEETable[byte(sum)^secret[i]] ^ sum>>8
		if i > previewLength && !isBase62(secret[i]) {
			return "", false
		}
	}
	sum = ^sum
	var wrong byte
	for i := textLength - 1; i >= bodyLength; i-- {
		wrong |= base62[sum%62] ^ secret[i]
		sum /= 62
	}
	return secret[:previewLength], wrong == 0
}

// MayHoldKey reports whether a text may contain a key: it contains the prefix of all keys.
func MayHoldKey(s string) bool { return strings.Contains(s, prefix) }

// ValidPreview reports whether s has the form of a preview: oas_ and ten letters or digits.
func ValidPreview(s string) bool {
	if len(s) != previewLength || s[:len(prefix)] != prefix {
		return false
	}
	for i := len(prefix); i < len(s); i++ {
		if !isBase62(s[i]) {
			return false
		}
	}
	return true
}

func isBase62(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

func checksumText(sum uint32) string {
	var text [checksumLength]byte
	for i := checksumLength - 1; i >= 0; i-- {
		text[i] = base62[sum%62]
		sum /= 62
	}
	return string(text[:])
}

// randomText draws n base62 characters. It discards bytes of 248 and above, because otherwise the first eight characters would be more
// frequent.
func randomText(random io.Reader, n int) (string, error) {
	text := make([]byte, 0, n)
	var block [48]byte
	for {
		if _, err := io.ReadFull(random, block[:]); err != nil {
			return "", fmt.Errorf("read random bytes: %w", err)
		}
		for _, b := range block {
			if b >= 248 {
				continue
			}
			if text = append(text, base62[b%62]); len(text) == n {
				return string(text), nil
			}
		}
	}
}

// checkText is what CheckMAC signs. Never change it: each database contains its MAC.
const checkText = "ollama-api-service: is this the SECRET_KEY of this database?"

// Secret is the SECRET_KEY and, during a change, the previous one. Printing it does not show them.
type Secret struct{ current, previous *signer }

// NewSecret takes SECRET_KEY and SECRET_KEY_PREVIOUS. An empty previous means none.
func NewSecret(current, previous string) Secret {
	s := Secret{current: newSigner(current)}
	if previous != "" {
		s.previous = newSigner(previous)
	}
	return s
}

// MAC is what the store keeps of a key text: its HMAC-SHA256 under the current SECRET_KEY.
func (s Secret) MAC(text string) []byte {
	m := s.current.sign(text)
	return m[:]
}

// CheckMAC is the MAC of a constant. The store keeps it, so that a start detects a wrong SECRET_KEY.
func (s Secret) CheckMAC() []byte { return s.MAC(checkText) }

// Check compares the stored MAC with this secret. ok reports that the secret belongs to the database. outdated reports that only the
// previous secret does: serve then stores the CheckMAC of the current one.
func (s Secret) Check(stored []byte) (ok, outdated bool) {
	if hmac.Equal(stored, s.CheckMAC()) {
		return true, false
	}
	if s.previous != nil {
		if m := s.previous.sign(checkText); hmac.Equal(stored, m[:]) {
			return true, true
		}
	}
	return false, false
}

// String prevents printing the secret.
func (s Secret) String() string { return "(secret)" }

// GoString is String for %#v.
func (s Secret) GoString() string { return "(secret)" }

type mac = [sha256.Size]byte

// signer computes MACs with pooled state: resetting an HMAC saves two hash blocks compared with a new one, and needs no heap memory.
type signer struct{ pool sync.Pool }

type signing struct {
	hash hash.Hash
	text []byte
	sum  []byte
}

func newSigner(key string) *signer {
	k := []byte(key)
	return &signer{pool: sync.Pool{New: func() any {
		return &signing{hash: hmac.New(sha256.New, k), text: make([]byte, 0, 256), sum: make([]byte, 0, sha256.Size)}
	}}}
}

func (s *signer) sign(text string) mac {
	w := s.pool.Get().(*signing)
	w.text = append(w.text[:0], text...)
	w.hash.Reset()
	w.hash.Write(w.text)
	w.sum = w.hash.Sum(w.sum[:0])
	m := mac(w.sum)
	clear(w.text) // leave no key text in the pool
	s.pool.Put(w)
	return m
}

// ValidRequestID reports whether a client's own request id can be kept, logged and sent back: it is short, plain, and no key.
func ValidRequestID(s string) bool {
	if len(s) > 128 || MayHoldKey(s) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("-_.:/+=", c) < 0 {
			return false
		}
	}
	return true
}
