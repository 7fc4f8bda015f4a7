package e2e

import (
	"cmp"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// order is one case that a client gets, and got is the result that its user sees. The JSON is the same for every client.
type order struct {
	Call    string `json:"call"`
	URL     string `json:"url"`
	Key     string `json:"key"`
	Model   string `json:"model"`
	Patient bool   `json:"patient"` // the client may repeat it with pauses
}

type got struct {
	OK         bool   `json:"ok"`
	Text       string `json:"text"`
	Prompt     int    `json:"prompt"`
	Completion int    `json:"completion"`
	Type       string `json:"type"` // of the exception
	Says       string `json:"says"` // what the user reads
	Status     int    `json:"status"`
	ID         string `json:"id"` // of the request, where the client has a place for it
	Ms         int    `json:"ms"`
}

// program is a client: the calls that it makes, and how to start it.
type program struct {
	name, version string
	calls         []attempt
	play          func(*testing.T, []order) []got
	wrongKey      string // type of the exception for a wrong key
	tellsID       bool   // its exceptions have a field for the request's id
	recipe        string // the recipe that sets it up, if it is an agent
	slow          bool   // the program starts for each case, and shows an answer only when it is complete
	patience      int    // milliseconds within which its user sees a refusal; 0 means sdkPatience
	skips         []string
}

// attempt is one call that a client can make.
type attempt struct {
	name   string
	traits trait
	like   string            // the attempt that must have the same answer
	says   map[string]string // by situation, if this call's message differs from the usual one
}

type trait uint

const (
	streamed  trait = 1 << iota
	counted         // counts towards the key's request limit
	modelled        // names a model
	modern          // needs an Ollama newer than the real one here
	own             // the service itself answers
	uncounted       // its answer carries no token counts
	refused         // is for admins
	lists           // its answer is the models that the key may use
	scripted        // needs more than the tiny model of the real Ollama can do, such as calling tools
)

const asks = counted | modelled

func (a attempt) is(t trait) bool { return a.traits&t == t }

// place is a service and the keys of the cases.
type place struct{ url, key, spent, narrow string }

// stage has three services: one with the real Ollama, one with a newer scripted Ollama whose models fail, and one whose Ollama is down.
type stage struct{ real, modern, gone place }

func setStage(t *testing.T) *stage {
	real := serve(t)
	fake := ollamatest.Start(t)
	fake.Models("tiny:latest", "llama2:latest", "dies:latest", "stops:latest", "begins:latest", "nearly:latest", "silent:latest")
	for _, path := range []string{"/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"} {
		fake.Handle("POST", path, mortal)
	}
	modern := start(t, t.TempDir(), fake.URL, nil, "UPSTREAM_IDLE_TIMEOUT=3s")
	lost := ollamatest.Start(t)
	without := start(t, t.TempDir(), lost.URL, nil)
	st := &stage{real: real.place(t), modern: modern.place(t), gone: without.place(t)}
	lost.Close()
	return st
}

// mortal is an Ollama that fails by the name of the model. "dies" breaks the connection in the middle, "begins" within the first record of
// a stream, "nearly" just before the last record. "stops" ends the stream without the last record, and "silent" stops sending within it.
func mortal(r *ollamatest.Request) ollamatest.Answer {
	var body struct {
		Model, Prompt string
		Stream        *bool
	}
	_ = json.Unmarshal(r.Body, &body) // Ollama also answers a body that it cannot parse
	body.Model = strings.TrimSuffix(body.Model, ":latest")
	embeds, unloads := strings.Contains(r.Path, "embed"), r.Path == "/api/generate" && body.Prompt == ""
	stream := body.Stream == nil && strings.HasPrefix(r.Path, "/api/") || body.Stream != nil && *body.Stream
	a := ollamatest.Answer{Tokens: 8}
	if body.Model == "nope" {
		return ollamatest.Answer{}
	}
	if embeds || unloads {
		a.Tokens = 0 // as recorded
	}
	switch {
	case body.Model == "tiny" && r.Path == "/v1/messages" && stream:
		// Claude Code ignores an answer that ends at a limit.
		a.Chunks = ollamatest.MessageEvents(body.Model, 17, a.Tokens)
		for i, event := range a.Chunks {
			a.Chunks[i] = strings.Replace(event, `"stop_reason":"max_tokens"`, `"stop_reason":"end_turn"`, 1)
		}
		a.Tokens = 0
	case body.Model == "dies" && stream && !embeds && !unloads:
		a.Tokens, a.Fault, a.FaultAt = 5*a.Tokens, ollamatest.Close, 1800
	case body.Model == "dies":
		a.Fault, a.FaultAt = ollamatest.Close, ollamatest.AfterHeader
	case body.Model == "stops":
		a.NoTerminal = true
	case body.Model == "begins":
		a.Fault, a.FaultAt = ollamatest.Reset, 200
	case body.Model == "nearly":
		a.NoTerminal, a.Fault, a.FaultAt = true, ollamatest.Reset, ollamatest.AtEnd
	case body.Model == "silent" && r.Path == "/v1/messages" && !stream:
		a.Fault, a.FaultAt = ollamatest.Hang, ollamatest.AfterHeader // Claude Code sends such a request once more
	case body.Model == "silent":
		gate := make(chan struct{}, 8)
		for range cap(gate) {
			gate <- struct{}{}
		}
		a.Tokens, a.Gate = 9, gate
	}
	return a
}

// place creates the keys of the cases.
func (s *service) place(t *testing.T) place {
	t.Helper()
	p := place{url: s.URL, key: s.makeKey(t, `,"rate_limit":100000`).Secret, spent: s.makeKey(t, `,"rate_limit":1`).Secret, narrow: s.makeKey(t, `,"models":["tiny"]`).Secret}
	call(t, "POST", s.URL+"/api/generate", p.spent, oneToken).want(t, http.StatusOK)
	return p
}

// situation is something that may happen to an attempt, with the message that the user of every client must then see.
type situation struct {
	name  string
	tried func(attempt) bool
	order func(*stage, attempt) order
	says  string // "" for a good answer
}

const (
	good       = "a good call"
	goodStream = "a stream"
	wrongKey   = "a wrong key"
	atLimit    = "the key's limit is used up"
	hidden     = "a model that the key may not use"
	unknown    = "a model that is not there"
	forAdmins  = "a call for admins with a user's key"

	mayNotUnload = "this key may not unload a model, which others may be using"

	killed = "Ollama is killed in the middle of a stream"
	nearly = "Ollama is killed just before the end of a stream"
	silent = "Ollama falls silent in the middle of a stream"
	begins = "Ollama is killed within the first record of a stream"
	stops  = "the stream ends without its end"
	tooOld = "Ollama is too old for the call"
	died   = "Ollama is killed before it has answered"
	gone   = "Ollama cannot be reached"
)

// midStream are the situations in which a part of the answer must come before the failure.
var midStream = []string{killed, nearly, silent}

var situations = []situation{
	{good, func(a attempt) bool { return !a.is(streamed) && !a.is(refused) }, (*stage).fine, ""},
	{goodStream, func(a attempt) bool { return a.is(streamed) }, (*stage).fine, ""},
	{
		wrongKey, func(attempt) bool { return true },
		func(s *stage, a attempt) order {
			o := s.fine(a)
			o.Key = "oas_0000000000_00000000000000000000000000000000000000"
			return o
		}, "this API key is not valid: unknown, revoked or expired",
	},
	{
		atLimit, func(a attempt) bool { return a.is(counted) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.at(a).url, Key: s.at(a).spent, Model: "tiny"}
		},
		"Rate limit exceeded",
	},
	{
		hidden, func(a attempt) bool { return a.is(modelled) && !a.is(refused) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.at(a).url, Key: s.at(a).narrow, Model: "llama2"}
		},
		"model 'llama2:latest' not found",
	},
	{
		unknown, func(a attempt) bool { return a.is(modelled) && !a.is(refused) && !a.is(own) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.at(a).url, Key: s.at(a).key, Model: "nope"}
		},
		"not found",
	},
	{
		forAdmins, func(a attempt) bool { return a.is(refused) }, (*stage).fine,
		"this needs an admin key",
	},
	{
		killed, func(a attempt) bool { return a.is(streamed) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.modern.url, Key: s.modern.key, Model: "dies", Patient: true}
		},
		"the connection to the Ollama server broke: try again",
	},
	{
		begins, func(a attempt) bool { return a.is(streamed) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.modern.url, Key: s.modern.key, Model: "begins", Patient: true}
		},
		"the connection to the Ollama server broke: try again",
	},
	{
		nearly, func(a attempt) bool { return a.is(streamed) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.modern.url, Key: s.modern.key, Model: "nearly", Patient: true}
		},
		"the connection to the Ollama server broke: try again",
	},
	{
		silent, func(a attempt) bool { return a.is(streamed) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.modern.url, Key: s.modern.key, Model: "silent", Patient: true}
		},
		"the Ollama server stopped sending in the middle of its answer: try again",
	},
	{
		died, func(a attempt) bool { return a.is(asks) && !a.is(streamed) && !a.is(refused) && !a.is(own) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.modern.url, Key: s.modern.key, Model: "dies", Patient: true}
		},
		"the connection to the Ollama server broke: try again",
	},
	{
		stops, func(a attempt) bool { return a.is(streamed) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.modern.url, Key: s.modern.key, Model: "stops", Patient: true}
		},
		"the answer of the Ollama server ended too early: try again",
	},
	{
		gone, func(a attempt) bool { return !a.is(own) && !a.is(refused) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.gone.url, Key: s.gone.key, Model: "tiny", Patient: true}
		},
		"the Ollama server cannot be reached",
	},
	{
		tooOld, func(a attempt) bool { return a.is(modern) },
		func(s *stage, a attempt) order {
			return order{Call: a.name, URL: s.real.url, Key: s.real.key, Model: "tiny"}
		},
		"or newer: ask the operator for an upgrade",
	},
}

