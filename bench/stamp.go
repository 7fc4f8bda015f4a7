//go:build linux

package main

import (
	"bytes"
	"encoding/hex"
	"time"

	"golang.org/x/sys/unix"
)

// A stamped record has the kernel's monotonic time of its sending as its content, in hexadecimal digits. Mock and load generator are two
// processes on one machine, so they share that clock.
const (
	stampMark = `"content":"`
	stampSize = 16
)

// monotonic is the kernel's monotonic time in nanoseconds.
func monotonic() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}

// putStamp writes the time of now to the beginning of p.
func putStamp(p []byte) {
	now := monotonic()
	var b [8]byte
	for i := range b {
		b[i] = byte(now >> (56 - 8*i))
	}
	hex.Encode(p, b[:])
}

// stampsIn calls each with the age of each whole stamped record in p. A record that two reads part is left out.
func stampsIn(p []byte, each func(age time.Duration)) {
	for {
		_, after, ok := bytes.Cut(p, []byte(stampMark))
		if !ok || len(after) <= stampSize {
			return
		}
		p = after
		var b [8]byte
		if after[stampSize] != '"' {
			continue
		}
		if _, err := hex.Decode(b[:], after[:stampSize]); err != nil {
			continue
		}
		var at int64
		for _, c := range b {
			at = at<<8 | int64(c)
		}
		each(time.Duration(monotonic() - at))
	}
}
