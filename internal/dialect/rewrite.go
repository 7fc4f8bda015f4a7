package dialect

import (
	"bytes"
	"slices"
)

var rewriteFields = names("model", "message", "response", "choices", "usage")

// rewrite returns a record for the client: without the usage that only the gateway asked for (a chunk with nothing else becomes
// empty), and with the model under the name that the client used. It reports whether anything differs.
func (m *Meter) rewrite(rec []byte) ([]byte, bool) {
	if m.echo == "" && (!m.strip || !bytes.Contains(rec, usageMember)) {
		return nil, false
	}
	data := rec
	if m.sse {
		var ok bool
		if data, ok = eventData(rec); !ok {
			return nil, false
		}
	}
	r := read(data)
	defer r.done()
	o, err := r.object(data, rewriteFields)
	if err != nil {
		return nil, false
	}
	e := edit{object: &o}
	if usage := o.find("usage"); m.strip && usage != nil {
		if c := o.find("choices"); c != nil && c.kind == '[' && emptyArray(o.value(c)) {
			return nil, true
		}
		e.remove(usage)
	}
	if m.echo != "" {
		m.kind.renameModel(&e, m.echo)
	}
	if e.replaced == nil {
		return nil, false
	}
	i := bytes.Index(rec, data)
	return bytes.Join([][]byte{rec[:i], e.bytes(), rec[i+o.end:]}, nil), true
}

// renameModel changes the model's name at the top level, or in the part of an event that describes the whole answer.
func (k Kind) renameModel(e *edit, name string) {
	if m := e.object.find("model"); m != nil && m.kind == '"' {
		e.replace(m, quote(name))
		return
	}
	part := e.object.find(map[Kind]string{OpenAIResponses: "response", AnthropicMessages: "message"}[k])
	if part == nil || part.kind != '{' {
		return
	}
	o, err := e.object.subobject(part, rewriteFields)
	if err != nil {
		return
	}
	if m := o.find("model"); m != nil && m.kind == '"' {
		inner := edit{object: &o}
		inner.replace(m, quote(name))
		e.replace(part, inner.bytes())
	}
}

// EchoModel returns an answer that is one object, with the model under the name that the client used.
func EchoModel(body []byte, name string) []byte {
	r := read(body)
	defer r.done()
	o, err := r.object(body, rewriteFields)
	if err != nil {
		return body
	}
	m := o.find("model")
	if m == nil || m.kind != '"' {
		return body
	}
	e := edit{object: &o}
	e.replace(m, quote(name))
	return append(e.bytes(), body[o.end:]...)
}

// EchoPart is EchoModel for the first or the last bytes of an answer that is too long to read at once. It reports whether they name
// the model. sent is the name that went upstream. Quotes within a text are escaped, so nothing that a model wrote can look like the
// member.
func EchoPart(part []byte, sent, name string) ([]byte, bool) {
	before, after, found := bytes.Cut(part, pair("model", quote(sent)))
	if !found {
		return part, false
	}
	return slices.Concat(before, pair("model", quote(name)), after), true
}
