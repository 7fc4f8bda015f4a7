package dialect

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"ollama-api-service/internal/api"
)

// FilterModels removes the models that may does not allow from a list: "models" of /api/tags and /api/ps, "data" of /v1/models. The
// other entries stay the same byte by byte (the ollama command panics on a shortened digest). If the list is null, it becomes an
// empty list, because OpenAI's clients cannot read null. A model with aliases (without a star) is listed under each alias too.
func FilterModels(body []byte, may func(api.Model) bool, aliases api.Aliases) ([]byte, error) {
	r := read(body)
	defer r.done()
	o, err := r.object(body, listFields)
	if err != nil {
		return nil, err
	}
	e := edit{object: &o}
	for _, name := range []string{"models", "data"} {
		m := o.find(name)
		if m == nil {
			continue
		}
		kept, err := filterArray(o.value(m), may, aliases)
		if err != nil {
			return nil, err
		}
		e.replace(m, kept)
	}
	return e.bytes(), nil
}

// ModelList is the list of one of several servers.
type ModelList struct {
	Body   []byte
	Except func(api.Model) bool // models in the list that UnionModels leaves out
}

// UnionModels merges several lists of the same route: each model once, from the first list that has it. It skips lists that cannot
// be read, and returns an error if it can read none.
func UnionModels(lists []ModelList) ([]byte, error) {
	var (
		first   *object
		array   *member
		entries []byte
		failed  error
		seen    = make(map[api.Model]bool)
	)
	for _, l := range lists {
		r := read(l.Body)
		defer r.done()
		o, err := r.object(l.Body, listFields)
		if err != nil {
			failed = err
			continue
		}
		m := cmp.Or(o.find("models"), o.find("data"))
		if m == nil {
			continue
		}
		kept, err := filterArray(o.value(m), func(model api.Model) bool {
			if seen[model] || l.Except(model) {
				return false
			}
			seen[model] = true
			return true
		}, nil)
		if err != nil {
			failed = err
			continue
		}
		if kept = kept[1 : len(kept)-1]; len(kept) > 0 && len(entries) > 0 {
			entries = append(entries, ',')
		}
		entries = append(entries, kept...)
		if first == nil {
			first, array = &o, m
		}
	}
	if first == nil {
		return nil, cmp.Or(failed, errNoList)
	}
	e := edit{object: first}
	e.replace(array, slices.Concat([]byte{'['}, entries, []byte{']'}))
	return e.bytes(), nil
}

var errNoList = errors.New("it has no list of models")

var (
	listFields  = names("models", "data")
	modelFields = names("model", "name", "id")
)

func filterArray(src []byte, may func(api.Model) bool, aliases api.Aliases) ([]byte, error) {
	r := read(src)
	defer r.done()
	tok, err := r.dec.ReadToken()
	if err != nil {
		return nil, syntaxError(err)
	}
	out := []byte{'['}
	if tok.Kind() == '[' {
		for r.dec.PeekKind() != ']' {
			item, err := r.dec.ReadValue()
			if err != nil {
				return nil, syntaxError(err)
			}
			m, ok := listed(item)
			if !ok || !may(m) {
				continue
			}
			if len(out) > 1 {
				out = append(out, ',')
			}
			out = append(out, item...)
			for _, alias := range aliases.Named(m) {
				other, err := renamed(item.Clone(), alias)
				if err != nil {
					return nil, err
				}
				out = append(append(out, ','), other...)
			}
		}
	}
	return append(out, ']'), nil
}

// renamed returns an entry of a list under another name.
func renamed(item jsontext.Value, name string) ([]byte, error) {
	r := read(item)
	defer r.done()
	o, err := r.object(item, modelFields)
	if err != nil {
		return nil, err
	}
	e := edit{object: &o}
	for _, field := range []string{"model", "name", "id"} {
		if m := o.find(field); m != nil {
			e.replace(m, quote(name))
		}
	}
	return e.bytes(), nil
}

