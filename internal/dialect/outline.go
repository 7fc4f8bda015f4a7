package dialect

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"unicode/utf8"
)

const (
	// keptText is the number of bytes of a long string that an outline keeps.
	keptText = 128
	// mostLevels is how deep a body may be: the decoder stops behind it.
	mostLevels = 10_000
)

// escape says what must follow in an escape.
type escape uint8

const (
	noEscape   escape = 0 // 1 to 4: the number of hexadecimal digits
	afterSlash escape = 5
)

// outliner makes the outline of a body piece by piece. It judges nothing: it only leaves out what is certainly right within a string, and
// keeps the first byte that is not, so that the decoder finds the same fault in the outline as in the body. A name is never left out.
type outliner struct {
	next    int    // of the pieces
	at      int    // bytes of the body so far
	objects []bool // which of the levels are objects, and not arrays
	skipped int    // bytes left out so far

	name    bool // the next string is a name
	shorten bool // the member at the first level is part of a prompt
	flat    bool // there is no outline: it would be too large
	broken  bool // the body is not JSON

	inside   bool // a string
	skipping bool // the rest of the string
	escape   escape
	start    int  // of the string, in the body, after its quote
	kept     int  // bytes of it in the outline, at least; at most keptText
	closed   bool // a string has just ended
	length   int  // of that string

	names, nameBytes int
}

// outlineNext adds the pieces that are full now to the outline.
func (b *Body) outlineNext() {
	for ; b.next < len(b.pieces); b.next++ {
		for part := range slices.Chunk(b.pieces[b.next], WholeBody) {
			for len(part) > 0 {
				if b.inside {
					part = part[b.outlineString(part):]
				} else {
					part = part[b.outlineStructure(part):]
				}
			}
			if !b.flat && len(b.outline)+gapSize*len(b.gaps) > b.at/maxOutline+WholeBody {
				b.flat, b.shorten, b.skipping, b.outline, b.gaps = true, false, false, nil, nil
			}
		}
	}
}

// keep adds bytes of the body to the outline, or leaves them out of it.
func (b *Body) keep(p []byte) {
	b.at += len(p)
	switch {
	case b.flat:
	case b.skipping:
		b.skipped += len(p)
	default:
		b.outline = append(b.outline, p...)
	}
}

// outlineStructure reads up to the next string, and returns how far it got.
func (b *Body) outlineStructure(p []byte) int {
	end := bytes.IndexByte(p, '"')
	if end < 0 {
		end = len(p)
	}
	done := 0
	for i, c := range p[:end] {
		switch c {
		case ' ', '\t', '\n', '\r':
			continue
		case '{', '[':
			b.opens(c == '{')
		case '}', ']':
			b.objects, b.name = b.objects[:max(len(b.objects)-1, 0)], false
		case ',':
			n := len(b.objects)
			b.name, b.shorten = n > 0 && b.objects[n-1], b.shorten && n > 1
		case ':':
			b.keep(p[done:i])
			done = i
			b.afterName()
		}
		b.closed = false
	}
	if end < len(p) {
		end++
		b.inside, b.start, b.kept = true, b.at+end-done, 0
	}
	b.keep(p[done:end])
	return end
}

// opens handles the beginning of an object or an array.
func (b *Body) opens(object bool) {
	if len(b.objects) == mostLevels {
		b.shorten, b.broken = false, true
		return
	}
	b.objects, b.name = append(b.objects, object), object
}

// afterName handles the colon after a name.
func (b *Body) afterName() {
	if !b.closed {
		return
	}
	b.names, b.nameBytes = b.names+1, b.nameBytes+b.length
	isName := b.name
	b.name = false
	if isName && len(b.objects) == 1 && !b.flat {
		if name := bytes.TrimRight(b.outline, " \t\r\n"); b.length < keptText {
			_, prompt := prompts[string(name[len(name)-1-b.length:len(name)-1])]
			b.shorten = prompt && !b.broken
		}
	}
}

