package dialect

import (
	"bytes"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"ollama-api-service/internal/api"
)

// addition is a member that the client's object does not have.
type addition struct {
	name  string
	value []byte
}

// edit collects changes to an object. The unchanged members of a large body are not copied.
type edit struct {
	object   *object
	aliases  api.Aliases
	replaced map[*member][]byte // nil value: removed
	added    []addition
	first    bool // additions go to the front
}

func (e *edit) replace(m *member, value []byte) {
	if e.replaced == nil {
		e.replaced = make(map[*member][]byte, 2)
	}
	e.replaced[m] = value
}

func (e *edit) remove(m *member) { e.replace(m, nil) }

// put sets a member. If there is none, put adds it.
func (e *edit) put(name string, value []byte) {
	if m := e.object.find(name); m != nil {
		e.replace(m, value)
		return
	}
	e.drop(name)
	e.add(name, value)
}

// drop removes a member, whether the client sent it or put added it.
func (e *edit) drop(name string) {
	if m := e.object.find(name); m != nil {
		e.remove(m)
	}
	e.added = slices.DeleteFunc(e.added, func(a addition) bool { return a.name == name })
}

// value returns a member as it will go upstream, with all changes so far, or nil.
func (e *edit) value(name string) jsontext.Value {
	if m := e.object.find(name); m != nil {
		if value, changed := e.replaced[m]; changed {
			return value
		}
		return e.object.value(m)
	}
	for _, a := range e.added {
		if a.name == name {
			return a.value
		}
	}
	return nil
}

func (e *edit) add(name string, value []byte) {
	e.added = append(e.added, addition{name, value})
}

func (e *edit) changed() bool { return e.replaced != nil || len(e.added) > 0 }

// bytes returns the object with all changes. Without changes, it is the client's bytes without those before and after the object.
// Trailing bytes would keep Ollama from noticing that a client has left (docs/ollama-contract, section 3).
func (e *edit) bytes() []byte {
	if !e.changed() {
		return bytes.TrimLeft(e.object.src[:e.object.end], " \t\r\n")
	}
	size := e.object.end + 16
	for _, v := range e.replaced {
		size += len(v)
	}
	for _, a := range e.added {
		size += len(a.name) + len(a.value) + len(`"":,`)
	}
	return e.write(output{added: make([]byte, 0, size)}).added
}

// pieces is bytes for an object that is the whole body. Of a large body the unchanged members are the body's own bytes. The second result
// is the number of the other bytes.
func (e *edit) pieces(b *Body) (Pieces, int) {
	if b.size <= WholeBody {
		return Pieces{e.bytes()}, 0
	}
	if !e.changed() {
		start := len(e.object.src) - len(bytes.TrimLeft(e.object.src, " \t\r\n"))
		return b.between(nil, b.origin(start), b.origin(e.object.end)), 0
	}
	out := e.write(output{body: b})
	out.cut()
	return out.pieces, cap(out.added)
}

// output is an object while it is written.
type output struct {
	body   *Body  // whose bytes are not copied, or nil
	pieces Pieces // with a body
	from   int    // of the bytes in added that are not in pieces
	added  []byte
}

func (o *output) cut() {
	if o.from < len(o.added) {
		o.pieces = append(o.pieces, o.added[o.from:])
	}
	o.from = len(o.added)
}

// keep adds a part of the source.
func (o *output) keep(src []byte, start, end int) {
	if o.body == nil || end-start < keptText {
		o.added = append(o.added, src[start:end]...)
		return
	}
	o.cut()
	o.pieces = o.body.between(o.pieces, o.body.origin(start), o.body.origin(end))
}

func (e *edit) write(out output) output {
	out.added = append(out.added, '{')
	empty := true
	next := func() {
		if !empty {
			out.added = append(out.added, ',')
		}
		empty = false
	}
	add := func() {
		for _, a := range e.added {
			next()
			out.added = append(out.added, pair(a.name, a.value)...)
		}
	}
	if e.first {
		add()
	}
	for i := range e.object.members {
		m := &e.object.members[i]
		value, changed := e.replaced[m]
		if changed && value == nil {
			continue
		}
		next()
		if changed {
			out.added = append(out.added, e.object.src[m.start:m.valueStart]...)
			out.added = append(out.added, value...)
		} else {
			out.keep(e.object.src, m.start, m.end)
		}
	}
	if !e.first {
		add()
	}
	out.added = append(out.added, '}')
	return out
}

func pair(name string, value []byte) []byte {
	return append(append(quote(name), ':'), value...)
}

// quote writes a name as a JSON string. api.ParseModel or this package has checked the name, so quote cannot fail.
func quote(s string) []byte {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		panic("dialect: quote of invalid UTF-8: " + err.Error())
	}
	return b
}
