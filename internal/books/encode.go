package books

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
	"unicode/utf8"

	"ollama-api-service/internal/api"
)

// A frame is the payload's length and CRC32C, four bytes each, little-endian, then the payload: version, kind, fields. Text is a length
// and bytes, numbers are varints, and instants are Unix milliseconds as in the store. It is encoded by hand because every request writes
// two of these.
const (
	version    = 1
	kindAdmit  = 'A'
	kindEnd    = 'E'
	kindPassed = 'P'
	frameHead  = 8
	maxPayload = 16 << 10
	// maxText limits a text field, so that a row's memory is bounded. The longest model name has 593 bytes.
	maxText = 1024
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors for bytes that are not a frame. A crash can leave a torn frame at the end of a file; everything else is damage.
var (
	errTorn    = errors.New("the last record is incomplete")
	errDamaged = errors.New("a record is damaged")
)

// Flags of a payload. An absent duration is NULL in the store and never 0.
const (
	flagStreamed = 1 << iota
	flagEstimated
	flagOllamaTotal
	flagOllamaLoad
	flagOllamaPromptEval
	flagOllamaEval
)

func appendAdmit(b []byte, a *api.Admission) []byte {
	at := len(b)
	b = append(b, make([]byte, frameHead)...)
	b = append(b, version, kindAdmit)
	flags := uint64(0)
	if a.Streamed {
		flags |= flagStreamed
	}
	b = binary.AppendUvarint(b, flags)
	b = appendAdmission(b, a)
	b = binary.AppendVarint(b, a.OutputEstimate)
	return seal(b, at)
}

func appendEnd(b []byte, r *api.Record) []byte {
	at := len(b)
	b = append(b, make([]byte, frameHead)...)
	b = append(b, version, kindEnd)
	flags := uint64(0)
	for _, f := range [...]struct {
		set  bool
		flag uint64
	}{
		{r.Streamed, flagStreamed},
		{r.Estimated, flagEstimated},
		{r.OllamaTotal != nil, flagOllamaTotal},
		{r.OllamaLoad != nil, flagOllamaLoad},
		{r.OllamaPromptEval != nil, flagOllamaPromptEval},
		{r.OllamaEval != nil, flagOllamaEval},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	b = binary.AppendUvarint(b, flags)
	b = appendAdmission(b, &r.Admission)
	b = appendText(b, string(r.Outcome))
	b = appendText(b, string(r.ErrorCode))
	for _, n := range [...]int64{
		int64(r.Status), r.PromptTokens, r.CompletionTokens,
		int64(r.FirstByte), int64(r.Total), int64(r.Slot), r.BytesIn, r.BytesOut,
	} {
		b = binary.AppendVarint(b, n)
	}
	for _, d := range [...]*time.Duration{r.OllamaTotal, r.OllamaLoad, r.OllamaPromptEval, r.OllamaEval} {
		if d != nil {
			b = binary.AppendVarint(b, int64(*d))
		}
	}
	// Journals of older versions do not have the following fields. New fields are added at the end, in order.
	b = binary.AppendVarint(b, int64(r.GPU))
	b = binary.AppendVarint(b, r.Reserved)
	b = binary.AppendVarint(b, int64(r.ReservedGPU))
	b = binary.AppendVarint(b, int64(r.Queued))
	b = binary.AppendVarint(b, int64(r.Loading))
	return seal(b, at)
}

// appendPassed encodes that the client may have received n pieces of the answer to id.
func appendPassed(b []byte, id string, n int64) []byte {
	at := len(b)
	b = append(b, make([]byte, frameHead)...)
	b = append(b, version, kindPassed)
	b = binary.AppendVarint(b, n)
	b = appendText(b, id)
	return seal(b, at)
}

func appendAdmission(b []byte, a *api.Admission) []byte {
	b = binary.AppendVarint(b, a.At.UnixMilli())
	b = binary.AppendVarint(b, a.PromptEstimate)
	b = appendText(b, a.ID)
	b = appendText(b, a.ClientRequestID)
	b = appendText(b, a.Key)
	b = appendText(b, a.Model)
	b = appendText(b, a.Alias)
	b = appendText(b, a.Endpoint)
	b = appendText(b, a.Backend)
	b = appendText(b, a.Class)
	return appendText(b, a.ClientAddr)
}

func appendText(b []byte, s string) []byte {
	if len(s) > maxText {
		s = s[:maxText]
	}
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// seal fills in the head of the frame that starts at `at`.
func seal(b []byte, at int) []byte {
	payload := b[at+frameHead:]
	binary.LittleEndian.PutUint32(b[at:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[at+4:], crc32.Checksum(payload, castagnoli))
	return b
}

// nextFrame cuts the first frame's payload from b. It returns errTorn or errDamaged if there is no valid frame.
func nextFrame(b []byte) (payload, rest []byte, err error) {
	if len(b) < frameHead {
		return nil, nil, errTorn
	}
	n := int(binary.LittleEndian.Uint32(b))
	switch {
	case n == 0 && allZero(b): // a file system may extend a file before it writes its data
		return nil, nil, errTorn
	case n < 2 || n > maxPayload:
		return nil, nil, errDamaged
	case len(b) < frameHead+n:
		return nil, nil, errTorn
	}
	payload, rest = b[frameHead:frameHead+n], b[frameHead+n:]
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		if len(rest) == 0 {
			return nil, nil, errTorn
		}
		return nil, nil, errDamaged
	}
	return payload, rest, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// decode reads a payload. For an admission, it fills only the Admission part of r; for a kindPassed, the ID and CompletionTokens. It
// ignores bytes after the known fields, because a later version may append fields under the same version byte.
func decode(payload []byte) (kind byte, r api.Record, err error) {
	if payload[0] != version {
		return 0, r, fmt.Errorf("%w: version %d is unknown to this program", errDamaged, payload[0])
	}
	kind = payload[1]
	if kind != kindAdmit && kind != kindEnd && kind != kindPassed {
		return 0, r, fmt.Errorf("%w: kind %q is unknown to this program", errDamaged, kind)
	}
	d := decoder{b: payload[2:]}
	if kind == kindPassed {
		r.CompletionTokens, r.ID = d.number(), d.text()
	} else {
		d.record(&r, kind)
	}
	if d.short {
		return 0, r, fmt.Errorf("%w: a field is cut off", errDamaged)
	}
	return kind, r, nil
}

// decoder reads fields in order. Once one is truncated, short is set, and it and all following fields are empty.
type decoder struct {
	b     []byte
	short bool
}

func (d *decoder) record(r *api.Record, kind byte) {
	flags := d.unsigned()
	r.Streamed = flags&flagStreamed != 0
	r.At = time.UnixMilli(d.number()).UTC()
	r.PromptEstimate = d.number()
	for _, s := range [...]*string{&r.ID, &r.ClientRequestID, &r.Key, &r.Model, &r.Alias, &r.Endpoint, &r.Backend, &r.Class, &r.ClientAddr} {
		*s = d.text()
	}
	if kind == kindEnd {
		d.end(r, flags)
	} else {
		r.OutputEstimate = d.later(0)
	}
}

func (d *decoder) end(r *api.Record, flags uint64) {
	r.Estimated = flags&flagEstimated != 0
	r.Outcome = api.Outcome(d.text())
	r.ErrorCode = api.Code(d.text())
	r.Status = int(d.number())
	r.PromptTokens, r.CompletionTokens = d.number(), d.number()
	r.FirstByte, r.Total, r.Slot = time.Duration(d.number()), time.Duration(d.number()), time.Duration(d.number())
	r.BytesIn, r.BytesOut = d.number(), d.number()
	for _, f := range [...]struct {
		flag uint64
		d    **time.Duration
	}{
		{flagOllamaTotal, &r.OllamaTotal},
		{flagOllamaLoad, &r.OllamaLoad},
		{flagOllamaPromptEval, &r.OllamaPromptEval},
		{flagOllamaEval, &r.OllamaEval},
	} {
		if flags&f.flag != 0 {
			v := time.Duration(d.number())
			*f.d = &v
		}
	}
	r.GPU = time.Duration(d.later(-1))
	r.Reserved, r.ReservedGPU = d.later(0), time.Duration(d.later(0))
	r.Queued, r.Loading = time.Duration(d.later(-1)), time.Duration(d.later(-1))
}

// later reads a field that earlier versions did not write, and returns otherwise without it.
func (d *decoder) later(otherwise int64) int64 {
	if len(d.b) == 0 {
		return otherwise
	}
	return d.number()
}

func (d *decoder) unsigned() uint64 {
	v, n := binary.Uvarint(d.b)
	return v * uint64(d.skip(n))
}

func (d *decoder) number() int64 {
	v, n := binary.Varint(d.b)
	return v * int64(d.skip(n))
}

// skip moves past n bytes and returns 1, or returns 0 if there are fewer bytes.
func (d *decoder) skip(n int) int {
	if n <= 0 || n > len(d.b) {
		d.short, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return 1
}

// text replaces what PostgreSQL would refuse (invalid UTF-8, NUL): one such row would block all rows behind it.
func (d *decoder) text() string {
	n := d.unsigned()
	if n > uint64(len(d.b)) {
		d.short, d.b = true, nil
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	}
	return s
}
