package gvstream

import "slices"

// This file is the memory of logs and pages: slots, the ring that has a log's slots in
// order, the chunks that have the slots' bytes, and the store that makes and reuses a log's
// chunks. It knows nothing of numbers or of rules; replay.go uses it to keep a log, and
// page.go to refer to parts of one. A log's ring and store are protected by the lock of the
// log's session; the bytes of a chunk are read without it (see chunk).

// A slot is one place in a log or a page: an event, or in a log also a gap. Its bytes are
// the event's JSON, or the gap's reason. A slot is a value of 32 bytes without a pointer of
// its own but that to the chunk: a log has thousands of them, and a copy of one is as good
// as the original for as long as the chunk's bytes stay.
type slot struct {
	to    uint64 // the last number it covers; the slot before it says the first
	chunk *chunk // holds its bytes, at chunk.b[off:off+size]
	off   uint32
	size  uint32

	// Of an event: where the parts of its JSON are (event_json.go).
	data  uint16 // where the data begins in its bytes; 0: there is none
	timed uint8  // bytes of the time's text; 0: there is none
	kind  kind
}

// A kind says what a slot is, and with it what ends the JSON of an event. The zero kind is
// a gap.
type kind uint8

const (
	isGap    kind = iota
	isJSON                 // an event whose data is JSON, or that has none
	isBytes                // an event whose data is bytes, in base64
	isEnd    kind = 1 << 7 // added to the kind of the last event
	kindMask kind = isEnd - 1
)

func (s *slot) gap() bool { return s.kind == isGap }
func (s *slot) end() bool { return s.kind&isEnd != 0 }

// A ring is a double-ended queue of slots that grows and shrinks with what is in it. A free
// place is the zero slot, so that it keeps no chunk alive. A pointer to a slot in it is good
// only until the ring is next changed.
type ring struct {
	slots []slot // a power of two of them, so that an index wraps by a mask; or none
	head  int    // index of the first
	n     int    // how many are in use, from head on
}

const keepSlots = 16 // a ring of this size or less does not shrink

// at returns slot i, counted from the first.
func (r *ring) at(i int) *slot { return &r.slots[(r.head+i)&(len(r.slots)-1)] }

// add makes a free place the last, and returns it for the caller to fill in.
func (r *ring) add() *slot {
	r.grow()
	r.n++
	return r.at(r.n - 1)
}

func (r *ring) pushFront(s slot) {
	r.grow()
	r.head = (r.head - 1) & (len(r.slots) - 1)
	r.n++
	*r.at(0) = s
}

func (r *ring) popFront() {
	*r.at(0) = slot{}
	r.head = (r.head + 1) & (len(r.slots) - 1)
	r.n--
	r.shrink()
}

// appendTo appends copies of n slots, from index i on, in the two pieces in which they may
// lie.
func (r *ring) appendTo(dst []slot, i, n int) []slot {
	from := (r.head + i) & (len(r.slots) - 1)
	first := min(n, len(r.slots)-from)
	return append(append(dst, r.slots[from:from+first]...), r.slots[:n-first]...)
}

func (r *ring) grow() {
	if r.n == len(r.slots) {
		r.resize(max(4, 2*r.n))
	}
}

// shrink halves a ring that is a quarter full. That leaves it half empty, so that a ring
// whose length goes up and down moves seldom.
func (r *ring) shrink() {
	if len(r.slots) > keepSlots && r.n <= len(r.slots)/4 {
		r.resize(len(r.slots) / 2)
	}
}

func (r *ring) resize(size int) {
	slots := make([]slot, size)
	for i := range r.n {
		slots[i] = *r.at(i)
	}
	r.slots, r.head = slots, 0
}

// remove takes slot i out and moves the slots on its shorter side: a gap that is merged is
// mostly near an end.
func (r *ring) remove(i int) {
	if i < r.n/2 {
		for ; i > 0; i-- {
			*r.at(i) = *r.at(i - 1)
		}
		r.popFront()
		return
	}
	for ; i < r.n-1; i++ {
		*r.at(i) = *r.at(i + 1)
	}
	*r.at(r.n - 1) = slot{}
	r.n--
	r.shrink()
}

