//go:build unix

package main

import (
	"runtime/debug"
	"syscall"
)

// endByAbort has a crash end the process by SIGABRT. Go's exit code for it is 2 otherwise, which says that the settings are wrong, and
// systemd would not start the service again. Nothing is written of the memory, which holds keys and prompts.
func endByAbort() {
	// Where a sandbox forbids it, it is the sandbox that sets the limit.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	debug.SetTraceback("crash")
}
