package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// keyRows try changes of keys that admins should not make by mistake, and that users may not make.
func keyRows(t *testing.T, g *gate) []row {
	var rows []row
	create := func(name, fields string, want int) {
		rows = append(rows, row{name: name, send: g.asAdmin("POST /api/keys", "{"+fields+"}"), want: want})
	}
	for name, text := range map[string]string{
		"empty": "", "a space": " ", "10 KiB": strings.Repeat("x", 10<<10), "101 characters": strings.Repeat("ä", 101), "newline": `a\nb`, "escape": `\u001b[31m`, "right to left": `a\u202eb`,
		"zero width": `a\u200bb`, "line separator": `a\u2028b`, "NUL": `a\u0000`, "half a surrogate": `a\ud800`, "bytes": "a\xff",
	} {
		create("B105 names of keys: "+name, `"name":"`+text+`","role":"user"`, 400)
	}
	for name, text := range map[string]string{"a tag": "<script>alert(1)</script>", "a formula": "=cmd()|' /C calc'!A0", "SQL": "'; DROP TABLE keys;--"} {
		rows = append(rows, row{
			name: "B105 names of keys: " + name, send: g.asAdmin("POST /api/keys", `{"name":"`+text+`","role":"user"}`), want: 200, has: "Content-Type: application/json",
			then: func(t *testing.T, a answer) {
				if a.object(t)["name"] != text {
					t.Errorf("%v %v", a.object(t)["name"], a.Header)
				}
			},
			why: "a name is only text: browsers do not take the JSON for a page, and CSV has a `'` before it",
		})
	}
	for _, role := range []string{`"root"`, `["admin"]`, `"Admin"`, `""`, "null", "1"} {
		create("B106 roles: "+role, `"name":"x","role":`+role, 400)
	}
	create("B106 roles: none", `"name":"x"`, 400)
	for _, field := range []string{`"id":"1"`, `"hash":"x"`, `"created_at":"2020-01-01T00:00:00Z"`, `"api_key":"oas_0123456789_x"`, `"key_preview":"oas_0123456789"`, `"revoked_at":null`, `"Static":true`} {
		create("B107 fields that only the service sets: "+field, `"name":"x","role":"user",`+field, 400)
	}
	create("B108 unknown fields", `"name":"x","role":"user","rate_limt":5`, 400)
	for _, limit := range []string{"-1", "1.5", `"10"`, "9223372036854775808", "NaN", "true", "[]", "1e400"} {
		create("B109 limits: "+limit, `"name":"x","role":"user","rate_limit":`+limit, 400)
		for _, field := range []string{"tokens_per_hour", "tokens_per_day", "gpu_seconds_per_day", "max_tokens_per_request"} {
			create("B109 limits: "+field+" "+limit, `"name":"x","role":"user","`+field+`":`+limit, 400)
		}
		create("B109 limits: at one time, "+limit, `"name":"x","role":"user","max_concurrent":`+limit, 400)
	}
	create("B109 limits: 0 at one time", `"name":"x","role":"user","max_concurrent":0`, 400)
	create("B109 limits: 0", `"name":"x","role":"user","rate_limit":0`, 200)
	create("B109 limits: null", `"name":"x","role":"user","rate_limit":null`, 200)
	rows[len(rows)-1].why = "0 blocks a key, null is no limit"
	for _, at := range []string{`"2020-01-01T00:00:00Z"`, `"9999-12-31T23:59:59Z"`, `"` + time.Now().AddDate(1, 0, 0).Format("2006-01-02T15:04:05") + `"`, `"tomorrow"`, "1893456000", `"0000-00-00T00:00:00Z"`} {
		create("B110 expiries: "+at, `"name":"x","role":"user","expires_at":`+at, 400)
	}
	k := g.key(t, "")
	for _, grace := range []string{"-1", "315360000", "259201", "1.5", `"60"`} {
		rows = append(rows, row{name: "B111 grace periods: " + grace, send: g.asAdmin("POST /api/keys/"+k.Preview+"/rotate", `{"grace_seconds":`+grace+`}`), want: 400})
	}
	var own madeKey
	call(t, "POST", g.URL+"/api/keys", g.admin, `{"name":"own","role":"admin"}`).want(t, http.StatusOK).decode(t, &own)
	g.secrets = append(g.secrets, own.Secret)
	// This runs before B113. An admin key can be revoked only if there is another one; after that, the first key is the last one.
	rows = append(rows, row{name: "B114 the key in use is revoked", send: send("DELETE /api/keys/"+own.Preview, "", bearer(own.Secret)), want: 200, then: func(t *testing.T, _ answer) {
		call(t, "GET", g.URL+"/api/keys", own.Secret, "").want(t, http.StatusUnauthorized)
	}})
	none := g.key(t, `,"models":[]`).Secret
	rows = append(rows,
		row{name: "B112 lists of models: empty", send: send("POST /api/chat", small, bearer(none)), want: 404, why: "an empty list allows no model, no list allows every local one"},
		row{name: "B112 lists of models: none", send: g.post("/api/chat", small), want: 200, ollama: reached("/api/chat")},
		row{name: "B112 lists of models: what is no pattern", send: g.asAdmin("PATCH /api/keys/"+k.Preview, `{"models":["../x"]}`), want: 400},
		row{name: "B113 the last admin key: revoked", send: g.asAdmin("DELETE /api/keys/"+g.admin[:14], ""), want: 409},
		row{name: "B113 the last admin key: made a user's", send: g.asAdmin("PATCH /api/keys/"+g.admin[:14], `{"role":"user"}`), want: 409},
		row{name: "B113 the last admin key: made to expire", send: g.asAdmin("PATCH /api/keys/"+g.admin[:14], `{"expires_at":"`+time.Now().Add(time.Hour).Format(time.RFC3339)+`"}`), want: 409},
		row{name: "B115 other people's keys: as a user", send: send("GET /api/keys/"+k.Preview, "", bearer(g.user)), want: 403},
		row{name: "B115 other people's keys: one's own as a user", send: send("DELETE /api/keys/"+g.user[:14], "", bearer(g.user)), want: 403},
	)
	for _, preview := range []string{"..%2f..%2fx", "oas_0123456789", strings.ToUpper(k.Preview), k.Preview + "x", k.Preview[:13], k.Preview + "%00", "%27%20OR%201=1--", "1", "env-admin"} {
		for _, method := range []string{"GET", "DELETE"} {
			rows = append(rows, row{name: "B115 other people's keys: " + method + " " + preview, send: g.asAdmin(method+" /api/keys/"+preview, ""), want: 404})
		}
	}
	for query, want := range map[string]int{
		"limit=1e9": 400, "limit=-1": 400, "limit=1000000": 400, "cursor=garbage": 400, "cursor=%00": 400, "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z": 400, "from=yesterday": 400,
		"key=%27%20OR%201=1": 200, "unknown=1": 400, "from=1926-01-01T00:00:00Z&to=2126-01-01T00:00:00Z": 200,
	} {
		rows = append(rows, row{name: "B116 queries of the books: " + query, send: g.asAdmin("GET /api/admin/requests?"+query, ""), want: want})
	}
	return rows
}
