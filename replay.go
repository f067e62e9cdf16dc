package gvstream

import (
	"slices"
	"sort"
	"time"

	"github.com/vibetools/gvstream/internal/jsontext"
)

// A log is one session's numbered events in one epoch, as far back as they are
// kept. Everything that reads a session is a number that points into it: what is
// not acknowledged, what is sent, a viewer, a replay.
//
//	evicted |  replayable (acked)  |   pending (unacked)   |
//	1 ...... first ............... acked+1 ... sent ...... head
//
// Its slots tile first to head. Only this file touches the ring and the store.
type log struct {
	ring   ring
	store  *store // nil before the first event
	low    uint64 // the number before the first slot's; counts only if there is one
	head   uint64 // last number in use; 0: nothing yet
	events int    // events held; gaps count as nothing
	bytes  int    // of their JSON
}

// first is the lowest number the log holds, or head+1.
func (l *log) first() uint64 {
	if l.ring.n == 0 {
		return l.head + 1
	}
	return l.low + 1
}

// empty reports whether the log holds nothing, not even a gap.
func (l *log) empty() bool { return l.ring.n == 0 }

// from is the first number of slot i.
func (l *log) from(i int) uint64 {
	if i == 0 {
		return l.low + 1
	}
	return l.ring.at(i-1).to + 1
}

// compact reports whether the data of an event is JSON as we write it.
func (l *log) compact(s *slot) bool {
	if s.data == 0 || s.kind&kindMask == isBytes { // nothing, or our own encoding
		return true
	}
	spaces, err := jsontext.Check(s.value())
	return err == nil && spaces == 0
}

// publish numbers a draft and writes its JSON, the only time that is done (rule 1).
// It returns the bytes of it.
func (l *log) publish(d *preparedEvent) int {
	if l.store == nil { // most sessions of many are empty
		l.store = new(store)
	}
	c := l.store.room(d.size()+1, l.bytes)
	b, data := d.appendTo(c.b[:c.used], l.head+1)
	e := l.next()
	d.note(e, l.head+1, data)
	l.store.put(e, c, len(b)-c.used)
	l.count(e)
	return int(e.size)
}

// next is a free slot behind the last.
func (l *log) next() *slot {
	if l.ring.n == 0 {
		l.low = l.head
	}
	return l.ring.add()
}

// count takes a slot for the last.
func (l *log) count(e *slot) {
	l.head = e.to
	if !e.gap() {
		l.events++
		l.bytes += int(e.size)
	}
}

// push appends a slot that has its bytes.
func (l *log) push(s slot) {
	*l.next() = s
	l.count(&s)
}

// gapSlot makes the slot of a gap.
func gapSlot(to uint64, reason Reason) slot {
	c := reasons[reason]
	if c == nil {
		c = &chunk{b: []byte(reason)}
	}
	return slot{to: to, chunk: c, size: uint32(len(reason))}
}

// reasons are the bytes of the reasons that this version knows.
var reasons = func() map[Reason]*chunk {
	m := make(map[Reason]*chunk)
	for _, r := range []Reason{ReasonDropped, ReasonEvicted, ReasonRejected, ReasonUnavailable} {
		m[r] = &chunk{b: []byte(r)}
	}
	return m
}()

// reason is that of a gap.
func (s *slot) reason() Reason { return Reason(s.bytes()) }

// lost appends a gap from head+1 on. It merges with a gap before it that has the
// same reason.
func (l *log) lost(to uint64, reason Reason) {
	if n := l.ring.n; n > 0 && l.ring.at(n-1).gap() && l.ring.at(n-1).reason() == reason {
		l.ring.at(n-1).to, l.head = to, to
		return
	}
	l.push(gapSlot(to, reason))
}

// declare says that what is missing between after and first is lost.
func (l *log) declare(after uint64, reason Reason) {
	if first := l.first(); after+1 < first {
		l.ring.pushFront(gapSlot(first-1, reason))
		l.low = after
		l.merge(0)
	}
}

// evict drops the oldest slot and returns the bytes that it frees.
func (l *log) evict() int {
	s := l.ring.at(0)
	n := l.free(s)
	l.low = s.to
	l.ring.popFront()
	return n
}

// free gives up what a slot holds, and returns the bytes that are free by it.
func (l *log) free(s *slot) int {
	n := 0
	if !s.gap() {
		n = int(s.size)
		l.events--
		l.bytes -= n
	}
	l.store.free(s.chunk, l.bytes)
	return n
}

