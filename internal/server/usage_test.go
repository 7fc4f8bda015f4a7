package server_test

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/test/ollamatest"
)

// spend sends n chats of 11 and 7 tokens with a key.
func (b *bed) spend(key, model string, n int) {
	b.t.Helper()
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 7, PromptTokens: 11})
	for range n {
		if r := b.do("POST", "/api/chat", key, `{"model":"`+model+`","messages":[{"role":"user","content":"a prompt"}]}`); r.status != 200 {
			b.t.Fatalf("got %d %s, want 200", r.status, r.body)
		}
	}
}

// ask sends a GET with the admin key and returns the answer.
func ask[T any](b *bed, path string) T {
	b.t.Helper()
	r := b.do("GET", path, adminSecret, "")
	var v T
	if err := json.Unmarshal([]byte(r.body), &v); r.status != 200 || err != nil {
		b.t.Fatalf("%s: %d %v %s, want 200", path, r.status, err, r.body)
	}
	return v
}

type usageAnswer struct {
	From, To  time.Time
	Usage     []api.UsageGroup
	Groups    int64
	Truncated bool
	Total     api.Usage
}

func TestUsageByEverything(t *testing.T) {
	b := start(t, setup{})
	anna, annaPreview := b.key(`{"name":"=Anna's key","owner":"=Anna","role":"user"}`)
	_, otherPreview := b.key(`{"name":"other","role":"user"}`)
	b.spend(anna, "tiny", 3)
	b.spend(adminSecret, "other:3b", 1)
	b.ollama.Script("POST", "/v1/embeddings", ollamatest.Answer{Status: 500, Body: `{"error":"no"}`})
	b.do("POST", "/v1/embeddings", anna, `{"model":"tiny","input":"x"}`)

	got := ask[usageAnswer](b, "/api/admin/usage?group_by=key,model")
	compare(t, fmt.Sprintf("total %+v of %d groups", got.Total, got.Groups),
		fact{"got.Groups", got.Groups, 2},
		fact{"got.Truncated", got.Truncated, false},
		fact{"got.Total.Requests", got.Total.Requests, 5},
		fact{"got.Total.PromptTokens", got.Total.PromptTokens, 45},
		fact{"got.Total.CompletionTokens", got.Total.CompletionTokens, 28},
	)
	if d := got.To.Sub(got.From); d <= 29*24*time.Hour || d > 30*24*time.Hour || !got.From.Equal(got.From.Truncate(24*time.Hour)) {
		t.Errorf("from %v to %v", got.From, got.To)
	}
	first, second := got.Usage[0], got.Usage[1]
	if first.KeyOwner != "=Anna" || second.KeyOwner != "" {
		t.Errorf("the owners are %q and %q, want %q and none", first.KeyOwner, second.KeyOwner, "=Anna")
	}
	if *first.Key != annaPreview || first.KeyName != "=Anna's key" || *first.Model != "tiny:latest" || first.Requests != 4 || first.PromptTokens != 34 ||
		first.BytesIn == 0 || first.BytesOut == 0 || *first.AverageSeconds <= 0 || *first.AverageFirstByte > *first.AverageSeconds || first.LastRequest == nil {
		t.Errorf("first group %+v", first)
	}
	compare(t, fmt.Sprintf("second group %+v", second),
		fact{"*second.Key", *second.Key, "env-admin"},
		fact{"second.KeyName", second.KeyName, "ADMIN_API_KEY"},
		fact{"*second.Model", *second.Model, "other:3b"},
		fact{"second.CompletionTokens", second.CompletionTokens, 7},
		fact{"second.Endpoint != nil", second.Endpoint != nil, false},
		fact{"second.Start != nil", second.Start != nil, false},
	)
	for query, want := range map[string]int64{
		"key=" + annaPreview:                                    4,
		"key=" + annaPreview + ",env-admin":                     5,
		"key=" + otherPreview:                                   0,
		"model=tiny":                                            4,
		"model=TINY:latest,other:3b":                            5,
		"endpoint=/api/chat":                                    4,
		"backend=gpu1":                                          5,
		"backend=gpu2":                                          0,
		"outcome=upstream_error":                                1,
		"outcome=ok&group_by=outcome,day":                       4,
		"from=2020-01-01T00:00:00Z":                             5,
		"from=2020-01-01T00:00:00%2B01:00":                      5,
		"to=" + time.Now().Format(time.DateOnly) + "T00:00:00Z": 0,
		"to=9999-12-31T00:00:00Z&from=0001-01-02T00:00:00Z":     5,
		"group_by=hour,backend":                                 5,
		"limit=1&group_by=model":                                5,
		"group_by=day,key&tz=Asia/Kathmandu":                    5,
		"group_by=day&tz=-11:45":                                5,
	} {
		if got := ask[usageAnswer](b, "/api/admin/usage?"+query); got.Total.Requests != want {
			t.Errorf("%s: %d requests, want %d", query, got.Total.Requests, want)
		}
	}
	if got := ask[usageAnswer](b, "/api/admin/usage?limit=1&group_by=model"); len(got.Usage) != 1 || !got.Truncated || got.Groups != 2 {
		t.Errorf("one of two groups: %+v", got)
	}
	// Days begin at midnight in the requested time zone, and times are shown in it.
	east := ask[usageAnswer](b, "/api/admin/usage?group_by=day&tz=%2B05:45")
	for _, at := range []time.Time{*east.Usage[0].Start, east.From} {
		if _, offset := at.Zone(); offset != 20_700 || at.Format(time.TimeOnly) != "00:00:00" {
			t.Errorf("a day begins at %v, want 20_700, %q", at, "00:00:00")
		}
	}
	if table := b.do("GET", "/api/admin/usage?group_by=day&tz=%2B05:45&format=csv", adminSecret, ""); !strings.Contains(table.body, east.Usage[0].Start.Format(time.DateOnly)+"T00:00:00+05:45,") {
		t.Errorf("as CSV: %s", table.body)
	}
	// Revoked keys keep their usage and are marked.
	b.do("DELETE", "/api/keys/"+annaPreview, adminSecret, "")
	if got := ask[usageAnswer](b, "/api/admin/usage?group_by=key"); !got.Usage[0].Revoked || got.Usage[1].Revoked {
		t.Errorf("revoked: %+v", got.Usage)
	}
	// As CSV, requested in either way. A name is never a formula.
	for _, ask := range []string{"?group_by=key&format=csv", "?group_by=key"} {
		r := b.accept("/api/admin/usage"+ask, "text/csv;q=0.9, */*;q=0.1")
		if r.header.Get("Content-Type") != "text/csv; charset=utf-8" || r.header.Get("Content-Disposition") != `attachment; filename="usage.csv"` {
			t.Errorf("%s: got the header %v, want CSV as usage.csv", ask, r.header)
		}
		table, err := csv.NewReader(strings.NewReader(r.body)).ReadAll()
		if got, want := table[1][len(table[1])-1], "'=Anna"; got != want {
			t.Errorf("%s: the last cell is %q, want the owner %q", ask, got, want)
		}
		if err != nil || len(table) != 3 || !reflect.DeepEqual(table[1][:5], []string{annaPreview, "'=Anna's key", "true", "4", "34"}) ||
			strings.Join(table[0], ",") != "key,key_name,revoked,requests,prompt_tokens,completion_tokens,estimated_requests,slot_ms,average_response_time,average_time_to_first_byte,bytes_in,bytes_out,last_request,gpu_ms,queue_ms,key_owner" {
			t.Errorf("%s: %v\n%s", ask, err, r.body)
		}
	}
	if r := b.accept("/api/admin/usage?format=json", "text/csv"); r.header.Get("Content-Type") != "application/json" {
		t.Errorf("format must have precedence over Accept: got %s, want %q", r.header.Get("Content-Type"), "application/json")
	}
	// An answer that is not a table is always JSON.
	if r := b.accept("/api/admin/stats", "text/csv"); r.status != 200 || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("statistics: %d %s, want 200, %q", r.status, r.header.Get("Content-Type"), "application/json")
	}
}

