package config

import (
	"errors"
	"io/fs"
	"os"
	"reflect"
	"slices"
)

// Change is what a second reading of the settings brings.
type Change struct {
	// Config is in force from then on: what can change while the service runs as it was read now, and the rest as it was.
	Config *Config
	// Taken are the names that changed and can; Restart those that changed and need a restart; Environment those that changed in the
	// file, but the environment wins, and that of a process cannot change.
	Taken, Restart, Environment []string
}

// Reread reads the file again that c came from. An error changes nothing, and neither does a file that is gone. Its errors are *Error.
func (c *Config) Reread() (Change, error) {
	from := c.origin
	switch info, err := os.Stat(from.file); {
	case err == nil && !info.Mode().IsRegular():
		return Change{}, errorf("the settings came through a pipe, %s, which cannot be read twice: name a file with --env-file to change them later", from.file)
	case errors.Is(err, fs.ErrNotExist) && from.text != nil:
		return Change{}, errorf("the settings file %s is gone: put it back, or restart the service to run without it", from.file)
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
	// What was read must also go together with what stays: demo keys need a HOST of this machine.
	if err := next.check(); err != nil {
		return Change{}, err
	}
	next.Warnings = slices.Compact(slices.Sorted(slices.Values(append(read.Warnings, next.Warnings...))))
	return change, nil
}

// switchesTLS reports whether a change of the certificate's files would switch HTTPS on or off, which a listener cannot.
func (c *Config) switchesTLS(name string, read *Config) bool {
	return (name == "TLS_CERT" || name == "TLS_KEY") && (c.TLSCert == "") != (read.TLSCert == "")
}
