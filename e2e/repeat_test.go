package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// A grammar forces a real Ollama to repeat one letter fifty times. Ollama ends the answer after 30 repeats, without its last record.
// Clients get an answer that has reached its length, and the books have the tokens so far, as an estimate.
func TestTheRepeatLimitOfARealOllama(t *testing.T) {
	s := serve(t)
	schema := `{"type":"string","enum":["` + strings.Repeat("z", 50) + `"]}`
	native := `"format":` + schema + `,"options":{"num_predict":200}`
	openAI := `"max_tokens":200,"response_format":{"type":"json_schema","json_schema":{"name":"z","schema":` + schema + `}}`
	for _, c := range []struct {
		path, body, end string
		tokens          int64 // one for each letter and one for the quote before them; 0 if the estimate counts characters
	}{
		{"/api/chat", `{` + ask + `,` + native + `}`, `"done":true,"done_reason":"length"`, 32},
		{"/api/generate", `{"model":"tiny","prompt":"the sea",` + native + `}`, `"done":true,"done_reason":"length"`, 32},
		{"/v1/chat/completions", `{` + ask + `,"stream":true,` + openAI + `}`, "data: [DONE]", 32},
		{"/api/chat", `{` + ask + `,"stream":false,` + native + `}`, `"done":false`, 0},
		{"/v1/chat/completions", `{` + ask + `,` + openAI + `}`, `"completion_tokens":0`, 0},
	} {
		k := s.makeKey(t, "")
		a := call(t, "POST", s.URL+c.path, k.Secret, c.body)
		if a.want(t, http.StatusOK); a.Err != nil || strings.Count(a.Body, "z") != 31 || !strings.Contains(a.Body, c.end) {
			t.Errorf("%s: %v\n%s", c.path, a.Err, a.Body)
		}
		row := s.rows(t, k.Preview, 1)[0]
		if row.Outcome != "ok" || !row.Estimated || row.Prompt < 1 || c.tokens > 0 && row.Completion != c.tokens || c.tokens == 0 && (row.Completion < 5 || row.Completion > 12) {
			t.Errorf("%s: booked %+v", c.path, row)
		}
	}
}
