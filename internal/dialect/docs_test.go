package dialect

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

// docs/policy.md agrees with the code.
func TestThePageAboutPolicies(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	quoted := regexp.MustCompile("`([^`]+)`")
	said := map[string]string{}
	first, _, _ := strings.Cut(page, "\n## ")
	for line := range strings.Lines(first) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		fields, _, _ := strings.Cut(cells[1], "(")
		action := quoted.FindStringSubmatch(cells[2])
		for _, f := range quoted.FindAllStringSubmatch(fields, -1) {
			if action != nil {
				said[f[1]] = action[1]
			}
		}
	}
	for field, a := range Standard(32768, time.Hour, 8192) {
		if said[field] != a.String() {
			t.Errorf("docs/policy.md: got %s = %q, want %q", field, said[field], a)
		}
	}
	for field := range said {
		if _, known := api.PolicyFields[field]; !known {
			t.Errorf("docs/policy.md has %q, which is not a policed field", field)
		}
	}
	for kind := range clientTools {
		if kind != "" && !strings.Contains(page, "`"+kind+"`") {
			t.Errorf("docs/policy.md does not name the tool %s", kind)
		}
	}
	for _, prefix := range datedClientTools {
		if !strings.Contains(page, "`"+prefix+"DATE`") {
			t.Errorf("docs/policy.md does not name the tools %s", prefix)
		}
	}
	for _, field := range hostedFields {
		if !strings.Contains(page, "`"+field+"`") {
			t.Errorf("docs/policy.md does not name %s", field)
		}
	}
	_, schemas, _ := strings.Cut(page, "\n## Schemas")
	schemas = strings.ReplaceAll(schemas, ",", "")
	for _, bound := range []int{maxSchemaLevels, maxSchemaFields, maxSchemaEntries, maxSchemaSize, maxSchemaCount, maxSchemaName, maxSchemaNames, maxSchemaRefs, maxPattern, maxQuantifiers, maxPatternCount} {
		if !regexp.MustCompile(`\b` + strconv.Itoa(bound) + `\b`).MatchString(schemas) {
			t.Errorf("docs/policy.md does not name the bound of %d", bound)
		}
	}
}
