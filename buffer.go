package gvstream

import "slices"

// A slot is one place in a log: an event, or a gap. Its bytes are the event's JSON,
// or the gap's reason.
type slot struct {
	to    uint64 // the last number it covers; the slot before it says the first
	chunk *chunk // holds its bytes
	off   uint32 // where they begin in it
	size  uint32
	data  uint16 // where the data begins in them; 0: there is none
	timed uint8  // bytes of the time's text; 0: there is none
	kind  kind
}

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

// A ring is a double-ended queue of slots that grows and shrinks as it must. A place
// that is free has nothing in it.
type ring struct {
	slots []slot // a power of two of them, or none
	head  int    // index of the first
	n     int
}

const keepSlots = 16 // a ring does not shrink below

func (r *ring) at(i int) *slot { return &r.slots[(r.head+i)&(len(r.slots)-1)] }

// add makes a free place the last.
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

// appendTo appends n slots from index i on.
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

// shrink leaves room to grow, so that a ring which comes and goes moves seldom.
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

// remove takes slot i out. It moves the shorter side.
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

// A chunk holds the bytes of slots, one behind the other. Bytes that were written
// never change while anybody may read them, so that readers are lent them instead of
// copies: a chunk is written again only if it was never lent. What else becomes of it
// is the garbage collector's business.
type chunk struct {
	b  []byte // all of its memory; the slice itself changes only while it is not lent
	of *store // that writes it; nil: nobody does
	// The lock of that store's log protects these.
	used int
	live int  // slots whose bytes it holds
	lent bool // readers may hold parts of it
}

// bytes are those of a slot. Who is not the log needs to be lent them.
func (s *slot) bytes() []byte { return s.chunk.b[s.off : s.off+s.size : s.off+s.size] }

// A store writes the chunks of one log. It knows the one that it fills; the others
// are known to their slots alone.
type store struct {
	last  *chunk // has room, or nil
	spare *chunk // to be written again, or nil
	size  int    // bytes of memory in all its chunks
}

// A chunk is as large as all that the log holds, within these bounds, so that a
// log takes at most about twice the bytes of its events. While it is smaller than
// growChunk it grows instead of being followed by another. A larger entry has a chunk
// of its own.
const (
	minChunk   = 512
	growChunk  = 4 * minChunk
	maxChunk   = 32 << 10
	largeEntry = maxChunk / 8
)

// room returns a chunk with room for n more bytes. The log holds so many already.
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

// grow moves a chunk's bytes to where there is room for n more.
func (st *store) grow(c *chunk, n int) {
	st.size -= len(c.b)
	c.b = slices.Grow(c.b[:c.used], n)
	c.b = c.b[:cap(c.b)]
	st.size += len(c.b)
}

// chunk returns an empty chunk for n bytes at least, of about a size.
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

// put gives a slot the bytes that were written behind those of a chunk, and puts a
// comma behind them.
func (st *store) put(s *slot, c *chunk, size int) {
	s.chunk, s.off, s.size = c, uint32(c.used), uint32(size)
	c.b[c.used+size] = ','
	c.used += size + 1
	c.live++
}

// lend has the bytes of a chunk stay as they are.
func (st *store) lend(c *chunk) {
	if st != nil && c.of == st {
		c.lent = true
	}
}

// free gives the bytes of a slot up. The log still holds so many.
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

// drop leaves a chunk, if there is one, to the garbage collector and its readers.
func (st *store) drop(c *chunk) {
	if c != nil {
		st.size -= len(c.b)
	}
}
