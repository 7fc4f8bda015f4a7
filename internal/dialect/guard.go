package dialect

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"ollama-api-service/internal/api"
)

// maxMembers bounds the top-level fields of a body. No client has that many, and a million fields take seconds.
const maxMembers = 1000

// maxNames bounds the number of fields at all depths, and maxNamesText the bytes of their names. The decoder keeps every name to
// find duplicates: 60 MiB of short names would take 600 MB, and of long ones 170 MB.
const (
	maxNames     = 200_000
	maxNamesText = 4 << 20
)

// perName and perNameByte are the bytes of memory that a decoder needs for a name of a large object: a map, which is copied while it
// grows, and the name in buffers that grow. Small objects need less.
const (
	perName     = 128
	perNameByte = 6
)

const (
	maxText   = 16 << 10 // bytes of a text that is read, such as a model's name, including quotes and escapes
	maxNumber = 1100     // digits of a number that is read; the longest exact float64 has 1,077
)

// member is one field of an object: its name if it is a known one, and its place in the source.
type member struct {
	name       string // "" where the name is not a known one
	start      int    // of the quoted name
	valueStart int
	end        int // of the value
	kind       jsontext.Kind
	prefix     uint64 // the hash of the conversation's beginning in it; 0: none
}

// object is a JSON object split into members. Values stay undecoded.
type object struct {
	src     []byte // of a request body, its outline
	members []member
	end     int // just after the closing brace
	prompt  prompt
}

func (o *object) find(name string) *member {
	for i := range o.members {
		if o.members[i].name == name {
			return &o.members[i]
		}
	}
	return nil
}

func (o *object) value(m *member) []byte { return o.src[m.valueStart:m.end] }

type reader struct {
	dec  *jsontext.Decoder
	buf  *bytes.Buffer
	len  int   // of the source
	body *Body // whose outline the source is, or nil
}

// keptSource is the longest source after which the decoder is used again, because a decoder keeps the names of large objects.
const keptSource = 64 << 10

var readers = sync.Pool{New: func() any { return new(reader) }}

// read starts to read src. It accepts invalid UTF-8 (JavaScript clients cut emoji in half); fields that the gateway decides about
// refuse it. Duplicate names are refused at every depth.
func read(src []byte) *reader {
	r := readers.Get().(*reader)
	r.buf, r.len = bytes.NewBuffer(src), len(src)
	if r.dec == nil {
		r.dec = jsontext.NewDecoder(r.buf, jsontext.AllowInvalidUTF8(true))
	} else {
		r.dec.Reset(r.buf, jsontext.AllowInvalidUTF8(true))
	}
	return r
}

func (r *reader) done() {
	if r.buf, r.body = nil, nil; r.len > keptSource {
		return
	}
	// The pool must not keep a reference to a 60 MB body.
	r.dec.Reset(bytes.NewReader(nil))
	readers.Put(r)
}

// guard splits a request body into members. It refuses every body that Ollama could read in another way than the gateway:
// duplicates, spellings that match a known field only without case, bytes after the value, names that are not valid text.
func (b *Body) guard(known fields) (*object, error) {
	b.finish()
	switch {
	case b.names > maxNames:
		return nil, api.Errorf(api.CodeBadRequest, "the body has more than %d fields, at all depths: send fewer", maxNames)
	case b.nameBytes > maxNamesText:
		return nil, api.Errorf(api.CodeBadRequest, "the names of the body's fields have more than %d bytes in total: send shorter or fewer names",
			maxNamesText)
	case b.flat && !b.joined:
		b.join()
	}
	if len(bytes.TrimLeft(b.outline, " \t\r\n")) == 0 {
		return nil, api.Errorf(api.CodeBadRequest, "missing request body")
	}
	r := read(b.outline)
	defer r.done()
	r.body = b
	o, err := r.object(b.outline, known)
	if err != nil {
		return nil, err
	}
	if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, api.Errorf(api.CodeBadRequest, "the body continues after its JSON object: send only one object")
	}
	return &o, nil
}

// Check is guard for bodies that another decoder reads later (the management API). It refuses ambiguous bodies.
func (b *Body) Check(known ...string) error {
	_, err := b.guard(names(known...))
	return err
}

// subobject splits the value of m. guard has checked it before.
func (o *object) subobject(m *member, known fields) (object, error) {
	src := o.value(m)
	r := read(src)
	defer r.done()
	return r.object(src, known)
}

func (r *reader) object(src []byte, known fields) (object, error) {
	o := object{src: src, members: make([]member, 0, 8)}
	tok, err := r.dec.ReadToken()
	if err != nil {
		return o, r.syntaxError(err)
	}
	if tok.Kind() != '{' {
		return o, api.Errorf(api.CodeBadRequest, "the body must be a JSON object")
	}
	for r.dec.PeekKind() != '}' {
		m, err := r.member(src, known, &o.prompt)
		if err != nil {
			return o, err
		}
		if len(o.members) == maxMembers {
			return o, api.Errorf(api.CodeBadRequest, "the body has more than %d fields", maxMembers)
		}
		o.members = append(o.members, m)
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return o, r.syntaxError(err)
	}
	o.end = int(r.dec.InputOffset())
	return o, nil
}

