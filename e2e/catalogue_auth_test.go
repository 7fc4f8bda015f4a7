package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/test/ollamatest"
)

// oneSentence is the error message for every bad key, whatever is wrong with it.
const oneSentence = `{"error":"this API key is not valid: unknown, revoked or expired; check that it is complete, or ask an administrator for a new one",` +
	`"detail":"this API key is not valid: unknown, revoked or expired; check that it is complete, or ask an administrator for a new one"}`

const tagList = "GET /api/tags" // a route that every key may use

// listed is a request that Ollama got for tagList.
func listed(t *testing.T, got []*ollamatest.Request) {
	t.Helper()
	reached("/api/tags")(t, got)
}

func basic(password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("any:"+password))
}

func credentialRows(t *testing.T, g *gate) []row {
	key, other := g.user, g.key(t, "").Secret
	unknown, _, err := auth.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hello := func(fields ...string) string { return send(tagList, "", fields...) }
	rows := []row{
		{name: "B1 no credential: native", send: hello(), want: 401, says: "contains no API key"},
		{name: "B1 no credential: chat completions", send: send("POST /v1/chat/completions", small), want: 401},
		{name: "B1 no credential: messages", send: send("POST /v1/messages", small), want: 401},
		{name: "B1 no credential: responses", send: send("POST /v1/responses", small), want: 401},
		{name: "B1 no credential: HEAD", send: send("HEAD /api/tags", ""), want: 401},
		{name: "B1 no credential: the ollama command", send: hello("User-Agent: ollama/0.6.5 (amd64 linux) Go/go1.26.8"), want: 403, why: "the `ollama` command does not show the message of a 401, but shows that of a 403"},
		{name: "B2 empty Authorization", send: hello("Authorization:"), want: 401},
		{name: "B3 only Bearer", send: hello("Authorization: Bearer"), want: 401},
		{name: "B4 Bearer and spaces", send: hello("Authorization: Bearer   "), want: 401},
		{name: "B5 case of the scheme: bearer", send: hello("Authorization: bearer " + key), want: 200, ollama: listed},
		{name: "B5 case of the scheme: BEARER", send: hello("Authorization: BEARER " + key), want: 200, ollama: listed},
		{name: "B5 case of the scheme: x-api-key", send: hello("X-API-KEY: " + key), want: 200, ollama: listed},
		{name: "B6 one more space or tab: two spaces", send: hello("Authorization: Bearer  " + key), want: 200, ollama: listed},
		{name: "B6 one more space or tab: a tab", send: hello("Authorization: Bearer\t" + key), want: 200, ollama: listed},
		{name: "B6 one more space or tab: three spaces", send: hello("Authorization: Bearer   " + key), want: 401},
		{name: "B7 Basic: no base64", send: hello("Authorization: Basic !!!"), want: 401},
		{name: "B7 Basic: no password", send: hello(basic("")), want: 401},
		{name: "B7 Basic: a wrong password", send: hello(basic("hunter2")), want: 401, says: oneSentence},
		{name: "B7 Basic: the key as password", send: hello(basic(key)), want: 200, ollama: listed, why: "a key is accepted as the password of Basic (LangChain makes it from `https://user:key@host`), but the service never offers Basic, so browsers do not ask for a password"},
		{name: "B8 Token", send: hello("Authorization: Token " + key), want: 401},
		{name: "B9 a key without a scheme", send: hello("Authorization: " + key), want: 200, ollama: listed, why: "clients for other gateways send keys in this form, and it can have no other meaning"},
		{name: "B9 a key without a scheme: two that differ", send: hello("Authorization: "+key, "x-api-key: "+other), want: 400, says: "more than one credential"},
		{name: "B9 a key without a scheme: api-key", send: hello("api-key: " + key), want: 200, ollama: listed},
		{name: "B9 a key without a scheme: api_key", send: hello("api_key: " + key), want: 400, says: "underscore"},
		{name: "B9 a key without a scheme: Bearer twice", send: hello("Authorization: Bearer Bearer " + key), want: 401, says: "contains Bearer twice"},
		{name: "B10 two Authorization headers: that differ", send: hello(bearer(key), bearer(other)), want: 400, says: "more than one credential"},
		{name: "B10 two Authorization headers: the same", send: hello(bearer(key), bearer(key)), want: 400},
		{name: "B10 two Authorization headers: one empty", send: hello(bearer(key), "Authorization:"), want: 200, ollama: listed, why: "an empty value is not a credential"},
		{name: "B10 two Authorization headers: two x-api-key", send: hello("x-api-key: "+key, "X-Api-Key: "+key), want: 400},
		{name: "B11 two places that differ: header and x-api-key", send: hello(bearer(key), "x-api-key: "+other), want: 400},
		{name: "B11 two places that differ: path and header", send: send("GET /k/"+other+"/api/tags", "", bearer(key)), want: 400},
		{name: "B11 two places that differ: path and x-api-key", send: send("GET /k/"+other+"/v1/models", "", "x-api-key: "+key), want: 400},
		{name: "B11 two places that differ: three carriers", send: send("GET /k/"+key+"/api/tags", "", bearer(key), "api-key: "+other), want: 400, says: "more than one credential"},
		{name: "B11 two places that differ: a user's and an unknown key", send: send("GET /k/"+key+"/api/tags", "", bearer(unknown)), want: 400, says: "more than one credential"},
		{name: "B11 two places that differ: a key of another scheme", send: hello("Authorization: Token "+other, "x-api-key: "+key), want: 400, says: "more than one credential"},
		{name: "B11 two places that differ: a good one and an empty one", send: hello(bearer(key), "x-api-key:"), want: 200, ollama: listed, why: "an empty value is not a credential"},
		{name: "B11 two places that differ: an empty Bearer and the path", send: send("GET /k/"+key+"/api/tags", "", "Authorization: Bearer "), want: 200, ollama: listed, why: "Copilot in VS Code sends this"},
		{name: "B11 two places that differ: a placeholder and the path", send: send("GET /k/"+key+"/v1/models", "", "Authorization: Bearer ollama"), want: 200, ollama: reached("/v1/models"), why: "`ollama launch` sets this placeholder; a text without the form of a key cannot be a key"},
		{name: "B11 two places that differ: a placeholder and a wrong key", send: send("GET /k/"+key[:20]+"/api/tags", "", "Authorization: Bearer ollama"), want: 401, says: oneSentence},
		{name: "B11 two places that differ: a mistyped key and the path", send: send("GET /k/"+key+"/api/tags", "", bearer(key[:len(key)-1])), want: 200, ollama: listed},
		{name: "B11 two places that differ: Basic of something else", send: hello(basic("hunter2"), "x-api-key: "+key), want: 200, ollama: listed},
		{name: "B11 two places that differ: all three the same", send: send("GET /k/"+key+"/api/tags", "", bearer(key), "x-api-key: "+key), want: 200, ollama: listed},
		{name: "B12 two keys with a comma", send: hello("Authorization: Bearer " + key + ", Bearer " + other), want: 400},
		{name: "B13 a key in the query: api_key", send: send("GET /api/tags?api_key="+key, ""), want: 401},
		{name: "B13 a key in the query: key", send: send("GET /v1/models?key="+key, ""), want: 401},
		{name: "B13 a key in the query: access_token", send: send("POST /v1/messages?access_token="+key, small), want: 401},
		{name: "B13 a key in the query: with a good one in the header", send: send("GET /api/tags?api_key="+other, "", bearer(key)), want: 200, ollama: listed},
		{name: "B19 a key of 64 KiB: in the header", send: hello(bearer(strings.Repeat("a", 64<<10))), want: 431, by: nethttp, ends: true},
		{name: "B19 a key of 64 KiB: in the path", send: send("GET /k/"+strings.Repeat("a", 20<<10)+"/api/tags", ""), want: 414},
		{name: "B19 a key of 64 KiB: one of 1 KiB", send: hello(bearer(strings.Repeat("a", 1<<10))), want: 401, says: oneSentence},
	}
	rows = append(rows, badKeyRows(g, key)...)
	rows = append(rows, stateRows(t, g)...)
	return append(rows, identityRows(g)...)
}

