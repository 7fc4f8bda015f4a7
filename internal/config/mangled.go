package config

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/joho/godotenv"
)

// A value that changed on its way here is an error. For example, a truncated secret would work until another program reads the file
// differently.

// Characters that no .env file contains. They mark what must survive the parser.
const (
	undefinedMark = "\uf8ff"
	dollarMark    = "\uf8fe"
	backslashMark = "\uf8fd"
)

var (
	reference      = regexp.MustCompile(`\$\(?\{?([A-Z0-9_]+)`)
	oddReference   = regexp.MustCompile(`\$\(|\$\{[A-Z0-9_]*([^A-Z0-9_}]|$)`)
	backslash      = regexp.MustCompile(`(?s)\\.`)
	wordLike       = regexp.MustCompile(`^[A-Z_]{3,40}$`)
	quotedEnds     = regexp.MustCompile(`(?s)^(".*"|'.*')$`)
	typographic    = "“”„‟‘’‚‛«»‹›"
	keptEscapes    = "nr\"'\\$\n"
	invisibleRunes = regexp.MustCompile("[\u00a0\u00ad\u2000-\u200f\u2028-\u202f\u2060-\u2064\u3000\ufeff]")
	controlRunes   = regexp.MustCompile(`[\x00-\x08\x0a-\x1f\x7f]`)
)

// checkExpansion refuses values from which godotenv would silently remove something: references to undefined names, forms of $ that it
// does not support, and backslashes in double quotes. It runs godotenv with these characters replaced.
func checkExpansion(path string, text []byte, values map[string]string) error {
	literal, err := godotenv.UnmarshalBytes([]byte(strings.ReplaceAll(string(text), "$", dollarMark)))
	if err != nil {
		return nil // the parser has already reported it
	}
	head := ""
	for _, m := range reference.FindAllSubmatch(text, -1) {
		head += string(m[1]) + "=" + undefinedMark + string(m[1]) + undefinedMark + "\n"
	}
	expanded, err := godotenv.Unmarshal(head + string(text))
	if err != nil {
		return nil
	}
	escaped, err := godotenv.UnmarshalBytes(backslash.ReplaceAllFunc(text, func(pair []byte) []byte {
		if strings.ContainsRune(keptEscapes, rune(pair[1])) {
			return pair
		}
		return append([]byte(backslashMark), pair[1:]...)
	}))
	if err != nil {
		escaped = values
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		plain := strings.ReplaceAll(literal[name], dollarMark, "$")
		_, rest, undefined := strings.Cut(expanded[name], undefinedMark)
		switch {
		case plain == expanded[name]:
		case undefined:
			what := "a $ followed by a name"
			missing, _, _ := strings.Cut(rest, undefinedMark)
			if wordLike.MatchString(missing) || !settings()[name].isSecretValue() {
				what = "$" + missing
			}
			return errorf("%s (line %d of %s) has %s in its value, which is not defined further up in the file (the environment is not used): put the value in single quotes if the $ is part of it, or define the name",
				name, lineOf(text, name), path, what)
		case oddReference.MatchString(plain):
			return errorf("%s (line %d of %s) has $( or ${ in its value in an unsupported form, which would be lost: put the value in single quotes if it is part of the value; only $NAME and ${NAME} are supported",
				name, lineOf(text, name), path)
		}
		if kept := escaped[name]; strings.Contains(kept, backslashMark) && strings.ReplaceAll(kept, backslashMark, `\`) != values[name] {
			return errorf("%s (line %d of %s) has a backslash in double quotes, which would be lost: write it twice, or put the value in single quotes",
				name, lineOf(text, name), path)
		}
	}
	return nil
}

// checkValues refuses values with quotes, spaces or characters that another program's way of reading files leaves in them. It trims
// spaces around values that are not secrets. environment contains the names whose values no .env parser has read.
func checkValues(values map[string]string, environment map[string]bool) error {
	known := settings()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values[name]
		if environment[name] && quotedEnds.MatchString(value) && len(value) > 1 {
			return errorf("%s begins and ends with a quote, which is part of its value: remove the quotes where it is set (docker --env-file and systemd credentials keep them)", name)
		}
		if why := oddRunes(value); why != "" {
			return errorf("%s %s", name, why)
		}
		trimmed := strings.TrimSpace(value)
		if f, _ := reflect.TypeFor[Config]().FieldByName(known[name].field); f.Type == reflect.TypeFor[Hidden]() && trimmed != value {
			return errorf("%s begins or ends with a space, which would be part of the secret: remove it where it is set", name)
		}
		if values[name] = trimmed; trimmed == "" {
			delete(values, name)
		}
	}
	return nil
}

// oddRunes describes characters of a value that are probably a mistake, or returns "".
func oddRunes(value string) string {
	if strings.IndexAny(value, typographic) == 0 || strings.ContainsAny(lastRune(value), typographic) {
		return "begins or ends with a typographic quote, as word processors write them: use plain quotes, or none"
	}
	if m := invisibleRunes.FindString(value); m != "" {
		return fmt.Sprintf("has an invisible character (%U) in its value, probably copied from a web page: type the value again", []rune(m)[0])
	}
	if controlRunes.MatchString(strings.TrimRight(value, "\r\n")) && !strings.Contains(value, "-----BEGIN ") {
		return "has a line break or another control character in its value: a quote may not be closed, or \\n in double quotes was meant literally"
	}
	return ""
}

func lastRune(s string) string {
	runes := []rune(s)
	return string(runes[max(0, len(runes)-1):])
}

// foreign are names of other programs that look like names of settings.
var foreign = map[string]bool{"OLLAMA_BASE_URLS": true} // Open WebUI

// warnNearNames warns of environment variables that are probably misspelled settings: names with one typing error in a long name, or in
// the end of a longer one, such as RATE_LIMT for DEFAULT_USER_RATE_LIMIT.
func (c *Config) warnNearNames(environment map[string]string) {
	known := knownNames()
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		if _, ours := known[name]; ours || foreign[name] || environment[name] == "" || len(name) < 5 || !nameLike.MatchString(name) {
			continue
		}
		if near := mistyped(strings.ToUpper(name)); near != "" {
			c.Warnings = append(c.Warnings, name+" in the environment is not a setting and has no effect: did you mean "+near+"?")
		}
	}
}

var nameLike = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,63}$`)

// leastTail is the least length of the end of a setting's name that counts as a misspelling of it.
const leastTail = 10

func mistyped(name string) string {
	for _, s := range slices.Sorted(maps.Keys(knownNames())) {
		if len(s) >= 5 && distance(name, s) <= 1 {
			return s
		}
	}
	for _, s := range settingList() {
		for rest := s.name; ; {
			_, tail, more := strings.Cut(rest, "_")
			if !more || len(tail) < leastTail || !strings.Contains(tail, "_") || strings.HasPrefix(s.name, "OTEL_") {
				break
			}
			if rest = tail; distance(name, tail) == 1 { // an exact tail, such as IDLE_TIMEOUT, may be a setting of another program
				return s.name
			}
		}
	}
	return ""
}
