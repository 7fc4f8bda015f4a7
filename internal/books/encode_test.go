package books

import (
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"pgregory.net/rapid"
)

func anyRecord(t *rapid.T) api.Record {
	text := rapid.StringMatching(`[a-z0-9:/_é.-]{0,40}`)
	duration := rapid.Custom(func(t *rapid.T) time.Duration { return time.Duration(rapid.Int64().Draw(t, "ns")) })
	maybe := rapid.Ptr(duration, true)
	return api.Record{
		Admission: api.Admission{
			ID: text.Draw(t, "id"), ClientRequestID: text.Draw(t, "cid"), At: time.UnixMilli(rapid.Int64Range(-1<<40, 1<<45).Draw(t, "at")).UTC(),
			Key: text.Draw(t, "key"), Model: text.Draw(t, "model"), Alias: text.Draw(t, "alias"), Endpoint: text.Draw(t, "ep"),
			Backend: text.Draw(t, "be"), Class: text.Draw(t, "class"), Streamed: rapid.Bool().Draw(t, "st"),
			ClientAddr: text.Draw(t, "addr"), PromptEstimate: rapid.Int64().Draw(t, "pe"), OutputEstimate: rapid.Int64().Draw(t, "oe"),
		},
		Outcome: api.Outcome(text.Draw(t, "out")), Status: rapid.IntRange(0, 599).Draw(t, "status"), ErrorCode: api.Code(text.Draw(t, "err")),
		PromptTokens: rapid.Int64().Draw(t, "pt"), CompletionTokens: rapid.Int64().Draw(t, "ct"), Estimated: rapid.Bool().Draw(t, "est"),
		FirstByte: duration.Draw(t, "ttfb"), Total: duration.Draw(t, "total"), Slot: duration.Draw(t, "slot"), GPU: duration.Draw(t, "gpu"), Reserved: rapid.Int64().Draw(t, "reserved"),
		ReservedGPU: duration.Draw(t, "reserved gpu"), Queued: duration.Draw(t, "queued"), Loading: duration.Draw(t, "loading"),
		OllamaTotal: maybe.Draw(t, "ot"), OllamaLoad: maybe.Draw(t, "ol"), OllamaPromptEval: maybe.Draw(t, "op"), OllamaEval: maybe.Draw(t, "oe"),
		BytesIn: rapid.Int64().Draw(t, "bi"), BytesOut: rapid.Int64().Draw(t, "bo"),
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	// A new field must be encoded and added here, otherwise it never reaches the store.
	if a, r := reflect.TypeFor[api.Admission]().NumField(), reflect.TypeFor[api.Record]().NumField(); a != 13 || r != 21 {
		t.Fatalf("Admission has %d fields and Record %d: encode the new ones", a, r)
	}
	rapid.Check(t, func(t *rapid.T) {
		want := anyRecord(t)
		stream := appendEnd(appendAdmit(nil, &want.Admission), &want)

		payload, rest, err := nextFrame(stream)
		if err != nil {
			t.Fatal(err)
		}
		kind, got, err := decode(payload)
		if err != nil || kind != kindAdmit || got.Admission != want.Admission {
			t.Fatalf("admission %+v, %v, want %+v", got.Admission, err, want.Admission)
		}
		payload, rest, err = nextFrame(rest)
		if err != nil || len(rest) != 0 {
			t.Fatal(err)
		}
		kind, got, err = decode(payload)
		want.OutputEstimate = 0 // only in admissions
		if err != nil || kind != kindEnd || !reflect.DeepEqual(got, want) {
			t.Fatalf("record %+v, %v, want %+v", got, err, want)
		}
	})
}

func TestAnyBytesAreReadWithoutPanic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := append([]byte{version, rapid.SampledFrom([]byte{kindAdmit, kindEnd}).Draw(t, "kind")},
			rapid.SliceOf(rapid.Byte()).Draw(t, "payload")...)
		decode(payload)
		nextFrame(rapid.SliceOf(rapid.Byte()).Draw(t, "frame"))
	})
}

func TestCutFieldIsDamage(t *testing.T) {
	r := record("a")
	r.GPU, r.Reserved, r.ReservedGPU, r.Queued, r.Loading = 1<<40, 1<<40, 1<<40, 1<<40, 1<<40
	whole := appendEnd(nil, r)[frameHead:]
	// Fields that were added later may all be missing, as in older journals.
	field := len(binary.AppendVarint(nil, 1<<40))
	before := len(whole) - 5*field
	for n := 2; n < len(whole); n++ {
		if n == before {
			if _, old, err := decode(whole[:n]); err != nil || old.BytesOut != 4096 || old.GPU != -1 || old.Reserved != 0 {
				t.Fatalf("from an older journal: %+v, %v", old, err)
			}
			continue
		}
		if n > before && (n-before)%field == 0 {
			continue // this contains only the first of them
		}
		if _, _, err := decode(whole[:n]); !errors.Is(err, errDamaged) {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	if _, r, err := decode(append(whole, "a field of a later version"...)); err != nil || r.BytesOut != 4096 {
		t.Fatalf("with an additional field: %v", err)
	}
}

func TestTextIsMendedAndBounded(t *testing.T) {
	a := admission("a")
	a.ClientRequestID, a.Model = "x\x00\xff", strings.Repeat("é", 2000)
	_, r, err := decode(appendAdmit(nil, a)[frameHead:])
	if err != nil || r.ClientRequestID != "x\uFFFD\uFFFD" || r.Model != strings.Repeat("é", maxText/2) {
		t.Errorf("%q, %d bytes, %v", r.ClientRequestID, len(r.Model), err)
	}
}
