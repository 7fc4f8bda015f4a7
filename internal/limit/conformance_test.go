package limit_test

import (
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/test/limittest"
)

func TestMemory(t *testing.T) {
	limittest.Run(t, func(now func() time.Time) limittest.Limiter {
		m := limit.NewMemory(now)
		return limittest.Limiter{
			Reserve: func(k *api.Key) (limittest.Place, error) {
				r, err := m.Reserve(k)
				if err != nil {
					return nil, err // a nil pointer in an interface is not nil
				}
				return r, nil
			},
			Restore: m.Restore, RestoreUsed: m.RestoreUsed,
		}
	})
}
