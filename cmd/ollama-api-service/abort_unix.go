//go:build unix

package main

import (
	"runtime/debug"
	"syscall"
)

// endByAbort makes a crash end the process with SIGABRT. Otherwise Go exits with code 2, which here means wrong settings, and systemd
// would not restart the service. No core file is written, because memory holds keys and prompts.
func endByAbort() {
	// If a sandbox forbids this call, the sandbox sets the limit itself.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	debug.SetTraceback("crash")
}
