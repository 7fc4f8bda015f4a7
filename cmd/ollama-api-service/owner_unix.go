//go:build unix

package main

import (
	"os"
	"syscall"
)

// becomeOwner makes root the user that DATA_DIR belongs to, so that what is restored can be read by the service.
func becomeOwner(dir string) {
	info, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
		_ = syscall.Setgroups(nil)
		_ = syscall.Setgid(int(owner.Gid))
		_ = syscall.Setuid(int(owner.Uid))
	}
}
