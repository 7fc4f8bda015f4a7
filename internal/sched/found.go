package sched

import (
	"slices"
	"time"
)

// A load that the gateway did not begin: a request was sent to a server that was said to have its model in its memory, and Ollama had
// thrown it out (keep_alive, memory, another client), so Ollama loaded it again. It is found when the request ends. The first request that
// was sent into the load has caused it. What the others had of the server while they waited for the load is not theirs: it is the first
// one's, and does not count for their payers.

const (
	// A shorter wait for a model is no load: half of what a load takes there, but never less than leastFound, and at most mostFound. One that
	// is in memory is ready within milliseconds, and within tens of them on busy processors.
	leastFound = 100 * time.Millisecond
	mostFound  = 200 * time.Millisecond
	mostMarks  = 256 // changes of inFlight that are kept, to know what a lease had at a time
	farBeyond  = 4   // times the usual wait for a first byte
)

// Loaded notes, before Release, how long Ollama says that it took to have the model ready.
func (l *Lease) Loaded(d time.Duration) {
	if l.sched != nil {
		l.loaded, l.said = d, true
	}
}

// Began notes the first byte of an answer that streams.
func (l *Lease) Began() {
	if l.sched != nil {
		l.began.Store(int64(time.Since(l.taken)))
	}
}

// Found is for how long, after Release, the request waited for a load that the gateway did not begin, and that it has caused; 0 for most.
func (l *Lease) Found() time.Duration { return l.found }

// foundLoad is the last load of a place: one that was found, or the gateway's own.
type foundLoad struct {
	from, to time.Time
	cause    *client
}

// mark is what a lease that was there from the start had of a place at a time.
type mark struct {
	at    time.Time
	share time.Duration
}

// marks are the latest of a place: between two of them its share grows evenly.
type marks struct {
	ring [mostMarks]mark
	n    int // that were made
}

func (m *marks) add(at time.Time, share time.Duration) {
	m.ring[m.n%mostMarks] = mark{at, share}
	m.n++
}

// shareAt is the share of the place at a time that is not ahead. If that is before all marks that are kept, it is between start and them.
func (p *place) shareAt(t time.Time, start mark) time.Duration {
	after := mark{p.shared, p.share}
	for i := p.marks.n - 1; i >= max(0, p.marks.n-mostMarks); i-- {
		m := p.marks.ring[i%mostMarks]
		if m.at.Before(start.at) {
			break
		}
		if !m.at.After(t) {
			return between(m, after, t)
		}
		after = m
	}
	return between(start, after, t)
}

func between(a, b mark, t time.Time) time.Duration {
	whole, part := b.at.Sub(a.at), t.Sub(a.at)
	if whole <= 0 || part >= whole {
		return b.share
	}
	return a.share + time.Duration(float64(b.share-a.share)*(float64(part)/float64(whole)))
}

// sent is when the request went to its server.
func (l *Lease) sent() time.Time { return l.taken.Add(l.Loading) }

// firstByte is how long a streamed answer took to begin, or 0.
func (l *Lease) firstByte() time.Duration { return max(0, time.Duration(l.began.Load())-l.Loading) }

// waitedForLoad is for how long the request waited in Ollama for a load. Ollama's own record says it. Where the dialect has none, a plain
// request that was the only one for its model (so that it did not wait for a slot) tells by its first byte: it took most of what a load
// takes here, and several times what it usually takes.
func (l *Lease) waitedForLoad() time.Duration {
	load := l.station.loading.median
	if l.said {
		least := mostFound
		if load > 0 {
			least = min(max(load/2, leastFound), mostFound)
		}
		if l.loaded >= least {
			return l.loaded
		}
		return 0
	}
	usual := l.station.first.median
	if d := l.firstByte(); l.plain && !l.queued && load > 0 && usual > 0 && d > load*3/4 && d > farBeyond*usual {
		return d - usual
	}
	return 0
}

// foundLocked looks, at the release of l, for a load that the request has waited for, and returns the time for which it waited for one
// that another has caused.
func (s *Scheduler) foundLocked(l *Lease, now time.Time) time.Duration {
	if l.excused > 0 {
		return l.excused
	}
	p := l.place
	wait := min(l.waitedForLoad(), now.Sub(l.sent()))
	if wait <= 0 {
		if d := l.firstByte(); d > 0 && l.plain {
			l.station.first.mix(l.client.payer, d, now)
		}
		return 0
	}
	from := l.sent()
	to := from.Add(wait)
	if !l.said && s.answeredLocked(l, from, to) {
		return 0 // the model was there: this prompt took long
	}
	if lend, caused := s.causeOfLocked(l, from, to); caused {
		part := min(time.Duration(l.slots)*max(p.shareAt(to, l.start())-p.shareAt(from, l.start()), 0), l.used)
		l.used -= part
		*lend += part
		return wait
	}
	p.last = foundLoad{from, to, l.client}
	l.used += l.lent + s.excuseLocked(l, from, to)
	l.found = wait
	l.Loading += wait
	l.station.loading.put(l.client.payer, wait, now)
	p.loading.mix(l.client.payer, wait, now)
	for _, st := range p.stations { // it may have pushed others out
		if st != l.station {
			st.seen = time.Time{}
		}
	}
	l.station.known = false
	return 0
}

// answeredLocked reports whether another request for the model, that runs, was answered between from and to.
func (s *Scheduler) answeredLocked(l *Lease, from, to time.Time) bool {
	return slices.ContainsFunc(s.running, func(o *Lease) bool {
		at := o.sent().Add(o.firstByte())
		return o != l && o.station == l.station && o.firstByte() > 0 && at.After(from) && at.Before(to)
	})
}

// start is the share of the place when the lease was taken.
func (l *Lease) start() mark { return mark{l.taken, l.share} }

// excuseLocked returns what others that run had of the place while they waited for the load that l has caused, and takes it from them.
func (s *Scheduler) excuseLocked(l *Lease, from, to time.Time) (all time.Duration) {
	for _, o := range s.running {
		if sent := o.sent(); o == l || o.station != l.station || sent.Before(from) || !sent.Before(to) {
			continue
		}
		part := max(0, min(l.place.shareAt(to, o.start())-l.place.shareAt(o.sent(), o.start()), l.place.share-o.share))
		o.share += part
		o.excused = to.Sub(o.sent())
		all += time.Duration(o.slots) * part
	}
	return all
}

// causeOfLocked reports whether another than l has caused the load for which it waited from from to to, and where the part of it that l
// had of the place is kept for that: the gateway's own load, one that was found already, or the first request for the model that runs and
// was not answered when l was sent.
func (s *Scheduler) causeOfLocked(l *Lease, from, to time.Time) (lend *time.Duration, caused bool) {
	p := l.place
	if p.load != nil && p.load.began.Before(to) {
		return &p.load.lent, true
	}
	if last := p.last; last.from.Before(to) && from.Before(last.to) && !from.Before(last.from) {
		return &last.cause.debt, true // its row is closed
	}
	var first *Lease
	for _, o := range s.running {
		if o == l || o.station != l.station || !o.sent().Before(from) {
			continue
		}
		if d := o.firstByte(); d > 0 && o.sent().Add(d).Before(from) {
			continue
		}
		if first == nil || o.sent().Before(first.sent()) {
			first = o
		}
	}
	if first == nil {
		return nil, false
	}
	return &first.lent, true
}
