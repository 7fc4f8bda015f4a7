package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// readers are the routes that read a body in their own way.
var readers = map[string]string{
	"/api/chat": `"messages":[]`, "/api/generate": `"prompt":"x"`, "/api/embed": `"input":"x"`, "/api/embeddings": `"prompt":"x"`, "/api/show": `"verbose":false`,
	"/v1/chat/completions": `"messages":[]`, "/v1/completions": `"prompt":"x"`, "/v1/embeddings": `"input":"x"`, "/v1/responses": `"input":"x"`,
	"/v1/messages": `"max_tokens":5,"messages":[]`, "/v1/messages/count_tokens": `"messages":[]`,
}

// bodyRows send bodies that are not JSON, or that two programs could read differently.
func bodyRows(t *testing.T, g *gate) []row {
	var rows []row
	everywhere := func(name string, body func(rest string) string, says string) {
		sep := ": "
		if strings.Contains(name, ": ") {
			sep = ", "
		}
		for path, rest := range readers {
			rows = append(rows, row{name: name + sep + path, send: g.post(path, body(rest)), want: 400, says: says})
		}
	}
	with := func(format string) func(string) string {
		return func(rest string) string { return fmt.Sprintf(format, rest) }
	}
	everywhere("B30 model twice", with(`{"model":"tiny","model":"evil",%s}`), "twice")
	everywhere("B30 model twice: the second at the end", with(`{"model":"tiny",%s,"model":null}`), "twice")
	everywhere("B31 model and Model", with(`{"model":"tiny",%s,"Model":"evil"}`), "another spelling")
	everywhere("B32 only MODEL", with(`{"MODEL":"tiny",%s}`), "another spelling")
	everywhere("B33 model and an escaped model", with(`{"model":"tiny",%s,"mode\u006c":"evil"}`), "twice")
	everywhere("B35 model and model with a NUL", with(`{"model":"tiny",%s,"model\u0000":"evil"}`), "another spelling")
	everywhere("B36 two objects", with(`{"model":"tiny",%s} {"model":"evil"}`), "continues after")
	everywhere("B37 bytes after the object: garbage", with(`{"model":"tiny",%s}garbage`), "")
	everywhere("B37 bytes after the object: a brace", with(`{"model":"tiny",%s}}`), "")
	everywhere("B37 bytes after the object: a NUL", with("{\"model\":\"tiny\",%s}\x00"), "")
	everywhere("B38 byte order mark", with("\ufeff{\"model\":\"tiny\",%s}"), "")
	everywhere("B39 not JSON: comment", with(`{"model":"tiny",/* */%s}`), "")
	everywhere("B39 not JSON: comma at the end", with(`{"model":"tiny",%s,}`), "")
	everywhere("B39 not JSON: single quotes", with(`{'model':'tiny',%s}`), "")
	everywhere("B39 not JSON: names without quotes", with(`{model:"tiny",%s}`), "")
	everywhere("B39 not JSON: NaN", with(`{"model":"tiny",%s,"temperature":NaN}`), "")
	everywhere("B39 not JSON: leading zero", with(`{"model":"tiny",%s,"temperature":01}`), "")
	everywhere("B40 not an object: array", with(`[{"model":"tiny",%s}]`), "must be a JSON object")
	for name, body := range map[string]string{"string": `"tiny"`, "number": "1", "null": "null", "true": "true"} {
		everywhere("B40 not an object: "+name, func(string) string { return body }, "must be a JSON object")
	}
	everywhere("B42 white space", func(string) string { return " \r\n\t " }, "missing request body")
	everywhere("B43 empty object", func(string) string { return "{}" }, "model is required")
	for _, value := range []string{"null", "1", "[]", `["tiny"]`, "{}", "true", `""`, `" "`} {
		everywhere("B44 model of another type: "+value, with(`{"model":`+value+`,%s}`), "model")
	}
	for path := range readers {
		rows = append(rows,
			row{name: "B41 empty body: " + path, send: g.post(path, ""), want: 400, says: "missing request body"},
			row{name: "B41 empty body: in chunks, " + path, send: g.post(path, "", "Transfer-Encoding: chunked") + "0\r\n\r\n", want: 400, ends: true},
		)
	}
	for _, path := range []string{"/api/chat", "/api/generate"} {
		rest := readers[path]
		rows = append(rows,
			row{name: "B34 names that fold by Unicode: long s, " + path, send: g.post(path, `{"model":"tiny",`+rest+`,"\u017ftream":false}`), want: 400, says: "stream"},
			row{name: "B34 names that fold by Unicode: long s as it is, " + path, send: g.post(path, `{"model":"tiny",`+rest+`,"ſtream":false}`), want: 400, says: "stream"},
			row{name: "B34 names that fold by Unicode: Kelvin sign, " + path, send: g.post(path, "{\"model\":\"tiny\","+rest+",\"\u212aeep_alive\":-1}"), want: 400, says: "keep_alive"},
		)
	}
	// The same for the service's own API.
	for name, body := range map[string]string{
		"B30 model twice: role of a key": `{"name":"x","role":"user","role":"admin"}`, "B31 model and Model: role of a key": `{"name":"x","role":"user","Role":"admin"}`,
		"B33 model and an escaped model: role of a key": `{"name":"x","role":"user","rol\u0065":"admin"}`, "B36 two objects: a key": `{"name":"x","role":"user"}{}`,
		"B38 byte order mark: a key": "\ufeff{\"name\":\"x\",\"role\":\"user\"}", "B40 not an object: a key": `[]`, "B43 empty object: a key": `{}`,
	} {
		rows = append(rows, row{name: name, send: g.asAdmin("POST /api/keys", body), want: 400})
	}
	rows = append(rows, textRows(g)...)
	rows = append(rows, costRows(g)...)
	return append(rows, codedRows(t, g)...)
}