func (b *bed) accept(path, accept string) reply {
	b.t.Helper()
	req := b.request("GET", path, adminSecret, "")
	req.Header.Set("Accept", accept)
	return b.send(req)
}

func TestRequestsOneByOne(t *testing.T) {
	b := start(t, setup{})
	key, preview := b.key(`{"name":"@key","owner":"+team","role":"user"}`)
	b.spend(key, "tiny", 3)
	b.ollama.Script("POST", "/v1/chat/completions", ollamatest.Answer{Tokens: 3, NoTerminal: true, PromptTokens: 5})
	req := b.request("POST", "/v1/chat/completions", key, `{"model":"tiny","messages":[{"role":"user","content":"PROMPTCANARY"}],"stream":true}`)
	req.Header.Set("X-Request-Id", "theirs-1")
	cut := b.send(req)

	type answer struct {
		Requests []map[string]any
		Next     *string `json:"next_cursor"`
	}
	all := b.do("GET", "/api/admin/requests", adminSecret, "")
	if strings.Contains(all.body, "PROMPTCANARY") || strings.Contains(all.body, key) || all.header.Get("X-Next-Cursor") != "" {
		t.Errorf("got %v %s, want no prompt, no key and no next page", all.header, all.body)
	}
	got := ask[answer](b, "/api/admin/requests")
	if len(got.Requests) != 4 || got.Next != nil {
		t.Fatalf("%d requests, next %v, want 4 of them, nil", len(got.Requests), got.Next)
	}
	newest, chat := got.Requests[0], got.Requests[1]
	for name, want := range map[string]any{
		"client": "go", "id": cut.header.Get("X-Request-Id"), "client_request_id": "theirs-1", "key": preview, "key_name": "@key", "key_owner": "+team", "model": "tiny:latest", "alias": "", "endpoint": "/v1/chat/completions",
		"class": "inference", "backend": "gpu1", "outcome": "upstream_error", "status": 200.0, "error_code": "upstream_error", "streamed": true,
		"completion_tokens": 3.0, "estimated": true, "ollama_total_ns": nil, "load_ms": nil, "ollama_eval_ns": nil, "client_addr": "127.0.0.1",
	} {
		if have, there := newest[name]; !there || have != want {
			t.Errorf("the cut stream: %s is %v, want %v", name, have, want)
		}
	}
	for name, want := range map[string]any{
		"endpoint": "/api/chat", "outcome": "ok", "error_code": "", "prompt_tokens": 11.0, "completion_tokens": 7.0, "estimated": false,
	} {
		if chat[name] != want {
			t.Errorf("the chat: %s is %v, want %v", name, chat[name], want)
		}
	}
	for _, name := range []string{"ttfb_ms", "total_ms", "slot_ms", "gpu_ms", "queue_ms", "loading_ms", "load_ms", "ollama_total_ns", "ollama_load_ns", "ollama_prompt_eval_ns", "bytes_in", "bytes_out"} {
		if n, ok := chat[name].(float64); !ok || n < 0 {
			t.Errorf("the chat: %s is %v", name, chat[name])
		}
	}
	if len(newest) != 34 {
		t.Errorf("a row has %d fields: %v, want 33 of them", len(newest), newest)
	}

	// The pages together are the same list, also as CSV.
	var ids []any
	query := ""
	for page := 0; page == 0 || query != ""; page++ {
		got := ask[answer](b, "/api/admin/requests?limit=1"+query)
		table := b.do("GET", "/api/admin/requests?format=csv&limit=1"+query, adminSecret, "")
		ids, query = append(ids, got.Requests[0]["id"]), ""
		if got.Next != nil {
			query = "&cursor=" + url.QueryEscape(*got.Next)
		}
		rows, err := csv.NewReader(strings.NewReader(table.body)).ReadAll()
		if err != nil || len(rows) != 2 || len(rows[0]) != 34 || rows[1][0] != ids[page] || rows[1][4] != "'@key" || rows[0][32] != "key_owner" || rows[1][32] != "'+team" || "&cursor="+table.header.Get("X-Next-Cursor") != query && query != "" {
			t.Fatalf("page %d as CSV: %v %v\n%s", page, err, table.header, table.body)
		}
	}
	for i, r := range got.Requests {
		if len(ids) != 4 || ids[i] != r["id"] {
			t.Fatalf("page by page %v, want 4 of them, %v", ids, r["id"])
		}
	}
	for query, want := range map[string]int{
		"outcome=ok": 3, "endpoint=/v1/chat/completions": 1, "key=env-admin": 0, "model=tiny&limit=2": 2, "to=2020-01-01T00:00:00Z": 0, "outcome=ok,upstream_error&backend=gpu1": 4,
	} {
		if got := ask[answer](b, "/api/admin/requests?"+query); len(got.Requests) != want {
			t.Errorf("%s: %d requests, want %d", query, len(got.Requests), want)
		}
	}
}

