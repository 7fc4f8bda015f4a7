package dialect

import "bytes"

// prompt counts what the fields of a request that reach the model contain, for estimates.
type prompt struct {
	text   int // bytes of text
	dense  int // bytes that the text would have besides, if each digit and each character beyond ASCII had the four bytes of a token
	weight int // of the text, in sixteenths of a token
	longer int // bytes that the client's own data gets besides where a template prints it
	short  int // bytes of escapes beyond those of what they stand for
	texts  int // texts that are read each for itself, of embeddings
	marks  int // bytes of strings that the dialects have for themselves: roles, types, ids
	parts  int // messages, parts of messages and tool calls
	images int
}

const (
	tokenBytes  = 4    // of text for a token, as Ollama estimates them
	imageTokens = 1024 // models turn an image into 256 to some 1,600 tokens
	partTokens  = 4    // what a template prints around a message, its role among it
	partMost    = 16   // and where each of its characters is a token
)

// Extent is what a prompt may have, in tokens.
type Extent struct {
	Estimate int64 // by Ollama's own rule of four bytes; what is held for it
	Likely   int64 // by how usual its text is
	Text     int64 // where each byte of its text is a token
	Most     int64 // and each of what a template prints around it
	Texts    int64 // that Ollama cuts to its context each for itself
}

func (p *prompt) extent() Extent {
	around, images := max(p.marks, p.parts*partTokens*tokenBytes)/tokenBytes, p.images*imageTokens
	text := p.text - p.short + p.longer
	return Extent{
		Estimate: p.tokens(),
		Likely:   int64((p.weight+p.longer*asciiToken)/sixteenth + around + images),
		Text:     int64(text),
		Most:     int64(text + p.marks + p.parts*partMost + images),
		Texts:    int64(max(p.texts, 1)),
	}
}

// counted is Ollama's own formula for an answer to count_tokens, which leaves images out.
func (p *prompt) counted() int64 { return int64(p.text+tokenBytes-1) / tokenBytes }

// tokens estimates what the model reads. The tokens around a message pay for its marks; longer ones count, because templates print some.
func (p *prompt) tokens() int64 {
	size := p.text + p.longer + p.dense + max(p.marks, p.parts*partTokens*tokenBytes)
	return int64(size+tokenBytes-1)/tokenBytes + int64(p.images)*imageTokens
}

// read counts a text that the model reads.
func (p *prompt) read(text []byte) {
	p.text += len(text)
	for {
		end := bytes.IndexByte(text, '\\')
		if end < 0 {
			p.weigh(text)
			return
		}
		p.weigh(text[:end])
		if end+6 <= len(text) && text[end+1] == 'u' {
			p.dense -= 6 - tokenBytes // one character
			p.weight += escapeWeight
			p.short += 6 - longestEscaped
			text = text[end+6:]
			continue
		}
		p.weight += asciiToken
		p.short++
		text = text[min(end+2, len(text)):]
	}
}

const (
	asciiToken     = 11 // the weight of a mark of ASCII
	escapeWeight   = 26 // of a character that is written as \u and four digits, or of a half of one
	longestEscaped = 3  // bytes of what is written as \u and four digits
	htmlLonger     = 5  // bytes that Go's JSON, which templates print data with, makes of one of <, > and &
	floatLonger    = 18 // and of a number like 1e20
)

// readData counts a client's own data, which a template prints as JSON.
func (p *prompt) readData(data []byte) {
	short := p.short
	p.read(data)
	p.short = short // it is printed with its escapes
	for _, c := range []byte("<>&") {
		p.longer += htmlLonger * bytes.Count(data, []byte{c})
	}
}

// lacks has, for the first byte of each character that may be a token of its own, the bytes by which it is shorter than one.
var lacks = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c >= '0' && c <= '9':
			t[c] = tokenBytes - 1
		case c >= 0xC0 && c < 0xE0:
			t[c] = tokenBytes - 2
		case c >= 0xE0 && c < 0xF0:
			t[c] = tokenBytes - 3
		}
	}
	return t
}()

// shape is what the dialects have at a place of a prompt.
type shape uint8

const (
	raw   shape = iota // a client's own: a model may read every byte of it, whatever its names are
	words              // text
	marks              // a role, a type, an id
	image
	turns  // messages, or the items of Responses
	pieces // of a message
	calls  // of tools
	function
	source   // of Anthropic's image
	imageURL // OpenAI's image
	audio    // OpenAI's sound, which Ollama treats as an image
	cache
)

