package main

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is also the program itself, as a process of its own, for tests of signals, mounts and namespaces: where RUN_PROGRAM is set.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_PROGRAM") != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}
