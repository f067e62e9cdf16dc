package gvstream

import "time"

// An entry is one place in a log: an event, or a gap.
type entry struct {
	from, to uint64 // the numbers it covers, both inclusive; equal for an event
	json     []byte // the event's JSON, made once; nil for a gap
	typ      string // the event's type; the gap's reason
	sec      int64  // the event's time
	nsec     int32
	lo, hi   uint32 // where the data is inside json; equal if there is none
	kind     kind
}

type kind uint8

const (
	isGap    kind = iota
	isJSON                 // an event whose data is JSON, or that has none
	isBytes                // an event whose data is bytes, in base64
	isEnd    kind = 1 << 6 // added to the kind of the last event
	isTimed  kind = 1 << 7 // added to the kind of an event that has a time
	kindMask kind = isEnd - 1
)

func (e *entry) gap() bool      { return e.kind == isGap }
func (e *entry) reason() Reason { return Reason(e.typ) }
func (e *entry) end() bool      { return e.kind&isEnd != 0 }

func (e *entry) time() time.Time {
	if e.kind&isTimed == 0 {
		return time.Time{}
	}
	return time.Unix(e.sec, int64(e.nsec)).UTC()
}

func gapEntry(from, to uint64, reason Reason) entry {
	return entry{from: from, to: to, typ: string(reason)}
}

// A ring is a double-ended queue of entries that grows as it must and gives its
// memory back when it is empty.
type ring struct {
	slots []entry // a power of two of them, or none
	head  int     // the slot of the first entry
	n     int
}

const keepSlots = 16 // an empty ring keeps no more

func (r *ring) at(i int) *entry { return &r.slots[(r.head+i)&(len(r.slots)-1)] }

func (r *ring) pushBack(e entry) {
	r.grow()
	r.n++
	*r.at(r.n - 1) = e
}

func (r *ring) pushFront(e entry) {
	r.grow()
	r.head = (r.head - 1) & (len(r.slots) - 1)
	r.n++
	*r.at(0) = e
}

func (r *ring) grow() {
	if r.n < len(r.slots) {
		return
	}
	slots := make([]entry, max(4, 2*len(r.slots)))
	n := copy(slots, r.slots[r.head:])
	copy(slots[n:], r.slots[:r.head])
	r.slots, r.head = slots, 0
}

func (r *ring) popFront() {
	*r.at(0) = entry{} // its bytes are free from here on
	r.head = (r.head + 1) & (len(r.slots) - 1)
	r.n--
	if r.n == 0 && len(r.slots) > keepSlots {
		*r = ring{}
	}
}

// remove takes entry i out. It moves the shorter side.
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
	*r.at(r.n - 1) = entry{}
	r.n--
}