// shapes are what a place may have besides a string. Objects and lists that are not here are the client's own data.
var shapes = [...]struct {
	list   bool
	fields map[string]shape
}{
	words: {list: true},
	marks: {list: true},
	image: {list: true},
	turns: {list: true, fields: map[string]shape{
		"role": marks, "type": marks, "id": marks, "call_id": marks, "tool_call_id": marks, "status": marks,
		"content": pieces, "output": pieces, "summary": pieces, "thinking": words, "reasoning": words, "reasoning_content": words, "refusal": words,
		"encrypted_content": words, // Ollama keeps the thinking in it
		"name":              words, "tool_name": words, "tool_calls": calls, "function_call": function, "arguments": raw, "images": image,
	}},
	pieces: {list: true, fields: map[string]shape{
		"type": marks, "id": marks, "tool_use_id": marks, "is_error": marks, "signature": marks, "data": marks, "cache_control": cache,
		"text": words, "thinking": words, "refusal": words, "name": words, "input": raw, "content": pieces,
		"source": source, "image_url": imageURL, "detail": marks, "input_audio": audio,
	}},
	calls:    {list: true, fields: map[string]shape{"type": marks, "id": marks, "index": marks, "function": function}},
	function: {fields: map[string]shape{"name": words, "index": marks, "arguments": raw}},
	source:   {fields: map[string]shape{"type": marks, "media_type": marks, "data": image, "url": image}},
	imageURL: {fields: map[string]shape{"url": image, "detail": marks}},
	audio:    {fields: map[string]shape{"data": image, "format": marks}},
	cache:    {fields: map[string]shape{"type": marks, "ttl": marks}},
}

// prompts are the fields of a request that are walked.
var prompts = map[string]shape{
	"messages": turns, "input": turns, "prompt": words, "system": pieces, "instructions": pieces, "suffix": words, "template": words, "images": image,
	"context": words,
}

// maxShaped is how deep the dialects' own structure is followed: Anthropic's image in a tool's result is at 8.
const maxShaped = 16

// weigher follows a value through the dialects' structure and counts it.
type weigher struct {
	*prompt
	src   []byte
	at    [maxShaped]shape // of the values at each level
	own   int              // the level of the value that is the client's own data; -1: none
	since int              // where that begins
}

// name takes the name of a member at a level.
func (w *weigher) name(level int, name []byte) {
	if w.own >= 0 {
		return
	}
	s, known := shapes[w.at[level-1]].fields[string(name)]
	if w.at[level] = s; !known {
		w.read(name) // Ollama folds names, so it may be one of its own
	}
}

// begin takes the bracket that begins at start, of a value at a level.
func (w *weigher) begin(level, start int, list bool) {
	if w.own >= 0 {
		return
	}
	s := &shapes[w.at[level]]
	switch {
	case level+1 == maxShaped, list && !s.list, !list && s.fields == nil:
		w.own, w.since = level, start
	case list:
		w.at[level+1] = w.at[level]
	case s.list:
		w.parts++
	}
}

// end takes the bracket that ends a value at a level.
func (w *weigher) end(level, end int) {
	if w.own == level {
		w.readData(w.src[w.since:end])
		w.own = -1
	}
}

// scalar takes a value at a level that is no list and no object; listed says that it is one of a list.
func (w *weigher) scalar(level, start, end int, listed bool) {
	value := w.src[start:end]
	if w.own >= 0 {
		if c := value[0]; (c == '-' || c >= '0' && c <= '9') && bytes.ContainsAny(value, "eE") {
			w.longer += floatLonger
		}
		return
	}
	s := w.at[level]
	switch {
	case s == raw:
		w.readData(value)
	case value[0] != '"':
		if listed || value[0] == '-' || value[0] >= '0' && value[0] <= '9' {
			w.text += tokenBytes // a context has numbers for tokens
			w.weight += sixteenth
		}
	case s == marks:
		w.marks += len(value) - len(`""`)
	case s == image || s == imageURL:
		if len(value) > len(`""`) {
			w.images++
		}
	default:
		if level <= 1 {
			w.texts++
		}
		w.read(value[1 : len(value)-1])
	}
}

// walk walks the value of a member, counts what a model reads of it, and hashes how a conversation begins. Everything counts that is not
// known to be no text: Ollama folds names, so a list of those that are text would have holes.
func (r *reader) walk(m *member, nameEnd int, src []byte, root shape, p *prompt) error {
	depth := r.dec.StackDepth()
	begin := beginning{most: beginsWith[m.name]}
	w := weigher{prompt: p, src: src, own: -1}
	w.at[0] = root
	inText := true
	m.valueStart = skipSpace(src, nameEnd)
	for {
		level := r.dec.StackDepth() - depth
		kind, n := r.dec.StackIndex(r.dec.StackDepth())
		start := skipSpace(src, int(r.dec.InputOffset()))
		tok, err := r.dec.ReadToken()
		if err != nil {
			return err
		}
		end := int(r.dec.InputOffset())
		switch k := tok.Kind(); {
		case k == '{' || k == '[':
			w.begin(level, start, k == '[')
		case k == '}' || k == ']':
			w.end(level-1, end)
		case level > 0 && kind == '{' && n%2 == 0:
			name := src[start:end]
			w.name(level, name[1:len(name)-1])
			begin.role = level == 2 && bytes.HasSuffix(name, []byte(`"role"`))
			inText = bytes.HasSuffix(name, []byte(`"content"`)) || bytes.HasSuffix(name, []byte(`"text"`)) || bytes.HasSuffix(name, []byte(`"arguments"`))
			continue
		default:
			w.scalar(level, start, end, kind == '[')
			if k == '"' {
				begin.add(src[start+1:end-1], inText)
			}
		}
		switch r.dec.StackDepth() {
		case depth:
			m.lead = begin.sum()
			return nil
		case depth + 1:
			begin.next()
		}
	}
}
