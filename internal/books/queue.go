package books

// chunkRows is the number of rows in a chunk. The journal of a chunk is read as a whole, and a batch for the store has whole chunks.
const chunkRows = 500

// queue holds the ended rows that are not in the store, oldest first. Each row is in the journal; the frames of some are also in memory,
// so that they need not be read back: a third of a Record's memory, and they keep no text of a request's body alive. Books.mu guards it.
type queue struct {
	chunks []*chunk
	spare  [][]byte
	rows   int   // in all chunks
	kept   int   // rows among them whose frames are in memory
	fresh  int   // rows that no batch had yet
	ended  int64 // rows added since the start
	stored int64 // rows among them that are in the store
}

// chunk is a sequence of rows that ended one after the other. It has a part of one file, in which its frames are the only ends.
type chunk struct {
	rows     int
	frames   []byte   // if kept
	kept     bool     // its frames are in memory
	closed   bool     // it gets no more rows
	moving   bool     // it is on its way to the store, so its frames do not change
	at       *segment // nil if its frames are only in memory
	from, to int64    // where in the file
	seq      int64    // the journal's last frame of it, which is on the disk when that is synced
	damaged  bool     // some of it could not be read back
}

// add queues the frame that ends at byte to of a journal file, or is only in memory if at is nil. It reports whether the frame completed
// a batch.
func (q *queue) add(frame []byte, at *segment, to, seq int64) (full bool) {
	c := q.open(at)
	if c == nil || !c.kept {
		c = &chunk{kept: true, frames: q.buffer()}
		q.push(c, at, to-int64(len(frame)))
	}
	c.frames = append(c.frames, frame...)
	q.kept++
	q.count(c, to, seq)
	return q.fresh == batchRows
}

// found queues a row of an earlier run, which has bytes from to to of a journal file.
func (q *queue) found(at *segment, from, to int64) {
	c := q.open(at)
	if c == nil || c.kept {
		c = &chunk{}
		q.push(c, at, from)
	}
	q.count(c, to, 0)
}

// open returns the last chunk if it can have another row of this file.
func (q *queue) open(at *segment) *chunk {
	if n := len(q.chunks); n > 0 && !q.chunks[n-1].closed && q.chunks[n-1].at == at {
		return q.chunks[n-1]
	}
	return nil
}

func (q *queue) push(c *chunk, at *segment, from int64) {
	if n := len(q.chunks); n > 0 {
		q.chunks[n-1].closed = true
	}
	c.place(at, from)
	q.chunks = append(q.chunks, c)
}

func (q *queue) count(c *chunk, to, seq int64) {
	c.to, c.seq = to, seq
	c.rows++
	c.closed = c.rows == chunkRows
	q.rows++
	q.fresh++
	q.ended++
}

// place notes the file that has the chunk's frames from a byte on. A file stays while a chunk is in it.
func (c *chunk) place(at *segment, from int64) {
	if c.at != nil {
		c.at.chunks--
	}
	if at != nil {
		at.chunks++
	}
	c.at, c.from = at, from
}

func (q *queue) buffer() []byte {
	if n := len(q.spare); n > 0 {
		b := q.spare[n-1]
		q.spare = q.spare[:n-1]
		return b
	}
	return make([]byte, 0, 128<<10)
}

// forget removes a chunk's frames from memory.
func (q *queue) forget(c *chunk) {
	if !c.kept {
		return
	}
	if len(q.spare) < 8 {
		q.spare = append(q.spare, c.frames[:0])
	}
	c.frames, c.kept = nil, false
	q.kept -= c.rows
}

// shrink removes frames from memory until those of `most` rows are left. It begins with the newest, because the oldest move next, and
// leaves frames that may not be on the disk yet: those after number synced.
func (q *queue) shrink(most int, synced int64) {
	for i := len(q.chunks) - 1; i >= 0 && q.kept > most; i-- {
		if c := q.chunks[i]; c.closed && !c.moving && c.at != nil && c.seq <= synced {
			q.forget(c)
		}
	}
}

// take returns the oldest chunks, with up to `most` rows or one chunk. They stay in the queue until done.
func (q *queue) take(most int) (chunks []*chunk, rows int) {
	for _, c := range q.chunks {
		if len(chunks) > 0 && rows+c.rows > most {
			break
		}
		c.closed, c.moving = true, true
		chunks = append(chunks, c)
		rows += c.rows
	}
	q.fresh = q.rows - rows
	return chunks, rows
}

// done removes the oldest chunks, which are in the store, or leaves them for another attempt.
func (q *queue) done(chunks []*chunk, stored bool) {
	for _, c := range chunks {
		c.moving = false
		if !stored {
			continue
		}
		q.forget(c)
		if c.at != nil {
			c.at.booked = true
		}
		c.place(nil, 0)
		q.rows -= c.rows
		q.stored += int64(c.rows)
	}
	if stored {
		clear(q.chunks[:len(chunks)])
		q.chunks = q.chunks[len(chunks):]
	}
}
