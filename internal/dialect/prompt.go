package dialect

import "bytes"

// prompt counts what the fields of a request that reach the model contain, for estimates.
type prompt struct {
	text   int // bytes of text
	dense  int // extra bytes that the text would have if each digit and each non-ASCII character had the four bytes of a token
	weight int // of the text, in sixteenths of a token
	longer int // extra bytes that the client's own data gets when a template prints it
	short  int // bytes of escapes beyond those of the characters they stand for
	texts  int // texts that are read separately, of embeddings
	marks  int // bytes of the dialects' own strings: roles, types, ids
	parts  int // messages, parts of messages and tool calls
	images int
}

const (
	tokenBytes  = 4    // of text per token, as Ollama estimates them
	imageTokens = 1024 // models turn an image into 256 to about 1,600 tokens
	partTokens  = 4    // what a template prints around a message, including its role
	partMost    = 16   // the same, if each of its characters is a token
)

// Extent is the possible size of a prompt, in tokens.
type Extent struct {
	Estimate int64 // by Ollama's own rule of four bytes; this many tokens are held for it
	Likely   int64 // by how common its characters and words are
	Text     int64 // if each byte of its text is a token
	Most     int64 // Text, plus everything that a template prints around it
	Texts    int64 // the texts that Ollama cuts to its context separately
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

// counted returns Ollama's own estimate, which leaves images out. It is the answer to count_tokens.
func (p *prompt) counted() int64 { return int64(p.text+tokenBytes-1) / tokenBytes }

// tokens estimates what the model reads. The tokens around a message include its marks; longer marks count, because templates print
// some of them.
func (p *prompt) tokens() int64 {
	size := p.text + p.longer + p.dense + max(p.marks, p.parts*partTokens*tokenBytes)
	return int64(size+tokenBytes-1)/tokenBytes + int64(p.images)*imageTokens
}

// read counts a text that the model reads. It may come in pieces.
func (p *prompt) read(text ...[]byte) {
	before, escaped, rest := uint8(otherByte), false, 0 // rest: of an escape
	for _, t := range text {
		p.text += len(t)
		for len(t) > 0 {
			switch {
			case rest > 0:
				n := min(rest, len(t))
				rest, t = rest-n, t[n:]
				continue
			case escaped && t[0] == 'u':
				escaped, rest = false, 5
				p.dense -= 6 - tokenBytes // one character
				p.weight += escapeWeight
				p.short += 6 - longestEscaped
				continue
			case escaped:
				escaped, rest = false, 1
				p.weight += asciiToken
				p.short++
				continue
			}
			end := bytes.IndexByte(t, '\\')
			if end < 0 {
				before = p.weigh(t, before)
				break
			}
			p.weigh(t[:end], before)
			before, escaped, t = otherByte, true, t[end+1:]
		}
	}
}

const (
	asciiToken     = 11 // the weight of an ASCII symbol
	escapeWeight   = 26 // of a character that is written as \u and four digits, or of half of one
	longestEscaped = 3  // bytes of the longest character that is written as \u and four digits
	htmlLonger     = 5  // extra bytes that Go's JSON, with which templates print data, writes for each of <, > and &
	floatLonger    = 18 // extra bytes for a number like 1e20
)

// readData counts a client's own data, which a template prints as JSON.
func (p *prompt) readData(data ...[]byte) {
	short := p.short
	p.read(data...)
	p.short = short // it is printed with its escapes
	for _, d := range data {
		for _, c := range []byte("<>&") {
			p.longer += htmlLonger * bytes.Count(d, []byte{c})
		}
	}
}

// padding returns, for the first byte of a character that may be a token, how many bytes the character is shorter than a token.
func padding(c byte) uint8 {
	switch {
	case c >= '0' && c <= '9':
		return tokenBytes - 1
	case c >= 0xC0 && c < 0xE0:
		return tokenBytes - 2
	case c >= 0xE0 && c < 0xF0:
		return tokenBytes - 3
	}
	return 0
}

// shape says what the dialects have at a place of a prompt.
type shape uint8

const (
	raw   shape = iota // the client's own data: a model may read every byte of it, with any names
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

// shapes lists what a place may have besides a string. Objects and lists that are not here are the client's own data.
var shapes = [...]struct {
	list   bool
	fields map[string]shape
}{
	words: {list: true},
	marks: {list: true},
	image: {list: true},
	turns: {list: true, fields: map[string]shape{
		"role": marks, "type": marks, "id": marks, "call_id": marks, "tool_call_id": marks, "status": marks,
		"content": pieces, "output": pieces, "summary": pieces, "refusal": words,
		"thinking": words, "reasoning": words, "reasoning_content": words,
		"encrypted_content": words, // Ollama stores the thinking in it
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
	"messages": turns, "input": turns, "prompt": words, "system": pieces, "instructions": pieces,
	"suffix": words, "template": words, "images": image, "context": words,
}

// maxShaped is the depth to which the dialects' own structure is followed: Anthropic's image in a tool's result is at 8.
const maxShaped = 16

// weigher follows a value through the dialects' structure and counts it.
type weigher struct {
	*prompt
	src      []byte
	body     *Body            // whose outline src is, or nil
	one      [1][]byte        // the last content
	at       [maxShaped]shape // of the values at each level
	rawLevel int              // the level of the value that is the client's own data; -1: none
	rawStart int              // the offset at which that value starts
}

// content returns a part of the source, with what an outline leaves out.
func (w *weigher) content(start, end int) Pieces {
	if w.body == nil || len(w.body.gaps) == 0 {
		w.one[0] = w.src[start:end]
		return w.one[:]
	}
	return w.body.content(start, end)
}

// name handles the name of a member at a level.
func (w *weigher) name(level int, name []byte) {
	if w.rawLevel >= 0 {
		return
	}
	s, known := shapes[w.at[level-1]].fields[string(name)]
	if w.at[level] = s; !known {
		w.read(name) // Ollama ignores the case of names, so it may be one of its own
	}
}

// begin handles the bracket at start that opens a value at a level.
func (w *weigher) begin(level, start int, list bool) {
	if w.rawLevel >= 0 {
		return
	}
	s := &shapes[w.at[level]]
	switch {
	case level+1 == maxShaped, list && !s.list, !list && s.fields == nil:
		w.rawLevel, w.rawStart = level, start
	case list:
		w.at[level+1] = w.at[level]
	case s.list:
		w.parts++
	}
}

// end handles the bracket that closes a value at a level.
func (w *weigher) end(level, end int) {
	if w.rawLevel == level {
		w.readData(w.content(w.rawStart, end)...)
		w.rawLevel = -1
	}
}

// scalar handles a value at a level that is neither a list nor an object. listed reports that it is in a list.
func (w *weigher) scalar(level, start, end int, listed bool) {
	value := w.src[start:end]
	if w.rawLevel >= 0 {
		if c := value[0]; (c == '-' || c >= '0' && c <= '9') && bytes.ContainsAny(value, "eE") {
			w.longer += floatLonger
		}
		return
	}
	s := w.at[level]
	switch {
	case s == raw:
		w.readData(w.content(start, end)...)
	case value[0] != '"':
		if listed || value[0] == '-' || value[0] >= '0' && value[0] <= '9' {
			w.text += tokenBytes // a context has numbers for tokens
			w.weight += sixteenth
		}
	case s == marks:
		w.marks += w.content(start, end).Len() - len(`""`)
	case s == image || s == imageURL:
		if len(value) > len(`""`) {
			w.images++
		}
	default:
		if level <= 1 {
			w.texts++
		}
		w.read(w.content(start+1, end-1)...)
	}
}

// walk walks the value of a member, counts what a model reads of it, and hashes the beginning of a conversation. It counts
// everything that is not known to be something other than text. A list of the fields with text would be incomplete, because Ollama
// ignores the case of names.
func (r *reader) walk(m *member, nameEnd int, src []byte, root shape, p *prompt) error {
	depth := r.dec.StackDepth()
	begin := beginning{most: beginsWith[m.name]}
	w := weigher{prompt: p, src: src, body: r.body, rawLevel: -1}
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
				begin.add(&w, start+1, end-1, inText)
			}
		}
		switch r.dec.StackDepth() {
		case depth:
			m.prefix = begin.sum()
			return nil
		case depth + 1:
			begin.next()
		}
	}
}
