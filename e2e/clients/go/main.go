// The Go clients. The argument names a client. The program reads cases from stdin and writes a line for each, in the format of cases.mjs.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

type order struct {
	Call, URL, Key, Model string
	Patient               bool
}

type result struct {
	OK         bool   `json:"ok"`
	Text       string `json:"text"`
	Prompt     int    `json:"prompt"`
	Completion int    `json:"completion"`
	Type       string `json:"type,omitempty"`
	Says       string `json:"says,omitempty"`
	Status     int    `json:"status,omitempty"`
	Ms         int64  `json:"ms"`
}

// client is one Go package. It runs a case, and finds the status in the package's error.
type client struct {
	run    func(order, *result) error
	status func(error) int
}

var clients = map[string]client{
	"ollama":     {runOllama, ollamaStatus},
	"openai-go":  {runOpenAI, openAIStatus},
	"openai-go1": {runOpenAI1, openAI1Status},
	"anthropic":  {runAnthropic, anthropicStatus},
	"go-openai":  {runGoOpenAI, goOpenAIStatus},
}

func main() {
	if err := play(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// play runs the cases in order. Patient cases, which the client repeats with pauses, continue while the others run.
func play(name string) error {
	c, known := clients[name]
	if !known {
		return fmt.Errorf("no such client: %s", name)
	}
	var orders []order
	if err := json.NewDecoder(os.Stdin).Decode(&orders); err != nil {
		return err
	}
	results := make([]result, len(orders))
	var patient sync.WaitGroup
	for i, o := range orders {
		if o.Patient {
			patient.Go(func() { results[i] = c.play(o) })
			continue
		}
		results[i] = c.play(o)
	}
	patient.Wait()
	out := json.NewEncoder(os.Stdout)
	for _, got := range results {
		if err := out.Encode(got); err != nil {
			return err
		}
	}
	return nil
}

func (c client) play(o order) result {
	var got result
	from := time.Now()
	err := c.run(o, &got)
	got.Ms = time.Since(from).Milliseconds()
	if got.OK = err == nil; err != nil {
		got.Says, got.Status = err.Error(), c.status(err)
		if inner := errors.Unwrap(err); inner != nil && strings.HasPrefix(got.Says, inner.Error()+"; ") {
			err = inner
		}
		got.Type = fmt.Sprintf("%T", err)
	}
	return got
}
