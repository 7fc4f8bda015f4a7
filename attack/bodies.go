//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	bodyMemory = 128 << 20
	// What docs/settings.md allows the program in addition to the bodies.
	programMemory = 150_000_000
)

var memorySettings = []string{"MAX_BODY_MEMORY=128MiB", "MAX_BODY_BYTES=64MiB"}

var bodies = []attack{
	{
		name: "gzip", what: "compressed bodies of 24 MB that wait for a slot", heavy: true, lasts: 5 * time.Second, settings: memorySettings,
		padding: 180 << 10, memory: bodyMemory + programMemory, prepare: func() { largeBody("gzip") }, run: compressed("gzip"),
	},
	{
		name: "zstd", what: "the same by zstd", heavy: true, lasts: 5 * time.Second, settings: memorySettings,
		padding: 180 << 10, memory: bodyMemory + programMemory, prepare: func() { largeBody("zstd") }, run: compressed("zstd"),
	},
	{
		name: "uploads", what: "uploads of 12 MB that never end", heavy: true, lasts: 5 * time.Second, settings: memorySettings,
		padding: 180 << 10, memory: bodyMemory + programMemory,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 32, 20*time.Millisecond, func(int) { a.uploadForEver(ctx) })
		},
	},
	{
		name: "names", what: "bodies with 190,000 short names", heavy: true, lasts: 5 * time.Second, settings: memorySettings,
		padding: 180 << 10, memory: bodyMemory + programMemory,
		prepare: func() { manyNames() },
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 4, 50*time.Millisecond, func(int) { a.ask(ctx, generate, manyNames(), time.Minute) })
		},
	},
}

// manyNames returns a prompt with 190,000 short names of fields.
var manyNames = sync.OnceValue(func() string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"model":%q,"prompt":"the %s asks","options":{"num_predict":1},"x":{`, victimModel, attackerMark)
	for i := range 190_000 {
		fmt.Fprintf(&b, `"%x":0,`, i)
	}
	b.WriteString(`"z":0}}`)
	return b.String()
})

// compressed sends bodies that are much larger than the bytes sent.
func compressed(coding string) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		packed := largeBody(coding)
		head := http.Header{"Content-Encoding": {coding}}
		// More would measure the machine: attackers, victims and the scripted Ollama share it with the gateway.
		a.loops(ctx, 16, 500*time.Millisecond, func(int) {
			a.sent.Add(1)
			status, _, err := a.post(ctx, a.client, "/v1/chat/completions", a.key, bytes.NewReader(packed), head)
			if err == nil && status == http.StatusOK {
				a.answered.Add(1)
			}
		})
	}
}

// largeBody returns a chat of 24 MB. Most of it is in a field that no model reads, because long prompts are another attack. It
// compresses to slightly more than a hundredth, the most compression that the gateway accepts.
var largeBody = func() func(coding string) []byte {
	var mu sync.Mutex
	made := map[string][]byte{}
	return func(coding string) []byte {
		mu.Lock()
		defer mu.Unlock()
		if made[coding] != nil {
			return made[coding]
		}
		noise := make([]byte, 400<<10)
		r := rand.New(rand.NewPCG(1, 2))
		for i := range noise {
			noise[i] = 'a' + byte(r.IntN(26))
		}
		body := fmt.Sprintf(`{"model":%q,"max_tokens":1,"messages":[{"role":"user","content":"the %s asks"}],"x":"%s%s"}`,
			victimModel, attackerMark, noise, strings.Repeat("a", 24<<20))
		var b bytes.Buffer
		switch coding {
		case "zstd":
			w, _ := zstd.NewWriter(&b)
			w.Write([]byte(body))
			w.Close()
		default:
			w := gzip.NewWriter(&b)
			w.Write([]byte(body))
			w.Close()
		}
		made[coding] = b.Bytes()
		return made[coding]
	}
}()

// uploadForEver sends a part of a body and then a byte now and then, until the gateway closes the connection.
func (a *attacker) uploadForEver(ctx context.Context) {
	conn, err := a.dialer.DialContext(ctx, "tcp", a.addr)
	if err != nil {
		return
	}
	defer conn.Close()
	a.sent.Add(1)
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", generate, a.key, 12<<20)
	fmt.Fprintf(conn, `{"model":%q,"prompt":"%s `, victimModel, attackerMark)
	conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
	conn.Write(bytes.Repeat([]byte("a"), 2<<20))
	for pause(ctx, 100*time.Millisecond) {
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write([]byte("a")); err != nil {
			return
		}
	}
}
