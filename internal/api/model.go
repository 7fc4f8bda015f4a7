package api

import "strings"

// The parts that Ollama fills in for a short name (types/model in Ollama).
const (
	DefaultHost      = "registry.ollama.ai"
	DefaultNamespace = "library"
	DefaultTag       = "latest"
)

// Model is a model name in canonical form: four parts in lower case. Ollama compares names part by part and ignores case, so two
// spellings name the same model exactly if their Models are equal.
type Model struct {
	Host, Namespace, Name, Tag string
}

// String returns the name as Ollama lists it: without the default host and namespace, always with the tag.
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

// Cloud reports whether Ollama would run the model off-site: a tag that is "cloud" or ends in "-cloud", or an untagged name that ends in
// "-cloud" (from 0.18.0, Ollama checks the end of the whole string).
func (m Model) Cloud() bool {
	return m.Tag == "cloud" || strings.HasSuffix(m.Tag, "-cloud") ||
		m.Tag == DefaultTag && strings.HasSuffix(m.Name, "-cloud")
}

// ParseModel reads any spelling that Ollama accepts. It returns the canonical name and the text to send upstream: the client's own
// spelling if that is plain, so that the answer repeats it, otherwise the plain form. Spaces, a scheme, ":local" and explicit defaults
// are not plain. For other texts it returns a CodeBadRequest error.
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
		return Model{}, "", errModelName() // given twice: Ollama might remove one more than we do
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

// plain omits explicit defaults, and keeps the client's case and its tag, if it gave one.
func (m Model) plain(canonical Model, tagged bool) string {
	s := m.Name
	if canonical.Host != DefaultHost {
		s = m.Host + "/" + m.Namespace + "/" + s
	} else if canonical.Namespace != DefaultNamespace {
		s = m.Namespace + "/" + s
	}
	if tagged {
		s += ":" + m.Tag
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

// validPart is Ollama's grammar for a part of a name: letters, digits, "_", "-" and the characters in more, but neither "-" nor those
// first.
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

// Parameters are the fields that a model's Modelfile sets and that a policy can rule on. 0 means that it sets none, or a number below 1.
type Parameters struct {
	NumPredict, NumCtx int64
	// Context is what a load without num_ctx has: NumCtx, or what the servers use where they are known to; 0 where that is not known.
	Context int64
	// Split reports that a server has the model partly in the memory of its graphics card and partly not: with less context it may be faster.
	Split bool
}

// Pattern is one entry of a key's list of allowed models, in canonical form: "llama3" matches only llama3:latest, "llama3:*" each of its
// tags. A star within a part never matches "/" or ":". A single "*" matches every local model.
type Pattern struct {
	all bool
	Model
}

// ParsePattern reads an entry of a list of allowed models. It returns a CodeBadRequest error if the entry is invalid.
func ParsePattern(text string) (Pattern, error) {
	if text == "*" {
		return Pattern{all: true}, nil
	}
	// A star may replace any part of a name. Use characters that are valid everywhere in its place, and restore it
	// afterwards.
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

// starStandIn is a sequence of valid characters that no real name contains. It stands for a star in ParseModel.
const starStandIn = "_0star0_"

// Match reports whether the pattern matches m. Cloud models also need Key.AllowCloud.
func (p Pattern) Match(m Model) bool {
	if p.all {
		return true
	}
	return matchPart(p.Host, m.Host) && matchPart(p.Namespace, m.Namespace) && matchPart(p.Name, m.Name) && matchPart(p.Tag, m.Tag)
}

// matchPart matches one part. "*" stands for any run of characters. It takes linear time in the text for each star.
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

// MayUse reports whether the key may use m. For a key that may not use it, the model must look unknown.
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

// Alias is another name for a model: a pattern like claude-* and the model that it stands for.
type Alias struct {
	From  Pattern
	Model Model
	Plain string // the model as it goes upstream
	name  string // From as it was written
}

// Aliases are tried in order. An alias never leads to another alias.
type Aliases []Alias

// ParseAlias reads "name=model", where name may contain stars. It returns a CodeBadRequest error if the text is invalid.
func ParseAlias(text string) (Alias, error) {
	from, to, ok := strings.Cut(text, "=")
	from = strings.TrimSpace(from)
	// A single star would hide every other model.
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

// String returns the alias in the syntax of MODEL_ALIASES.
func (a Alias) String() string { return a.name + "=" + a.Plain }

// Resolve returns the first alias that matches m, if any.
func (list Aliases) Resolve(m Model) (Alias, bool) {
	for _, a := range list {
		if a.From.Match(m) {
			return a, true
		}
	}
	return Alias{}, false
}

// Named returns the names without a star that stand for m. A list of models can show them.
func (list Aliases) Named(m Model) []string {
	var names []string
	for _, a := range list {
		if a.Model == m && !strings.Contains(a.name, "*") {
			names = append(names, a.name)
		}
	}
	return names
}
