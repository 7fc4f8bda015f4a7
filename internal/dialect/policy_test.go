package dialect

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

func standard() *Terms {
	return &Terms{Policed: true, Standard: Standard(32768, time.Hour, 8192)}
}

// TestPolicyTable is the table of policed fields: what is sent and what goes upstream.
func TestPolicyTable(t *testing.T) {
	pinned, err := api.ParseModelPolicy("tiny num_ctx=set:4096")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		kind    Kind
		change  func(*Terms)
		in, out string // out "" is in itself; "403" and "400" are refusals
		changes string // X-Policy
	}{
		{"a cap where none is given", Chat, nil, `{"model":"a","messages":[]}`, `{"model":"a","messages":[],"options":{"num_predict":8192}}`, "num_predict=8192"},
		{"a cap for endless", Chat, nil, `{"model":"a","options":{"num_predict":-1}}`, `{"model":"a","options":{"num_predict":8192}}`, "num_predict=8192"},
		{"a cap for zero", Chat, nil, `{"model":"a","options":{"num_predict":0}}`, `{"model":"a","options":{"num_predict":8192}}`, "num_predict=8192"},
		{"a default is no bound", Chat, nil, `{"model":"a","options":{"num_predict":9000}}`, "", ""},
		{"the key's bound", Chat, key("max_tokens", api.VerbMost, 100), `{"model":"a","options":{"num_predict":9000}}`, `{"model":"a","options":{"num_predict":100}}`, "num_predict=100"},
		{"the key's bound, none given", Generate, key("max_tokens", api.VerbMost, 100), `{"model":"a"}`, `{"model":"a","options":{"num_predict":100}}`, "num_predict=100"},
		{"the key's bound at the top", Generate, key("max_tokens", api.VerbMost, 100), `{"model":"a","max_tokens":200}`, `{"model":"a","options":{"num_predict":100}}`, "num_predict=100"},
		{"a key without a bound", Chat, key("max_tokens", api.VerbPass, 0), `{"model":"a"}`, "", ""},
		{"text for a number", Chat, nil, `{"model":"a","options":{"num_predict":"9"}}`, "400", ""},
		{"text for a number, with a bound", Chat, key("max_tokens", api.VerbMost, 5), `{"model":"a","options":{"num_predict":[9]}}`, "400", ""},
		{"text for a number, pinned", Chat, key("max_tokens", api.VerbSet, 5), `{"model":"a","options":{"num_predict":"9"}}`, `{"model":"a","options":{"num_predict":5}}`, "num_predict=5"},
		{"text that Ollama ignores", Generate, free, `{"model":"a","max_tokens":"9","temperature":"hot"}`, "", ""},
		{"text that Ollama ignores, of OpenAI", OpenAIChat, free, `{"model":"a","max_completion_tokens":"9"}`, "", ""},
		{"more than an int", Chat, nil, `{"model":"a","options":{"num_predict":1e30}}`, `{"model":"a","options":{"num_predict":2147483647}}`, "num_predict=2147483647"},
		{"more than a number", Chat, free, `{"model":"a","options":{"num_predict":1e999}}`, "400", ""},
		{"no whole number", OpenAIChat, free, `{"model":"a","max_tokens":5.5}`, "400", ""},
		{"more than an int, of OpenAI", OpenAIChat, free, `{"model":"a","max_tokens":1e30}`, "400", ""},
		{"a fraction", Chat, free, `{"model":"a","options":{"num_predict":5.5}}`, "", ""},
		{"as much as there is, with a bound", OpenAIChat, key("max_tokens", api.VerbMost, 5), `{"model":"a","max_tokens":9007199254740991}`, `{"model":"a","max_tokens":5}`, "max_tokens=5"},

		{"chat", OpenAIChat, nil, `{"model":"a"}`, `{"model":"a","max_tokens":8192}`, "max_tokens=8192"},
		{"chat, the newer name", OpenAIChat, key("max_tokens", api.VerbMost, 5), `{"model":"a","max_completion_tokens":9}`, `{"model":"a","max_tokens":5}`, "max_tokens=5"},
		{"chat, null", OpenAIChat, nil, `{"model":"a","max_tokens":null}`, `{"model":"a","max_tokens":8192}`, "max_tokens=8192"},
		{"completions", OpenAICompletions, nil, `{"model":"a","prompt":"x","max_tokens":-1}`, `{"model":"a","prompt":"x","max_tokens":8192}`, "max_tokens=8192"},
		{"responses", OpenAIResponses, key("max_tokens", api.VerbMost, 5), `{"model":"a","max_output_tokens":6}`, `{"model":"a","max_output_tokens":5}`, "max_output_tokens=5"},
		{"messages", AnthropicMessages, key("max_tokens", api.VerbMost, 5), `{"model":"a","max_tokens":6}`, `{"model":"a","max_tokens":5}`, "max_tokens=5"},
		{"embeddings have none", Embed, nil, `{"model":"a","input":"x"}`, "", ""},

		{"context", Chat, free, `{"model":"a","options":{"num_ctx":4096}}`, "", ""},
		{"too much context", Chat, free, `{"model":"a","options":{"num_ctx":1e9,"seed":1}}`, `{"model":"a","options":{"num_ctx":32768,"seed":1}}`, "num_ctx=32768"},
		{"context below one", Chat, free, `{"model":"a","options":{"num_ctx":-1}}`, "", ""},
		{"no context", Embed, free, `{"model":"a","input":"x","options":{"num_ctx":0}}`, "", ""},
		{"context of another type", Embed, free, `{"model":"a","input":"x","options":{"num_ctx":"8192"}}`, "400", ""},
		{"context of another type, pinned", Embed, models(pinned), `{"model":"tiny","input":"x","options":{"num_ctx":"8192"}}`, `{"model":"tiny","input":"x","options":{"num_ctx":4096}}`, "num_ctx=4096"},
		{"messages that Ollama refuses", AnthropicMessages, nil, `{"model":"a"}`, "", ""},
		{"messages that Ollama refuses: none", AnthropicMessages, nil, `{"model":"a","max_tokens":0}`, "", ""},
		{"messages that Ollama refuses: with a bound", AnthropicMessages, key("max_tokens", api.VerbMost, 5), `{"model":"a","max_tokens":-1}`, "", ""},
		{"messages that Ollama refuses: lowered for the budget", AnthropicMessages, func(t *Terms) { t.Policed, t.MaxOutput = false, 5 }, `{"model":"a","max_tokens":"9"}`, "", ""},
		{"pinned context", Embed, models(pinned), `{"model":"tiny","input":"x","options":{"num_ctx":8192}}`, `{"model":"tiny","input":"x","options":{"num_ctx":4096}}`, "num_ctx=4096"},
		{"pinned context, none given", Embed, models(pinned), `{"model":"tiny","input":"x"}`, `{"model":"tiny","input":"x","options":{"num_ctx":4096}}`, "num_ctx=4096"},
		{"pinned for another", Embed, models(pinned), `{"model":"other","input":"x"}`, "", ""},
		{"the key before the model", Embed, both(models(pinned), key("num_ctx", api.VerbPass, 0)), `{"model":"tiny","input":"x","options":{"num_ctx":9}}`, "", ""},

		{
			"how it is loaded", Chat, free, `{"model":"a","options":{"num_gpu":0,"num_thread":64,"num_batch":1,"use_mmap":false,"top_k":1}}`,
			`{"model":"a","options":{"top_k":1}}`, "num_batch dropped, num_gpu dropped, num_thread dropped, use_mmap dropped",
		},
		{"shift", Chat, free, `{"model":"a","shift":true}`, `{"model":"a"}`, "shift dropped"},
		{"raw", Generate, free, `{"model":"a","raw":true}`, "", ""},
		{"raw refused", Generate, both(free, key("raw", api.VerbRefuse, 0)), `{"model":"a","raw":true}`, "403", ""},
		{"raw refused, false", Generate, both(free, key("raw", api.VerbRefuse, 0)), `{"model":"a","raw":false}`, "", ""},
		{"template", Generate, free, `{"model":"a","template":"{{ .System }}"}`, "403", ""},
		{"no template", Generate, free, `{"model":"a","template":""}`, "", ""},
		{"debug", Chat, free, `{"model":"a","_debug_render_only":true}`, "403", ""},
		{"debug in another dialect", OpenAIChat, free, `{"model":"a","_debug_render_only":true}`, "403", ""},
		{"no debug", Chat, free, `{"model":"a","_debug_render_only":false}`, "", ""},

		{"keep_alive", Chat, free, `{"model":"a","messages":[{}],"keep_alive":"5m"}`, "", ""},
		{"too long", Chat, free, `{"model":"a","messages":[{}],"keep_alive":"9999h"}`, `{"model":"a","messages":[{}],"keep_alive":3600}`, "keep_alive=3600s"},
		{"for ever", Chat, free, `{"model":"a","messages":[{}],"keep_alive":-1}`, `{"model":"a","messages":[{}]}`, "keep_alive dropped"},
		{"for ever, as text", Chat, free, `{"model":"a","messages":[{}],"keep_alive":"-1m"}`, `{"model":"a","messages":[{}]}`, "keep_alive dropped"},
		{"not at all", Chat, free, `{"model":"a","messages":[{}],"keep_alive":0}`, `{"model":"a","messages":[{}]}`, "keep_alive dropped"},
		{"unload", Chat, free, `{"model":"a","messages":[],"keep_alive":0}`, "403", ""},
		{"unload, as text", Generate, free, `{"model":"a","keep_alive":"0s"}`, "403", ""},
		{"unload, less than a second", Generate, free, `{"model":"a","prompt":"","keep_alive":"999ms"}`, "403", ""},
		{"load", Generate, free, `{"model":"a","keep_alive":"5m"}`, "", ""},
		{"unload allowed", Generate, both(free, key("unload", api.VerbPass, 0)), `{"model":"a","keep_alive":0}`, "", ""},
		{"no time", Chat, free, `{"model":"a","keep_alive":"soon"}`, "400", ""},
		{"null", Chat, free, `{"model":"a","keep_alive":null}`, "", ""},

		{"an admin", Chat, func(t *Terms) { t.Policed = false }, `{"model":"a","keep_alive":0,"template":"x","options":{"num_gpu":0,"num_ctx":1e9}}`, "", ""},
	} {
		terms := standard()
		if c.change != nil {
			c.change(terms)
		}
		req, err := c.kind.Read(BodyOf([]byte(c.in)), terms)
		if code, refused := map[string]api.Code{"403": api.CodeForbidden, "400": api.CodeBadRequest}[c.out]; refused {
			var e *api.Error
			if !errors.As(err, &e) || e.Code != code {
				t.Errorf("%s: got error %v, want %s", c.name, err, c.out)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: got error %v, want none", c.name, err)
			continue
		}
		want := c.out
		if want == "" {
			want = c.in
		}
		if got := strings.Join(req.Changes, ", "); req.Body.String() != want || got != c.changes {
			t.Errorf("%s\n sent %s\n got %s\n want %s\n got changes %q, want %q", c.name, c.in, req.Body, want, got, c.changes)
		}
	}
}

