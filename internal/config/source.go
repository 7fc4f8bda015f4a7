package config

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// InForce describes one setting in force.
type InForce struct {
	Name   string `json:"name"`
	Value  string `json:"value"`            // "set" for a secret
	From   string `json:"from"`             // environment, default, file:line, or how the file of a secret was named
	Hidden string `json:"hidden,omitempty"` // the file:line that the environment overrides
	Reload bool   `json:"reload"`           // it can change while the service runs
}

// InForce returns every setting in the order of .env.example.
func (c *Config) InForce() []InForce {
	lines, v := linesOf(c.origin.text), reflect.ValueOf(c).Elem()
	place := func(name string) string { return fmt.Sprintf("%s:%d", c.origin.file, lines[name]) }
	var list []InForce
	for _, s := range settingList() {
		one := InForce{Name: s.name, Reload: s.reload, From: "default"}
		text, inFile := c.origin.values[s.name]
		if inFile {
			one.From = place(s.name)
		}
		if t, ok := c.origin.environment[s.name]; ok {
			if text, one.From = t, "environment"; inFile {
				one.Hidden = place(s.name)
			}
		}
		if form, ok := c.origin.files[s.name]; ok {
			one.From = form
		}
		one.Value = shown(v.FieldByName(s.field), cmp.Or(text, s.standard))
		list = append(list, one)
	}
	return list
}

// shown returns the value of a setting for display: a text as it was parsed, a structured value as it was written.
func shown(field reflect.Value, written string) string {
	switch v := field.Interface().(type) {
	case Hidden:
		if v != "" {
			return "set"
		}
		return ""
	case AuthHeader:
		return v.String()
	case HiddenPairs:
		list := slices.Sorted(maps.Keys(v))
		for i := range list {
			list[i] += "=(set)"
		}
		return strings.Join(list, ",")
	case bool:
		return fmt.Sprint(v) // a command-line flag may have set it
	}
	if field.Kind() == reflect.String {
		return field.String()
	}
	return written
}
