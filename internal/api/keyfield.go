package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// KeyField describes a field of Key. How a value is read, written and checked follows from its Go type and from the entries here.
type KeyField struct {
	// Name is the field's name in JSON. Its column in the store has the same name, only that of key_preview is preview.
	Name string
	// Help describes the field's flag on the command line. A field without it cannot be set.
	Help string
	// Required reports that the body that creates a key must have the field.
	Required bool
	// Label names the field in `keys show`, and Column in `keys list`. A field without them is not shown, or in the line of another one.
	Label, Column string
	// Width is the greatest width of the column in characters, if it is not 0.
	Width int

	// Least and Most bound a number, the length of a text or the length of a list.
	Least, Most int64
	// Unit follows a number.
	Unit string
	// Choices are the values of a field that has only few.
	Choices []string

	show, cell func(*Key, time.Time) string // for fields that are shown differently than their type
	in         reflect.StructField          // Key's field
}

// indexed finds the fields of Key by their JSON names.
func indexed(fields []*KeyField) []*KeyField {
	for _, f := range fields {
		for _, in := range reflect.VisibleFields(reflect.TypeFor[Key]()) {
			if name, _, _ := strings.Cut(in.Tag.Get("json"), ","); name == f.Name {
				f.in = in
			}
		}
	}
	return fields
}

// At returns a pointer to the field's value in k.
func (f *KeyField) At(k *Key) any { return f.value(k).Addr().Interface() }

func (f *KeyField) value(k *Key) reflect.Value {
	return reflect.ValueOf(k).Elem().FieldByIndex(f.in.Index)
}

// Tag returns the tags of Key's field: its documentation, an example and its values.
func (f *KeyField) Tag() reflect.StructTag { return f.in.Tag }

// Settable reports whether the field can be given when a key is created or changed.
func (f *KeyField) Settable() bool { return f.Help != "" }

// Nullable reports whether null is a value of the field: no limit, or the default.
func (f *KeyField) Nullable() bool {
	return !f.Required && f.in.Type != reflect.TypeFor[string]() && f.in.Type != reflect.TypeFor[bool]()
}

// Flag is the name of the field's flag on the command line.
func (f *KeyField) Flag() string {
	return strings.ReplaceAll(strings.TrimSuffix(f.Name, "_at"), "_", "-")
}

// Validate returns a CodeBadRequest error that names the first invalid field.
func (k *Key) Validate() error {
	for _, f := range KeyFields {
		if err := f.check(k); err != nil && f.Settable() {
			return err
		}
	}
	return nil
}

func (f *KeyField) check(k *Key) error {
	switch at := f.At(k).(type) {
	case *string:
		return f.checkText(*at)
	case *Role, *Class:
		if !slices.Contains(f.Choices, f.value(k).String()) {
			return Errorf(CodeBadRequest, "%s must be %s", f.Name, strings.Join(f.Choices, " or "))
		}
	case **int64:
		if n := *at; n != nil && (*n < f.Least || *n > f.Most) {
			return Errorf(CodeBadRequest, "%s must be from %d to %d, or null for no limit", f.Name, f.Least, f.Most)
		}
	case *float64:
		if !(*at > 0 && *at <= float64(f.Most)) { // in this form it refuses NaN too
			return Errorf(CodeBadRequest, "%s must be above 0 and at most %d", f.Name, f.Most)
		}
	case *[]string:
		if int64(len(*at)) > f.Most {
			return Errorf(CodeBadRequest, "%s has more than %d patterns", f.Name, f.Most)
		}
		for _, p := range *at {
			if _, err := ParsePattern(p); err != nil {
				return Errorf(CodeBadRequest, "%s: a pattern is not a model name like llama3.2, llama3.2:* or *", f.Name)
			}
		}
	case *[]Network:
		if int64(len(*at)) > f.Most {
			return Errorf(CodeBadRequest, "%s has more than %d entries", f.Name, f.Most)
		}
	case *Policy:
		return at.Validate()
	}
	return nil
}

func (f *KeyField) checkText(s string) error {
	n := int64(utf8.RuneCountInString(s))
	if n < f.Least || n > f.Most || !utf8.ValidString(s) || strings.TrimSpace(s) != s {
		return Errorf(CodeBadRequest, "%s must be %d to %d characters, without leading or trailing spaces", f.Name, f.Least, f.Most)
	}
	for _, r := range s {
		// Control and format characters (newlines, right-to-left marks, zero-width characters) can forge terminal and log lines.
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' || r == utf8.RuneError {
			return Errorf(CodeBadRequest, "%s must not contain control or invisible characters", f.Name)
		}
	}
	return nil
}

// KeyPatch holds some fields of a key, to create or to change one. Its zero value holds none.
type KeyPatch struct {
	to    Key
	given map[string]bool // by name
}

// Has reports whether the patch holds the field with this name.
func (p *KeyPatch) Has(name string) bool { return p.given[name] }

// Empty reports whether the patch holds no field.
func (p *KeyPatch) Empty() bool { return len(p.given) == 0 }

// Apply changes k. The caller validates the result.
func (p *KeyPatch) Apply(k *Key) {
	for _, f := range KeyFields {
		if p.given[f.Name] {
			f.value(k).Set(f.value(&p.to))
		}
	}
}

// UnmarshalJSON reads the fields of an object. null means no limit or the default; for a field that has neither, it is as if absent.
func (p *KeyPatch) UnmarshalJSON(text []byte) error {
	var body map[string]json.RawMessage
	if err := json.Unmarshal(text, &body); err != nil {
		return err
	}
	*p = KeyPatch{to: NewKey("", "", nil), given: map[string]bool{}}
	for _, f := range KeyFields {
		value, ok := body[f.Name]
		null := string(value) == "null"
		switch {
		case !ok || null && !f.Nullable():
			continue
		case !f.Settable():
			return fmt.Errorf("%s cannot be set", f.Name)
		case !null:
			if err := json.Unmarshal(value, f.At(&p.to)); err != nil {
				return err
			}
		}
		p.given[f.Name] = true
	}
	return nil
}

// Read reads a field from the text of its flag. Its error names the flag.
func (p *KeyPatch) Read(f *KeyField, text string, now time.Time) error {
	if p.given == nil {
		p.given = map[string]bool{}
	}
	p.given[f.Name] = true
	return f.read(&p.to, text, now)
}
