package main

// becomeOwner does nothing: files on Windows inherit who may read them from their directory.
func becomeOwner(string) {}
