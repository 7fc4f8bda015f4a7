package dialect

import (
	"bytes"
	"cmp"
	"strings"
)

// Responses and Messages stream named events: "event: NAME", then one line of data that repeats the name. Ollama writes both lines
// for each event (docs/ollama-contract.md, section 1.3).

var eventPrefix = []byte("event:")

// eventName returns the name of an event, from its event line or otherwise from its data.
func eventName(rec []byte) string {
	if rest, ok := bytes.CutPrefix(rec, eventPrefix); ok {
		name, _, _ := bytes.Cut(rest, []byte{'\n'})
		return string(bytes.TrimSpace(name))
	}
	data, ok := eventData(rec)
	if !ok {
		return ""
	}
	o, ok := answer(data)
	if !ok {
		return ""
	}
	m := o.find("type")
	if m == nil || m.kind != '"' {
		return ""
	}
	name, err := o.text(m)
	if err != nil {
		return ""
	}
	return name
}

// event returns the name of an event of this meter's dialect, or the zero value for other events.
func (m *Meter) event(rec []byte) string {
	name := eventName(rec)
	if name != "error" && strings.HasPrefix(name, "response.") != (m.kind == OpenAIResponses) {
		return ""
	}
	return name
}

// readNamed reads an event and reports whether the end of the stream starts with it.
func (m *Meter) readNamed(rec []byte) bool {
	event := m.event(rec)
	if m.kind == OpenAIResponses {
		m.remember(event, rec)
	}
	switch event {
	case "response.completed", "response.incomplete", "message_delta", "message_stop":
		return true
	case "error":
		m.Failed = true
		if data, ok := eventData(rec); ok && m.kind == OpenAIResponses {
			m.Failure = cmp.Or(Sentence(data), "the Ollama server failed: try again")
		}
	case "response.failed":
		m.Failed, m.Failure = true, ""
	case "content_block_delta", "response.output_text.delta", "response.function_call_arguments.delta",
		"response.reasoning_summary_text.delta", "response.reasoning_text.delta", "response.refusal.delta":
		m.piece(rec)
	}
	return false
}

// finishNamed reads an event of the end. The usage is in message_delta: the one in message_start is only Ollama's estimate.
func (m *Meter) finishNamed(rec []byte) {
	data, ok := eventData(rec)
	if !ok || !bytes.HasSuffix(rec, []byte{'\n'}) {
		return // cut within its last event
	}
	o, ok := answer(data)
	if !ok {
		return
	}
	switch m.event(rec) {
	case "response.completed", "response.incomplete":
		response := o.find("response")
		if response == nil || response.kind != '{' {
			return
		}
		inner, err := o.subobject(response, answerFields)
		if err != nil {
			return
		}
		m.Usage = m.kind.usage(&inner)
		m.Complete = true
	case "message_delta":
		m.Usage = m.kind.usage(&o)
		m.finished = true
	case "message_stop":
		m.Complete = m.finished && !m.broken
	case "error":
		m.Failed = true
	}
}