// badKeyRows send texts that are not keys, in each header or path that can carry them. TestABadKeyNeverReachesTheDatabase (internal/server)
// shows that none of them is looked up in the database, because only there can the database be closed.
func badKeyRows(g *gate, key string) []row {
	const flipped = "0123456789"
	last := key[len(key)-1]
	sum := sha256.Sum256([]byte(key))
	var rows []row
	for _, c := range []struct{ name, text string }{
		{"B14 a wrong checksum", key[:len(key)-1] + string(flipped[(int(last)+1)%10])},
		{"B15 another prefix", "sk-" + key[3:]},
		{"B16 a character too few", key[:len(key)-1]},
		{"B17 more than the key: newline", key + "\n"},
		{"B17 more than the key: NUL", key + "\x00"},
		{"B17 more than the key: zero width space", key + "\u200b"},
		{"B17 more than the key: full width", "\uff4f\uff41\uff53_" + key[4:]},
		{"B17 more than the key: byte order mark", "\ufeff" + key},
		{"B18 SQL: or", "' OR 1=1--"},
		{"B18 SQL: drop", "'; DROP TABLE keys;--"},
		{"B18 SQL: in a key of the right length", key[:15] + "' OR '1'='1'--" + key[29:]},
		{"B20 bytes that are not UTF-8", "\xff\xfe\x80" + key[3:]},
		{"B21 the SHA-256 of a key", hex.EncodeToString(sum[:])},
	} {
		ways := map[string]string{"Basic": send(tagList, "", basic(c.text)), "path": send("GET /k/"+percent(c.text)+"/api/tags", "")}
		if !strings.ContainsAny(c.text, "\n\x00") { // a header cannot contain these (B94)
			ways["bearer"] = send(tagList, "", bearer(c.text))
			ways["x-api-key"] = send(tagList, "", "x-api-key: "+c.text)
			ways["admin"] = send("GET /api/keys", "", bearer(c.text))
		}
		sep := ": "
		if strings.Contains(c.name, ": ") {
			sep = ", "
		}
		for way, text := range ways {
			r := row{name: c.name + sep + way, send: text, want: 401, says: oneSentence, not: c.text}
			rows = append(rows, r)
		}
	}
	return rows
}

