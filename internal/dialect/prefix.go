package dialect

import (
	"bytes"
	"hash/maphash"
)

const (
	wholeLead = 64 << 10 // of a longer text or image, only both ends and the length are hashed
	longData  = 64       // a string of this many bytes that is not text is an image, or other data for the model
)

// beginsWith is the part of a prompt that counts as its beginning: one string, which grows with each turn.
var beginsWith = map[string]int{"prompt": 256}

// prefixSeed makes the hashes unpredictable: clients cannot choose texts with the same hash.
var prefixSeed = maphash.MakeSeed()

// beginning hashes a conversation from its start to the end of the first user message. What follows changes with each turn.
type beginning struct {
	hash maphash.Hash
	most int  // bytes that are hashed of each text; 0: all
	any  bool // something was hashed
	role bool // the next string is the role of a message
	user bool // the message is a user's
	done bool
}

// add hashes the next string of the value, given as the bytes between its quotes.
func (b *beginning) add(text []byte, read bool) {
	switch {
	case b.done:
		return
	case b.role:
		b.user, b.role = bytes.Equal(text, []byte("user")), false
		return
	case !read && len(text) < longData:
		return // the client's own marks, which change: Anthropic's clients move their cache_control along
	}
	if !b.any {
		b.hash.SetSeed(prefixSeed)
		b.any = true
	}
	n := len(text)
	if b.most > 0 {
		n = min(n, b.most)
		text = text[:n]
	}
	if n > wholeLead {
		_, _ = b.hash.Write(text[:wholeLead/2])
		text = text[n-wholeLead/2:]
	}
	_, _ = b.hash.Write(text)
	for ; n > 0; n >>= 8 { // separates one text from the next
		_ = b.hash.WriteByte(byte(n))
	}
}

// next notes the end of a message, or of the list of messages.
func (b *beginning) next() { b.done = b.done || b.user }

func (b *beginning) sum() uint64 {
	if !b.any {
		return 0
	}
	return b.hash.Sum64()
}

// prefix returns the hash of the conversation's beginning: the instructions before it, and its first messages.
func (o *object) prefix() uint64 {
	var leads [5]uint64
	any := uint64(0)
	for i, name := range [len(leads)]string{"system", "instructions", "messages", "prompt", "input"} {
		if m := o.find(name); m != nil {
			leads[i] = m.prefix
			any |= m.prefix
		}
	}
	if any == 0 {
		return 0
	}
	return maphash.Comparable(prefixSeed, leads)
}
