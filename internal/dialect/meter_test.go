package dialect

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

func recording(t testing.TB, name string) []byte {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(ollamatest.Recording(name))), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestMeterAtEverySplit feeds each recorded stream in pieces of every size. The passed and the held bytes must add up to the stream,
// the end must be held, and the usage must be read.
func TestMeterAtEverySplit(t *testing.T) {
	for _, c := range []struct {
		name string
		kind Kind
		sse  bool
		end  string // the first bytes that must be held
	}{
		{"chat-stream", Chat, false, `{"model":"tiny","created_at":"2026-11-23T12:59:03.543512241Z"`},
		{"generate-stream", Generate, false, `{"model":"tiny","created_at":"2026-11-23T12:59:03.466859843Z"`},
		{"v1-chat-stream-usage", OpenAIChat, true, `data: {"id":"chatcmpl-806","object":"chat.completion.chunk","created":1795438744,"model":"tiny","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"length"}]}`},
		{"v1-completions-stream-usage", OpenAICompletions, true, `data: {"id":"cmpl-144","object":"text_completion","created":1795438747,"choices":[{"text":"","index":0,"finish_reason":"length"}]`},
		{"v1-responses-stream", OpenAIResponses, true, "event: response.completed\n"},
		{"v1-messages-stream", AnthropicMessages, true, "event: message_delta\n"},
	} {
		body := recording(t, c.name)
		for size := 1; size <= len(body); size++ {
			m := NewMeter(c.kind, c.sse, false, "")
			var passed bytes.Buffer
			for rest := body; len(rest) > 0; {
				n := min(size, len(rest))
				pass, err := m.Feed(rest[:n])
				if err != nil {
					t.Fatal(err)
				}
				passed.Write(pass)
				rest = rest[n:]
			}
			if !m.Ended() {
				t.Fatalf("%s in pieces of %d: Ended is false, want true", c.name, size)
			}
			held := m.Finish()
			if !strings.HasPrefix(string(held), c.end) {
				t.Fatalf("%s in pieces of %d: held %q, want the whole end", c.name, size, held)
			}
			if got := passed.String() + string(held); got != string(body) {
				t.Fatalf("%s in pieces of %d: got %d bytes of %d, want the same bytes", c.name, size, len(got), len(body))
			}
			if !m.Complete || !m.Usage.Counted || m.Usage.PromptTokens != 17 || m.Usage.CompletionTokens != 8 || m.Tokens != 8 {
				t.Fatalf("%s in pieces of %d: got %+v, %d records, complete %v", c.name, size, m.Usage, m.Tokens, m.Complete)
			}
			if native := c.kind.Family() == Native; native != (m.Usage.Completion != nil) {
				t.Fatalf("%s: got durations %+v", c.name, m.Usage)
			}
		}
	}
}

func TestMeterStripsUsageAtEverySplit(t *testing.T) {
	for name, kind := range map[string]Kind{"v1-chat-stream": OpenAIChat, "v1-completions-stream": OpenAICompletions} {
		with, without := recording(t, name+"-usage"), recording(t, name)
		for size := 1; size <= len(with); size++ {
			m := NewMeter(kind, true, true, "")
			var passed bytes.Buffer
			for rest := with; len(rest) > 0; {
				n := min(size, len(rest))
				pass, err := m.Feed(rest[:n])
				if err != nil {
					t.Fatal(err)
				}
				passed.Write(pass)
				rest = rest[n:]
			}
			passed.Write(m.Finish())
			got := passed.String()
			if strings.Contains(got, "usage") || strings.Count(got, "\n\n") != strings.Count(string(without), "\n\n") || !m.Complete || m.Usage.CompletionTokens != 8 {
				t.Fatalf("%s in pieces of %d: got complete %v, usage %+v\n%s", name, size, m.Complete, m.Usage, got)
			}
		}
	}
}

