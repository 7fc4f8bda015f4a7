package e2e

import (
	"fmt"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// pathRows send paths and methods that are not in the route table.
func pathRows(_ *testing.T, g *gate) []row {
	var rows []row
	none := func(number string, targets ...string) {
		for _, target := range targets {
			rows = append(rows, row{name: number + ": " + target, send: g.post(target, small), want: 404, says: "no such path"})
		}
	}
	plain := func(number, why string, targets map[string]string) {
		for target, upstream := range targets {
			rows = append(rows, row{name: number + ": " + target, send: g.post(target, small), want: 200, ollama: reached(upstream), why: why})
		}
	}
	plain("B69 two slashes", "base URLs that end in a slash cause them, and the path that goes upstream is a constant of the table", map[string]string{
		"//api/chat": "/api/chat", "/api//chat": "/api/chat", "///api/chat": "/api/chat", "/v1//chat/completions": "/v1/chat/completions",
	})
	none("B70 dots", "/api/../api/chat", "/api/./chat", "/api/x/../chat", "/./api/chat", "/api/chat/.", "/v1/../api/chat")
	none("B71 encoded dots", "/api/%2e%2e/api/chat", "/api/%2E/chat", "/%2e/api/chat", "/api/.%2e/api/chat", "/v1/%2e%2e/api/chat")
	none("B72 encoded slash", "/api%2fchat", "/api%2Fchat", "/%2fapi/chat", "/v1%2fchat%2fcompletions")
	none("B73 an encoded letter", "/api/%63hat", "/%61pi/chat", "/v1/%6dodels", "/api/cha%74")
	none("B74 another case", "/API/chat", "/api/Chat", "/V1/chat/completions", "/API/CHAT")
	for target, names := range map[string]string{
		"/chat/completions": "/v1/chat/completions? The base URL", "/v1/v1/messages": "/v1/messages?", "/v1/api/tags": "/api/tags?", "/api/v1/responses": "/v1/responses?",
	} {
		rows = append(rows, row{name: "B74 another case: another base, " + target, send: g.post(target, small), want: 404, says: names})
	}
	plain("B75 a slash at the end", "as B69", map[string]string{
		"/api/chat/": "/api/chat", "/v1/chat/completions/": "/v1/chat/completions", "/v1/messages/": "/v1/messages", "/api/chat//": "/api/chat",
	})
	none("B75 a slash at the end", "/api/")
	none("B76 a parameter of the path", "/api/chat;x", "/api;x/chat", "/api/chat;", "/api/chat%3bx")
	none("B77 backslashes", `/api\chat`, `/\api\chat`, "/api%5cchat", "/api/chat%5c..", `/api\..\api/chat`)
	none("B78 bytes that are invalid in a path", "/api/chat%00", "/api/%00chat", "/api/chat%c0%af", "/%c0%ae%c0%ae/api/chat", "/api/chat%0a", "/api/chat%20", "/api/chat%ef%bc%8f", "/api/c\xffhat")
	for _, target := range []string{"/api/chat%zz", "/api/chat%", "/api/%2/chat", "/api/ch at", "/api/chat\x01", "api/chat", ""} {
		rows = append(rows, row{name: "B78 bytes that are invalid in a path: " + target, send: g.post(target, small), want: 400, by: nethttp, ends: true})
	}
	// A key before the path does not change how the path is matched.
	rows = append(rows, row{name: "B69 two slashes: behind a key in the path", send: send("POST /k/"+g.user+"//api/chat", small), want: 200, ollama: reached("/api/chat")})
	for _, target := range []string{"/../api/chat", "/api%2fchat", "/api/%63hat", "/API/chat", "/k/" + g.user + "/api/chat", "/api/keys", "/healthz"} {
		line := "POST /k/"
		if target == "/healthz" {
			line = "GET /k/"
		}
		rows = append(rows, row{name: "B70 dots: behind a key in the path, " + strings.ReplaceAll(target, g.user, "KEY"), send: send(line+g.user+target, small), want: 404})
	}
	rows = append(rows,
		row{name: "B79 absolute form: another host", send: g.post("http://evil.example/api/chat", small), want: 400, says: "must name a path"},
		row{name: "B79 absolute form: our own host", send: g.post("http://127.0.0.1/api/chat", small), want: 400},
		row{name: "B79 absolute form: https", send: g.post("https://evil.example:443/v1/messages", small), want: 400},
		row{name: "B79 absolute form: another scheme", send: g.post("file:///etc/passwd", small), want: 400},
		row{name: "B79 absolute form: a host by two slashes", send: g.post("//evil.example/api/chat", small), want: 404},
		row{name: "B80 other methods: CONNECT", send: strings.Replace(g.asAdmin("CONNECT evil.example:443", ""), "Host: 127.0.0.1", "Host: evil.example:443", 1), want: 405, has: "Allow: " + allMethods},
		row{name: "B80 other methods: CONNECT of a path", send: g.asAdmin("CONNECT /api/chat", ""), want: 405, has: "Allow: " + allMethods},
		row{name: "B80 other methods: TRACE", send: g.asAdmin("TRACE /api/chat", ""), want: 405, has: "Allow: " + allMethods},
		row{name: "B80 other methods: OPTIONS *", send: g.asAdmin("OPTIONS *", ""), want: 405, has: "Allow: " + allMethods},
		row{name: "B80 other methods: GET *", send: g.asAdmin("GET *", ""), want: 405},
		row{name: "B80 other methods: PRI", send: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: 405, ends: true},
		row{name: "B80 other methods: one that is made up", send: g.asAdmin("BREW /api/chat", ""), want: 405, has: "Allow: POST"},
		row{name: "B80 other methods: no method", send: g.asAdmin("(GET) /api/chat", ""), want: 400, by: nethttp, ends: true},
		row{name: "B80 other methods: HTTP/3.7", send: strings.Replace(g.asAdmin("GET /healthz", ""), "HTTP/1.1", "HTTP/3.7", 1), want: 505, by: nethttp, ends: true},
		row{name: "B80 other methods: HTTP/0.9", send: "GET /api/tags\r\n\r\n", want: 400, by: nethttp, ends: true},
		row{name: "B81 a method in a header", send: g.post("/api/chat", small, "X-HTTP-Method-Override: DELETE", "X-Method-Override: DELETE", "X-HTTP-Method: DELETE"), want: 200, ollama: reached("/api/chat")},
		row{name: "B81 a method in a header: in the query", send: g.post("/api/chat?_method=DELETE", small), want: 200, ollama: reached("/api/chat")},
	)
	for line, allow := range map[string]string{
		"GET /api/chat": "POST", "PUT /v1/chat/completions": "POST", "DELETE /api/tags": "GET, HEAD", "POST /api/delete": "DELETE", "PATCH /api/keys": "POST, GET, HEAD",
		"OPTIONS /api/chat": "POST", "HEAD /api/chat": "POST", "POST /v1/models/tiny": "GET, HEAD",
	} {
		rows = append(rows, row{name: "B82 a method that the path does not have: " + line, send: g.asAdmin(line, ""), want: 405, has: "Allow: " + allow})
	}
	rows = append(rows, row{name: "B82 a method that the path does not have: a WebSocket", send: g.asAdmin("GET /v1/responses", "", "Connection: Upgrade", "Upgrade: websocket"), want: 426, has: "Upgrade: HTTP/1.1", says: "does not support WebSocket"})
	rows = append(rows,
		row{name: "B83 a path of 16 KiB: path", send: g.post("/"+strings.Repeat("a", 16<<10), small), want: 414},
		row{name: "B83 a path of 16 KiB: query", send: g.post("/v1/messages?"+strings.Repeat("a", 16<<10), small), want: 414},
		row{name: "B83 a path of 16 KiB: one of 64 KiB", send: g.post("/"+strings.Repeat("a", 64<<10), small), want: 431, by: nethttp, ends: true},
		row{name: "B84 queries: of nonsense", send: g.post("/api/chat?a=%zz;b", small), want: 200, ollama: noQuery},
		row{name: "B84 queries: of another model", send: g.post("/api/chat?model=evil&stream=true", small), want: 200, ollama: noQuery},
		row{name: "B84 queries: of Claude's", send: g.post("/v1/messages?beta=true", small), want: 200, ollama: noQuery},
		row{name: "B84 queries: of keys", send: g.asAdmin("GET /api/admin/usage?a=1;b", ""), want: 400},
		row{name: "B85 a path in a name: models", send: send("GET /v1/models/..%2f..%2fapi%2fdelete", "", bearer(g.user)), want: 400},
		row{name: "B85 a path in a name: by dots alone", send: send("GET /v1/models/%2e%2e", "", bearer(g.user)), want: 400},
		row{name: "B85 a path in a name: encoded twice", send: send("GET /v1/models/%2574iny", "", bearer(g.user)), want: 400},
		row{name: "B85 a path in a name: keys", send: g.asAdmin("DELETE /api/keys/..%2f..%2fx", ""), want: 404},
		row{name: "B85 a path in a name: pages", send: send("GET /docs/..%2f..%2fetc%2fpasswd", ""), want: 404},
	)
	zeros := strings.Repeat("0", 64)
	for digest, want := range map[string]int{
		"sha256:../../x": 404, "sha256:..%2f..%2fx": 400, "sha256:" + zeros[1:]: 400, "sha256:" + strings.Repeat("A", 64): 400, "sha256-" + zeros: 400, "sha256:" + zeros + "0": 400,
		"sha512:" + zeros: 400, "sha256:" + zeros[2:] + "%00a": 400, "%2e%2e": 400, "sha256:" + zeros[1:] + "g": 400,
	} {
		for _, method := range []string{"POST", "HEAD"} {
			body := ""
			if method == "POST" {
				body = "x"
			}
			rows = append(rows, row{
				name: "B86 digests: " + method + " " + digest, send: g.asAdmin(method+" /api/blobs/"+digest, body), want: want,
				why: map[int]string{404: "a slash that is not encoded makes another path, which does not exist"}[want],
			})
		}
	}
	return rows
}

// allMethods are the methods in Allow for requests that concern no path.
const allMethods = "GET, HEAD, POST, PATCH, DELETE"

func noQuery(t *testing.T, got []*ollamatest.Request) {
	t.Helper()
	if len(got) != 1 || strings.Contains(got[0].RequestURI, "?") {
		t.Errorf("Ollama got %+v", got)
	}
}

// framingRows send requests whose end two programs could see in different places.
func framingRows(_ *testing.T, g *gate) []row {
	const path = "/api/chat"
	lengths := func(values ...string) string {
		b := "POST " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + bearer(g.user) + "\r\n"
		for _, v := range values {
			b += "Content-Length: " + v + "\r\n"
		}
		return b + "\r\n" + small
	}
	right := fmt.Sprint(len(small))
	chunked := func(body string, fields ...string) string {
		return g.post(path, "", append(fields, "Transfer-Encoding: chunked")...) + body
	}
	whole := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(small), small)
	const both = "a request with a length and chunks is read by its chunks, as RFC 9112 says, and then the connection is closed"
	rows := []row{
		{name: "B87 a length and chunks: a short length", send: chunked(whole, "Content-Length: 5"), want: 200, ends: true, ollama: reached(path, small[:20]), why: both},
		{name: "B87 a length and chunks: a long length", send: chunked(whole, "Content-Length: 500"), want: 200, ends: true, ollama: reached(path, small[:20]), why: both},
		{name: "B87 a length and chunks: the length behind", send: strings.Replace(chunked(whole), "chunked\r\n", "chunked\r\nContent-Length: 5\r\n", 1), want: 200, ends: true, ollama: reached(path)},
		{name: "B87 a length and chunks: a refused one", send: strings.Replace(chunked(whole, "Content-Length: 5"), g.user, g.user+"x", 1), want: 401, ends: true},
		{name: "B87 a length and chunks: on a route without a body", send: send("GET /api/tags", "", bearer(g.user), "Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\n", want: 200, ends: true, ollama: listed},
		{name: "B87 a length and chunks: HTTP/1.0", send: strings.Replace(chunked(whole), "HTTP/1.1", "HTTP/1.0", 1), want: 400, ends: true, says: "missing request body", why: "in HTTP/1.0 net/http does not know chunks and uses the length, so every HTTP/1.0 connection is closed"},
		{name: "B87 a length and chunks: HTTP/1.0 with both, kept alive", send: strings.Replace(chunked(whole, "Connection: keep-alive", "Content-Length: 4"), "HTTP/1.1", "HTTP/1.0", 1), want: 400, ends: true},
		{name: "B87 a length and chunks: absolute form", send: strings.Replace(chunked(whole, "Content-Length: 5"), path, "http://evil.example"+path, 1), want: 400, ends: true},
		{name: "B87 a length and chunks: too long a path", send: strings.Replace(chunked(whole, "Content-Length: 5"), path, path+"?"+strings.Repeat("a", 9<<10), 1), want: 414, ends: true},
		{name: "B88 two lengths: that differ", send: lengths(right, "5"), want: 400, by: nethttp, ends: true},
		{name: "B88 two lengths: in one line", send: lengths(right + ", 5"), want: 400, by: nethttp, ends: true},
		{name: "B88 two lengths: the same", send: lengths(right, right), want: 200, ollama: reached(path, small[:20]), why: "two equal lengths count as one (RFC 9112, 6.3)"},
		{name: "B93 a folded line", send: g.post(path, small, "X-Folded: a\r\n b\r\n\tc"), want: 200, ollama: reached(path), why: "net/http unfolds it before the gateway can see it"},
		{name: "B93 a folded line: within the credential", send: send("POST "+path, small, "Authorization: Bearer\r\n "+g.user), want: 200, ollama: reached(path)},
		{name: "B93 a folded line: as the first", send: "GET /api/tags HTTP/1.1\r\n Host: x\r\n" + bearer(g.user) + "\r\n\r\n", want: 400, by: nethttp, ends: true},
		{name: "B93 a folded line: an end by a bare LF", send: strings.ReplaceAll(send(tagList, "", bearer(g.user)), "\r\n", "\n"), want: 200, ollama: listed, why: "a bare LF ends a line of the header (RFC 9112, 2.2)"},
	}
	for _, value := range []string{"+" + right, "-1", "0x5", right + "a", "5 5", " ", "1e2", "9223372036854775808", "１"} {
		rows = append(rows, row{name: "B89 lengths that are not numbers: " + value, send: lengths(value), want: 400, by: nethttp, ends: true})
	}
	for _, value := range []string{"gzip, chunked", "xchunked", "identity", "chunked, chunked", "chunked, identity", "\x0bchunked", "chunked;q=1"} {
		r := row{name: "B90 other transfer codings: " + value, send: strings.Replace(chunked(whole), "Transfer-Encoding: chunked", "Transfer-Encoding: "+value, 1), want: 501, by: nethttp, ends: true}
		if value == "\x0bchunked" {
			r.want = 400
		}
		rows = append(rows, r)
	}
	rows = append(rows,
		row{name: "B90 other transfer codings: two lines", send: chunked(whole, "Transfer-Encoding: gzip"), want: 501, by: nethttp, ends: true},
		row{name: "B90 other transfer codings: CHUNKED", send: strings.Replace(chunked(whole), "Transfer-Encoding: chunked", "Transfer-Encoding: CHUNKED", 1), want: 200, ends: true, ollama: reached(path)},
	)
	for name, body := range map[string]string{
		"bare LF behind the size": fmt.Sprintf("%x\n%s\r\n0\r\n\r\n", len(small), small), "a size of 17 digits": "fffffffffffffffff\r\n" + small, "a size below zero": "-1\r\n" + small,
		"a size with 0x": fmt.Sprintf("0x%x\r\n%s\r\n0\r\n\r\n", len(small), small), "no size": "\r\n" + small, "an extension of 1 MiB": "5;" + strings.Repeat("x", 1<<20) + "\r\n" + small,
		"no end of a chunk": fmt.Sprintf("%x\r\n%s0\r\n\r\n", len(small), small), "a chunk longer than its size": fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(small)-5, small),
		"extensions larger than the body": strings.Repeat("1;"+strings.Repeat("x", 2000)+"\r\n \r\n", 200) + "0\r\n\r\n",
	} {
		rows = append(rows, row{name: "B91 broken chunks: " + name, send: chunked(body), want: 400, ends: true, says: "could not be read"})
	}
	for name, line := range map[string]string{"a space before the colon": "X-Bad : a", "a tab before the colon": "X-Bad\t: a", "the credential": "Authorization : Bearer " + g.admin, "the length": "Content-Length : 5", "no name": ": a", "no colon": "X-Bad"} {
		rows = append(rows, row{name: "B92 broken lines of a header: " + name, send: send(tagList, "", bearer(g.user), line), want: 400, by: nethttp, ends: true})
	}
	for name, line := range map[string]string{
		"NUL": "X-Bad: a\x00b", "CR": "X-Bad: a\rb", "CR and a header": "X-Bad: a\rX-Api-Key: " + g.admin, "NUL in the name": "X\x00Bad: a", "DEL": "X-Bad: a\x7fb", "ESC": "X-Bad: \x1b[31m", "NUL in the credential": "X-Api-Key: " + g.user + "\x00",
	} {
		rows = append(rows, row{name: "B94 bytes that are invalid in a header: " + name, send: send(tagList, "", bearer(g.user), line), want: 400, by: nethttp, ends: true})
	}
	return rows
}