// textRows send invalid text, in names and in other fields.
func textRows(g *gate) []row {
	chat := func(name, body string, want int) row {
		return row{name: name, send: g.post("/api/chat", body), want: want}
	}
	rows := []row{
		chat("B45 text that is not UTF-8: in the model", "{\"model\":\"tiny\xff\",\"messages\":[]}", 400),
		chat("B45 text that is not UTF-8: half a surrogate in the model", `{"model":"tiny\ud800","messages":[]}`, 400),
		chat("B45 text that is not UTF-8: in keep_alive", "{\"model\":\"tiny\",\"messages\":[],\"keep_alive\":\"5m\xff\"}", 400),
		chat("B45 text that is not UTF-8: in a name of the body", "{\"model\":\"tiny\",\"messages\":[],\"mode\xff\":1,\"mode\xfe\":2}", 400),
		{
			name: "B45 text that is not UTF-8: in a message", send: g.post("/api/chat", "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"\xf0\x9f half, \\ud83d half\"}],\"stream\":false}"),
			want: 200, ollama: reached("/api/chat", "\xf0\x9f half, \\ud83d half"), why: "text for a model passes unchanged: JavaScript clients cut emoji in half",
		},
	}
	for name, model := range map[string]string{
		"NUL": `tiny\u0000`, "dots": `../tiny`, "dots inside": `a/../tiny`, "backslash": `tiny\\x`, "newline": `tiny\nx`, "long": strings.Repeat("a", 351), "long in parts": strings.Repeat("a", 81),
		"four parts": `a/b/c/d`, "empty part": `a//b`, "colon at the end": `tiny:`, "two tags": `tiny:a:b`, "digest": `tiny@sha256:0123`, "space inside": `ti ny`, "percent": `tiny%2f`,
	} {
		for _, path := range []string{"/api/chat", "/v1/chat/completions", "/v1/messages", "/api/show"} {
			rows = append(rows, row{name: "B46 not a model name: " + name + ", " + path, send: g.post(path, `{"model":"`+model+`",`+readers[path]+`}`), want: 400, says: "model"})
		}
		rows = append(rows, row{name: "B46 not a model name: " + name + ", pull", send: g.asAdmin("POST /api/pull", `{"model":"`+model+`"}`), want: 400})
	}
	return rows
}

