package server_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// metrics returns the samples of a scrape by the text before the value.
func (b *bed) metrics() map[string]float64 {
	b.t.Helper()
	r := b.do("GET", "/metrics", adminSecret, "")
	if r.status != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), "text/plain") {
		b.t.Fatalf("got %d %v %s, want 200", r.status, r.header, r.body)
	}
	samples := map[string]float64{}
	for line := range strings.Lines(r.body) {
		i := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || i < 0 {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			b.t.Fatalf("%q: %v", line, err)
		}
		samples[line[:i]] = v
	}
	return samples
}

func TestMetricsCountWhatHappened(t *testing.T) {
	b := start(t, setup{slots: 3, maxQueue: 77})
	key, preview := b.key(`{"name":"user","role":"user","rate_limit":6}`)
	b.spend(key, "tiny", 3)
	b.ollama.Script("POST", "/v1/chat/completions", ollamatest.Answer{Tokens: 3, NoTerminal: true})
	b.do("POST", "/v1/chat/completions", key, `{"model":"tiny","messages":[{"role":"user","content":"four chars"}],"stream":true}`)
	b.ollama.Script("POST", "/api/embed", ollamatest.Answer{Status: 404, Body: `{"error":"model \"nosuch\" not found"}`})
	b.do("POST", "/api/embed", key, `{"model":"nosuch","input":"x"}`)
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 2, PromptTokens: 5})
	b.do("POST", "/api/generate", key, `{"model":"tiny","prompt":"x","stream":false}`)
	for range 2 {
		b.do("POST", "/api/chat", key, `{"model":"tiny"}`)
	}
	b.do("GET", "/api/tags", "oas_0123456789_01234567890123456789012345678901abcdef", "")
	b.do("POST", "/api/chat", adminSecret, `{"model":"tiny","model":"other"}`)
	b.do("GET", "/api/admin/stats", key, "")
	b.do("GET", "/nowhere/at/all", key, "")
	b.do("GET", "/api/tags", adminSecret, "")

	got := b.metrics()
	for sample, want := range map[string]float64{
		`requests_total{class="inference",method="POST",route="/api/chat",status="200"}`:     3,
		`requests_total{class="inference",method="POST",route="/api/chat",status="429"}`:     2,
		`requests_total{class="inference",method="POST",route="/api/chat",status="400"}`:     1,
		`requests_total{class="metadata",method="GET",route="/api/tags",status="200"}`:       1,
		`requests_total{class="metadata",method="GET",route="/api/tags",status="401"}`:       1,
		`requests_total{class="(none)",method="GET",route="(none)",status="404"}`:            1,
		`booked_requests_total{backend="gpu1",model="tiny:latest",outcome="ok"}`:             4,
		`booked_requests_total{backend="gpu1",model="tiny:latest",outcome="upstream_error"}`: 1,
		`booked_requests_total{backend="gpu1",model="tiny:latest",outcome="timeout"}`:        0,
		`booked_requests_total{backend="gpu1",model="(other)",outcome="refused"}`:            1,
		`tokens_total{direction="prompt",estimated="false",model="tiny:latest"}`:             38,
		`tokens_total{direction="completion",estimated="false",model="tiny:latest"}`:         23,
		`tokens_total{direction="completion",estimated="true",model="tiny:latest"}`:          3,
		`refused_requests_total{reason="rate_limited"}`:                                      2,
		`refused_requests_total{reason="unauthorized"}`:                                      1,
		`refused_requests_total{reason="forbidden"}`:                                         1,
		`refused_requests_total{reason="bad_request"}`:                                       1,
		`refused_requests_total{reason="not_found"}`:                                         1,
		`refused_requests_total{reason="queue_full"}`:                                        0,
		`failed_requests_total{reason="upstream_error"}`:                                     1,
		`failed_requests_total{reason="not_found"}`:                                          1,
		`time_to_first_token_seconds_count{model="tiny:latest"}`:                             4,
		`response_seconds_count{model="tiny:latest"}`:                                        4,
		`response_seconds_bucket{model="tiny:latest",le="+Inf"}`:                             4,
		`time_per_output_token_seconds_count{model="tiny:latest"}`:                           3,
		`queue_wait_seconds_count`:                                                           6,
		`open_requests`:                                                                      1,
		`in_flight_requests{backend="gpu1"}`:                                                 0,
		`slots_per_model{backend="gpu1"}`:                                                    3,
		`waiting_requests`:                                                                   0,
		`waiting_requests_limit`:                                                             77,
		`journal_open_requests`:                                                              0,
		`journal_failing{part="journal"}`:                                                    0,
		`journal_failing{part="database"}`:                                                   0,
		`backend_up{backend="gpu1"}`:                                                         1,
	} {
		if have, there := got["ollama_api_"+sample]; !there || have != want {
			t.Errorf("%s is %v (%v), want %v", sample, have, there, want)
		}
	}
	if n := got[`ollama_api_slot_seconds_total{backend="gpu1",model="tiny:latest"}`]; n <= 0 || n > 30 {
		t.Errorf("got %v slot seconds, want more than 0, at most 30", n)
	}
	for name := range got {
		if strings.Contains(name, preview) || strings.Contains(name, "oas_") || strings.Contains(name, "env-admin") || strings.Contains(name, "nosuch") || strings.Contains(name, "nowhere") {
			t.Errorf("a label contains text that clients chose: %s", name)
		}
	}
}

