package sched

import "time"

// Ollama computes answers in batches: each batch adds a token to the answer of every slot of the model, and has up to 512 tokens of each
// prompt that is being evaluated (continuous batching). A batch with a prompt takes many times as long as one without, so a long prompt
// stops the other slots while it is evaluated. That time is service to the request with the prompt, for each slot that it stops, and is its
// part of the backend's time. The gateway knows at the end of the request when the evaluation took place.

const (
	minReadPrompt = 256 // shorter prompts, in tokens, do not measure the time for a token: answers of others weigh too much in them
	readFactor    = 4   // a model reads at least this many times faster than it writes on a processor; on a GPU, often 50 times
	maxEnded      = 32  // the number of requests that are kept after their end
	cachedFactor  = 2   // a prompt that took this many times less than usual was most likely in Ollama's cache, and is no measurement
)

// NotePrompt notes, before Release, how long Ollama evaluated the prompt, by its own record.
func (l *Lease) NotePrompt(d time.Duration) {
	if l.sched != nil {
		l.read = max(0, d)
	}
}

// ReadingLeft estimates for how much longer Ollama (0.6.5) evaluates the prompt p if its client leaves now: it only stops when the prompt
// is evaluated, and its slot is in use until then. Of embeddings, the texts that have a slot are evaluated. 0 means not known, or
// evaluated.
func (l *Lease) ReadingLeft(p Prompt) time.Duration {
	if l.sched == nil || l.model == nil {
		return 0
	}
	l.sched.mu.Lock()
	defer l.sched.mu.Unlock()
	st := l.model
	perToken := st.perRead.median
	if perToken == 0 {
		perToken = st.perToken.median / readFactor
	}
	all := time.Duration(st.expect(l.payer.name, p)) * perToken
	if l.embeds {
		all = all * time.Duration(l.slots) / time.Duration(max(l.texts, l.slots))
	}
	return max(0, all-time.Since(l.sent()))
}

// readingLocked estimates how long the evaluation of the prompt took, starting at from, and how much of that was for this prompt: the same
// batches may have had other prompts. If the client left before the first byte, it took until then.
func (l *Lease) readingLocked(from, now time.Time) (took, own time.Duration) {
	st, tokens := l.model, l.counted.prompt
	if tokens <= 0 && l.prompt.Estimate > 0 {
		tokens = st.expect(l.payer.name, l.prompt)
	}
	if tokens <= 0 {
		return 0, 0
	}
	all := now.Sub(from)
	began := l.taken.Add(time.Duration(l.began.Load()))
	switch {
	case l.embeds: // nothing is generated
		took = all
	case l.read > 0:
		took = min(l.read, all)
	case began.After(from):
		took = began.Sub(from)
	case l.counted.prompt > 0:
		took = all - time.Duration(l.counted.answer)*st.perToken.median
	default:
		took = all
	}
	took = max(took, 0)
	// The batch that ran when the request arrived, and the time that a batch takes without a prompt, are not for the prompt.
	own = max(0, took-st.perToken.median*3/2)
	l.measureRead(tokens, own, now)
	perToken := st.perRead.median
	if perToken == 0 && tokens >= longPrompt {
		perToken = st.perToken.median / readFactor
	}
	return took, min(own, time.Duration(tokens)*perToken)
}

// measureRead measures the time for a token of a prompt. Each payer contributes the slowest of its recent prompts, because a cached prompt
// is no measurement, and a payer that repeats a prompt must not make its other prompts cheaper.
func (l *Lease) measureRead(tokens int64, own time.Duration, now time.Time) {
	if l.embeds || l.counted.prompt < minReadPrompt || own <= 0 || l.read == 0 && l.began.Load() == 0 {
		return
	}
	value := max(own/time.Duration(tokens), 1)
	if value < l.model.perRead.median/cachedFactor {
		return
	}
	l.model.perRead.set(l.payer.name, now, func(old time.Duration) time.Duration {
		return time.Duration(lower(int64(old), int64(value)))
	})
}

// delayLocked charges l, which is being released, for the slots that its prompt stopped, and credits the requests that had these slots.
// waited is how long l waited for loads of others. The rows of requests that have ended already do not change.
func (l *Lease) delayLocked(now time.Time, waited time.Duration) {
	srv, st := l.server, l.model
	from := l.sent().Add(waited)
	took, own := l.readingLocked(from, now)
	if own <= 0 || !now.After(from) {
		return
	}
	others := float64(st.work-l.modelWork-l.slotTime(now)) / float64(now.Sub(from)) // slots of others, on average
	l.delays = time.Duration(float64(own) * min(max(others, 0), float64(max(0, srv.limit(st)-l.slots))))
	to, part := from.Add(took), float64(own)/float64(took)
	for i := range st.ended {
		o := &st.ended[i]
		if o.payer != nil && o.to.After(from) && o.sent.Before(to) {
			back := time.Duration(part * float64(earlier(o.to, to).Sub(later(o.sent, from))) * float64(o.slots))
			back = max(0, min(back, o.charged))
			o.charged -= back
			o.payer.charge(-back)
		}
	}
	for _, o := range l.sched.running {
		begin := later(o.sent(), from)
		if o == l || o.model != st || !begin.Before(to) {
			continue
		}
		o.slowed += time.Duration(part * float64(to.Sub(begin)) * float64(o.slots))
		had := max(0, srv.shareAt(to, o.start())-srv.shareAt(begin, o.start()))
		had = min(time.Duration(part*float64(had)), srv.share-o.share)
		o.share += had
		l.used += time.Duration(o.slots) * had
	}
}

// endedRequest is a request that has ended. Its payer gets a credit if a prompt that stopped the request becomes known later.
type endedRequest struct {
	payer    *payerState
	sent, to time.Time
	slots    int
	charged  time.Duration
}

// note keeps l, which is being released, in the ring of the last requests.
func (st *modelState) note(l *Lease, charged time.Duration, now time.Time) {
	st.ended[st.ends%len(st.ended)] = endedRequest{l.payer, l.sent(), now, l.slots, charged}
	st.ends++
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
