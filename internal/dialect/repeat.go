package dialect

import (
	"bytes"
	"encoding/json"
	"hash/maphash"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// maxRepeats is how often Ollama lets one token repeat. At the next repetition it ends the answer without a terminal record
// (llm/server.go, the same in 0.6.5 and 0.24.0). It compares tokens without the white space around them, and starts with an empty
// token: it sends 30 pieces of white space, or 31 of anything else.
const maxRepeats = 30

// repeats counts how often the last piece of an answer has repeated.
type repeats struct {
	last    uint64
	count   int
	broken  bool // the last record had no text: no repetition can follow
	written bool // some piece had text
	scratch []byte
}

var (
	repeatSeed = maphash.MakeSeed()
	emptyPiece = maphash.Bytes(repeatSeed, nil)
)

// textFields are the fields in which a piece of an answer has its text. A quote within a text is escaped, so nothing that a model
// wrote looks like one.
var textFields = map[Kind][][]byte{
	Generate:          {[]byte(`"response":"`), []byte(`"thinking":"`)},
	Chat:              {[]byte(`"content":"`), []byte(`"thinking":"`)},
	OpenAIChat:        {[]byte(`"content":"`), []byte(`"reasoning":"`)},
	OpenAICompletions: {[]byte(`"text":"`)},
	OpenAIResponses:   {[]byte(`"delta":"`)},
	AnthropicMessages: {[]byte(`"text":"`), []byte(`"thinking":"`), []byte(`"partial_json":"`)},
}

// repeat counts a piece that has passed.
func (m *Meter) repeat(rec []byte) {
	r := &m.repeats
	var text []byte
	for _, field := range textFields[m.kind] {
		if text = jsonText(rec, field); len(text) > 0 {
			break
		}
	}
	if len(text) == 0 {
		// Tool calls and images have no text. Neither has a piece that stands for an error that Ollama cannot report in a stream of
		// OpenAI's.
		r.broken, r.count = true, 0
		return
	}
	r.written = true
	if bytes.IndexByte(text, '\\') >= 0 {
		quoted := append(append(append(r.scratch[:0], '"'), text...), '"')
		if plain, err := jsontext.AppendUnquote(quoted, quoted); err == nil {
			text = plain[len(quoted):]
		}
		r.scratch = quoted
	}
	hash := maphash.Bytes(repeatSeed, bytes.TrimSpace(text))
	if !r.broken && hash == r.last {
		r.count++
	} else {
		r.count = 0
	}
	r.last, r.broken = hash, false
	if r.count >= maxRepeats {
		m.closing.rec = append(m.closing.rec[:0], rec...) // the end is built from a copy of this record
	}
}

// jsonText returns the text after the first occurrence of field in a record, as JSON without its quotes.
func jsonText(rec, field []byte) []byte {
	i := bytes.Index(rec, field)
	if i < 0 {
		return nil
	}
	text := rec[i+len(field):]
	for end := 0; ; end++ {
		next := bytes.IndexByte(text[end:], '"')
		if next < 0 {
			return nil
		}
		end += next
		before := text[:end]
		if slashes := len(before) - len(bytes.TrimRight(before, `\`)); slashes%2 == 0 {
			return before
		}
	}
}

// AtRepeatLimit reports whether Ollama has ended this stream because a token repeats: upstream closed it in order, but without a
// terminal record. RepeatEnd returns the end of such a stream.
func (m *Meter) AtRepeatLimit() bool {
	partial := len(m.buf) > m.sent || m.holding
	return m.repeats.count >= maxRepeats && !partial && !m.Failed && !m.Cut && !m.broken && len(m.closing.text) <= maxRecord
}

// RepeatEnd returns the end of a stream at the repeat limit. As with CutOff, the answer then says that it has reached its maximum
// length.
func (m *Meter) RepeatEnd(prompt int64, took time.Duration) []byte {
	m.closing.passed = true
	return m.CutOff(prompt, took)
}

// answerParts are the fields in which a whole answer has what the model wrote.
var answerParts = map[Kind][]string{
	Generate: {"response", "thinking"}, Chat: {"message"}, OpenAIChat: {"choices"}, OpenAICompletions: {"choices"},
	OpenAIResponses: {"output"}, AnthropicMessages: {"content"},
}

// Estimate estimates the tokens in the text of a whole answer without counts. It is 0 if the answer has no text.
func (k Kind) Estimate(body []byte) int64 {
	var answer map[string]any
	if json.Unmarshal(body, &answer) != nil {
		return 0
	}
	size := 0
	for _, part := range answerParts[k] {
		size += textSize(answer[part], k == Generate)
	}
	return int64(size+3) / 4
}

// Thought estimates the tokens of a whole answer to a schema if the model has thought, because Ollama then counts only a part of
// them. It is 0 if the model has not thought.
func (k Kind) Thought(body []byte) int64 {
	if !thought(body) {
		return 0
	}
	return k.Estimate(body)
}

// textSize counts the characters of what a model wrote in a part of an answer. written reports that the strings in it are such text.
func textSize(part any, written bool) int {
	size := 0
	switch v := part.(type) {
	case string:
		if written {
			size = utf8.RuneCountInString(v)
		}
	case []any:
		for _, inner := range v {
			size += textSize(inner, written)
		}
	case map[string]any:
		for name, inner := range v {
			switch name {
			case "arguments", "input": // of a tool: an object, or its JSON text
				size += textSize(inner, true)
			case "content", "thinking", "reasoning", "text":
				_, plain := inner.(string)
				size += textSize(inner, plain)
			default:
				size += textSize(inner, written)
			}
		}
	}
	return size
}
