package config

import (
	"errors"
	"io/fs"
	"os"
	"reflect"
	"slices"
)

// Change is the result of a reload.
type Change struct {
	// Config holds the settings in force after the reload: reloadable settings have their new values, the others keep the old ones.
	Config *Config
	// Taken are the names that changed and apply now. Restart are those that changed and need a restart. Environment are those that
	// changed in the file but are overridden by the environment, which cannot change for a running process.
	Taken, Restart, Environment []string
}

// Reread reads the settings file of c again. On an error, or if the file no longer exists, nothing changes. Errors are of type *Error.
func (c *Config) Reread() (Change, error) {
	from := c.origin
	switch info, err := os.Stat(from.file); {
	case err == nil && !info.Mode().IsRegular():
		return Change{}, errorf("the settings came from a pipe, %s, which cannot be read again: name a file with --env-file if you want to reload", from.file)
	case errors.Is(err, fs.ErrNotExist) && from.text != nil:
		return Change{}, errorf("the settings file %s no longer exists: restore it, or restart the service to run without it", from.file)
	}
	read, err := Load(from.file, from.environ)
	if err != nil {
		return Change{}, err
	}
	if from.socket {
		read.Host, read.Port, read.origin.socket = c.Host, c.Port, true
	}
	read.origin.open = from.open
	if from.demo {
		read.DemoKeys, read.origin.demo = true, true
	}
	next := *c
	change := Change{Config: &next}
	was, now, into := reflect.ValueOf(c).Elem(), reflect.ValueOf(read).Elem(), reflect.ValueOf(&next).Elem()
	for _, s := range settingList() {
		if _, ok := from.environment[s.name]; ok && from.values[s.name] != read.origin.values[s.name] {
			change.Environment = append(change.Environment, s.name)
		}
		switch before, after := was.FieldByName(s.field), now.FieldByName(s.field); {
		case reflect.DeepEqual(before.Interface(), after.Interface()):
		case s.reload && !c.switchesTLS(s.name, read):
			into.FieldByName(s.field).Set(after)
			change.Taken = append(change.Taken, s.name)
		default:
			change.Restart = append(change.Restart, s.name)
		}
	}
	next.origin, next.Warnings = read.origin, nil
	// The new settings must also fit the ones that stay: demo keys need a loopback HOST.
	if err := next.check(); err != nil {
		return Change{}, err
	}
	next.Warnings = slices.Compact(slices.Sorted(slices.Values(append(read.Warnings, next.Warnings...))))
	return change, nil
}

// switchesTLS reports whether a change of the certificate files would switch HTTPS on or off, which needs a new listener.
func (c *Config) switchesTLS(name string, read *Config) bool {
	return (name == "TLS_CERT" || name == "TLS_KEY") && (c.TLSCert == "") != (read.TLSCert == "")
}
