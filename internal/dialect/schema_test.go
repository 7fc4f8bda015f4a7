package dialect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

// repeated returns n copies of text, each with its number in place of #, separated by commas.
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

// farDown returns a schema with n references whose paths have 96 KB each.
func farDown(n int) string {
	open := ""
	for i := range 97 {
		open += fmt.Sprintf(`{"%03d%s":`, i, strings.Repeat("x", 987))
	}
	return open + `[` + repeated(n, `{"$ref":"#/x#"}`) + `]` + strings.Repeat(`}`, 97)
}

// TestSchemasAreBounded checks each bound at its edge, and that large, cheap schemas pass.
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
		{"counts together", `{"properties":{` + repeated(10, `"p#":{"type":"array","minItems":5000,"maxItems":5001}`) + `}}`, "more than 100000 in total"},
		{"patterns together", `{"properties":{` + repeated(51, `"p#":{"pattern":"^a{1961}$"}`) + `}}`, "more than 100000 in total"},
		{"a count beyond all bounds", `{"maxLength":1e999}`, "more than 100000 in total"},
		{"counts below zero make no room", `{"anyOf":[{"minLength":-1e9},{"minLength":100001}]}`, "more than 100000 in total"},
		{"a field called so", `{"properties":{"maxItems":{"type":"integer"},"pattern":{"type":"string"},"$ref":{"type":"string"}}}`, ""},
		{"a long name", `{"properties":{"` + strings.Repeat("x", maxSchemaName) + `":{}}}`, ""},
		{"too long a name", `{"properties":{"` + strings.Repeat("x", maxSchemaName+1) + `":{}}}`, "longer than 1000 bytes"},
		{"names together", `{"properties":{` + repeated(110, `"#`+strings.Repeat("x", 900)+`":{}`) + `}}`, ""},
		{"too long names together", `{"properties":{` + repeated(112, `"#`+strings.Repeat("x", 900)+`":{}`) + `}}`, "longer than 100000 in total"},
		{"too long a reference", `{"$ref":"#/` + strings.Repeat("x", maxSchemaName) + `"}`, "longer than 1000 bytes"},

		{"references", `{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"$ref":"#/$defs/b~c"},"b~c":{"type":"object"}}}`, ""},
		{"a tree", `{"$ref":"#/$defs/a","$defs":{"a":{"properties":{"x":{"$ref":"#/$defs/a"},"y":{"items":{"$ref":"#/$defs/a"}}}}}}`, ""},
		{"to itself", `{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"$ref":"#/$defs/a"}}}`, "leads back to itself"},
		{"to and fro", `{"$defs":{"a~/":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a~/"}}}`, "leads back to itself"},
		{"escaped", `{"$defs":{"a":{"\u0024ref":"#\/$defs\/a"}}}`, "leads back to itself"},
		{"through a list", `{"allOf":[{"$ref":"#/allOf/0"}]}`, "leads back to itself"},
		{"many to one", `{"$defs":{` + repeated(250, `"a#":{"$ref":"#/$defs/b"}`) + `}}`, ""},
		{"references far down", farDown(10), ""},
		{"too many references far down", farDown(11), "longer than 1000000 bytes in total"},
		{"no text", `{"$ref":5,"pattern":5,"maxItems":"5"}`, ""},
		{"no schema", `"json"`, ""},
	} {
		for kind, field := range schemaBodies {
			if kind.Family() != Native && (strings.Contains(c.name, "1 MiB") || strings.Contains(c.name, "levels") || strings.Contains(c.name, " together")) {
				continue // the text around the schema counts too
			}
			body := `{"model":"tiny",` + fmt.Sprintf(field, c.schema) + `}`
			name, _, _ := strings.Cut(field[1:], `"`)
			req, err := kind.Read(BodyOf([]byte(body)), &Terms{})
			switch {
			case c.says != "" && (err == nil || api.AsError(err).Code != api.CodeBadRequest || !strings.HasPrefix(api.AsError(err).Message, name+": ") || !strings.Contains(err.Error(), c.says)):
				t.Errorf("%s in %s: got error %v, want %q", c.name, name, err, c.says)
			case c.says == "" && (err != nil || !bytes.Contains(req.Body.Bytes(), []byte(c.schema))):
				t.Errorf("%s in %s: got error %v, want the schema unchanged", c.name, name, err)
			}
		}
	}
}

// schemaBodies has the place of the schema in each dialect.
var schemaBodies = map[Kind]string{
	Chat: `"format":%s`, Generate: `"format":%s`, OpenAIChat: `"response_format":{"json_schema":{"schema":%s}}`,
	OpenAIResponses: `"text":{"format":{"schema":%s}}`, AnthropicMessages: `"output_config":{"format":{"schema":%s}}`,
}

