package disk

import (
	"errors"
	"os"
	"syscall"
)

// A Fault is why a disk, or a network share in its place, does not do what it is asked. All of them may pass without a change of the
// settings: somebody frees space, mounts the disk, or ends the process that holds the lock.
type Fault struct {
	Name string // short and constant: full, read-only, quota, failing, away, locked, handles
	Hint string // what happened, then what to do
}

var faults = []struct {
	Fault
	errnos []error
}{
	{Fault{"full", "the disk has no space or no inodes left: free some (df -h and df -i show it)"}, []error{syscall.ENOSPC}},
	{Fault{"quota", "the quota of this user on the disk is used up: free space or raise the quota"}, []error{syscall.EDQUOT}},
	{Fault{"read-only", "the file system is mounted read-only: mount it read-write (a failing disk turns read-only, so look at the kernel's log too; under systemd, ReadWritePaths= must name the directory)"}, []error{syscall.EROFS}},
	{Fault{"failing", "the disk reports errors: look at the kernel's log, and have a backup elsewhere"}, []error{syscall.EIO}},
	{Fault{"away", "the disk or network share is not there: mount it, or bring its server back"}, []error{syscall.ESTALE, syscall.ENOTCONN, syscall.EHOSTDOWN, syscall.ENXIO, syscall.ENODEV}},
	{Fault{"locked", "another process has the lock: wait until it ends, or end it"}, []error{ErrLocked}},
	{Fault{"handles", "the system or this process has no file handles or memory left: raise LimitNOFILE or end what uses them"}, []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM}},
}

// Cause finds the fault behind an error; ok reports whether there is one.
func Cause(err error) (f Fault, ok bool) {
	if err == nil {
		return Fault{}, false
	}
	if own := errnoOf(err); own != 0 {
		err = errors.Join(err, own)
	}
	for _, known := range faults {
		for _, e := range known.errnos {
			if errors.Is(err, e) {
				return known.Fault, true
			}
		}
	}
	return Fault{}, false
}

// Try reports why nothing can be written in a directory, or nil: it writes a small file there and removes it. It finds the cause of a
// failure whose error number is lost.
func Try(dir string) error {
	f, err := os.CreateTemp(dir, ".try-*")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}
