package dialect

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Agents declare tools that the provider would run: Codex sends {"type":"web_search"} in every request. Ollama knows only web search
// and runs it on ollama.com under the server's own account. It turns each other one into a function without a name, which no client
// can run. So without permission for the cloud, the gateway removes them and serves the rest of the request.

// clientTools are the types of tools that the client runs itself. Only these stay. Unknown types are removed, because a later Ollama
// may run them elsewhere.
var clientTools = map[string]bool{
	"": true, "function": true, "custom": true, "namespace": true, "local_shell": true, "shell": true, "apply_patch": true,
	"computer": true, "computer_use_preview": true, "tool_search": true,
}

// datedClientTools are the client's tools whose type ends with a date: bash_20250124.
var datedClientTools = []string{"bash_", "computer_", "memory_", "text_editor_"}

// hostedFields ask for hosted tools at the top level of a body.
var hostedFields = []string{"web_search_options", "mcp_servers"}

func clientTool(kind string) bool {
	return clientTools[kind] || slices.ContainsFunc(datedClientTools, func(prefix string) bool {
		date, dated := strings.CutPrefix(kind, prefix)
		return dated && strings.Trim(date, "0123456789") == ""
	})
}

// dropHosted removes the tools that the provider would run from a body, and the choice of a removed tool.
func (e *edit) dropHosted(k Kind, req *Request) error {
	var dropped []string
	for _, name := range hostedFields {
		if m := e.object.find(name); m != nil {
			e.remove(m)
			dropped = append(dropped, name)
		}
	}
	tools := toolWalk{kind: k, names: map[string]bool{}}
	emptied := false
	if m := e.object.find("tools"); m != nil && m.kind == '[' {
		left, err := tools.walk(e.object.value(m), (*toolWalk).list)
		if err != nil {
			return err
		}
		emptied = !left
		switch {
		case emptied:
			e.remove(m)
		case tools.cuts != nil:
			e.replace(m, without(tools.src, tools.cuts))
		}
		dropped = append(dropped, tools.dropped()...)
	}
	if m := e.object.find("tool_choice"); m != nil && m.kind != 'n' {
		choice := toolWalk{kind: k, choice: true, names: map[string]bool{}}
		left := !emptied // the caller refuses a choice among no tools
		if left && m.kind == '{' {
			var err error
			if left, err = choice.walk(e.object.value(m), (*toolWalk).entry); err != nil {
				return err
			}
			left = left && !tools.gone(choice.named)
		}
		switch {
		case !left:
			e.remove(m)
			dropped = append(dropped, "tool_choice")
		case choice.cuts != nil:
			e.replace(m, without(choice.src, choice.cuts))
			dropped = append(dropped, choice.dropped()...)
		}
	}
	for _, what := range slices.Compact(dropped) {
		req.Changes = append(req.Changes, what+" dropped")
	}
	return nil
}

// toolWalk goes once through a list of tools, or through the choice of one, and notes what to cut.
type toolWalk struct {
	kind   Kind
	choice bool
	r      *reader
	src    []byte
	cuts   []span
	kinds  []string        // types of what is cut
	names  map[string]bool // of the tools, and whether one of that name stays
	named  string          // by the last entry
}

type span struct{ start, end int }

// walk reads src, a list or an entry, and reports whether anything of it stays.
func (w *toolWalk) walk(src []byte, whole func(*toolWalk) (bool, error)) (bool, error) {
	w.src, w.r = src, read(src)
	defer w.r.done()
	left, err := whole(w)
	if err != nil {
		return false, syntaxError(err)
	}
	return left, nil
}