func key(field string, verb api.Verb, amount int64) func(*Terms) {
	return func(t *Terms) { t.Key = api.Policy{field: {Verb: verb, Amount: amount}} }
}

// free removes the default number of tokens, so that a row shows only its own field.
func free(t *Terms) { t.Standard["max_tokens"] = api.Action{Verb: api.VerbPass} }

func models(p api.ModelPolicy) func(*Terms) {
	return func(t *Terms) { t.Models = []api.ModelPolicy{p} }
}

func both(a, b func(*Terms)) func(*Terms) { return func(t *Terms) { a(t); b(t) } }

// A default replaces a value in the Modelfile only if that value is higher. A value that an admin sets always replaces it.
func TestTheModelsOwnParameters(t *testing.T) {
	for _, c := range []struct {
		name    string
		own     api.Parameters
		kind    Kind
		change  func(*Terms)
		in, out string // fields of a body; out "" is in
		changes string
		most    int64 // MaxOutput of the request
	}{
		{"smaller", api.Parameters{NumPredict: 64}, Chat, nil, `"messages":[]`, "", "", 64},
		{"smaller, generate", api.Parameters{NumPredict: 64}, Generate, nil, `"options":{"num_predict":null}`, "", "", 64},
		{"smaller, OpenAI", api.Parameters{NumPredict: 64}, OpenAIChat, nil, `"max_tokens":null`, "", "", 64},
		{"smaller, completions", api.Parameters{NumPredict: 64}, OpenAICompletions, nil, `"prompt":"x"`, "", "", 64},
		{"smaller, responses", api.Parameters{NumPredict: 64}, OpenAIResponses, nil, `"input":"x"`, "", "", 64},
		{"larger", api.Parameters{NumPredict: 9000}, OpenAIChat, nil, `"n":1`, `"n":1,"max_tokens":8192`, "max_tokens=8192", 8192},
		{"as large", api.Parameters{NumPredict: 8192}, OpenAIChat, nil, `"n":1`, "", "", 8192},
		{"none", api.Parameters{}, OpenAIChat, nil, `"n":1`, `"n":1,"max_tokens":8192`, "max_tokens=8192", 8192},
		{"without a default", api.Parameters{NumPredict: 64}, OpenAIChat, free, `"n":1`, "", "", 64},
		{"the request has one", api.Parameters{NumPredict: 64}, OpenAIChat, nil, `"max_tokens":100`, "", "", 100},
		{"the request has one without end", api.Parameters{NumPredict: 64}, Chat, nil, `"options":{"num_predict":-1}`, `"options":{"num_predict":8192}`, "num_predict=8192", 8192},
		{"the key's bound, larger", api.Parameters{NumPredict: 64}, OpenAIChat, key("max_tokens", api.VerbMost, 100), `"n":1`, "", "", 64},
		{"the key's bound, smaller", api.Parameters{NumPredict: 64}, OpenAIChat, key("max_tokens", api.VerbMost, 10), `"n":1`, `"n":1,"max_tokens":10`, "max_tokens=10", 10},
		{"the key's pin", api.Parameters{NumPredict: 64}, OpenAIChat, key("max_tokens", api.VerbSet, 100), `"n":1`, `"n":1,"max_tokens":100`, "max_tokens=100", 100},
		{"the budget, larger", api.Parameters{NumPredict: 64}, OpenAIChat, func(t *Terms) { t.MaxOutput = 65 }, `"n":1`, "", "", 64},
		{"the budget, smaller", api.Parameters{NumPredict: 64}, OpenAIChat, func(t *Terms) { t.MaxOutput = 63 }, `"n":1`, `"n":1,"max_tokens":63`, "max_tokens=63", 63},
		{"an admin", api.Parameters{NumPredict: 64}, Chat, func(t *Terms) { t.Policed = false }, `"messages":[]`, "", "", 64},
		{"messages have their own", api.Parameters{NumPredict: 64}, AnthropicMessages, nil, `"max_tokens":100`, "", "", 100},

		{"a default of the context", api.Parameters{NumCtx: 16384}, Embed, key("num_ctx", api.VerbDefault, 4096), `"input":"x"`, "", "", 0},
		{"a default of the context, none", api.Parameters{NumPredict: 64}, Embed, key("num_ctx", api.VerbDefault, 4096), `"input":"x"`, `"input":"x","options":{"num_ctx":4096}`, "num_ctx=4096", 0},
		{"a pinned context", api.Parameters{NumCtx: 16384}, Embed, key("num_ctx", api.VerbSet, 4096), `"input":"x"`, `"input":"x","options":{"num_ctx":4096}`, "num_ctx=4096", 0},
		{"as much context as the model has", api.Parameters{NumCtx: 65536}, Embed, nil, `"input":"x","options":{"num_ctx":65536}`, "", "", 0},
		{"more than the model has", api.Parameters{NumCtx: 65536}, Embed, nil, `"input":"x","options":{"num_ctx":99999}`, `"input":"x","options":{"num_ctx":65536}`, "num_ctx=65536", 0},
		{"more than the key may, as much as the model has", api.Parameters{NumCtx: 65536}, Embed, key("num_ctx", api.VerbMost, 8192), `"input":"x","options":{"num_ctx":65536}`, `"input":"x","options":{"num_ctx":8192}`, "num_ctx=8192", 0},

		{"less context than the model has", api.Parameters{Context: 16384}, Embed, nil, `"input":"x","options":{"num_ctx":4096,"seed":1}`, `"input":"x","options":{"seed":1}`, "num_ctx dropped", 0},
		{"as much context as the servers use", api.Parameters{Context: 16384}, Embed, nil, `"input":"x","options":{"num_ctx":16384.0}`, `"input":"x","options":{}`, "num_ctx dropped", 0},
		{"more context than the servers use", api.Parameters{Context: 16384}, Embed, nil, `"input":"x","options":{"num_ctx":16385}`, "", "", 0},
		{"lowered to what the model has", api.Parameters{NumCtx: 65536, Context: 65536}, Embed, nil, `"input":"x","options":{"num_ctx":99999}`, `"input":"x","options":{}`, "num_ctx dropped", 0},
		{"a prompt that may not fit", api.Parameters{Context: 16384}, Embed, nil, `"input":"` + strings.Repeat("x", 400) + `","options":{"num_ctx":64}`, "", "", 0},
		{"a negative context", api.Parameters{Context: 16384}, Embed, nil, `"input":"x","options":{"num_ctx":-1}`, "", "", 0},
		{"a model that is partly on the card", api.Parameters{Context: 16384, Split: true}, Embed, nil, `"input":"x","options":{"num_ctx":4096}`, "", "", 0},
		{"less context, and the policy says pass", api.Parameters{Context: 16384}, Embed, key("num_ctx", api.VerbPass, 0), `"input":"x","options":{"num_ctx":4096}`, "", "", 0},
		{"less context, pinned", api.Parameters{Context: 16384}, Embed, key("num_ctx", api.VerbSet, 4096), `"input":"x","options":{"num_ctx":4096}`, "", "", 0},
		{"less context, of an admin", api.Parameters{Context: 16384}, Embed, func(t *Terms) { t.Policed = false }, `"input":"x","options":{"num_ctx":4096}`, "", "", 0},
	} {
		terms := standard()
		terms.Own = func(m api.Model) api.Parameters {
			if m.String() != "a:latest" {
				t.Errorf("%s: got a question about %s, want only its own model", c.name, m)
			}
			return c.own
		}
		if c.change != nil {
			c.change(terms)
		}
		req, err := c.kind.Read(BodyOf([]byte(`{"model":"a",`+c.in+`}`)), terms)
		if err != nil {
			t.Errorf("%s: got error %v, want none", c.name, err)
			continue
		}
		want := c.out
		if want == "" {
			want = c.in
		}
		if got := strings.Join(req.Changes, ", "); req.Body.String() != `{"model":"a",`+want+`}` || got != c.changes || req.MaxOutput != c.most {
			t.Errorf("%s: got %s, want %s; got changes %q, want %q; got MaxOutput %d, want %d", c.name, req.Body, want, got, c.changes, req.MaxOutput, c.most)
		}
	}
}

