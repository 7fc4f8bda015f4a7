package main

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain also runs the program itself, in a separate process, for tests of signals, mounts and namespaces.
func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Unsetenv(asProgram)
		main()
	}
	goleak.VerifyTestMain(m)
}
