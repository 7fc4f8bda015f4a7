package main

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is also the program itself, as a process of its own, for tests of signals, mounts and namespaces.
func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Unsetenv(asProgram)
		main()
	}
	goleak.VerifyTestMain(m)
}
