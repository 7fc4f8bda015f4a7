package api

import "strings"

// The parts that Ollama fills in for a short name (types/model in Ollama).
const (
	DefaultHost      = "registry.ollama.ai"
	DefaultNamespace = "library"
	DefaultTag       = "latest"
)

// Model is a model name in canonical form: four parts, lower case. Ollama compares names part by part without case, so
// two spellings are one model exactly when their Models are equal.
type Model struct {
	Host, Namespace, Name, Tag string
}

// String is the name as Ollama lists it: default host and namespace left out, the tag always there.
func (m Model) String() string {
	s := m.Name + ":" + m.Tag
	if m.Namespace != DefaultNamespace || m.Host != DefaultHost {
		s = m.Namespace + "/" + s
	}
	if m.Host != DefaultHost {
		s = m.Host + "/" + s
	}
	return s
}

// Cloud says whether Ollama would run the model off-site: a tag "cloud" or one that ends in "-cloud", or an untagged name
// that ends so (Ollama looks at the end of the whole string, from 0.18.0).
func (m Model) Cloud() bool {
	return m.Tag == "cloud" || strings.HasSuffix(m.Tag, "-cloud") ||
		m.Tag == DefaultTag && strings.HasSuffix(m.Name, "-cloud")
}

// ParseModel reads any spelling that Ollama would accept and returns the canonical name, and the text to send upstream:
// the client's own where that is plain (so that the answer echoes it), else the plain form. Odd are spaces, a scheme, ":local",
// and defaults spelled out. It returns a CodeBadRequest error for what is no model name.
func ParseModel(text string) (m Model, plain string, err error) {
	s := strings.TrimSpace(text)
	if scheme, rest, ok := strings.Cut(s, "://"); ok && (scheme == "http" || scheme == "https" || scheme == "ollama") {
		s = rest
	}
	if head, tail, ok := cutLast(s, ":"); ok && strings.EqualFold(strings.TrimSpace(tail), "local") {
		s = strings.TrimSpace(head)
	}
	path, tag := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		path, tag = strings.TrimSpace(s[:i]), strings.TrimSpace(s[i+1:])
		if tag == "" {
			return Model{}, "", errModelName()
		}
	}
	if strings.EqualFold(tag, "local") {
		return Model{}, "", errModelName() // twice: Ollama might take off one more than we do
	}
	m = Model{Host: DefaultHost, Namespace: DefaultNamespace, Tag: DefaultTag}
	parts := strings.Split(path, "/")
	switch len(parts) {
	case 1:
		m.Name = parts[0]
	case 2:
		m.Namespace, m.Name = parts[0], parts[1]
	case 3:
		m.Host, m.Namespace, m.Name = parts[0], parts[1], parts[2]
	default:
		return Model{}, "", errModelName()
	}
	if tag != "" {
		m.Tag = tag
	}
	if !validPart(m.Host, 350, ".:") || !validPart(m.Namespace, 80, "") || !validPart(m.Name, 80, ".") || !validPart(m.Tag, 80, ".") {
		return Model{}, "", errModelName()
	}
	written := Model{Host: m.Host, Namespace: m.Namespace, Name: m.Name, Tag: m.Tag}
	m = Model{strings.ToLower(m.Host), strings.ToLower(m.Namespace), strings.ToLower(m.Name), strings.ToLower(m.Tag)}
	plain = written.plain(m, tag != "")
	return m, plain, nil
}

// plain drops what is spelled out though it is the default, and keeps the client's case and its choice to name the tag.
func (w Model) plain(canonical Model, tagged bool) string {
	s := w.Name
	if canonical.Host != DefaultHost {
		s = w.Host + "/" + w.Namespace + "/" + s
	} else if canonical.Namespace != DefaultNamespace {
		s = w.Namespace + "/" + s
	}
	if tagged {
		s += ":" + w.Tag
	}
	return s
}

func errModelName() *Error {
	return Errorf(CodeBadRequest, "model is not a model name like llama3.2 or llama3.2:3b")
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// validPart is Ollama's grammar for a part of a name: letters, digits, "_" and "-", what more allows, and no "-" or extra first.
func validPart(s string, most int, more string) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_':
		case i > 0 && (c == '-' || strings.IndexByte(more, c) >= 0):
		default:
			return false
		}
	}
	return true
}

