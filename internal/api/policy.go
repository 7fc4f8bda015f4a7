package api

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Action is what happens to a field of a request that decides over more than the request: how the model is loaded, for how
// long it stays, how long its answer may get.
type Action struct {
	Verb Verb
	// Amount is the number of VerbDefault, VerbMost and VerbSet; for keep_alive seconds.
	Amount int64
}

// Verb is the first word of an Action.
type Verb string

// The verbs.
const (
	VerbPass    Verb = "pass"
	VerbDrop    Verb = "drop"
	VerbRefuse  Verb = "refuse"
	VerbDefault Verb = "default" // puts the amount where the request has none
	VerbMost    Verb = "max"     // lowers what is above the amount
	VerbSet     Verb = "set"     // puts the amount there, whatever the request says
)

// amount says whether the verb has an amount.
func (v Verb) amount() bool { return v == VerbDefault || v == VerbMost || v == VerbSet }

// PolicyFields are the fields that a policy may rule on, and whether each holds an amount: only those take max and set.
// internal/dialect/policy.go says what each does and what happens to it by default.
var PolicyFields = map[string]bool{
	"num_ctx": true, "max_tokens": true, "keep_alive": true,
	"unload": false, "shift": false, "raw": false, "template": false, "_debug_render_only": false,
	"num_batch": false, "num_gpu": false, "main_gpu": false, "num_thread": false, "use_mmap": false, "use_mlock": false,
	"numa": false, "low_vram": false, "f16_kv": false, "vocab_only": false, "logits_all": false, "draft_num_predict": false,
}

const maxPolicyAmount = 1 << 31

// Policy is actions by field: those of a key, or of the operator for one model.
type Policy map[string]Action

// Validate says which field or action there is not. It returns a CodeBadRequest error.
func (p Policy) Validate() error {
	for field, a := range p {
		amount, known := PolicyFields[field]
		switch {
		case !known:
			return Errorf(CodeBadRequest, "policy: there is no field of that name; there are %s", strings.Join(policyFieldNames(), ", "))
		case a.Verb.amount():
			if !amount || a.Amount < 1 || a.Amount > maxPolicyAmount {
				return Errorf(CodeBadRequest, "policy: %s takes no such amount", field)
			}
		case a.Verb != VerbPass && a.Verb != VerbDrop && a.Verb != VerbRefuse:
			return errAction()
		}
	}
	return nil
}

func policyFieldNames() []string {
	names := make([]string, 0, len(PolicyFields))
	for name := range PolicyFields {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func errAction() *Error {
	return Errorf(CodeBadRequest, "policy: an action is pass, drop, refuse, default:N, max:N or set:N")
}

// MarshalText writes pass, drop, refuse, default:N, max:N or set:N.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// String is the action as it is written.
func (a Action) String() string {
	if a.Verb.amount() {
		return string(a.Verb) + ":" + strconv.FormatInt(a.Amount, 10)
	}
	return string(a.Verb)
}

// UnmarshalText reads what MarshalText writes, and durations like max:1h for seconds. Validate says whether it fits a field.
func (a *Action) UnmarshalText(text []byte) error {
	verb, amount, given := strings.Cut(string(text), ":")
	*a = Action{Verb: Verb(verb)}
	if given != a.Verb.amount() {
		return errAction()
	}
	if !given {
		return nil
	}
	n, err := strconv.ParseInt(amount, 10, 64)
	if err != nil {
		d, derr := time.ParseDuration(amount)
		if derr != nil {
			return Errorf(CodeBadRequest, "policy: an amount is a number, or a time like 1h")
		}
		n = int64(d / time.Second)
	}
	a.Amount = n
	return nil
}

// ModelPolicy is an operator's policy for the models of a pattern; "*" is all of them.
type ModelPolicy struct {
	Models Pattern
	Policy Policy
	text   string
}

// String is the entry as it was written.
func (p ModelPolicy) String() string { return p.text }

// ParseModelPolicy reads "field=action" for all models, or "pattern field=action" for some. It returns a CodeBadRequest error
// for what is neither.
func ParseModelPolicy(text string) (ModelPolicy, error) {
	text = strings.TrimSpace(text)
	pattern, rule, some := strings.Cut(text, " ")
	if !some {
		pattern, rule = "*", text
	}
	p := ModelPolicy{text: text, Policy: Policy{}}
	var err error
	if p.Models, err = ParsePattern(pattern); err != nil {
		return p, err
	}
	field, action, _ := strings.Cut(strings.TrimSpace(rule), "=")
	var a Action
	if err := a.UnmarshalText([]byte(action)); err != nil {
		return p, err
	}
	p.Policy[field] = a
	return p, p.Policy.Validate()
}
