package dialect

import "strings"

// What a text costs depends on how usual it is. The estimate of a request takes every four bytes for a token, which holds for English; this
// one is for what a client leaves unfinished, and no tokens of a text chosen to be expensive should be missing from it. It was measured on
// the tokenizers of Llama 3.2 and Gemma 2, for English, code, several scripts, and random letters, digits, marks and symbols: it is between
// 0.8 and 1.6 of the larger of both, but for what docs/limits.md names.

// sixteenth is the unit of weights: a sixteenth of a token.
const sixteenth = 16

// Kinds of a byte, for the one behind it. A small letter's own kind is its place in the alphabet behind smallLetter.
const (
	otherByte = iota
	spaceByte
	capitalLetter
	smallLetter
	byteKinds = 32 // smallLetter + 26 at least; a power of two needs no check of bounds
)

// usualNext are, for each letter, those that follow it in words: 98 % of the pairs of English and of code. Others split a word.
var usualNext = strings.Fields(`bcdfgiklmnprstuvwxy aeiloruy acehiklorstu adeilmorsuy abcdefghilmnopqrstuvwxy aefilortu aehilnorstu aeiortuy
	abcdefgklmnoprstvz ou eins adefilostuy abeimopsuy acdefgiklnostuvy abcdefgiklmnoprstuvw aehiloprstu u acdefgiklmnorstuvy acehiklmopstuwy
	acefhilmoprstuwxy abcdefgilmnprst aeio aehinors cpt aeiopst e`)

// byteKind and weights are looked up for each byte of a prompt: 8 KB together, so that they stay in the processor's first cache.
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
	weights = func() (t [byteKinds][256]uint8) {
		for before := range smallLetter + 26 {
			for c := range t[before] {
				t[before][c] = weightOf(before, byte(c))
			}
		}
		return t
	}()
)

// weightOf is the weight of a byte behind one of a kind. A character has it in its first byte.
func weightOf(before int, c byte) uint8 {
	switch {
	case c >= 'a' && c <= 'z':
		switch {
		case before < capitalLetter: // a word begins
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
		return 0 // a word has it
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

// leadWeight is the weight of a character beyond ASCII, by the byte that begins it.
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

// weigh counts a text that has no escapes.
func (p *prompt) weigh(text []byte) {
	before, dense, weight := uint8(otherByte), 0, 0
	for _, c := range text {
		dense += int(lacks[c])
		weight += int(weights[before%byteKinds][c])
		before = byteKind[c]
	}
	p.dense += dense
	p.weight += weight
}
