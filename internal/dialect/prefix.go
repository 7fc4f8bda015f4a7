package dialect

import "hash/maphash"

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

// add hashes the next string of the value, given by the place of the bytes between its quotes.
func (b *beginning) add(w *weigher, start, end int, read bool) {
	switch {
	case b.done:
		return
	case b.role:
		b.user, b.role = string(w.src[start:end]) == "user", false
		return
	}
	text := w.content(start, end)
	n := text.Len()
	if !read && n < longData {
		return // the client's own marks, which change: Anthropic's clients move their cache_control along
	}
	if !b.any {
		b.hash.SetSeed(prefixSeed)
		b.any = true
	}
	if b.most > 0 {
		n = min(n, b.most)
	}
	at := 0
	for _, t := range text {
		for _, part := range [2]span{{0, min(n, wholeLead/2)}, {max(n-wholeLead/2, wholeLead/2), n}} {
			if from, to := max(part.start-at, 0), min(part.end-at, len(t)); from < to {
				_, _ = b.hash.Write(t[from:to])
			}
		}
		at += len(t)
	}
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