// costRows send bodies that are expensive to read. The service may spend at most mostCPU and mostMemory on each.
func costRows(g *gate) []row {
	var many strings.Builder
	for i := range 1_000_000 {
		fmt.Fprintf(&many, `"%x":0,`, i)
	}
	fields := many.String()
	digits := strings.Repeat("9", 1_000_000)
	return []row{
		g.cheap(row{name: "B47 10,001 levels: arrays", send: g.post("/api/chat", `{"model":"tiny","messages":`+strings.Repeat("[", 10_001)+strings.Repeat("]", 10_001)+`}`), want: 400}),
		g.cheap(row{name: "B47 10,001 levels: objects", send: g.post("/v1/chat/completions", `{"model":"tiny","x":`+strings.Repeat(`{"a":`, 10_001)+"1"+strings.Repeat("}", 10_001)+`}`), want: 400}),
		g.cheap(row{name: "B47 10,001 levels: that never end", send: g.post("/v1/messages", strings.Repeat(`{"model":`, 1_000_000)), want: 400}),
		g.cheap(row{name: "B48 a million fields: at the top", send: g.post("/api/chat", `{`+fields+`"model":"tiny"}`), want: 400}),
		g.cheap(row{name: "B48 a million fields: in options", send: g.post("/api/chat", `{"model":"tiny","messages":[],"options":{`+fields+`"a":1}}`), want: 400}),
		g.cheap(row{name: "B48 a million fields: of one name", send: g.post("/api/chat", `{"model":"tiny",`+strings.Repeat(`"a":1,`, 150_000)+`"b":1}`), want: 400}),
		g.cheap(row{name: "B49 numbers beyond all limits: 1e400", send: g.post("/api/chat", `{"model":"tiny","messages":[],"options":{"num_ctx":1e400}}`), want: 400, says: "num_ctx"}),
		g.cheap(row{name: "B49 numbers beyond all limits: a million digits", send: g.post("/api/chat", `{"model":"tiny","messages":[],"options":{"num_predict":`+digits+`}}`), want: 400, says: "num_predict"}),
		g.cheap(row{name: "B49 numbers beyond all limits: keep_alive", send: g.post("/api/generate", `{"model":"tiny","prompt":"x","keep_alive":-1e999}`), want: 400, says: "keep_alive"}),
		g.cheap(row{name: "B49 numbers beyond all limits: max_tokens", send: g.post("/v1/messages", `{"model":"tiny","messages":[],"max_tokens":1e309}`), want: 400, says: "max_tokens"}),
		g.cheap(row{name: "B49 numbers beyond all limits: a key's limit", send: g.asAdmin("POST /api/keys", `{"name":"x","role":"user","rate_limit":1e400}`), want: 400}),
	}
}

const (
	mostCPU    = 600 * time.Millisecond
	mostMemory = 200 << 10 // KiB above the previous peak
)

// cheap checks the CPU time and the peak memory that the service spends on a row.
func (g *gate) cheap(r row) row { return g.costs(mostCPU, r) }

func (g *gate) costs(most time.Duration, r row) row {
	var cpu time.Duration
	var peak int
	r.before = func(t *testing.T) { cpu, peak = g.spent(t) }
	r.then = func(t *testing.T, _ answer) {
		cpuNow, peakNow := g.spent(t)
		if cpuNow-cpu > most || peakNow-peak > mostMemory {
			t.Errorf("want at most %v of CPU time and %d KiB", most, mostMemory)
		}
		t.Logf("it took %v of CPU time and %d KiB", cpuNow-cpu, peakNow-peak)
	}
	return r
}

// spent returns the service's CPU time and its peak memory in KiB.
func (g *gate) spent(t *testing.T) (cpu time.Duration, peak int) {
	t.Helper()
	pid := strconv.Itoa(g.cmd.Process.Pid)
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	field := strings.Fields(rest)
	for _, ticks := range field[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.Atoi(ticks)
		if err != nil {
			t.Fatal(err)
		}
		cpu += time.Duration(n) * 10 * time.Millisecond
	}
	return cpu, int(peakMemory(t, g.service) >> 10)
}