func TestMetricsShowWhatRunsAndWaits(t *testing.T) {
	b := start(t, setup{slots: 1})
	gate := make(chan struct{})
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 1, Gate: gate})
	key := b.user()
	done := make(chan reply, 2)
	for range 2 {
		go func() { done <- b.do("POST", "/api/chat", key, `{"model":"tiny","stream":false}`) }()
	}
	b.ollama.WaitRequestTo(1, "POST", "/api/chat")
	got := b.metrics()
	for got["ollama_api_waiting_requests"] == 0 { // the second request is still on its way
		got = b.metrics()
	}
	for sample, want := range map[string]float64{`in_flight_requests{backend="gpu1"}`: 1, "waiting_requests": 1, "journal_open_requests": 1, "open_requests": 3} {
		if got["ollama_api_"+sample] != want {
			t.Errorf("%s is %v, want %v", sample, got["ollama_api_"+sample], want)
		}
	}
	close(gate)
	for range 2 {
		if r := <-done; r.status != 200 {
			t.Errorf("got %d %s, want 200", r.status, r.body)
		}
	}
	if got := b.metrics(); got["ollama_api_queue_wait_seconds_count"] != 2 || got["ollama_api_queue_wait_seconds_sum"] <= 0 || got[`ollama_api_in_flight_requests{backend="gpu1"}`] != 0 {
		t.Errorf("after all requests, got %v, want 2, more than 0, 0", got)
	}
}

// The time between tokens begins at the first byte. It contains neither the wait for that byte nor the first token.
func TestTimePerOutputToken(t *testing.T) {
	b := start(t, setup{})
	header, gate := make(chan struct{}), make(chan struct{})
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 11, HeaderGate: header, Gate: gate})
	done := make(chan reply)
	key := b.user()
	go func() { done <- b.do("POST", "/api/chat", key, `{"model":"tiny"}`) }()
	b.ollama.WaitRequestTo(1, "POST", "/api/chat")
	before := time.Now()
	close(header)
	gate <- struct{}{} // Ollama sends the first token
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 1})
	b.do("POST", "/api/generate", key, `{"model":"tiny"}`) // one token has no time between tokens
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 9})
	b.do("POST", "/api/generate", key, `{"model":"tiny","stream":false}`) // an answer in one piece does not show it either
	close(gate)
	<-done
	most := time.Since(before).Seconds()
	got := b.metrics()
	sum, n := got[`ollama_api_time_per_output_token_seconds_sum{model="tiny:latest"}`], got[`ollama_api_time_per_output_token_seconds_count{model="tiny:latest"}`]
	// Eleven words are eleven tokens with ten pauses between them.
	if n != 1 || sum <= 0 || sum > most/10 {
		t.Errorf("got %v answers with %v s per token, want 1 with at most %v", n, sum, most/10)
	}
}