// at returns the place where the attempt can succeed.
func (s *stage) at(a attempt) place {
	if a.is(modern) || a.is(scripted) {
		return s.modern
	}
	return s.real
}

func (s *stage) fine(a attempt) order {
	return order{Call: a.name, URL: s.at(a).url, Key: s.at(a).key, Model: "tiny"}
}

// outcome is one result, from which docs/clients.md is generated.
type outcome struct {
	situation, attempt string
	got                got
}

// Every client gets the same cases. The test checks the results and compares them with the table in docs/clients.md.
func TestClients(t *testing.T) {
	t.Parallel()
	programs := allPrograms(t)
	outcomes := make([][]outcome, len(programs))
	t.Run("client", func(t *testing.T) {
		st := setStage(t)
		for i, p := range programs {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				outcomes[i] = p.perform(t, st)
			})
		}
	})
	if !t.Failed() && !slices.ContainsFunc(outcomes, func(o []outcome) bool { return o == nil }) {
		checkClientTable(t, programs, outcomes)
	}
}

// perform runs all cases of a client and checks each result.
func (p program) perform(t *testing.T, st *stage) []outcome {
	var outcomes []outcome
	var orders []order
	for _, s := range situations {
		for _, a := range p.calls {
			if s.tried(a) && !slices.Contains(p.skips, s.name) {
				orders = append(orders, s.order(st, a))
				outcomes = append(outcomes, outcome{situation: s.name, attempt: a.name})
			}
		}
	}
	results := p.play(t, orders)
	if len(results) != len(orders) {
		t.Fatalf("%d cases, %d results", len(orders), len(results))
	}
	for i := range outcomes {
		outcomes[i].got = results[i]
		outcomes[i].got.Says = steady(results[i].Says, orders[i].URL)
	}
	answers, slowest := map[string]got{}, 0
	for _, o := range outcomes {
		if o.got.OK {
			slowest = max(slowest, o.got.Ms)
		}
	}
	for _, o := range outcomes {
		a := p.calls[slices.IndexFunc(p.calls, func(a attempt) bool { return a.name == o.attempt })]
		s := situations[slices.IndexFunc(situations, func(s situation) bool { return s.name == o.situation })]
		if s.says == "" {
			a.checkAnswer(t, o.got, answers)
			continue
		}
		p.checkFailure(t, s, a, o.got, slowest)
	}
	return outcomes
}