// Parameters are what a model's own Modelfile sets of the fields that a policy rules on; 0 where it sets nothing, or no number from 1 on.
type Parameters struct {
	NumPredict, NumCtx int64
	// Context is what a load without num_ctx has: NumCtx, or what the servers use where they are known to; 0 where that is not known.
	Context int64
	// Split reports that a server has the model partly in the memory of its graphics card and partly not: with less context it may be faster.
	Split bool
}

// Pattern is one entry of a key's allow-list, canonical like a name: "llama3" is llama3:latest alone, "llama3:*" each of its
// tags, "*" within a part never crosses "/" or ":". "*" alone is every local model.
type Pattern struct {
	all bool
	Model
}

// ParsePattern reads an allow-list entry. It returns a CodeBadRequest error for what is none.
func ParsePattern(text string) (Pattern, error) {
	if text == "*" {
		return Pattern{all: true}, nil
	}
	// A star stands where a name's character may stand; "x" is valid everywhere, and is put back afterwards.
	if strings.ContainsRune(text, '\x00') {
		return Pattern{}, errModelName()
	}
	m, _, err := ParseModel(strings.ReplaceAll(text, "*", starStandIn))
	if err != nil {
		return Pattern{}, err
	}
	for _, part := range []*string{&m.Host, &m.Namespace, &m.Name, &m.Tag} {
		*part = strings.ReplaceAll(*part, starStandIn, "*")
	}
	return Pattern{Model: m}, nil
}

// starStandIn is a run of name characters that nobody writes, to carry a star through ParseModel.
const starStandIn = "_0star0_"

// Match says whether the pattern covers m. Cloud models need Key.AllowCloud beside it.
func (p Pattern) Match(m Model) bool {
	if p.all {
		return true
	}
	return matchPart(p.Host, m.Host) && matchPart(p.Namespace, m.Namespace) && matchPart(p.Name, m.Name) && matchPart(p.Tag, m.Tag)
}

// matchPart matches one part, in which "*" stands for any run of characters: linear in the text for each star.
func matchPart(pattern, s string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for {
		mid, next, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, mid)
		}
		i := strings.Index(s, mid)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(mid):], next
	}
}

// MayUse says whether the key may use m. What it may not use is to be called unknown.
func (k *Key) MayUse(m Model) bool {
	if m.Cloud() && !k.AllowCloud {
		return false
	}
	if k.Models == nil {
		return true
	}
	for _, text := range k.Models {
		if p, err := ParsePattern(text); err == nil && p.Match(m) {
			return true
		}
	}
	return false
}

// Alias lets clients ask for a model under other names: a pattern like claude-* and the model that it stands for.
type Alias struct {
	From  Pattern
	Model Model
	Plain string // the model as it goes upstream
	name  string // From as it was written
}

// Aliases are tried in their order. No alias leads to another.
type Aliases []Alias

// ParseAlias reads "name=model", where name may hold stars. It returns a CodeBadRequest error for what is none.
func ParseAlias(text string) (Alias, error) {
	from, to, ok := strings.Cut(text, "=")
	from = strings.TrimSpace(from)
	// A bare star would hide every model behind one.
	if !ok || from == "*" {
		return Alias{}, Errorf(CodeBadRequest, "an alias is written name=model, like claude-*=qwen3-coder")
	}
	a := Alias{name: from}
	var err error
	if a.From, err = ParsePattern(from); err != nil {
		return Alias{}, err
	}
	a.Model, a.Plain, err = ParseModel(to)
	return a, err
}

// String is the alias as it may be written in MODEL_ALIASES.
func (a Alias) String() string { return a.name + "=" + a.Plain }

// Resolve is the alias that m goes by, if there is one.
func (list Aliases) Resolve(m Model) (Alias, bool) {
	for _, a := range list {
		if a.From.Match(m) {
			return a, true
		}
	}
	return Alias{}, false
}

// Named is the names without a star that stand for m: those that a list of models can show.
func (list Aliases) Named(m Model) []string {
	var names []string
	for _, a := range list {
		if a.Model == m && !strings.Contains(a.name, "*") {
			names = append(names, a.name)
		}
	}
	return names
}
