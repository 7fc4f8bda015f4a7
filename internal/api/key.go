// Package api defines the types that all packages share: keys, limits, models, usage records and errors. It does no I/O and imports only
// the standard library.
package api

import (
	"errors"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Role is what a key may do. A user runs models and reads its own statistics; an admin also manages keys and models.
type Role string

// The two roles.
const (
	RoleAdmin Role = "admin"
	RoleUser  Role = "user"
)

// Class is the scheduling priority of a key. Batch requests are served when no interactive request waits.
type Class string

// The two classes.
const (
	ClassInteractive Class = "interactive"
	ClassBatch       Class = "batch"
)

// Limits of a key's fields, which Validate checks.
const (
	MaxNameLength  = 100
	MaxNoteLength  = 1000
	MaxPatterns    = 200
	MaxNetworks    = 100
	MaxRateLimit   = 1_000_000_000
	MaxConcurrency = 100_000
	MaxTokens      = 1_000_000_000_000
	MaxGPUSeconds  = 1_000_000_000
	MaxOutput      = 1<<31 - 1      // Ollama stores it in an int
	DefaultGrace   = 24 * time.Hour // how long a replaced secret works by default
	MaxGrace       = 72 * time.Hour
	MaxKeyWeight   = 1000
	DefaultWeight  = 1.0
)

// Key is an API key without its secret. Preview is its public name in answers, usage records and logs.
type Key struct {
	Preview       string     `json:"key_preview" doc:"Public name of the key: oas_ and ten characters" example:"oas_8rT2kLmN0q"`
	Name          string     `json:"name" example:"Production API Key"`
	Role          Role       `json:"role" enum:"admin,user"`
	RateLimit     *int64     `json:"rate_limit" doc:"Requests in any 60 minutes; 0 blocks the key, null means no limit" example:"100"`
	MaxConcurrent *int64     `json:"max_concurrent" doc:"Concurrent requests; null means no limit"`
	TokensPerHour *int64     `json:"tokens_per_hour" doc:"Input and output tokens in any 60 minutes; 0 blocks inference, null means no limit" example:"200000"`
	TokensPerDay  *int64     `json:"tokens_per_day" doc:"Input and output tokens in any 24 hours; 0 blocks inference, null means no limit"`
	GPUPerDay     *int64     `json:"gpu_seconds_per_day" doc:"Seconds of backend time (gpu_ms) in any 24 hours; 0 blocks inference, null means no limit"`
	MaxOutput     *int64     `json:"max_tokens_per_request" doc:"The most tokens that one request may ask for; null means no limit for this key"`
	Strict        bool       `json:"strict" doc:"Refuse a request rather than risk that it exceeds the limits"`
	Weight        float64    `json:"weight" doc:"Share of busy servers, relative to other keys: weight 2 gets twice the time of weight 1" example:"1"`
	Class         Class      `json:"class" enum:"interactive,batch" doc:"batch requests run when no interactive request waits, but never wait much longer than others"`
	Models        []string   `json:"models" doc:"Patterns of models that this key may use; null means every local model, an empty list none"`
	AllowCloud    bool       `json:"allow_cloud" doc:"Whether the key may use models that Ollama runs off-site (:cloud)"`
	ExpiresAt     *time.Time `json:"expires_at"`
	AllowedIPs    []Network  `json:"allowed_ips" doc:"Addresses and networks from which the key may be used; empty means any"`
	Policy        Policy     `json:"policy" nullable:"true" doc:"Rules for what requests of this key may set, which override those of the service: pass, drop, refuse, default:N, max:N or set:N by field; null means none"`
	Note          string     `json:"note"`
	CreatedAt     time.Time  `json:"created_at"`
	RevokedAt     *time.Time `json:"revoked_at,omitempty"`
	// Static marks a key that is a setting. It is not in the store and cannot be changed or revoked there.
	Static bool `json:"-"`
	// OldSecretUntil is set if the request used a secret that a rotation replaced. That secret works until then.
	OldSecretUntil *time.Time `json:"-"`
}

// Network is an address range. In text, a single address means only that address.
type Network struct{ netip.Prefix }

// UnmarshalText reads "10.0.0.0/8" or "10.0.0.7".
func (n *Network) UnmarshalText(text []byte) error {
	s := string(text)
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return errors.New("allowed_ips: an entry is not a network like 10.0.0.0/8")
		}
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return errors.New("allowed_ips: write IPv4 networks like 10.0.0.0/8")
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		n.Prefix = p.Masked()
		return nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return errors.New("allowed_ips: an entry is not an address like 10.0.0.7")
	}
	a = a.Unmap()
	n.Prefix = netip.PrefixFrom(a, a.BitLen())
	return nil
}

