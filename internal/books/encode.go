package books

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
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

// The order of the fields in a payload after its flags, by the names of their columns. It is that of the first version: no journal has
// another one. Columns that are not named here are encoded at the end, in the order of api.Columns, so that new ones are ignored by older
// programs, and absent in their journals.
var (
	admitFields = columns("at", promptEstimate, "id", "client_request_id", "key", "model", "alias", "endpoint", "backend", "class",
		"client_addr")
	endFields = columns("outcome", "error_code", "status", "prompt_tokens", "completion_tokens", "ttfb_ms", "total_ms", "slot_ms",
		"bytes_in", "bytes_out", "ollama_total_ns", "ollama_load_ns", "ollama_prompt_eval_ns", "ollama_eval_ns")
	// Fields of which the payload's flags say whether they are true or present.
	flagFields  = columns("streamed", "estimated", "ollama_total_ns", "ollama_load_ns", "ollama_prompt_eval_ns", "ollama_eval_ns")
	laterFields = func() []*api.Column {
		known := slices.Concat(admitFields, endFields, flagFields)
		list := columns("gpu_ms", "reserved_tokens", "reserved_gpu_ms", "queue_ms", "loading_ms")
		known = append(known, list...)
		for _, c := range api.StoredColumns() {
			if !slices.ContainsFunc(known, func(k *api.Column) bool { return k.Name == c.Name }) {
				list = append(list, c)
			}
		}
		return list
	}()
	laterAdmitFields = slices.Concat(columns(outputEstimate),
		slices.DeleteFunc(slices.Clone(laterFields), func(c *api.Column) bool { return !c.Admitted() }))
)

// Fields of an admission that are not columns.
const promptEstimate, outputEstimate = "prompt_estimate", "output_estimate"

func columns(names ...string) (list []*api.Column) {
	for _, name := range names {
		switch name {
		case promptEstimate:
			list = append(list, &api.Column{Name: name, At: func(r *api.Record) any { return &r.PromptEstimate }})
		case outputEstimate:
			list = append(list, &api.Column{Name: name, At: func(r *api.Record) any { return &r.OutputEstimate }})
		default:
			list = append(list, api.ColumnOf(name))
		}
	}
	return list
}

func appendAdmit(b []byte, a *api.Admission) []byte {
	r := scratch.Get().(*api.Record)
	defer scratch.Put(r)
	r.Admission = *a
	at := len(b)
	b = appendFields(appendHead(b, kindAdmit, r), r, admitFields)
	return seal(appendFields(b, r, laterAdmitFields), at)
}

// scratch has records of which only the Admission is used, because columns are fields of records.
var scratch = sync.Pool{New: func() any { return new(api.Record) }}

func appendEnd(b []byte, r *api.Record) []byte {
	at := len(b)
	b = appendFields(appendHead(b, kindEnd, r), r, admitFields)
	return seal(appendFields(appendFields(b, r, endFields), r, laterFields), at)
}

// appendHead encodes what comes before the fields.
func appendHead(b []byte, kind byte, r *api.Record) []byte {
	b = append(b, make([]byte, frameHead)...)
	b = append(b, version, kind)
	set := uint64(0)
	for i, c := range flagFields {
		switch at := c.At(r).(type) {
		case *bool:
			if *at {
				set |= 1 << i
			}
		case **time.Duration:
			if *at != nil {
				set |= 1 << i
			}
		}
	}
	return binary.AppendUvarint(b, set)
}

func appendFields(b []byte, r *api.Record, list []*api.Column) []byte {
	for _, c := range list {
		switch at := c.At(r).(type) {
		case *string:
			b = appendText(b, *at)
		case *int64:
			b = binary.AppendVarint(b, *at)
		case *int:
			b = binary.AppendVarint(b, int64(*at))
		case *time.Duration:
			b = binary.AppendVarint(b, int64(*at))
		case *time.Time:
			b = binary.AppendVarint(b, at.UnixMilli())
		case **time.Duration:
			if *at != nil {
				b = binary.AppendVarint(b, int64(**at))
			}
		default:
			panic("books: no encoding for the column " + c.Name)
		}
	}
	return b
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
	set := d.unsigned()
	has := func(c *api.Column) bool {
		i := slices.IndexFunc(flagFields, func(f *api.Column) bool { return f.Name == c.Name })
		return i >= 0 && set>>i&1 != 0
	}
	for _, c := range flagFields {
		if at, ok := c.At(r).(*bool); ok {
			*at = has(c)
		}
	}
	d.fields(r, admitFields, has)
	rest := laterAdmitFields
	if kind == kindEnd {
		d.fields(r, endFields, has)
		rest = laterFields
	}
	for _, c := range rest {
		if len(d.b) > 0 {
			d.fields(r, []*api.Column{c}, has)
		} else {
			c.Set(r, nil) // an earlier version did not write it
		}
	}
}

func (d *decoder) fields(r *api.Record, list []*api.Column, has func(*api.Column) bool) {
	for _, c := range list {
		switch at := c.At(r).(type) {
		case *string:
			*at = d.text()
		case *int64:
			*at = d.number()
		case *int:
			*at = int(d.number())
		case *time.Duration:
			*at = time.Duration(d.number())
		case *time.Time:
			*at = time.UnixMilli(d.number()).UTC()
		case **time.Duration:
			if has(c) {
				v := time.Duration(d.number())
				*at = &v
			}
		}
	}
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
