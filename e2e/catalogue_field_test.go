package e2e

import (
	"fmt"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// fieldRows send valid JSON that asks for something that a user may not have.
func fieldRows(t *testing.T, g *gate) []row {
	g.fake.Models("tiny:latest", "llama3:latest")
	narrow := g.key(t, `,"models":["tiny"]`).Secret
	as := func(key, path, body string) string { return send("POST "+path, body, bearer(key)) }
	rows := []row{
		{name: "B56 name and model that differ: chat", send: g.post("/api/chat", `{"model":"tiny","name":"evil","messages":[]}`), want: 400, says: "differ"},
		{name: "B56 name and model that differ: show", send: g.post("/api/show", `{"name":"tiny","model":"evil"}`), want: 400, says: "differ"},
		{name: "B56 name and model that differ: pull", send: g.asAdmin("POST /api/pull", `{"name":"tiny","model":"evil"}`), want: 400},
		{name: "B56 name and model that differ: delete", send: g.asAdmin("DELETE /api/delete", `{"name":"tiny","model":"evil"}`), want: 400},
		{name: "B56 name and model that differ: two spellings of one", send: g.post("/api/show", `{"name":"TINY:latest","model":"tiny"}`), want: 200, ollama: reached("/api/show")},
		{name: "B57 only name on show: one that it may see", send: as(narrow, "/api/show", `{"name":"library/Tiny"}`), want: 200, ollama: reached("/api/show", `"Tiny"`)},
		{name: "B57 only name on show: one that it may not", send: as(narrow, "/api/show", `{"name":"llama3"}`), want: 404, says: "model 'llama3:latest' not found"},
		{name: "B57 only name on show: with an empty model", send: as(narrow, "/api/show", `{"model":"","name":"llama3"}`), want: 404},
	}
	for _, spelling := range []string{
		"LLaMA3", "llama3", "llama3:latest", "llama3:LATEST", "library/llama3", "LIBRARY/llama3:latest", "registry.ollama.ai/library/llama3:latest", "Registry.Ollama.AI/library/llama3",
		"https://registry.ollama.ai/library/llama3", "http://registry.ollama.ai/library/llama3:latest", "ollama://library/llama3", "llama3 ", " llama3", "\\tllama3\\n", "llama3:local", "llama3 :latest",
	} {
		for path, rest := range readers {
			rows = append(rows, row{
				name: "B58 spellings of a model that the key may not use: " + spelling + ", " + path, send: as(narrow, path, `{"model":"`+spelling+`",`+rest+`}`),
				want: 404, says: "model 'llama3:latest' not found",
			})
		}
	}
	for _, path := range []string{"/v1/models/llama3", "/v1/models/LLaMA3", "/v1/models/library%2fllama3", "/v1/models/llama3:latest", "/v1/models/%6clama3", "/v1/models/llama3%20"} {
		rows = append(rows, row{name: "B58 spellings of a model that the key may not use: " + path, send: send("GET "+path, "", bearer(narrow)), want: 404})
	}
	for _, spelling := range []string{"x:cloud", "x:8b-CLOUD", "x: cloud ", "x-cloud", "X-Cloud:latest", "a/x:cloud", "https://registry.ollama.ai/library/x:cloud", "x:Cloud:local"} {
		for _, path := range []string{"/api/chat", "/api/show", "/v1/chat/completions", "/v1/responses", "/v1/messages"} {
			for name, key := range map[string]string{"every model": g.user, "one model": narrow} {
				rows = append(rows, row{name: "B59 cloud models: " + spelling + ", " + path + ", a key for " + name, send: as(key, path, `{"model":"`+spelling+`",`+readers[path]+`}`), want: 403, says: "cloud"})
			}
		}
	}
	rows = append(rows, hostRows(g)...)
	rows = append(rows, policyRows(t, g)...)
	return append(rows, usageRows(t, g)...)
}

// hostRows name hosts that Ollama would connect to.
func hostRows(g *gate) []row {
	var rows []row
	for _, model := range []string{"host.evil/ns/m", "10.0.0.1:8443/a/b", "https://169.254.169.254/a/b", "http://localhost:9/a/b:c", "ollama://evil.example/a/b"} {
		for line, body := range map[string]string{
			"POST /api/pull": `{"model":"%s"}`, "POST /api/push": `{"name":"%s"}`, "POST /api/create": `{"model":"x","from":"%s"}`,
			"POST /api/pull, insecure": `{"model":"%s","insecure":true}`, "POST /api/create, named so": `{"model":"%s","from":"tiny"}`,
		} {
			command, _, _ := strings.Cut(line, ", ")
			rows = append(rows, row{name: "B60 hosts: " + model + ", " + line, send: g.asAdmin(command, fmt.Sprintf(body, model)), want: 403, says: "REGISTRY_HOSTS"})
		}
	}
	return append(rows,
		row{name: "B60 hosts: remote_host", send: g.asAdmin("POST /api/create", `{"model":"x","from":"tiny","remote_host":"https://evil.example"}`), want: 403},
		row{name: "B60 hosts: remote_host of Ollama itself without allow_cloud", send: g.asAdmin("POST /api/create", `{"model":"x-cloud","from":"tiny","remote_host":"https://ollama.com"}`), want: 403, says: "allow_cloud"},
		row{
			name: "B60 hosts: insecure alone", send: g.asAdmin("POST /api/pull", `{"model":"tiny","insecure":true,"stream":false}`), want: 200, has: "X-Policy: insecure dropped",
			ollama: without("/api/pull", "insecure"),
			why:    "`insecure` without a host is removed, and `X-Policy` lists it: Open WebUI sends it with each pull",
		},
		row{
			name: "B60 hosts: a chat", send: g.post("/api/chat", `{"model":"host.evil/ns/m","messages":[]}`), want: 404, by: ollamas, ollama: reached("/api/chat", "host.evil/ns/m"),
			why: "a chat with a host in the name goes to Ollama, which connects to no host for it",
		},
	)
}

// without returns a row for a request that is served without a field.
func without(path, field string) func(*testing.T, []*ollamatest.Request) {
	return func(t *testing.T, got []*ollamatest.Request) {
		t.Helper()
		reached(path)(t, got)
		if strings.Contains(string(got[0].Body), `"`+field+`"`) {
			t.Errorf("Ollama got %.300s", got[0].Body)
		}
	}
}

// policyRows set fields that affect more than the request.
func policyRows(t *testing.T, g *gate) []row {
	const changed = "fields that affect other users are changed, and `X-Policy` lists the changes (docs/policy.md)"
	capped := g.key(t, `,"policy":{"max_tokens":"max:100"}`).Secret
	served := func(name, path, fields, policy string, upstream ...string) row {
		r := row{name: name, send: g.post(path, `{"model":"tiny",`+readers[path]+`,"stream":false`+fields+`}`), want: 200, has: "X-Policy: " + policy, why: changed}
		r.ollama = reached(path, upstream...)
		return r
	}
	gone := func(name, path, fields, policy, field string) row {
		r := served(name, path, fields, policy)
		r.ollama = without(path, field)
		return r
	}
	most := func(name, path, fields, policy string, upstream ...string) row {
		r := served(name, path, fields, policy, upstream...)
		r.send = strings.Replace(r.send, g.user, capped, 1)
		return r
	}
	rows := []row{
		{name: "B61 unload: chat", send: g.post("/api/chat", `{"model":"tiny","messages":[],"keep_alive":0}`), want: 403, says: "unload"},
		{name: "B61 unload: generate", send: g.post("/api/generate", `{"model":"tiny","keep_alive":"0s"}`), want: 403, says: "unload"},
		{name: "B61 unload: less than a second", send: g.post("/api/generate", `{"model":"tiny","prompt":"","keep_alive":"999ms"}`), want: 403, says: "unload"},
		gone("B62 keep_alive: for ever", "/api/generate", `,"keep_alive":-1`, "keep_alive dropped", "keep_alive"),
		gone("B62 keep_alive: for ever, as a time", "/api/generate", `,"keep_alive":"-1m"`, "keep_alive dropped", "keep_alive"),
		served("B62 keep_alive: 9999h", "/api/generate", `,"keep_alive":"9999h"`, "keep_alive=3600s", `"keep_alive":3600`),
		{name: "B62 keep_alive: no time", send: g.post("/api/generate", `{"model":"tiny","prompt":"x","keep_alive":"for ever"}`), want: 400, says: "keep_alive"},
		served("B63 numbers: num_ctx", "/api/generate", `,"options":{"num_ctx":1000000000,"num_predict":5}`, "num_ctx=32768", `"num_ctx":32768`),
		{
			name: "B63 numbers: num_ctx below zero", send: g.post("/api/generate", `{"model":"tiny","prompt":"x","options":{"num_ctx":-1,"num_predict":5}}`), want: 200,
			ollama: reached("/api/generate", `"num_ctx":-1`), why: "Ollama raises it to 4, and refuses prompts that do not fit",
		},
		served("B63 numbers: num_predict -1", "/api/generate", `,"options":{"num_predict":-1}`, "num_predict=8192", `"num_predict":8192`),
		served("B63 numbers: max_tokens 0", "/v1/chat/completions", `,"max_tokens":0`, "max_tokens=8192", `"max_tokens":8192`),
		most("B63 numbers: max_tokens above the key's", "/v1/chat/completions", `,"max_tokens":1000000`, "max_tokens=100", `"max_tokens":100`),
		most("B63 numbers: max_completion_tokens above the key's", "/v1/chat/completions", `,"max_completion_tokens":1000000`, "max_tokens=100", `"max_tokens":100`),
		most("B63 numbers: num_predict above the key's", "/api/chat", `,"options":{"num_predict":-2}`, "num_predict=100", `"num_predict":100`),
		most("B63 numbers: max_output_tokens above the key's", "/v1/responses", `,"max_output_tokens":101`, "max_output_tokens=100", `"max_output_tokens":100`),
		served("B63 numbers: num_predict beyond all integers", "/api/chat", `,"options":{"num_predict":1e30}`, "num_predict=2147483647", `"num_predict":2147483647`),
		{name: "B63 numbers: n", send: g.post("/v1/chat/completions", `{"model":"tiny","messages":[],"max_tokens":5,"n":1000000}`), want: 200, ollama: reached("/v1/chat/completions"), why: "`n` passes: Ollama ignores it and answers once"},
		{name: "B63 numbers: num_ctx as text", send: g.post("/api/chat", `{"model":"tiny","messages":[],"options":{"num_ctx":"1"}}`), want: 400, says: "num_ctx"},
		{name: "B63 numbers: max_tokens as text", send: g.post("/v1/messages", `{"model":"tiny","messages":[],"max_tokens":"9"}`), want: 400, says: "max_tokens"},
		{name: "B64 _debug_render_only: chat", send: g.post("/api/chat", `{"model":"tiny","messages":[],"_debug_render_only":true}`), want: 403, says: "_debug_render_only"},
		{name: "B64 _debug_render_only: completions", send: g.post("/v1/chat/completions", `{"model":"tiny","messages":[],"_debug_render_only":true}`), want: 403},
		{name: "B64 _debug_render_only: 1", send: g.post("/api/generate", `{"model":"tiny","prompt":"x","_debug_render_only":1}`), want: 403},
	}
	for _, value := range []string{`"true"`, "1", "0", "[]", "{}", `""`} {
		for _, path := range []string{"/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} {
			rows = append(rows, row{name: "B65 stream of another type: " + value + ", " + path, send: g.post(path, `{"model":"tiny",`+readers[path]+`,"stream":`+value+`}`), want: 400, says: "stream must be true or false"})
		}
	}
	schema := `{"type":"object","properties":{` + strings.TrimSuffix(strings.Repeat(`"a":{"type":"string","description":"`+strings.Repeat("x", 1000)+`"},`, 1), ",") + `}}`
	huge := `{"type":"object","description":"` + strings.Repeat("x", 1<<20) + `"}`
	described := huge[:88<<10] + `"}`
	wide := `{"type":"object","properties":{` + strings.TrimSuffix(strings.Repeat(`"a#":{},`, 301), ",") + `}}`
	for i := range 301 {
		wide = strings.Replace(wide, "#", fmt.Sprint(i), 1)
	}
	const bounded = "the expensive parts of a schema are limited, and the whole to 1 MiB (docs/policy.md): 88 KiB of descriptions take Ollama 0.6.5 half a second, 2,400 optional fields a minute"
	for path, field := range map[string]string{
		"/api/chat": `"format":%s`, "/api/generate": `"format":%s`,
		"/v1/chat/completions": `"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":%s}}`,
		"/v1/responses":        `"text":{"format":{"type":"json_schema","name":"x","schema":%s}}`,
		"/v1/messages":         `"output_config":{"format":{"type":"json_schema","schema":%s}}`,
	} {
		body := func(schema string) string {
			return `{"model":"tiny","stream":false,` + readers[path] + `,` + fmt.Sprintf(field, schema) + `}`
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(field, `"`), `"`)
		rows = append(rows,
			row{name: "B67 a schema of 1 MiB: " + path, send: g.post(path, body(huge)), want: 400, says: name, why: bounded},
			row{name: "B67 a schema of 1 MiB: 88 KiB of descriptions, " + path, send: g.post(path, body(described)), want: 200, ollama: reached(path, described)},
			row{name: "B67 a schema of 1 MiB: 301 fields in an object, " + path, send: g.post(path, body(wide)), want: 400, says: name},
			row{name: "B67 a schema of 1 MiB: one of 1 KiB, " + path, send: g.post(path, body(schema)), want: 200, ollama: reached(path, schema)},
		)
	}
	return rows
}

// usageRows request streams without usage. The books have the usage anyway.
func usageRows(t *testing.T, g *gate) []row {
	var rows []row
	for path, rest := range map[string]string{"/v1/chat/completions": `"messages":[{"role":"user","content":"x"}]`, "/v1/completions": `"prompt":"x"`} {
		key := g.key(t, "").Secret
		g.fake.Script("POST", path, ollamatest.Answer{Tokens: 3})
		for name, options := range map[string]string{"false": `,"stream_options":{"include_usage":false}`, "nothing": "", "null": `,"stream_options":null`} {
			rows = append(rows, row{
				name: "B68 usage that the client does not want: " + name + ", " + path, send: send("POST "+path, `{"model":"tiny","stream":true,"max_tokens":5,`+rest+options+`}`, bearer(key)), want: 200,
				says: "data: [DONE]", ollama: reached(path, `"stream_options":{"include_usage":true}`),
				then: func(t *testing.T, a answer) {
					if strings.Contains(a.Body, `"usage"`) || strings.Contains(a.Body, `"choices":[]`) {
						t.Errorf("the client got the usage: %s", a.Body)
					}
					if s := g.stats(t, key, 1); s.Completion != 3*s.Total || s.Estimated != 0 {
						t.Errorf("got the books %+v", s)
					}
				},
			})
		}
	}
	return rows
}
