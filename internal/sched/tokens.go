package sched

import "time"

const (
	leastMeasured = 8   // tokens of an answer from which its speed is measured
	longPrompt    = 512 // tokens, as estimated: from here on the text decides and not the template
)

// Counted notes, before Release, what Ollama has counted: tokens of the prompt beside their estimate, and tokens of the answer, which took d; 0: not known.
func (l *Lease) Counted(estimate, prompt, answer int64, d time.Duration) {
	l.counted = counted{estimate, prompt, answer, d}
}

// counted is what Ollama has counted of a request.
type counted struct {
	estimate, prompt, answer int64
	took                     time.Duration
}

func (st *station) learn(payer string, c counted, now time.Time) {
	switch {
	case c.prompt <= 0:
	case c.estimate >= longPrompt:
		st.density.put(payer, c.prompt*1000/c.estimate, now)
	default:
		st.template.put(payer, c.prompt-c.estimate, now)
	}
	if c.answer >= leastMeasured && c.took > 0 {
		st.perToken.mix(payer, c.took/time.Duration(c.answer), now)
	}
}

// Expected is what a request has most likely used that ended before Ollama counted it, by the medians of keys for its model: the whole
// prompt with what the template adds, and as many tokens of an answer as fit into the time for which the slot was held. It is no
// less than estimate for the prompt.
func (l *Lease) Expected(estimate int64) (prompt, answer int64) {
	if l.sched == nil || l.station == nil {
		return estimate, 0
	}
	l.sched.mu.Lock()
	defer l.sched.mu.Unlock()
	st := l.station
	prompt = max(estimate, estimate*st.density.median/1000) + st.template.median
	if st.perToken.median > 0 {
		held := l.held
		if !l.released {
			held = time.Since(l.taken)
		}
		answer = int64((held - l.Loading) / st.perToken.median)
	}
	return prompt, max(answer, 0)
}
