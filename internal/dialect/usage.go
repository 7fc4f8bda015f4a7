package dialect

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Usage is what Ollama reports that an answer used. A field that Ollama leaves out means zero there. Counted reports whether it
// reported any count.
type Usage struct {
	Counted                bool
	PromptTokens           int64
	CompletionTokens       int64
	Total, Load            *time.Duration // only native routes
	PromptEval, Completion *time.Duration
}

// answerFields are the top-level names of an answer that are read.
var answerFields = names("done", "error", "status", "usage", "choices", "response", "type", "prompt_eval_count", "eval_count",
	"total_duration", "load_duration", "prompt_eval_duration", "eval_duration")

// usageNames are a family's names for the input and output tokens in its usage object.
var usageNames = map[Family][2]string{
	OpenAI:    {"prompt_tokens", "completion_tokens"},
	Responses: {"input_tokens", "output_tokens"},
	Anthropic: {"input_tokens", "output_tokens"},
}

var usageFields = names("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")

var choiceFields = names("finish_reason")

// answer splits one record or body of an answer. Unlike requests, answers come from a trusted server. An ambiguous one is not an
// attack to refuse, but a record without usage.
func answer(src []byte) (object, bool) {
	r := read(src)
	defer r.done()
	o, err := r.object(src, answerFields)
	return o, err == nil
}

// usage reads the counts of a native terminal record, or of the usage object of the other families.
func (k Kind) usage(o *object) Usage {
	var u Usage
	if tokens, ok := usageNames[k.Family()]; ok {
		m := o.find("usage")
		if m == nil || m.kind != '{' {
			return u
		}
		inner, err := o.subobject(m, usageFields)
		if err != nil {
			return u
		}
		u.Counted = true
		u.PromptTokens = inner.number(tokens[0])
		u.CompletionTokens = inner.number(tokens[1])
		return u
	}
	switch k {
	case Generate, Chat, Embed:
		// Zero-valued fields are left out. A load or unload call has none of them, and used no token.
		u.Counted = true
		u.PromptTokens = o.number("prompt_eval_count")
		u.CompletionTokens = o.number("eval_count")
		u.Total = o.duration("total_duration")
		u.Load = o.duration("load_duration")
		u.PromptEval = o.duration("prompt_eval_duration")
		u.Completion = o.duration("eval_duration")
	}
	return u
}

func (o *object) number(name string) int64 {
	m := o.find(name)
	if m == nil || m.kind != '0' {
		return 0
	}
	n, err := strconv.ParseInt(string(o.value(m)), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

func (o *object) duration(name string) *time.Duration {
	m := o.find(name)
	if m == nil || m.kind != '0' {
		return nil
	}
	d := time.Duration(o.number(name))
	return &d
}

// WholeUsage reads the usage of an answer that was not streamed.
func (k Kind) WholeUsage(body []byte) Usage {
	if k == Chat {
		// The counts are the last on the line, after everything that a model wrote. Reading only them saves 2 us.
		if i := bytes.LastIndex(body, []byte(`,"total_duration":`)); i >= 0 {
			body = append([]byte{'{'}, body[i+1:]...)
		}
	}
	o, ok := answer(body)
	if !ok {
		return Usage{}
	}
	return k.usage(&o)
}

// TailUsage reads the usage from the last bytes of a long answer: it is in the last member, after the embeddings.
func (k Kind) TailUsage(tail []byte) Usage {
	for _, first := range []string{`"total_duration":`, `"prompt_eval_count":`, `"usage":{`} {
		if i := bytes.LastIndex(tail, []byte(first)); i >= 0 {
			return k.WholeUsage(append([]byte{'{'}, tail[i:]...))
		}
	}
	return Usage{}
}

// finishReason reports whether the choices of an OpenAI chunk have the end of the answer. Ollama sends one choice.
func finishReason(choices []byte) bool {
	r := read(choices)
	defer r.done()
	if tok, err := r.dec.ReadToken(); err != nil || tok.Kind() != '[' || r.dec.PeekKind() != '{' {
		return false
	}
	first, err := r.dec.ReadValue()
	if err != nil {
		return false
	}
	inner := read(first)
	defer inner.done()
	choice, err := inner.object(first, choiceFields)
	if err != nil {
		return false
	}
	m := choice.find("finish_reason")
	return m != nil && m.kind != 'n'
}

// emptyArray reports whether a value is [].
func emptyArray(v []byte) bool {
	return jsontext.Value(v).Kind() == '[' && len(bytes.TrimSpace(v[1:len(v)-1])) == 0
}

// Sentence returns the message of Ollama's own failure, in any dialect, or "" if it has none.
func Sentence(body []byte) string {
	var failure struct{ Error json.RawMessage }
	if json.Unmarshal(body, &failure) != nil {
		return ""
	}
	var text string
	if json.Unmarshal(failure.Error, &text) == nil {
		return text
	}
	var inner struct{ Message string }
	_ = json.Unmarshal(failure.Error, &inner) // anything else has no message
	return inner.Message
}