// percent encodes each byte for a path.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

// stateRows use keys that are no longer valid. The API creates and ends them.
func stateRows(t *testing.T, g *gate) []row {
	revoked := g.key(t, "")
	call(t, "DELETE", g.URL+"/api/keys/"+revoked.Preview, g.admin, "").want(t, http.StatusOK)
	expired := g.key(t, `,"expires_at":"`+time.Now().Add(time.Second).Format(time.RFC3339Nano)+`"`)
	rotate := func(k madeKey, grace string) {
		var fresh madeKey
		call(t, "POST", g.URL+"/api/keys/"+k.Preview+"/rotate", g.admin, `{"grace_seconds":`+grace+`}`).want(t, http.StatusOK).decode(t, &fresh)
		g.secrets = append(g.secrets, fresh.Secret)
	}
	rotated, after, within := g.key(t, ""), g.key(t, ""), g.key(t, "")
	rotate(rotated, "0")
	rotate(after, "1")
	rotate(within, "3600")
	blocked := g.makeKey(t, `,"rate_limit":0`)
	for _, k := range []madeKey{expired, after} {
		poll(t, "end of the key", func() bool { return call(t, "GET", g.URL+"/api/tags", k.Secret, "").Status == http.StatusUnauthorized })
	}
	var rows []row
	for _, c := range []struct{ name, key string }{
		{"B22 revoked", revoked.Secret},
		{"B23 expired", expired.Secret},
		{"B24 a rotated secret: no grace", rotated.Secret},
		{"B24 a rotated secret: after its grace", after.Secret},
	} {
		sep := ": "
		if strings.Contains(c.name, ": ") {
			sep = ", "
		}
		for way, text := range map[string]string{
			"bearer": send(tagList, "", bearer(c.key)), "x-api-key": send(tagList, "", "x-api-key: "+c.key), "Basic": send(tagList, "", basic(c.key)),
			"path": send("GET /k/"+c.key+"/api/tags", ""), "chat": send("POST /api/chat", small, bearer(c.key)),
		} {
			rows = append(rows, row{name: c.name + sep + way, send: text, want: 401, says: oneSentence})
		}
	}
	inGrace := func(t *testing.T, a answer) {
		if until, err := time.Parse(time.RFC3339, a.Header.Get("X-Key-Expires")); err != nil || time.Until(until) > time.Hour {
			t.Errorf("X-Key-Expires is %v, %v", until, err)
		}
	}
	return append(rows,
		row{name: "B25 a blocked key", send: send("POST /api/chat", small, bearer(blocked.Secret)), want: 403, why: "a blocked key (`rate_limit` 0) is still known, so the message says that it is blocked"},
		row{name: "B26 an old secret within its grace", send: send(tagList, "", bearer(within.Secret)), want: 200, has: "Deprecation: true", ollama: listed, then: inGrace},
	)
}

