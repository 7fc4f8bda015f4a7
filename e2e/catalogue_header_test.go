package e2e

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// headerRows send header fields that are ambiguous, too large or without meaning.
func headerRows(t *testing.T, g *gate) []row {
	const path = "/api/chat"
	other := g.key(t, "").Secret
	many := func(n int) []string {
		var fields []string
		for i := range n {
			fields = append(fields, fmt.Sprintf("X-Field-%d: %d", i, i))
		}
		return fields
	}
	host := func(to string) string {
		return strings.Replace(send(tagList, "", bearer(g.user)), "Host: 127.0.0.1\r\n", to, 1)
	}
	const dropped = "a field with an underscore is refused only if with a hyphen it would be a field that the gateway uses; Codex sends `session_id`"
	var rows []row
	for _, line := range []string{
		"X_Forwarded_For: 1.2.3.4", "x_api_key: " + other, "X_Api-Key: " + other, "Content_Length: 5", "Transfer_Encoding: chunked", "content_encoding: gzip", "X_Request_Id: 1", "USER_AGENT: ollama/1",
		"anthropic_version: 2023-06-01", "X_Real_IP: 127.0.0.1", "content_type: text/plain", "Sec_Fetch_Site: none",
	} {
		name, _, _ := strings.Cut(line, ":")
		rows = append(rows, row{name: "B95 underscores: " + name, send: g.post(path, small, line), want: 400, says: "underscore", why: dropped})
	}
	for _, line := range []string{"session_id: 0199", "X_Custom: 1", "X_Role: admin", "__: 1"} {
		rows = append(rows, row{name: "B95 underscores: " + line, send: g.post(path, small, line), want: 200, ollama: reached(path)})
	}
	rows = append(rows,
		row{name: "B96 large headers: 40 KiB", send: g.post(path, small, "X-Large: "+strings.Repeat("a", 40<<10)), want: 431, by: nethttp, ends: true, why: "net/http refuses headers above 32 KiB plus its own margin of 4 KiB, before it has read them"},
		row{name: "B96 large headers: many of 1 KiB", send: g.post(path, small, slices.Repeat([]string{"X-Large: " + strings.Repeat("a", 1<<10)}, 40)...), want: 431, by: nethttp, ends: true},
		row{name: "B96 large headers: 30 KiB", send: g.post(path, small, "X-Large: "+strings.Repeat("a", 30<<10)), want: 200, ollama: reached(path)},
		row{name: "B96 large headers: more than 100 fields", send: g.post(path, small, many(100)...), want: 431, says: "100 fields"},
		row{name: "B96 large headers: of messages", send: g.post("/v1/messages", small, many(150)...), want: 431},
		row{name: "B96 large headers: one name 200 times", send: g.post(path, small, slices.Repeat([]string{"X-A: 1"}, 200)...), want: 431},
		row{name: "B96 large headers: just 100 fields", send: send(tagList, "", append(many(99), bearer(g.user))...), want: 200, ollama: listed},
		row{name: "B97 Host: none", send: host(""), want: 400, by: nethttp, ends: true},
		row{name: "B97 Host: two", send: host("Host: a\r\nHost: b\r\n"), want: 400, by: nethttp, ends: true},
		row{name: "B97 Host: two of one kind", send: host("Host: a\r\nHost: a\r\n"), want: 400, by: nethttp, ends: true},
		row{name: "B97 Host: with a space", send: host("Host: a b\r\n"), want: 400, by: nethttp, ends: true},
		row{name: "B97 Host: none in HTTP/1.0", send: strings.Replace(host(""), "HTTP/1.1", "HTTP/1.0", 1), want: 200, ends: true, ollama: listed, why: "HTTP/1.0 has none"},
	)
	ids := func(theirs string) func(*testing.T, answer) {
		return func(t *testing.T, a answer) {
			if got := a.Header.Get("X-Client-Request-Id"); got != theirs {
				t.Errorf("X-Client-Request-Id is %q, want %q", got, theirs)
			}
		}
	}
	rows = append(rows,
		row{name: "B98 Connection that names fields: the credential", send: send("POST "+path, small, "Connection: close, Authorization, X-Request-Id", bearer(g.user), "X-Request-Id: mine"), want: 200, ends: true, ollama: reached(path), then: ids("mine")},
		row{name: "B98 Connection that names fields: two credentials", send: g.post(path, small, "Connection: close, x-api-key", "x-api-key: "+other), want: 400, ends: true},
		row{name: "B98 Connection that names fields: the length", send: g.post(path, small, "Connection: Content-Length, Host"), want: 200, ollama: reached(path)},
		row{name: "B99 Upgrade: h2c", send: g.post(path, small, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), want: 200, ollama: reached(path), then: http1},
		row{name: "B99 Upgrade: websocket", send: send(tagList, "", bearer(g.user), "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"), want: 200, ollama: listed, then: http1},
		row{name: "B99 Upgrade: without a key", send: send(tagList, "", "Connection: Upgrade", "Upgrade: h2c"), want: 401},
		row{name: "B100 Expect: 100-continue", send: g.post(path, small, "Expect: 100-continue"), want: 200, ollama: reached(path), then: invited("1")},
		row{name: "B100 Expect: 100-continue with a bad key", send: send("POST "+path, small, bearer(g.user+"x"), "Expect: 100-continue"), want: 401, ends: true, then: invited("")},
		row{name: "B100 Expect: 100-continue with a large body", send: g.post("/v1/messages", "", "Expect: 100-continue", "Content-Length: 900000000000"), want: 413, ends: true, then: invited("")},
		row{name: "B100 Expect: something else", send: g.post(path, small, "Expect: 200-maybe"), want: 417, by: nethttp, ends: true},
		row{name: "B101 Idempotency-Key: a good request", send: g.post(path, small, "Idempotency-Key: 1", "X-Idempotency-Key: 1"), want: 200, ollama: reached(path)},
	)
	g.fake.Script("POST", "/api/embed", ollamatest.Answer{Body: `{"embeddings":[]}`, Fault: ollamatest.Reset, FaultAt: 12})
	g.fake.Script("POST", "/v1/embeddings", ollamatest.Answer{Fault: ollamatest.Close, FaultAt: ollamatest.AfterHeader})
	for path, name := range map[string]string{"/api/embed": "Ollama breaks off in its header", "/v1/embeddings": "Ollama breaks off behind its header"} {
		rows = append(rows, row{name: "B101 Idempotency-Key: " + name, send: g.post(path, `{"model":"tiny","input":"x"}`, "Idempotency-Key: 1", "X-Idempotency-Key: 1"), want: 502, ollama: reached(path)})
	}
	for name, id := range map[string]string{
		"HTML": "<script>alert(1)</script>", "4 KiB": strings.Repeat("a", 4<<10), "spaces": "a b", "quotes": `a"b`, "folded": "a\r\n X-Evil: 1", "bytes": "\xff\xfe", "empty": "", "escapes": "a%0d%0aX-Evil:1", "line separator": "a\u2028b",
	} {
		rows = append(rows, row{name: "B103 X-Request-Id: " + name, send: g.post(path, small, "X-Request-Id: "+id), want: 200, ollama: reached(path), then: ids("")})
	}
	return append(rows,
		row{name: "B103 X-Request-Id: CR and LF", send: g.post(path, small, "X-Request-Id: a\r\nX-Evil: 1"), want: 200, ollama: reached(path), then: func(t *testing.T, a answer) {
			ids("a")(t, a)
			if a.Header.Get("X-Evil") != "" {
				t.Error("the answer contains a header of the client")
			}
		}, why: "the second line is a separate header, and is never returned"},
		row{name: "B103 X-Request-Id: a good one", send: g.post(path, small, "X-Request-Id: req_0199:a/b=c"), want: 200, ollama: reached(path), then: ids("req_0199:a/b=c"), why: "the client's value is returned as X-Client-Request-Id if it is plain and short; X-Request-Id is always the gateway's"},
	)
}

