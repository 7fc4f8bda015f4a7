package dialect

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

// bodyOfNames returns a body with n fields in a message, with names of size bytes, and a function that reads it.
func bodyOfNames(n, size int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"model":"a","messages":[{`)
	for i := range n {
		fmt.Fprintf(&b, `"%0*d":0,`, size, i)
	}
	b.WriteString(`"x":0}]}`)
	return b.Bytes()
}

// The gateway reserves twice the size of the body for reading it. The decoder keeps names to find duplicates, so a body of names
// must need only some megabytes more, with many long names and with many short ones.
func TestReadingNamesTakesNoMoreThanIsCounted(t *testing.T) {
	for _, c := range []struct {
		n, size int
		refused bool
	}{
		{190_000, 326, true}, {190_000, 22, false}, {13_000, 320, false}, {13_200, 320, true}, {199_990, 6, false}, {200_010, 6, true}, {42, 100_000, true}, {41, 100_000, false},
	} {
		body := bodyOfNames(c.n, c.size)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		_, err := Chat.Read(BodyOf(body), &Terms{})
		runtime.ReadMemStats(&after) // including freed memory
		var known *api.Error
		if c.refused != (errors.As(err, &known) && known.Code == api.CodeBadRequest && strings.Contains(err.Error(), "fields")) || !c.refused && err != nil {
			t.Errorf("%d names of %d bytes: got error %v, want refused %v", c.n, c.size, err, c.refused)
		}
		if took := int64(after.TotalAlloc - before.TotalAlloc); took > int64(len(body))+64<<20 {
			t.Errorf("reading %d names of %d bytes, a body of %d MB, took %d MB, want less", c.n, c.size, len(body)>>20, took>>20)
		}
	}
}

// Only names count, and not texts with colons or quotes in them, with white space anywhere.
func TestNamesAreMeasured(t *testing.T) {
	for body, want := range map[string][2]int{
		`{}`: {0, 0}, `{"a":1}`: {1, 1}, `{"a" : "b:c"}`: {1, 1}, "{\"a\"\r\n\t :{\"bc\":[\"d\",\"e\"]}}": {2, 3}, `{"a\"b":"\\","c":"\\\":"}`: {2, 5}, `{"a":"b\\":"c"}`: {2, 4},
		`{"a":"` + strings.Repeat(`:\":`, 1000) + `"}`: {1, 1}, `{"a`: {0, 0}, `{"a\"`: {0, 0}, `"a"`: {0, 0}, ``: {0, 0}, `{"ä":1,"\u00e4":2}`: {2, 8},
	} {
		b := BodyOf([]byte(body))
		b.outlineNext()
		if n, size := b.names, b.nameBytes; n != want[0] || size != want[1] {
			t.Errorf("%.80s: got %d names of %d bytes, want %v", body, n, size, want)
		}
	}
	text := []byte(`{"model":"a","messages":[{"role":"user","content":"` + strings.Repeat(": ", 300_000) + `"}]}`)
	if _, err := Chat.Read(BodyOf(text), &Terms{}); err != nil {
		t.Errorf("a text with many colons: got error %v, want none", err)
	}
}