func TestMetricsOfTheStoreAndOfCertificates(t *testing.T) {
	end := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	b := start(t, setup{change: func(o *server.Options) {
		o.Expiry = func() map[string]time.Time { return map[string]time.Time{"gateway.example.net": end} }
	}})
	b.spend(b.user(), "tiny", 3)
	if err := b.books.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := b.metrics()
	if n := got[`ollama_api_store_batches_total{result="moved"}`]; n < 1 || n > 3 || got[`ollama_api_store_rows_total`] != 3 || got[`ollama_api_store_batch_seconds_total`] <= 0 {
		t.Errorf("batches %v, rows %v, seconds %v, want at least 1, at most 3, 3, more than 0", n, got[`ollama_api_store_rows_total`], got[`ollama_api_store_batch_seconds_total`])
	}
	if at := got[`ollama_api_tls_certificate_expiry_timestamp_seconds{name="gateway.example.net"}`]; at != float64(end.Unix()) {
		t.Errorf("the certificate ends at %v, want %v", at, float64(end.Unix()))
	}
	if _, there := start(t, setup{}).metrics()[`ollama_api_tls_certificate_expiry_timestamp_seconds{name="gateway.example.net"}`]; there {
		t.Error("the certificate's end is a metric without TLS")
	}
}

// Clients choose the names of models. Only names that a backend has answered for become labels, and at most a hundred of them.
func TestModelLabelsAreBounded(t *testing.T) {
	b := start(t, setup{})
	key := b.admin()
	b.ollama.Script("POST", "/api/embed", ollamatest.Answer{Body: `{"embeddings":[[1]],"prompt_eval_count":2}`})
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Status: 404, Body: `{"error":"not found"}`})
	for i := range 500 {
		b.do("POST", "/api/generate", key, fmt.Sprintf(`{"model":"made-up-%d"}`, i))
	}
	for i := range 150 {
		if r := b.do("POST", "/api/embed", key, fmt.Sprintf(`{"model":"real-%d","input":"x"}`, i)); r.status != 200 {
			t.Fatal(r.status, r.body)
		}
	}
	label := regexp.MustCompile(`model="([^"]*)"`)
	models := map[string]bool{}
	var tokens float64
	for name, v := range b.metrics() {
		if m := label.FindStringSubmatch(name); m != nil {
			models[m[1]] = true
		}
		if strings.HasPrefix(name, `ollama_api_tokens_total{direction="prompt",estimated="false"`) {
			tokens += v
		}
	}
	if len(models) != 101 || !models["(other)"] || !models["real-99:latest"] || models["real-100:latest"] || models["made-up-1:latest"] {
		t.Errorf("got %d models as labels, want 100", len(models))
	}
	if tokens != 300 {
		t.Errorf("got %v tokens in all, want 300", tokens)
	}
}

