package dialect

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// The gateway cuts a stream when its key has no tokens left. A cut stream ends like a stream of Ollama that has reached its maximum
// length. Parts of that end repeat the answer (ids, the model, in Responses all of its text), so the meter remembers them as they
// pass.

// closing is what the end of a cut stream needs from the records before it.
type closing struct {
	rec      []byte // the piece that was not passed on, or the last one that was
	passed   bool   // rec was passed on
	response []byte // Responses: the description of the answer in its first event
	items    [][]byte
	text     []byte // the text of the current part, as JSON without its quotes
}

var cutFields = names("model", "created_at", "choices", "usage", "index",
	"response", "item", "delta", "item_id", "output_index", "content_index", "sequence_number")

// more reports whether a piece that has been read may pass. If not, it keeps the piece as the place of the cut.
func (m *Meter) more(rec []byte) bool {
	if m.More == nil || m.More(m.Tokens) {
		m.passed(rec)
		return true
	}
	m.Tokens -= m.last
	m.Cut = true
	m.closing.rec = bytes.Clone(rec)
	return false
}

const (
	longestEnvelope = 240 // bytes of a record besides its piece: the longest of Ollama, on /v1/chat/completions
	longPiece       = 24  // a record longer than the shortest one by less than this has one token
)

// piece counts the tokens of a record that has a piece of the answer.
func (m *Meter) piece(rec []byte) {
	if m.shortest == 0 || len(rec) < m.shortest {
		m.shortest = len(rec)
	}
	envelope := min(m.shortest, longestEnvelope)
	m.last = 1
	if len(rec) > envelope+longPiece {
		size := 0
		for _, field := range textFields[m.kind] {
			size += len(jsonText(rec, field))
		}
		m.last = max(1, int64(size+toolCalls(rec))/4)
	}
	m.Tokens += m.last
	m.Thought = m.Thought || m.Schema && thought(rec)
}

// thinking are the fields in which an answer has the thinking of a model. A quote within a text is escaped, so no text looks like
// them.
var thinking = [...][]byte{[]byte(`"thinking":"`), []byte(`"reasoning":"`), []byte(`"response.reasoning`), []byte(`"type":"reasoning"`)}

// thought reports whether an answer or a record has thinking.
func thought(answer []byte) bool {
	for _, mark := range thinking {
		if i := bytes.Index(answer, mark); i >= 0 && !bytes.HasPrefix(answer[i+len(mark):], []byte{'"'}) {
			return true
		}
	}
	return false
}

// toolCalls returns the length of a record's tool calls. Ollama adds things to a record that no model wrote, such as log
// probabilities. A quote within a text is escaped, so no text looks like the name.
func toolCalls(rec []byte) int {
	name := []byte(`"tool_calls":`)
	i := bytes.Index(rec, name)
	if i < 0 {
		return 0
	}
	r := read(rec[i+len(name):])
	defer r.done()
	value, err := r.dec.ReadValue()
	if err != nil {
		return 0
	}
	return len(value)
}

// remember keeps what the last event of Responses repeats.
func (m *Meter) remember(event string, rec []byte) {
	data, _ := eventData(rec)
	value := func(name string) []byte {
		o, _ := parsed(data)
		if f := o.find(name); f != nil {
			return bytes.Clone(o.value(f))
		}
		return nil
	}
	c := &m.closing
	switch event {
	case "response.created":
		c.response = value("response")
	case "response.output_item.done":
		c.items, c.text = append(c.items, value("item")), nil
	}
}

// passed reads a piece that the client has received, and keeps its text if the end repeats it.
func (m *Meter) passed(rec []byte) {
	m.repeat(rec)
	if m.kind != OpenAIResponses || m.event(rec) != "response.output_text.delta" {
		return
	}
	data, _ := eventData(rec)
	o, _ := parsed(data)
	if d := o.find("delta"); d != nil && d.kind == '"' && len(m.closing.text) <= maxRecord { // Ollama's own end would be as long
		text := o.value(d)
		m.closing.text = append(m.closing.text, text[1:len(text)-1]...)
	}
}

// parsed returns a record with the fields that a cut needs.
func parsed(data []byte) (object, bool) {
	r := read(data)
	defer r.done()
	o, err := r.object(data, cutFields)
	return o, err == nil
}

// field returns the unchanged value of a member, or the argument otherwise if there is no such member.
func (o *object) field(name, otherwise string) string {
	if m := o.find(name); m != nil {
		return string(o.value(m))
	}
	return otherwise
}

// CutOff returns the end of a stream that More has cut. It reports the prompt and what has passed. took is the duration of the
// answer so far.
func (m *Meter) CutOff(prompt int64, took time.Duration) []byte {
	data := m.closing.rec
	if m.sse {
		data, _ = eventData(data)
	}
	o, _ := parsed(data) // it was parsed before without an error
	var records []string
	switch m.kind {
	case Generate, Chat:
		records = []string{m.cutNative(&o, prompt, took)}
	case OpenAIChat, OpenAICompletions:
		records = m.cutChunks(&o, prompt)
	case OpenAIResponses:
		records = m.cutResponse(&o, prompt)
	case AnthropicMessages:
		records = m.cutMessage(&o, prompt)
	}
	var out []byte
	for _, r := range records {
		rec := []byte(r)
		if other, changed := m.rewrite(rec); changed {
			rec = other
		}
		out = append(out, rec...)
	}
	return out
}