// outlineString reads within a string, and returns how far it got.
func (b *Body) outlineString(p []byte) int {
	if b.escape != noEscape {
		b.outlineEscape(p[0])
		b.keep(p[:1])
		return 1
	}
	n := plainRun(p)
	if b.shorten && !b.name && !b.skipping {
		some := min(n, keptText-b.kept)
		b.keep(p[:some])
		b.kept += some
		b.skipping = b.kept == keptText
		b.keep(p[some:n])
	} else {
		b.keep(p[:n])
	}
	if n == len(p) {
		return n
	}
	switch p[n] {
	case '"':
		b.inside, b.closed, b.length = false, true, b.at-b.start
		b.closeGap()
	case '\\':
		b.escape, b.kept = afterSlash, min(b.kept+1, keptText)
		if n+1 < len(p) && simpleEscape[p[n+1]] {
			b.escape = noEscape
			b.keep(p[n : n+2])
			return n + 2
		}
	default:
		b.fault()
	}
	b.keep(p[n : n+1])
	return n + 1
}

// closeGap ends a gap before the next byte.
func (b *Body) closeGap() {
	if b.skipping {
		b.skipping = false
		b.gaps = append(b.gaps, gap{len(b.outline), b.skipped})
	}
}

// endGap ends a gap before the last n bytes.
func (b *Body) endGap(n int) {
	b.skipped -= n
	b.closeGap()
	for _, p := range b.between(nil, b.at-n, b.at) {
		b.outline = append(b.outline, p...)
	}
}

// cutCharacter returns how many of the last bytes begin a character that the body does not end, if they are left out.
func (b *Body) cutCharacter() int {
	skipped := b.skipped
	if n := len(b.gaps); n > 0 {
		skipped -= b.gaps[n-1].skipped
	}
	most := min(utf8.UTFMax-1, skipped)
	last := Pieces(b.between(nil, b.at-most, b.at)).Bytes()
	for n := 1; n <= most; n++ {
		if c := last[most-n:]; utf8.RuneStart(c[0]) {
			if utf8.FullRune(c) {
				return 0
			}
			return n
		}
	}
	return 0
}

// fault ends all gaps because the next byte is wrong, and adds the beginning of its escape to the outline, if it is in one.
func (b *Body) fault() {
	if b.skipping {
		n := 0
		switch {
		case b.escape == afterSlash:
			n = 1
		case b.escape != noEscape:
			n = len(`\uxxxx`) - int(b.escape)
		}
		b.endGap(n)
	}
	b.shorten, b.broken, b.escape = false, true, noEscape
}

// endOutline handles a string, a character or an escape without an end.
func (b *Body) endOutline() {
	switch {
	case b.escape != noEscape:
		b.fault()
	case b.skipping:
		b.endGap(b.cutCharacter())
	}
}

// outlineEscape reads the next byte of an escape.
func (b *Body) outlineEscape(c byte) {
	switch {
	case b.escape == afterSlash && c == 'u':
		b.escape = 4
	case b.escape == afterSlash && simpleEscape[c]:
		b.escape = noEscape
	case b.escape < afterSlash && (c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'):
		b.escape--
	default:
		b.fault()
	}
}

// simpleEscape has the characters that are an escape after a backslash, without digits.
var simpleEscape = [256]bool{'"': true, '\\': true, '/': true, 'b': true, 'f': true, 'n': true, 'r': true, 't': true}

// plainRun returns the number of bytes at the start of a text that a string has as they are: those before a quote, a backslash or a control
// character. It reads eight bytes at a time.
func plainRun(text []byte) int {
	i := 0
	for ; i+32 <= len(text); i += 32 {
		t := text[i : i+32 : i+32]
		if special(binary.LittleEndian.Uint64(t))|special(binary.LittleEndian.Uint64(t[8:]))|
			special(binary.LittleEndian.Uint64(t[16:]))|special(binary.LittleEndian.Uint64(t[24:])) != 0 {
			break
		}
	}
	for ; i+8 <= len(text); i += 8 {
		if s := special(binary.LittleEndian.Uint64(text[i:])); s != 0 {
			return i + bits.TrailingZeros64(s)/8
		}
	}
	for ; i < len(text) && text[i] != '"' && text[i] != '\\' && text[i] >= ' '; i++ {
	}
	return i
}

// special sets the highest bit of the first byte in eight that is a quote, a backslash or a control character, and none if there is none.
func special(eight uint64) uint64 {
	const each, highest = 0x0101010101010101, 0x8080808080808080
	quote, slash := eight^each*'"', eight^each*'\\'
	return ((eight-each*' ')&^eight | (quote-each)&^quote | (slash-each)&^slash) & highest
}
