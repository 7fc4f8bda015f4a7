package dialect

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// Terms are what a body is read under. The zero value polices nothing.
type Terms struct {
	Aliases api.Aliases
	// Policed says that the body is a user's; an admin's passes as it is.
	Policed bool
	// Key, Models and Standard are asked in this order for what happens to a field; of Models, the first that fits counts.
	Key      api.Policy
	Models   []api.ModelPolicy
	Standard api.Policy
	// MaxOutput is the longest answer that may be asked for, in tokens, whoever asks; 0 is no bound. It comes after the policy.
	MaxOutput int64
	// Own reads what a model's Modelfile sets; nil knows nothing of any. It is asked only where that decides.
	Own func(api.Model) api.Parameters
	// DropHosted takes out tools that the provider would run: the key may not use the cloud.
	DropHosted bool
	// Registries are the hosts that models may come from and go to, beside Ollama's own.
	Registries []string
}

// Standard is the table of what a user's key may not set freely, where nothing else is said. Each of these decides over more
// than the request that carries it (docs/policy.md; docs/ollama-contract.md, section 7).
func Standard(maxContext int64, maxKeepAlive time.Duration, defaultTokens int64) api.Policy {
	drop, refuse := api.Action{Verb: api.VerbDrop}, api.Action{Verb: api.VerbRefuse}
	p := api.Policy{
		"unload":             refuse, // takes the model from everybody: an empty prompt with a keep_alive of zero
		"_debug_render_only": refuse, // shows the system prompt that a model hides
		"template":           refuse, // a program in Go's template language, run by the server
		"raw":                {Verb: api.VerbPass},

		// How the model is loaded. Two users with two values make Ollama load it again for each request in turn.
		"num_ctx":   atMost(maxContext),
		"num_batch": drop, "num_gpu": drop, "main_gpu": drop, "num_thread": drop, "use_mmap": drop, "use_mlock": drop, "numa": drop,
		"low_vram": drop, "f16_kv": drop, "vocab_only": drop, "logits_all": drop, "draft_num_predict": drop, "shift": drop,

		"keep_alive": atMost(int64(maxKeepAlive / time.Second)), // the last one sent holds for everybody
		"max_tokens": {Verb: api.VerbPass},
	}
	if defaultTokens > 0 {
		p["max_tokens"] = api.Action{Verb: api.VerbDefault, Amount: defaultTokens} // none at all is ten times the context
	}
	return p
}

// leastStay is how long a model stays at the least, in seconds, where a user's keep_alive has a maximum: a second would unload it for
// everybody as surely as zero.
const leastStay = 60

// atMost bounds by n; 0 is no bound.
func atMost(n int64) api.Action {
	if n <= 0 {
		return api.Action{Verb: api.VerbPass}
	}
	return api.Action{Verb: api.VerbMost, Amount: n}
}

// topFlags and loadOptions are the policed fields without an amount, by the place where they stand.
var (
	topFlags    = []string{"_debug_render_only", "template", "raw", "shift"}
	loadOptions = []string{
		"num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa", "low_vram", "f16_kv", "vocab_only",
		"logits_all", "draft_num_predict",
	}
	loadTimeOptions = append([]string{"num_ctx"}, loadOptions...)
	policedOptions  = names(append([]string{"temperature", "num_predict", "num_ctx"}, loadOptions...)...)
)

// action is what happens to a field of a request for m.
func (t *Terms) action(field string, m api.Model) api.Action {
	if a, chosen := t.chosen(field, m); chosen {
		return a
	}
	return t.Standard[field]
}

// chosen is what an admin has said about a field, for the key or for the model.
func (t *Terms) chosen(field string, m api.Model) (api.Action, bool) {
	if a, ok := t.Key[field]; ok {
		return a, true
	}
	for _, p := range t.Models {
		if a, ok := p.Policy[field]; ok && p.Models.Match(m) {
			return a, true
		}
	}
	return api.Action{}, false
}

