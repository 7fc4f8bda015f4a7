package dialect

import (
	"bytes"
	"io"
	"sort"
	"sync"
)

// Pieces are the bytes of a body in order. They are not joined, because a body can have 20 MB.
type Pieces [][]byte

// Len returns the number of bytes.
func (p Pieces) Len() (n int) {
	for _, piece := range p {
		n += len(piece)
	}
	return n
}

// Bytes returns the bytes as one slice: a copy, unless there is only one piece.
func (p Pieces) Bytes() []byte {
	if len(p) == 1 {
		return p[0]
	}
	return bytes.Join(p, nil)
}

func (p Pieces) String() string { return string(p.Bytes()) }

const (
	// WholeBody is the largest body that is always in one piece.
	WholeBody = 16 << 10
	// PieceSize is the size of a usual piece of a large body: it stays in the processor's second-level cache while it is read.
	PieceSize = 256 << 10
	// maxOutline bounds an outline: a quarter of the body so far, and WholeBody.
	maxOutline = 4
	gapSize    = 16 // bytes of a gap
)

// Body is a request body that grows while it arrives. What has arrived is not moved again: a body of more than WholeBody bytes is a
// list of pieces, and Read reads its outline. That is the body without the inside of the long strings in a prompt, which is made from
// each piece when it is full. If the outline is not much smaller than the body, Read joins the pieces instead.
type Body struct {
	pieces  Pieces
	size    int
	outline []byte // after finish; the whole body if it has no gaps
	gaps    []gap
	outliner
	finished bool
	joined   bool
	near     place   // of the last content
	parts    Pieces  // the last content
	object   *object // the result of reading it
	kind     Kind    // as which it was read
}

// gap is a place of the outline at which bytes of the body are missing.
type gap struct {
	at      int // offset in the outline
	skipped int // bytes that are missing here and at all gaps before
}

// place is a piece and its offset in the body.
type place struct{ piece, offset int }

// BodyOf returns a body that has arrived in one piece.
func BodyOf(body []byte) *Body { return &Body{pieces: Pieces{body}, size: len(body)} }

var pool = sync.Pool{New: func() any { return new([PieceSize]byte) }}

// Grow makes room for n more bytes, after all room has been used.
func (b *Body) Grow(n int) {
	switch {
	case len(b.pieces) == 0:
		b.pieces = Pieces{make([]byte, 0, n)}
	case b.size < WholeBody:
		b.pieces[0] = append(make([]byte, 0, b.size+n), b.pieces[0]...)
	case n == PieceSize:
		b.outlineNext()
		b.pieces = append(b.pieces, pool.Get().(*[PieceSize]byte)[:0])
	default:
		b.outlineNext()
		b.pieces = append(b.pieces, make([]byte, 0, n))
	}
}

// Room returns the memory for the next bytes. It is empty if the body must grow first.
func (b *Body) Room() []byte {
	if len(b.pieces) == 0 {
		return nil
	}
	last := b.pieces[len(b.pieces)-1]
	return last[len(last):cap(last)]
}

// Took notes that n bytes have arrived in Room.
func (b *Body) Took(n int) {
	last := &b.pieces[len(b.pieces)-1]
	*last = (*last)[:len(*last)+n]
	b.size += n
}

// Size returns the number of bytes that have arrived.
func (b *Body) Size() int { return b.size }

// Held returns the bytes of memory that the body uses, for its pieces and at most for its outline.
func (b *Body) Held() (pieces, outline int) {
	for _, p := range b.pieces {
		pieces += cap(p)
	}
	if b.joined {
		return pieces, 0
	}
	return pieces, 2 * (cap(b.outline) + gapSize*cap(b.gaps)) // while they grow, the old memory counts too
}

// Head returns the first bytes of the body.
func (b *Body) Head() []byte { return b.pieces[0] }

// Reader reads the body.
func (b *Body) Reader() io.Reader {
	list := make([]io.Reader, len(b.pieces))
	for i, p := range b.pieces {
		list[i] = bytes.NewReader(p)
	}
	return io.MultiReader(list...)
}

// ReadingMemory returns the most bytes that Read needs in addition: for the names in the body, and for the joined pieces.
func (b *Body) ReadingMemory() int {
	b.finish()
	n := perName*min(b.names, maxNames) + perNameByte*min(b.nameBytes, maxNamesText)
	if !b.joined && b.flat {
		n += b.size
	}
	return n
}

// Free returns the memory. Nothing that refers to the body may be used after it, in particular not the Body of its Request.
func (b *Body) Free() {
	b.release()
	*b = Body{}
}

// Bytes returns the body in one piece.
func (b *Body) Bytes() []byte {
	if len(b.pieces) == 0 {
		return nil
	}
	if len(b.pieces) > 1 {
		b.join()
	}
	return b.pieces[0]
}

func (b *Body) join() {
	all := Pieces{b.pieces.Bytes()}
	b.release()
	b.pieces, b.gaps, b.outline, b.joined, b.near = all, nil, all[0], true, place{}
}

func (b *Body) release() {
	for _, p := range b.pieces {
		if cap(p) == PieceSize && len(b.pieces) > 1 {
			pool.Put((*[PieceSize]byte)(p[:PieceSize]))
		}
	}
}

// finish ends the outline when the body has arrived.
func (b *Body) finish() {
	switch {
	case b.finished:
		return
	case b.size <= WholeBody: // its names are few
		b.outline, b.joined = b.Bytes(), true
	default:
		b.outlineNext()
		b.endOutline()
	}
	b.finished = true
}

// origin returns the offset in the body of an offset in the outline.
func (b *Body) origin(at int) int {
	if i := b.gapAfter(at); i > 0 {
		return at + b.gaps[i-1].skipped
	}
	return at
}

// gapAfter returns the index of the first gap after an offset in the outline.
func (b *Body) gapAfter(at int) int {
	return sort.Search(len(b.gaps), func(i int) bool { return b.gaps[i].at > at })
}

// content returns a part of the outline with what is missing in it, also at its end. It is valid until the next call.
func (b *Body) content(start, end int) Pieces {
	b.parts = b.parts[:0]
	if i := b.gapAfter(start); i == len(b.gaps) || b.gaps[i].at > end {
		b.parts = append(b.parts, b.outline[start:end])
		return b.parts
	}
	b.parts = b.between(b.parts, b.origin(start), b.origin(end))
	return b.parts
}

// between appends a part of the body to list.
func (b *Body) between(list Pieces, start, end int) Pieces {
	if start < b.near.offset {
		b.near = place{}
	}
	at := b.near
	for start < end {
		p := b.pieces[at.piece]
		if start >= at.offset+len(p) {
			at = place{at.piece + 1, at.offset + len(p)}
			continue
		}
		b.near = at
		part := p[start-at.offset : min(len(p), end-at.offset)]
		list, start = append(list, part), start+len(part)
	}
	return list
}
