// Package api defines the types that all packages share: keys, limits, models, usage records and errors. It does no I/O and imports only
// the standard library.
package api

import (
	"net/netip"
	"time"
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
	MaxOwnerLength = 100
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
)

// Key is an API key without its secret. Preview is its public name in answers, usage records and logs.
type Key struct {
	Preview       string     `json:"key_preview" doc:"Public name of the key: oas_ and ten characters" example:"oas_8rT2kLmN0q"`
	Name          string     `json:"name" example:"Production API Key"`
	Owner         string     `json:"owner" doc:"Whose key it is: a person, a team or a program" example:"Sales team"`
	Role          Role       `json:"role" enum:"admin,user"`
	RateLimit     *int64     `json:"rate_limit" doc:"Requests in any 60 minutes; 0 blocks the key, null means no limit; a new key without it gets the default of its role" example:"100"`
	MaxConcurrent *int64     `json:"max_concurrent" doc:"Concurrent requests; null means no limit"`
	TokensPerHour *int64     `json:"tokens_per_hour" doc:"Input and output tokens in any 60 minutes; 0 blocks inference, null means no limit" example:"200000"`
	TokensPerDay  *int64     `json:"tokens_per_day" doc:"Input and output tokens in any 24 hours; 0 blocks inference, null means no limit"`
	GPUPerDay     *int64     `json:"gpu_seconds_per_day" doc:"Seconds of backend time (gpu_ms) in any 24 hours; 0 blocks inference, null means no limit"`
	MaxOutput     *int64     `json:"max_tokens_per_request" doc:"The most tokens that one request may ask for; null means no limit for this key"`
	Strict        bool       `json:"strict" doc:"Refuse a request rather than risk that it exceeds the limits"`
	Weight        float64    `json:"weight" doc:"Share of busy servers, relative to other keys: above 0, at most 1000; weight 2 gets twice the time of weight 1; null sets 1" example:"1"`
	Class         Class      `json:"class" enum:"interactive,batch" doc:"batch requests run when no interactive request waits, but never wait much longer than others; null sets interactive"`
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

// NewKey returns a key with the defaults of the fields that are not given. A nil limit means no rate limit.
func NewKey(name string, role Role, limit *int64) Key {
	return Key{Name: name, Role: role, RateLimit: limit, Weight: 1, Class: ClassInteractive}
}

// KeyFields are the fields of a key, in the order in which `keys show` prints them. The type of a field, its JSON name and its texts
// for the HTTP API are in Key; everything else that the HTTP API, the command line and the store know of it is in its line here.
var KeyFields = indexed([]*KeyField{
	{Name: "key_preview", Label: "key", Column: "KEY"},
	{Name: "name", Label: "name", Column: "NAME", Required: true, Least: 1, Most: MaxNameLength, Help: "name or purpose of the key"},
	{Name: "owner", Label: "owner", Column: "OWNER", Width: 24, Most: MaxOwnerLength, Help: "whose key it is: a person, a team or a program"},
	{
		Name: "role", Label: "role", Column: "ROLE", Required: true, Choices: []string{string(RoleAdmin), string(RoleUser)},
		Help: "user or admin; the default is user",
	},
	{Name: "revoked_at", Label: "status", show: (*Key).Status},
	{
		Name: "rate_limit", Label: "rate limit", Column: "PER HOUR", Most: MaxRateLimit, Unit: "requests in any 60 minutes",
		Help: "requests in any 60 minutes: a number (0 blocks the key) or none", show: (*Key).perHour,
	},
	{
		Name: "max_concurrent", Label: "concurrent", Column: "AT ONCE", Least: 1, Most: MaxConcurrency, Unit: "concurrent requests",
		Help: "concurrent requests: a number or none", show: (*Key).concurrent,
	},
	{
		Name: "tokens_per_hour", Label: "tokens", Column: "BUDGET", Most: MaxTokens, Unit: "tokens in any 60 minutes",
		Help: "input and output tokens in any 60 minutes: a number (0 blocks inference) or none", show: (*Key).tokens, cell: (*Key).budget,
	},
	{
		Name: "tokens_per_day", Most: MaxTokens, Unit: "tokens in any 24 hours",
		Help: "input and output tokens in any 24 hours: a number (0 blocks inference) or none",
	},
	{
		Name: "gpu_seconds_per_day", Label: "GPU time", Most: MaxGPUSeconds, Unit: "seconds in any 24 hours",
		Help: "seconds of backend time in any 24 hours: a number (0 blocks inference) or none",
	},
	{
		Name: "max_tokens_per_request", Label: "max tokens per request", Least: 1, Most: MaxOutput, Unit: "tokens",
		Help: "the most tokens that one request may ask for: a number or none",
	},
	{Name: "strict", Label: "strict", Help: "refuse a request rather than risk that it exceeds the limits"},
	{
		Name: "weight", Label: "share", Column: "SHARE", Most: MaxKeyWeight, show: (*Key).share,
		Help: "share of busy servers, relative to other keys: a number above 0, at most 1000; the default is 1",
	},
	{
		Name: "class", Choices: []string{string(ClassInteractive), string(ClassBatch)},
		Help: "interactive or batch, which is served when no interactive key waits; the default is interactive",
	},
	{
		Name: "models", Label: "models", Column: "MODELS", Width: 40, Most: MaxPatterns,
		Help: "models that the key may use: patterns like llama3.2,qwen3:*, or all, or none",
	},
	{Name: "allow_cloud", Label: "cloud models", Help: "allow models that Ollama runs off-site"},
	{
		Name: "allowed_ips", Label: "used from", Most: MaxNetworks,
		Help: "addresses from which the key may be used: 10.0.0.7,192.168.0.0/16 or any",
	},
	{Name: "policy", Label: "policy", Help: "which options its requests may set: num_ctx=max:8192,raw=refuse (docs/policy.md) or none"},
	{Name: "expires_at", Label: "expires", Column: "EXPIRES", Help: "when the key expires: 30d, 12h, 2027-01-31T00:00:00Z or never"},
	{Name: "created_at", Label: "created"},
	{Name: "note", Label: "note", Most: MaxNoteLength, Help: "a note for admins"},
})

// KeyFilter selects keys by the values of their fields. An empty value selects all.
type KeyFilter struct {
	Role  string `query:"role" enum:"admin,user" doc:"Keys of this role" help:"only keys of this role: user or admin"`
	Owner string `query:"owner" maxLength:"100" doc:"Keys with exactly this owner" help:"only keys with exactly this owner"`
}

func (f *KeyFilter) has(k *Key) bool {
	return (f.Role == "" || f.Role == string(k.Role)) && (f.Owner == "" || f.Owner == k.Owner)
}

// KeyLabel is what statistics show of a key in addition to its preview.
type KeyLabel struct {
	KeyName  string `json:"key_name,omitempty" example:"Production API Key"`
	KeyOwner string `json:"key_owner,omitempty" example:"Sales team"`
}

// Label returns the key's label.
func (k Key) Label() KeyLabel { return KeyLabel{KeyName: k.Name, KeyOwner: k.Owner} }

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
