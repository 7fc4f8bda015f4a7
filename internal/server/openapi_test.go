package server_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"ollama-api-service/internal/server"
)

// described is the part of the document that the tests below read.
type described struct {
	OpenAPI string
	Tags    []struct{ Name string }
	Paths   map[string]map[string]json.RawMessage

	Components struct{ Responses map[string]response }
}

type operation struct {
	OperationID          string `json:"operationId"`
	Summary, Description string
	Tags                 []string
	Parameters           []parameter
	Security             *[]map[string][]string
	RequestBody          *struct{ Content map[string]media }
	Responses            map[string]response
}

type parameter struct{ Name, In, Ref string }

type response struct {
	Ref         string `json:"$ref"`
	Description string
	Headers     map[string]any
	Content     map[string]media
}

type media struct {
	Schema   json.RawMessage
	Example  json.RawMessage
	Examples map[string]struct{ Value json.RawMessage }
}

func (m media) examples() []json.RawMessage {
	list := []json.RawMessage{}
	if m.Example != nil {
		list = append(list, m.Example)
	}
	for _, e := range m.Examples {
		list = append(list, e.Value)
	}
	return list
}

// document returns the document, and its operations by "METHOD template".
func document(t *testing.T, b *bed) (described, map[string]operation) {
	t.Helper()
	var d described
	if err := json.Unmarshal([]byte(b.do("GET", "/openapi.json", "", "").body), &d); err != nil {
		t.Fatal(err)
	}
	operations := map[string]operation{}
	for path, item := range d.Paths {
		for method, raw := range item {
			if method == "parameters" {
				continue
			}
			var o operation
			if err := json.Unmarshal(raw, &o); err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			operations[strings.ToUpper(method)+" "+path] = o
		}
	}
	return d, operations
}

func TestEveryRouteIsDescribedAndNothingElse(t *testing.T) {
	b := start(t, setup{})
	_, operations := document(t, b)
	var routes []string
	for _, line := range b.server.Table() {
		name := line.Method + " " + line.Template
		routes = append(routes, name)
		if _, ok := operations[name]; !ok {
			t.Errorf("%s has no entry in web/openapi", name)
		}
	}
	for name := range operations {
		if !slices.Contains(routes, name) {
			t.Errorf("%s is described, but the route table does not have it", name)
		}
	}
}

// The document describes for each operation its purpose, who may use it, an example of its request and answer, how it fails, and which
// limits apply.
func TestEveryOperationIsDescribedWhole(t *testing.T) {
	b := start(t, setup{})
	d, operations := document(t, b)
	if d.OpenAPI != "3.1.0" {
		t.Errorf("OpenAPI %s, want %q", d.OpenAPI, "3.1.0")
	}
	ids := map[string]string{}
	for _, line := range b.server.Table() {
		name := line.Method + " " + line.Template
		o := operations[name]
		if other, taken := ids[o.OperationID]; taken || o.OperationID == "" {
			t.Errorf("%s: operationId %q, also of %s", name, o.OperationID, other)
		}
		ids[o.OperationID] = name
		if o.Summary == "" || !strings.Contains(o.Description, "**For:**") || strings.HasPrefix(o.Description, "**For:**") || !strings.Contains(o.Description, "**Limits:**") {
			t.Errorf("%s: summary %q, description %q", name, o.Summary, o.Description)
		}
		if len(o.Tags) != 1 || !slices.ContainsFunc(d.Tags, func(t struct{ Name string }) bool { return t.Name == o.Tags[0] }) {
			t.Errorf("%s: tags %v", name, o.Tags)
		}
		if o.RequestBody != nil {
			for mediaType, m := range o.RequestBody.Content {
				if len(m.examples()) == 0 {
					t.Errorf("%s: no example of a body of %s, want not 0", name, mediaType)
				}
			}
		} else if (line.Method == "POST" || line.Method == "PATCH") && line.Template != "/api/me" { // this route of Ollama's takes no body
			t.Errorf("%s: no body", name)
		}
		checkAnswers(t, d, line, o)
	}
}

func checkAnswers(t *testing.T, d described, line server.Line, o operation) {
	name := line.Method + " " + line.Template
	limits := []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
	good := 0
	for status, r := range o.Responses {
		if r.Ref != "" {
			r = d.Components.Responses[strings.TrimPrefix(r.Ref, "#/components/responses/")]
		}
		want := []string{"X-Request-Id"}
		if line.Counted {
			want = append(want, limits...)
		}
		switch {
		case status < "300":
			good++
		case status == "429" || status == "503":
			want = append(want, "Retry-After", "X-Should-Retry")
		case status == "401":
			want = append(want, "WWW-Authenticate", "X-Should-Retry")
		case status >= "400" && status < "500" && status != "408":
			want = append(want, "X-Should-Retry")
		}
		for _, header := range want {
			if r.Headers[header] == nil {
				t.Errorf("%s: %s without the header %s", name, status, header)
			}
		}
		if r.Description == "" || status >= "400" && len(r.Content) == 0 {
			t.Errorf("%s: %s without description or body", name, status)
		}
		for mediaType, m := range r.Content {
			if len(m.examples()) == 0 {
				t.Errorf("%s: no example of %s as %s, want not 0", name, status, mediaType)
			}
		}
	}
	if good == 0 {
		t.Errorf("%s: no successful answer, want not 0", name)
	}
	must := map[string]bool{
		"401": !line.Anyone, "403": !line.Anyone, "400": !line.Anyone, "429": line.Counted, "504": line.Counted,
		"502": line.Counted || line.Upstream != "", "413": o.RequestBody != nil && line.Template != "/api/blobs/{digest}",
	}
	for status, must := range must {
		if _, has := o.Responses[status]; must && !has {
			t.Errorf("%s: the description does not mention %s", name, status)
		}
	}
	if open := o.Security != nil && (len(*o.Security) == 0 || len((*o.Security)[0]) == 0); open != line.Anyone {
		t.Errorf("%s: security %v, want %v", name, o.Security, line.Anyone)
	}
}

// People copy examples, so each example must match its schema.
func TestEveryExampleFitsItsSchema(t *testing.T) {
	b := start(t, setup{})
	text := b.do("GET", "/openapi.json", "", "").body
	whole, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("openapi.json", whole); err != nil {
		t.Fatal(err)
	}
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	examples := 0
	check := func(at string, m media) {
		t.Helper()
		s, err := c.Compile("openapi.json#" + at + "/schema")
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		for _, example := range m.examples() {
			examples++
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(example)))
			if err == nil {
				err = s.Validate(value)
			}
			if err != nil {
				t.Errorf("%s: %s: %v", at, example, err)
			}
		}
	}
	d, operations := document(t, b)
	for _, name := range slices.Sorted(maps.Keys(operations)) {
		method, path, _ := strings.Cut(name, " ")
		o, at := operations[name], fmt.Sprintf("/paths/%s/%s", escape.Replace(path), strings.ToLower(method))
		if o.RequestBody != nil {
			for mediaType, m := range o.RequestBody.Content {
				check(at+"/requestBody/content/"+escape.Replace(mediaType), m)
			}
		}
		for status, r := range o.Responses {
			for mediaType, m := range r.Content {
				check(at+"/responses/"+status+"/content/"+escape.Replace(mediaType), m)
			}
		}
	}
	for name, r := range d.Components.Responses {
		for mediaType, m := range r.Content {
			check("/components/responses/"+name+"/content/"+escape.Replace(mediaType), m)
		}
	}
	if examples < 100 {
		t.Errorf("got only %d examples, want at least 100", examples)
	}
}