func http1(t *testing.T, a answer) {
	if a.Header.Get("Upgrade") != "" {
		t.Error("the service offers an upgrade")
	}
}

// invited checks that n 1xx answers come before the answer.
func invited(n string) func(*testing.T, answer) {
	return func(t *testing.T, a answer) {
		if got := a.Header.Get("1xx"); got != n {
			t.Errorf("got %q 1xx answers, want %q", got, n)
		}
	}
}

// claims are values of X-Forwarded-For, and whether the key of 203.0.113.7 is accepted with them through the proxies 127.0.0.1 and
// 10.0.0.0/8.
var claims = []struct {
	name   string
	fields []string
	enters bool
}{
	{"no list", nil, false},
	{"the client", []string{"X-Forwarded-For: 203.0.113.7"}, true},
	{"what the client claims in front", []string{"X-Forwarded-For: 203.0.113.7, 198.51.100.1"}, false},
	{"what another claims in front", []string{"X-Forwarded-For: 198.51.100.1, 203.0.113.7"}, true},
	{"through two proxies", []string{"X-Forwarded-For: 198.51.100.1, 203.0.113.7, 10.1.2.3"}, true},
	{"a proxy's address claimed in front", []string{"X-Forwarded-For: 203.0.113.7, 198.51.100.1, 10.1.2.3"}, false},
	{"in two lines", []string{"X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 203.0.113.7"}, true},
	{"in two lines, the claim first", []string{"X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 198.51.100.1"}, false},
	{"50 hops", []string{"X-Forwarded-For: " + strings.Repeat("198.51.100.1, ", 49) + "203.0.113.7"}, true},
	{"50 hops of claims", []string{"X-Forwarded-For: " + strings.Repeat("203.0.113.7, ", 49) + "198.51.100.1"}, false},
	{"garbage behind", []string{"X-Forwarded-For: 203.0.113.7, garbage"}, false},
	{"garbage in front", []string{"X-Forwarded-For: garbage, 203.0.113.7"}, true},
	{"with a port", []string{"X-Forwarded-For: 203.0.113.7:4711"}, true},
	{"unknown", []string{"X-Forwarded-For: unknown"}, false},
	{"empty", []string{"X-Forwarded-For:"}, false},
	{"an empty part behind", []string{"X-Forwarded-For: 203.0.113.7,"}, false},
	{"in IPv6", []string{"X-Forwarded-For: ::ffff:203.0.113.7"}, true},
	{"octal", []string{"X-Forwarded-For: 0313.0.113.7"}, false},
	{"other fields", []string{"X-Real-Ip: 203.0.113.7", "Forwarded: for=203.0.113.7", "True-Client-Ip: 203.0.113.7", "X-Client-Ip: 203.0.113.7", "Cf-Connecting-Ip: 203.0.113.7"}, false},
	{"SQL", []string{"X-Forwarded-For: ' OR 1=1--"}, false},
}

