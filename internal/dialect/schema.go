package dialect

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"ollama-api-service/internal/api"
)

// Ollama turns the schema of an answer into a grammar. It does so in the server's process before anything else, and then checks each
// token of the answer against the grammar. The bounds limit the cost of that, measured with 0.6.5: 88 KiB of descriptions take 0.5
// s, 1,200 optional fields of one object 7 s, 2,400 a minute, 3,000 levels gigabytes. The most expensive schema within the bounds
// takes 7 s on two busy cores. Some schemas of a few bytes crash the server: these are refused.
const (
	maxSchemaBytes   = 1 << 20   // a constant of 1 MB takes 1.5 s
	maxSchemaLevels  = 200       // of JSON; an object within an object is two levels
	maxSchemaFields  = 300       // of one object: each pair of optional fields gets a rule
	maxSchemaEntries = 1000      // of one list: of enum, anyOf, required
	maxSchemaSize    = 5000      // fields and entries in total
	maxSchemaCount   = 100_000   // minItems, maxItems, minLength, maxLength and repetitions of patterns in total: each becomes that many rules
	maxSchemaName    = 1000      // bytes of a name or a reference: Ollama recurses for each
	maxSchemaNames   = 100_000   // bytes of all names: 290 KB take 7 s
	maxSchemaRefs    = 1_000_000 // bytes of the paths to all references: the gateway keeps them to find cycles
	maxPattern       = 4096      // bytes
	maxQuantifiers   = 200       // of one pattern
	maxPatternCount  = 2000      // repetitions in one pattern, multiplied if they are nested
)

// schemaFields are the fields of a body that hold a schema, with the path to it. The schema's references start at that path.
var schemaFields = [...]struct {
	field string
	path  []string
}{
	{"format", nil},
	{"response_format", []string{"json_schema", "schema"}},
	{"text", []string{"format", "schema"}},
	{"output_config", []string{"format", "schema"}},
}

// hasSchema reports whether the body asks for an answer of a given form.
func (e *edit) hasSchema() bool {
	for _, f := range schemaFields {
		m := e.object.find(f.field)
		switch {
		case m == nil:
		case m.kind == '"' && f.field == "format":
			return len(e.object.value(m)) > len(`""`)
		case m.kind == '{' && (f.path == nil || f.path[0] != "format" || bytes.Contains(e.object.value(m), []byte(`"format"`))):
			return true
		}
	}
	return false
}

// boundSchema refuses a schema that costs too much, in any dialect, and removes the patterns that Ollama cannot read.
func (e *edit) boundSchema(req *Request) error {
	cut := false
	for _, f := range schemaFields {
		m := e.object.find(f.field)
		if m == nil || m.kind != '{' && m.kind != '[' {
			continue
		}
		s := schema{field: f.field, refs: map[string]string{}, root: pathOf(f.path), src: e.object.value(m)}
		if err := s.walk(); err != nil {
			return err
		}
		if s.cuts != nil {
			e.replace(m, without(s.src, s.cuts))
			cut = true
		}
	}
	if cut {
		req.Changes = append(req.Changes, "pattern dropped")
	}
	return nil
}

// schema is the part of a schema that has been read.
type schema struct {
	field  string
	root   string
	src    []byte
	before int                       // where the text before the current member ends
	roles  [maxSchemaLevels + 1]role // of the objects and lists around it
	cuts   []span                    // members that do not go upstream
	size   int
	names  int
	counts float64
	refs   map[string]string // of objects that refer to another one: their path and its path
	paths  int               // bytes of these paths
}

func (s *schema) refused(format string, args ...any) error {
	return api.Errorf(api.CodeBadRequest, s.field+": "+format+": send a smaller schema", args...)
}