// listed returns the model that an entry of a list names. No key may see an entry without a readable name.
func listed(item jsontext.Value) (api.Model, bool) {
	r := read(item)
	defer r.done()
	o, err := r.object(item, modelFields)
	if err != nil {
		return api.Model{}, false
	}
	for _, field := range []string{"model", "name", "id"} {
		if m := o.find(field); m != nil {
			text, err := o.text(m)
			if err != nil {
				return api.Model{}, false
			}
			model, _, err := api.ParseModel(text)
			return model, err == nil
		}
	}
	return api.Model{}, false
}

// hiddenModelfile replaces a Modelfile. It is a valid Modelfile of one comment: "ollama show --modelfile" prints it.
const hiddenModelfile = "# The Modelfile names files of the server, so this gateway shows it to admin keys only.\n"

// HideModelfile removes the text of "modelfile" from an answer of /api/show, and the blob path from its details, because both name
// files on the server.
func HideModelfile(body []byte) ([]byte, error) {
	r := read(body)
	defer r.done()
	o, err := r.object(body, showFields)
	if err != nil {
		return nil, err
	}
	e := edit{object: &o}
	if m := o.find("modelfile"); m != nil {
		text, err := jsontext.AppendQuote(nil, hiddenModelfile)
		if err != nil {
			return nil, err
		}
		e.replace(m, text)
	}
	if m := o.find("details"); m != nil && m.kind == '{' {
		details, err := o.subobject(m, detailFields)
		if err != nil {
			return nil, err
		}
		if p := details.find("parent_model"); p != nil && bytes.Contains(details.value(p), []byte("blobs")) {
			inner := edit{object: &details}
			inner.replace(p, []byte(`""`))
			e.replace(m, inner.bytes())
		}
	}
	return e.bytes(), nil
}

var (
	showFields   = names("modelfile", "details")
	detailFields = names("parent_model")
)

// ListedModel returns the model's entry in a /v1/models list, with the id as the client wrote it (as Ollama does), or nil if the
// list does not have the model.
func ListedModel(body []byte, model api.Model, id string) ([]byte, error) {
	r := read(body)
	defer r.done()
	o, err := r.object(body, listFields)
	if err != nil {
		return nil, err
	}
	m := o.find("data")
	if m == nil || m.kind != '[' {
		return nil, nil
	}
	list := read(o.value(m))
	defer list.done()
	if _, err := list.dec.ReadToken(); err != nil {
		return nil, syntaxError(err)
	}
	for list.dec.PeekKind() != ']' {
		item, err := list.dec.ReadValue()
		if err != nil {
			return nil, syntaxError(err)
		}
		if found, ok := listed(item); !ok || found != model {
			continue
		}
		return renamed(item.Clone(), id)
	}
	return nil, nil
}

// AnthropicModels returns a list of /v1/models in Anthropic's format, on one page.
func AnthropicModels(list []byte) ([]byte, error) {
	var in struct{ Data []openAIModel }
	if err := json.Unmarshal(list, &in); err != nil {
		return nil, err
	}
	out := struct {
		Data    []anthropicModel `json:"data"`
		HasMore bool             `json:"has_more"`
		FirstID *string          `json:"first_id"`
		LastID  *string          `json:"last_id"`
	}{Data: make([]anthropicModel, len(in.Data))}
	for i, m := range in.Data {
		out.Data[i] = m.anthropic()
	}
	if n := len(out.Data); n > 0 {
		out.FirstID, out.LastID = &out.Data[0].ID, &out.Data[n-1].ID
	}
	return json.Marshal(out)
}

// AnthropicModel returns an entry of /v1/models in Anthropic's format.
func AnthropicModel(entry []byte) ([]byte, error) {
	var m openAIModel
	if err := json.Unmarshal(entry, &m); err != nil {
		return nil, err
	}
	return json.Marshal(m.anthropic())
}

type openAIModel struct {
	ID      string
	Created int64 // seconds since 1970
}

type anthropicModel struct {
	Type        string    `json:"type"`
	ID          string    `json:"id"`
	DisplayName string    `json:"display_name"`
	CreatedAt   time.Time `json:"created_at"`
}

func (m openAIModel) anthropic() anthropicModel {
	return anthropicModel{"model", m.ID, m.ID, time.Unix(m.Created, 0).UTC()}
}
