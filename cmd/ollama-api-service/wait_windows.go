package main

import (
	"errors"

	"golang.org/x/sys/windows"
)

// inUse reports whether another process uses the address.
func inUse(err error) bool {
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAEACCES)
}

// noAddress reports whether this machine has no such address.
func noAddress(err error) bool { return errors.Is(err, windows.WSAEADDRNOTAVAIL) }
