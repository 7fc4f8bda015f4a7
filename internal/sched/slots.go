package sched

import "time"

// Ollama (0.6.5) runs each text of a request for embeddings in a slot of its own. Texts without a free slot wait inside Ollama, in front of
// all later requests. So such a request takes as many slots as it has texts. It is admitted in its order when one slot is free, takes all
// free slots, and then each slot that becomes free, until it has enough. No other request of the model starts until then, so no two
// requests wait for each other's slots, and no more slots are in use than there are. (A model that only makes embeddings has one slot in
// Ollama.)

// occupy takes the slots of a new lease.
func (l *Lease) occupy(texts int, now time.Time) {
	srv, st := l.server, l.model
	l.maxSlots = max(1, min(texts, srv.limit(st)))
	l.slots = max(1, min(l.maxSlots, srv.limit(st)-st.slots))
	l.since = now
	srv.count(now, l.slots)
	st.count(now, l.slots)
	l.modelWork = st.work
	if l.slots < l.maxSlots {
		st.growing++
	}
}

// vacate returns the slots of a lease.
func (l *Lease) vacate(now time.Time) {
	l.server.count(now, -l.slots)
	l.model.count(now, -l.slots)
	if l.slots < l.maxSlots {
		l.model.growing--
	}
}

// growLocked gives free slots to requests that have fewer than they take in Ollama, the oldest lease first.
func (s *Scheduler) growLocked(srv *serverState, st *modelState, now time.Time) {
	for st.growing > 0 && st.slots < srv.limit(st) {
		var first *Lease
		for _, l := range s.running {
			if l.model == st && l.slots < l.maxSlots && (first == nil || l.taken.Before(first.taken)) {
				first = l
			}
		}
		if first == nil {
			return
		}
		first.grow(now)
	}
}

// grow takes one more slot. It does not change the lease's part so far.
func (l *Lease) grow(now time.Time) {
	srv := l.server
	srv.count(now, 0)
	had := l.part()
	l.before, l.since = l.slotTime(now), now
	l.slots++
	l.share = srv.share
	l.takeOver(had)
	srv.count(now, 1)
	l.model.count(now, 1)
	if l.slots == l.maxSlots {
		l.model.growing--
	}
}

// slotTime is the lease's time so far, summed over its slots.
func (l *Lease) slotTime(now time.Time) time.Duration {
	return l.before + time.Duration(l.slots)*max(0, now.Sub(l.since))
}

// count adds the time since the last call to work, and then changes the number of slots in use by more.
func (st *modelState) count(now time.Time, more int) {
	if passed := now.Sub(st.worked); passed > 0 {
		st.work += passed * time.Duration(st.slots)
		st.worked = now
	}
	st.slots += more
}

// serve returns the service in a part of the time for which a released lease was held.
func (l *Lease) serve(part time.Duration, now time.Time) time.Duration {
	all := max(0, l.slotTime(now)+l.delays-l.slowed)
	if all == l.held || l.held <= 0 {
		return part
	}
	return time.Duration(float64(part) * (float64(all) / float64(l.held)))
}
