package api

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What a key's state is at a time: an expiring one is active too.
const (
	KeyActive   = "active"   // it works
	KeyExpiring = "expiring" // it works, and ends within 30 days
	KeyExpired  = "expired"
	KeyRevoked  = "revoked"
)

// KeyStates are all of them.
var KeyStates = []string{KeyActive, KeyExpiring, KeyExpired, KeyRevoked}

// KeyOrders are what keys can be sorted by; a hyphen in front turns each around.
var KeyOrders = []string{"created_at", "name", "role", "expires_at"}

const expiringSoon = 30 * 24 * time.Hour

// KeyQuery chooses keys. Its zero value is all of them, the newest first.
type KeyQuery struct {
	Text   string   // part of the name, the preview or the note, whatever the case
	States []string // any of these; none is all
	Role   Role     // "" is both
	Sort   string   // of KeyOrders; "" is -created_at
}

// Select are the keys that are asked for, in the order that is asked for; those that are equal in it by preview. It changes keys.
func (q *KeyQuery) Select(keys []Key, now time.Time) []Key {
	text := strings.ToLower(q.Text)
	has := func(s string) bool { return strings.Contains(strings.ToLower(s), text) }
	keys = slices.DeleteFunc(keys, func(k Key) bool {
		return !(has(k.Name) || has(k.Preview) || has(k.Note)) || q.Role != "" && k.Role != q.Role ||
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

// Place is where a key is in the order: together with its preview, a page can begin behind it, whatever is added meanwhile.
func (q *KeyQuery) Place(k *Key) string {
	at := func(t time.Time) string { return fmt.Sprintf("%015d", t.UnixMilli()) }
	switch by, _ := q.order(); by {
	case "name":
		return strings.ToLower(k.Name)
	case "role":
		return string(k.Role)
	case "expires_at":
		if k.ExpiresAt == nil {
			return "never" // behind all digits
		}
		return at(*k.ExpiresAt)
	}
	return at(k.CreatedAt)
}

// Behind reports whether the key comes after a place.
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