func TestAbsurdQuestionsAreRefused(t *testing.T) {
	b := start(t, setup{})
	for _, query := range []string{
		"limit=0", "limit=-1", "limit=1e9", "limit=100001", "limit=x", "from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z", "from=yesterday", "to=1.11.2026", "to=2026-11-31",
		"from=2026-11-01T00:00:00Z&to=2026-11-01T00:00:00Z", "outcome=great", "model=a/b/c/d/e", "format=xml", "unknown=1", "group_by=prompt", "group_by=key,key",
		"group_by=hour,day", "tz=Mars/Base", "tz=Local", "tz=../../etc/passwd", "tz=" + strings.Repeat("a", 65), "group_by=hour&from=2020-01-01T00:00:00Z", "from=2999-01-01T00:00:00Z", "key=" + strings.Repeat("a,", 101),
	} {
		if r := b.do("GET", "/api/admin/usage?"+query, adminSecret, ""); r.status != 400 || !strings.Contains(r.body, `"detail"`) {
			t.Errorf("usage %s: %d %s, want 400, %s in it", query, r.status, r.body, `"detail"`)
		}
	}
	good := "MS4xNzAwMDAwMDAwMDAwLmFiYw" // 1.1700000000000.abc
	if r := b.do("GET", "/api/admin/requests?cursor="+good, adminSecret, ""); r.status != 200 {
		t.Errorf("a good cursor: %d %s, want 200", r.status, r.body)
	}
	for _, query := range []string{
		"limit=0", "limit=1e9&cursor=garbage", "limit=1001", "cursor=garbage", "cursor=" + good + "%3D", "cursor=MS4tMS5hYmM", "cursor=MS54LmFiYw", "cursor=Mi4xLmFiYw",
		"cursor=" + strings.Repeat("a", 400), "cursor=MS4xLidPUiAxPTE", "from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z", "group_by=key",
	} {
		if r := b.do("GET", "/api/admin/requests?"+query, adminSecret, ""); r.status != 400 || !strings.Contains(r.body, `"detail"`) {
			t.Errorf("requests %s: %d %s, want 400, %s in it", query, r.status, r.body, `"detail"`)
		}
	}
}