func (r *reader) member(src []byte, known fields, p *prompt) (member, error) {
	raw, err := r.dec.ReadValue()
	if err != nil {
		return member{}, r.syntaxError(err)
	}
	end := int(r.dec.InputOffset())
	m := member{start: end - len(raw)}
	if m.name, err = fieldName(raw, known); err != nil {
		return m, err
	}
	m.kind = r.dec.PeekKind()
	if root, ok := prompts[m.name]; ok {
		err = r.walk(&m, end, src, root, p)
	} else {
		var value jsontext.Value
		value, err = r.dec.ReadValue()
		m.valueStart = int(r.dec.InputOffset()) - len(value)
		if m.name == "tools" {
			p.readData(value)
		}
	}
	if err != nil {
		return m, r.syntaxError(err)
	}
	if m.end = int(r.dec.InputOffset()); m.kind == '0' && m.name != "" && m.end-m.valueStart > maxNumber {
		return m, api.Errorf(api.CodeBadRequest, "%s has more than %d digits: send a number", m.name, maxNumber)
	}
	return m, nil
}

// fieldName returns the known field that a quoted name spells exactly, or "" for another name. It returns an error for a spelling
// that Ollama would read as a known field.
func fieldName(raw []byte, known fields) (string, error) {
	inner := raw[1 : len(raw)-1]
	if name, ok := known[string(inner)]; ok {
		return name, nil
	}
	plain := true
	for _, c := range inner {
		if c == '\\' || c >= 0x80 || c >= 'A' && c <= 'Z' {
			plain = false
			break
		}
	}
	if plain {
		return "", nil
	}
	text, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		return "", api.Errorf(api.CodeBadRequest, "a field name of the body is not valid UTF-8")
	}
	if name, ok := known[string(text)]; ok {
		return name, nil
	}
	// Some parsers cut a name at NUL. A letter has at most three bytes under case folding (K matches the Kelvin sign).
	head, _, _ := bytes.Cut(text, []byte{0})
	for name := range known {
		if len(head) <= 3*len(name) && strings.EqualFold(string(head), name) {
			return "", api.Errorf(api.CodeBadRequest, "the body has another spelling of the field %q: use exactly this one", name)
		}
	}
	return "", nil
}

// skipSpace returns the offset of the value after a name or another value: after the colon or comma and white space.
func skipSpace(src []byte, at int) int {
	for at < len(src) && (src[at] == ':' || src[at] == ',' || src[at] == ' ' || src[at] == '\t' || src[at] == '\n' || src[at] == '\r') {
		at++
	}
	return at
}

func (r *reader) syntaxError(err error) error {
	if at := new(jsontext.SyntacticError); r.body != nil && errors.As(err, &at) && !errors.Is(err, jsontext.ErrDuplicateName) {
		return notJSON(int64(r.body.origin(int(at.ByteOffset))))
	}
	return syntaxError(err)
}

func notJSON(at int64) error {
	return api.Errorf(api.CodeBadRequest, "the body is not valid JSON at byte %d", at)
}

// syntaxError says where a body stops being JSON, and never repeats what is there.
func syntaxError(err error) error {
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return api.Errorf(api.CodeBadRequest, "the body has a field twice: send each field once")
	}
	var at *jsontext.SyntacticError
	if errors.As(err, &at) {
		return notJSON(at.ByteOffset)
	}
	return api.Errorf(api.CodeBadRequest, "the body is not valid JSON: it ends too early")
}

// text decodes a string value that the gateway decides about. It refuses invalid UTF-8, lone surrogates and NUL.
func (o *object) text(m *member) (string, error) {
	if m.kind != '"' {
		return "", api.Errorf(api.CodeBadRequest, "%s must be a string", m.name)
	}
	if m.end-m.valueStart > maxText {
		return "", api.Errorf(api.CodeBadRequest, "%s is longer than %d bytes: send a shorter one", m.name, maxText)
	}
	b, err := jsontext.AppendUnquote(nil, o.value(m))
	if err != nil || bytes.IndexByte(b, 0) >= 0 {
		return "", api.Errorf(api.CodeBadRequest, "%s is not valid text", m.name)
	}
	return string(b), nil
}

// flag reads a boolean. null means absent.
func (o *object) flag(name string, absent bool) (bool, error) {
	m := o.find(name)
	if m == nil || m.kind == 'n' {
		return absent, nil
	}
	if m.kind != 't' && m.kind != 'f' {
		return false, api.Errorf(api.CodeBadRequest, "%s must be true or false", name)
	}
	return m.kind == 't', nil
}
