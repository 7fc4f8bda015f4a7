// Package recipe lists the client programs that work with the gateway, and how to configure the address, the key and the model in each.
// The command "connect", docs/clients.md and web/clients.json are generated from it.
package recipe

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"ollama-api-service/internal/api"
)

// Recipe is the set-up of one client.
type Recipe struct {
	ID    string `json:"id"` // the argument of "connect"
	Name  string `json:"name"`
	Group Group  `json:"group"`
	// Address is the form of the gateway's address that the client takes: "URL", "URL/v1", "URL/k/KEY" or "URL/k/KEY/v1".
	Address string   `json:"address"`
	Key     string   `json:"key"`              // where the key goes, in a few words
	Origin  string   `json:"origin,omitempty"` // entry of CORS_ORIGINS that it needs in a browser
	Parts   []Part   `json:"parts"`
	Traps   []string `json:"traps,omitempty"` // common mistakes, a sentence or two each
	Tried   Tried    `json:"tried"`
	Version string   `json:"version"` // version of the client, or of the source whose requests are replayed
}

// Part is one text of a recipe. In the list, its Text contains placeholders.
type Part struct {
	// Where is the destination of the text: a file, "shell" for commands, or the name of a form.
	Where    string   `json:"where"`
	Language Language `json:"language"`
	Text     string   `json:"text"`
}

// Group is a heading under which recipes are shown.
type Group string

// The groups, in the order in which they are shown.
const (
	Commands   Group = "Commands"
	SDKs       Group = "SDKs"
	Frameworks Group = "Frameworks"
	Agents     Group = "Coding agents"
	Editors    Group = "Editors"
	Apps       Group = "Applications"
)

// Tried is how a recipe is tested.
type Tried string

// Run means that the tests run the client itself with the recipe. Replayed means that they send the requests that its source or its
// documentation describes.
const (
	Run      Tried = "run"
	Replayed Tried = "replayed from its source"
)

// Values are the values for the placeholders. URL is the gateway's address without a slash at its end.
type Values struct{ URL, Key, Model string }

// All returns the recipes of all groups.
func All() []Recipe {
	return slices.Concat(commands, sdks, frameworks, agents, editors, apps)
}

// Find returns the recipe of one client. If there is none, the error names those with a similar spelling.
func Find(id string) (Recipe, error) {
	var near []string
	for _, r := range All() {
		if strings.EqualFold(r.ID, id) {
			return r, nil
		}
		if len(id) > 2 && (strings.Contains(r.ID, strings.ToLower(id)) || strings.Contains(strings.ToLower(r.Name), strings.ToLower(id))) {
			near = append(near, r.ID)
		}
	}
	if len(near) > 0 {
		return Recipe{}, api.Errorf(api.CodeBadRequest, "there is no recipe called %q; similar ones are %s", id, strings.Join(near, ", "))
	}
	return Recipe{}, api.Errorf(api.CodeBadRequest, "there is no recipe called %q; connect without a name lists all", id)
}

// JSON returns the list for the web page.
func JSON() ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(All())
	return []byte(b.String()), err
}

// Fill returns the recipe with its placeholders replaced. Each value becomes a literal of the language of the text, so that no character
// of a key or a model's name can end it.
func (r Recipe) Fill(v Values) (Recipe, error) {
	for _, value := range []struct{ what, text string }{{"address", v.URL}, {"key", v.Key}, {"model", v.Model}} {
		if strings.HasPrefix(value.text, "-") {
			return Recipe{}, api.Errorf(api.CodeBadRequest, "the %s begins with a hyphen, like an option: copy it again", value.what)
		}
		if !utf8.ValidString(value.text) || strings.ContainsFunc(value.text, func(c rune) bool { return !unicode.IsPrint(c) }) {
			return Recipe{}, api.Errorf(api.CodeBadRequest, "the %s contains a character that cannot be printed: copy it again", value.what)
		}
	}
	v.URL = strings.TrimRight(v.URL, "/")
	r.Address = v.expand(r.Address)
	r.Parts = slices.Clone(r.Parts)
	for i, p := range r.Parts {
		r.Parts[i].Text = fill(p.Text, func(place string) string { return p.Language.quote(v.expand(place)) })
	}
	return r, nil
}

// fill replaces the placeholders in a text, which are written <<…>>.
func fill(text string, with func(place string) string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "<<")
		place, after, ended := strings.Cut(rest, ">>")
		if !found || !ended {
			b.WriteString(text)
			return b.String()
		}
		b.WriteString(before)
		b.WriteString(with(place))
		text = after
	}
}

// expand replaces URL, KEY and MODEL by their values. It escapes a key in an address.
func (v Values) expand(place string) string {
	return strings.NewReplacer(
		"JSON(MODEL)", JSONFile.quote(v.Model), "/k/KEY", "/k/"+url.PathEscape(v.Key), "URL", v.URL, "KEY", v.Key, "MODEL", v.Model,
	).Replace(place)
}