// trim evicts from the front what is acknowledged and beyond the limits, and
// returns the bytes that it frees. A log that keeps no events keeps no gaps, and
// one that does keeps no more gaps than can stand between them.
func (l *log) trim(acked uint64, maxEvents, maxBytes int) int {
	freed := 0
	for l.ring.n > 0 && (l.events > maxEvents || l.bytes > maxBytes || l.ring.n/2 > maxEvents || maxEvents == 0) && l.ring.at(0).to <= acked {
		freed += l.evict()
	}
	if freed > 0 {
		l.tidy()
	}
	return freed
}

// tidy gives memory back when the log holds much more of it than its events need:
// the chunks that it wrote, most of whose events are lost, or the front one, which
// may be a peer's. What it copies is less than what it has given up since the last
// time.
func (l *log) tidy() {
	most, held := 4*(l.bytes+minChunk), 0
	if l.store != nil {
		held = l.store.size
	}
	if l.ring.n > 0 {
		held = max(held, len(l.ring.at(0).chunk.b))
	}
	if held <= most {
		return
	}
	l.store = new(store)
	for i := range l.ring.n {
		if s := l.ring.at(i); !s.gap() {
			l.keep(s)
		}
	}
}

// keep copies an event's bytes into a chunk of the log's own.
func (l *log) keep(s *slot) {
	if l.store == nil {
		l.store = new(store)
	}
	c := l.store.room(int(s.size)+1, l.bytes)
	l.store.put(s, c, copy(c.b[c.used:], s.bytes()))
}

// find returns the index of the slot that covers seq, which is between first and
// head.
func (l *log) find(seq uint64) int {
	// Without gaps the index is the distance; gaps only make it smaller.
	far := int(min(seq-l.first(), uint64(l.ring.n-1)))
	if l.from(far) <= seq {
		return far
	}
	return sort.Search(far, func(i int) bool { return l.ring.at(i).to >= seq })
}

// tally counts the events after a number that the log holds, up to another, and their
// bytes.
func (l *log) tally(after, upTo uint64) (events, bytes int) {
	for i := l.find(after + 1); i < l.ring.n; i++ {
		s := l.ring.at(i)
		if s.to > upTo {
			break
		}
		if !s.gap() {
			events++
			bytes += int(s.size)
		}
	}
	return events, bytes
}

// unreadable finds the first event after a number that the log holds, up to another,
// whose data is not JSON as we write it.
func (l *log) unreadable(after, upTo uint64) (seq uint64, found bool) {
	for i := l.find(after + 1); i < l.ring.n; i++ {
		s := l.ring.at(i)
		if s.to > upTo {
			break
		}
		if !l.compact(s) {
			return s.to, true
		}
	}
	return 0, false
}

// loseOldest turns the oldest event after a number into a gap, and returns the bytes
// it frees. There is such an event.
func (l *log) loseOldest(after uint64, reason Reason) int {
	i := l.find(after + 1)
	for l.ring.at(i).gap() {
		i++
	}
	return l.lose(i, reason)
}

// loseSeq turns the event of a number that the log holds into a gap, and returns the
// bytes it frees. It reports false if that is a gap already.
func (l *log) loseSeq(seq uint64, reason Reason) (bytes int, ok bool) {
	i := l.find(seq)
	if l.ring.at(i).gap() {
		return 0, false
	}
	return l.lose(i, reason), true
}

// lose turns the event at index i into a gap and returns the bytes it frees.
func (l *log) lose(i int, reason Reason) int {
	s := l.ring.at(i)
	n := l.free(s)
	*s = gapSlot(s.to, reason)
	l.merge(i)
	l.tidy()
	return n
}

// maxGaps is how many gaps a log keeps apart for their reasons, beside those that
// stand between its events.
const maxGaps = 1024

// merge joins the gap at index i with its neighbours.
func (l *log) merge(i int) {
	if i+1 < l.ring.n && l.joins(i, i+1) {
		l.ring.at(i).to = l.ring.at(i + 1).to
		l.ring.remove(i + 1)
	}
	if i > 0 && l.joins(i-1, i) {
		l.ring.at(i - 1).to = l.ring.at(i).to
		l.ring.remove(i)
	}
}

