// Package bodies compares what the gateway authorises with what Ollama's own decoder reads from the forwarded bytes. It is a module
// of its own, so that the program contains nothing of Ollama.
package bodies

//lint:file-ignore SA1019 Ollama reads the deprecated names too, so they must be looked at

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/anthropic"
	ollama "github.com/ollama/ollama/api"
	"github.com/ollama/ollama/openai"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

// bound is what Ollama has read. Fields that a route does not have are empty.
type bound struct {
	models         []string
	stream         *bool
	keepAlive      *ollama.Duration
	options        map[string]any
	shift          *bool
	template       string
	debug          bool
	insecure       bool
	searches       bool
	generates      bool
	remote         string
	usageInStreams bool
}

// binders are Ollama's routes: the request struct of each handler (server/routes.go), then the conversion that its middleware makes
// for the other dialects (middleware/openai.go, middleware/anthropic.go).
var binders = map[dialect.Kind]func([]byte) (bound, error){
	dialect.Generate: func(body []byte) (bound, error) {
		r, err := decode[ollama.GenerateRequest](body)
		return generate(r), err
	},
	dialect.Chat: func(body []byte) (bound, error) {
		r, err := decode[ollama.ChatRequest](body)
		return chat(r), err
	},
	dialect.Embed: func(body []byte) (bound, error) {
		r, err := decode[ollama.EmbedRequest](body)
		return bound{models: []string{r.Model}, keepAlive: r.KeepAlive, options: r.Options}, err
	},
	dialect.Embeddings: func(body []byte) (bound, error) {
		r, err := decode[ollama.EmbeddingRequest](body)
		return bound{models: []string{r.Model}, keepAlive: r.KeepAlive, options: r.Options}, err
	},
	dialect.Show: func(body []byte) (bound, error) {
		r, err := decode[ollama.ShowRequest](body)
		return bound{models: []string{first(r.Model, r.Name)}}, err
	},
	dialect.Transfer: func(body []byte) (bound, error) {
		// A push has the same fields as a pull.
		r, err := decode[ollama.PushRequest](body)
		return bound{models: []string{first(r.Model, r.Name)}, stream: r.Stream, insecure: r.Insecure}, err
	},
	dialect.Create: func(body []byte) (bound, error) {
		r, err := decode[ollama.CreateRequest](body)
		b := bound{models: []string{first(r.Model, r.Name)}, stream: r.Stream, remote: r.RemoteHost}
		if r.From != "" {
			b.models = append(b.models, r.From)
		}
		return b, err
	},
	dialect.Copy: func(body []byte) (bound, error) {
		r, err := decode[ollama.CopyRequest](body)
		return bound{models: []string{r.Source, r.Destination}}, err
	},
	dialect.Delete: func(body []byte) (bound, error) {
		r, err := decode[ollama.DeleteRequest](body)
		return bound{models: []string{first(r.Model, r.Name)}}, err
	},
	dialect.OpenAIChat: func(body []byte) (bound, error) {
		r, err := decode[openai.ChatCompletionRequest](body)
		if err != nil {
			return bound{}, err
		}
		to, err := openai.FromChatRequest(r)
		if err != nil {
			return bound{}, err
		}
		b := chat(*to)
		b.usageInStreams = r.StreamOptions != nil && r.StreamOptions.IncludeUsage
		return b, nil
	},
	dialect.OpenAICompletions: func(body []byte) (bound, error) {
		r, err := decode[openai.CompletionRequest](body)
		if err != nil {
			return bound{}, err
		}
		to, err := openai.FromCompleteRequest(r)
		b := generate(to)
		b.usageInStreams = r.StreamOptions != nil && r.StreamOptions.IncludeUsage
		return b, err
	},
	dialect.OpenAIEmbeddings: func(body []byte) (bound, error) {
		r, err := decode[openai.EmbedRequest](body)
		return bound{models: []string{r.Model}}, err
	},
	dialect.OpenAIResponses: func(body []byte) (bound, error) {
		r, err := decode[openai.ResponsesRequest](body)
		if err != nil {
			return bound{}, err
		}
		to, err := openai.FromResponsesRequest(r)
		if err != nil {
			return bound{}, err
		}
		b := chat(*to)
		b.stream = r.Stream // its middleware reads this field
		for _, tool := range r.Tools {
			b.searches = b.searches || strings.HasPrefix(tool.Type, "web_search")
		}
		// Later versions read lists of tools within tools, and may search them for hosted tools too.
		nested, err := decode[struct{ Tools []nestedTool }](body)
		b.searches = b.searches || slices.ContainsFunc(nested.Tools, nestedTool.searches)
		return b, err
	},
	dialect.AnthropicMessages: func(body []byte) (bound, error) {
		r, err := decode[anthropic.MessagesRequest](body)
		switch {
		case err != nil:
			return bound{}, err
		case r.MaxTokens <= 0:
			return bound{}, fmt.Errorf("max_tokens is required") // as in its middleware
		}
		to, err := anthropic.FromMessagesRequest(r)
		if err != nil {
			return bound{}, err
		}
		b := chat(*to)
		for _, tool := range r.Tools {
			b.searches = b.searches || strings.HasPrefix(tool.Type, "web_search")
		}
		return b, nil
	},
}