// codedRows send compressed bodies, valid and invalid.
func codedRows(t *testing.T, g *gate) []row {
	const fullBody = 3 * time.Second // it decodes to 128 MiB, the bound of plain bodies, before it is cut: a second on an idle machine
	gz, zs := zipped(t, small), squeezed(t, small)
	coded := func(name, path, body, coding string, want int, says string) row {
		r := row{name: name, send: g.post(path, body, "Content-Encoding: "+coding), want: want, says: says}
		if want == 200 {
			r.ollama = reached(path, small[:20])
		}
		return r
	}
	rows := []row{
		coded("B53 codings: gzip, native", "/api/chat", gz, "gzip", 415, "without Content-Encoding"),
		coded("B53 codings: zstd, native", "/api/chat", zs, "zstd", 415, ""),
		coded("B53 codings: br", "/v1/chat/completions", gz, "br", 415, "gzip or zstd alone"),
		coded("B53 codings: deflate", "/v1/messages", gz, "deflate", 415, ""),
		coded("B53 codings: x-gzip", "/v1/messages", gz, "x-gzip", 415, ""),
		coded("B53 codings: two in one", "/v1/chat/completions", gz, "identity,gzip", 415, ""),
		coded("B53 codings: two lines", "/v1/chat/completions", gz, "gzip\r\nContent-Encoding: identity", 415, ""),
		coded("B53 codings: a key", "/api/show", gz, "gzip", 415, ""),
		coded("B53 codings: identity", "/api/chat", small, "identity", 200, ""),
		coded("B53 codings: GZIP, /v1", "/v1/chat/completions", gz, "GZIP", 200, ""),
		coded("B53 codings: zstd, /v1", "/v1/chat/completions", zs, "zstd", 200, ""),
		coded("B53 codings: not gzip", "/v1/chat/completions", small, "gzip", 400, "not what its Content-Encoding says"),
		coded("B53 codings: half of one", "/v1/chat/completions", gz[:len(gz)/2], "gzip", 400, ""),
		coded("B53 codings: not zstd", "/v1/messages", small, "zstd", 400, ""),
		coded("B53 codings: model twice within", "/v1/chat/completions", zipped(t, `{"model":"tiny","model":"evil"}`), "gzip", 400, "twice"),
		g.costs(fullBody, coded("B54 a decompression bomb: 10 GiB in gzip", "/v1/chat/completions", strings.Repeat(zipped(t, strings.Repeat("\x00", 1<<20)), 10<<10), "gzip", 413, "MAX_BODY_BYTES")),
		g.costs(fullBody, coded("B54 a decompression bomb: 10 GiB in zstd", "/v1/messages", bomb(10<<30), "zstd", 413, "100 times as large")),
		g.cheap(coded("B54 a decompression bomb: a window of 2 GiB", "/v1/messages", window(), "zstd", 400, "")),
	}
	rows[9].why = "`/v1` accepts gzip and zstd, with the limit of uncompressed bodies: Codex sends zstd"
	for name, kind := range map[string]string{"text": "text/plain", "form": "application/x-www-form-urlencoded", "upload": "multipart/form-data; boundary=x", "nothing": ""} {
		for _, path := range []string{"/api/chat", "/v1/chat/completions"} {
			rows = append(rows, row{
				name: "B55 other types: " + name + ", " + path, send: g.post(path, small, "Content-Type: "+kind), want: 200, ollama: reached(path),
				why: "the type does not matter: Ollama's own examples send none, and browsers never add a key by themselves, so a form of another site has none",
			})
		}
	}
	return append(rows, row{name: "B55 other types: a form without a key", send: send("POST /api/chat", small, "Content-Type: text/plain", "Origin: http://evil.example"), want: 401})
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func squeezed(t *testing.T, text string) string {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(w.EncodeAll([]byte(text), nil))
}

// bomb returns a zstd frame of n zeros. Its blocks repeat one byte: four bytes decode to 128 KiB (RFC 8878, 3.1.1.2).
func bomb(n int) string {
	const block = 128 << 10
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38} // magic number, no flags, a window of 128 KiB
	const head = block<<3 | 1<<1                    // the block's size, and its type: one repeated byte
	return string(b) + strings.Repeat(string([]byte{head & 0xff, head >> 8 & 0xff, head >> 16, 0}), n/block) + "\x01\x00\x00"
}

