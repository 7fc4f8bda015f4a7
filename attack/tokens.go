//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

var tokens = []attack{
	{
		name: "evasion", what: "prompts in places and spellings that an estimate may miss; leave at the first record", lasts: 6 * time.Second,
		real: true,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 8, time.Millisecond, func(i int) {
				path, body := evasion(i)
				a.glance(ctx, path, body)
			})
		},
	},
	{
		name: "evasion-read", what: "the same, reading to the end or leaving after a while", lasts: 6 * time.Second,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 8, time.Millisecond, func(i int) {
				path, body := evasion(i)
				a.ask(ctx, path, body, time.Duration(50+i%7*150)*time.Millisecond)
			})
		},
	},
	{
		name: "tools", what: "tool calls, which Ollama holds until they are complete; leave at the first record", lasts: 6 * time.Second,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 8, time.Millisecond, func(int) { a.glance(ctx, "/api/chat", toolBody(60)) })
		},
	},
	{
		name: "tools-leave", what: "the same, leaving after 0.4 s, before anything has passed", lasts: 6 * time.Second,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 8, time.Millisecond, func(int) { a.ask(ctx, "/api/chat", toolBody(120), 400*time.Millisecond) })
		},
	},
}

func toolBody(tokens int) string {
	return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"the %s asks"}],`+
		`"tools":[{"type":"function","function":{"name":"f"}}],"options":{"num_predict":%d,"seed":%d}}`,
		victimModel, attackerMark, tokens, withheld)
}

// evasion returns a request whose prompt is in another place each time.
func evasion(i int) (path, body string) {
	text := attackerMark + " " + strings.Repeat("hello there ", 150)
	chat := func(messages, more string) string {
		return fmt.Sprintf(`{"model":%q,"messages":[%s]%s,"options":{"num_predict":8}}`, victimModel, messages, more)
	}
	said := `{"role":"user","content":"the ` + attackerMark + ` asks"}`
	forms := []struct{ path, body string }{
		{"/api/chat", chat(`{"role":"user","content":"`+text+`"}`, "")},
		{"/api/chat", chat(`{"role":"user","Content":"`+text+`"}`, "")},
		{"/api/chat", chat(`{"role":"user","c\u006fntent":"`+text+`"}`, "")},
		{"/api/chat", chat(said, `,"tools":[{"type":"function","function":{"name":"f","description":"`+text+`"}}]`)},
		{"/api/chat", chat(said, `,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":`+
			`{"content":{"type":"string","description":"`+text+`"}}}}}]`)},
		{"/api/chat", chat(`{"role":"assistant","thinking":"`+text+`","content":"x"},`+said, "")},
		{"/api/chat", chat(`{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":"`+text+`"}}}]},`+said, "")},
		{"/api/chat", chat(`{"role":"tool","tool_name":"f","content":"`+text+`"},`+said, "")},
		{"/api/chat", chat(`{"role":"system","content":"`+text+`"},`+said, "")},
		{generate, fmt.Sprintf(`{"model":%q,"prompt":"the %s asks","suffix":"%s","options":{"num_predict":8}}`, victimModel, attackerMark, text)},
		{generate, fmt.Sprintf(`{"model":%q,"prompt":"the %s asks","system":"%s","options":{"num_predict":8}}`, victimModel, attackerMark, text)},
		{generate, fmt.Sprintf(`{"model":%q,"prompt":"the %s asks","context":[%s1],"options":{"num_predict":8}}`,
			victimModel, attackerMark, strings.Repeat("1,", 400))},
		{"/v1/chat/completions", fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":8,"messages":[{"role":"user","content":`+
			`[{"type":"text","text":"%s"}]}]}`, victimModel, text)},
	}
	f := forms[i%len(forms)]
	return f.path, f.body
}
