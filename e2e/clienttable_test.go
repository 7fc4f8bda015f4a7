package e2e

import (
	"testing"
)

func checkClientTable(t *testing.T, programs []program, outcomes [][]outcome) {
	for i, p := range programs {
		for _, o := range outcomes[i] {
			t.Logf("%s | %s | %s | %s: %s | %d ms | %q", p.name, o.situation, o.attempt, o.got.Type, o.got.Says, o.got.Ms, o.got.Text)
		}
	}
}
