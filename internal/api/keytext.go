package api

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// read sets the field of k to the text of its flag. Validate checks the value where this does not.
func (f *KeyField) read(k *Key, text string, now time.Time) (err error) {
	switch at := f.At(k).(type) {
	case *string, *Role, *Class:
		f.value(k).SetString(text)
	case *bool:
		*at, err = strconv.ParseBool(text)
	case **int64:
		*at, err = f.readNumber(text)
	case *float64:
		if *at, err = strconv.ParseFloat(text, 64); err != nil || f.check(k) != nil {
			return fmt.Errorf("--%s must be a number above 0, at most %d", f.Flag(), f.Most)
		}
	case *[]string:
		*at = readModels(text)
	case **time.Time:
		*at, err = f.readTime(text, now)
	case *[]Network:
		*at, err = f.readNetworks(text)
	case *Policy:
		*at, err = f.readPolicy(text)
	}
	return err
}

func (f *KeyField) readNumber(text string) (*int64, error) {
	if text == "none" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("--%s must be a number of %s, or none", f.Flag(), f.Unit)
	}
	return &n, nil
}

// readModels reads patterns: "all" is no list, "none" is an empty list.
func readModels(text string) []string {
	switch text {
	case "all":
		return nil
	case "none":
		return []string{}
	}
	list := strings.Split(text, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

func (f *KeyField) readTime(text string, now time.Time) (*time.Time, error) {
	if text == "never" {
		return nil, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		span, err := ParseSpan(text)
		if err != nil {
			return nil, fmt.Errorf("--%s must be a duration like 30d or 12h, a time like 2027-01-31T00:00:00Z, or never", f.Flag())
		}
		at = now.Add(span)
	}
	at = at.UTC()
	if CheckExpiry(&at, now) != nil {
		return nil, fmt.Errorf("--%s must be in the future and within ten years; to end a key now, revoke it", f.Flag())
	}
	return &at, nil
}

func (f *KeyField) readNetworks(text string) ([]Network, error) {
	list := []Network{}
	if text == "any" {
		return list, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		var n Network
		if err := n.UnmarshalText([]byte(strings.TrimSpace(part))); err != nil {
			return nil, fmt.Errorf("--%s: %w; or any", f.Flag(), err)
		}
		list = append(list, n)
	}
	return list, nil
}

// readPolicy reads pairs of a field and an action.
func (f *KeyField) readPolicy(text string) (Policy, error) {
	if text == "none" {
		return nil, nil
	}
	policy := Policy{}
	for part := range strings.SplitSeq(text, ",") {
		field, action, _ := strings.Cut(strings.TrimSpace(part), "=")
		var a Action
		if err := a.UnmarshalText([]byte(action)); err != nil {
			return nil, fmt.Errorf("--%s must be fields with actions, like num_ctx=max:8192,raw=refuse, or none", f.Flag())
		}
		policy[field] = a
	}
	return policy, nil
}

// maxDays keeps a number of days within the range of a time.Duration.
const maxDays = 100_000

// ParseSpan reads a duration with Go's units, or whole days: 30d.
func ParseSpan(text string) (time.Duration, error) {
	days, ok := strings.CutSuffix(text, "d")
	if !ok {
		return time.ParseDuration(text)
	}
	n, err := strconv.ParseUint(days, 10, 32)
	if err == nil && n > maxDays {
		err = strconv.ErrRange
	}
	return time.Duration(n) * 24 * time.Hour, err
}

// Cell returns the value of the field as `keys list` shows it.
func (f *KeyField) Cell(k *Key, now time.Time) string {
	if f.cell != nil {
		return f.cell(k, now)
	}
	if f.Number() {
		return amount(*f.At(k).(**int64), "")
	}
	return f.Show(k, now)
}

// Number reports whether Cell returns a number.
func (f *KeyField) Number() bool { return f.in.Type == reflect.TypeFor[*int64]() && f.cell == nil }

// Show returns the value of the field as `keys show` shows it.
func (f *KeyField) Show(k *Key, now time.Time) string {
	if f.show != nil {
		return f.show(k, now)
	}
	switch at := f.At(k).(type) {
	case *string, *Role, *Class:
		return f.value(k).String()
	case *bool:
		if *at {
			return "yes"
		}
		return "no"
	case **int64:
		return amount(*at, " "+f.Unit)
	case *[]string:
		switch {
		case *at == nil:
			return "all"
		case len(*at) == 0:
			return "none"
		}
		return strings.Join(*at, ",")
	case *time.Time:
		return ShowTime(*at)
	case **time.Time:
		if *at == nil {
			return "never"
		}
		return ShowTime(**at)
	case *[]Network:
		var texts []string
		for _, n := range *at {
			texts = append(texts, n.String())
		}
		return cmp.Or(strings.Join(texts, ","), "any")
	case *Policy:
		return showPolicy(*at)
	}
	return ""
}

// ShowTime returns a time as the command line shows it, to the minute.
func ShowTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

func showPolicy(p Policy) string {
	if p == nil {
		return "the service's"
	}
	var list []string
	for _, field := range slices.Sorted(maps.Keys(p)) {
		list = append(list, field+"="+p[field].String())
	}
	return strings.Join(list, ",")
}

func amount(n *int64, unit string) string {
	if n == nil {
		return "none"
	}
	return strconv.FormatInt(*n, 10) + unit
}

// PerHour returns the rate limit in words.
func (k *Key) PerHour() string { return k.perHour(time.Time{}) }

func (k *Key) perHour(time.Time) string {
	if k.RateLimit == nil {
		return "no rate limit"
	}
	return amount(k.RateLimit, " requests in any 60 minutes")
}

func (k *Key) concurrent(time.Time) string { return amount(k.MaxConcurrent, "") }

// Status returns whether the key works, in words.
func (k *Key) Status(now time.Time) string {
	switch {
	case k.RevokedAt != nil:
		return "revoked " + ShowTime(*k.RevokedAt)
	case !k.Live(now):
		return "expired"
	}
	return "works"
}

// tokens returns both limits of tokens.
func (k *Key) tokens(time.Time) string {
	var list []string
	if k.TokensPerHour != nil {
		list = append(list, amount(k.TokensPerHour, " in any 60 minutes"))
	}
	if k.TokensPerDay != nil {
		list = append(list, amount(k.TokensPerDay, " in any 24 hours"))
	}
	if list == nil {
		return "no limit"
	}
	return strings.Join(list, ", ")
}

// budget returns the limits of tokens and GPU time as one cell of a table.
func (k *Key) budget(time.Time) string {
	var list []string
	for _, limit := range []struct {
		n    *int64
		unit string
	}{{k.TokensPerHour, "/h"}, {k.TokensPerDay, "/d"}, {k.GPUPerDay, "s/d"}} {
		if limit.n != nil {
			list = append(list, amount(limit.n, limit.unit))
		}
	}
	if list == nil {
		return "none"
	}
	return strings.Join(list, " ")
}

// share returns the key's weight, followed by its class unless that is the default.
func (k *Key) share(time.Time) string {
	weight := strconv.FormatFloat(k.Weight, 'g', -1, 64)
	if k.Class == ClassBatch {
		return weight + " batch"
	}
	return weight
}