// proxyRows send the client's address through a trusted proxy.
func proxyRows(t *testing.T, g *gate) []row {
	key := g.key(t, `,"allowed_ips":["203.0.113.7"]`).Secret
	zone := g.key(t, `,"allowed_ips":["fe80::7"]`).Secret
	here := g.key(t, `,"allowed_ips":["127.0.0.1"]`).Secret
	var rows []row
	for _, c := range claims {
		r := row{name: "B102 X-Forwarded-For: " + c.name, send: send(tagList, "", append(c.fields, bearer(key))...), want: 403, says: "from your address"}
		if c.enters {
			r.want, r.says, r.ollama = 200, "", listed
		}
		rows = append(rows, r)
	}
	return append(rows,
		row{name: "B102 X-Forwarded-For: a zone", send: send(tagList, "", "X-Forwarded-For: fe80::7%eth0", bearer(zone)), want: 200, ollama: listed},
		row{name: "B102 X-Forwarded-For: for an invalid entry, the peer counts", send: send(tagList, "", "X-Forwarded-For: garbage", bearer(here)), want: 200, ollama: listed},
	)
}

// peerRows send a client's address when no proxy is trusted. The service ignores it.
func peerRows(t *testing.T, g *gate) []row {
	there := g.key(t, `,"allowed_ips":["203.0.113.7"]`).Secret
	here := g.key(t, `,"allowed_ips":["127.0.0.1"]`).Secret
	var rows []row
	for _, c := range claims {
		rows = append(rows,
			row{name: "B102 X-Forwarded-For: from no proxy, " + c.name, send: send(tagList, "", append(c.fields, bearer(there))...), want: 403, says: "from your address"},
			row{name: "B102 X-Forwarded-For: from no proxy, the peer's key, " + c.name, send: send(tagList, "", append(c.fields, bearer(here))...), want: 200, ollama: listed},
		)
	}
	return rows
}