// window returns a frame that needs a window of 2 GiB.
func window() string {
	return "\x28\xb5\x2f\xfd\x00\xa8" + "\x09\x00\x00x"
}

// sizeRows test a body limit of 1 MiB.
func sizeRows(t *testing.T, g *gate) []row {
	const limit = 1 << 20
	large := func(n int) string {
		return `{"model":"tiny","prompt":"x","stream":false,"x":"` + strings.Repeat("y", n) + `"}`
	}
	exactly := large(limit - len(large(0)))
	chunked := func(path, body string, fields ...string) string {
		var b strings.Builder
		b.WriteString(g.post(path, "", append(fields, "Transfer-Encoding: chunked")...))
		for len(body) > 0 {
			n := min(len(body), 32<<10)
			fmt.Fprintf(&b, "%x\r\n%s\r\n", n, body[:n])
			body = body[n:]
		}
		return b.String() + "0\r\n\r\n"
	}
	images := strings.Repeat(`"`+strings.Repeat("A", 8<<10)+`",`, 200)
	rows := []row{
		{name: "B50 a body above the limit: with its length", send: g.post("/api/generate", large(2*limit)), want: 413, ends: true, says: "MAX_BODY_BYTES"},
		{name: "B50 a body above the limit: by one byte", send: g.post("/api/generate", exactly+" "), want: 413, ends: true},
		{name: "B50 a body above the limit: that is only announced", send: g.post("/v1/messages", "", "Content-Length: 9000000000000000000"), want: 413, ends: true},
		{name: "B50 a body above the limit: just within", send: g.post("/api/generate", exactly), want: 200, ollama: reached("/api/generate")},
		{name: "B50 a body above the limit: of a key", send: g.asAdmin("POST /api/keys", `{"name":"x","role":"user","note":"`+strings.Repeat("x", 65<<10)+`"}`), want: 413},
		{name: "B51 a body above the limit in chunks: just above", send: chunked("/api/generate", exactly+" "), want: 413, ends: true},
		{name: "B51 a body above the limit in chunks: chat", send: chunked("/v1/chat/completions", large(2*limit)), want: 413, ends: true},
		{name: "B51 a body above the limit in chunks: messages", send: chunked("/v1/messages", large(2*limit)), want: 413, ends: true},
		{name: "B51 a body above the limit in chunks: just within", send: chunked("/api/generate", exactly), want: 200, ends: true, ollama: reached("/api/generate")},
		{name: "B52 a body that stops halfway: and the client is done", send: strings.TrimSuffix(g.post("/api/chat", `{"model":"tiny"}`), `y"}`), half: true, want: 400, ends: true, says: "could not be read"},
		{name: "B54 a decompression bomb: above a bound of 1 MiB", send: g.post("/v1/chat/completions", zipped(t, large(2*limit)), "Content-Encoding: gzip"), want: 413},
		{name: "B54 a decompression bomb: just within", send: g.post("/v1/completions", zipped(t, exactly), "Content-Encoding: gzip"), want: 200, ollama: reached("/v1/completions")},
		{name: "B66 images: 200 of them", send: g.post("/api/chat", `{"model":"tiny","messages":[{"role":"user","content":"x","images":[`+images[:len(images)-1]+`]}]}`), want: 413, ends: true},
		{name: "B66 images: 100 MiB", send: g.post("/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,`+strings.Repeat("A", 100<<20)+`"}}]}]}`), want: 413, ends: true},
		{name: "B66 images: within the bound", send: g.post("/api/chat", `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"x","images":["`+strings.Repeat("A", 900<<10)+`"]}]}`), want: 200, ollama: reached("/api/chat")},
	}
	for i := range rows {
		if rows[i].want == http.StatusRequestEntityTooLarge { // the service may keep none of it
			rows[i] = g.cheap(rows[i])
		}
	}
	return rows
}
