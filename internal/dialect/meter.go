package dialect

import (
	"bytes"
	"errors"

	"github.com/go-json-experiment/json/jsontext"
)

// maxRecord bounds one record of a stream: Ollama's runner sends at most 8 MB, and its command line refuses longer lines.
const maxRecord = 8 << 20

// The errors that Feed may find in a stream, as sentences for a client.
var (
	// ErrRecordTooLong is for a line that no client of Ollama could read.
	ErrRecordTooLong = errors.New("the Ollama server sent a record too long to pass on")
	// ErrRecordBroken is for a record that is not a JSON object.
	ErrRecordBroken = errors.New("the Ollama server sent a record that is not JSON: try again")
)

// Meter reads one streamed answer as it passes: where its records end, what it used, and whether it is complete. It holds everything
// from the first record of the end on until Finish, so that the books are written before the client can see the end. Only one
// goroutine may use a Meter.
type Meter struct {
	kind  Kind
	sse   bool
	strip bool
	echo  string // the alias that the client used; "" leaves the model's name as it comes

	buf     []byte // bytes not returned yet; the last Feed returned buf[:sent]
	sent    int
	scanned int // buf[:scanned] has no end of a record
	held    []byte
	holding bool

	// More is called before each piece of the answer passes, with Tokens. If it returns false, the stream is cut there, Cut is set,
	// and CutOff returns its end. If More is nil, all pieces pass.
	More func(tokens int64) bool
	Cut  bool

	// Schema makes the meter look for thinking.
	Schema bool
	// Thought reports that the model has thought before an answer to a schema. Ollama makes that answer in a second run, and counts
	// only that run.
	Thought bool

	Usage Usage
	// Tokens estimates the tokens of the pieces that have passed: one for each piece, or a fourth of its bytes if that is more. A
	// tool call is one piece, no matter how long it is.
	Tokens   int64
	last     int64 // the last piece's part of Tokens
	shortest int   // bytes of the shortest record with a piece
	// Events counts all events that have passed. An error event of the gateway continues at this number.
	Events int64
	// Complete reports that the stream's terminal record came: done:true, status success, [DONE] after a finish chunk,
	// response.completed or message_stop.
	Complete bool
	// Failed reports that upstream sent an error record.
	Failed bool
	// Failure is the sentence of a Responses error event without a response.failed after it. Otherwise it is empty.
	Failure  string
	finished bool // a finish chunk came
	broken   bool // a record is not JSON
	closing  closing
	repeats  repeats
}

// NewMeter meters a stream of the kind. sse says how its records are framed. strip makes it remove usage again. echo is the alias
// that the answer names as the model, or empty.
func NewMeter(kind Kind, sse, strip bool, echo string) *Meter {
	return &Meter{kind: kind, sse: sse, strip: strip && sse, echo: echo, repeats: repeats{last: emptyPiece}}
}

// Feed takes bytes as they come from upstream and returns what may go to the client now. These are only whole records. With an
// error, they are the records before the faulty one. The slice is valid until the next call, and may be p itself.
func (m *Meter) Feed(p []byte) ([]byte, error) {
	if m.holding {
		return nil, m.hold(p)
	}
	if m.sent > 0 {
		m.buf = m.buf[:copy(m.buf, m.buf[m.sent:])]
	}
	src, joined := p, len(m.buf) > 0
	if joined {
		m.buf = append(m.buf, p...)
		src = m.buf
	}
	done, pass := m.records(src)
	switch {
	case m.broken:
		return pass, ErrRecordBroken
	case m.Cut:
		return pass, nil
	}
	rest := src[done:]
	if m.holding {
		m.held = append(m.held, rest...)
		rest = nil
	}
	if len(rest) > maxRecord {
		return pass, ErrRecordTooLong
	}
	m.scanned = len(rest)
	if joined {
		m.sent = len(src) - len(rest)
	} else {
		m.buf = append(m.buf[:0], rest...)
		m.sent = 0
	}
	return pass, nil
}

func (m *Meter) hold(p []byte) error {
	if len(m.held)+len(p) > maxRecord {
		return ErrRecordTooLong
	}
	m.held = append(m.held, p...)
	return nil
}

