package recipe

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
)

// Language is what a text of a recipe is written in. It decides how a value is quoted.
type Language string

// The languages. Form is what a person types into the fields of a window; its values stand as they are.
const (
	Shell      Language = "sh"
	TOML       Language = "toml"
	JSONFile   Language = "json"
	YAML       Language = "yaml"
	Python     Language = "python"
	JavaScript Language = "javascript"
	Go         Language = "go"
	Java       Language = "java"
	CSharp     Language = "csharp"
	Form       Language = "text"
)

// plainWord is what no shell reads anything into.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,-]+$`)

// quote returns the text as a literal of the language. The text has printable characters only.
func (l Language) quote(text string) string {
	switch l {
	case Form:
		return text
	case Shell:
		if plainWord.MatchString(text) {
			return text
		}
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	case Go:
		return strconv.Quote(text)
	}
	// A JSON string of printable characters means the same in the other languages: its only escapes are \" and \\. (Java reads \u even
	// in source text, but not behind a second backslash, and a backslash is always doubled here.)
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a string can always be encoded
	return strings.TrimSuffix(b.String(), "\n")
}
