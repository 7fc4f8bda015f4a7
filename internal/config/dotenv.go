package config

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/joho/godotenv"
)

// Limits of the file, in bytes and lines: a wrong path must not be read entirely, and finding the line of a mistake takes time quadratic
// in the number of lines.
const (
	maxDotenv      = 256 << 10
	maxDotenvLines = 1000
)

// readDotenv reads a settings file. A file that does not exist is empty.
func readDotenv(path string, warnings *[]string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errorf("the settings file %s cannot be read: make it readable for the user of this process, or name another one with --env-file", path)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() && info.Mode()&(fs.ModeNamedPipe|fs.ModeCharDevice) == 0 {
		return nil, errorf("the settings file %s is not a file: name one with --env-file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxDotenv+1))
	if err != nil {
		return nil, errorf("the settings file %s cannot be read: check it, or name another one with --env-file", path)
	}
	if len(text) > maxDotenv || bytes.Count(text, []byte("\n")) > maxDotenvLines {
		return nil, errorf("the settings file %s is larger than %d KiB or %d lines: it must contain only lines like PORT=8000", path, maxDotenv>>10, maxDotenvLines)
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // Windows editors write a byte order mark
	if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		return nil, errorf("the settings file %s is not UTF-8 text: save it as UTF-8", path)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 && runtime.GOOS != "windows" {
		*warnings = append(*warnings, "the settings file "+path+" can be read by every user of this machine: chmod 600 it")
	}
	return text, nil
}

// parseDotenv parses a settings file. The syntax is godotenv's: NAME=value lines, comments, quotes, export, CRLF, and $NAME for a value
// further up in the file (not in single quotes).
func parseDotenv(path string, text []byte) (map[string]string, error) {
	values, err := godotenv.UnmarshalBytes(text)
	if err != nil {
		// The error of godotenv quotes the rest of the file, including secrets, and has no line number.
		return nil, errorf("line %d of %s is not of the form NAME=value, or a quote is not closed", brokenLine(text), path)
	}
	known := knownNames()
	for name := range values {
		if _, ok := known[name]; ok {
			continue
		}
		line := lineOf(text, name)
		if !plainName.MatchString(name) {
			// This text may be a secret that was moved to the start of the line.
			return nil, errorf("line %d of %s does not begin with the name of a setting: the names are in .env.example", line, path)
		}
		if near := nearest(name); near != "" {
			return nil, errorf("%s (line %d of %s) is not a setting: did you mean %s?", name, line, path, near)
		}
		return nil, errorf("%s (line %d of %s) is not a setting: the names are in .env.example", name, line, path)
	}
	if m := quotedWindowsPath.FindSubmatch(text); m != nil {
		return nil, errorf(`%s (line %d of %s) is a Windows path in double quotes, where \n and similar sequences have another meaning: remove the quotes, or use single quotes`,
			m[1], lineOf(text, string(m[1])), path)
	}
	if err := checkExpansion(path, text, values); err != nil {
		return nil, err
	}
	for name, value := range values {
		// Without a value before it, godotenv reads a comment as the value, and such a "secret" may be public.
		if strings.HasPrefix(value, "#") {
			if bare, err := regexp.Match(`(?m)^[ \t]*(export[ \t]+)?`+name+`[ \t]*[=:][ \t]*#`, text); bare || err != nil {
				return nil, errorf("%s (line %d of %s) has a comment in place of a value: put the comment on a line of its own", name, lineOf(text, name), path)
			}
		}
		if value == "" {
			delete(values, name)
		}
	}
	return values, nil
}

// quotedWindowsPath matches a line whose path would lose its backslashes: "C:\temp" would be C:temp, "C:\new" two lines.
var quotedWindowsPath = regexp.MustCompile(`(?m)^[ \t]*(?:export[ \t]+)?([A-Z_]+)[ \t]*[=:][ \t]*"[A-Za-z]:\\[^\\]`)

var plainName = regexp.MustCompile(`^[A-Z][A-Z_]{1,40}$`)

// lineOf returns the number of the line on which the file first sets name.
func lineOf(text []byte, name string) int {
	for n, values := range beginnings(text) {
		if _, ok := values[name]; ok {
			return n
		}
	}
	return 0
}

// linesOf returns, for each name, the number of the line with its value. If a name is set twice, the last line counts.
func linesOf(text []byte) map[string]int {
	lines, before := map[string]int{}, map[string]string{}
	for n, values := range beginnings(text) {
		for name, value := range values {
			if old, ok := before[name]; !ok || old != value {
				lines[name] = n
			}
		}
		before = values
	}
	return lines
}

// brokenLine returns the number of the line after the longest valid beginning.
func brokenLine(text []byte) int {
	good := 0
	for n := range beginnings(text) {
		good = n
	}
	return good + 1
}

// beginnings yields the values that the first n lines of the file set, for each n with which the file can be parsed.
func beginnings(text []byte) iter.Seq2[int, map[string]string] {
	return func(yield func(int, map[string]string) bool) {
		end := 0
		for n, line := range slices.Collect(bytes.Lines(text)) {
			end += len(line)
			if values, err := godotenv.UnmarshalBytes(text[:end]); err == nil && !yield(n+1, values) {
				return
			}
		}
	}
}

// nearest returns the name of the setting that is at most two typing errors away, or "".
func nearest(name string) string {
	best, least := "", 3
	for _, known := range slices.Sorted(maps.Keys(knownNames())) {
		if d := distance(name, known); d < least {
			best, least = known, d
		}
	}
	return best
}

// distance is the Damerau-Levenshtein distance: insertions, deletions, replacements, and swaps of neighbours.
func distance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j]+cost, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}
