package server

import (
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

// bodies is the memory that request bodies take, by payer. A payer may hold as much as is free, so that others find room (the dynamic
// threshold of Choudhury and Hahne, 1998): alone it has at most half. One request of a payer that holds nothing else may have all that is
// left, so that a body of the largest size always fits.
type bodies struct {
	most int64 // bytes of all payers

	mu     sync.Mutex
	held   int64
	payers map[string]int64
}

// take adds more bytes to a request of the payer that holds own already. It returns CodeUnavailable where there is no room.
func (b *bodies) take(payer string, own, more int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.payers[payer]
	message := ""
	switch free := b.most + beyond - b.held; {
	case more > free:
		message = "the gateway has as many large bodies in hand as it may (MAX_BODY_MEMORY): try again in a few seconds"
	case all > own && all+more > free:
		message = "the large bodies of this key take its share of the gateway's memory (MAX_BODY_MEMORY): wait for its other requests"
	}
	if message != "" {
		return &api.Error{Code: api.CodeUnavailable, RetryAfter: 5 * time.Second, Message: message}
	}
	if b.payers == nil {
		b.payers = make(map[string]int64)
	}
	b.held += more
	b.payers[payer] = all + more
	return nil
}

// give returns bytes that were taken.
func (b *bodies) give(payer string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held -= n
	if b.payers[payer] -= n; b.payers[payer] <= 0 {
		delete(b.payers, payer)
	}
}

// bytes is what all bodies hold.
func (b *bodies) bytes() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}
