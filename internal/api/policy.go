package api

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Action is what happens to a field that affects more than its request: how the model is loaded, how long it stays loaded, how long the
// answer may get.
type Action struct {
	Verb Verb
	// Amount is the number for VerbDefault, VerbMost and VerbSet. For keep_alive it is in seconds.
	Amount int64
}

// Verb is the first word of an Action.
type Verb string

// The verbs.
const (
	VerbPass    Verb = "pass"
	VerbDrop    Verb = "drop"
	VerbRefuse  Verb = "refuse"
	VerbDefault Verb = "default" // sets the amount if the request has none
	VerbMost    Verb = "max"     // lowers a larger value to the amount
	VerbSet     Verb = "set"     // always sets the amount
)

// amount reports whether the verb has an amount.
func (v Verb) amount() bool { return v == VerbDefault || v == VerbMost || v == VerbSet }

// PolicyFields are the fields that a policy may rule on. The value reports whether the field takes an amount; only those take max and
// set. internal/dialect/policy.go describes each field and its default.
var PolicyFields = map[string]bool{
	"num_ctx": true, "max_tokens": true, "keep_alive": true,
	"unload": false, "shift": false, "raw": false, "template": false, "_debug_render_only": false,
	"num_batch": false, "num_gpu": false, "main_gpu": false, "num_thread": false, "use_mmap": false, "use_mlock": false,
	"numa": false, "low_vram": false, "f16_kv": false, "vocab_only": false, "logits_all": false, "draft_num_predict": false,
}

const maxPolicyAmount = 1 << 31

// Policy maps fields to actions, for a key or, from the operator, for a model.
type Policy map[string]Action

// Validate returns a CodeBadRequest error for an unknown field or an invalid action.
func (p Policy) Validate() error {
	for field, a := range p {
		amount, known := PolicyFields[field]
		switch {
		case !known:
			return Errorf(CodeBadRequest, "policy: unknown field; the fields are %s", strings.Join(policyFieldNames(), ", "))
		case a.Verb.amount():
			if !amount || a.Amount < 1 || a.Amount > maxPolicyAmount {
				return Errorf(CodeBadRequest, "policy: this amount is not valid for %s", field)
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

// MarshalText returns pass, drop, refuse, default:N, max:N or set:N.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// String returns the action as it is written.
func (a Action) String() string {
	if a.Verb.amount() {
		return string(a.Verb) + ":" + strconv.FormatInt(a.Amount, 10)
	}
	return string(a.Verb)
}

// UnmarshalText reads the output of MarshalText, and durations like max:1h as seconds. Validate checks that the action fits the field.
func (a *Action) UnmarshalText(text []byte) error {
	verb, amount, hasAmount := strings.Cut(string(text), ":")
	*a = Action{Verb: Verb(verb)}
	if hasAmount != a.Verb.amount() {
		return errAction()
	}
	if !hasAmount {
		return nil
	}
	n, err := strconv.ParseInt(amount, 10, 64)
	if err != nil {
		d, derr := time.ParseDuration(amount)
		if derr != nil {
			return Errorf(CodeBadRequest, "policy: an amount is a number, or a duration like 1h")
		}
		n = int64(d / time.Second)
	}
	a.Amount = n
	return nil
}

// ModelPolicy is an operator's policy for the models that a pattern matches. "*" matches all models.
type ModelPolicy struct {
	Models Pattern
	Policy Policy
	text   string
}

// String returns the entry as it was written.
func (p ModelPolicy) String() string { return p.text }

// ParseModelPolicy reads "field=action" for all models, or "pattern field=action" for some. It returns a CodeBadRequest error if the text
// is neither.
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