func (m *Meter) cutNative(o *object, prompt int64, took time.Duration) string {
	answer := `"response":""`
	if m.kind == Chat {
		answer = `"message":{"role":"assistant","content":""}`
	}
	return fmt.Sprintf(`{"model":%s,"created_at":%s,%s,"done":true,"done_reason":"length","total_duration":%d,"prompt_eval_count":%d,"eval_count":%d}`+"\n",
		o.field("model", `""`), o.field("created_at", `"0001-01-01T00:00:00Z"`), answer, took.Nanoseconds(), prompt, m.Tokens)
}

// cutChunks returns a chunk that finishes, the usage (rewrite removes it again if the client did not ask for it), and the end.
func (m *Meter) cutChunks(o *object, prompt int64) []string {
	chunk := func(choices, usage string) string {
		e := edit{object: o}
		e.put("choices", []byte(choices))
		if usage != "" {
			e.put("usage", []byte(usage))
		}
		return "data: " + string(e.bytes()) + "\n\n"
	}
	finish := `[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"length"}]`
	if m.kind == OpenAICompletions {
		finish = `[{"text":"","index":0,"finish_reason":"length"}]`
	}
	usage := fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, prompt, m.Tokens, prompt+m.Tokens)
	return []string{chunk(finish, ""), chunk("[]", usage), "data: [DONE]\n\n"}
}

func named(event, data string) string { return "event: " + event + "\ndata: " + data + "\n\n" }

func (m *Meter) cutMessage(o *object, prompt int64) []string {
	return []string{
		named("content_block_stop", `{"type":"content_block_stop","index":`+o.field("index", "0")+`}`),
		named("message_delta", fmt.Sprintf(`{"type":"message_delta","delta":{"stop_reason":"max_tokens"},"usage":{"input_tokens":%d,"output_tokens":%d}}`, prompt, m.Tokens)),
		named("message_stop", `{"type":"message_stop"}`),
	}
}

// cutResponse ends the current text, if there is one, and then the answer.
func (m *Meter) cutResponse(o *object, prompt int64) []string {
	sequence, _ := strconv.Atoi(o.field("sequence_number", "0"))
	end := "response.incomplete"
	if m.closing.passed {
		// Ollama ends each answer that has reached its maximum length in this way. Codex makes an error of response.incomplete.
		sequence, end = sequence+1, "response.completed"
	}
	var events []string
	add := func(event, fields string) {
		events = append(events, named(event, fmt.Sprintf(`{%s,"sequence_number":%d,"type":"%s"}`, fields, sequence, event)))
		sequence++
	}
	items := slices.Clone(m.closing.items)
	if eventName(m.closing.rec) == "response.output_text.delta" {
		id, place := o.field("item_id", `""`), `"output_index":`+o.field("output_index", "0")
		in := `"content_index":` + o.field("content_index", "0") + `,"item_id":` + id + `,` + place
		text := `"text":"` + string(m.closing.text) + `"`
		part := `{"annotations":[],"logprobs":[],` + text + `,"type":"output_text"}`
		item := `{"content":[` + part + `],"id":` + id + `,"role":"assistant","status":"incomplete","type":"message"}`
		add("response.output_text.done", in+`,"logprobs":[],`+text)
		add("response.content_part.done", in+`,"part":`+part)
		add("response.output_item.done", place+`,"item":`+item)
		items = append(items, []byte(item))
	}
	response := []byte("{}")
	if r, ok := parsedResponse(m.closing.response); ok {
		e := edit{object: &r}
		e.put("status", []byte(`"incomplete"`))
		e.put("incomplete_details", []byte(`{"reason":"max_output_tokens"}`))
		e.put("output", slices.Concat([]byte{'['}, bytes.Join(items, []byte{','}), []byte{']'}))
		e.put("usage", fmt.Appendf(nil, `{"input_tokens":%d,"input_tokens_details":{"cached_tokens":0},"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":%d}`,
			prompt, m.Tokens, prompt+m.Tokens))
		response = e.bytes()
	}
	add(end, `"response":`+string(response))
	return events
}

var responseFields = names("status", "error", "incomplete_details", "output", "usage")

func parsedResponse(src []byte) (object, bool) {
	if len(src) == 0 {
		return object{}, false
	}
	r := read(src)
	defer r.done()
	o, err := r.object(src, responseFields)
	return o, err == nil
}

// failedResponse returns the last event of a Responses stream that failed, after an error event: the answer as its first event
// described it, or one with this id and time if there was no such event. message is JSON.
func (m *Meter) failedResponse(id string, at time.Time, code string, message []byte) []byte {
	failure := slices.Concat([]byte(`{"code":"`+code+`","message":`), message, []byte{'}'})
	begun := m.closing.response
	if begun == nil {
		begun = fmt.Appendf(nil, `{"id":"resp_%s","object":"response","created_at":%d,"status":"failed","error":null,"incomplete_details":null,"instructions":null,`+
			`"metadata":{},"model":"","output":[],"parallel_tool_calls":true,"temperature":1,"tool_choice":"auto","tools":[],"top_p":1,"usage":null}`, id, at.Unix())
	}
	r, _ := parsedResponse(begun)
	e := edit{object: &r}
	e.put("status", []byte(`"failed"`))
	e.put("error", failure)
	rec := []byte(named("response.failed", fmt.Sprintf(`{"response":%s,"sequence_number":%d,"type":"response.failed"}`, e.bytes(), m.Events+1)))
	if other, changed := m.rewrite(rec); changed {
		return other
	}
	return rec
}