// After a few bad keys from one address, further bad keys from it get 429. Clients with a good key or without a key are not affected. The
// same bad key counts once a minute, however often a client repeats it. A bad key next to a good one counts if it is as long as a key.
func TestBadKeysFromOneAddress(t *testing.T) {
	g := openGate(t, "AUTH_FAILURES_PER_MINUTE=3")
	bad := func(n int) string { return send(tagList, "", bearer(fmt.Sprintf("%s%02d", g.user[:len(g.user)-2], n))) }
	passedOver := func(text string) string { return send("GET /k/"+g.user+"/api/tags", "", bearer(text)) }
	const leftover = "sk-proj-of-another-service"
	other := g.key(t, "").Secret
	throttled := row{name: "throttled", send: bad(4), want: 429, says: "too many requests with a bad API key", has: "X-Should-Retry: false", then: func(t *testing.T, a answer) {
		var seconds int
		if _, err := fmt.Sscan(a.Header.Get("Retry-After"), &seconds); err != nil || seconds < 1 || seconds > 60 {
			t.Errorf("Retry-After is %q, want 1 to 60", a.Header.Get("Retry-After"))
		}
	}}
	messages, guess := throttled, throttled
	messages.name, messages.send = "throttled, messages", send("POST /v1/messages", small, "x-api-key: nonsense")
	guess.name, guess.send = "throttled, another guess next to a good key", passedOver(leftover+"2")
	right := throttled
	right.name, right.send = "throttled, a right guess next to a good key", passedOver(other)
	rows := []row{{name: "no key is not counted", send: send(tagList, ""), want: 401}}
	for range 10 {
		rows = append(rows,
			row{name: "one text, ten times", send: bad(1), want: 401},
			row{name: "a leftover next to a good key, ten times", send: passedOver(leftover), want: 200, ollama: listed})
	}
	for n := range 10 {
		rows = append(rows, row{name: "short texts next to a good key", send: passedOver(fmt.Sprint("ollama", n)), want: 200, ollama: listed})
	}
	rows = append(rows,
		row{name: "the third text", send: bad(3), want: 401},
		throttled, messages, guess, right,
		row{name: "the leftover of before", send: passedOver(leftover), want: 200, ollama: listed},
		row{name: "a good key", send: send(tagList, "", bearer(g.user)), want: 200, ollama: listed},
		row{name: "a good key of an admin", send: g.asAdmin("GET /api/keys", ""), want: 200},
		row{name: "no key", send: send(tagList, ""), want: 401},
		row{name: "what needs none", send: send("GET /healthz", ""), want: 200},
		throttled)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { g.play(t, r) })
	}
	g.close(t)
}