// Ended reports whether the stream's last record has come, even if upstream has not closed the answer yet.
func (m *Meter) Ended() bool {
	if !m.holding || !m.sse || m.kind == OpenAIResponses {
		return m.holding
	}
	// JSON cannot have a line end within it, so nothing that a model wrote looks like this.
	if m.kind == AnthropicMessages {
		_, stop, found := bytes.Cut(m.held, stopMarker)
		return found && bytes.HasSuffix(stop, []byte("\n\n"))
	}
	return bytes.HasPrefix(m.held, doneMarker[1:]) || bytes.Contains(m.held, doneMarker)
}

var (
	doneMarker = []byte("\ndata: [DONE]")
	stopMarker = []byte("\nevent: message_stop\n")
)

// records reads the whole records at the start of src. It returns how far they reach, and which bytes may pass.
func (m *Meter) records(src []byte) (done int, pass []byte) {
	edited := false
	var out []byte
	at, from := 0, m.scanned
	m.scanned = 0
	for {
		end := m.recordEnd(src, at, from)
		if end < 0 {
			break
		}
		rec := src[at:end]
		from = end
		before := m.Tokens
		if m.read(rec) {
			m.holding = true
			m.held = append(m.held[:0], rec...)
			if edited {
				pass = out
			} else {
				pass = src[:at]
			}
			return end, pass
		}
		if m.broken || m.Tokens > before && !m.more(rec) {
			if edited {
				return at, out
			}
			return at, src[:at]
		}
		m.Events++
		if other, changed := m.rewrite(rec); changed {
			if !edited {
				out = append(make([]byte, 0, len(src)), src[:at]...)
				edited = true
			}
			out = append(out, other...)
			at = end
			continue
		}
		if edited {
			out = append(out, rec...)
		}
		at = end
	}
	if edited {
		return at, out
	}
	return at, src[:at]
}

// recordEnd returns the offset after the record that starts at at, or -1. src[at:from] is known to have no end.
func (m *Meter) recordEnd(src []byte, at, from int) int {
	if m.sse {
		// A read may have split the blank line from the line end before it.
		from = max(at, from-2)
	}
	for {
		i := bytes.IndexByte(src[from:], '\n')
		if i < 0 {
			return -1
		}
		next := from + i + 1
		switch {
		case !m.sse:
			return next
		case next < len(src) && src[next] == '\n':
			return next + 1
		case next+1 < len(src) && src[next] == '\r' && src[next+1] == '\n':
			return next + 2
		}
		from = next
	}
}

var (
	notDone      = []byte(`,"done":false}`)
	notFinished  = []byte(`"finish_reason":null}]}`)
	usageMember  = []byte(`"usage":{`)
	dataPrefix   = []byte("data:")
	doneData     = []byte("[DONE]")
	statusPrefix = []byte(`{"status":`)
	success      = []byte(`{"status":"success"}`)
)

// Valid reports whether an answer is one JSON value. It ignores duplicate names and invalid UTF-8, which are for the client to
// judge.
func Valid(answer []byte) bool {
	return jsontext.Value(answer).IsValid(jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true))
}

// whole reports whether a record is a JSON object, and notes it if not.
func (m *Meter) whole(rec []byte) bool {
	rec = bytes.TrimSpace(rec)
	if len(rec) == 0 || rec[0] == '{' && Valid(rec) {
		return true
	}
	m.broken = true
	return false
}

// read reads one whole record and reports whether the end of the stream starts with it. It recognizes the common record by its last
// bytes: they close the record, so nothing that a model or a tool wrote can look like them.
func (m *Meter) read(rec []byte) bool {
	if m.sse {
		return m.readEvent(rec)
	}
	if !m.whole(rec) {
		return false
	}
	if m.kind == Transfer || m.kind == Create {
		return m.readProgress(rec)
	}
	if bytes.HasSuffix(bytes.TrimRight(rec, "\r\n"), notDone) {
		m.piece(rec)
		return false
	}
	o, ok := answer(rec)
	if !ok {
		return false
	}
	if o.find("error") != nil {
		m.Failed = true
		return false
	}
	if d := o.find("done"); d != nil && d.kind == 't' {
		m.Usage = m.kind.usage(&o)
		m.Complete = true
		return true
	}
	m.piece(rec)
	return false
}

