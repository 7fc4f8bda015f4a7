package sched

import (
	"slices"
	"time"
)

const (
	maxSamples = 15        // the number of payers that contribute to a measurement: the latest ones
	sampleLife = time.Hour // since a payer last contributed
)

// samples is a measurement to which each payer contributes one value. Its median moves only as far as most payers agree, so that no
// payer can steer what the gateway expects for all.
type samples[T ~int64] struct {
	list   []sample[T] // the latest contribution is at the end
	median T           // of an even number, the lower of the two in the middle; 0: nothing was measured
}

type sample[T ~int64] struct {
	payer string
	value T
	at    time.Time
}

// put replaces the payer's value.
func (s *samples[T]) put(payer string, value T, now time.Time) {
	s.set(payer, now, func(T) T { return max(value, 1) })
}

// mix moves the payer's value towards value.
func (s *samples[T]) mix(payer string, value T, now time.Time) {
	s.set(payer, now, func(old T) T {
		average(&old, value)
		return old
	})
}

func (s *samples[T]) set(payer string, now time.Time, change func(old T) T) {
	own := sample[T]{payer: payer}
	for i, o := range s.list {
		if o.payer == payer {
			own = o
			s.list = slices.Delete(s.list, i, i+1)
			break
		}
	}
	own.value, own.at = change(own.value), now
	for len(s.list) > 0 && (len(s.list) == maxSamples || now.Sub(s.list[0].at) > sampleLife) {
		s.list = slices.Delete(s.list, 0, 1)
	}
	s.list = append(s.list, own)
	var values [maxSamples]T
	n := 0
	for _, o := range s.list {
		values[n] = o.value
		n++
	}
	slices.Sort(values[:n])
	s.median = values[(n-1)/2]
}