// Pages of other origins may call the service only if a setting names their origin, and then with all headers that browser clients send.
func TestPagesOfOtherOrigins(t *testing.T) {
	const origin = "https://chat.example.net"
	preflight := func(origin, headers string) string {
		return send("OPTIONS /v1/messages", "", "Origin: "+origin, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: "+headers)
	}
	const theirs = "anthropic-beta,anthropic-dangerous-direct-browser-access,anthropic-version,authorization,content-type,x-api-key,x-stainless-arch,x-stainless-lang"
	allows := func(want string) func(*testing.T, answer) {
		return func(t *testing.T, a answer) {
			if got := a.Header.Get("Access-Control-Allow-Origin"); got != want || a.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("Access-Control-Allow-Origin is %q, want %q", got, want)
			}
		}
	}
	none := openGate(t)
	for _, r := range []row{
		{name: "off: preflight", send: preflight(origin, theirs), want: 403, says: "CORS_ORIGINS=" + origin, then: allows("")},
		{name: "off: request", send: send(tagList, "", bearer(none.user), "Origin: "+origin), want: 200, ollama: listed, then: allows("")},
	} {
		t.Run(r.name, func(t *testing.T) { none.play(t, r) })
	}
	none.close(t)
	g := openGate(t, "CORS_ORIGINS="+origin+",chrome-extension://*")
	for _, r := range []row{
		{name: "on: preflight", send: preflight(origin, theirs), want: 204, by: ollamas, then: func(t *testing.T, a answer) {
			allows(origin)(t, a)
			if got := a.Header.Get("Access-Control-Allow-Headers"); got != theirs || a.Header.Get("Access-Control-Allow-Methods") != "POST" {
				t.Errorf("allowed is %q", got)
			}
		}},
		{name: "on: preflight with a field of an SDK to come", send: preflight(origin, "x-stainless-to-come"), want: 204, by: ollamas, then: allows(origin)},
		{name: "on: preflight with a cookie", send: preflight(origin, "cookie"), want: 204, by: ollamas, then: func(t *testing.T, a answer) {
			if got := a.Header.Get("Access-Control-Allow-Headers"); got != "" {
				t.Errorf("allowed is %q, want nothing", got)
			}
		}},
		{name: "on: preflight of an extension", send: preflight("chrome-extension://abcdef", "authorization,content-type,dangerously-allow-browser"), want: 204, by: ollamas, then: allows("chrome-extension://abcdef")},
		{name: "on: preflight of another origin", send: preflight("https://evil.example", theirs), want: 403, says: "CORS_ORIGINS=https://evil.example", then: allows("")},
		{name: "on: preflight of an origin that ends so", send: preflight("https://evil"+origin[8:], theirs), want: 403, then: allows("")},
		{name: "on: preflight of no name", send: preflight("null", theirs), want: 403, then: allows("")},
		{name: "on: request", send: send(tagList, "", bearer(g.user), "Origin: "+origin), want: 200, ollama: listed, then: func(t *testing.T, a answer) {
			allows(origin)(t, a)
			if !strings.Contains(a.Header.Get("Access-Control-Expose-Headers"), "X-Request-Id") {
				t.Error("the page may not read the request's id")
			}
		}},
		{name: "on: refusal", send: send("POST /v1/messages", small, "Origin: "+origin), want: 401, then: allows(origin)},
		{name: "on: request of another origin", send: send(tagList, "", bearer(g.user), "Origin: https://evil.example"), want: 200, ollama: listed, then: allows("")},
	} {
		t.Run(r.name, func(t *testing.T) { g.play(t, r) })
	}
	g.close(t)
}

