package dialect

import "strings"

// The number of tokens of a text depends on how common its words are. The estimate of a request counts four bytes as a token, which
// is right for English. This second estimate is for requests that a client leaves unfinished: it must not be too low for texts that
// were chosen to be expensive. It was measured with the tokenizers of Llama 3.2 and Gemma 2, for English, code, several scripts, and
// random letters, digits, punctuation and symbols. It is between 0.8 and 1.6 of the larger count of both, except for the cases in
// docs/limits.md.

// sixteenth is the unit of weights: a sixteenth of a token.
const sixteenth = 16

// Kinds of a byte, for the byte after it. A small letter's kind is smallLetter plus its place in the alphabet.
const (
	otherByte = iota
	spaceByte
	capitalLetter
	smallLetter
	byteKinds = 32 // at least smallLetter + 26; a power of two needs no bounds check
)

// usualNext has, for each letter, the letters that follow it in words: 98 % of the pairs in English and code. Other letters split a
// word.
var usualNext = strings.Fields(`bcdfgiklmnprstuvwxy aeiloruy acehiklorstu adeilmorsuy abcdefghilmnopqrstuvwxy aefilortu aehilnorstu aeiortuy
	abcdefgklmnoprstvz ou eins adefilostuy abeimopsuy acdefgiklnostuvy abcdefgiklmnoprstuvw aehiloprstu u acdefgiklmnorstuvy acehiklmopstuwy
	acefhilmoprstuwxy abcdefgilmnprst aeio aehinors cpt aeiopst e`)

// byteKind and weights are read for each byte of a prompt. They have 16 KB in total, so they stay in the processor's first-level
// cache. The high byte of a weight is the padding.
var (
	byteKind = func() (t [256]uint8) {
		for c := range t {
			switch {
			case c == ' ':
				t[c] = spaceByte
			case c >= 'A' && c <= 'Z':
				t[c] = capitalLetter
			case c >= 'a' && c <= 'z':
				t[c] = smallLetter + uint8(c-'a')
			}
		}
		return t
	}()
	weights = func() (t [byteKinds][256]uint16) {
		for before := range smallLetter + 26 {
			for c := range t[before] {
				t[before][c] = uint16(weightOf(before, byte(c))) | uint16(padding(byte(c)))<<8
			}
		}
		return t
	}()
)

// weightOf returns the weight of a byte after a byte of the given kind. A character has its weight in its first byte.
func weightOf(before int, c byte) uint8 {
	switch {
	case c >= 'a' && c <= 'z':
		switch {
		case before < capitalLetter: // a word starts
			return 11
		case before == capitalLetter:
			return 5
		case strings.IndexByte(usualNext[before-smallLetter], c) >= 0:
			return 2
		}
		return 13
	case c == ' ':
		switch before {
		case otherByte:
			return 4
		case spaceByte:
			return 1
		}
		return 0 // it belongs to the word
	case c >= 'A' && c <= 'Z':
		if before == capitalLetter {
			return 9
		}
		return 11
	case c >= '0' && c <= '9':
		return sixteenth
	case c < 0x80:
		return asciiWeight(c)
	}
	return leadWeight(c)
}

func asciiWeight(c byte) uint8 {
	switch {
	case c == '\n' || c == '\t' || c == '\r':
		return 12
	case c < ' ' || c == 0x7F:
		return sixteenth
	}
	return 11
}

// leadWeight returns the weight of a non-ASCII character, by its first byte.
func leadWeight(c byte) uint8 {
	switch {
	case c < 0xC0: // within a character
		return 0
	case c < 0xCE: // rare Latin letters, combining marks
		return 25
	case c < 0xE0: // Greek, Cyrillic, Hebrew, Arabic
		return 12
	case c < 0xE2: // India, Tibet
		return 20
	case c == 0xE2: // symbols
		return 26
	case c == 0xE3: // kana
		return 12
	case c < 0xEA: // Han
		return 20
	case c < 0xEE: // Hangul
		return 26
	case c < 0xF0:
		return 32
	}
	return 52 // emoji, rare scripts
}

// weigh counts a text without escapes after a byte of the given kind, and returns the kind of its last byte.
func (p *prompt) weigh(text []byte, before uint8) uint8 {
	dense, weight := 0, 0
	for _, c := range text {
		w := weights[before%byteKinds][c]
		dense += int(w >> 8)
		weight += int(w & 0xff)
		before = byteKind[c]
	}
	p.dense += dense
	p.weight += weight
	return before
}
