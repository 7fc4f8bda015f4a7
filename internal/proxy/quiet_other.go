//go:build !unix

package proxy

// quietSocket is a question that only Unix answers without a read: elsewhere a dead connection is found when it is used.
func quietSocket(uintptr) bool { return true }
