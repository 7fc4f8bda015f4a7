//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
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

// putStamp writes a time of monotonic to the beginning of p.
func putStamp(p []byte, now int64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(now))
	hex.Encode(p, b[:])
}

// stampsIn calls each with the age that each whole stamped record in p has at a time of monotonic. A record that two reads part is left
// out.
func stampsIn(p []byte, now int64, each func(age time.Duration)) {
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
		each(time.Duration(now - int64(binary.BigEndian.Uint64(b[:]))))
	}
}
