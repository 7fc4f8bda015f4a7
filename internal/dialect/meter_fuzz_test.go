package dialect

import (
	"bytes"
	"testing"
)

// metered is what a stream comes to.
type metered struct {
	out              string
	usage            Usage
	records, events  int64
	complete, failed bool
	refused, ended   bool
	repeated         string // the end of one at the repeat limit
}

// meter feeds the stream in pieces whose lengths the bytes of cuts say, over and over.
func meter(kind Kind, sse, strip bool, echo string, stream, cuts []byte) metered {
	m := NewMeter(kind, sse, strip, echo)
	var out bytes.Buffer
	for i := 0; len(stream) > 0; i++ {
		n := len(stream)
		if len(cuts) > 0 {
			n = min(n, 1+int(cuts[i%len(cuts)]))
		}
		// A piece is the reader's buffer, which the next read writes over.
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

// FuzzMeter: however a stream is cut into pieces or glued together, it comes to the same; what is not to be changed passes byte
// for byte; and a stream without its terminal record is never taken for a whole one.
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
				f.Fatalf("kind %d: the repeating stream has not come to the limit", kind)
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
			t.Fatalf("kind %d, pieces of %v:\n%+v\nand whole:\n%+v", kind, cuts, cut, whole)
		}
		// A blank line that is missing at the end is mended.
		if !edits && !bytes.HasPrefix(stream, bytes.TrimRight([]byte(whole.out), "\r\n")) {
			t.Fatalf("kind %d: %q became %q", kind, stream, whole.out)
		}
		if whole.complete && whole.repeated != "" {
			t.Fatalf("kind %d: %q has two ends", kind, stream)
		}
		if whole.complete && !terminal(kind, stream) {
			t.Fatalf("kind %d: %q was taken for whole", kind, stream)
		}
	})
}

// repeating is a stream whose first piece comes forty times, and has no end.
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

// terminal says whether the bytes that end a whole stream are there at all.
func terminal(kind Kind, stream []byte) bool {
	marks := map[Kind]string{
		Chat: "true", Generate: "true", Transfer: "success", Create: "success", OpenAIChat: "[DONE]", OpenAICompletions: "[DONE]",
		OpenAIResponses: "response.", AnthropicMessages: "message_stop",
	}
	return bytes.Contains(stream, []byte(marks[kind]))
}