// joins reports whether two neighbours are to be one gap: they have the same reason,
// or there are too many.
func (l *log) joins(i, j int) bool {
	a, b := l.ring.at(i), l.ring.at(j)
	return a.gap() && b.gap() && (a.reason() == b.reason() || l.ring.n > 2*l.events+maxGaps)
}

// accept appends a page that begins behind head, and calls trim now and then, so that
// new events find the chunks of old ones. The log's slots have the page's bytes, which
// nobody writes to any more; those in a frame are copied.
func (l *log) accept(p *page, trim func()) {
	const every = 32
	gaps := p.gaps
	for i, s := range p.slots {
		for ; len(gaps) > 0 && gaps[0].To < s.to; gaps = gaps[1:] {
			l.lost(gaps[0].To, gaps[0].Reason)
		}
		if p.held == heldByFrame {
			l.keep(&s)
		}
		if l.push(s); i%every == every-1 {
			trim()
		}
	}
	for _, g := range gaps {
		l.lost(g.To, g.Reason)
	}
	trim()
}

// oldest is the time of the oldest event, if it is acknowledged.
func (l *log) oldest(acked uint64) (time.Time, bool) {
	for i := range l.ring.n {
		if s := l.ring.at(i); s.to > acked {
			break
		} else if !s.gap() {
			at, _ := s.head(new(internTable))
			return at, true
		}
	}
	return time.Time{}, false
}

// read makes a page of a log. What is older than the log, it declares as evicted;
// gaps are clipped to the span (rule 12). The first event is taken whatever its
// size.
func (l *log) read(s span) page {
	p := page{first: s.after + 1, last: s.after}
	until := min(s.until, l.head)
	if first := l.first(); p.first < first && p.first <= until {
		p.addGap(min(first-1, until), ReasonEvicted)
	}
	if p.last >= until {
		return p
	}
	start := l.find(p.last + 1)
	n, events, bytes := l.measure(start, until, p.bytes, s)
	if events > 0 {
		p.memory = pageMemories.Get().(*pageMemory)
		p.slots = slices.Grow(p.memory.slots[:0], events)
	}
	if n == events && n > 0 { // in one piece
		p.slots = l.ring.appendTo(p.slots, start, n)
		p.last, p.bytes = p.slots[n-1].to, bytes
	} else {
		l.readEach(&p, start, n, until)
	}
	switch {
	case events == 0:
		return p
	case p.bytes <= s.copied:
		p.memory.chunk.b = slices.Grow(p.memory.chunk.b[:0], p.bytes)
		p.copyTo(&p.memory.chunk)
		p.held = heldByPool
	default:
		l.lend(&p)
	}
	p.memory.slots = p.slots
	return p
}

// readEach adds n slots from index start on to a page, the last one up to a number.
func (l *log) readEach(p *page, start, n int, until uint64) {
	for i := start; i < start+n; i++ {
		if e := l.ring.at(i); e.gap() {
			p.addGap(min(e.to, until), e.reason())
		} else {
			p.addEvent(*e)
		}
	}
}

// lend has a page's bytes stay as they are.
func (l *log) lend(p *page) {
	var before *chunk
	for i := range p.slots {
		if c := p.slots[i].chunk; c != before {
			l.store.lend(c)
			before = c
		}
	}
	p.held = heldByLog
}

// measure counts the slots from index start that fit the span, and the events
// among them. used is what the page holds already, and then also what it will hold.
// The span's end, until, is at most head, so that the loop ends before the ring does.
func (l *log) measure(start int, until uint64, used int, s span) (n, events, bytes int) {
	gaps := 0
	for from := l.from(start); from <= until && gaps < maxBatchGaps-1; n++ {
		e := l.ring.at(start + n)
		size := gapBytes
		if !e.gap() {
			size = int(e.size) + 1
		}
		switch {
		case events > 0 && used+size > s.bytes:
			return n, events, used
		case e.gap():
			gaps++
		case e.to > s.eventsUntil || events == s.events:
			return n, events, used
		default:
			events++
		}
		used += size
		from = e.to + 1
	}
	return n, events, used
}

// A span bounds a page: numbers from after+1 to until, of which events may go up
// to eventsUntil, and how much at the most. A page of no more than so many bytes is
// copied, which leaves the log's chunks to be written again; more is lent.
type span struct {
	after, until, eventsUntil uint64
	events, bytes             int
	copied                    int
}