var (
	clockTime = regexp.MustCompile(`\b\d{1,2}:\d{2}( [AP]M)?\b|\b1[7-9]\d{8}\b`) // as a clock shows it, or in seconds since 1970
	uuidForm  = regexp.MustCompile(`\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`)
)

// steady returns the text that a user sees, in one line, without the parts that differ in each run: the port, ids and times.
func steady(says, url string) string {
	says = strings.ReplaceAll(says, "\n", " ")
	says = strings.ReplaceAll(says, strings.TrimPrefix(url, "http://"), "localhost:8000")
	return uuidForm.ReplaceAllString(clockTime.ReplaceAllString(says, "TIME"), "ID")
}

// checkAnswer checks successful calls: they have an answer with counts, and the streamed answer equals the one in one piece.
func (a attempt) checkAnswer(t *testing.T, g got, answers map[string]got) {
	t.Helper()
	answers[a.name] = g
	switch like, known := answers[a.like]; {
	case !g.OK || strings.TrimSpace(g.Text) == "" || g.Says != "":
		t.Errorf("%s: %+v", a.name, g)
	case a.is(lists) && !strings.Contains(g.Text, "tiny:latest"):
		t.Errorf("%s: the model is not listed: %s", a.name, g.Text)
	case a.is(asks) && !a.is(uncounted) && (g.Prompt <= 0 || g.Completion <= 0 || g.Completion > 8 && !a.is(modern)):
		t.Errorf("%s: counts of %+v", a.name, g)
	case a.like != "" && !known:
		t.Errorf("%s: no answer of %s to compare with", a.name, a.like)
	case a.like != "" && (g.Text != like.Text || !a.is(uncounted) && (g.Prompt != like.Prompt || g.Completion != like.Completion)):
		t.Errorf("%s answered %+v, but %s answered %+v", a.name, g, a.like, like)
	}
}