// Patterns that Ollama can read pass. Patterns that it refuses, that crash it, or that it could not follow, are removed.
func TestPatternsAreBounded(t *testing.T) {
	stays, dropped := []string{
		"^[a-z]+$",
		"^([a-z0-9]+-)*[a-z0-9]+$",
		`^([0-9]{1,3}\.){3}[0-9]{1,3}$`,
		`^\(\d{3}\) \d{3}-\d{4}$`,
		`^(a|b|)c?$`,
		`^a+?b*?$`,
		`^[\]*+?(]+\*$`,
		"^a{2,}(b{3}){4}$",
		"^a{1,2000}$",
		"^" + strings.Repeat("a?", 200) + "$",
		"^" + strings.Repeat("x", 4000) + "$",
	}, []string{
		"", "^a", "a$", "^a.*", "abc", // Ollama answers 500 if an anchor is missing
		"^(?:a)$",
		"^(?!b)a$",
		"^(?=a|b)$",
		"*",
		"^(*)$",
		"^{3}$",
		"^(a|*)$",
		"^a{b}$",
		"^a{}$",
		"^a{1$",
		"^a{-1}$",
		"^(a$",
		"^a)$",
		"^[a$",
		`^a\`,
		"^*$",
		"^(a*)*$",
		"^(a?){10}$",
		"^((a?)b?){2}$",
		"^(a|b*)+$",
		"^(a+?)*$",
		"^(|a)*$",
		"^()*$",
		"^a{0,5}{3}$",
		"^(a{0,1}b{0}){2,}$",
		"^a{1,2001}$",
		"^((a{20}){20}){20}$",
		"^(((a{1000}){1000}){1000}){1000}$",
		"^a{2001,}$",
		"^a{99999999999999999999}$",
		"^" + strings.Repeat("a?", 201) + "$",
		"^" + strings.Repeat("(", maxPattern-2) + "$",
		"^" + strings.Repeat(`a{500}`, 5) + "$",
		"^" + strings.Repeat("x", maxPattern-1) + "$",
		// As zod writes z.email() and z.iso.date().
		`^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$`,
		`^(?:(?:\d\d[2468][048]|\d\d[13579][26])-02-29|\d{4}-(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01]))$`,
	}
	for i, pattern := range append(stays, dropped...) {
		req, err := Chat.Read(BodyOf([]byte(`{"model":"tiny","format":{"type":"string","pattern":`+string(quote(pattern))+`}}`)), &Terms{})
		if err != nil {
			t.Errorf("%.60q: got error %v, want none", pattern, err)
			continue
		}
		gone := strings.Contains(req.Body.String(), `"format":{"type":"string"}`) && slices.Equal(req.Changes, []string{"pattern dropped"})
		here := strings.Contains(req.Body.String(), `"pattern":`+string(quote(pattern))+`}`) && req.Changes == nil
		if want := i >= len(stays); gone != want || here == want {
			t.Errorf("%.60q: got dropped %v, want %v: changes %q, body %.200s", pattern, gone, want, req.Changes, req.Body)
		}
	}
}

// A pattern that Ollama cannot read is removed from the body if it is a keyword. Otherwise the schema is refused.
func TestPatternsAreTakenOut(t *testing.T) {
	const bad, more = `"pattern":"^(?:a)$"`, `"pattern" : "^(a*)*$"`
	for _, c := range []struct{ in, out string }{
		{`{"type":"string",` + bad + `}`, `{"type":"string"}`},
		{`{` + bad + `,"type":"string"}`, `{"type":"string"}`},
		{`{"type":"string",` + bad + `,"format":"email"}`, `{"type":"string","format":"email"}`},
		{`{` + bad + `}`, `{}`},
		{`{ ` + more + ` , "type" : "string" }`, `{"type" : "string" }`},
		{"{\n \"type\": \"string\",\n " + more + "\n}", "{\n \"type\": \"string\"\n}"},
		{`{"p\u0061ttern":"^(?:a)$","type":"string"}`, `{"type":"string"}`},
		{`{"properties":{"a":{` + bad + `},"pattern":{` + bad + `,"type":"string"}}}`, `{"properties":{"a":{},"pattern":{"type":"string"}}}`},
		{`{"properties":{"const":{` + bad + `},"enum":{"items":{` + bad + `}}}}`, `{"properties":{"const":{},"enum":{"items":{}}}}`},
		{`{` + bad + `,"anyOf":[{` + bad + `},{"pattern":"^a$"},{"const":1},{"x":[],` + more + `}]}`, `{"anyOf":[{},{"pattern":"^a$"},{"const":1},{"x":[]}]}`},
		{`{"items":{"items":{` + bad + `}},` + bad + `}`, `{"items":{"items":{}}}`},
		{`{"$defs":{"properties":{` + bad + `}},"$ref":"#/$defs/properties"}`, `{"$defs":{"properties":{}},"$ref":"#/$defs/properties"}`},
		{`{"const":{"pattern":"^a$"}}`, `{"const":{"pattern":"^a$"}}`},
		{`{"enum":[{"pattern":"(?:a)"}]}`, `{"enum":[{"pattern":"(?:a)"}]}`},

		{`{"const":{` + bad + `}}`, ""},
		{`{"enum":[{"properties":{"a":{` + bad + `}}}]}`, ""},
		{`{"properties":{"properties":{"const":{` + bad + `}}}}`, ""},
		{`{"properties":{"type":"string",` + bad + `},"$ref":"#/properties"}`, ""},
	} {
		for kind, field := range schemaBodies {
			head := `{"model":"tiny","max_tokens":1,`
			req, err := kind.Read(BodyOf([]byte(head+fmt.Sprintf(field, c.in)+`}`)), &Terms{})
			if c.out == "" {
				if err == nil || api.AsError(err).Code != api.CodeBadRequest || !strings.Contains(err.Error(), "in a const") {
					t.Errorf("%v, %s: got error %v, want a refusal", kind, c.in, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%v, %s: got error %v, want none", kind, c.in, err)
				continue
			}
			says := slices.Equal(req.Changes, []string{"pattern dropped"})
			if !strings.Contains(req.Body.String(), fmt.Sprintf(field, c.out)) || says != (c.in != c.out) {
				t.Errorf("%v, %s: got %s, want %s; changes %q", kind, c.in, req.Body, c.out, req.Changes)
			}
		}
	}
}

// FuzzPattern: no text makes the reader run for ever or read beyond its end.
func FuzzPattern(f *testing.F) {
	for _, seed := range []string{"^(a|b)*c{1,2}$", `[\]`, "(((", "{,}", `\`, "a{2}{3}?"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p := pattern{text: text}
		if _, count := p.alternatives(); count > maxPatternCount+1 {
			t.Errorf("%q: got %d repetitions, want at most %v", text, count, maxPatternCount+1)
		}
	})
}

// FuzzSchema: the schema that goes upstream is the client's without some members called pattern, and reading it again removes
// nothing.
func FuzzSchema(f *testing.F) {
	for _, seed := range []string{
		`{"pattern":"^(?:a)$" , "type":["string"]}`, `{"a":{"pattern":"x"},"pattern":"x"}`, `[{"pattern":""},{"const":1,"pattern":"a"}]`,
		`{"properties":{"pattern":{"enum":[{"pattern":"x"}]}},"$defs":{"const":{"pattern":"^(a*)*$","x":{}}}}`, `{"pattern":{"pattern":"x"}}`,
	} {
		f.Add(seed)
	}
	without := func(t *testing.T, text string) string {
		var v any
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber() // it accepts every JSON number
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%q: got error %v, want JSON", text, err)
		}
		var walk func(any)
		walk = func(v any) {
			switch v := v.(type) {
			case map[string]any:
				if _, text := v["pattern"].(string); text {
					delete(v, "pattern")
				}
				for _, inner := range v {
					walk(inner)
				}
			case []any:
				for _, inner := range v {
					walk(inner)
				}
			}
		}
		walk(v)
		out, _ := json.Marshal(v)
		return string(out)
	}
	format := func(body []byte) string {
		var b struct{ Format json.RawMessage }
		if json.Unmarshal(body, &b) != nil {
			return ""
		}
		return string(b.Format)
	}
	f.Fuzz(func(t *testing.T, text string) {
		body := []byte(`{"model":"tiny","format":` + text + `}`)
		req, err := Chat.Read(BodyOf(body), &Terms{})
		if err != nil {
			return
		}
		if in, out := format(body), format(req.Body.Bytes()); without(t, in) != without(t, out) || in != out != (req.Changes != nil) {
			t.Errorf("%q goes upstream as %q, with the changes %q", in, out, req.Changes)
		}
		if again, err := Chat.Read(BodyOf(req.Body.Bytes()), &Terms{}); err != nil || again.Changes != nil || !bytes.Equal(again.Body.Bytes(), req.Body.Bytes()) {
			t.Errorf("%q goes upstream as %q, and that as %q (error %v), want no further change", body, req.Body, again.Body, err)
		}
	})
}