// list reads the entries of a list, and reports whether any of them stays. Entries that are not tools stay: Ollama refuses them.
func (w *toolWalk) list() (bool, error) {
	if _, err := w.r.dec.ReadToken(); err != nil {
		return false, err
	}
	left, cut := false, false
	for w.r.dec.PeekKind() != ']' {
		before, cuts := int(w.r.dec.InputOffset()), len(w.cuts)
		if cut && !left {
			w.cuts = append(w.cuts, span{before, skipSpace(w.src, before)}) // the comma after the cut entries, if this entry stays
		}
		stays, err := w.entry()
		if err != nil {
			return false, err
		}
		if !stays {
			w.cuts = append(w.cuts[:cuts], span{before, int(w.r.dec.InputOffset())})
			cut = true
		}
		left = left || stays
	}
	_, err := w.r.dec.ReadToken()
	return left || !cut, err
}

// entry reads a tool, or the choice of one, and reports whether it stays.
func (w *toolWalk) entry() (bool, error) {
	if w.r.dec.PeekKind() != '{' {
		return true, w.r.dec.SkipValue()
	}
	if _, err := w.r.dec.ReadToken(); err != nil {
		return false, err
	}
	kind, name, function, left := "", "", false, true
	for w.r.dec.PeekKind() != '}' {
		raw, err := w.r.dec.ReadValue()
		if err != nil {
			return false, err
		}
		field, err := fieldName(raw, toolFields)
		if err != nil {
			return false, err
		}
		value := w.r.dec.PeekKind()
		switch {
		case field == "tools" && value == '[':
			left, err = w.list()
		case field == "type" && value == '"':
			kind, err = w.text()
		case field == "name" && value == '"':
			name, err = w.text()
		default:
			function = function || field == "function" && value == '{'
			err = w.r.dec.SkipValue()
		}
		if err != nil {
			return false, err
		}
	}
	if _, err := w.r.dec.ReadToken(); err != nil {
		return false, err
	}
	stays := w.stays(kind, function)
	if !stays {
		w.kinds = append(w.kinds, kind)
	}
	stays = stays && left
	w.named = name
	w.names[name] = w.names[name] || stays
	return stays, nil
}

// stays reports whether the client runs tools of this type. If a tool has an object "function", Ollama reads nothing else.
func (w *toolWalk) stays(kind string, function bool) bool {
	switch {
	case w.choice && (kind == "auto" || kind == "any" || kind == "none" || kind == "tool" || kind == "allowed_tools"):
		return true
	case function && (w.kind == Chat || w.kind == OpenAIChat):
		return true
	}
	return clientTool(kind)
}

// text decodes a string. Invalid text is not a type that stays, and not the name of another tool.
func (w *toolWalk) text() (string, error) {
	raw, err := w.r.dec.ReadValue()
	if err != nil {
		return "", err
	}
	text, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		return string(raw), nil //nolint:nilerr // it is JSON, but not a string
	}
	return string(text), nil
}

// gone reports whether every tool of that name was cut.
func (w *toolWalk) gone(name string) bool {
	stays, known := w.names[name]
	return name != "" && known && !stays
}

// without returns src without the cuts, which are in the order of the text.
func without(src []byte, cuts []span) []byte {
	out, at := make([]byte, 0, len(src)), 0
	for _, c := range cuts {
		out, at = append(out, src[at:c.start]...), c.end
	}
	return append(out, src[at:]...)
}

// maxNamed bounds the types that a header names, because clients choose them.
const maxNamed = 8

// dropped names what was cut, each type once. A header does not repeat a type that is not a plain word.
func (w *toolWalk) dropped() []string {
	var list []string
	for _, kind := range w.kinds {
		what := fmt.Sprintf("tool %s", kind)
		if len(kind) > 40 || bytes.ContainsFunc([]byte(kind), func(c rune) bool {
			return c != '_' && c != '-' && c != '.' && c != ':' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
		}) {
			what = "a tool of an unknown type"
		}
		if len(list) == maxNamed {
			return append(list, "other tools")
		}
		if !slices.Contains(list, what) {
			list = append(list, what)
		}
	}
	return list
}

var toolFields = names("type", "name", "function", "tools")
