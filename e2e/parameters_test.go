package e2e

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// If a request has no num_predict, the Modelfile's num_predict bounds its answer, unless the default is smaller. When a model is created
// again, its new value applies.
func TestTheModelsOwnNumPredict(t *testing.T) {
	made := func(url, key, model string, tokens int) {
		t.Helper()
		call(t, "POST", url+"/api/create", key, fmt.Sprintf(`{"model":%q,"from":"tiny","parameters":{"num_predict":%d},"stream":false}`, model, tokens)).want(t, http.StatusOK)
	}
	made(ollamaURL, "", "short", 5)
	made(ollamaURL, "", "long", 50)
	t.Cleanup(func() {
		for _, model := range []string{"short", "long"} {
			if a, err := tryCall(context.Background(), "DELETE", ollamaURL+"/api/delete", "", fmt.Sprintf(`{"model":%q}`, model)); err != nil || a.Status != http.StatusOK {
				t.Errorf("deleting %s: %d, %v", model, a.Status, err)
			}
		}
	})
	s := serve(t, "DEFAULT_MAX_TOKENS=20", "MODEL_ALIASES=gpt-*=short")
	key := s.makeKey(t, "").Secret
	tokens := func(path, body string) (n float64, says string) {
		t.Helper()
		a := call(t, "POST", s.URL+path, key, body).want(t, http.StatusOK)
		o := a.object(t)
		if usage, ok := o["usage"].(map[string]any); ok {
			o["eval_count"] = usage["completion_tokens"]
		}
		n, _ = o["eval_count"].(float64)
		return n, a.Header.Get("X-Policy")
	}
	for _, c := range []struct {
		path, body, says string
		want             float64
	}{
		{"/api/chat", `"model":"short"`, "", 5},
		{"/api/generate", `"model":"SHORT:latest"`, "", 5},
		{"/v1/chat/completions", `"model":"short"`, "", 5},
		{"/v1/completions", `"model":"short"`, "", 5},
		{"/v1/chat/completions", `"model":"gpt-5"`, "", 5},
		{"/v1/chat/completions", `"model":"short","max_tokens":9`, "", 9},
		{"/api/chat", `"model":"long"`, "num_predict=20", 20},
		{"/v1/chat/completions", `"model":"long"`, "max_tokens=20", 20},
	} {
		n, says := tokens(c.path, `{`+c.body+`,"prompt":"the sea","messages":[{"role":"user","content":"the sea"}],"stream":false}`)
		if n != c.want || says != c.says {
			t.Errorf("%s %s: %v tokens, X-Policy %q, want %v and %q", c.path, c.body, n, says, c.want, c.says)
		}
	}

	const question = `{"model":"short","prompt":"the sea","stream":false}`
	made(s.URL, s.Admin, "short", 7)
	if n, _ := tokens("/api/generate", question); n != 7 {
		t.Errorf("created again through the service: got %v tokens", n)
	}
	// If the model is created again without the service, a probe finds it.
	made(ollamaURL, "", "short", 30)
	for deadline := time.Now().Add(patience); ; {
		n, says := tokens("/api/generate", question)
		if n == 20 && says == "num_predict=20" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("created again without the service: got %v tokens, X-Policy %q", n, says)
		}
		wait(t.Context(), 500*time.Millisecond) // for a probe, which no event announces
	}
}