func TestMetricsWithoutAKey(t *testing.T) {
	ask := func(b *bed, change func(*http.Request)) int {
		req := b.request("GET", "/metrics", "", "")
		if change != nil {
			change(req)
		}
		return b.send(req).status
	}
	closed := start(t, setup{})
	if got := ask(closed, nil); got != 401 {
		t.Errorf("without the setting: %d, want 401", got)
	}
	if r := closed.do("GET", "/metrics", closed.user(), ""); r.status != 403 {
		t.Errorf("a user's key: %d, want 403", r.status)
	}
	open := start(t, setup{change: func(o *server.Options) { o.MetricsOpen = true }})
	if got := ask(open, nil); got != 200 {
		t.Errorf("from this machine, with the setting: got %d, want 200", got)
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for name, change := range map[string]func(*http.Request){
		"forwarded": header("X-Forwarded-For", "127.0.0.1"), "forwarded by the standard": header("Forwarded", "for=127.0.0.1"), "via": header("Via", "1.1 proxy"),
		"a foreign origin": header("Origin", "http://evil.example"), "from another site": header("Sec-Fetch-Site", "cross-site"),
		"a name that points here": func(r *http.Request) { r.Host = "evil.example" },
	} {
		if got := ask(open, change); got != 401 {
			t.Errorf("%s: %d, want 401", name, got)
		}
	}
	if r := open.do("GET", "/api/admin/stats", "", ""); r.status != 401 {
		t.Errorf("the setting opens another route: %d, want 401", r.status)
	}
	behind := start(t, setup{change: func(o *server.Options) {
		o.MetricsOpen, o.Live.TrustedProxies = true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}})
	if got := ask(behind, nil); got != 401 {
		t.Errorf("from a proxy that names no client: %d, want 401", got)
	}
}

// docs/metrics.md explains each of our metrics with its labels, and no metric that does not exist.
func TestMetricsAreDocumented(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) {
		o.Expiry = func() map[string]time.Time { return map[string]time.Time{"gateway.example.net": time.Now()} }
		o.BackupEvery, o.LastBackup = time.Hour, time.Now
	}})
	key := b.user()
	b.spend(key, "tiny", 1)
	text := b.do("GET", "/metrics", adminSecret, "").body
	kinds := regexp.MustCompile(`(?m)^# TYPE ollama_api_(\w+) (\w+)$`).FindAllStringSubmatch(text, -1)
	var want []string
	for _, kind := range kinds {
		labels := map[string]bool{}
		sample := regexp.MustCompile(`(?m)^ollama_api_` + kind[1] + `(?:_bucket)?\{([^}]*)\}`).FindStringSubmatch(text)
		if sample != nil {
			for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(sample[1], -1) {
				labels[l[1]] = l[1] != "le"
			}
		}
		var names []string
		for name, ours := range labels {
			if ours {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		want = append(want, fmt.Sprintf("ollama_api_%s %s %s", kind[1], kind[2], strings.Join(names, ",")))
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range regexp.MustCompile("(?m)^\\| `(ollama_api_\\w+)` \\| (\\w+) \\|([^|]*)\\|").FindAllStringSubmatch(string(doc), -1) {
		names := regexp.MustCompile(`\w+`).FindAllString(line[3], -1)
		slices.Sort(names)
		got = append(got, line[1]+" "+line[2]+" "+strings.Join(names, ","))
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) < 15 || !slices.Equal(got, want) {
		t.Errorf("docs/metrics.md has\n%s\nand /metrics\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// A documented query with a metric that does not exist would never return anything.
	known := map[string]bool{}
	for _, kind := range kinds {
		known["ollama_api_"+kind[1]] = true
	}
	for _, name := range regexp.MustCompile(`ollama_api_\w+`).FindAllString(string(doc), -1) {
		if base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, ""); !known[name] && !known[base] {
			t.Errorf("docs/metrics.md names %s, which does not exist", name)
		}
	}
}

// The metrics of backups exist only if there is a schedule. 0 means that no backup was ever made.
func TestMetricsOfBackups(t *testing.T) {
	const last, every = "ollama_api_last_backup_timestamp_seconds", "ollama_api_backup_interval_seconds"
	if _, ok := start(t, setup{}).metrics()[last]; ok {
		t.Errorf("%s exists without a schedule", last)
	}
	for _, at := range []time.Time{{}, time.Unix(1_800_000_000, 0)} {
		got := start(t, setup{change: func(o *server.Options) {
			o.BackupEvery, o.LastBackup = 24*time.Hour, func() time.Time { return at }
		}}).metrics()
		if v, ok := got[last]; !ok || v != max(0, float64(at.Unix())) || got[every] != 86400 {
			t.Errorf("%s %v, %s %v, want %v and a day", last, v, every, got[every], at)
		}
	}
}
