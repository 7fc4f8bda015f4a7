package dialect

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"

	"ollama-api-service/internal/api"
)

// Request is what a body says, and the bytes to send upstream for it.
type Request struct {
	// Models are all models the body names, canonical: one, or two for copy and create. The first is what is booked.
	Models []api.Model
	// Alias is the name that the client used where it stands for another model; the answer goes out under it.
	Alias string
	// Sent is the first model's name as it goes upstream, and comes back in the answer.
	Sent string
	// Remote says that a model is to be made which Ollama would run on another host.
	Remote bool
	// Stream says whether a streamed answer was asked for.
	Stream bool
	// StripUsage says that usage was asked for by the gateway alone and must be taken out of the stream again.
	StripUsage bool
	// Changes are what the policy has changed, for the client to read.
	Changes []string
	// PromptTokens is an estimate, for limits and for rows whose true count is lost; of AnthropicCount, what Ollama's own formula gives.
	PromptTokens int64
	// Prompt is what the prompt may have, for requests that end before Ollama has counted it.
	Prompt Extent
	// MaxOutput is the longest answer that goes out as asked for, in tokens: below 0 as long as it gets, 0 for a kind that generates
	// none.
	MaxOutput int64
	// LoadOptions are those of its options that Ollama obeys when it loads the model: another value loads it again. A JSON object, nil
	// where there is none.
	LoadOptions []byte
	// Plain reports that Ollama has nothing to prepare before it generates: no schema to compile, no image, no tool, no long prompt.
	Plain bool
	// Schema reports that the answer has to follow a schema. Of a model that thinks, Ollama then makes two answers and counts one.
	Schema bool
	// Prefix tells conversations apart by their beginning: that of their later turns is the same. 0 where there is none.
	Prefix uint64
	// Body goes upstream: the client's bytes but for the edits that docs/decisions.md names.
	Body []byte
}

// Model is the model that the request is booked on.
func (r *Request) Model() api.Model {
	if len(r.Models) == 0 {
		return api.Model{}
	}
	return r.Models[0]
}

// Read reads a body of the kind under its terms. It returns a CodeBadRequest error for what is ambiguous, malformed, or names no
// model, and CodeForbidden for what the policy refuses.
func (k Kind) Read(body []byte, terms *Terms) (*Request, error) {
	o, err := guard(body, known[k])
	if err != nil {
		return nil, err
	}
	e := edit{object: &o}
	if k.aliased() {
		e.aliases = terms.Aliases
	}
	req := &Request{}
	if err := e.boundSchema(req); err != nil {
		return nil, err
	}
	if k == Copy {
		if err = e.modelNames(req, "source", "destination"); err == nil && req.Models[0].Cloud() && !req.Models[1].Cloud() {
			err = errHiddenCloud()
		}
	} else {
		err = e.modelOrName(k, req)
	}
	if err != nil {
		return nil, err
	}
	if k.mayStream() {
		if req.Stream, err = o.flag("stream", k.Streams()); err != nil {
			return nil, err
		}
	}
	req.Schema = e.hasSchema()
	req.Prompt = o.prompt.extent()
	if req.PromptTokens = req.Prompt.Estimate; k == AnthropicCount {
		req.PromptTokens = o.prompt.counted()
	}
	if !k.Embeds() {
		req.Prefix = o.prefix()
	}

	if err = e.edits(k, terms, req); err != nil {
		return nil, err
	}
	req.Body = e.bytes()
	req.Plain = plain(req.Body)
	return req, nil
}

// maxPlain is the longest body of a plain request: Ollama splits longer ones into tokens for more than a few milliseconds.
const maxPlain = 16 << 10

// plain reports whether a body names nothing that Ollama prepares. It errs on the side of no: also for a prompt that has such a word,
// and for escapes, which may spell one.
func plain(body []byte) bool {
	if len(body) > maxPlain || bytes.Contains(body, []byte(`\u`)) {
		return false
	}
	var window [1 << 10]byte // of the body in lower case; each begins with the end of the one before
	for at := 0; at < len(body); at += len(window) - longestPrepared {
		part := window[:copy(window[:], body[at:])]
		for i, c := range part {
			if c >= 'A' && c <= 'Z' {
				part[i] = c + 'a' - 'A'
			}
		}
		for _, word := range prepared {
			if bytes.Contains(part, word) {
				return false
			}
		}
	}
	return true
}

// prepared are what names of fields end in that give Ollama something to prepare, and longestPrepared the bytes of the longest.
var prepared = [...][]byte{[]byte(`format"`), []byte(`tools"`), []byte("image"), []byte(`functions"`)}

const longestPrepared = len(`functions"`)

