package sched

import (
	"slices"
	"time"
)

// This file finds loads that the gateway did not begin. The gateway sends a request to a server that lists the model as loaded, but Ollama
// has unloaded it meanwhile (keep_alive, memory, another client) and loads it again. The gateway finds that when the request ends. The
// first request that waited for the load is its cause. The server's time that the other requests had while they waited for it is booked
// with the first one, and is not charged to their payers.

const (
	// A shorter wait for a model is no load. The bound is half of what a load takes there, but at least minLoadWait and at most maxLoadWait. A
	// model that is in memory is ready within milliseconds, or tens of them on busy processors.
	minLoadWait = 100 * time.Millisecond
	maxLoadWait = 200 * time.Millisecond
	maxMarks    = 256 // the number of changes of inFlight that are kept, to find what a lease had at a time
	slowFactor  = 4   // a wait for a first byte that is longer than this times the usual one may be a load
)

// NoteLoad notes, before Release, how long the model took to become ready, by Ollama's own record.
func (l *Lease) NoteLoad(d time.Duration) {
	if l.sched != nil {
		l.loadTime, l.hasLoadTime = d, true
	}
}

// NoteFirstByte notes the time of the first byte of a streamed answer.
func (l *Lease) NoteFirstByte() {
	if l.sched != nil {
		l.began.Store(int64(time.Since(l.taken)))
	}
}

// FoundLoad returns, after Release, how long the request waited for a load that it caused and that the gateway did not begin; for most 0.
func (l *Lease) FoundLoad() time.Duration { return l.found }

// pastLoad is the last load of a backend: one that was found, or the gateway's own.
type pastLoad struct {
	from, to time.Time
	cause    *payerState
}

// shareMark is a backend's share at a time.
type shareMark struct {
	at    time.Time
	share time.Duration
}

// shareMarks are the latest marks of a backend. Between two of them its share grows evenly.
type shareMarks struct {
	ring [maxMarks]shareMark
	n    int // the number of marks that were added
}

func (m *shareMarks) add(at time.Time, share time.Duration) {
	m.ring[m.n%maxMarks] = shareMark{at, share}
	m.n++
}

// shareAt is the backend's share at a time until now. If t is before all marks that are kept, it interpolates between start and the oldest.
func (srv *serverState) shareAt(t time.Time, start shareMark) time.Duration {
	after := shareMark{srv.shared, srv.share}
	for i := srv.marks.n - 1; i >= max(0, srv.marks.n-maxMarks); i-- {
		m := srv.marks.ring[i%maxMarks]
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

func between(a, b shareMark, t time.Time) time.Duration {
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

// waitedForLoad is how long the request waited in Ollama for a load, by Ollama's own record. If the dialect has no such record, the first
// byte of a plain request shows a load if no other request ran with the model, so that it did not wait for a slot: then the first byte took
// most of the time of a load here, and several times as long as usual.
func (l *Lease) waitedForLoad() time.Duration {
	load := l.model.loading.median
	if l.hasLoadTime {
		least := maxLoadWait
		if load > 0 {
			least = min(max(load/2, minLoadWait), maxLoadWait)
		}
		if l.loadTime >= least {
			return l.loadTime
		}
		return 0
	}
	usual := l.model.first.median
	if d := l.firstByte(); l.plain && !l.queued && load > 0 && usual > 0 && d > load*3/4 && d > slowFactor*usual {
		return d - usual
	}
	return 0
}

// foundLocked finds, at the release of l, a load that the request waited for. It returns how long the request waited if another request
// caused the load, and otherwise 0.
func (s *Scheduler) foundLocked(l *Lease, now time.Time) time.Duration {
	if l.othersLoad > 0 {
		return l.othersLoad
	}
	srv := l.server
	wait := min(l.waitedForLoad(), now.Sub(l.sent()))
	if wait <= 0 {
		if d := l.firstByte(); d > 0 && l.plain {
			l.model.first.mix(l.payer.name, d, now)
		}
		return 0
	}
	from := l.sent()
	to := from.Add(wait)
	if !l.hasLoadTime && s.answeredLocked(l, from, to) {
		return 0 // the model was loaded, and this prompt took long
	}
	if lend, caused := s.causeOfLocked(l, from, to); caused {
		part := min(time.Duration(l.slots)*max(srv.shareAt(to, l.start())-srv.shareAt(from, l.start()), 0), l.used)
		l.used -= part
		*lend += part
		return wait
	}
	srv.lastLoad = pastLoad{from, to, l.payer}
	l.used += l.lent + s.creditWaitersLocked(l, from, to)
	l.found = wait
	l.Loading += wait
	l.model.loading.put(l.payer.name, wait, now)
	srv.loading.mix(l.payer.name, wait, now)
	for _, st := range srv.models { // it may have pushed others out
		if st != l.model {
			st.seen = time.Time{}
		}
	}
	l.model.known = false
	return 0
}

// answeredLocked reports whether another running request for the model got its first byte between from and to.
func (s *Scheduler) answeredLocked(l *Lease, from, to time.Time) bool {
	return slices.ContainsFunc(s.running, func(o *Lease) bool {
		at := o.sent().Add(o.firstByte())
		return o != l && o.model == l.model && o.firstByte() > 0 && at.After(from) && at.Before(to)
	})
}

// start is the backend's share when the lease was taken.
func (l *Lease) start() shareMark { return shareMark{l.taken, l.share} }

// creditWaitersLocked takes from other running requests the backend's time that they had while they waited for the load that l caused, and
// returns it.
func (s *Scheduler) creditWaitersLocked(l *Lease, from, to time.Time) (all time.Duration) {
	for _, o := range s.running {
		if sent := o.sent(); o == l || o.model != l.model || sent.Before(from) || !sent.Before(to) {
			continue
		}
		part := max(0, min(l.server.shareAt(to, o.start())-l.server.shareAt(o.sent(), o.start()), l.server.share-o.share))
		o.share += part
		o.othersLoad = to.Sub(o.sent())
		all += time.Duration(o.slots) * part
	}
	return all
}

// causeOfLocked reports whether something other than l caused the load for which l waited between from and to: the gateway's own load, a
// load that was found already, or the first running request for the model that had no answer when l was sent. It returns where to add
// the backend's time that l had meanwhile.
func (s *Scheduler) causeOfLocked(l *Lease, from, to time.Time) (lend *time.Duration, caused bool) {
	srv := l.server
	if srv.load != nil && srv.load.began.Before(to) {
		return &srv.load.lent, true
	}
	if last := srv.lastLoad; last.from.Before(to) && from.Before(last.to) && !from.Before(last.from) {
		return &last.cause.debt, true // its row is already written
	}
	var first *Lease
	for _, o := range s.running {
		if o == l || o.model != l.model || !o.sent().Before(from) {
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
