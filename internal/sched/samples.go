package sched

import (
	"slices"
	"time"
)

// mostSamples is how many payers have a say in a measurement: of more, those that came last.
const mostSamples = 15

// samples is a measurement to which each payer contributes one value. Its median moves only as far as most payers agree, so that no
// payer can steer what the gateway expects for all.
type samples struct {
	list   []sample
	median time.Duration // the lower one of two; 0: nothing was measured
}

type sample struct {
	payer string
	value time.Duration
}

// put replaces the payer's value.
func (s *samples) put(payer string, d time.Duration) {
	s.set(payer, func(time.Duration) time.Duration { return max(d, 1) })
}

// mix moves the payer's value towards d.
func (s *samples) mix(payer string, d time.Duration) {
	s.set(payer, func(old time.Duration) time.Duration {
		average(&old, d)
		return old
	})
}

func (s *samples) set(payer string, change func(old time.Duration) time.Duration) {
	i := slices.IndexFunc(s.list, func(o sample) bool { return o.payer == payer })
	if i < 0 {
		if len(s.list) == mostSamples {
			s.list = slices.Delete(s.list, 0, 1)
		}
		s.list = append(s.list, sample{payer: payer})
		i = len(s.list) - 1
	}
	s.list[i].value = change(s.list[i].value)
	var values [mostSamples]time.Duration
	n := 0
	for _, o := range s.list {
		values[n] = o.value
		n++
	}
	slices.Sort(values[:n])
	s.median = values[(n-1)/2]
}