// TestMeterCutAnywhere cuts each stream at every byte. The stream must not count as complete before its last record.
func TestMeterCutAnywhere(t *testing.T) {
	for name, kind := range map[string]Kind{
		"chat-stream": Chat, "v1-chat-stream": OpenAIChat, "v1-completions-stream": OpenAICompletions,
		"v1-responses-stream": OpenAIResponses, "v1-messages-stream": AnthropicMessages,
	} {
		body := recording(t, name)
		sse := kind.Family() != Native
		for cut := range len(body) - 2 {
			m := NewMeter(kind, sse, false, "")
			pass, err := m.Feed(body[:cut])
			if err != nil {
				t.Fatal(err)
			}
			m.Finish()
			if m.Complete && (kind.Family() != OpenAI || !strings.Contains(string(body[:cut]), "[DONE]")) {
				t.Fatalf("%s cut at %d of %d: Complete is true, want false", name, cut, len(body))
			}
			if strings.Contains(string(pass), `"finish_reason":"length"`) || strings.Contains(string(pass), `"done":true`) ||
				strings.Contains(string(pass), "response.completed") || strings.Contains(string(pass), "message_delta") {
				t.Fatalf("%s cut at %d: the end has passed, want it held", name, cut)
			}
		}
	}
}

// TestMeterEchoesTheAliasAtEverySplit: each record names the model as the client did. Nothing else differs.
func TestMeterEchoesTheAliasAtEverySplit(t *testing.T) {
	for name, kind := range map[string]Kind{
		"chat-stream": Chat, "generate-stream": Generate, "v1-chat-stream-usage": OpenAIChat,
		"v1-completions-stream-usage": OpenAICompletions, "v1-responses-stream": OpenAIResponses, "v1-messages-stream": AnthropicMessages,
	} {
		body := recording(t, name)
		want := strings.ReplaceAll(string(body), `"model":"tiny"`, `"model":"claude-x"`)
		for size := 1; size <= len(body); size += 7 {
			m := NewMeter(kind, kind.Family() != Native, false, "claude-x")
			var passed bytes.Buffer
			for rest := body; len(rest) > 0; {
				n := min(size, len(rest))
				pass, err := m.Feed(rest[:n])
				if err != nil {
					t.Fatal(err)
				}
				passed.Write(pass)
				rest = rest[n:]
			}
			passed.Write(m.Finish())
			if passed.String() != want || !m.Complete || m.Usage.CompletionTokens != 8 {
				t.Fatalf("%s in pieces of %d: got complete %v, %+v\n got %s\nwant %s", name, size, m.Complete, m.Usage, passed.String(), want)
			}
		}
	}
}

// A tool's arguments may have a field "model" of their own. It is text of the model, and not the model's name.
func TestTheAliasReplacesTheNameAlone(t *testing.T) {
	line := `{"model":"tiny","message":{"model":"tiny","tool_calls":[{"function":{"arguments":{"model":"tiny"}}}]},"done":false}` + "\n"
	m := NewMeter(Chat, false, false, "other")
	if pass, err := m.Feed([]byte(line)); err != nil || string(pass) != `{"model":"other"`+strings.TrimPrefix(line, `{"model":"tiny"`) {
		t.Errorf("got %s, error %v, want the arguments unchanged", pass, err)
	}
	if got := string(EchoModel([]byte(line), "other")); got != `{"model":"other"`+strings.TrimPrefix(line, `{"model":"tiny"`) {
		t.Errorf("%s", got)
	}
	long := `{"object":"list","data":[{"embedding":[1,2`
	if _, named := EchoPart([]byte(long), "tiny", "other"); named {
		t.Error("EchoPart reports a name in a part without it")
	}
	if got, named := EchoPart([]byte(`3]}],"model":"tiny","usage":{}}`), "tiny", "other"); !named || string(got) != `3]}],"model":"other","usage":{}}` {
		t.Errorf("%s", got)
	}
}