// identityRows claim another identity in a header.
func identityRows(g *gate) []row {
	var rows []row
	for _, line := range []string{
		"GET /api/keys", "POST /api/keys", "GET /api/keys/oas_0123456789", "PATCH /api/keys/oas_0123456789", "DELETE /api/keys/oas_0123456789",
		"POST /api/keys/oas_0123456789/rotate", "GET /api/admin/stats", "GET /api/admin/usage", "GET /api/admin/requests", "GET /metrics",
	} {
		body := ""
		if !strings.HasPrefix(line, "GET") {
			body = `{"name":"mine","role":"admin"}`
		}
		rows = append(rows, row{name: "B27 a user on admins' routes: " + line, send: send(line, body, bearer(g.user)), want: 403, says: "needs an admin key"})
	}
	digest := "sha256:" + strings.Repeat("0", 64)
	for line, body := range map[string]string{
		"POST /api/pull": `{"model":"tiny"}`, "POST /api/push": `{"model":"tiny"}`, "POST /api/create": `{"model":"x","from":"tiny"}`,
		"DELETE /api/delete": `{"model":"tiny"}`, "POST /api/copy": `{"source":"tiny","destination":"x"}`, "POST /api/blobs/" + digest: "x", "HEAD /api/blobs/" + digest: "",
	} {
		rows = append(rows, row{name: "B28 a user changes models: " + line, send: send(line, body, bearer(g.user)), want: 403})
	}
	claims := []string{
		"X-Forwarded-User: admin", "X-Forwarded-Email: admin@example.net", "X_Role: admin", "X-Role: admin", "X-Forwarded-Uri: /healthz", "X-Original-URL: /healthz",
		"X-Rewrite-URL: /healthz", "X-Forwarded-Prefix: /healthz", "User-Agent: kube-probe/1.30", "Cookie: key=" + g.admin, "X-Forwarded-Access-Token: " + g.admin,
		"Proxy-Authorization: Bearer " + g.admin, "X-Real-Ip: 127.0.0.1",
	}
	hosted := func(line, host string, fields ...string) string {
		return strings.Replace(send(line, "", fields...), "Host: 127.0.0.1", "Host: "+host, 1)
	}
	return append(rows,
		row{name: "B29 claims in headers: without a key", send: send(tagList, "", claims...), want: 401},
		row{name: "B29 claims in headers: a user on an admins' route", send: send("GET /api/keys", "", append(claims, bearer(g.user))...), want: 403},
		row{name: "B29 claims in headers: a user on a route of users", send: send(tagList, "", append(claims, bearer(g.user))...), want: 200, ollama: listed},
		row{name: "B29 claims in headers: odd Host", send: hosted(tagList, "127.0.0.1/healthz"), want: 400, by: nethttp, ends: true},
		row{name: "B29 claims in headers: foreign Host", send: hosted("GET /api/keys", "healthz.evil.example:1", bearer(g.user)), want: 403},
		row{name: "B29 claims in headers: foreign Host and a good key", send: hosted(tagList, "evil.example", bearer(g.user)), want: 200, ollama: listed},
		row{name: "B29 claims in headers: empty Host", send: hosted(tagList, "", bearer(g.user)), want: 200, ollama: listed},
	)
}
