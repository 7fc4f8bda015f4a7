package auth

import "ollama-api-service/internal/api"

// Statics are the keys that settings carry, without their secrets.
func (a *Authenticator) Statics() []api.Key {
	keys := make([]api.Key, 0, len(a.statics))
	for _, s := range a.statics {
		keys = append(keys, *s.key)
	}
	return keys
}
