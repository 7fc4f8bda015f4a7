package config

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"
)

// A secret setting has three forms: NAME is the value, NAME_FILE is a file that contains the value, and a systemd credential of that
// name, in upper or lower case, is the value too. Only one of them may be set.
const (
	fileSuffix     = "_FILE"
	credentialsDir = "CREDENTIALS_DIRECTORY"
	maxSecretFile  = 64 << 10
)

// secret reports whether the setting contains a Hidden value.
func (s setting) secret() bool {
	f, _ := reflect.TypeFor[Config]().FieldByName(s.field)
	return holdsHidden(f.Type)
}

func holdsHidden(t reflect.Type) bool {
	switch {
	case t == reflect.TypeFor[Hidden]():
		return true
	case t.Kind() == reflect.Map || t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer:
		return holdsHidden(t.Elem())
	case t.Kind() == reflect.Struct:
		for f := range t.Fields() {
			if holdsHidden(f.Type) {
				return true
			}
		}
	}
	return false
}

// isSecretValue reports whether s is a secret setting. It is false for NAME_FILE, which is a path, and for the zero setting.
func (s setting) isSecretValue() bool { return s.name != "" && s.secret() }

// knownNames returns all names that may be set: those of the settings, and NAME_FILE of the secret ones.
func knownNames() map[string]setting {
	known := settings()
	for name, s := range settings() {
		if s.secret() {
			known[name+fileSuffix] = s
		}
	}
	return known
}

// readSecrets reads the secret settings that are in files into values, and removes their NAME_FILE. It adds them to raw, because no .env
// parser has read them.
func (c *Config) readSecrets(values map[string]string, raw map[string]bool, credentials string) error {
	for _, s := range settingList() {
		if !s.secret() {
			continue
		}
		sources, path := s.sources(values, credentials)
		if len(sources) > 1 {
			return errorf("%s is set twice, by %s: remove one of them", s.name, strings.Join(sources, " and by "))
		}
		delete(values, s.name+fileSuffix)
		if path == "" {
			continue
		}
		value, err := readSecretFile(sources[0], path)
		if err != nil {
			return err
		}
		values[s.name], raw[s.name] = value, true
		c.origin.files[s.name] = sources[0]
		if credentials == "" || !strings.HasPrefix(path, credentials) {
			c.warnReadable(sources[0], path)
		}
	}
	return nil
}

// sources returns the forms in which the setting is set, and the path of the file if one of them is a file.
func (s setting) sources(values map[string]string, credentials string) (names []string, path string) {
	if values[s.name] != "" {
		names = append(names, s.name)
	}
	if file := values[s.name+fileSuffix]; file != "" {
		names, path = append(names, s.name+fileSuffix), file
	}
	if credentials == "" {
		return names, path
	}
	for _, name := range []string{s.name, strings.ToLower(s.name)} {
		file := filepath.Join(credentials, name)
		if _, err := os.Stat(file); err == nil {
			names, path = append(names, "the credential "+name), file
		}
	}
	return names, path
}

// readSecretFile reads a file that contains one value. A line break at its end is not part of the value.
func readSecretFile(name, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", causedBy(err, "%s names the file %s, which cannot be read: mount it, name another file, or make it readable for the user of this process (%v)", name, path, reason(err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", causedBy(err, "%s names %s, which cannot be read: name a file (%v)", name, path, reason(err))
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if len(text) > maxSecretFile || !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		return "", errorf("%s names %s, which is not UTF-8 text of up to %d KiB: it must contain only the value", name, path, maxSecretFile>>10)
	}
	value := strings.TrimRight(string(text), "\r\n")
	if value == "" {
		return "", errorf("%s names %s, which is empty: it must contain the value", name, path)
	}
	return value, nil
}

// warnReadable warns of a file from elsewhere that every user of this machine can read. It ignores the files that Docker and Kubernetes
// mount below /run/secrets in containers, which have only one user.
func (c *Config) warnReadable(name, path string) {
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o004 == 0 || mountedSecret(path) {
		return
	}
	c.Warnings = append(c.Warnings, name+": the file "+path+" can be read by every user of this machine: chmod 640 it, with the group of the service")
}

func mountedSecret(path string) bool {
	return strings.HasPrefix(path, "/run/secrets/") || strings.HasPrefix(path, "/var/run/secrets/")
}

// StartWait returns the setting START_WAIT even if other settings cannot be read.
func StartWait(dotenvPath string, environ []string) time.Duration {
	var ignored []string
	file, _ := readDotenv(dotenvPath, &ignored)
	values, _ := parseDotenv(dotenvPath, file)
	text := values["START_WAIT"]
	for _, e := range environ {
		if value, ok := strings.CutPrefix(e, "START_WAIT="); ok && value != "" {
			text = value
		}
	}
	if d, err := time.ParseDuration(text); err == nil {
		return max(d, 0)
	}
	d, _ := time.ParseDuration(settings()["START_WAIT"].standard)
	return d
}