// Dates without a time are days in tz, and the day in to is included. Weeks and months use the same time zone.
func TestPlainDaysAndLongerTimes(t *testing.T) {
	b := start(t, setup{})
	row := func(id string, at time.Time) api.Record {
		return api.Record{Admission: api.Admission{ID: id, At: at, Key: "oas_8rT2kLmN0q", Model: "tiny:latest", Endpoint: "/api/chat", Class: "inference", Backend: "gpu1"}, Outcome: api.OutcomeOK, Total: time.Second}
	}
	// Sunday evening in Berlin; Monday after midnight there, which is Sunday in UTC; the last minute of October and the first of November
	// there.
	rows := []api.Record{
		row("1", time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC)), row("2", time.Date(2026, 11, 22, 23, 30, 0, 0, time.UTC)),
		row("3", time.Date(2026, 10, 31, 22, 59, 0, 0, time.UTC)), row("4", time.Date(2026, 10, 31, 23, 0, 0, 0, time.UTC)),
		// Before and after the midnight that clocks in the Azores skip.
		row("5", time.Date(2026, 3, 29, 0, 30, 0, 0, time.UTC)), row("6", time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC)),
	}
	if _, err := b.store.AddRecords(t.Context(), rows); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"group_by=week&from=2026-11-16&to=2026-11-29":                         "2026-11-16T00:00:00Z 2",
		"group_by=week&from=2026-11-16&to=2026-11-29&tz=Europe/Berlin":        "2026-11-16T00:00:00+01:00 1, 2026-11-23T00:00:00+01:00 1",
		"group_by=month&from=2026-10-01&to=2026-11-30&tz=Europe/Berlin":       "2026-10-01T00:00:00+02:00 1, 2026-11-01T00:00:00+01:00 3",
		"group_by=month&from=2026-10-01&to=2026-11-30":                        "2026-10-01T00:00:00Z 2, 2026-11-01T00:00:00Z 2",
		"group_by=month,model&from=2026-11-01&to=2026-11-01&tz=Europe/Berlin": "2026-11-01T00:00:00+01:00 1",
		"group_by=day&from=2026-11-22&to=2026-11-22":                          "2026-11-22T00:00:00Z 2",
		"group_by=day&from=2026-03-20&to=2026-04-04&tz=Atlantic/Azores":       "2026-03-28T00:00:00-01:00 1, 2026-03-29T01:00:00Z 1",
		"group_by=day&to=2026-03-28&from=2026-03-28&tz=Atlantic/Azores":       "2026-03-28T00:00:00-01:00 1",
		"group_by=hour&from=2026-03-29&to=2026-03-29&tz=Atlantic/Azores":      "2026-03-29T01:00:00Z 1",
		"group_by=month&from=2026-03-28&to=2026-03-28&tz=Atlantic/Azores":     "2026-03-01T00:00:00-01:00 1",
		"group_by=day&from=2026-11-22&to=2026-11-22&tz=Europe/Berlin":         "2026-11-22T00:00:00+01:00 1",
		"group_by=day&from=2026-11-22T00:00:00Z&to=2026-11-22T23:30:00Z":      "2026-11-22T00:00:00Z 1",
		"group_by=day&from=2026-11-22&to=2026-11-22T23:30:00.001Z":            "2026-11-22T00:00:00Z 2",
	} {
		groups := []string{}
		for _, g := range ask[usageAnswer](b, "/api/admin/usage?"+strings.ReplaceAll(query, "+", "%2B")).Usage {
			groups = append(groups, g.Start.Format(time.RFC3339)+" "+strconv.FormatInt(g.Requests, 10))
		}
		if got := strings.Join(groups, ", "); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	for query, want := range map[string]int{"from=2026-11-22&to=2026-11-22": 2, "from=2026-11-22&to=2026-11-22&tz=Europe/Berlin": 1, "to=2026-10-31": 4, "to=2026-03-28&tz=Atlantic/Azores": 1, "to=2026-03-29&tz=Atlantic/Azores": 2, "from=2026-11-23": 0, "from=2026-11-23&tz=Europe/Berlin": 1} {
		r := b.do("GET", "/api/admin/requests?"+query, adminSecret, "")
		if got := r.json(t)["requests"].([]any); len(got) != want {
			t.Errorf("requests, %s: %d, want %d", query, len(got), want)
		}
	}
	if r := b.do("GET", "/api/admin/usage?group_by=month&format=csv&from=2026-10-01&to=2026-11-30", adminSecret, ""); !strings.HasPrefix(r.body, "month,requests,") || !strings.Contains(r.body, "2026-10-01T00:00:00Z,2,") {
		t.Errorf("CSV: %s, want %q at its start, %q in it", r.body, "month,requests,", "2026-10-01T00:00:00Z,2,")
	}
	for _, query := range []string{"group_by=week,day", "group_by=month,week", "group_by=hour,month", "group_by=year", "from=2026-13-01", "from=2026-11-31", "to=01.11.2026", "from=2026-11-02&to=2026-11-01", "tz=Local", "from=now"} {
		if r := b.do("GET", "/api/admin/usage?"+query, adminSecret, ""); r.status != 400 {
			t.Errorf("%s: %d %s, want 400", query, r.status, r.body)
		}
	}
}