// edits makes the changes that the kind and the policy ask for.
func (e *edit) edits(k Kind, terms *Terms, req *Request) (err error) {
	var options *edit
	switch k {
	case Generate, Chat:
		if options, err = e.options(); err == nil {
			e.intoOptions(options)
		}
	case Embed, Embeddings:
		options, err = e.options()
	case Transfer:
		err = e.transfer(terms, req)
	case Create:
		err = e.sources(terms, req)
	case OpenAIChat:
		e.renameMaxTokens()
		err = e.includeUsage(req)
	case OpenAICompletions:
		err = e.includeUsage(req)
	}
	if err == nil && terms.DropHosted {
		err = e.dropHosted(k, req)
	}
	if err == nil && terms.Policed {
		err = e.police(k, terms, req, options)
	}
	if err == nil {
		e.boundOutput(k, terms, req, options)
	}
	if err == nil && options != nil {
		req.LoadOptions = options.loadTime(terms, req.Model())
	}
	if err == nil && options != nil && options.changed() {
		e.put("options", options.bytes())
	}
	return err
}

// loadTime is the load-time options as an object, or nil. A num_ctx that the model has without it is none: Ollama does not load it again
// for that.
func (e *edit) loadTime(terms *Terms, m api.Model) []byte {
	var b []byte
	for _, name := range loadTimeOptions {
		value := e.value(name)
		number := strings.HasPrefix(name, "num_") || name == "main_gpu" || name == "draft_num_predict"
		if value == nil || number && value.Kind() != '0' || !number && value.Kind() != 't' && value.Kind() != 'f' {
			continue // Ollama refuses other types at once, and loads nothing for them
		}
		if name == "num_ctx" && e.number(name, false).n == float64(terms.own(m).Context) {
			continue
		}
		if b == nil {
			b = append(b, '{')
		} else {
			b = append(b, ',')
		}
		b = append(append(append(b, quote(name)...), ':'), plainNumber(value)...)
	}
	if b == nil {
		return nil
	}
	return append(b, '}')
}

// plainNumber is a whole number as it is usually written: 4096.0 and 4.096e3 load the same model as 4096. Other values stay.
func plainNumber(value []byte) []byte {
	f, err := strconv.ParseFloat(string(value), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return value
	}
	return strconv.AppendInt(nil, int64(f), 10)
}

// modelNames reads the named fields, each of which must hold a model name.
func (e *edit) modelNames(req *Request, fields ...string) error {
	for _, f := range fields {
		m := e.object.find(f)
		if m == nil {
			return api.Errorf(api.CodeBadRequest, "%s is required", f)
		}
		if err := e.modelName(req, m); err != nil {
			return err
		}
	}
	return nil
}

// modelOrName reads "model", and "name" where that is empty and Ollama would read it too (the ollama command still sends name
// with an empty model). Both at once must mean one model, whoever reads it.
func (e *edit) modelOrName(k Kind, req *Request) error {
	found := 0
	for _, f := range []string{"model", "name"} {
		m := e.object.find(f)
		if m == nil {
			continue
		}
		text, err := e.object.text(m)
		if err != nil {
			return err
		}
		if text == "" || f == "name" && found == 0 && !k.named() {
			continue
		}
		if err := e.modelName(req, m); err != nil {
			return err
		}
		found++
	}
	switch {
	case found == 0:
		return api.Errorf(api.CodeBadRequest, "model is required")
	case found == 2 && req.Models[0] != req.Models[1]:
		return api.Errorf(api.CodeBadRequest, "model and name differ: send one of them")
	}
	req.Models = req.Models[:1]
	return nil
}

func (e *edit) modelName(req *Request, m *member) error {
	text, err := e.object.text(m)
	if err != nil {
		return err
	}
	model, plain, err := api.ParseModel(text)
	if err != nil {
		return err
	}
	if to, ok := e.aliases.Resolve(model); ok {
		req.Alias = plain
		model, plain = to.Model, to.Plain
	}
	if req.Sent == "" {
		req.Sent = plain
	}
	if plain != text {
		e.replace(m, quote(plain))
	}
	req.Models = append(req.Models, model)
	return nil
}

// sources reads what a model is made from: a key that may not use a model must not get it under another name.
func (e *edit) sources(terms *Terms, req *Request) error {
	for _, f := range []string{"from", "remote_host"} {
		m := e.object.find(f)
		if m == nil || m.kind == 'n' {
			continue
		}
		text, err := e.object.text(m)
		if err != nil {
			return err
		}
		switch {
		case text == "":
		case f == "remote_host":
			req.Remote = true
			if host := strings.TrimPrefix(text, "https://"); host != "ollama.com" && !slices.Contains(terms.Registries, host) {
				return errRegistry()
			}
		default:
			if err := e.modelName(req, m); err != nil {
				return err
			}
		}
	}
	elsewhere := req.Remote || len(req.Models) > 1 && req.Models[1].Cloud()
	if elsewhere && !req.Model().Cloud() {
		return errHiddenCloud()
	}
	return terms.mayReach(req)
}

