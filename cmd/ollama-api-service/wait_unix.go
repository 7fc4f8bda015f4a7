//go:build unix

package main

import (
	"errors"
	"net"
	"syscall"
)

// inUse reports whether another process uses the address.
func inUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// noAddress reports whether the network interface of an address does not exist: the interface of fe80::1%eth7, or a zone without an
// interface.
func noAddress(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && (errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.EINVAL))
}
