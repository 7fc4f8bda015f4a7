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

// What changes a value on its way here is an error: a secret that is shorter than the operator wrote works until somebody reads the file
// with another program.

// Characters that no .env file has: they stand for what must survive the parser.
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

// checkExpansion refuses what godotenv would silently take out of a value: references to what is not defined, forms of $ that it does not
// have, and backslashes in double quotes. It asks godotenv itself, with the characters in question replaced.
func checkExpansion(path string, text []byte, values map[string]string) error {
	literal, err := godotenv.UnmarshalBytes([]byte(strings.ReplaceAll(string(text), "$", dollarMark)))
	if err != nil {
		return nil // the parser has said so before
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
			what := "a $ with a name behind it"
			missing, _, _ := strings.Cut(rest, undefinedMark)
			if wordLike.MatchString(missing) || !settings()[name].isSecretValue() {
				what = "$" + missing
			}
			return errorf("%s (line %d of %s) has %s in its value, which nothing further up in the file defines (the environment is not looked at): put the value in single quotes if the $ is part of it, or define the name",
				name, lineOf(text, name), path, what)
		case oddReference.MatchString(plain):
			return errorf("%s (line %d of %s) has $( or ${ in its value in a form that this file does not have, which would be lost: put the value in single quotes if it is part of it; only $NAME and ${NAME} are read",
				name, lineOf(text, name), path)
		}
		if kept := escaped[name]; strings.Contains(kept, backslashMark) && strings.ReplaceAll(kept, backslashMark, `\`) != values[name] {
			return errorf("%s (line %d of %s) has a backslash in double quotes, which would be lost: write it twice, or put the value in single quotes",
				name, lineOf(text, name), path)
		}
	}
	return nil
}

// checkValues refuses values that carry what does not belong to them, as programs leave it that read a file in another way than the one
// that wrote it. Space around a value that is no secret is taken off. environment names the values that no .env parser has read.
func checkValues(values map[string]string, environment map[string]bool) error {
	known := settings()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values[name]
		if environment[name] && quotedEnds.MatchString(value) && len(value) > 1 {
			return errorf("%s begins and ends with a quote, which is part of its value: leave the quotes out where it is set (docker --env-file and systemd credentials keep them)", name)
		}
		if why := oddRunes(value); why != "" {
			return errorf("%s %s", name, why)
		}
		trimmed := strings.TrimSpace(value)
		if f, _ := reflect.TypeFor[Config]().FieldByName(known[name].field); f.Type == reflect.TypeFor[Hidden]() && trimmed != value {
			return errorf("%s begins or ends with space, which would be part of the secret: take it out where it is set", name)
		}
		if values[name] = trimmed; trimmed == "" {
			delete(values, name)
		}
	}
	return nil
}

// oddRunes says which characters of a value were not meant, or "".
func oddRunes(value string) string {
	if strings.IndexAny(value, typographic) == 0 || strings.ContainsAny(lastRune(value), typographic) {
		return "begins or ends with a typographic quote, as word processors write them: use plain ones, or none"
	}
	if m := invisibleRunes.FindString(value); m != "" {
		return fmt.Sprintf("has an invisible character (%U) in its value, as it comes with text that was copied from a page: type the value again", []rune(m)[0])
	}
	if controlRunes.MatchString(strings.TrimRight(value, "\r\n")) && !strings.Contains(value, "-----BEGIN ") {
		return "has a line break or another control character in its value: a quote is not closed where it should be, or \\n in double quotes was meant as it is"
	}
	return ""
}

func lastRune(s string) string {
	runes := []rune(s)
	return string(runes[max(0, len(runes)-1):])
}

// foreign are names that are nearly those of settings and belong to other programs.
var foreign = map[string]bool{"OLLAMA_BASE_URLS": true} // Open WebUI

// warnNearNames warns of names in the environment that are probably meant for settings. Nearly is one typing error in a long name, or in
// the end of a longer one: RATE_LIMT for DEFAULT_USER_RATE_LIMIT.
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

// leastTail is how long the end of a setting's name must be to be meant by a name that is nearly it.
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
			if rest = tail; distance(name, tail) == 1 { // the tail itself, such as IDLE_TIMEOUT, may be the setting of another program
				return s.name
			}
		}
	}
	return ""
}
