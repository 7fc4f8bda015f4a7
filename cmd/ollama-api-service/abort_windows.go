package main

// endByAbort does nothing: Windows has no signals, and the program is no service there.
func endByAbort() {}
