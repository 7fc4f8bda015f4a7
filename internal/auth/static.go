package auth

import "ollama-api-service/internal/api"

// ChangeStatics replaces the keys from settings. The previous ones stop working when it returns.
func (a *Authenticator) ChangeStatics(list []Static) {
	statics := make([]static, 0, len(list))
	for _, s := range list {
		key := s.Key
		key.Preview, key.Static = s.Preview, true
		statics = append(statics, static{mac: a.secret.current.sign(s.Secret), key: &key, demo: s.Demo})
	}
	a.statics.Store(&statics)
}

// Statics returns the keys from settings, without their secrets.
func (a *Authenticator) Statics() []api.Key {
	statics := *a.statics.Load()
	keys := make([]api.Key, 0, len(statics))
	for _, s := range statics {
		keys = append(keys, *s.key)
	}
	return keys
}