// readProgress reads a line of pull, push or create.
func (m *Meter) readProgress(rec []byte) bool {
	if bytes.Equal(bytes.TrimSpace(rec), success) {
		m.Complete = true
		return true
	}
	if !bytes.HasPrefix(rec, statusPrefix) {
		if o, ok := answer(rec); ok && o.find("error") != nil {
			m.Failed = true
		}
	}
	return false
}

func (m *Meter) readEvent(rec []byte) bool {
	data, ok := eventData(rec)
	if !ok {
		return false
	}
	done := bytes.Equal(data, doneData)
	if !done && !m.whole(data) {
		return false
	}
	if m.kind == OpenAIResponses || m.kind == AnthropicMessages {
		return m.readNamed(rec)
	}
	if m.kind == OpenAIChat && bytes.HasSuffix(data, notFinished) {
		m.piece(rec)
		return false
	}
	if done {
		// An end without a finish chunk is still the end, but not a complete answer.
		return true
	}
	o, ok := answer(data)
	if !ok {
		return false
	}
	if o.find("error") != nil {
		m.Failed = true
		return false
	}
	m.note(&o)
	if m.finished {
		return true
	}
	m.piece(rec)
	return false
}

// note reads the usage and the finish reason of an OpenAI chunk.
func (m *Meter) note(o *object) {
	choices := o.find("choices")
	if choices == nil || choices.kind != '[' {
		return
	}
	if emptyArray(o.value(choices)) {
		if u := m.kind.usage(o); u.Counted {
			m.Usage = u
		}
		return
	}
	if finishReason(o.value(choices)) {
		m.finished = true
	}
}

// eventData returns the data of an SSE event with one data line. Ollama sends no others.
func eventData(rec []byte) ([]byte, bool) {
	i := 0
	if !bytes.HasPrefix(rec, dataPrefix) {
		if i = bytes.Index(rec, []byte("\ndata:")) + 1; i == 0 {
			return nil, false
		}
	}
	line := rec[i+len(dataPrefix):]
	if j := bytes.IndexByte(line, '\n'); j >= 0 {
		line = line[:j]
	}
	return bytes.TrimSpace(line), true
}

// Finish reads the end of the stream and returns the held bytes, to be sent after the books are written. After it, Usage and
// Complete are final. Call it once, when Ended reports true or upstream has closed the answer.
func (m *Meter) Finish() []byte {
	var out []byte
	src := m.held
	for len(src) > 0 {
		end := m.recordEnd(src, 0, 0)
		if end < 0 {
			end = len(src)
		}
		rec := src[:end]
		src = src[end:]
		if m.sse {
			m.finishEvent(rec)
		}
		if other, changed := m.rewrite(rec); changed {
			rec = other
		}
		out = append(out, rec...)
	}
	if m.repeats.written && m.Usage.PromptTokens == 0 && m.Usage.CompletionTokens == 0 {
		m.Usage = Usage{} // the answer has text, so these zeros are not counts
	}
	if m.sse && m.Complete && !bytes.HasSuffix(out, []byte("\n\n")) && !bytes.HasSuffix(out, []byte("\n\r\n")) {
		// Upstream ended within the blank line, which means nothing. But without it, a client drops the event before it.
		out = append(bytes.TrimRight(out, "\r\n"), "\n\n"...)
	}
	return out
}

// finishEvent reads one event of the end of a stream.
func (m *Meter) finishEvent(rec []byte) {
	if m.kind == OpenAIResponses || m.kind == AnthropicMessages {
		m.finishNamed(rec)
		return
	}
	data, ok := eventData(rec)
	if !ok {
		return
	}
	if bytes.Equal(data, doneData) {
		m.Complete = m.finished && !m.broken
		return
	}
	if o, ok := answer(data); m.whole(data) && ok {
		m.note(&o)
	}
}
