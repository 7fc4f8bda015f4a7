package main

// endByAbort does nothing: Windows has no signals, and the program does not run as a service there.
func endByAbort() {}
