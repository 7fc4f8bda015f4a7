package sched

import "slices"

// mostSamples is how many payers have a say in a measurement: of more, those that came last.
const mostSamples = 15

// samples is a measurement to which each payer contributes one value. Its median moves only as far as most payers agree, so that no
// payer can steer what the gateway expects for all.
type samples[T ~int64] struct {
	list   []sample[T]
	median T // the lower one of two; 0: nothing was measured
}

type sample[T ~int64] struct {
	payer string
	value T
}

// put replaces the payer's value.
func (s *samples[T]) put(payer string, value T) {
	s.set(payer, func(T) T { return max(value, 1) })
}

// mix moves the payer's value towards value.
func (s *samples[T]) mix(payer string, value T) {
	s.set(payer, func(old T) T {
		average(&old, value)
		return old
	})
}

func (s *samples[T]) set(payer string, change func(old T) T) {
	i := slices.IndexFunc(s.list, func(o sample[T]) bool { return o.payer == payer })
	if i < 0 {
		if len(s.list) == mostSamples {
			s.list = slices.Delete(s.list, 0, 1)
		}
		s.list = append(s.list, sample[T]{payer: payer})
		i = len(s.list) - 1
	}
	s.list[i].value = change(s.list[i].value)
	var values [mostSamples]T
	n := 0
	for _, o := range s.list {
		values[n] = o.value
		n++
	}
	slices.Sort(values[:n])
	s.median = values[(n-1)/2]
}
