package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// secretNames returns the settings that contain secrets, found by their types.
func secretNames() (names []string) {
	for _, s := range settingList() {
		if s.secret() {
			names = append(names, s.name)
		}
	}
	return names
}

// secretValues are valid values for each secret setting. A new one needs a line here.
var secretValues = map[string]string{
	"SECRET_KEY": goodSecret, "SECRET_KEY_PREVIOUS": goodSecret + "-previous", "ADMIN_API_KEY": "abcdefghijklmnopqrstuvwx",
	"OLLAMA_AUTH_HEADER": "Authorization: Bearer abcdefgh", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abcdefgh",
}

// same reports whether two configurations have the same values, whatever their sources.
func same(a, b *Config) bool {
	one, two := *a, *b
	one.origin, two.origin = nil, nil
	return reflect.DeepEqual(one, two)
}

func TestEachSecretHasThreeForms(t *testing.T) {
	if len(secretNames()) < 5 {
		t.Fatalf("secret settings are %q, want at least five", secretNames())
	}
	for _, name := range secretNames() {
		value, ok := secretValues[name]
		if !ok {
			t.Errorf("%s has no value in this test", name)
			continue
		}
		want := load(t, name+"="+value)
		dir := t.TempDir()
		file := filepath.Join(dir, strings.ToLower(name))
		for _, end := range []string{"", "\n", "\r\n"} {
			if err := os.WriteFile(file, []byte(value+end), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := load(t, name+"_FILE="+file); !same(got, want) {
				t.Errorf("%s_FILE with an end of %q is not the same as %s", name, end, name)
			}
			if got := load(t, "CREDENTIALS_DIRECTORY="+dir); !same(got, want) {
				t.Errorf("the credential %s with an end of %q is not the same as %s", name, end, name)
			}
		}
		if got, err := Load(write(t, name+"_FILE="+file+"\n"), nil); err != nil || !same(got, want) {
			t.Errorf("%s_FILE in .env: %v, want the same as %s", name, err, name)
		}
		for _, twice := range [][]string{
			{name + "=" + value, name + "_FILE=" + file},
			{name + "=" + value, "CREDENTIALS_DIRECTORY=" + dir},
			{name + "_FILE=" + file, "CREDENTIALS_DIRECTORY=" + dir},
		} {
			_, err := Load(absent(t), twice)
			refused(t, err, name+" is set twice", value)
		}
	}
}

func TestSecretFilesThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		path := filepath.Join(dir, "secret")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for text, says := range map[string]string{"": "empty", "\n": "empty", "canary\x00": "UTF-8", "\xff\xfec": "UTF-8", "brief": "32 characters"} {
		_, err := Load(absent(t), []string{"SECRET_KEY_FILE=" + file(text)})
		refused(t, err, says, "canary")
	}
	_, err := Load(absent(t), []string{"SECRET_KEY_FILE=" + filepath.Join(dir, "absent")})
	refused(t, err, "SECRET_KEY_FILE", "")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the error of a missing file is not fs.ErrNotExist")
	}
	_, err = Load(absent(t), []string{"SECRET_KEY_FILE=" + dir})
	refused(t, err, "SECRET_KEY_FILE", "")
	// Other settings have no _FILE form.
	_, err = Load(write(t, "PORT_FILE=x\n"), nil)
	refused(t, err, "PORT_FILE", "")
}

// For files that others manage, wrong modes are only a warning.
func TestReadableFilesOfOthers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o640: 0, 0o440: 0, 0o444: 1, 0o644: 1} {
		if err := os.WriteFile(path, []byte(goodSecret), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		for _, environ := range [][]string{{"SECRET_KEY_FILE=" + path}, {"TLS_CERT=" + path, "TLS_KEY=" + path}} {
			if w := load(t, environ...).Warnings; len(w) != want || want > 0 && !strings.Contains(w[0], path) {
				t.Errorf("mode %v, %q: warnings %q, want %d", mode, environ, w, want)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestModesOfOurOwnFiles(t *testing.T) {
	for mode, c := range map[os.FileMode]struct {
		warnings int
		refused  bool
	}{
		0o600: {0, false}, 0o400: {0, false}, 0o640: {1, false}, 0o660: {1, false}, 0o604: {0, true}, 0o644: {0, true}, 0o666: {0, true}, 0o602: {0, true},
	} {
		dir := t.TempDir()
		path := SecretPath(dir)
		if err := os.WriteFile(path, []byte(goodSecret), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		warnings, err := Private(path, filepath.Join(dir, "absent"))
		if len(warnings) != c.warnings || (err != nil) != c.refused {
			t.Errorf("mode %v: %q, %v, want %d warnings, refused %v", mode, warnings, err, c.warnings, c.refused)
		}
		// The commands can read a file with acceptable modes and do not print the warning.
		if _, err := Secret(dir, "", false); (err != nil) != c.refused {
			t.Errorf("mode %v: the secret is read with %v, want refused %v", mode, err, c.refused)
		}
	}
}

// InForce shows how a secret was set, and never its value.
func TestInForceNamesTheFileOfASecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(goodSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range load(t, "SECRET_KEY_FILE="+file).InForce() {
		if s.Name == "SECRET_KEY" && (s.From != "SECRET_KEY_FILE" || s.Value != "set") {
			t.Errorf("SECRET_KEY is %q from %q, want set from SECRET_KEY_FILE", s.Value, s.From)
		}
	}
}