func (t *Terms) own(m api.Model) api.Parameters {
	if t.Own == nil {
		return api.Parameters{}
	}
	return t.Own(m)
}

// police holds a user's body against the table. It returns CodeForbidden for what is refused; what is changed stands in
// req.Changes.
func (e *edit) police(k Kind, t *Terms, req *Request, options *edit) error {
	p := policing{terms: t, model: req.Model(), req: req}
	if err := p.unload(k, e); err != nil {
		return err
	}
	for _, field := range topFlags {
		if err := p.flag(e, field); err != nil {
			return err
		}
	}
	if options != nil {
		for _, field := range loadOptions {
			if err := p.flag(options, field); err != nil {
				return err
			}
		}
		if err := p.context(options); err != nil {
			return err
		}
	}
	if k.outputName() != "" {
		return p.output(k, e.outputHolder(k, options))
	}
	return nil
}

// outputName is what the kind calls the longest answer it asks for; "" where it generates none.
func (k Kind) outputName() string {
	switch k {
	case Generate, Chat:
		return "num_predict"
	case OpenAIChat, OpenAICompletions, AnthropicMessages:
		return "max_tokens"
	case OpenAIResponses:
		return "max_output_tokens"
	}
	return ""
}

// outputHolder is the object in which it stands.
func (e *edit) outputHolder(k Kind, options *edit) *edit {
	if k.native() {
		return options
	}
	return e
}

// boundOutput lowers the longest answer to most, and notes in the request how long it is then. A model's own bound counts where the
// request has none.
func (e *edit) boundOutput(k Kind, t *Terms, req *Request, options *edit) {
	name := k.outputName()
	if name == "" {
		return
	}
	req.MaxOutput = -1
	holder := e.outputHolder(k, options)
	given := holder.number(name, !k.native())
	switch {
	case k.refusesOutput(given):
	case given.absent:
		if own := t.own(req.Model()).NumPredict; own > 0 {
			req.MaxOutput = own
		}
	case given.n >= 1:
		req.MaxOutput = int64(math.Ceil(min(given.n, math.MaxInt32)))
	}
	most := t.MaxOutput
	if most <= 0 || req.MaxOutput >= 0 && req.MaxOutput <= most {
		return
	}
	req.MaxOutput = most
	if k.refusesOutput(given) {
		return
	}
	holder.put(name, strconv.AppendInt(nil, most, 10))
	req.Changes = slices.DeleteFunc(req.Changes, func(c string) bool { return strings.HasPrefix(c, name+"=") })
	req.Changes = append(req.Changes, fmt.Sprintf("%s=%d", name, most))
}

// refusesOutput reports whether Ollama refuses such a longest answer: then no answer comes of it, and the client reads Ollama's words.
func (k Kind) refusesOutput(given number) bool {
	return given.odd || k == AnthropicMessages && given.n < 1
}

// number is the value of a field that must hold one.
type number struct {
	n      float64
	absent bool // or null
	odd    bool // of another type or form, which Ollama refuses
}

// number reads a number as Ollama does: its native routes take each that a float64 holds, the others whole ones.
func (e *edit) number(name string, whole bool) number {
	value := e.value(name)
	switch {
	case value == nil || value.Kind() == 'n':
		return number{absent: true}
	case value.Kind() != '0':
		return number{odd: true}
	}
	n, err := strconv.ParseFloat(string(value), 64)
	if whole && err == nil {
		_, err = strconv.ParseInt(string(value), 10, 64)
	}
	return number{n: n, odd: err != nil}
}

// policing is one body before the table.
type policing struct {
	terms *Terms
	model api.Model
	req   *Request
}

func (p *policing) refused(field string) error {
	return api.Errorf(api.CodeForbidden, "this key may not set %s: leave it out, or ask an administrator (the key's policy can allow it)", field)
}

func (p *policing) changed(format string, args ...any) {
	p.req.Changes = append(p.req.Changes, fmt.Sprintf(format, args...))
}