// nestedTool is a tool of /v1/responses in the Ollama versions that know namespaces.
type nestedTool struct {
	Type  string       `json:"type"`
	Tools []nestedTool `json:"tools"`
}

func (t nestedTool) searches() bool {
	return strings.HasPrefix(t.Type, "web_search") || slices.ContainsFunc(t.Tools, nestedTool.searches)
}

// decode reads a body as gin does: only its first value.
func decode[T any](body []byte) (T, error) {
	var v T
	err := json.NewDecoder(bytes.NewReader(body)).Decode(&v)
	return v, err
}

func first(model, name string) string {
	if model != "" {
		return model
	}
	return name
}

func generate(r ollama.GenerateRequest) bound {
	return bound{
		models: []string{r.Model}, stream: r.Stream, keepAlive: r.KeepAlive, options: r.Options, shift: r.Shift, template: r.Template,
		debug: r.DebugRenderOnly, generates: true,
	}
}

func chat(r ollama.ChatRequest) bound {
	return bound{
		models: []string{r.Model}, stream: r.Stream, keepAlive: r.KeepAlive, options: r.Options, shift: r.Shift,
		debug: r.DebugRenderOnly, generates: true,
	}
}

const (
	mostContext = 4096
	mostTokens  = 100
	ownTokens   = 64 // of a model with its own bound
	mostKept    = time.Hour
)

var seeds = []string{
	`{"model":"tiny","messages":[{"role":"user","content":"x"}],"stream":false}`,
	`{"model":"ok","Model":"evil","prompt":"x"}`,
	`{"mode\u006c":"tiny","prompt":"x"}`,
	`{"model":"tiny","ſtream":false,"prompt":"x"}`,
	`{"name":"tiny","model":"","prompt":"x"}`,
	`{"model":"library/Tiny:LATEST","prompt":"x","options":{"num_predict":-1,"num_ctx":1000000000,"num_gpu":0}}`,
	`{"model":"tiny","prompt":"","keep_alive":0}`,
	`{"model":"tiny","messages":[],"keep_alive":"-1s"}`,
	`{"model":"tiny","prompt":"x","keep_alive":"9999h","raw":true,"template":"{{.}}","shift":true}`,
	`{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":1e30,"options":{"num_predict":1e300,"use_mmap":true}}`,
	`{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_completion_tokens":5,"max_tokens":null,"stream":true,"stream_options":{"include_usage":false}}`,
	`{"model":"tiny","input":"x","max_output_tokens":0,"stream":true,"tools":[{"type":"web_search"}]}`,
	`{"model":"tiny","input":"x","tools":[{"type":"namespace","name":"n","tools":[{"type":"web_search"},{"type":"function","name":"f"}]},{"type":"web_search"}],"tool_choice":{"type":"web_search"}}`,
	`{"model":"claude-x","max_tokens":-5,"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"tools":[{"type":"web_search_20250305","name":"web_search"}]}`,
	`{"source":"tiny","destination":"10.0.0.1:80/a/b"}`,
	`{"model":"evil.example/a/b","insecure":true}`,
	`{"model":"new","from":"tiny:cloud","remote_host":"https://ollama.com"}`,
	`{"model":"tiny","_debug_render_only":true,"prompt":"x"}`,
	`{"model":"tiny"} {"model":"evil"}`,
	"{\"model\":\"ti\xffny\"}",
}

// FuzzWhatOllamaBinds: for every accepted body, Ollama reads from the forwarded bytes what was authorised: the models, the stream
// setting, and in a user's body nothing that the policy forbids.
func FuzzWhatOllamaBinds(f *testing.F) {
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil))) // Ollama logs each unknown option
	for _, seed := range seeds {
		for kind := range binders {
			f.Add(uint8(kind), []byte(seed))
		}
	}
	alias, err := api.ParseAlias("claude-*=tiny")
	if err != nil {
		f.Fatal(err)
	}
	user := &dialect.Terms{Aliases: api.Aliases{alias}, Policed: true, Standard: dialect.Standard(mostContext, mostKept, mostTokens), DropHosted: true}
	small := *user
	small.Own = func(api.Model) api.Parameters { return api.Parameters{NumPredict: ownTokens} }
	admin := &dialect.Terms{Aliases: user.Aliases, DropHosted: true}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		k := dialect.Kind(kind)
		bind, known := binders[k]
		if !known {
			return
		}
		for _, body := range [][]byte{data, assemble(data)} {
			for _, terms := range []*dialect.Terms{user, &small, admin} {
				req, err := k.Read(dialect.BodyOf(bytes.Clone(body)), terms)
				if err != nil {
					continue
				}
				b, err := bind(req.Body.Bytes())
				if err != nil {
					continue // Ollama refuses it
				}
				if err := differs(k, req, b); err != nil {
					t.Fatalf("kind %d: %v\nsent      %q\nforwarded %q", k, err, body, req.Body)
				}
				if err := exceeds(k, b, terms); terms.Policed && err != nil {
					t.Fatalf("kind %d: %v\nsent      %q\nforwarded %q", k, err, body, req.Body)
				}
			}
		}
	})
}

