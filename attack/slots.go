//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

const realSlots = 4

// lostSlots returns how many slots of its model Ollama has lost for good (ollama/ollama#17131). As many long answers as it had slots begin
// together, or one of them begins only when another has ended.
func (o *tappedOllama) lostSlots() int {
	ctx, end := context.WithTimeout(context.Background(), 30*time.Second)
	defer end()
	var mu sync.Mutex
	var all sync.WaitGroup
	begun, together := 0, 0
	for i := range realSlots {
		all.Go(func() {
			body := fmt.Sprintf(`{"model":%q,"prompt":"%d asks","options":{"num_predict":200,"seed":%d}}`, victimModel, i, i)
			r, err := http.NewRequestWithContext(ctx, "POST", o.own+generate, strings.NewReader(body))
			if err != nil {
				return
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				return
			}
			defer resp.Body.Close()
			for in, first := bufio.NewScanner(resp.Body), true; in.Scan(); first = false {
				if first {
					mu.Lock()
					begun++
					mu.Unlock()
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if together == 0 {
				together = begun // when the first answer ended
			}
		})
	}
	all.Wait()
	return realSlots - together
}
