package dialect

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

// repeated is n times what text makes of a number, with commas between.
func repeated(n int, text string) string {
	var parts []string
	for i := range n {
		parts = append(parts, strings.ReplaceAll(text, "#", fmt.Sprint(i)))
	}
	return strings.Join(parts, ",")
}

func levels(n int, before, after string) string {
	return strings.Repeat(before, n) + `{}` + strings.Repeat(after, n)
}

// farDown is a schema with n references whose paths have 96 KB each.
func farDown(n int) string {
	open := ""
	for i := range 97 {
		open += fmt.Sprintf(`{"%03d%s":`, i, strings.Repeat("x", 987))
	}
	return open + `[` + repeated(n, `{"$ref":"#/x#"}`) + `]` + strings.Repeat(`}`, 97)
}

// TestSchemasAreBounded holds each bound at its edge, and that what is large and cheap passes.
func TestSchemasAreBounded(t *testing.T) {
	for _, c := range []struct {
		name, schema string
		says         string // "" passes
	}{
		{"88 KB of descriptions", `{"type":"object","properties":{` + repeated(100, `"p#":{"type":"string","description":"`+strings.Repeat("x", 850)+`"}`) + `}}`, ""},
		{"1 MiB", `{"description":"` + strings.Repeat("x", maxSchemaBytes-18) + `"}`, ""},
		{"more than 1 MiB", `{"description":"` + strings.Repeat("x", maxSchemaBytes-17) + `"}`, "larger than 1048576 bytes"},
		{"fields", `{"properties":{` + repeated(maxSchemaFields, `"p#":{}`) + `}}`, ""},
		{"too many fields", `{"properties":{` + repeated(maxSchemaFields+1, `"p#":{}`) + `}}`, "more than 300 fields"},
		{"entries", `{"enum":[` + repeated(maxSchemaEntries, `"#"`) + `]}`, ""},
		{"too many entries", `{"enum":[` + repeated(maxSchemaEntries+1, `"#"`) + `]}`, "more than 1000 entries"},
		{"too many types", `{"type":[` + repeated(maxSchemaEntries+1, `"null"`) + `]}`, "more than 1000 entries"},
		{"fields and entries together", `{"anyOf":[` + repeated(9, `{"properties":{`+repeated(270, `"p#":[{}]`)+`}}`) + `]}`, ""},
		{"too many together", `{"anyOf":[` + repeated(10, `{"properties":{`+repeated(270, `"p#":[{}]`)+`}}`) + `]}`, "more than 5000 fields and entries"},
		{"levels", levels(maxSchemaLevels-1, `{"items":`, `}`), ""},
		{"too many levels", levels(maxSchemaLevels, `{"items":`, `}`), "more than 200 levels"},
		{"too many levels of lists", levels(maxSchemaLevels/2, `{"anyOf":[`, `]}`), "more than 200 levels"},
		{"counts", `{"properties":{` + repeated(10, `"p#":{"type":"array","maxItems":10000}`) + `}}`, ""},
		{"counts together", `{"properties":{` + repeated(10, `"p#":{"type":"array","minItems":5000,"maxItems":5001}`) + `}}`, "more than 100000 together"},
		{"patterns together", `{"properties":{` + repeated(51, `"p#":{"pattern":"^a{1961}$"}`) + `}}`, "more than 100000 together"},
		{"a count beyond all bounds", `{"maxLength":1e999}`, "more than 100000 together"},
		{"counts below zero make no room", `{"anyOf":[{"minLength":-1e9},{"minLength":100001}]}`, "more than 100000 together"},
		{"a field called so", `{"properties":{"maxItems":{"type":"integer"},"pattern":{"type":"string"},"$ref":{"type":"string"}}}`, ""},
		{"a long name", `{"properties":{"` + strings.Repeat("x", maxSchemaName) + `":{}}}`, ""},
		{"too long a name", `{"properties":{"` + strings.Repeat("x", maxSchemaName+1) + `":{}}}`, "longer than 1000 bytes"},
		{"names together", `{"properties":{` + repeated(110, `"#`+strings.Repeat("x", 900)+`":{}`) + `}}`, ""},
		{"too long names together", `{"properties":{` + repeated(112, `"#`+strings.Repeat("x", 900)+`":{}`) + `}}`, "together than 100000"},
		{"too long a reference", `{"$ref":"#/` + strings.Repeat("x", maxSchemaName) + `"}`, "longer than 1000 bytes"},

		{"references", `{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"$ref":"#/$defs/b~c"},"b~c":{"type":"object"}}}`, ""},
		{"a tree", `{"$ref":"#/$defs/a","$defs":{"a":{"properties":{"x":{"$ref":"#/$defs/a"},"y":{"items":{"$ref":"#/$defs/a"}}}}}}`, ""},
		{"to itself", `{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"$ref":"#/$defs/a"}}}`, "leads to no type"},
		{"to and fro", `{"$defs":{"a~/":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a~/"}}}`, "leads to no type"},
		{"escaped", `{"$defs":{"a":{"\u0024ref":"#\/$defs\/a"}}}`, "leads to no type"},
		{"through a list", `{"allOf":[{"$ref":"#/allOf/0"}]}`, "leads to no type"},
		{"many to one", `{"$defs":{` + repeated(250, `"a#":{"$ref":"#/$defs/b"}`) + `}}`, ""},
		{"references far down", farDown(10), ""},
		{"too many references far down", farDown(11), "longer than 1000000 bytes together"},
		{"no text", `{"$ref":5,"pattern":5,"maxItems":"5"}`, ""},
		{"no schema", `"json"`, ""},
	} {
		for kind, field := range map[Kind]string{Chat: `"format":%s`, Generate: `"format":%s`, OpenAIChat: `"response_format":{"json_schema":{"schema":%s}}`, OpenAIResponses: `"text":{"format":{"schema":%s}}`, AnthropicMessages: `"output_config":{"format":{"schema":%s}}`} {
			if kind.Family() != Native && (strings.Contains(c.name, "1 MiB") || strings.Contains(c.name, "levels") || strings.Contains(c.name, " together")) {
				continue // what is around it counts too
			}
			body := `{"model":"tiny",` + fmt.Sprintf(field, c.schema) + `}`
			name, _, _ := strings.Cut(field[1:], `"`)
			req, err := kind.Read([]byte(body), &Terms{})
			switch {
			case c.says != "" && (err == nil || api.AsError(err).Code != api.CodeBadRequest || !strings.HasPrefix(api.AsError(err).Message, name+": ") || !strings.Contains(err.Error(), c.says)):
				t.Errorf("%s in %s: %v, want %q", c.name, name, err, c.says)
			case c.says == "" && (err != nil || !bytes.Contains(req.Body, []byte(c.schema))):
				t.Errorf("%s in %s: %v", c.name, name, err)
			}
		}
	}
}