// A chunk holds the bytes of slots, one after the other with a comma between them, as
// page.appendTo copies them. Bytes that were written never change while anybody may read
// them: so pages are lent them instead of copies, and read them without the log's lock.
//
// A chunk of a store goes through these states:
//
//	state     what it is                                   leaves it
//	last      put appends to it                            another is made: to full;
//	                                                       no slot is left: to spare, or dropped
//	full      known to its slots alone                     no slot is left: to spare, or dropped
//	spare     empty, was never lent                        reused: to last or full; or dropped
//	dropped   the log is done with it; readers may not be  the garbage collector takes it
//
// Lending is for good. What matters when its last slot goes is only whether it was lent: a
// lent chunk is dropped, since nobody counts its readers, and any other becomes the spare.
//
// A chunk without a store has no states. It belongs to a page, to a decoder, or to a gap's
// reason, and is written once, by its maker.
type chunk struct {
	b  []byte // all of its memory; the slice itself changes only while it is not lent
	of *store // that writes it; nil: nobody does

	// The lock of that store's log protects these. What is used may be read without it, once
	// lent; what is not is still written to.
	used int  // bytes written, from the start
	live int  // slots whose bytes it holds
	lent bool // pages may refer to it, now or at any time later
}

// bytes returns the slot's bytes, which must not be changed. Only the log itself may keep
// them while the chunk is not lent, and only under its lock.
func (s *slot) bytes() []byte { return s.chunk.b[s.off : s.off+s.size : s.off+s.size] }

// A store makes, fills and reuses the chunks of one log. It knows the one that it fills and
// one spare; the others are known to their slots alone. It lives until the log is dropped,
// or until log.tidy replaces it: nobody writes to a former store's chunks any more.
type store struct {
	last  *chunk // that put appends to, or nil
	spare *chunk // empty, to be the next, or nil
	size  int    // bytes of memory in its chunks, for log.tidy; not of dropped ones
}

// A new chunk is as large as all that the log holds already, within bounds, so that a log
// takes at most about twice the bytes of its events: a hub has many logs of a few events
// each, and some of many.
const (
	minChunk   = 512          // where there are many sessions, most have a few small events
	growChunk  = 4 * minChunk // below this a chunk grows by copying instead of being followed by another
	maxChunk   = 32 << 10     // one small event that is left keeps no more than this alive
	largeEntry = maxChunk / 8 // a larger entry gets a chunk of its own: it would waste the rest of one
)

// room returns a chunk with room for n more bytes, in a log that holds that many (held)
// already. It may move the last chunk's bytes, but never those of a lent one.
func (st *store) room(n, held int) *chunk {
	if n > largeEntry {
		return st.chunk(n, n)
	}
	c := st.last
	switch {
	case c != nil && len(c.b)-c.used >= n:
	case c != nil && len(c.b) < growChunk && !c.lent:
		st.grow(c, n)
	default:
		st.last = st.chunk(n, max(minChunk, min(held, maxChunk), n))
	}
	return st.last
}

// grow moves a chunk's bytes to where there is room for n more. Its slots need no change:
// they have offsets.
func (st *store) grow(c *chunk, n int) {
	st.size -= len(c.b)
	c.b = slices.Grow(c.b[:c.used], n)
	c.b = c.b[:cap(c.b)]
	st.size += len(c.b)
}

// chunk returns an empty chunk of size bytes, or the spare if that holds n bytes and is not
// much larger than asked for. A spare that does not fit is dropped: it would wait for a
// log of another size.
func (st *store) chunk(n, size int) *chunk {
	c := st.spare
	st.spare = nil
	if c != nil && n <= len(c.b) && len(c.b) <= 2*size {
		return c
	}
	st.drop(c)
	st.size += size
	return &chunk{b: make([]byte, size), of: st}
}

// put gives a slot the size bytes that the caller has written after the used ones of a
// chunk, and puts a comma after them. room has left space for both.
func (st *store) put(s *slot, c *chunk, size int) {
	s.chunk, s.off, s.size = c, uint32(c.used), uint32(size)
	c.b[c.used+size] = ','
	c.used += size + 1
	c.live++
}

// lend makes the bytes of a chunk stay as they are, for good. Bytes of a chunk without a
// store, or of a former store, stay anyway.
func (st *store) lend(c *chunk) {
	if st != nil && c.of == st {
		c.lent = true
	}
}

// free gives up a slot's bytes in c; the log holds that many (held) without them. With its
// last slot a chunk becomes the spare, or is dropped if it was lent. A spare larger than
// all that the log holds is dropped as well: it would be most of a small log's memory.
func (st *store) free(c *chunk, held int) {
	if st == nil || c.of != st {
		return
	}
	if c.live--; c.live > 0 {
		return
	}
	if st.last == c {
		st.last = nil
	}
	if c.lent {
		st.drop(c)
	} else {
		st.drop(st.spare)
		c.used, st.spare = 0, c
	}
	if c = st.spare; c != nil && len(c.b) > max(minChunk, held) {
		st.drop(c)
		st.spare = nil
	}
}

// drop leaves a chunk, if there is one, to its readers and then to the garbage collector.
func (st *store) drop(c *chunk) {
	if c != nil {
		st.size -= len(c.b)
	}
}
