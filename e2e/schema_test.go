package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Schemas that crash Ollama or its runner do not reach it. Large but cheap schemas do, and are answered.
func TestSchemasBeforeARealOllama(t *testing.T) {
	s := serve(t)
	key := s.makeKey(t, "").Secret
	ask := func(schema string) answer {
		return call(t, "POST", s.URL+"/api/generate", key, `{"model":"tiny","prompt":"x","stream":false,"options":{"num_predict":4},"format":`+schema+`}`)
	}
	for name, schema := range map[string]string{
		"references in a circle":              `{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"$ref":"#/$defs/a"}}}`,
		"a reference to a part of a constant": `{"const":{"type":"string","pattern":"^(?:a)$"},"anyOf":[{"$ref":"#/const"}]}`,
		"a long name":                         `{"type":"object","properties":{"` + strings.Repeat("a", 100_000) + `":{}},"additionalProperties":{"type":"string"}}`,
		"levels":                              strings.Repeat(`{"type":"array","items":`, 3000) + `{}` + strings.Repeat(`}`, 3000),
		"items":                               `{"type":"array","items":{"type":"string"},"maxItems":100000000}`,
	} {
		if a := ask(schema); a.Status != http.StatusBadRequest || !strings.Contains(a.Body, "format: ") {
			t.Errorf("%s: %d %.300s", name, a.Status, a.Body)
		}
	}
	for name, pattern := range map[string]string{
		"a group that is no capture": "^(?:a)$",
		"a look ahead":               "^(?!b)a$",
		"a quantifier of nothing":    "^{3}$",
		"empty repetitions":          "^(a*)*$",
		"parentheses":                "^" + strings.Repeat("(", 20000) + "a" + strings.Repeat(")", 20000) + "$",
		"no anchor":                  "^a.*",
		"an e-mail address":          `^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$`,
	} {
		a := ask(`{"type":"object","properties":{"a":{"type":"string","pattern":"` + pattern + `"}},"required":["a"]}`)
		if a.Status != http.StatusOK || a.Header.Get("X-Policy") != "pattern dropped" {
			t.Errorf("%s: %d, X-Policy %q, %.300s", name, a.Status, a.Header.Get("X-Policy"), a.Body)
		}
	}
	var fields []string
	for i := range 100 {
		fields = append(fields, fmt.Sprintf(`"p%d":{"type":"string","description":"%s"}`, i, strings.Repeat("x", 850)))
	}
	for name, schema := range map[string]string{
		"88 KB of descriptions": `{"type":"object","properties":{` + strings.Join(fields, ",") + `}}`,
		"patterns":              `{"type":"object","properties":{"ip":{"type":"string","pattern":"^([0-9]{1,3}\\.){3}[0-9]{1,3}$"},"slug":{"type":"string","pattern":"^([a-z0-9]+-)*[a-z0-9]+$"}},"required":["ip","slug"]}`,
		"a tree":                `{"$ref":"#/$defs/a","$defs":{"a":{"type":"object","properties":{"x":{"$ref":"#/$defs/a"}}}}}`,
	} {
		if a := ask(schema); a.Status != http.StatusOK || a.Header.Get("X-Policy") != "" {
			t.Errorf("%s: %d %.300s", name, a.Status, a.Body)
		}
	}
}