// Models come from Ollama's registry and go there, unless a setting names another host. No key's policy changes that.
func TestRegistries(t *testing.T) {
	for _, c := range []struct {
		kind    Kind
		body    string
		allowed bool
		out     string
	}{
		{Transfer, `{"model":"llama3.2","insecure":true}`, true, `{"model":"llama3.2"}`},
		{Transfer, `{"model":"evil.example:8443/a/b"}`, false, ""},
		{Transfer, `{"model":"10.0.0.1:80/a/b","insecure":true}`, false, ""},
		{Transfer, `{"model":"http://evil.example/a/b"}`, false, ""},
		{Transfer, `{"name":"evil.example/a/b"}`, false, ""},
		{Transfer, `{"model":"HF.co/a/b","insecure":true}`, true, `{"model":"HF.co/a/b","insecure":true}`},
		{Create, `{"model":"x","from":"evil.example/a/b"}`, false, ""},
		{Create, `{"model":"x","from":"llama3.2"}`, true, ""},
		{Create, `{"model":"x","from":"a","remote_host":"evil.example"}`, false, ""},
		{Create, `{"model":"x:cloud","from":"a","remote_host":"https://ollama.com"}`, true, ""},
	} {
		for _, terms := range []*Terms{{Registries: []string{"hf.co"}}, {Registries: []string{"hf.co"}, Policed: true, Standard: Standard(1, 1, 1)}} {
			req, err := c.kind.Read(BodyOf([]byte(c.body)), terms)
			if (err == nil) != c.allowed {
				t.Errorf("%s: got error %v, want allowed %v", c.body, err, c.allowed)
			} else if c.out != "" && req.Body.String() != c.out {
				t.Errorf("%s: got the body %s", c.body, req.Body)
			}
		}
	}
}

