package store

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(upgradeFile); path != "" {
		upgrade(path)
	}
	goleak.VerifyTestMain(m)
}