// standsForNone are the fields that ask for nothing where they are false or empty. Others are on by themselves, and false is the change.
var standsForNone = map[string]bool{"raw": true, "template": true, "_debug_render_only": true}

// flag rules on a field without an amount. One that is null asks for nothing.
func (p *policing) flag(e *edit, field string) error {
	value := string(e.value(field))
	if value == "" || value == "null" {
		return nil
	}
	switch verb := p.terms.action(field, p.model).Verb; {
	case verb == api.VerbRefuse && !(standsForNone[field] && (value == "false" || value == `""`)):
		return p.refused(field)
	case verb == api.VerbDrop:
		e.drop(field)
		p.changed("%s dropped", field)
	}
	return nil
}

// context rules on num_ctx. One that is too small for a prompt, or negative, is left to Ollama, which makes it 4 and refuses what does
// not fit.
func (p *policing) context(options *edit) error {
	const name = "num_ctx"
	a, given := p.terms.action(name, p.model), options.number(name, false)
	most := a.Amount
	switch a.Verb {
	case api.VerbDefault:
		if given.absent && p.terms.own(p.model).NumCtx == 0 {
			p.put(options, name, a.Amount)
		}
		most = math.MaxInt32
	case api.VerbMost:
		if _, chosen := p.terms.chosen(name, p.model); !chosen && given.n > float64(most) {
			// A request for as much as the model has by itself costs nothing that one without the field does not.
			most = max(most, p.terms.own(p.model).NumCtx)
		}
		err := p.atMost(options, name, most, given)
		p.cover(options)
		return err
	case api.VerbPass, "":
		most = math.MaxInt32
	default:
		return p.explicit(options, name, a, given)
	}
	return p.atMost(options, name, most, given)
}

// cover drops a num_ctx that is no more than the model has without it, and no less than the prompt takes: nothing is cut either way, and
// each other value is a load for everybody. A prompt that may not fit keeps it, because Ollama cuts that to it, and so does a model that is
// only partly on the graphics card: it may be asked for with less context to be there as a whole. Where a policy says pass, set or
// default, an admin has chosen the value.
func (p *policing) cover(options *edit) {
	const name = "num_ctx"
	n := options.number(name, false)
	if n.absent || n.odd || n.n < float64(max(p.req.PromptTokens, 1)) {
		return
	}
	if own := p.terms.own(p.model); own.Split || n.n > float64(own.Context) {
		return
	}
	options.drop(name)
	p.req.Changes = slices.DeleteFunc(p.req.Changes, func(c string) bool { return strings.HasPrefix(c, name+"=") })
	p.changed("%s dropped", name)
}

// output rules on the longest answer. One below 1 asks for as much as there is, but in messages, where Ollama refuses it.
func (p *policing) output(k Kind, e *edit) error {
	name := k.outputName()
	a, given := p.terms.action("max_tokens", p.model), e.number(name, !k.native())
	most := a.Amount
	switch a.Verb {
	case api.VerbDefault, api.VerbMost:
		endless := given.n < 1 && !k.refusesOutput(given)
		if endless && given.absent {
			own := p.terms.own(p.model).NumPredict
			endless = own == 0 || own > a.Amount
		}
		if endless {
			p.put(e, name, a.Amount)
		}
		if a.Verb == api.VerbDefault {
			most = math.MaxInt32
		}
	case api.VerbPass, "":
		most = math.MaxInt32
	default:
		return p.explicit(e, name, a, given)
	}
	return p.atMost(e, name, most, given)
}

// explicit does what a policy says of a field whatever it holds.
func (p *policing) explicit(e *edit, name string, a api.Action, given number) error {
	switch {
	case a.Verb == api.VerbRefuse && !given.absent:
		return p.refused(name)
	case a.Verb == api.VerbDrop && !given.absent:
		e.drop(name)
		p.changed("%s dropped", name)
	case a.Verb == api.VerbSet && (given.absent || given.odd || given.n != float64(a.Amount)):
		p.put(e, name, a.Amount)
	}
	return nil
}