// Of the client's header and trailer, Ollama gets only Accept and User-Agent.
func TestHeadersThatReachOllama(t *testing.T) {
	g := openGate(t)
	const canary = "CANARY4720"
	fields := []string{bearer(g.user)}
	for _, name := range []string{
		"Cookie", "Set-Cookie", "Proxy-Authorization", "Proxy-Connection", "Origin", "Referer", "Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
		"X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Uri", "X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Access-Token", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip",
		"Cf-Connecting-Ip", "X-Original-Url", "X-Rewrite-Url", "X-Http-Method-Override", "Idempotency-Key", "X-Idempotency-Key", "X-Request-Id", "X-Correlation-Id", "Traceparent",
		"Tracestate", "Baggage", "B3", "X-B3-Traceid", "Accept-Encoding", "Accept-Language", "Accept-Charset", "Cache-Control", "Pragma", "If-Match", "If-None-Match", "If-Modified-Since",
		"Range", "If-Range", "Te", "Keep-Alive", "Upgrade-Insecure-Requests", "Dnt", "Sec-Fetch-Mode", "Sec-Ch-Ua", "Sec-Websocket-Key", "Http2-Settings", "Priority", "Early-Data", "Max-Forwards",
		"Warning", "Date", "Server", "Location", "Allow", "Link", "Host-Override", "Content-Language", "Content-Location", "Content-Md5", "Digest", "Signature", "Authentication-Info",
		"Www-Authenticate", "Anthropic-Version", "Anthropic-Beta", "Openai-Organization", "Openai-Project", "Openai-Beta", "X-Stainless-Lang", "X-Stainless-Retry-Count", "X-Openwebui-User-Id",
		"X-Openwebui-User-Email", "X-Openwebui-User-Jwt", "X-Upstream-Token", "X-Amz-Security-Token", "X-Goog-Api-Key", "Api-Key", "X-Auth-Token", "X-Csrf-Token", "Session_id", "X_Custom",
		"X_Role", "Conversation_id", "__", "X-Policy", "X-Backend", "X-Ratelimit-Limit", "Retry-After",
	} {
		fields = append(fields, name+": "+canary)
	}
	for line := range strings.Lines("Accept: application/json, */*\nUser-Agent: probe/1 (x)\nConnection: keep-alive, Content-Length, Host, X-Upstream-Token, Accept, User-Agent, Content-Type\nContent-Type: text/plain\n") {
		fields = append(fields, strings.TrimSpace(line))
	}
	if len(fields) < 95 {
		t.Fatalf("only %d fields", len(fields))
	}
	want := []string{"Accept: application/json, */*", "Content-Length: ", "Content-Type: application/json", "User-Agent: probe/1 (x)"}
	for path, rest := range readers {
		upstream := path
		if path == "/v1/messages/count_tokens" {
			continue // the service itself answers
		}
		body := `{"model":"tiny",` + rest + `,"stream":false}`
		if path == "/api/show" {
			body = `{"model":"tiny"}`
		}
		for name, text := range map[string]string{
			"with a length": send("POST "+path, body, fields...),
			"in chunks with trailers": send("POST "+path, "", append(fields, "Transfer-Encoding: chunked", "Trailer: X-Evil, Authorization, User-Agent")...) +
				fmt.Sprintf("%x\r\n%s\r\n0\r\nX-Evil: %s\r\nAuthorization: %[3]s\r\nUser-Agent: %[3]s\r\nAccept: %[3]s\r\n\r\n", len(body), body, canary),
		} {
			t.Run(path+" "+name, func(t *testing.T) {
				g.play(t, row{name: name, send: text, want: 200, by: ollamas, ends: strings.Contains(name, "chunks"), ollama: func(t *testing.T, got []*ollamatest.Request) {
					reached(upstream)(t, got)
					onlyOurs(t, got[0], want, canary)
				}})
			})
		}
	}
	t.Run("GET", func(t *testing.T) {
		g.play(t, row{send: send(tagList, "", fields...), want: 200, ollama: func(t *testing.T, got []*ollamatest.Request) {
			listed(t, got)
			onlyOurs(t, got[0], []string{want[0], want[3]}, canary)
		}})
	})
	t.Run("HTTP/1.0", func(t *testing.T) {
		g.play(t, row{send: strings.Replace(send("POST /api/chat", small, fields...), "HTTP/1.1", "HTTP/1.0", 1), want: 200, ends: true, ollama: func(t *testing.T, got []*ollamatest.Request) {
			reached("/api/chat")(t, got)
			onlyOurs(t, got[0], want, canary)
		}})
	})
	g.close(t)
}

func onlyOurs(t *testing.T, r *ollamatest.Request, want []string, canary string) {
	t.Helper()
	var got []string
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, value := range r.Header[name] {
			if name == "Content-Length" {
				value = ""
			}
			got = append(got, name+": "+value)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("Ollama got the header\n%q\nwant\n%q", got, want)
	}
	if strings.Contains(fmt.Sprint(r.Header, r.Host, r.RequestURI, string(r.Body)), canary) || len(r.TransferEncoding) > 0 {
		t.Errorf("Ollama got %v %v", r.Header, r.TransferEncoding)
	}
}

// A client with Expect: 100-continue sends its body only after a 100. A refused client gets no 100.
func TestAClientThatWaitsToGoOn(t *testing.T) {
	g := openGate(t)
	c, err := net.Dial("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	head, body, _ := strings.Cut(g.post("/api/chat", small, "Expect: 100-continue"), "\r\n\r\n")
	io.WriteString(c, head+"\r\n\r\n")
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	in.ReadString('\n')
	io.WriteString(c, body)
	if a, err := readAnswer(in, http.MethodPost); err != nil || a.Status != http.StatusOK {
		t.Errorf("%d %s, %v", a.Status, a.Body, err)
	}
	g.close(t)
}
