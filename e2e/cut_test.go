package e2e

import (
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// If a stream ends because its key has no tokens left, every client gets an answer with counts, not a failure.
func TestClientsTakeACutStreamForAnAnswer(t *testing.T) {
	t.Parallel()
	fake := ollamatest.Start(t)
	for _, path := range []string{"/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} {
		fake.Handle("POST", path, func(r *ollamatest.Request) ollamatest.Answer {
			return ollamatest.Answer{Tokens: 40} // whatever the request asks for
		})
	}
	s := start(t, t.TempDir(), fake.URL, nil)
	for _, p := range allPrograms(t) {
		if p.patience == agentPatience {
			continue // an agent's own prompt is longer than this limit, so its requests are refused and never cut
		}
		t.Run(p.name, func(t *testing.T) {
			var orders []order
			var keys []madeKey
			for _, a := range p.calls {
				if a.is(asks|streamed) && !a.is(refused) {
					k := s.makeKey(t, `,"tokens_per_hour":16`)
					keys = append(keys, k)
					orders = append(orders, order{Call: a.name, URL: s.URL, Key: k.Secret, Model: "tiny"})
				}
			}
			for i, g := range p.play(t, orders) {
				if text := strings.TrimSpace(g.Text); !g.OK || g.Says != "" || text == "" || len(text) >= len(ollamatest.Text(40))/2 {
					t.Errorf("%s: %+v", orders[i].Call, g)
				}
				row := s.rows(t, keys[i].Preview, 1)[0]
				// The prompt is booked as it likely was, which may be a little more than what was held for it.
				if used := row.Prompt + row.Completion; row.Outcome != "cut_by_limit" || row.ErrorCode != "token_limit" || used < 16 || used > 24 || !row.Estimated || g.Completion != 0 && int64(g.Completion) != row.Completion {
					t.Errorf("%s: %+v for %+v", orders[i].Call, row, g)
				}
			}
			t.Logf("%d streams", len(orders))
		})
	}
}
