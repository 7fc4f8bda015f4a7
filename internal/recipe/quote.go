package recipe

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
)

// Language is the language of a text in a recipe. It determines how a value is quoted.
type Language string

// The languages. Form is text that a person types into a form; its values are not quoted.
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

// plainWord matches words without special characters of any shell.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,-]+$`)

// quote returns the text as a literal of the language. The text must contain only printable characters.
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
	// A JSON string of printable characters means the same in the other languages: its only escapes are \" and \\. (Java reads \u even in
	// source text, but not after a second backslash, and this function always doubles backslashes.)
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a string can always be encoded
	return strings.TrimSuffix(b.String(), "\n")
}
