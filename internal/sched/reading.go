package sched

import "time"

// Ollama puts up to 512 tokens of each prompt into the batches that bring the answers of the other slots of the model forward by a
// token each (continuous batching). Such a batch takes many times as long as one without a prompt, so a long prompt stops the other slots
// while it is evaluated. That time is not theirs: it is service to the request whose prompt it is, in each slot that it stops, and its part
// of the backend's time. When the evaluation took place is known at the end of the request.

const (
	leastRead = 256 // tokens of a prompt from which the time of one is measured: in a shorter one the answers of others weigh too much
	quicker   = 4   // times that a model reads faster than it writes, at least: on a processor; on a GPU, often 50
	mostEnded = 32  // requests that are kept after their end
	cached    = 2   // a prompt that took so many times less than usual was most likely in Ollama's cache, and measures nothing
)

// Read notes, before Release, how long Ollama says that it has evaluated the prompt.
func (l *Lease) Read(d time.Duration) {
	if l.sched != nil {
		l.read = max(0, d)
	}
}

// readingLocked is how long the evaluation of the prompt took from from on, as far as is known, and how much of that was for this prompt:
// in the same batches there may be others. Of a client that has left before the first byte, the time until then is taken.
func (l *Lease) readingLocked(from, now time.Time) (took, own time.Duration) {
	st, tokens := l.station, l.counted.prompt
	if tokens <= 0 && l.prompt.Estimate > 0 {
		tokens = st.expect(l.client.payer, l.prompt)
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
	// The batch that runs when the request comes, and what a batch takes without a prompt, is not for the prompt.
	own = max(0, took-st.perToken.median*3/2)
	l.measureRead(tokens, own, now)
	perToken := st.perRead.median
	if perToken == 0 && tokens >= longPrompt {
		perToken = st.perToken.median / quicker
	}
	return took, min(own, time.Duration(tokens)*perToken)
}

// measureRead learns what a token of a prompt takes. Each payer has its slowest of late: a cached prompt says nothing, and a payer
// that repeats one must not make its other prompts cheaper.
func (l *Lease) measureRead(tokens int64, own time.Duration, now time.Time) {
	if l.embeds || l.counted.prompt < leastRead || own <= 0 || l.read == 0 && l.began.Load() == 0 {
		return
	}
	value := max(own/time.Duration(tokens), 1)
	if value < l.station.perRead.median/cached {
		return
	}
	l.station.perRead.set(l.client.payer, now, func(old time.Duration) time.Duration {
		return time.Duration(lower(int64(old), int64(value)))
	})
}

// delayLocked has l, which is being released and has waited for others' loads for a while, pay for the slots that its prompt has stopped.
// Requests of that time have it back. On the rows of those that have ended meanwhile it stays: they are closed.
func (l *Lease) delayLocked(now time.Time, waited time.Duration) {
	p, st := l.place, l.station
	from := l.sent().Add(waited)
	took, own := l.readingLocked(from, now)
	if own <= 0 || !now.After(from) {
		return
	}
	others := float64(st.work-l.wide-l.slotTime(now)) / float64(now.Sub(from)) // slots of others, on average
	l.delays = time.Duration(float64(own) * min(max(others, 0), float64(max(0, p.limit(st)-l.slots))))
	to, part := from.Add(took), float64(own)/float64(took)
	for i := range st.ended {
		o := &st.ended[i]
		if o.client != nil && o.to.After(from) && o.sent.Before(to) {
			back := time.Duration(part * float64(earlier(o.to, to).Sub(later(o.sent, from))) * float64(o.slots))
			back = max(0, min(back, o.charged))
			o.charged -= back
			o.client.charge(-back)
		}
	}
	for _, o := range l.sched.running {
		begin := later(o.sent(), from)
		if o == l || o.station != st || !begin.Before(to) {
			continue
		}
		o.slowed += time.Duration(part * float64(to.Sub(begin)) * float64(o.slots))
		had := max(0, p.shareAt(to, o.start())-p.shareAt(begin, o.start()))
		had = min(time.Duration(part*float64(had)), p.share-o.share)
		o.share += had
		l.used += time.Duration(o.slots) * had
	}
}

// ended is a request that has ended: its payer may be charged less when the prompt is known that has stopped it.
type ended struct {
	client   *client
	sent, to time.Time
	slots    int
	charged  time.Duration
}

// note keeps l, which is being released and was charged that much, as one of those that ended last.
func (st *station) note(l *Lease, charged time.Duration, now time.Time) {
	st.ended[st.ends%len(st.ended)] = ended{l.client, l.sent(), now, l.slots, charged}
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
