package e2e

import (
	"os/exec"
	"syscall"
)

// dieWithTests ends the program when the tests are killed or time out, because deferred functions do not run then. The signal is bound to
// the thread that started the program; Go keeps its threads.
func dieWithTests(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