var (
	names = strings.Fields(`model model model name Model MODEL mode\u006c stream stream ſtream keep_alive Keep_alive options options options template raw shift
		_debug_render_only max_tokens max_completion_tokens max_output_tokens stream_options tools prompt messages input from source destination
		insecure remote_host num_predict num_ctx num_gpu use_mmap num_batch temperature include_usage type NUM_CTX tool_choice Tools`)
	values = strings.Split(`"tiny"|"tiny"|"tiny"|"evil"|" Tiny:latest "|"library/tiny"|"registry.ollama.ai/library/tiny"|"10.0.0.1:8080/a/b"|"x:cloud"|"claude-x"|""|null|true|false|0|-1|1|0.5|7|4096|4097|99999|1e300|-1e300|1e-9|2147483648|"5m"|"-1s"|"9999h"|"999ms"|"x"|[]|{}|[{"role":"user","content":"x"}]|[{"type":"web_search"}]|[{"tools":[{"type":"web_search"},{"name":"f"}]},{"type":"mcp"}]|[{"type":"function","name":"f"},{"Type":"web_search"}]|[{"type":"function","function":{"name":"f"}}]|[{"type":"web_search_20250305","name":"s"}]|{"include_usage":false}`, "|")
)

// assemble makes an object of known fields out of random bytes: two bytes per field. Some fields are one level deeper, like options.
func assemble(data []byte) []byte {
	b := []byte{'{'}
	deep := false
	for ; len(data) >= 2 && len(b) < 2000; data = data[2:] {
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), names[int(data[0])%len(names)]...), '"', ':')
		if data[1] >= 250 && !deep {
			b, deep = append(b, '{'), true
			continue
		}
		b = append(b, values[int(data[1])%len(values)]...)
		if deep && data[1]%4 == 0 {
			b, deep = append(b, '}'), false
		}
	}
	if deep {
		b = append(b, '}')
	}
	return append(b, '}')
}

// differs returns an error that says what Ollama would do without authorisation, or nil.
func differs(k dialect.Kind, req *dialect.Request, b bound) error {
	if len(b.models) != len(req.Models) {
		return fmt.Errorf("authorised the models %v, Ollama reads %q", req.Models, b.models)
	}
	for i, name := range b.models {
		if m, _, err := api.ParseModel(name); err != nil || m != req.Models[i] {
			return fmt.Errorf("authorised the model %v, Ollama reads %q", req.Models[i], name)
		}
	}
	stream := k.Streams()
	if b.stream != nil {
		stream = *b.stream
	}
	if knows := b.generates || k == dialect.Transfer || k == dialect.Create; knows && stream != req.Stream {
		return fmt.Errorf("authorised stream %v, Ollama reads %v", req.Stream, stream)
	}
	if k.Family() == dialect.OpenAI && b.generates && req.Stream && !b.usageInStreams {
		return fmt.Errorf("Ollama would stream without usage")
	}
	for _, m := range req.Models {
		if hosted := k == dialect.Transfer || k == dialect.Create; hosted && m.Host != api.DefaultHost {
			return fmt.Errorf("Ollama would use a model of the host %s", m.Host)
		}
	}
	switch {
	case b.insecure:
		return fmt.Errorf("Ollama would transfer without TLS")
	case b.remote != "" && !req.Remote:
		return fmt.Errorf("Ollama would create a model that runs off-site under a local name")
	case b.searches:
		return fmt.Errorf("Ollama would run a web search")
	}
	return nil
}

// exceeds returns an error if a user's body goes beyond the policy, or nil. It reads the options as the runner gets them.
func exceeds(k dialect.Kind, b bound, terms *dialect.Terms) error {
	switch {
	case k == dialect.Create || k == dialect.Transfer || k == dialect.Copy || k == dialect.Delete || k == dialect.Show:
		return nil // an admin creates models, and showing a template or option has no effect
	case b.debug || b.template != "" || b.shift != nil:
		return fmt.Errorf("Ollama would read a field that users may not set")
	case b.keepAlive != nil && (b.keepAlive.Duration < time.Second || b.keepAlive.Duration > mostKept):
		return fmt.Errorf("keep_alive %v", b.keepAlive.Duration)
	}
	// Ollama applies the model's options, then the request's.
	got := ollama.DefaultOptions()
	if terms.Own != nil {
		got.NumPredict = ownTokens
	}
	standard := got.Runner
	if err := got.FromMap(b.options); err != nil {
		return nil // it refuses them
	}
	standard.NumCtx = got.NumCtx
	if got.NumCtx > mostContext { // a value below four counts as four
		return fmt.Errorf("num_ctx %d", got.NumCtx)
	}
	if got.Runner != standard {
		return fmt.Errorf("load-time options %+v", got.Runner)
	}
	if b.generates && got.NumPredict < 1 {
		return fmt.Errorf("num_predict %d", got.NumPredict)
	}
	return nil
}
