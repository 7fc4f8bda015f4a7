package dialect

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

// arrived returns a body that has arrived in a piece of first bytes, and others of next bytes.
func arrived(body []byte, first, next int) *Body {
	b := new(Body)
	for b.Grow(first); len(body) > 0; {
		if len(b.Room()) == 0 {
			b.Grow(next)
		}
		n := copy(b.Room(), body[:(len(body)+1)/2])
		b.Took(n)
		body = body[n:]
	}
	return b
}

// everything returns what is read of a body, what goes upstream, and the error.
func everything(k Kind, b *Body, terms *Terms) (Request, string, string) {
	req, err := k.Read(b, terms)
	if err != nil {
		return Request{}, "", err.Error()
	}
	sent := req.Body.String()
	some := *req
	some.Body, some.Added, some.Plain = nil, 0, false
	return some, sent, ""
}

// A body in pieces means what it means as a whole, and goes upstream with the same bytes, whatever its outline leaves out.
func FuzzBody(f *testing.F) {
	long := strings.Repeat(`a sea 1é \n \" \u00e9 < `, 40)
	for _, seed := range []string{
		`{"model":"tiny","messages":[{"role":"user","content":"LONG","images":["LONG","LONG"]},{"role":"user","content":"LONG"}],"options":{"num_ctx":99999,"stop":["LONG"]},"tools":[{"type":"web_search"},{"name":"LONG"}]}`,
		`{ "model" : "tiny" , "messages":[{"LONG" : "LONG","LONG":1}]}`,
		`{"model":"tiny","prompt":"LONG","template":"LONG","system":"LONG","LONG":"LONG","format":{"pattern":"^LONG$"},"max_tokens":3}`,
		`{"model":"tiny","prompt":"LONGLONG` + "\x01" + `"}`, `{"model":"tiny","prompt":"LONG\x"}`, `{"model":"tiny","prompt":"LONG\u00zz"}`,
		`{"model":"tiny","prompt":"LONG\u12"}`, `{"model":"tiny","prompt":"LONG`, `{"model":"tiny","prompt":"LONG\`, `{"model":"tiny","prompt":"LONG"}x`,
		`{"model":"LONG","prompt":["LONG",1,"LONG"],"prompt":"LONG"}`, `{"model":"tiny","input":[{"type":"function_call","arguments":"LONG"},{"content":{"LONG":["LONG",1e9]}}],"prompt":{"id":"LONG"}}`,
		"{\"model\":\"tiny\",\"prompt\":\"" + strings.Repeat(`\n`, 500) + strings.Repeat("é", 500) + "\xff\"}",
		`{"model":"tiny","messages":{"LONG":1,"LONG"`, `{"model":"tiny","messages":[{"LONG":1,"LONG"}]}`, `{"model":"tiny","prompt":{"LONG":1,"LONG","LONG"}}`,
		"{\"model\":\"tiny\",\"prompt\":\"" + strings.Repeat(`\n`, 500) + strings.Repeat("é", 60) + "\xc3",
	} {
		f.Add(uint8(Generate), uint16(7), []byte(seed))
		f.Add(uint8(Chat), uint16(300), []byte(strings.ReplaceAll(seed, "LONG", long)))
		f.Add(uint8(OpenAIResponses), uint16(1000), []byte(strings.ReplaceAll(seed, "LONG", strings.Repeat("x", 300))))
	}
	terms := &Terms{Policed: true, Standard: Standard(4096, 0, 100), DropHosted: true}
	f.Fuzz(func(t *testing.T, kind uint8, size uint16, data []byte) {
		k := Kind(kind % uint8(AnthropicCount+1))
		if k == None {
			return
		}
		body := append(bytes.Repeat([]byte{' '}, WholeBody), data...) // otherwise it would be too short for an outline
		whole := BodyOf(body)
		whole.outline, whole.finished, whole.joined = body, true, true
		pieces := arrived(body, WholeBody, 1+int(size%1000))
		want, sent, refused := everything(k, whole, terms)
		got, sentAsPieces, refusedAsPieces := everything(k, pieces, terms)
		if refused != refusedAsPieces || sent != sentAsPieces || !reflect.DeepEqual(got, want) {
			t.Errorf("kind %d, %.1000q in pieces of %d:\ngot  %+v %.1000q %s\nwant %+v %.1000q %s", k, data, 1+size%1000, got, sentAsPieces, refusedAsPieces, want, sent, refused)
		}
		if again, sent, _ := everything(k, pieces, terms); refused == "" && (sent != sentAsPieces || !reflect.DeepEqual(got, again)) {
			t.Errorf("%.1000q, read again: got %+v, want %+v", data, again, got)
		}
	})
}

// The outline of a body with an image is small, and its pieces are not copied. That of a body without long strings is given up.
func TestOutlinesAreSmall(t *testing.T) {
	noise := strings.Repeat("QUJD", 1<<20)
	for _, c := range []struct {
		body        string
		pieces, max int
	}{
		{`{"model":"tiny","messages":[{"role":"user","images":["` + noise + `"]}],"max_tokens":7}`, 15, 1000},
		{`{"model":"tiny","messages":[{"role":"user","content":"` + strings.Repeat(`a line\n`, 500_000) + `"}],"max_tokens":7}`, 15, 1000},
		{`{"model":"tiny","messages":[],"context":[` + strings.Repeat("1,", 1<<20) + `1]}`, 1, 3 << 20},
		{`{"model":"tiny","messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 1<<16) + `{"role":"user"}]}`, 1, 3 << 20},
	} {
		b := arrived([]byte(c.body), WholeBody, PieceSize)
		req, err := Chat.Read(b, &Terms{})
		if err != nil {
			t.Fatal(err)
		}
		shared := 0
		for _, p := range req.Body {
			if slices.ContainsFunc(b.pieces, func(o []byte) bool { return &o[:cap(o)][cap(o)-1] == &p[:cap(p)][cap(p)-1] }) {
				shared += len(p)
			}
		}
		if len(b.pieces) < c.pieces || len(b.outline) > c.max || shared < len(c.body)-200 {
			t.Errorf("%.60s: got %d pieces, an outline of %d bytes, %d bytes of %d that are not copied; want at least %d, at most %d, nearly all",
				c.body, len(b.pieces), len(b.outline), shared, len(c.body), c.pieces, c.max)
		}
		b.Free()
	}
}

// A fault in a part that an outline leaves out is reported where it is in the body.
func TestFaultsOfLongStrings(t *testing.T) {
	for _, fault := range []string{"\x00", "\n", `\x`, `\u00g0`, `\u`, "\x1f"} {
		head := `{"model":"tiny","prompt":"` + strings.Repeat("a sea ", 10_000)
		for _, tail := range []string{"", strings.Repeat("more ", 100)} {
			_, err := Generate.Read(arrived([]byte(head+fault+tail+`"}`), WholeBody, 777), &Terms{})
			at := 0
			if api.AsError(err).Code != api.CodeBadRequest {
				t.Fatalf("%q: got %v, want %s", fault, err, api.CodeBadRequest)
			}
			if n, _ := fmt.Sscanf(err.Error(), "bad_request: the body is not valid JSON at byte %d", &at); n != 1 || at < len(head) || at > len(head)+len(fault) {
				t.Errorf("%q: got %v, want a fault at byte %d", fault, err, len(head))
			}
		}
	}
}

func TestPlainRun(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		text := make([]byte, r.IntN(100))
		for i := range text {
			text[i] = byte(r.IntN(256)) | 0x80
			if r.IntN(3) > 0 {
				text[i] = " !#[]~\x7f"[r.IntN(7)]
			}
		}
		want := len(text)
		if want > 0 && r.IntN(4) > 0 {
			want = r.IntN(len(text))
			text[want] = "\"\\\x00\x1f\n"[r.IntN(5)]
		}
		if got := plainRun(text); got != want {
			t.Fatalf("%q: got %d, want %d", text, got, want)
		}
	}
}

func BenchmarkBody(b *testing.B) {
	for name, body := range map[string]string{
		"image 8 MiB": `{"model":"tiny","messages":[{"role":"user","content":"look","images":["` + strings.Repeat("QUJD", 2<<20) + `"]}]}`,
		"text 1 MiB":  `{"model":"tiny","messages":[{"role":"user","content":"` + strings.Repeat(`a line of words\n`, 1<<16) + `"}]}`,
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			text := []byte(body)
			for b.Loop() {
				if _, err := Chat.Read(BodyOf(text), &Terms{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
