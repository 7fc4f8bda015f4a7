package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// lookup is one query of the dashboard, the alert rules or the documentation.
type lookup struct{ where, query string }

var comparison = regexp.MustCompile(` (==|>|<) [0-9][-+.0-9e]*`)

// dashboardQueries returns the queries of the dashboard, with Grafana's variables replaced.
func dashboardQueries(t *testing.T) (list []lookup) {
	t.Helper()
	text, err := os.ReadFile("../deploy/grafana/ollama-api-service.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Annotations struct {
			List []struct{ Name, Expr string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "30s", "$__range", "1m", "$job", ".*")
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			list = append(list, lookup{"panel " + p.Title, variables.Replace(q.Expr)})
		}
	}
	for _, a := range d.Annotations.List {
		if a.Expr != "" { // an empty result is good; the part before the comparison must find data
			list = append(list, lookup{"annotation " + a.Name, comparison.ReplaceAllString(variables.Replace(a.Expr), "")})
		}
	}
	return list
}

// ruleQueries returns the queries of the alert rules as Prometheus has read them, without their comparisons. A healthy service has no
// series for an alert, but neither has an alert for a metric that does not exist.
func (p *prom) ruleQueries() (list []lookup) {
	p.t.Helper()
	var answer struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Query, Health, LastError string }
			}
		}
	}
	call(p.t, "GET", "http://"+p.address+"/api/v1/rules", "", "").want(p.t, http.StatusOK).decode(p.t, &answer)
	for _, g := range answer.Data.Groups {
		for _, r := range g.Rules {
			if r.Health == "err" {
				p.t.Errorf("%s: %s", r.Name, r.LastError)
			}
			inner := comparison.ReplaceAllString(r.Query, "")
			if inner == r.Query {
				p.t.Errorf("%s has no comparison: %s", r.Name, r.Query)
			}
			list = append(list, lookup{"alert " + r.Name, inner})
		}
	}
	return list
}

// documentedQueries returns the queries of docs/metrics.md.
func documentedQueries(t *testing.T) (list []lookup) {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(block[1]) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				list = append(list, lookup{"docs/metrics.md", comparison.ReplaceAllString(line, "")})
			}
		}
	}
	return list
}

// choices matches the label values that a query selects.
var choices = regexp.MustCompile(`(ollama_api_\w+)\{([^}]*)\}`)

// keepAsking sends requests of all kinds until the test ends.
func keepAsking(t *testing.T, s *service, c *http.Client) {
	t.Helper()
	send := func(method, path, key, body string) (int, string, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
		if err != nil {
			return 0, "", err
		}
		req.Header.Set("Authorization", "Bearer "+key)
		res, err := c.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return res.StatusCode, string(text), err
	}
	status, text, err := send("POST", "/api/keys", s.Admin, `{"name":"load","role":"user","rate_limit":null}`)
	key := secretKey.FindString(text)
	if err != nil || key == "" {
		t.Fatalf("no key: %d %v", status, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range 2 { // with one slot, they must wait for each other
		running.Go(func() {
			for ctx.Err() == nil {
				for _, r := range []struct {
					path, key, body string
					want            int
				}{
					{"/api/chat", key, `{"model":"tiny","messages":[{"role":"user","content":"hello"}],"options":{"num_predict":8}}`, 200},
					{"/v1/chat/completions", key, `{"model":"llama2","messages":[{"role":"user","content":"hello"}],"max_tokens":8,"stream":true}`, 200},
					{"/api/embed", key, `{"model":"tiny","input":"hello"}`, 200},
					{"/api/chat", key, `{"model":"nosuch"}`, 404},
					{"/api/chat", "no-key", `{"model":"tiny"}`, 401},
				} {
					if status, text, err := send("POST", r.path, r.key, r.body); ctx.Err() == nil && (err != nil || status != r.want) {
						t.Errorf("%s: %d %v, want %d: %s", r.path, status, err, r.want, redact(text))
						return
					}
				}
			}
		})
	}
	t.Cleanup(func() { stop(); running.Wait() })
}

// A real Prometheus scrapes the service under load. Every query of the dashboard, the alert rules and the documentation finds data, with
// native and with classic histograms. No query uses a metric or a label value that does not exist.
func TestEveryQueryFindsData(t *testing.T) {
	ca, files := newAuthority(t), newPair(t)
	files.renew(t, ca)
	s := serve(t, "OLLAMA_BASE_URL="+ollamaURL+"?name=gpu1&slots=1", "TLS_CERT="+files.cert, "TLS_KEY="+files.key, "BACKUP_EVERY=24h")
	keepAsking(t, s, ca.client(t))
	rules, err := filepath.Abs("../deploy/prometheus/ollama-api-service.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	native, classic := prometheus(t, s, true, rules), prometheus(t, s, false, rules)
	scrapes := func(p *prom) int {
		n, _ := strconv.Atoi(p.ask(`min(count_over_time(ollama_api_open_requests[1m]))`)) // an error means that there is none yet
		return n
	}
	poll(t, "scrape by Prometheus", func() bool { return scrapes(native) >= 3 && scrapes(classic) >= 3 })
	for name, p := range map[string]*prom{"native": native, "classic": classic} {
		queries := append(dashboardQueries(t), p.ruleQueries()...)
		if n := len(queries); n < 60 {
			t.Errorf("%d queries", n)
		}
		if documented := documentedQueries(t); len(documented) < 8 {
			t.Errorf("%d queries in the documentation", len(documented))
		} else {
			queries = append(queries, documented...)
		}
		for _, q := range queries {
			if strings.HasPrefix(q.where, "docs") && onlyOf(q.query, name) {
				continue
			}
			p.finds(name, q)
			for _, m := range choices.FindAllStringSubmatch(q.query, -1) {
				p.hasLabels(q.where, m[1], m[2])
			}
		}
	}
}

// onlyOf reports whether a documented query is for the other kind of histograms. The documentation has each query for both kinds.
func onlyOf(query, kind string) bool {
	if !strings.Contains(query, "histogram_quantile") {
		return false
	}
	return strings.Contains(query, "_bucket") != (kind == "classic")
}

// finds waits until a query finds numbers.
func (p *prom) finds(name string, q lookup) {
	p.t.Helper()
	var values []string
	var err error
	deadline := patienceOver()
	for {
		values, err = p.values(q.query)
		numbers := 0
		for _, v := range values {
			if v != "NaN" && !strings.HasSuffix(v, "Inf") {
				numbers++
			}
		}
		if err == nil && numbers > 0 {
			return
		}
		if deadline() {
			p.t.Errorf("%s: %s found %v (%v) with %s histograms", q.where, q.query, values, err, name)
			return
		}
	}
}

// hasLabels checks that every label value that a query selects exists.
func (p *prom) hasLabels(where, metric, matchers string) {
	p.t.Helper()
	for _, m := range regexp.MustCompile(`(\w+)=~?"([^"]*)"`).FindAllStringSubmatch(matchers, -1) {
		if m[1] == "job" {
			continue
		}
		for value := range strings.SplitSeq(m[2], "|") {
			if n := p.ask(fmt.Sprintf(`count(%s{%s=%q}) > 0`, metric, m[1], value)); strings.Contains(n, "[") {
				p.t.Errorf("%s: there is no %s with %s=%q", where, metric, m[1], value)
			}
		}
	}
}