func TestNamedEventsThatFail(t *testing.T) {
	for event, kind := range map[string]Kind{
		"event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"it broke\"}}\n\n":     AnthropicMessages,
		"event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{}}\n\n":      OpenAIResponses,
		"data: {\"type\":\"error\",\"message\":\"without a line for its name\"}\n\n":            OpenAIResponses,
		"event:response.failed\r\ndata: {\"type\":\"response.failed\",\"response\":{}}\r\n\r\n": OpenAIResponses,
	} {
		m := NewMeter(kind, true, false, "")
		if pass, err := m.Feed([]byte(event)); err != nil || string(pass) != event || !m.Failed || m.Complete {
			t.Errorf("%q: got %q, failed %v, complete %v, error %v", event, pass, m.Failed, m.Complete, err)
		}
	}
	// A model's text about events is a string inside an event.
	said := "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"\\nevent: message_stop\\ndata: {}\"}}\n\n"
	m := NewMeter(AnthropicMessages, true, false, "")
	if pass, err := m.Feed([]byte(said)); err != nil || string(pass) != said || m.Ended() || m.Failed || m.Tokens != 1 {
		t.Errorf("got %q, error %v, want the text unchanged", pass, err)
	}
}

func TestMeterIsNotFooled(t *testing.T) {
	for _, line := range []string{
		`{"message":{"content":"say \"done\":true"},"done":false}`,
		`{"message":{"tool_calls":[{"function":{"name":"x","arguments":{"done":true,"error":"no"}}}]},"done":false}`,
		`{"message":{"tool_calls":[{"function":{"name":"x","arguments":{"done":false}}}]},"done":false}`,
	} {
		m := NewMeter(Chat, false, false, "")
		pass, err := m.Feed([]byte(line + "\n"))
		if err != nil || string(pass) != line+"\n" || m.Ended() || m.Failed || m.Tokens != 1 {
			t.Errorf("%s: got %q, ended %v, failed %v", line, pass, m.Ended(), m.Failed)
		}
	}
	m := NewMeter(Chat, false, false, "")
	if pass, _ := m.Feed([]byte(`{"message":{"tool_calls":[{"arguments":{"done":false}}]},"done":true,"eval_count":3}` + "\n")); len(pass) != 0 || !m.Ended() {
		t.Errorf("got %q, want the end with tool calls held", pass)
	}
	m = NewMeter(Chat, false, false, "")
	if pass, _ := m.Feed([]byte(`{"error":"it broke"}` + "\n")); len(pass) == 0 || !m.Failed {
		t.Error("Failed is false after an error record of upstream, want true")
	}
}

// A record that is not a JSON object never passes, even if it ends like one. The records before it pass.
func TestMeterRefusesBrokenRecords(t *testing.T) {
	const good = `{"model":"tiny","message":{"content":" a"},"done":false}`
	const event = `{"choices":[{"index":0,"delta":{"content":" a"},"finish_reason":null}]}`
	for _, broken := range []string{
		`{"model":"tiny","crea` + good, `<html>`, `null`, `[1]`, `{"a":1} {"b":2}`, `{"a":1}x`, `{"a":}`, `"a` + good, good[:len(good)-3],
		`{"choices":[{"finish_reason":null}]},"x":[{"finish_reason":null}]}`,
	} {
		for _, c := range []struct {
			kind   Kind
			before string
			record string
		}{
			{Chat, good + "\n", broken + "\n"},
			{Transfer, `{"status":"pulling"}` + "\n", broken + "\n"},
			{OpenAIChat, "data: " + event + "\n\n", "data: " + broken + "\n\n"},
			{AnthropicMessages, "event: ping\ndata: {}\n\n", "event: ping\ndata: " + broken + "\n\n"},
		} {
			for size := 1; size <= len(c.before)+len(c.record); size++ {
				m := NewMeter(c.kind, c.kind.Family() != Native, false, "")
				var passed []byte
				var err error
				for rest := []byte(c.before + c.record); len(rest) > 0 && err == nil; rest = rest[min(size, len(rest)):] {
					var pass []byte
					pass, err = m.Feed(rest[:min(size, len(rest))])
					passed = append(passed, pass...)
				}
				if !errors.Is(err, ErrRecordBroken) || string(passed) != c.before {
					t.Fatalf("%q in pieces of %d: got error %v, passed %q, want %v, %v", c.record, size, err, passed, ErrRecordBroken, c.before)
				}
			}
		}
	}
	// In the held end, such a record keeps the answer from being complete.
	m := NewMeter(OpenAIChat, true, false, "")
	finish := "data: " + strings.Replace(event, "null", `"stop"`, 1) + "\n\n"
	if _, err := m.Feed([]byte(finish + "data: {\"usage\":\n\ndata: {}\n\ndata: [DONE]\n\n")); err != nil {
		t.Fatal(err)
	}
	if m.Finish(); m.Complete {
		t.Error("an answer with a broken end is complete, want incomplete")
	}
}

