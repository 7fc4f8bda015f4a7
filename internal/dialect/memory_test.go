package dialect

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

// Reading a body allocates at most what ReadingMemory says plus a little, for every kind of body.
func TestReadingMemory(t *testing.T) {
	const besides = 256 << 10
	list := func(n int, one func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(one(i))
			b.WriteByte(',')
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	short := list(199_000, func(i int) string { return fmt.Sprintf(`"%05x":1`, i) })
	for what, field := range map[string]string{
		"short names":       `"x":{` + short + `}`,
		"options":           `"options":{` + short + `}`,
		"long names":        `"x":{` + list(60_000, func(i int) string { return fmt.Sprintf(`"%060x":1`, i) }) + `}`,
		"one long name":     `"` + strings.Repeat("A", 4<<20-100) + `":1`,
		"escaped names":     `"x":{` + list(60_000, func(i int) string { return fmt.Sprintf(`"\u0061%020x":1`, i) }) + `}`,
		"names at depths":   `"x":` + strings.Repeat(`{"a":1,"b":`, 9000) + `1` + strings.Repeat(`}`, 9000),
		"lists at depths":   `"x":` + strings.Repeat(`[`, 9000) + strings.Repeat(`]`, 9000),
		"many texts":        `"stop":[` + list(500_000, func(int) string { return `"a"` }) + `]`,
		"many images":       `"images":[` + list(300_000, func(int) string { return `"YQ=="` }) + `]`,
		"many tools":        `"tools":[` + list(15_000, func(int) string { return `{"type":"function","function":{"name":"f","parameters":{}}}` }) + `]`,
		"a long prompt":     `"prompt":"` + strings.Repeat(`\n`, 2<<20) + `"`,
		"a long model":      `"name":"` + strings.Repeat(`a`, 2<<20) + `"`,
		"a long number":     `"max_tokens":` + strings.Repeat(`1`, 2<<20),
		"a long keep_alive": `"keep_alive":"` + strings.Repeat(`1`, 2<<20) + `"`,
	} {
		for _, k := range []Kind{Generate, Chat, OpenAIChat, OpenAIResponses, AnthropicMessages} {
			body := []byte(`{"model":"tiny","messages":[],` + field + `}`)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			_, err := k.Read(BodyOf(body), &Terms{})
			runtime.ReadMemStats(&after)
			copied := int64(2 * len(body)) // the count includes its copy
			if got, most := int64(after.TotalAlloc-before.TotalAlloc), int64(BodyOf(body).ReadingMemory())+besides+copied; got > most {
				t.Errorf("%s, kind %d: reading %d bytes allocated %d, want at most %d (error %v)", what, k, len(body), got, most, err)
			}
		}
	}
}

// Texts and numbers that are read are short, because they are copied several times.
func TestLongTextsAndNumbers(t *testing.T) {
	for _, field := range []string{`"model":"` + strings.Repeat("a", maxText) + `"`, `"model":"tiny","temperature":0.` + strings.Repeat("0", maxNumber)} {
		if _, err := OpenAIChat.Read(BodyOf([]byte(`{"messages":[],`+field+`}`)), &Terms{}); api.AsError(err).Code != api.CodeBadRequest {
			t.Errorf("%s…: got %v, want %s", field[:30], err, api.CodeBadRequest)
		}
	}
	long := `{"messages":[],"model":"tiny","temperature":0.` + strings.Repeat("0", maxNumber-3) + `1}`
	if _, err := OpenAIChat.Read(BodyOf([]byte(long)), &Terms{}); err != nil {
		t.Errorf("a number of %d digits: got error %v, want none", maxNumber, err)
	}
}