// errHiddenCloud keeps models that run elsewhere from names that do not tell: allow_cloud goes by the name.
func errHiddenCloud() error {
	return api.Errorf(api.CodeBadRequest, "a model that runs elsewhere must say so in its name: let it end in -cloud, or give it the tag cloud")
}

// transfer reads a pull or a push. "insecure" lets the server speak plain HTTP to whatever host the name gives: it is taken out
// but for hosts that a setting names. (Open WebUI sends it with each pull.)
func (e *edit) transfer(terms *Terms, req *Request) error {
	if err := terms.mayReach(req); err != nil {
		return err
	}
	insecure, err := e.object.flag("insecure", false)
	if err != nil {
		return err
	}
	if insecure && !slices.Contains(terms.Registries, req.Model().Host) {
		e.remove(e.object.find("insecure"))
		req.Changes = append(req.Changes, "insecure dropped")
	}
	return nil
}

// mayReach refuses models of a host that no setting names: the server would speak to whatever is there, inside its own network
// too, and tell what it answers.
func (t *Terms) mayReach(req *Request) error {
	for _, m := range req.Models {
		if m.Host != api.DefaultHost && !slices.Contains(t.Registries, m.Host) {
			return errRegistry()
		}
	}
	return nil
}

func errRegistry() error {
	return api.Errorf(api.CodeForbidden, "models may come from and go to Ollama's own registry alone: name other hosts in REGISTRY_HOSTS")
}

// intoOptions moves a top-level temperature and max_tokens, which Ollama ignores on its native routes, into options.
// What stands in options already wins, and what is no number stays where Ollama ignores it.
func (e *edit) intoOptions(options *edit) {
	for _, move := range [...]struct{ from, to string }{{"temperature", "temperature"}, {"max_tokens", "num_predict"}} {
		m := e.object.find(move.from)
		if m == nil || m.kind != '0' && m.kind != 'n' {
			continue
		}
		e.remove(m)
		if m.kind != 'n' && options.object.find(move.to) == nil {
			options.add(move.to, e.object.value(m))
		}
	}
}

// options is the object "options" of a native request, to be edited; an empty one where there is none. Ollama matches its keys
// exactly: they are a map there.
func (e *edit) options() (*edit, error) {
	m := e.object.find("options")
	if m == nil || m.kind == 'n' {
		return &edit{object: &object{src: []byte("{}"), end: 2}, first: true}, nil
	}
	if m.kind != '{' {
		return nil, api.Errorf(api.CodeBadRequest, "options must be an object")
	}
	o, err := e.object.subobject(m, policedOptions)
	return &edit{object: &o, first: true}, err
}

// renameMaxTokens sends max_completion_tokens as max_tokens, the one that Ollama obeys: without it a client that uses the
// new name gets unbounded output. Where both stand, max_tokens is what Ollama reads already.
func (e *edit) renameMaxTokens() {
	m := e.object.find("max_completion_tokens")
	if m == nil || m.kind != '0' {
		return // without a number Ollama ignores it, as it does each
	}
	old := e.object.find("max_tokens")
	switch {
	case old != nil && old.kind != 'n':
		return
	case old != nil:
		e.replace(old, e.object.value(m))
	default:
		e.add("max_tokens", e.object.value(m))
	}
	e.remove(m)
}

// includeUsage asks Ollama for usage in a stream: without it a stream carries none (docs/ollama-contract, section 1.4).
func (e *edit) includeUsage(req *Request) error {
	m := e.object.find("stream_options")
	if m != nil && m.kind != 'n' && m.kind != '{' {
		return api.Errorf(api.CodeBadRequest, "stream_options must be an object")
	}
	if !req.Stream {
		return nil
	}
	var inner object
	asked := false
	if m != nil && m.kind == '{' {
		var err error
		if inner, err = e.object.subobject(m, streamOptions); err != nil {
			return err
		}
		if asked, err = inner.flag("include_usage", false); err != nil {
			return err
		}
	}
	if asked {
		return nil
	}
	req.StripUsage = true
	switch {
	case m == nil:
		e.add("stream_options", []byte(`{"include_usage":true}`))
	case inner.find("include_usage") != nil || len(inner.members) == 0:
		e.replace(m, []byte(`{"include_usage":true}`))
	default:
		e.replace(m, append([]byte(`{"include_usage":true,`), bytes.TrimLeft(inner.src, "{")...))
	}
	return nil
}

var streamOptions = names("include_usage")