// Patterns that Ollama reads pass, and those that end it, or that no one could follow, do not.
func TestPatternsAreBounded(t *testing.T) {
	const large, broken, endless = "quantifiers or", "cannot read", "may be empty"
	for pattern, says := range map[string]string{
		"":                                    "",
		"^[a-z]+$":                            "",
		"^([a-z0-9]+-)*[a-z0-9]+$":            "",
		`^([0-9]{1,3}\.){3}[0-9]{1,3}$`:       "",
		`^\(\d{3}\) \d{3}-\d{4}$`:             "",
		`^(a|b|)c?$`:                          "",
		`^a+?b*?$`:                            "",
		`^[\]*+?(]+\*$`:                       "",
		"^a{2,}(b{3}){4}$":                    "",
		"^a{1,2000}$":                         "",
		"^" + strings.Repeat("a?", 200) + "$": "",
		"^" + strings.Repeat("x", 4000) + "$": "",
		"^(?:a)$":                             broken,
		"^(?!b)a$":                            broken,
		"^(?=a|b)$":                           broken,
		"*":                                   broken,
		"^(*)$":                               broken,
		"{3}":                                 broken,
		"^(a|*)$":                             broken,
		"^a{b}$":                              broken,
		"^a{}$":                               broken,
		"^a{1$":                               broken,
		"^a{-1}$":                             broken,
		"^(a$":                                broken,
		"^a)$":                                broken,
		"^[a$":                                broken,
		`^a\`:                                 broken,
		"^*$":                                 endless,
		"^(a*)*$":                             endless,
		"^(a?){10}$":                          endless,
		"^((a?)b?){2}$":                       endless,
		"^(a|b*)+$":                           endless,
		"^(a+?)*$":                            endless,
		"^(|a)*$":                             endless,
		"^()*$":                               endless,
		"^a{0,5}{3}$":                         endless,
		"^(a{0,1}b{0}){2,}$":                  endless,
		"^a{1,2001}$":                         large,
		"^((a{20}){20}){20}$":                 large,
		"^(((a{1000}){1000}){1000}){1000}$":   large,
		"^a{2001,}$":                          large,
		"^a{99999999999999999999}$":           large,
		"^" + strings.Repeat("a?", 201) + "$": large,
		strings.Repeat("(", maxPattern+1):     large,
		strings.Repeat("(", maxPattern):       broken,
		strings.Repeat(`a{500}`, 5):           large,
		"^" + strings.Repeat("x", 4096) + "$": large,
	} {
		_, err := Chat.Read([]byte(`{"model":"tiny","format":{"type":"string","pattern":`+string(quote(pattern))+`}}`), &Terms{})
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%.60q: %v, want %q", pattern, err, says)
		}
	}
}

// FuzzPattern: no text makes the reader go on for ever or look beyond its end.
func FuzzPattern(f *testing.F) {
	for _, seed := range []string{"^(a|b)*c{1,2}$", `[\]`, "(((", "{,}", `\`, "a{2}{3}?"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p := pattern{text: text}
		if _, count := p.alternatives(); count > maxPatternCount+1 {
			t.Errorf("%q: %d repetitions", text, count)
		}
	})
}