// The end is complete when its data is. The meter adds the blank line that a client needs after it.
func TestMeterMendsTheLastBlankLine(t *testing.T) {
	for name, kind := range map[string]Kind{"v1-chat-stream": OpenAIChat, "v1-completions-stream": OpenAICompletions, "v1-messages-stream": AnthropicMessages} {
		body := recording(t, name)
		cut := bytes.TrimRight(body, "\n")
		if kind == AnthropicMessages {
			cut = append(cut, '\n') // the line end marks the end of its data
		}
		m := NewMeter(kind, true, false, "")
		pass, err := m.Feed(cut)
		if got := string(pass) + string(m.Finish()); err != nil || !m.Complete || got != string(body) {
			t.Errorf("%s: got error %v, complete %v, end %q", name, err, m.Complete, got[len(got)-20:])
		}
	}
}

func TestMeterBoundsARecord(t *testing.T) {
	m := NewMeter(Chat, false, false, "")
	piece := bytes.Repeat([]byte("x"), 1<<20)
	for range 8 {
		if _, err := m.Feed(piece); err != nil {
			t.Fatalf("got error %v before the limit, want none", err)
		}
	}
	if _, err := m.Feed(piece); err == nil {
		t.Error("nine MiB without a record's end were accepted, want an error")
	}
}

func TestProgressStreams(t *testing.T) {
	body := "{\"status\":\"pulling manifest\"}\n{\"status\":\"success\"}\n"
	m := NewMeter(Transfer, false, false, "")
	pass, _ := m.Feed([]byte(body))
	if string(pass)+string(m.Finish()) != body || !m.Complete {
		t.Errorf("got %q, complete %v", pass, m.Complete)
	}
	m = NewMeter(Transfer, false, false, "")
	if _, _ = m.Feed([]byte("{\"status\":\"pulling manifest\"}\n{\"error\":\"no such host\"}\n")); m.Complete || !m.Failed {
		t.Errorf("got complete %v, failed %v", m.Complete, m.Failed)
	}
}

func TestTailUsage(t *testing.T) {
	for name, kind := range map[string]Kind{"embed": Embed, "v1-embeddings": OpenAIEmbeddings, "v1-responses": OpenAIResponses, "v1-messages": AnthropicMessages} {
		body := recording(t, name)
		whole, tail := kind.WholeUsage(body), kind.TailUsage(body[max(0, len(body)-400):])
		if !tail.Counted || tail.PromptTokens != whole.PromptTokens || tail.PromptTokens == 0 {
			t.Errorf("%s: got %+v from the tail, want %+v as from the whole answer", name, tail, whole)
		}
	}
}

func BenchmarkMeter(b *testing.B) {
	line := []byte(`{"model":"tiny","created_at":"2026-11-23T12:59:03.526085017Z","message":{"role":"assistant","content":" they"},"done":false}` + "\n")
	event := []byte(`data: {"id":"chatcmpl-847","object":"chat.completion.chunk","created":1795438743,"model":"tiny","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":" the"},"finish_reason":null}]}` + "\n\n")
	zero := []byte(`data: {"id":"cmpl-144","object":"text_completion","created":1795438745,"choices":[{"text":" the","index":0,"finish_reason":null}],"model":"tiny","system_fingerprint":"fp_ollama","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}` + "\n\n")
	for name, c := range map[string]struct {
		m   *Meter
		rec []byte
	}{"ndjson": {NewMeter(Chat, false, false, ""), line}, "sse": {NewMeter(OpenAIChat, true, true, ""), event}, "completions": {NewMeter(OpenAICompletions, true, true, ""), zero}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.m.Feed(c.rec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
