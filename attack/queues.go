//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"
)

var queues = []attack{
	{
		name: "heavy", what: "sixteen long answers at one time", lasts: 6 * time.Second, real: true,
		run: steady(16, func(int) string { return prompt(attackerMark, victimModel, 60, "") }),
	},
	{
		name: "lengths", what: "short answers, so that the gateway expects short ones, and then long ones", lasts: 8 * time.Second,
		run: steady(16, func(i int) string {
			return prompt(attackerMark, victimModel, map[bool]int{true: 80, false: 1}[i%8 == 0], "")
		}),
	},
	{
		name: "batch", what: "batch keys of weight 0.1 with thirty requests waiting", lasts: 8 * time.Second,
		settings: []string{"MAX_QUEUE_WAIT=8s"}, key: `,"class":"batch","weight":0.1`, weight: 0.1,
		run: steady(30, func(int) string { return prompt(attackerMark, victimModel, 12, "") }),
	},
	{
		name: "batch-long", what: "the same, with answers four times as long", lasts: 8 * time.Second,
		settings: []string{"MAX_QUEUE_WAIT=8s"}, key: `,"class":"batch","weight":0.1`, weight: 0.1,
		run: steady(30, func(int) string { return prompt(attackerMark, victimModel, 48, "") }),
	},
	{
		name: "queue-batch", what: "batch keys fill the queue", heavy: true, lasts: 5 * time.Second, settings: []string{"MAX_QUEUE=64"},
		key: `,"class":"batch"`,
		run: crowd,
	},
	{
		name: "queue", what: "interactive keys fill the queue", heavy: true, lasts: 5 * time.Second, settings: []string{"MAX_QUEUE=64"},
		run: crowd,
	},
	{
		name: "churn", what: "requests that are opened and left at once", heavy: true, lasts: 5 * time.Second, real: true,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 16, 5*time.Millisecond, func(int) {
				a.ask(ctx, generate, prompt(attackerMark, victimModel, 60, ""), time.Duration(rand.IntN(60))*time.Millisecond)
			})
		},
	},
	{
		name: "glance", what: "leave when the first record has come", lasts: 6 * time.Second, real: true,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 16, time.Millisecond, func(int) { a.glance(ctx, generate, prompt(attackerMark, victimModel, 60, "")) })
		},
	},
	{
		name: "slow-reader", what: "read a long answer byte by byte", lasts: 6 * time.Second,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 8, time.Millisecond, func(int) { a.readSlowly(ctx) })
		},
	},
	{
		name: "prefill", what: "long prompts that hold the batches of all", lasts: 6 * time.Second, real: true,
		run: steady(8, func(int) string { return longPrompt(1) }),
	},
	{
		name: "prefill-leave", what: "the same, leaving when the first record has come", lasts: 6 * time.Second,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 8, time.Millisecond, func(int) { a.glance(ctx, generate, longPrompt(60)) })
		},
	},
	{
		name: "embed", what: "embeddings of many texts in one request, each of which Ollama runs in a slot of its own", lasts: 6 * time.Second,
		real: true,
		run: func(ctx context.Context, a *attacker) {
			texts := strings.Repeat(fmt.Sprintf(`"%s %s",`, attackerMark, strings.Repeat("hello there ", 10)), 100)
			body := fmt.Sprintf(`{"model":%q,"input":[%s"%s"]}`, victimModel, texts, attackerMark)
			a.loops(ctx, 4, 2*time.Millisecond, func(int) { a.ask(ctx, "/api/embed", body, time.Minute) })
		},
	},
	{
		name: "schema", what: "schemas, whose compilation looks like waiting inside Ollama", found: true, lasts: 8 * time.Second, real: true,
		run: steady(8, func(int) string {
			var fields []string
			for i := range 200 {
				fields = append(fields, fmt.Sprintf(`"field_%d":{"type":"string"}`, i))
			}
			return fmt.Sprintf(`{"model":%q,"prompt":"the %s asks","options":{"num_predict":1},"format":{"type":"object","properties":{%s}}}`,
				victimModel, attackerMark, strings.Join(fields, ","))
		}),
	},
}

// crowd has a hundred requests waiting, or refused and tried again.
func crowd(ctx context.Context, a *attacker) {
	a.loops(ctx, 100, 100*time.Millisecond, func(int) { a.ask(ctx, generate, prompt(attackerMark, victimModel, 12, ""), time.Minute) })
}

// steady keeps workers busy with one request after the other.
func steady(workers int, body func(i int) string) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		a.loops(ctx, workers, 2*time.Millisecond, func(i int) { a.ask(ctx, generate, body(i), time.Minute) })
	}
}

// longPrompt has some 3,000 tokens, and differs each time, so that nothing of it is cached.
func longPrompt(tokens int) string {
	text := strings.Repeat(fmt.Sprintf("word%04d ", rand.IntN(10000)), 1300)
	return fmt.Sprintf(`{"model":%q,"prompt":"the %s asks %s","options":{"num_predict":%d}}`, victimModel, attackerMark, text, tokens)
}

// readSlowly holds a slot by an answer that it hardly reads.
func (a *attacker) readSlowly(ctx context.Context) {
	conn, err := a.dialer.DialContext(ctx, "tcp", a.addr)
	if err != nil {
		return
	}
	defer conn.Close()
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetReadBuffer(4096)
	}
	body := prompt(attackerMark, victimModel, 100, "")
	a.sent.Add(1)
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
		generate, a.key, len(body), body)
	in := bufio.NewReaderSize(conn, 64)
	for pause(ctx, 20*time.Millisecond) {
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := in.ReadByte(); err != nil && !isTimeout(err) {
			return
		}
	}
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded)
}
