package deploy_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	rulesFile = "prometheus/ollama-api-service.rules.yml"
	rulesTest = "prometheus/ollama-api-service.rules.test.yml"
	dashboard = "grafana/ollama-api-service.json"
)

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}

// Prometheus' own tool reads the rules, and tests each one on series that must raise it and on series that must not.
func TestAlertRules(t *testing.T) {
	promtool(t, "check", "rules", rulesFile)
	promtool(t, "test", "rules", rulesTest)

	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile(rulesFile)
	if err == nil {
		err = yaml.Unmarshal(text, &rules)
	}
	tried, err2 := os.ReadFile(rulesTest)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	count := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			count++
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s has the severity %q", r.Alert, s)
			}
			if a := r.Annotations; a["summary"] == "" || len(a["description"]) < 80 || !strings.HasSuffix(a["description"], ".") {
				t.Errorf("%s has no summary, or no description of what to do, want a text, at least 80, %q at its end", r.Alert, ".")
			}
			for _, want := range []string{"alertname: " + r.Alert + ", eval_time: 100m, exp_alerts: [] }", `alertname="` + r.Alert + `"`} {
				if !strings.Contains(string(tried), want) {
					t.Errorf("%s has no line %q in %s", r.Alert, want, rulesTest)
				}
			}
		}
	}
	if count < 10 {
		t.Errorf("%d rules, want at least 10", count)
	}
}

// panel has the fields that Grafana 11 and 12 need to show a panel.
type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Datasource               *source
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []struct {
		Datasource        source
		Expr, RefID       string
		LegendFormat      *string
		Instant, Range    bool
		EditorMode, Query string
	}
}

type source struct{ Type, UID string }

func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		ID            *int
		UID, Title    string
		SchemaVersion int
		Panels        []panel
		Templating    struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.ID != nil || d.UID != "ollama-api-service" || d.Title == "" || d.SchemaVersion < 39 {
		t.Errorf("id %v, uid %q, title %q, schema %d: an import would not work, want nil, %q, a text, at least 39", d.ID, d.UID, d.Title, d.SchemaVersion, "ollama-api-service")
	}
	variables := map[string]string{}
	for _, v := range d.Templating.List {
		variables[v.Name] = v.Type
	}
	if variables["datasource"] != "datasource" || variables["job"] != "query" {
		t.Errorf("variables %v, want %q, %q", variables, "datasource", "query")
	}
	ids, taken, rows := map[int]bool{}, map[[2]int]string{}, []string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("panel %d %q: its id is taken or 0, or it has no title", p.ID, p.Title)
		}
		ids[p.ID] = true
		g := p.GridPos
		if g.X < 0 || g.X+g.W > 24 || g.W <= 0 || g.H <= 0 {
			t.Errorf("%q is at %+v, want at least 0, at most 24, more than 0, more than 0", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%q overlaps %q, want none", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		checkPanel(t, p)
	}
	if want := []string{"Overview", "Queue", "Throughput", "Failures", "Latency", "Cost", "Health"}; !slices.Equal(rows, want) {
		t.Errorf("rows %q", rows)
	}
	// A name of a data source of one installation would show nothing in another.
	for _, m := range regexp.MustCompile(`"uid": "([^"]*)"`).FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains([]string{"${datasource}", "-- Grafana --", "ollama-api-service"}, m[1]) {
			t.Errorf("a data source of one installation: %s", m[1])
		}
	}
}

func checkPanel(t *testing.T, p panel) {
	t.Helper()
	want := source{"prometheus", "${datasource}"}
	if !slices.Contains([]string{"timeseries", "stat", "bargauge"}, p.Type) || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || p.Datasource == nil || *p.Datasource != want || len(p.Targets) == 0 {
		t.Errorf("%q of type %q lacks a description, a unit, the data source or a query", p.Title, p.Type)
	}
	for i, q := range p.Targets {
		if q.Datasource != want || q.RefID != fmt.Sprintf("%c", 'A'+i) || q.LegendFormat == nil || q.Instant == q.Range {
			t.Errorf("query %d of %q: %+v", i, p.Title, q)
		}
		// A query that does not select by job would mix two installations.
		if n, m := strings.Count(q.Expr, `{job=~"$job"`), len(regexp.MustCompile(`\b(ollama_api|process|go)_\w+`).FindAllString(q.Expr, -1)); n != m || n == 0 {
			t.Errorf("query %s of %q selects %d of %d series by job, want %v, not 0", q.RefID, p.Title, n, m, m)
		}
	}
}
