package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"ollama-api-service/internal/api"
)

// keyFlags are the fields of a key as flags. Most are texts, because they also take a word: none, all, never or any.
type keyFlags struct {
	set                                                                   *pflag.FlagSet
	name, role, note, rateLimit, concurrent, models, expires, ips, policy string
	weight, class                                                         string
	tokensHour, tokensDay, gpuDay, output                                 string
	allowCloud, strict                                                    bool
}

func newKeyFlags(set *pflag.FlagSet) *keyFlags {
	f := &keyFlags{set: set}
	set.StringVar(&f.name, "name", "", "owner or purpose of the key")
	set.StringVar(&f.role, "role", "", "user or admin; the default is user")
	set.StringVar(&f.rateLimit, "rate-limit", "", "requests in any 60 minutes: a number (0 blocks the key) or none")
	set.StringVar(&f.concurrent, "max-concurrent", "", "concurrent requests: a number or none")
	set.StringVar(&f.tokensHour, "tokens-per-hour", "", "input and output tokens in any 60 minutes: a number (0 blocks inference) or none")
	set.StringVar(&f.tokensDay, "tokens-per-day", "", "input and output tokens in any 24 hours: a number (0 blocks inference) or none")
	set.StringVar(&f.gpuDay, "gpu-seconds-per-day", "", "seconds of backend time in any 24 hours: a number (0 blocks inference) or none")
	set.StringVar(&f.output, "max-tokens-per-request", "", "the most tokens that one request may ask for: a number or none")
	set.BoolVar(&f.strict, "strict", false, "refuse a request rather than risk that it exceeds the limits")
	set.StringVar(&f.weight, "weight", "", "share of busy servers, relative to other keys: a number above 0, at most 1000; the default is 1")
	set.StringVar(&f.class, "class", "", "interactive or batch, which is served when no interactive key waits; the default is interactive")
	set.StringVar(&f.models, "models", "", "models that the key may use: patterns like llama3.2,qwen3:*, or all, or none")
	set.BoolVar(&f.allowCloud, "allow-cloud", false, "allow models that Ollama runs off-site")
	set.StringVar(&f.expires, "expires", "", "when the key expires: 30d, 12h, 2027-01-31T00:00:00Z or never")
	set.StringVar(&f.ips, "allowed-ips", "", "addresses from which the key may be used: 10.0.0.7,192.168.0.0/16 or any")
	set.StringVar(&f.policy, "policy", "", "which options its requests may set: num_ctx=max:8192,raw=refuse (docs/policy.md) or none")
	set.StringVar(&f.note, "note", "", "a note for admins")
	return f
}

// patch returns the flags given as a change. Its errors are usage errors that name the flag.
func (f *keyFlags) patch(now time.Time) (p api.KeyPatch, err error) {
	given := f.set.Changed
	if given("name") {
		p.Name = &f.name
	}
	if given("role") {
		role := api.Role(f.role)
		p.Role = &role
	}
	if given("note") {
		p.Note = &f.note
	}
	if given("allow-cloud") {
		p.AllowCloud = &f.allowCloud
	}
	if given("rate-limit") {
		if p.RateLimit, err = numberOrNone(f.rateLimit); err != nil {
			return p, usagef("--rate-limit must be a number of requests in any 60 minutes, or none")
		}
	}
	if given("max-concurrent") {
		if p.MaxConcurrent, err = numberOrNone(f.concurrent); err != nil {
			return p, usagef("--max-concurrent must be a number of concurrent requests, or none")
		}
	}
	if given("strict") {
		p.Strict = &f.strict
	}
	if given("weight") {
		weight, err := strconv.ParseFloat(f.weight, 64)
		if err != nil || !(weight > 0 && weight <= api.MaxKeyWeight) {
			return p, usagef("--weight must be a number above 0, at most %d", api.MaxKeyWeight)
		}
		p.Weight = api.Optional[float64]{Set: true, Value: &weight}
	}
	if given("class") {
		class := api.Class(f.class)
		p.Class = api.Optional[api.Class]{Set: true, Value: &class}
	}
	for _, limit := range []struct {
		flag, text, what string
		into             *api.Optional[int64]
	}{
		{"tokens-per-hour", f.tokensHour, "tokens in any 60 minutes", &p.TokensPerHour},
		{"tokens-per-day", f.tokensDay, "tokens in any 24 hours", &p.TokensPerDay},
		{"gpu-seconds-per-day", f.gpuDay, "seconds in any 24 hours", &p.GPUPerDay},
		{"max-tokens-per-request", f.output, "tokens", &p.MaxOutput},
	} {
		if !given(limit.flag) {
			continue
		}
		if *limit.into, err = numberOrNone(limit.text); err != nil {
			return p, usagef("--%s must be a number of %s, or none", limit.flag, limit.what)
		}
	}
	if given("models") {
		p.Models = modelList(f.models)
	}
	if given("expires") {
		if p.ExpiresAt, err = expiry(f.expires, now); err != nil {
			return p, err
		}
	}
	if given("allowed-ips") {
		if p.AllowedIPs, err = networkList(f.ips); err != nil {
			return p, err
		}
	}
	if given("policy") {
		p.Policy, err = policyList(f.policy)
	}
	return p, err
}

