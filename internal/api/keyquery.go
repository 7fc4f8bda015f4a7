package api

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The states of a key. An expiring key is active too.
const (
	KeyActive   = "active"   // works
	KeyExpiring = "expiring" // works, and expires within 30 days
	KeyExpired  = "expired"
	KeyRevoked  = "revoked"
)

// KeyStates lists the states.
var KeyStates = []string{KeyActive, KeyExpiring, KeyExpired, KeyRevoked}

// KeyOrders are the fields that keys can be sorted by. A leading hyphen reverses the order.
var KeyOrders = []string{"created_at", "name", "role", "expires_at"}

const expiringSoon = 30 * 24 * time.Hour

// KeyQuery selects keys. Its zero value selects all keys, newest first.
type KeyQuery struct {
	KeyFilter
	Text   string   // part of the name, the preview or the note, in any case
	States []string // any of these; empty means all
	Sort   string   // one of KeyOrders; "" means -created_at
}

// Select returns the selected keys in the requested order, and in the order of their previews if they are equal in it. It changes keys.
func (q *KeyQuery) Select(keys []Key, now time.Time) []Key {
	text := strings.ToLower(q.Text)
	has := func(s string) bool { return strings.Contains(strings.ToLower(s), text) }
	keys = slices.DeleteFunc(keys, func(k Key) bool {
		return !(has(k.Name) || has(k.Preview) || has(k.Note)) || !q.has(&k) ||
			len(q.States) > 0 && !slices.ContainsFunc(q.States, func(s string) bool { return k.In(s, now) })
	})
	slices.SortFunc(keys, func(a, b Key) int { return q.compare(q.Place(&a), a.Preview, q.Place(&b), b.Preview) })
	return keys
}

// In reports whether the key is in a state at now.
func (k *Key) In(state string, now time.Time) bool {
	switch state {
	case KeyRevoked:
		return k.RevokedAt != nil
	case KeyExpired:
		return k.RevokedAt == nil && !k.Live(now)
	case KeyExpiring:
		return k.Live(now) && k.ExpiresAt != nil && k.ExpiresAt.Before(now.Add(expiringSoon))
	}
	return k.Live(now)
}

// Place returns the sort key of a key. With its preview, it marks the position after which the next page begins, even if keys are added.
func (q *KeyQuery) Place(k *Key) string {
	at := func(t time.Time) string { return fmt.Sprintf("%015d", t.UnixMilli()) }
	switch by, _ := q.order(); by {
	case "name":
		return strings.ToLower(k.Name)
	case "role":
		return string(k.Role)
	case "expires_at":
		if k.ExpiresAt == nil {
			return "never" // sorts after all digits
		}
		return at(*k.ExpiresAt)
	}
	return at(k.CreatedAt)
}

// Behind reports whether the key comes after a place in the order.
func (q *KeyQuery) Behind(k *Key, place, preview string) bool {
	return q.compare(q.Place(k), k.Preview, place, preview) > 0
}

func (q *KeyQuery) order() (by string, descending bool) {
	return strings.CutPrefix(cmp.Or(q.Sort, "-created_at"), "-")
}

func (q *KeyQuery) compare(a, previewA, b, previewB string) int {
	c := strings.Compare(a, b)
	if _, descending := q.order(); descending {
		c = -c
	}
	return cmp.Or(c, strings.Compare(previewA, previewB))
}