func TestPolicyTexts(t *testing.T) {
	var p api.Policy
	if err := json.Unmarshal([]byte(`{"num_ctx":"max:8192","keep_alive":"set:1h","raw":"refuse","max_tokens":"default:100"}`), &p); err != nil || p.Validate() != nil {
		t.Fatalf("got error %v and %v, want none", err, p.Validate())
	}
	if out, err := json.Marshal(p); err != nil || string(out) != `{"keep_alive":"set:3600","max_tokens":"default:100","num_ctx":"max:8192","raw":"refuse"}` {
		t.Errorf("got %s, error %v, want the same policy again", out, err)
	}
	for _, text := range []string{`{"num_ctx":"max"}`, `{"num_ctx":"max:x"}`, `{"raw":"pass:1"}`, `{"raw":""}`, `{"num_ctx":1}`} {
		p = nil
		if err := json.Unmarshal([]byte(text), &p); err == nil && p.Validate() == nil {
			t.Errorf("%s was accepted as %v, want an error", text, p)
		}
	}
	for _, text := range []string{`{"raw":"max:1"}`, `{"nothing":"drop"}`, `{"num_ctx":"max:0"}`, `{"num_ctx":"burn"}`} {
		p = nil
		if err := json.Unmarshal([]byte(text), &p); err == nil && p.Validate() == nil {
			t.Errorf("%s was accepted as %v, want an error", text, p)
		}
	}
	for _, text := range []string{"", "num_ctx", "num_ctx=", "a b c=drop", "../x num_ctx=drop"} {
		if p, err := api.ParseModelPolicy(text); err == nil {
			t.Errorf("%q was accepted as %v, want an error", text, p)
		}
	}
	// Each field of the table has an action, and each action belongs to a field.
	for field := range api.PolicyFields {
		if _, ok := Standard(1, time.Second, 1)[field]; !ok {
			t.Errorf("got no action for %s, want one", field)
		}
	}
	if err := Standard(1, time.Second, 1).Validate(); err != nil {
		t.Error(err)
	}
}