// walk reads the schema once, whatever its fields mean, because Ollama's versions differ in what they do with each field.
func (s *schema) walk() error {
	if len(s.src) > maxSchemaBytes {
		return s.refused("the schema is larger than %d bytes", maxSchemaBytes)
	}
	r := read(s.src)
	defer r.done()
	name := ""
	for {
		before := int(r.dec.InputOffset())
		token, err := r.dec.ReadToken()
		if err != nil {
			return syntaxError(err)
		}
		level := r.dec.StackDepth()
		if level == 0 {
			return s.loops()
		}
		if level > maxSchemaLevels {
			return s.refused("the schema has more than %d levels", maxSchemaLevels)
		}
		holder, n := r.dec.StackIndex(level)
		kind := token.Kind()
		isName := holder == '{' && n%2 == 1 && kind == '"'
		if err := s.sized(holder, n, isName); err != nil {
			return err
		}
		switch {
		case kind == '{' || kind == '[':
			s.roles[level] = s.roles[level-1]
			if outer, _ := r.dec.StackIndex(level - 1); outer == '{' {
				s.roles[level] = s.roles[level-1].member(name)
			}
		case isName:
			name, s.before = token.String(), before
			if s.names += len(name); len(name) > maxSchemaName || s.names > maxSchemaNames {
				return s.refused("a name in the schema is longer than %d bytes, or all names are longer than %d in total",
					maxSchemaName, maxSchemaNames)
			}
		case holder == '{' && n > 0:
			if err := s.value(name, token, r.dec); err != nil {
				return err
			}
		}
	}
}

// sized counts a field or an entry. n is the number of tokens of its holder so far.
func (s *schema) sized(holder jsontext.Kind, n int64, isName bool) error {
	switch {
	case isName && (n+1)/2 > maxSchemaFields:
		return s.refused("an object in the schema has more than %d fields", maxSchemaFields)
	case holder == '[' && n > maxSchemaEntries:
		return s.refused("a list in the schema has more than %d entries", maxSchemaEntries)
	case isName || holder == '[' && n > 0:
		s.size++
	}
	if s.size > maxSchemaSize {
		return s.refused("the schema has more than %d fields and entries", maxSchemaSize)
	}
	return nil
}

// value checks the fields whose value decides the cost.
func (s *schema) value(name string, token jsontext.Token, dec *jsontext.Decoder) error {
	switch kind := token.Kind(); name {
	case "minItems", "maxItems", "minLength", "maxLength":
		if kind == '0' {
			n, _ := strconv.ParseFloat(token.String(), 64) // a number out of range becomes infinite
			return s.counted(n)
		}
	case "pattern":
		if kind == '"' {
			return s.pattern(token.String(), dec)
		}
	case "$ref":
		if kind != '"' {
			return nil
		}
		to := token.String()
		if len(to) > maxSchemaName {
			return s.refused("a reference in the schema is longer than %d bytes", maxSchemaName)
		}
		at := dec.StackPointer()
		if s.paths += len(s.root) + len(at.Parent()); s.paths > maxSchemaRefs {
			return s.refused("the paths to all references in the schema are longer than %d bytes in total", maxSchemaRefs)
		}
		s.refs[pathOf(parent(at))] = s.root + strings.TrimPrefix(to, "#")
	}
	return nil
}

func (s *schema) counted(n float64) error {
	if s.counts += max(n, 0); s.counts > maxSchemaCount {
		return s.refused("minItems, maxItems, minLength, maxLength and the repetitions in patterns of the schema are more than %d in total",
			maxSchemaCount)
	}
	return nil
}

// parent is the path of the object that has the member of the pointer.
func parent(p jsontext.Pointer) (names []string) {
	for name := range p.Parent().Tokens() {
		names = append(names, name)
	}
	return names
}

// pathOf returns a path in the form of references.
func pathOf(names []string) string {
	var path strings.Builder
	for _, name := range names {
		path.WriteString("/" + name)
	}
	return path.String()
}

// loops refuses references that form a cycle: Ollama follows them in allOf until its stack is full.
func (s *schema) loops() error {
	for at := range s.refs {
		seen := 0
		for to, ok := s.refs[at]; ok; to, ok = s.refs[to] {
			if seen++; seen > maxSchemaLevels {
				return api.Errorf(api.CodeBadRequest, "%s: a $ref of the schema leads back to itself and never to a type: refer to a type", s.field)
			}
		}
	}
	return nil
}

// A role says what the members of an object are.
type role byte

const (
	roleKeywords role = iota // of a schema
	roleSchemas              // schemas under names that the client chose
	roleValue                // parts of a value
)

// member returns the role of the object that an object of this role has under a name.
func (r role) member(name string) role {
	switch {
	case r == roleSchemas:
		return roleKeywords
	case r == roleValue:
		return roleValue
	}
	switch name {
	case "properties", "patternProperties", "dependentSchemas", "$defs", "definitions":
		return roleSchemas
	case "const", "enum":
		return roleValue
	}
	return roleKeywords
}

