package dialect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// cutStreams are the recorded streams in which a model wrote, with the end that each has for an answer of the maximum length.
var cutStreams = []struct {
	name   string
	kind   Kind
	sse    bool
	strip  bool
	length string
}{
	{"chat-stream", Chat, false, false, `"done_reason":"length"`},
	{"generate-stream", Generate, false, false, `"done_reason":"length"`},
	{"v1-chat-stream-usage", OpenAIChat, true, false, `"finish_reason":"length"`},
	{"v1-chat-stream-usage", OpenAIChat, true, true, `"finish_reason":"length"`},
	{"v1-completions-stream-usage", OpenAICompletions, true, false, `"finish_reason":"length"`},
	{"v1-completions-stream-usage", OpenAICompletions, true, true, `"finish_reason":"length"`},
	{"v1-responses-stream", OpenAIResponses, true, false, `"incomplete_details":{"reason":"max_output_tokens"}`},
	{"v1-messages-stream", AnthropicMessages, true, false, `"stop_reason":"max_tokens"`},
}

// A stream may be cut before each of its pieces, in any chunks. The client gets a complete answer that says it has reached its
// maximum length, with the pieces up to there, under the name that the client used.
func TestACutStreamEndsAsOneThatReachedItsLength(t *testing.T) {
	for _, c := range cutStreams {
		body := recording(t, c.name)
		for most := range int64(8) {
			for _, size := range []int{1, 7, 100, 333, len(body)} {
				name := fmt.Sprintf("%s, strip %v, %d pieces, by %d bytes", c.name, c.strip, most, size)
				m := NewMeter(c.kind, c.sse, c.strip, "claude-x")
				m.More = func(n int64) bool { return n <= most }
				var got bytes.Buffer
				for rest := body; len(rest) > 0 && !m.Cut; {
					n := min(size, len(rest))
					pass, err := m.Feed(rest[:n])
					if err != nil {
						t.Fatalf("%s: got error %v, want none", name, err)
					}
					got.Write(pass)
					rest = rest[n:]
				}
				if !m.Cut || m.Tokens != most || m.Ended() {
					t.Fatalf("%s: got cut %v after %d pieces, want a cut", name, m.Cut, m.Tokens)
				}
				got.Write(m.CutOff(17, time.Second))

				again := NewMeter(c.kind, c.sse, false, "")
				if _, err := again.Feed(got.Bytes()); err != nil || !again.Ended() {
					t.Fatalf("%s: got ended %v, error %v, want a complete stream\n%s", name, again.Ended(), err, got.Bytes())
				}
				again.Finish()
				u := again.Usage
				if !again.Complete || again.Failed || again.Tokens != most || u.Counted == c.strip || !c.strip && (u.PromptTokens != 17 || u.CompletionTokens != most) {
					t.Fatalf("%s: got %+v, want a complete answer with its usage\n%s", name, again, got.Bytes())
				}
				if text := got.String(); strings.Count(text, c.length) != 1 || strings.Contains(text, `"model":"tiny"`) || !strings.Contains(text, `"model":"claude-x"`) ||
					c.strip && strings.Contains(text, `"usage":{`) {
					t.Fatalf("%s: got %s, want the pieces before the cut", name, text)
				}
			}
		}
	}
}

// The end of a Responses stream repeats the text that the client has received, with any characters.
func TestACutResponseHoldsItsText(t *testing.T) {
	body := recording(t, "v1-responses-stream")
	body = bytes.ReplaceAll(body, []byte(`"delta":" fish"`), []byte(`"delta":" \"fish\\\n\u00e9\""`))
	m := NewMeter(OpenAIResponses, true, false, "")
	m.More = func(n int64) bool { return n <= 3 }
	pass, err := m.Feed(body)
	if err != nil {
		t.Fatal(err)
	}
	stream := string(pass) + string(m.CutOff(17, time.Second))
	var names []string
	var last struct {
		Sequence int `json:"sequence_number"`
		Response struct {
			ID, Status string
			Output     []struct {
				Status  string
				Content []struct{ Text string }
			}
		}
		Item struct{ Content []struct{ Text string } }
		Text string
	}
	const want = " they a \"fish\\\né\""
	for i, event := range strings.Split(strings.TrimSpace(stream), "\n\n") {
		name, data, _ := strings.Cut(event, "\ndata: ")
		names = append(names, strings.TrimPrefix(name, "event: response."))
		last.Text = want
		if err := json.Unmarshal([]byte(data), &last); err != nil || last.Sequence != i || last.Text != want {
			t.Fatalf("event %d: got error %v, %+v, want numbered events that agree\n%s", i, err, last, event)
		}
	}
	if got := strings.Join(names, " "); got != "created in_progress output_item.added content_part.added output_text.delta output_text.delta output_text.delta "+
		"output_text.done content_part.done output_item.done incomplete" {
		t.Errorf("events: %s", got)
	}
	r := last.Response
	if r.ID != "resp_312023" || r.Status != "incomplete" || len(r.Output) != 1 || r.Output[0].Status != "incomplete" || r.Output[0].Content[0].Text != want {
		t.Errorf("got the answer %+v, want an incomplete one with the text so far", r)
	}
}

// A stream that is not cut passes unchanged, and its own end is counted.
func TestAMeteredStreamThatIsNotCut(t *testing.T) {
	for _, c := range cutStreams {
		body := recording(t, c.name)
		m := NewMeter(c.kind, c.sse, false, "")
		m.More = func(n int64) bool { return n <= 8 }
		pass, err := m.Feed(body)
		if all := string(pass) + string(m.Finish()); err != nil || m.Cut || !m.Complete || all != string(body) || m.Usage.CompletionTokens != 8 {
			t.Errorf("%s: got error %v, cut %v, %+v, want the whole stream with its own usage", c.name, err, m.Cut, m.Usage)
		}
	}
}
