package dialect

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"

	"ollama-api-service/internal/api"
)

// edit collects changes to an object and writes them by copying the untouched members as they are: a 20 MB image is moved,
// never decoded.
type edit struct {
	object   *object
	aliases  api.Aliases
	replaced map[*member][]byte // nil value: removed
	added    [][]byte
}

func (e *edit) replace(m *member, value []byte) {
	if e.replaced == nil {
		e.replaced = make(map[*member][]byte, 2)
	}
	e.replaced[m] = value
}

func (e *edit) remove(m *member) { e.replace(m, nil) }

func (e *edit) add(name string, value []byte) { e.added = append(e.added, pair(name, value)) }

// bytes is the object with all changes. Without one it is the client's bytes, less what stands around the object: trailing
// bytes would keep Ollama from noticing a client that leaves (docs/ollama-contract, section 3).
func (e *edit) bytes() []byte {
	if e.replaced == nil && e.added == nil {
		return bytes.TrimLeft(e.object.src[:e.object.end], " \t\r\n")
	}
	size := e.object.end + 16
	for _, v := range e.replaced {
		size += len(v)
	}
	for _, a := range e.added {
		size += len(a) + 1
	}
	out := append(make([]byte, 0, size), '{')
	for i := range e.object.members {
		m := &e.object.members[i]
		value, changed := e.replaced[m]
		if changed && value == nil {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		if changed {
			out = append(out, e.object.src[m.start:m.valueStart]...)
			out = append(out, value...)
		} else {
			out = append(out, e.object.src[m.start:m.end]...)
		}
	}
	for _, a := range e.added {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, a...)
	}
	return append(out, '}')
}

func pair(name string, value []byte) []byte {
	return append(append(quote(name), ':'), value...)
}

func wrap(open byte, inside []byte, closing byte) []byte {
	return append(append([]byte{open}, inside...), closing)
}

// quote writes a JSON string of a name that api.ParseModel or this package has passed: it cannot fail.
func quote(s string) []byte {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		panic("dialect: quote of invalid UTF-8: " + err.Error())
	}
	return b
}