// Allows reports whether the key may be used from addr. A key without a list may be used from any address.
func (k *Key) Allows(addr netip.Addr) bool {
	if len(k.AllowedIPs) == 0 {
		return true
	}
	addr = addr.Unmap()
	for _, n := range k.AllowedIPs {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

// Live reports whether the key works at now: neither revoked nor expired.
func (k *Key) Live(now time.Time) bool {
	return k.RevokedAt == nil && (k.ExpiresAt == nil || now.Before(*k.ExpiresAt))
}

// Payer names the account that a request's slots, loads, memory and queue places are charged to: the key itself.
func (k *Key) Payer() string { return k.Preview }

// Metered reports whether the key has a limit of tokens or of GPU time.
func (k *Key) Metered() bool {
	return k.TokensPerHour != nil || k.TokensPerDay != nil || k.GPUPerDay != nil
}

// Validate returns a CodeBadRequest error that names the first invalid field.
func (k *Key) Validate() error {
	if err := checkText("name", k.Name, 1, MaxNameLength); err != nil {
		return err
	}
	if err := checkText("note", k.Note, 0, MaxNoteLength); err != nil {
		return err
	}
	if k.Role != RoleAdmin && k.Role != RoleUser {
		return Errorf(CodeBadRequest, "role must be admin or user")
	}
	if k.RateLimit != nil && (*k.RateLimit < 0 || *k.RateLimit > MaxRateLimit) {
		return Errorf(CodeBadRequest, "rate_limit must be from 0 to %d, or null for no limit", MaxRateLimit)
	}
	if k.MaxConcurrent != nil && (*k.MaxConcurrent < 1 || *k.MaxConcurrent > MaxConcurrency) {
		return Errorf(CodeBadRequest, "max_concurrent must be from 1 to %d, or null for no limit", MaxConcurrency)
	}
	for _, limit := range []struct {
		field string
		value *int64
		most  int64
	}{{"tokens_per_hour", k.TokensPerHour, MaxTokens}, {"tokens_per_day", k.TokensPerDay, MaxTokens}, {"gpu_seconds_per_day", k.GPUPerDay, MaxGPUSeconds}} {
		if limit.value != nil && (*limit.value < 0 || *limit.value > limit.most) {
			return Errorf(CodeBadRequest, "%s must be from 0 to %d, or null for no limit", limit.field, limit.most)
		}
	}
	if k.MaxOutput != nil && (*k.MaxOutput < 1 || *k.MaxOutput > MaxOutput) {
		return Errorf(CodeBadRequest, "max_tokens_per_request must be from 1 to %d, or null for no limit", int64(MaxOutput))
	}
	if !(k.Weight > 0 && k.Weight <= MaxKeyWeight) { // in this form it refuses NaN too
		return Errorf(CodeBadRequest, "weight must be above 0 and at most %d", MaxKeyWeight)
	}
	if k.Class != ClassInteractive && k.Class != ClassBatch {
		return Errorf(CodeBadRequest, "class must be interactive or batch")
	}
	if len(k.Models) > MaxPatterns {
		return Errorf(CodeBadRequest, "models has more than %d patterns", MaxPatterns)
	}
	for _, p := range k.Models {
		if _, err := ParsePattern(p); err != nil {
			return Errorf(CodeBadRequest, "models: a pattern is not a model name like llama3.2, llama3.2:* or *")
		}
	}
	if len(k.AllowedIPs) > MaxNetworks {
		return Errorf(CodeBadRequest, "allowed_ips has more than %d entries", MaxNetworks)
	}
	return k.Policy.Validate()
}

// CheckExpiry refuses an expiry in the past or more than ten years ahead, which is probably a typing error.
func CheckExpiry(at *time.Time, now time.Time) error {
	if at == nil {
		return nil
	}
	if !at.After(now) || at.After(now.AddDate(10, 0, 0)) {
		return Errorf(CodeBadRequest, "expires_at must be in the future and within ten years")
	}
	return nil
}

func checkText(field, s string, least, most int) error {
	n := utf8.RuneCountInString(s)
	if n < least || n > most || !utf8.ValidString(s) || strings.TrimSpace(s) != s {
		return Errorf(CodeBadRequest, "%s must be %d to %d characters, without leading or trailing spaces", field, least, most)
	}
	for _, r := range s {
		// Control and format characters (newlines, right-to-left marks, zero-width characters) can forge terminal and log lines.
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' || r == utf8.RuneError {
			return Errorf(CodeBadRequest, "%s must not contain control or invisible characters", field)
		}
	}
	return nil
}

// KeyPatch is a change to a key. A nil field does not change. For nullable fields, Set reports whether the field was given.
type KeyPatch struct {
	Name          *string
	Role          *Role
	RateLimit     Optional[int64]
	MaxConcurrent Optional[int64]
	TokensPerHour Optional[int64]
	TokensPerDay  Optional[int64]
	GPUPerDay     Optional[int64]
	MaxOutput     Optional[int64]
	Strict        *bool
	Weight        Optional[float64]
	Class         Optional[Class]
	Models        Optional[[]string]
	AllowCloud    *bool
	ExpiresAt     Optional[time.Time]
	AllowedIPs    Optional[[]Network]
	Policy        Optional[Policy]
	Note          *string
}

// Optional is a field of a patch with three states: absent, null and a value.
type Optional[T any] struct {
	Set   bool
	Value *T
}

// or returns the value, or old if none was given, or fallback for null.
func (o Optional[T]) or(old, fallback T) T {
	switch {
	case !o.Set:
		return old
	case o.Value == nil:
		return fallback
	}
	return *o.Value
}

// Apply changes k. The caller validates the result.
func (p KeyPatch) Apply(k *Key) {
	if p.Name != nil {
		k.Name = *p.Name
	}
	if p.Role != nil {
		k.Role = *p.Role
	}
	if p.RateLimit.Set {
		k.RateLimit = p.RateLimit.Value
	}
	if p.MaxConcurrent.Set {
		k.MaxConcurrent = p.MaxConcurrent.Value
	}
	for _, limit := range []struct {
		given Optional[int64]
		field **int64
	}{{p.TokensPerHour, &k.TokensPerHour}, {p.TokensPerDay, &k.TokensPerDay}, {p.GPUPerDay, &k.GPUPerDay}, {p.MaxOutput, &k.MaxOutput}} {
		if limit.given.Set {
			*limit.field = limit.given.Value
		}
	}
	if p.Strict != nil {
		k.Strict = *p.Strict
	}
	k.Weight, k.Class = p.Weight.or(k.Weight, DefaultWeight), p.Class.or(k.Class, ClassInteractive)
	if p.Models.Set {
		k.Models = deref(p.Models.Value)
	}
	if p.AllowCloud != nil {
		k.AllowCloud = *p.AllowCloud
	}
	if p.ExpiresAt.Set {
		k.ExpiresAt = p.ExpiresAt.Value
	}
	if p.AllowedIPs.Set {
		k.AllowedIPs = deref(p.AllowedIPs.Value)
	}
	if p.Policy.Set {
		k.Policy = deref(p.Policy.Value)
	}
	if p.Note != nil {
		k.Note = *p.Note
	}
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// Change records who changes a key, from which address and when, for the audit table.
type Change struct {
	Actor string // preview of the key that asked, or "command-line"
	From  string // client address, or "local"
	At    time.Time
	// KeepAdmin refuses the change with CodeConflict if it would leave no admin key that works from every address. It is false if
	// ADMIN_API_KEY is set.
	KeepAdmin bool
	// Force allows a change that blocks the key that makes it, and a rotation while the grace period of the previous one runs.
	Force bool
}

// SocketPeers stands for the peers of a Unix socket in a list of networks, because they have no address.
var SocketPeers = netip.Prefix{}
