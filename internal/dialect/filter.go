package dialect

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"

	"ollama-api-service/internal/api"
)

// FilterModels takes the models that may does not allow out of a list: "models" of /api/tags and /api/ps, "data" of
// /v1/models. What stays, stays byte for byte (the ollama command panics on a digest that was cut). A list that is null
// becomes an empty one, which is what OpenAI's clients can read.
func FilterModels(body []byte, may func(api.Model) bool) ([]byte, error) {
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
		kept, err := filterArray(o.value(m), may)
		if err != nil {
			return nil, err
		}
		e.replace(m, kept)
	}
	return e.bytes(), nil
}

var (
	listFields  = names("models", "data")
	modelFields = names("model", "name", "id")
)

func filterArray(src []byte, may func(api.Model) bool) ([]byte, error) {
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
			if m, ok := listed(item); !ok || !may(m) {
				continue
			}
			if len(out) > 1 {
				out = append(out, ',')
			}
			out = append(out, item...)
		}
	}
	return append(out, ']'), nil
}

// listed is the model that an entry of a list names. An entry without a readable name is nothing a key was allowed.
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

// WithoutModelfile takes "modelfile" out of an answer of /api/show, and the blob path out of its details: both name files
// of the server.
func WithoutModelfile(body []byte) ([]byte, error) {
	r := read(body)
	defer r.done()
	o, err := r.object(body, showFields)
	if err != nil {
		return nil, err
	}
	e := edit{object: &o}
	if m := o.find("modelfile"); m != nil {
		e.remove(m)
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

// ListedModel is the entry of a /v1/models list that is the model, with the id as the client wrote it (Ollama echoes it so),
// or nil where the list does not hold it.
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
		item = item.Clone()
		inner := read(item)
		defer inner.done()
		entry, err := inner.object(item, modelFields)
		if err != nil {
			return nil, err
		}
		e := edit{object: &entry}
		if field := entry.find("id"); field != nil {
			e.replace(field, quote(id))
		}
		return e.bytes(), nil
	}
	return nil, nil
}
