package dialect

import (
	"testing"

	"ollama-api-service/internal/api"
)

// A load is requested with the options that the request itself will have: after the policy, and with nothing that belongs to the
// answer.
func TestLoadOptions(t *testing.T) {
	own := func(context int64) *Terms {
		return &Terms{Own: func(api.Model) api.Parameters { return api.Parameters{Context: context} }}
	}
	policed := &Terms{Policed: true, Standard: Standard(4096, 0, 0)}
	for _, c := range []struct {
		kind       Kind
		terms      *Terms
		body, want string
	}{
		{Chat, &Terms{}, `{"model":"m","messages":[],"options":{"temperature":1,"num_ctx":8192,"num_gpu":3,"use_mmap":null}}`, `{"num_ctx":8192,"num_gpu":3}`},
		{Chat, &Terms{}, `{"model":"m","messages":[],"options":{"temperature":1}}`, ""},
		{Chat, &Terms{}, `{"model":"m","messages":[]}`, ""},
		{Chat, policed, `{"model":"m","messages":[],"options":{"num_ctx":8192,"num_gpu":3}}`, `{"num_ctx":4096}`},
		{Embed, &Terms{}, `{"model":"m","input":"x","options":{"num_ctx":512}}`, `{"num_ctx":512}`},
		{Embed, own(512), `{"model":"m","input":"x","options":{"num_ctx":512}}`, ""}, // the model has this by default
		{Embed, own(512), `{"model":"m","input":"x","options":{"num_ctx":5.12e2,"num_gpu":3}}`, `{"num_gpu":3}`},
		{Embed, own(1024), `{"model":"m","input":"x","options":{"num_ctx":512}}`, `{"num_ctx":512}`},
		{OpenAIChat, &Terms{}, `{"model":"m","messages":[],"options":{"num_ctx":512}}`, ""},
	} {
		req, err := c.kind.Read(BodyOf([]byte(c.body)), c.terms)
		if err != nil || string(req.LoadOptions) != c.want {
			t.Errorf("%s: got %q, error %v, want %q", c.body, req.LoadOptions, err, c.want)
		}
	}
}