func numberOrNone(text string) (api.Optional[int64], error) {
	if text == "none" {
		return api.Optional[int64]{Set: true}, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return api.Optional[int64]{Set: true, Value: &n}, err
}

// modelList reads patterns: "all" is no list, "none" is an empty list. Key.Validate checks the patterns.
func modelList(text string) api.Optional[[]string] {
	if text == "all" {
		return api.Optional[[]string]{Set: true}
	}
	list := []string{}
	if text != "none" {
		for part := range strings.SplitSeq(text, ",") {
			list = append(list, strings.TrimSpace(part))
		}
	}
	return api.Optional[[]string]{Set: true, Value: &list}
}

func expiry(text string, now time.Time) (api.Optional[time.Time], error) {
	if text == "never" {
		return api.Optional[time.Time]{Set: true}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		span, err := parseSpan(text)
		if err != nil {
			return api.Optional[time.Time]{}, usagef("--expires must be a duration like 30d or 12h, a time like 2027-01-31T00:00:00Z, or never")
		}
		at = now.Add(span)
	}
	at = at.UTC()
	if api.CheckExpiry(&at, now) != nil {
		return api.Optional[time.Time]{}, usagef("--expires must be in the future and within ten years; to end a key now, revoke it")
	}
	return api.Optional[time.Time]{Set: true, Value: &at}, nil
}

func networkList(text string) (api.Optional[[]api.Network], error) {
	list := []api.Network{}
	if text != "any" {
		for part := range strings.SplitSeq(text, ",") {
			var n api.Network
			if err := n.UnmarshalText([]byte(strings.TrimSpace(part))); err != nil {
				return api.Optional[[]api.Network]{}, usagef("--allowed-ips: %v; or any", err)
			}
			list = append(list, n)
		}
	}
	return api.Optional[[]api.Network]{Set: true, Value: &list}, nil
}

// policyList reads pairs of a field and an action. Key.Validate checks that they match.
func policyList(text string) (api.Optional[api.Policy], error) {
	if text == "none" {
		return api.Optional[api.Policy]{Set: true}, nil
	}
	policy := api.Policy{}
	for part := range strings.SplitSeq(text, ",") {
		field, action, _ := strings.Cut(strings.TrimSpace(part), "=")
		var a api.Action
		if err := a.UnmarshalText([]byte(action)); err != nil {
			return api.Optional[api.Policy]{}, usagef("--policy must be fields with actions, like num_ctx=max:8192,raw=refuse, or none")
		}
		policy[field] = a
	}
	return api.Optional[api.Policy]{Set: true, Value: &policy}, nil
}

// maxDays keeps a number of days within the range of a time.Duration.
const maxDays = 100_000

// parseSpan reads a duration with Go's units, or whole days: 30d.
func parseSpan(text string) (time.Duration, error) {
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
