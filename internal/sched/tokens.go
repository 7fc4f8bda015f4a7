package sched

import "time"

const (
	leastMeasured = 8                // tokens of an answer from which its speed is measured
	longPrompt    = 64               // tokens, as expected: from here on the text decides and not the template
	manyOwn       = 256              // payers of whose prompts a model's station knows
	fewPayers     = 3                // whose prompts are enough to expect the same of others
	contextStep   = 256              // contexts are multiples of it
	fastestToken  = time.Millisecond // of an answer whose model has not been measured
)

// Prompt is what a prompt may have, in tokens.
type Prompt struct {
	Estimate int64 // what is held for it
	Likely   int64 // by how usual its text is
	Text     int64 // where each byte of its text is a token
	Most     int64 // and each of what the template prints around it
	Unknown  int64 // what is expected as long as nothing is known
}

// Counted notes, before Release, what Ollama has counted: tokens of a prompt, and tokens of the answer, which took d; 0: not known.
func (l *Lease) Counted(p Prompt, prompt, answer int64, d time.Duration) {
	l.counted = counted{p, prompt, answer, d}
}

// counted is what Ollama has counted of a request.
type counted struct {
	Prompt
	prompt, answer int64
	took           time.Duration
}

// prompts is what is known of a payer's own prompts, by those that Ollama has counted.
type prompts struct {
	density int64 // tokens for each thousand that were likely: the largest, which later ones lower by an eighth; 0: not known
	bytes   int64 // tokens for each thousand bytes of text, the mean of lately: with some models each character is one
	around  int64 // the fewest that were added to a prompt
	beyond  int64 // the most that a prompt had beyond what it could have
}

func (st *station) learn(payer string, c counted, now time.Time) {
	if c.prompt > 0 && c.Likely > 0 {
		st.learnPrompt(payer, c, now)
	}
	if c.answer >= leastMeasured && c.took > 0 {
		st.perToken.mix(payer, c.took/time.Duration(c.answer), now)
	}
}

func (st *station) learnPrompt(payer string, c counted, now time.Time) {
	own, known := st.own[payer]
	if !known {
		if st.own == nil {
			st.own = make(map[string]prompts)
		}
		for other := range st.own {
			if len(st.own) < manyOwn {
				break
			}
			delete(st.own, other)
		}
		own.around = c.prompt
	}
	more := max(c.prompt-c.Likely, 0)
	own.around = min(own.around, more)
	own.beyond = lower(own.beyond, c.prompt-c.Most)
	if c.Likely < longPrompt {
		st.template.put(payer, more, now)
	} else {
		density := (c.prompt - own.around) * 1000 / c.Likely
		own.density = lower(own.density, density)
		if c.prompt%contextStep != 0 { // otherwise it was most likely cut to the context
			own.bytes = mean(own.bytes, min(c.prompt*1000/max(c.Text, 1), 1000))
		}
		st.density.put(payer, density, now)
	}
	st.own[payer] = own
}

// lower is the larger of a value and the one before, which it lowers by an eighth of the difference.
func lower(before, value int64) int64 { return max(value, before-(before-value)/8) }

// mean moves a mean, up by a half of the difference and down by an eighth: Ollama leaves messages out that do not fit, so a prompt may seem
// cheaper than it is.
func mean(before, value int64) int64 {
	switch {
	case before == 0:
		return value
	case value > before:
		return before + (value-before)/2
	}
	return before + (value-before)/8
}

// expect is the prompt of a payer. A payer of whose prompts nothing is known may send what is more expensive than the text of others.
func (st *station) expect(payer string, p Prompt) int64 {
	own := st.own[payer]
	density := own.density
	if density == 0 && len(st.density.list) >= fewPayers {
		density = st.density.median
	}
	around := (p.Most - p.Text) / 4
	template := max(st.template.median, own.beyond)
	if density == 0 {
		return max(p.Estimate, p.Unknown, p.Unknown-(p.Most-p.Text)+around+template)
	}
	tokens := max(p.Likely*max(density, 1000), p.Text*own.bytes+around*1000) * 9 / 8 / 1000
	return max(p.Estimate, min(p.Most, tokens)+template)
}

// Expected is what a request has most likely used that ended before Ollama counted it: the whole prompt with what the template adds, and
// as many tokens of an answer as fit into the time for which the slot was held, by the median of keys for its model. It is no less than
// the estimate for the prompt. silent reports that no piece of an answer has passed; a piece would show how fast an unmeasured model is.
func (l *Lease) Expected(p Prompt, silent bool) (prompt, answer int64) {
	if l.sched == nil || l.station == nil {
		return p.Estimate, 0
	}
	l.sched.mu.Lock()
	defer l.sched.mu.Unlock()
	st := l.station
	l.prompt = p
	held := l.held
	if !l.released {
		held = time.Since(l.taken)
	}
	switch token := st.perToken.median; {
	case token > 0:
		answer = int64((held - l.Loading) / token)
	case silent:
		answer = int64((held - l.Loading) / fastestToken)
	}
	return st.expect(l.client.payer, p), max(answer, 0)
}
