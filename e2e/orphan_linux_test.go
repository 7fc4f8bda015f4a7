package e2e

import (
	"os/exec"
	"syscall"
)

// dieWithTests ends the program when the tests are killed or time out, where no deferred function runs. The signal is
// bound to the thread that started the program; Go keeps its threads.
func dieWithTests(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