// A model that runs off-site cannot get a name that hides it.
func TestCloudModelsKeepTheirNames(t *testing.T) {
	for body, kind := range map[string]Kind{
		`{"source":"big:cloud","destination":"mine"}`:                                 Copy,
		`{"model":"mine","from":"big:120b-cloud"}`:                                    Create,
		`{"model":"mine","from":"a","remote_host":"https://ollama.com"}`:              Create,
		`{"model":"mine","from":"a","remote_host":"ollama.com","parameters":{"a":1}}`: Create,
	} {
		if _, err := kind.Read(BodyOf([]byte(body)), &Terms{}); api.AsError(err).Code != api.CodeBadRequest {
			t.Errorf("%s: got error %v, want %s", body, err, api.CodeBadRequest)
		}
	}
	for body, kind := range map[string]Kind{
		`{"source":"big:cloud","destination":"mine:cloud"}`: Copy,
		`{"source":"tiny","destination":"mine"}`:            Copy,
		`{"model":"mine:8b-cloud","from":"big:120b-cloud"}`: Create,
		`{"model":"mine","from":"tiny"}`:                    Create,
	} {
		if _, err := kind.Read(BodyOf([]byte(body)), &Terms{}); err != nil {
			t.Errorf("%s: got error %v", body, err)
		}
	}
}