// The milliseconds within which a client must show its user a refusal that waiting does not change, besides the time of its slowest good
// call, which shows how busy the machine is. An agent must start first, while other clients run. An agent that waits before a retry takes
// longer. The AI SDK repeats every 429 twice, with its own pauses.
const (
	sdkPatience   = 1000
	aiPatience    = 20_000
	agentPatience = 60_000
)

// checkFailure checks failed calls: the user soon sees the gateway's message, and no partial answer is taken for a complete one.
func (p program) checkFailure(t *testing.T, s situation, a attempt, g got, slowest int) {
	t.Helper()
	want := s.says
	if special, ok := a.says[s.name]; ok {
		want = special
	}
	if g.OK || !strings.Contains(g.Says, want) {
		t.Errorf("%s, %s: its user sees %q (%s, %d, ok %v), want %q", s.name, a.name, g.Says, g.Type, g.Status, g.OK, want)
	}
	if s.name == wrongKey && p.wrongKey != "" && g.Type != p.wrongKey {
		t.Errorf("%s, %s: %s, want %s", s.name, a.name, g.Type, p.wrongKey)
	}
	if p.tellsID && g.Status != 0 && g.ID == "" {
		t.Errorf("%s, %s: the exception lacks the request's id", s.name, a.name)
	}
	if slices.Contains([]string{wrongKey, atLimit, hidden, unknown}, s.name) && g.Ms > cmp.Or(p.patience, sdkPatience)+slowest {
		t.Errorf("%s, %s: the user sees the failure after %d ms", s.name, a.name, g.Ms)
	}
	if slices.Contains(midStream, s.name) && g.Text == "" && !p.slow {
		t.Errorf("%s, %s: no part of the answer came before the failure, so the case proves nothing", s.name, a.name)
	}
}
