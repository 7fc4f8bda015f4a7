package main

import (
	"time"

	"github.com/spf13/pflag"

	"ollama-api-service/internal/api"
)

// addKeyFlags adds a flag for each field of a key. Flags that are not booleans are texts, because they also take a word: none, all,
// never or any.
func addKeyFlags(set *pflag.FlagSet) {
	for _, f := range api.KeyFields {
		if !f.Settable() {
			continue
		}
		if _, ok := f.At(new(api.Key)).(*bool); ok {
			set.Bool(f.Flag(), false, f.Help)
		} else {
			set.String(f.Flag(), "", f.Help)
		}
	}
}

// keyPatch returns the flags given as a change. Its errors are usage errors that name the flag.
func keyPatch(set *pflag.FlagSet, now time.Time) (p api.KeyPatch, err error) {
	for _, f := range api.KeyFields {
		if f.Settable() && set.Changed(f.Flag()) {
			if err := p.Read(f, set.Lookup(f.Flag()).Value.String(), now); err != nil {
				return p, usagef("%v", err)
			}
		}
	}
	return p, nil
}
