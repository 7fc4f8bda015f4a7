package sched

import "time"

// demand records which payers have waiting requests that a server may serve, and for how long some had. Service that no other payer waited
// for is not charged: what a payer uses in an idle hour, or on a server that no other payer wants, does not count later or elsewhere.
type demand struct {
	payers map[*payerState]int           // the number of waiting requests of each payer
	total  time.Duration                 // how long at least one payer waited
	single map[*payerState]time.Duration // how long only this payer waited
	since  time.Time                     // total and single count until this time
}

// advance updates the times to now.
func (w *demand) advance(now time.Time) {
	passed := now.Sub(w.since)
	if passed <= 0 {
		return
	}
	w.since = now
	if len(w.payers) == 0 {
		return
	}
	w.total += passed
	if len(w.payers) == 1 {
		for c := range w.payers {
			w.single[c] += passed
		}
	}
}

// count notes that n more requests of the payer wait.
func (w *demand) count(c *payerState, n int, now time.Time) {
	w.advance(now)
	if w.payers == nil {
		w.payers, w.single = make(map[*payerState]int), make(map[*payerState]time.Duration)
	}
	if w.payers[c] += n; w.payers[c] <= 0 {
		delete(w.payers, c)
	}
}

// only reports whether no payer other than c waits.
func (w *demand) only(c *payerState) bool {
	_, waits := w.payers[c]
	return len(w.payers) == 0 || waits && len(w.payers) == 1
}

// forget drops the entry of a payer that has neither running nor waiting requests.
func (w *demand) forget(c *payerState) {
	if c.running == 0 && c.waiting == 0 {
		delete(w.single, c)
	}
}

// wantedByOthers is how long, in total, payers other than c have waited for the server.
func (srv *serverState) wantedByOthers(c *payerState, now time.Time) time.Duration {
	srv.demand.advance(now)
	return srv.demand.total - srv.demand.single[c]
}

// contested is the part of a lease's time in which other payers waited for its server.
func (srv *serverState) contested(l *Lease, now time.Time) time.Duration {
	d := srv.wantedByOthers(l.payer, now) - l.wanted
	srv.demand.forget(l.payer)
	return min(max(d, 0), l.held)
}
