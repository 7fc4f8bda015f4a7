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

// Terms are the rules under which a body is read. The zero value has none.
type Terms struct {
	Aliases api.Aliases
	// Policed reports that the body is a user's. An admin's body passes unchanged.
	Policed bool
	// Key, Models and Standard decide about a field, in this order. In Models, the first match counts.
	Key      api.Policy
	Models   []api.ModelPolicy
	Standard api.Policy
	// MaxOutput is the longest answer that any request may ask for, in tokens; 0 means no bound. It applies after the policy.
	MaxOutput int64
	// Own returns what a model's Modelfile sets, or nil if that is unknown. It is called only if the answer matters.
	Own func(api.Model) api.Parameters
	// DropHosted removes tools that the provider would run, because the key may not use the cloud.
	DropHosted bool
	// Registries are the hosts that models may come from and go to, besides Ollama's own.
	Registries []string
}

// Standard is the table of fields that a user's key may not set freely, unless a policy says otherwise. Each of them affects more
// than the request that has it (docs/policy.md; docs/ollama-contract.md, section 7).
func Standard(maxContext int64, maxKeepAlive time.Duration, defaultTokens int64) api.Policy {
	drop, refuse := api.Action{Verb: api.VerbDrop}, api.Action{Verb: api.VerbRefuse}
	p := api.Policy{
		"unload":             refuse, // unloads the model for all clients: an empty prompt with a keep_alive of zero
		"_debug_render_only": refuse, // shows the system prompt that a model hides
		"template":           refuse, // a program in Go's template language, run by the server
		"raw":                {Verb: api.VerbPass},

		// How the model is loaded. Two users with two values make Ollama load it again for each request in turn.
		"num_ctx":   atMost(maxContext),
		"num_batch": drop, "num_gpu": drop, "main_gpu": drop, "num_thread": drop, "use_mmap": drop, "use_mlock": drop, "numa": drop,
		"low_vram": drop, "f16_kv": drop, "vocab_only": drop, "logits_all": drop, "draft_num_predict": drop, "shift": drop,

		"keep_alive": atMost(int64(maxKeepAlive / time.Second)), // the last one sent applies to all clients
		"max_tokens": {Verb: api.VerbPass},
	}
	if defaultTokens > 0 {
		p["max_tokens"] = api.Action{Verb: api.VerbDefault, Amount: defaultTokens} // without one, Ollama's limit is ten times the context
	}
	return p
}

// minKeepAlive is the minimum time that a model stays, in seconds, if a user's keep_alive has a maximum. A second would unload it for
// all clients as surely as zero.
const minKeepAlive = 60

// atMost returns a bound of n; 0 means no bound.
func atMost(n int64) api.Action {
	if n <= 0 {
		return api.Action{Verb: api.VerbPass}
	}
	return api.Action{Verb: api.VerbMost, Amount: n}
}

// topFlags and loadOptions are the policed fields without an amount, by their place in the body.
var (
	topFlags    = []string{"_debug_render_only", "template", "raw", "shift"}
	loadOptions = []string{
		"num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa", "low_vram", "f16_kv", "vocab_only",
		"logits_all", "draft_num_predict",
	}
	loadTimeOptions = append([]string{"num_ctx"}, loadOptions...)
	policedOptions  = names(append([]string{"temperature", "num_predict", "num_ctx"}, loadOptions...)...)
)

// action returns what happens to a field of a request for m.
func (t *Terms) action(field string, m api.Model) api.Action {
	if a, chosen := t.chosen(field, m); chosen {
		return a
	}
	return t.Standard[field]
}

// chosen returns what an admin has set for a field, for the key or for the model.
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

// police applies the table to a user's body. It returns CodeForbidden for what is refused. req.Changes lists what it changed.
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

// outputName is the kind's field for the longest answer, or "" if it generates none.
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

// outputHolder is the object that has this field.
func (e *edit) outputHolder(k Kind, options *edit) *edit {
	if k.native() {
		return options
	}
	return e
}

// boundOutput lowers the longest answer to most, and notes the resulting length in the request. A model's own bound counts if the
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

// refusesOutput reports whether Ollama refuses such a value. Then there is no answer, and the client gets Ollama's own error.
func (k Kind) refusesOutput(given number) bool {
	return given.odd || k == AnthropicMessages && given.n < 1
}

// number is the value of a field that must be a number.
type number struct {
	n      float64
	absent bool // absent or null
	odd    bool // of another type or form, which Ollama refuses
}

// number reads a number as Ollama does: its native routes accept everything that fits a float64, the others only whole numbers.
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

// policing is one body under the table.
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

// offByDefault are the fields that ask for nothing if they are false or empty. Other fields are on by default, and false is the
// change.
var offByDefault = map[string]bool{"raw": true, "template": true, "_debug_render_only": true}

// flag decides about a field without an amount. A null asks for nothing.
func (p *policing) flag(e *edit, field string) error {
	value := string(e.value(field))
	if value == "" || value == "null" {
		return nil
	}
	switch verb := p.terms.action(field, p.model).Verb; {
	case verb == api.VerbRefuse && !(offByDefault[field] && (value == "false" || value == `""`)):
		return p.refused(field)
	case verb == api.VerbDrop:
		e.drop(field)
		p.changed("%s dropped", field)
	}
	return nil
}

// context decides about num_ctx. A value that is too small for the prompt, or negative, is left to Ollama, which raises it to 4 and
// refuses what does not fit.
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
			// A request for as much as the model has by default costs no more than a request without the field.
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

// cover drops a num_ctx that is at most what the model has without it, and at least what the prompt needs. Nothing is cut either
// way, and every other value would make all clients wait for a load. cover keeps the field if the prompt may not fit, because Ollama
// cuts the prompt to num_ctx. It also keeps it for a model that is only partly on the graphics card: with less context, the model
// may fit as a whole. If a policy says pass, set or default, an admin has chosen the value.
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

// output decides about the longest answer. A value below 1 asks for as much as possible, except in messages, where Ollama refuses
// it.
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

// explicit applies a policy to a field with any value.
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

// atMost lowers a number. Without another bound, the bound is 2147483647: Ollama converts the value to an int, and 1e30 becomes
// negative, which means no bound. Other types are refused here, because Ollama answers them with a 500, and clients try again after
// that.
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

// unload decides about keep_alive: how long the model stays, or that it is unloaded at once.
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
	if seconds >= 0 && seconds < minKeepAlive && k.empty(e.object) {
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
	case a.Verb == api.VerbDrop, a.Verb == api.VerbMost && seconds < minKeepAlive:
		e.remove(m)
		p.changed("keep_alive dropped")
	}
	return nil
}

// seconds reads a keep_alive as Ollama does: whole seconds from a number or a duration. Negative means for ever, here -1.
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

// native reports whether the kind has keep_alive and options.
func (k Kind) native() bool {
	switch k {
	case Generate, Chat, Embed, Embeddings:
		return true
	}
	return false
}

// empty reports whether a body asks the model nothing, so that Ollama only loads or unloads the model.
func (k Kind) empty(o *object) bool {
	name := map[Kind]string{Generate: "prompt", Chat: "messages", Embed: "input", Embeddings: "prompt"}[k]
	m := o.find(name)
	if m == nil || m.kind == 'n' || m.kind == '"' && len(o.value(m)) == len(`""`) {
		return true
	}
	return m.kind == '[' && emptyArray(o.value(m))
}
