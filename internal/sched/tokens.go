package sched

import "time"

const (
	minAnswer    = 8                // shorter answers, in tokens, do not measure the speed
	longPrompt   = 64               // from this number of likely tokens on, the text has more tokens than the template
	maxOwn       = 256              // the number of payers whose prompts are remembered for a model
	minPayers    = 3                // prompts of this many payers are enough to expect the same of others
	contextStep  = 256              // contexts are multiples of it
	fastestToken = time.Millisecond // the assumed time for a token of a model that has not been measured
)

// Prompt has estimates of a prompt's length, in tokens.
type Prompt struct {
	Estimate int64 // the number that is held for it
	Likely   int64 // the likely number, by the kind of its text
	Text     int64 // if each byte of its text is a token
	Most     int64 // Text, and a token for each byte that the template adds
	Unknown  int64 // the expected number as long as nothing was measured
}

// NoteTokens notes, before Release, what Ollama counted: the tokens of the prompt, and of the answer, which took d. 0 means not known.
func (l *Lease) NoteTokens(p Prompt, prompt, answer int64, d time.Duration) {
	l.counted = counted{p, prompt, answer, d}
}

// counted is what Ollama counted for a request, next to the gateway's estimates.
type counted struct {
	Prompt
	prompt, answer int64
	took           time.Duration
}

// prompts is what is known about a payer's own prompts, from those that Ollama counted.
type prompts struct {
	density int64 // real tokens per thousand likely ones: the largest value, which later ones lower by an eighth; 0: not known
	bytes   int64 // tokens per thousand bytes of text, a moving average: in some models each character is a token
	around  int64 // the fewest tokens that the template added to a prompt
	beyond  int64 // the most tokens that a prompt had above Prompt.Most
}

func (st *modelState) learn(payer string, c counted, now time.Time) {
	if c.prompt > 0 && c.Likely > 0 {
		st.learnPrompt(payer, c, now)
	}
	if c.answer >= minAnswer && c.took > 0 {
		st.perToken.mix(payer, c.took/time.Duration(c.answer), now)
	}
}

func (st *modelState) learnPrompt(payer string, c counted, now time.Time) {
	own, known := st.own[payer]
	if !known {
		if st.own == nil {
			st.own = make(map[string]prompts)
		}
		for other := range st.own {
			if len(st.own) < maxOwn {
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
			own.bytes = dampedMean(own.bytes, min(c.prompt*1000/max(c.Text, 1), 1000))
		}
		st.density.put(payer, density, now)
	}
	st.own[payer] = own
}

// lower is the larger of a value and the one before, which it lowers by an eighth of the difference.
func lower(before, value int64) int64 { return max(value, before-(before-value)/8) }

// dampedMean moves a mean up by half of the difference, and down by an eighth: Ollama drops messages that do not fit into the context, so a
// prompt may seem cheaper than it is.
func dampedMean(before, value int64) int64 {
	switch {
	case before == 0:
		return value
	case value > before:
		return before + (value-before)/2
	}
	return before + (value-before)/8
}

// expect returns the expected tokens of a payer's prompt. If nothing is known about the payer's prompts, they may be more expensive than
// those of others.
func (st *modelState) expect(payer string, p Prompt) int64 {
	own := st.own[payer]
	density := own.density
	if density == 0 && len(st.density.list) >= minPayers {
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

// Expected returns what a request most likely used that ended before Ollama counted it: the whole prompt with what the template adds, and
// the tokens of an answer that fit into the time for which the slot was held, by the median speed of the model. prompt is at least
// p.Estimate. silent means that no piece of an answer has arrived; pieces would show how fast a model without measurements is.
func (l *Lease) Expected(p Prompt, silent bool) (prompt, answer int64) {
	if l.sched == nil || l.model == nil {
		return p.Estimate, 0
	}
	l.sched.mu.Lock()
	defer l.sched.mu.Unlock()
	st := l.model
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
	return st.expect(l.payer.name, p), max(answer, 0)
}
