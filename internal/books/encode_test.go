package books

import (
	"encoding/binary"
	"encoding/hex"
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
	r := api.Record{Admission: api.Admission{PromptEstimate: rapid.Int64().Draw(t, "pe"), OutputEstimate: rapid.Int64().Draw(t, "oe")}}
	for _, c := range api.StoredColumns() {
		switch at := c.At(&r).(type) {
		case *string:
			*at = text.Draw(t, c.Name)
		case *int:
			*at = rapid.IntRange(0, 599).Draw(t, c.Name)
		case *int64:
			*at = rapid.Int64().Draw(t, c.Name)
		case *bool:
			*at = rapid.Bool().Draw(t, c.Name)
		case *time.Time:
			*at = time.UnixMilli(rapid.Int64Range(-1<<40, 1<<45).Draw(t, c.Name)).UTC()
		case *time.Duration:
			*at = duration.Draw(t, c.Name)
		case **time.Duration:
			*at = rapid.Ptr(duration, true).Draw(t, c.Name)
		default:
			t.Fatalf("the column %s is a %T, which this test does not know", c.Name, at)
		}
	}
	return r
}

// A journal of the first versions, as those wrote it.
func TestJournalOfAnOlderVersionIsRead(t *testing.T) {
	stream, err := hex.DecodeString("7c000000c66b11ce014101f696dca6d7660e2430313961623761322d366633652d376335312d396431622d326630633765346138623930067468656972730e6f61735f387254326b4c6d4e30710f6c6c616d61332e323a6c617465737403677074092f6170692f63686174046770753109696e666572656e63650831302e302e302e3712c000000012d96abc01450bf696dca6d7660e2430313961623761322d366633652d376335312d396431622d326630633765346138623930067468656972730e6f61735f387254326b4c6d4e30710f6c6c616d61332e323a6c617465737403677074092f6170692f63686174046770753109696e666572656e63650831302e302e302e370b636c69656e745f676f6e650b636c69656e745f676f6e65900334f00180cab5ee0180bcc1960b80e2fc8c0be802988e01809bee0280ce91b0071680a8d6b9070180ade204")
	if err != nil {
		t.Fatal(err)
	}
	load := 3 * time.Millisecond
	want := api.Record{
		Admission: api.Admission{
			ID: "019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90", ClientRequestID: "theirs", At: time.UnixMilli(1764064200123).UTC(),
			Key: "oas_8rT2kLmN0q", Model: "llama3.2:latest", Alias: "gpt", Endpoint: "/api/chat", Backend: "gpu1", Class: "inference",
			Streamed: true, ClientAddr: "10.0.0.7", PromptEstimate: 7, OutputEstimate: 9,
		},
		Outcome: api.OutcomeClientGone, Status: 200, ErrorCode: api.CodeClientGone, PromptTokens: 26, CompletionTokens: 120, Estimated: true,
		FirstByte: 250 * time.Millisecond, Total: 1500 * time.Millisecond, Slot: 1490 * time.Millisecond, GPU: 990 * time.Millisecond,
		Queued: -1, Loading: 5 * time.Millisecond, Reserved: 11, ReservedGPU: time.Second, OllamaLoad: &load, BytesIn: 180, BytesOut: 9100,
	}
	payload, rest, err := nextFrame(stream)
	if err != nil {
		t.Fatal(err)
	}
	if kind, got, err := decode(payload); err != nil || kind != kindAdmit || got.Admission != want.Admission {
		t.Errorf("admission %c %+v, %v, want %+v", kind, got.Admission, err, want.Admission)
	}
	if payload, _, err = nextFrame(rest); err != nil {
		t.Fatal(err)
	}
	want.OutputEstimate = 0 // only in admissions
	if kind, got, err := decode(payload); err != nil || kind != kindEnd || !reflect.DeepEqual(got, want) {
		t.Errorf("record %c %+v, %v, want %+v", kind, got, err, want)
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
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
	const numbers, empty = 5, 1 // of client only the length, which is 0
	field := len(binary.AppendVarint(nil, 1<<40))
	before := len(whole) - numbers*field - empty
	for n := 2; n < len(whole); n++ {
		if n == before {
			if _, old, err := decode(whole[:n]); err != nil || old.BytesOut != 4096 || old.GPU != -1 || old.Reserved != 0 {
				t.Fatalf("from an older journal: got %+v, %v, want 4096 bytes out, GPU -1 and Reserved 0", old, err)
			}
			continue
		}
		if n > before && (n-before)%field == 0 {
			continue // this contains only the first of them
		}
		if _, _, err := decode(whole[:n]); !errors.Is(err, errDamaged) {
			t.Fatalf("%d of %d bytes: got %v, want %v", n, len(whole), err, errDamaged)
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