// The meaning of a policy's verbs for fields that are absent, null or empty.
func TestFinePointsOfPolicies(t *testing.T) {
	standard := Standard(4096, time.Hour, 100)
	policy := func(field, action string) api.Policy {
		var a api.Action
		if err := a.UnmarshalText([]byte(action)); err != nil {
			t.Fatal(err)
		}
		return api.Policy{field: a}
	}
	for _, c := range []struct {
		key     api.Policy
		in      string // fields of a body
		changes string // "403" is a refusal
	}{
		{policy("shift", "refuse"), `"prompt":"x","shift":false`, "403"},
		{policy("use_mmap", "refuse"), `"prompt":"x","options":{"use_mmap":false}`, "403"},
		{policy("raw", "refuse"), `"prompt":"x","raw":false,"template":""`, "num_predict=100"},
		{policy("keep_alive", "default:10m"), `"prompt":"x"`, "keep_alive=600s, num_predict=100"},
		{policy("keep_alive", "set:30"), `"prompt":"x","keep_alive":30`, "num_predict=100"},
		{nil, `"prompt":"x","keep_alive":1`, "keep_alive dropped, num_predict=100"},
		{nil, `"prompt":"x","keep_alive":"59s"`, "keep_alive dropped, num_predict=100"},
		{nil, `"prompt":"x","keep_alive":60`, "num_predict=100"},
		{nil, `"keep_alive":1`, "403"},
		{nil, `"keep_alive":"5m"`, "num_predict=100"},
		{nil, `"keep_alive":-1`, "keep_alive dropped, num_predict=100"},
	} {
		req, err := Generate.Read(BodyOf([]byte(`{"model":"tiny",`+c.in+`}`)), &Terms{Policed: true, Key: c.key, Standard: standard})
		switch {
		case c.changes == "403":
			if api.AsError(err).Code != api.CodeForbidden {
				t.Errorf("%v %s: got error %v, want %s", c.key, c.in, err, api.CodeForbidden)
			}
		case err != nil:
			t.Errorf("%v %s: got error %v", c.key, c.in, err)
		default:
			if got := strings.Join(req.Changes, ", "); got != c.changes {
				t.Errorf("%v %s: got %q, want %q", c.key, c.in, got, c.changes)
			}
		}
	}
}