// atMost lowers a number. Without another bound it is 2147483647: Ollama makes an int of what it reads, which 1e30 turns negative,
// and that is without bound. What is no number is refused here: Ollama does so with a 500, which clients try again.
func (p *policing) atMost(e *edit, name string, most int64, given number) error {
	switch {
	case given.odd:
		return api.Errorf(api.CodeBadRequest, "%s must be a whole number", name)
	case given.n > float64(most):
		p.put(e, name, most)
	}
	return nil
}

func (p *policing) put(e *edit, name string, amount int64) {
	e.put(name, strconv.AppendInt(nil, amount, 10))
	p.changed("%s=%d", name, amount)
}

// unload rules on keep_alive: how long the model stays, or that it goes at once.
func (p *policing) unload(k Kind, e *edit) error {
	m := e.object.find("keep_alive")
	if m == nil || m.kind == 'n' {
		if a := p.terms.action("keep_alive", p.model); (a.Verb == api.VerbSet || a.Verb == api.VerbDefault) && k.native() {
			e.put("keep_alive", strconv.AppendInt(nil, a.Amount, 10))
			p.changed("keep_alive=%ds", a.Amount)
		}
		return nil
	}
	seconds, err := e.object.seconds(m)
	if err != nil {
		return err
	}
	if seconds >= 0 && seconds < leastStay && k.empty(e.object) {
		switch p.terms.action("unload", p.model).Verb {
		case api.VerbPass:
			return nil
		case api.VerbRefuse:
			return api.Errorf(api.CodeForbidden, "this key may not unload a model, which others may be using: ask an administrator (the key's policy can allow it)")
		}
	}
	a := p.terms.action("keep_alive", p.model)
	switch {
	case a.Verb == api.VerbPass || a.Verb == api.VerbDefault && seconds > 0:
	case a.Verb == api.VerbRefuse:
		return p.refused("keep_alive")
	case a.Verb == api.VerbSet && seconds != a.Amount, a.Verb == api.VerbMost && seconds > a.Amount, a.Verb == api.VerbDefault:
		e.put("keep_alive", strconv.AppendInt(nil, a.Amount, 10))
		p.changed("keep_alive=%ds", a.Amount)
	case a.Verb == api.VerbDrop, a.Verb == api.VerbMost && seconds < leastStay:
		e.remove(m)
		p.changed("keep_alive dropped")
	}
	return nil
}

// seconds reads a keep_alive as Ollama does: whole seconds of a number or of a duration; what is negative is for ever, here -1.
func (o *object) seconds(m *member) (int64, error) {
	var seconds float64
	var err error
	if m.kind == '0' {
		seconds, err = strconv.ParseFloat(string(o.value(m)), 64)
	} else {
		var text string
		if text, err = o.text(m); err == nil {
			var d time.Duration
			d, err = time.ParseDuration(text)
			seconds = d.Seconds()
		}
	}
	switch {
	case err != nil:
		return 0, api.Errorf(api.CodeBadRequest, "keep_alive must be a number of seconds, or a time with a unit like \"5m\"")
	case seconds < 0:
		return -1, nil
	}
	return int64(min(seconds, math.MaxInt32)), nil
}

// native says whether the kind knows keep_alive and options.
func (k Kind) native() bool {
	switch k {
	case Generate, Chat, Embed, Embeddings:
		return true
	}
	return false
}

// empty says whether a body asks the model nothing, so that Ollama only loads or unloads it.
func (k Kind) empty(o *object) bool {
	name := map[Kind]string{Generate: "prompt", Chat: "messages", Embed: "input", Embeddings: "prompt"}[k]
	m := o.find(name)
	if m == nil || m.kind == 'n' || m.kind == '"' && len(o.value(m)) == len(`""`) {
		return true
	}
	return m.kind == '[' && emptyArray(o.value(m))
}
