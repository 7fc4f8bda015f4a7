package sched

import "time"

// want is which payers wait for requests that a place may serve, and for how long some did. Service that no other payer waited for is not
// charged: what a payer has in an idle hour, or on a server that it has for itself, is not held against it later and elsewhere.
type want struct {
	payers map[*client]int // requests of each that wait
	any    time.Duration   // in which at least one payer waited
	alone  map[*client]time.Duration
	since  time.Time // up to which any and alone count
}

// pass brings the times up to now.
func (w *want) pass(now time.Time) {
	passed := now.Sub(w.since)
	if passed <= 0 {
		return
	}
	w.since = now
	if len(w.payers) == 0 {
		return
	}
	w.any += passed
	if len(w.payers) == 1 {
		for c := range w.payers {
			w.alone[c] += passed
		}
	}
}

// count notes that n more requests of the payer wait.
func (w *want) count(c *client, n int, now time.Time) {
	w.pass(now)
	if w.payers == nil {
		w.payers, w.alone = make(map[*client]int), make(map[*client]time.Duration)
	}
	if w.payers[c] += n; w.payers[c] <= 0 {
		delete(w.payers, c)
	}
}

// only reports whether no payer but c waits.
func (w *want) only(c *client) bool {
	_, waits := w.payers[c]
	return len(w.payers) == 0 || waits && len(w.payers) == 1
}

// forget drops what is kept of a payer that neither runs nor waits.
func (w *want) forget(c *client) {
	if c.running == 0 && c.waiting == 0 {
		delete(w.alone, c)
	}
}

// wantedBesides is for how long, in all, other payers than c have waited for the place.
func (p *place) wantedBesides(c *client, now time.Time) time.Duration {
	p.want.pass(now)
	return p.want.any - p.want.alone[c]
}

// contested is the part of a lease in which other payers waited for its place.
func (p *place) contested(l *Lease, now time.Time) time.Duration {
	d := p.wantedBesides(l.client, now) - l.wanted
	p.want.forget(l.client)
	return min(max(d, 0), l.held)
}
