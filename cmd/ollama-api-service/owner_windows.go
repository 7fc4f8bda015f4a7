package main

// becomeOwner does nothing: on Windows, files inherit their permissions from the directory.
func becomeOwner(string) {}
