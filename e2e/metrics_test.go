package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A real Prometheus scrapes the service with an admin key and native histograms. The queries of docs/metrics.md return data.
func TestPrometheusScrapesTheService(t *testing.T) {
	s := serve(t, "OLLAMA_BASE_URL="+ollamaURL+"?name=gpu1")
	user := s.makeKey(t, "")
	for range 3 {
		call(t, "POST", s.URL+"/api/chat", user.Secret, `{"model":"tiny","messages":[{"role":"user","content":"hello"}],"options":{"num_predict":4}}`).want(t, http.StatusOK)
	}
	call(t, "GET", s.URL+"/metrics", user.Secret, "").want(t, http.StatusForbidden)
	call(t, "GET", s.URL+"/metrics", "", "").want(t, http.StatusUnauthorized)
	text := call(t, "GET", s.URL+"/metrics", s.Admin, "").want(t, http.StatusOK).Body
	if strings.Contains(text, user.Preview) || strings.Contains(text, "oas_") {
		t.Error("/metrics contains a key")
	}
	check := exec.CommandContext(t.Context(), "promtool", "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}

	ask := prometheus(t, s, true).ask
	poll(t, "scrape by Prometheus", func() bool { return ask(`ollama_api_booked_requests_total{outcome="ok"}`) == "3" })
	for query, want := range map[string]string{
		`ollama_api_backend_up{backend="gpu1"}`:                                        "1",
		`histogram_count(ollama_api_response_seconds{model="tiny:latest"})`:            "3", // of the native histogram, which the text format does not contain
		`histogram_count(ollama_api_time_to_first_token_seconds{model="tiny:latest"})`: "3",
		`sum(ollama_api_tokens_total{model="tiny:latest",direction="completion"})`:     "12",
		`sum(ollama_api_refused_requests_total{reason=~"forbidden|unauthorized"})`:     "2",
	} {
		if got := ask(query); got != want {
			t.Errorf("%s is %q, want %s", query, got, want)
		}
	}
	p95, err := strconv.ParseFloat(ask(`histogram_quantile(0.95, ollama_api_response_seconds{model="tiny:latest"})`), 64)
	if err != nil || p95 <= 0 || p95 > 30 {
		t.Errorf("got a 95th percentile of %v (%v)", p95, err)
	}
}

// prom is a running Prometheus.
type prom struct {
	t       *testing.T
	address string
}

// prometheus starts a Prometheus that scrapes s every second as the job ollama-api-service, with native or classic histograms.
func prometheus(t *testing.T, s *service, native bool, rules ...string) *prom {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	scheme, target, _ := strings.Cut(s.URL, "://")
	config, err := json.Marshal(map[string]any{
		"global":     map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files": rules,
		"scrape_configs": []any{map[string]any{
			"job_name": "ollama-api-service", "scheme": scheme, "authorization": map[string]any{"credentials_file": "key"},
			"tls_config":     map[string]any{"insecure_skip_verify": true}, // the TLS tests verify the certificate
			"static_configs": []any{map[string]any{"targets": []string{target}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"prometheus.yml": config, "key": []byte(s.Admin)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address=" + address}
	if native {
		args = append(args, "--enable-feature=native-histograms")
	}
	cmd := exec.Command("prometheus", args...)
	var log bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	dieWithTests(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("Prometheus said\n%s", tail(redact(log.String())))
		}
	})
	return &prom{t, address}
}

// values returns the values of all series that a query finds.
func (p *prom) values(query string) ([]string, error) {
	a, err := tryCall(p.t.Context(), "GET", "http://"+p.address+"/api/v1/query?query="+url.QueryEscape(query), "", "")
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK {
		return nil, fmt.Errorf("%d %s", a.Status, a.Body)
	}
	var answer struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	a.decode(p.t, &answer)
	var values []string
	for _, r := range answer.Data.Result {
		values = append(values, fmt.Sprint(r.Value[1]))
	}
	return values, nil
}

// ask returns the only value of a query.
func (p *prom) ask(query string) string {
	values, err := p.values(query)
	if err != nil || len(values) != 1 {
		return fmt.Sprint(values, err)
	}
	return values[0]
}
