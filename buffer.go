package gvstream

// A slot is one place in a log: an event, or a gap. Its bytes lie in the log's
// store: the event's JSON, or the gap's reason.
type slot struct {
	to    uint64 // the last number it covers; the slot before it says the first
	chunk uint32 // number of the chunk that holds its bytes
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

// A ring is a double-ended queue of slots that grows as it must and gives its
// memory back when it is empty.
type ring struct {
	slots []slot // a power of two of them, or none
	head  int    // index of the first
	n     int
}

const keepSlots = 16 // an empty ring keeps no more

func (r *ring) at(i int) *slot { return &r.slots[(r.head+i)&(len(r.slots)-1)] }

func (r *ring) pushBack(s slot) {
	r.grow()
	r.n++
	*r.at(r.n - 1) = s
}

func (r *ring) pushFront(s slot) {
	r.grow()
	r.head = (r.head - 1) & (len(r.slots) - 1)
	r.n++
	*r.at(0) = s
}

func (r *ring) grow() {
	if r.n < len(r.slots) {
		return
	}
	slots := make([]slot, max(4, 2*len(r.slots)))
	n := copy(slots, r.slots[r.head:])
	copy(slots[n:], r.slots[:r.head])
	r.slots, r.head = slots, 0
}

func (r *ring) popFront() {
	r.head = (r.head + 1) & (len(r.slots) - 1)
	r.n--
	if r.n == 0 && len(r.slots) > keepSlots {
		*r = ring{}
	}
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
	r.n--
}

// A store holds the bytes of a log's slots, one behind the other, in chunks. A
// chunk's bytes never change once they are written, so readers may be lent parts of
// it instead of copies. It is given back when no slot is left in it: to be written
// again if it was never lent, else to the garbage collector, after its readers.
type store struct {
	chunks []chunk
	first  uint32 // number of chunks[0]
	spare  []byte // a chunk to be written again, or nil
}

type chunk struct {
	b    []byte // written up to its length
	live int32  // slots whose bytes it holds
	lent bool   // readers may hold parts of it
}

// A chunk is as large as all that the log holds, within these bounds, so that a
// log takes at most about twice the bytes of its events. A larger entry has a chunk
// of its own.
const (
	minChunk   = 512
	maxChunk   = 32 << 10
	largeEntry = maxChunk / 8
)

func (st *store) chunk(n uint32) *chunk { return &st.chunks[n-st.first] }

// bytes are those of a slot. They are valid under the log's lock only, until the
// slot is freed.
func (st *store) bytes(s *slot) []byte {
	b := st.chunk(s.chunk).b
	return b[s.off : s.off+s.size : s.off+s.size]
}

// room returns the last chunk, with room for n more bytes in its b. The log holds
// so many already.
func (st *store) room(n, held int) *chunk {
	if k := len(st.chunks); k > 0 && cap(st.chunks[k-1].b)-len(st.chunks[k-1].b) >= n {
		return &st.chunks[k-1]
	}
	b := st.spare
	if st.spare = nil; cap(b) < n {
		size := n
		if n <= largeEntry {
			size = max(minChunk, min(held, maxChunk), n)
		}
		b = make([]byte, 0, size)
	}
	return st.add(chunk{b: b})
}

// add begins a chunk.
func (st *store) add(c chunk) *chunk {
	st.chunks = append(st.chunks, c)
	return &st.chunks[len(st.chunks)-1]
}

// last is the number of the last chunk.
func (st *store) last() uint32 { return st.first + uint32(len(st.chunks)) - 1 }

// put gives a slot its bytes, which were written to a chunk from off on.
func (st *store) put(s *slot, chunk uint32, off, size int) {
	st.chunk(chunk).live++
	s.chunk, s.off, s.size = chunk, uint32(off), uint32(size)
}

// adopt takes a buffer that nobody writes to any more as the last chunk.
func (st *store) adopt(b []byte) {
	st.add(chunk{b: b[:len(b):len(b)], lent: true})
}

// note gives a slot a few bytes of text.
func (st *store) note(s *slot, text string) {
	k := len(st.chunks)
	if k == 0 || cap(st.chunks[k-1].b)-len(st.chunks[k-1].b) < len(text) {
		st.adopt([]byte(text))
		st.put(s, st.last(), 0, len(text))
		return
	}
	c := &st.chunks[k-1]
	c.b = append(c.b, text...)
	st.put(s, st.last(), len(c.b)-len(text), len(text))
}

// lend returns chunks from and to and those between, and never writes to what it
// lent again.
func (st *store) lend(from, to uint32) [][]byte {
	out := make([][]byte, to-from+1)
	for i := range out {
		c := st.chunk(from + uint32(i))
		c.lent = true
		out[i] = c.b[:len(c.b):len(c.b)]
	}
	return out
}

// free gives the bytes of a slot up. The log still holds so many.
func (st *store) free(s *slot, held int) {
	c := st.chunk(s.chunk)
	if c.live--; c.live > 0 {
		return
	}
	if !c.lent {
		st.spare = c.b[:0]
	}
	if cap(st.spare) > max(minChunk, held) {
		st.spare = nil
	}
	c.b = nil
	for len(st.chunks) > 0 && st.chunks[0].b == nil {
		st.chunks = st.chunks[1:]
		st.first++
	}
	if len(st.chunks) == 0 {
		st.chunks = nil
	}
}