// pattern removes a regular expression that Ollama refuses, that crashes it, or that keeps it busy for the rest of the request: a
// repetition of something that may be empty can be read in too many ways. Schema libraries add such patterns on their own, for types
// such as an e-mail address. If the member is not a keyword, it is part of a value that the client wants to get. But a reference can
// still make a schema of that value, so a pattern that Ollama would read, with both anchors, is refused there.
func (s *schema) pattern(text string, dec *jsontext.Decoder) error {
	count, ok := readable(text)
	level := dec.StackDepth()
	switch {
	case ok:
		return s.counted(float64(count))
	case s.roles[level] == roleKeywords:
		end := int(dec.InputOffset())
		if _, n := dec.StackIndex(level); n == 2 { // the first member has no comma before it, so the comma after it is removed
			end = skipSpace(s.src, end)
		}
		s.cuts = append(s.cuts, span{s.before, end})
	case anchored(text):
		return api.Errorf(api.CodeBadRequest, "%s: Ollama cannot read a pattern in a const, an enum or a list of properties of the schema: "+
			"leave it out, or write it in another way", s.field)
	}
	return nil
}

// readable reports whether Ollama can use a pattern, and how many repetitions it writes out for it.
func readable(text string) (count int, ok bool) {
	if len(text) > maxPattern || !anchored(text) {
		return 0, false
	}
	p := pattern{text: text}
	_, count = p.alternatives()
	return count, !p.broken && !p.endless && p.at == len(text) && p.quantifiers <= maxQuantifiers && count <= maxPatternCount
}

// anchored reports whether Ollama reads a pattern at all: it answers 500 to others.
func anchored(text string) bool {
	return strings.HasPrefix(text, "^") && strings.HasSuffix(text, "$")
}

// pattern reads a regular expression as Ollama's converter does, which knows groups, classes, alternatives and quantifiers.
type pattern struct {
	text        string
	at          int
	quantifiers int
	broken      bool // Ollama would crash: it looks for what a quantifier repeats, and there is nothing
	endless     bool
}

// alternatives reads up to the end of a group. It reports whether the group may be empty, and how many repetitions are written out
// for it.
func (p *pattern) alternatives() (empty bool, count int) {
	branch, first := true, true
	for p.at < len(p.text) && !p.broken {
		switch p.text[p.at] {
		case ')':
			return empty || branch, count
		case '|':
			p.at++
			empty, branch, first = empty || branch, true, true
		case '*', '+', '?', '{':
			p.broken = p.broken || first // quantified reads all others
			p.at++
		default:
			one, n := p.quantified()
			branch, count, first = branch && one, min(count+n, maxPatternCount+1), false
		}
	}
	return empty || branch, count
}

// quantified reads an atom and the quantifiers after it.
func (p *pattern) quantified() (empty bool, count int) {
	empty, count = p.atom()
	for p.at < len(p.text) && strings.IndexByte("*+?{", p.text[p.at]) >= 0 && !p.broken {
		least, most := p.quantifier()
		p.quantifiers++
		p.endless = p.endless || empty && most != 1
		empty = empty || least == 0
		if most > 1 {
			count = min(max(count, 1)*min(most, maxPatternCount+1), maxPatternCount+1)
		}
	}
	return empty, count
}

func (p *pattern) atom() (empty bool, count int) {
	c := p.text[p.at]
	p.at++
	switch c {
	case '^', '$':
		return true, 0
	case '\\':
		p.at++
	case '[':
		for p.at < len(p.text) && p.text[p.at] != ']' {
			if p.text[p.at] == '\\' {
				p.at++
			}
			p.at++
		}
		p.at++
	case '(':
		empty, count = p.alternatives()
		p.at++
	}
	p.broken = p.broken || p.at > len(p.text)
	return empty, count
}

// quantifier reads one quantifier. most is 0 without a bound.
func (p *pattern) quantifier() (least, most int) {
	c := p.text[p.at]
	p.at++
	switch c {
	case '*':
		return 0, 0
	case '+':
		return 1, 0
	case '?':
		return 0, 1
	}
	inner, rest, closed := strings.Cut(p.text[p.at:], "}")
	from, to, both := strings.Cut(inner, ",")
	least, most = p.times(from), p.times(to)
	if !both {
		most = least
	}
	p.at = len(p.text) - len(rest)
	p.broken = p.broken || !closed || inner == ""
	if most == 0 && least > 1 {
		return least, least // it is written out this many times, and may continue
	}
	return least, most
}

// times returns a number of repetitions, or 0 without one.
func (p *pattern) times(text string) int {
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	p.broken = p.broken || err != nil || n < 0
	return n
}
