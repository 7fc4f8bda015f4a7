package dialect

import (
	"bytes"
	"testing"
)

// metered is the result of metering a stream.
type metered struct {
	out              string
	usage            Usage
	records, events  int64
	complete, failed bool
	refused, ended   bool
	repeated         string // the end of a stream at the repeat limit
}

// meter feeds the stream in pieces. The bytes of cuts are their lengths, repeated as often as needed.
func meter(kind Kind, sse, strip bool, echo string, stream, cuts []byte) metered {
	m := NewMeter(kind, sse, strip, echo)
	var out bytes.Buffer
	for i := 0; len(stream) > 0; i++ {
		n := len(stream)
		if len(cuts) > 0 {
			n = min(n, 1+int(cuts[i%len(cuts)]))
		}
		// A piece is the reader's buffer, which the next read overwrites.
		piece := bytes.Clone(stream[:n])
		pass, err := m.Feed(piece)
		if err != nil {
			return metered{refused: true}
		}
		out.Write(pass)
		clear(piece)
		stream = stream[n:]
	}
	ended, repeated := m.Ended(), ""
	if m.AtRepeatLimit() {
		repeated = string(m.RepeatEnd(17, 1))
	}
	out.Write(m.Finish())
	u := m.Usage
	u.Total, u.Load, u.PromptEval, u.Completion = nil, nil, nil, nil // pointers: compared by their presence elsewhere
	return metered{out.String(), u, m.Tokens, m.Events, m.Complete, m.Failed, false, ended, repeated}
}

// FuzzMeter: the result of a stream does not depend on how it is cut into pieces. Bytes that need no change pass unchanged. A stream
// without its terminal record never counts as complete.
func FuzzMeter(f *testing.F) {
	streams := map[Kind]string{
		Chat: "chat-stream", Generate: "generate-stream", OpenAIChat: "v1-chat-stream-usage", OpenAICompletions: "v1-completions-stream-usage",
		OpenAIResponses: "v1-responses-stream", AnthropicMessages: "v1-messages-stream",
	}
	kinds := []Kind{Chat, Generate, OpenAIChat, OpenAICompletions, OpenAIResponses, AnthropicMessages, Transfer, Create}
	for i, kind := range kinds {
		stream := []byte("{\"status\":\"pulling\"}\n{\"status\":\"success\"}\n")
		if name := streams[kind]; name != "" {
			stream = recording(f, name)
		}
		if streams[kind] != "" {
			if m := meter(kind, kind.Family() != Native, false, "", repeating(kind, stream), nil); m.repeated == "" {
				f.Fatalf("kind %d: the repeating stream has not reached the limit, want a text", kind)
			}
		}
		for _, cuts := range [][]byte{{0}, {1, 7}, {40, 3, 255}} {
			f.Add(uint8(i), false, stream, cuts)
			f.Add(uint8(i), true, stream[:len(stream)-20], cuts)
			f.Add(uint8(i), true, repeating(kind, stream), cuts)
			f.Add(uint8(i), true, bytes.ReplaceAll(stream, []byte("\n"), []byte("\r\n")), cuts)
		}
	}
	f.Add(uint8(2), true, []byte("data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n"), []byte{2})
	f.Add(uint8(0), false, []byte("{\"error\":\"x\"}\n{\"done\":true}\n\n{}\n"), []byte{2})
	f.Fuzz(func(t *testing.T, of uint8, edits bool, stream, cuts []byte) {
		kind := kinds[int(of)%len(kinds)]
		sse := kind.Family() != Native
		echo := ""
		if edits {
			echo = "claude-x"
		}
		whole := meter(kind, sse, edits, echo, stream, nil)
		cut := meter(kind, sse, edits, echo, stream, cuts)
		if whole != cut {
			t.Fatalf("kind %d, pieces of %v: got\n%+v\nwant the same as whole:\n%+v", kind, cuts, cut, whole)
		}
		// A missing blank line at the end is added.
		if !edits && !bytes.HasPrefix(stream, bytes.TrimRight([]byte(whole.out), "\r\n")) {
			t.Fatalf("kind %d: %q became %q, want no change", kind, stream, whole.out)
		}
		if whole.complete && whole.repeated != "" {
			t.Fatalf("kind %d: %q has two ends, want one", kind, stream)
		}
		if whole.complete && !terminal(kind, stream) {
			t.Fatalf("kind %d: %q without its terminal record counts as complete", kind, stream)
		}
	})
}

// repeating returns a stream whose first piece comes forty times, without an end.
func repeating(kind Kind, stream []byte) []byte {
	sse := kind.Family() != Native
	end := []byte("\n")
	if sse {
		end = []byte("\n\n")
	}
	m := NewMeter(kind, sse, false, "")
	for rec := range bytes.SplitAfterSeq(stream, end) {
		if _, err := m.Feed(rec); err == nil && m.Tokens == 1 {
			before, _, _ := bytes.Cut(stream, rec)
			return append(bytes.Clone(before), bytes.Repeat(rec, 40)...)
		}
	}
	return stream
}

// terminal reports whether the stream has the bytes that end a complete stream.
func terminal(kind Kind, stream []byte) bool {
	marks := map[Kind]string{
		Chat: "true", Generate: "true", Transfer: "success", Create: "success", OpenAIChat: "[DONE]", OpenAICompletions: "[DONE]",
		OpenAIResponses: "response.", AnthropicMessages: "message_stop",
	}
	return bytes.Contains(stream, []byte(marks[kind]))
}
