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
	// Models are all models that the body names, in canonical form: one, or two for copy and create. The request is booked on the
	// first.
	Models []api.Model
	// Alias is the name that the client used, if it stands for another model. The answer names the model by it.
	Alias string
	// Sent is the first model's name as it goes upstream and is repeated in the answer.
	Sent string
	// Remote reports that the request creates a model that Ollama would run on another host.
	Remote bool
	// Stream reports whether the client asked for a stream.
	Stream bool
	// StripUsage reports that only the gateway asked for usage, which must be removed from the stream again.
	StripUsage bool
	// Changes are the changes by the policy, for the client to read.
	Changes []string
	// PromptTokens is an estimate, for limits and for rows without a count. For AnthropicCount, it is the result of Ollama's own
	// formula.
	PromptTokens int64
	// Prompt is the possible size of the prompt, for requests that end before Ollama has counted it.
	Prompt Extent
	// MaxOutput is the longest answer that the request asks for after all changes, in tokens. Below 0 it is unlimited; 0 is for a
	// kind that generates nothing.
	MaxOutput int64
	// LoadOptions are the options that Ollama applies when it loads the model: with another value, it loads the model again. They
	// are a JSON object, or nil without any.
	LoadOptions []byte
	// Plain reports that Ollama has nothing to prepare before it generates: no schema to compile, no image, no tool, no long prompt.
	Plain bool
	// Schema reports that the answer has to follow a schema. With a model that thinks, Ollama then makes two answers and counts one.
	Schema bool
	// Prefix is a hash of the conversation's beginning: its later turns have the same one. 0 means none.
	Prefix uint64
	// Body goes upstream: the client's bytes, except for the edits that docs/decisions.md lists. Its pieces are those of the body that was
	// read, and Added is what they have in addition to them, in bytes.
	Body  Pieces
	Added int
}

// Model returns the model that the request is booked on.
func (r *Request) Model() api.Model {
	if len(r.Models) == 0 {
		return api.Model{}
	}
	return r.Models[0]
}

// Read reads a whole body of the kind under its terms. Reading it again, under other terms, is cheap. It returns a CodeBadRequest error if
// the body is ambiguous or malformed, or names no model, and CodeForbidden for what the policy refuses.
func (k Kind) Read(body *Body, terms *Terms) (*Request, error) {
	if body.object == nil || body.kind != k {
		o, err := body.guard(known[k])
		if err != nil {
			return nil, err
		}
		body.object, body.kind = o, k
	}
	o := body.object
	e := edit{object: o}
	if k.aliased() {
		e.aliases = terms.Aliases
	}
	req := &Request{}
	err := e.boundSchema(req)
	if err != nil {
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
	req.Body, req.Added = e.pieces(body)
	req.Plain = len(req.Body) == 1 && plain(req.Body[0])
	return req, nil
}

// maxPlain is the longest body of a plain request. Ollama needs more than a few milliseconds to split a longer one into tokens.
const maxPlain = 16 << 10

// plain reports whether a body has nothing that Ollama prepares. It may wrongly return false, for a prompt that has such a word, or
// for escapes, which may spell one.
func plain(body []byte) bool {
	if len(body) > maxPlain || bytes.Contains(body, []byte(`\u`)) {
		return false
	}
	var window [1 << 10]byte // of the body in lower case; each window starts with the end of the previous one
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

// prepared are the ends of field names that give Ollama something to prepare. longestPrepared is the length of the longest, in
// bytes.
var prepared = [...][]byte{[]byte(`format"`), []byte(`tools"`), []byte("image"), []byte(`functions"`)}

const longestPrepared = len(`functions"`)

// edits makes the changes of the kind and the policy.
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

// loadTime returns the load-time options as an object, or nil. It leaves out a num_ctx that the model has by default, because Ollama
// does not load the model again for it.
func (e *edit) loadTime(terms *Terms, m api.Model) []byte {
	var b []byte
	for _, name := range loadTimeOptions {
		value := e.value(name)
		number := strings.HasPrefix(name, "num_") || name == "main_gpu" || name == "draft_num_predict"
		if value == nil || number && value.Kind() != '0' || !number && value.Kind() != 't' && value.Kind() != 'f' {
			continue // Ollama refuses other types at once, without a load
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

// plainNumber returns a whole number in its usual form: 4096.0 and 4.096e3 load the same model as 4096. Other values stay as they
// are.
func plainNumber(value []byte) []byte {
	f, err := strconv.ParseFloat(string(value), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return value
	}
	return strconv.AppendInt(nil, int64(f), 10)
}

// modelNames reads the given fields, each of which must have a model name.
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

// modelOrName reads "model", and "name" if "model" is empty and Ollama would read it too (the ollama command still sends name with
// an empty model). If both are there, they must name the same model.
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
		return api.Errorf(api.CodeBadRequest, "model and name differ: send only one of them")
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

// sources reads the models that a model is made from: a key that may not use a model must not get it under another name.
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

// errHiddenCloud refuses a name that hides where a model runs, because allow_cloud decides by the name.
func errHiddenCloud() error {
	return api.Errorf(api.CodeBadRequest, "the name of a model that runs off-site must show it: use a name that ends in -cloud, or the tag cloud")
}

// transfer reads a pull or a push. "insecure" lets the server speak plain HTTP to any host in the name. It is removed, except for
// hosts in the setting. (Open WebUI sends it with each pull.)
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

// mayReach refuses models of hosts that the setting does not name. The server would connect to such a host, also inside its own
// network, and its error would show what answered.
func (t *Terms) mayReach(req *Request) error {
	for _, m := range req.Models {
		if m.Host != api.DefaultHost && !slices.Contains(t.Registries, m.Host) {
			return errRegistry()
		}
	}
	return nil
}

func errRegistry() error {
	return api.Errorf(api.CodeForbidden, "models may come from and go to Ollama's own registry only: an operator can allow other hosts in REGISTRY_HOSTS")
}

// intoOptions moves a top-level temperature and max_tokens, which Ollama ignores on its native routes, into options. A value that is
// already in options wins, and a value that is not a number stays where Ollama ignores it.
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

// options returns the object "options" of a native request for editing, or an empty one if there is none. Ollama compares its keys
// exactly, because it reads them into a map.
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

// renameMaxTokens sends max_completion_tokens as max_tokens, the name that Ollama knows. Without this, a client that uses the new
// name gets unlimited output. If both are there, Ollama already reads max_tokens.
func (e *edit) renameMaxTokens() {
	m := e.object.find("max_completion_tokens")
	if m == nil || m.kind != '0' {
		return // without a number, Ollama ignores both names
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

// includeUsage asks Ollama for usage in a stream, which has none otherwise (docs/ollama-contract, section 1.4).
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
