package gvstream

import (
	"math"
	"slices"
	"sort"
	"time"
)

// This file is the log, the one place where events are kept, for agents and hubs alike: an
// agent's session publishes into one, a hub's session accepts into one, and both read
// pages from it. The ring and the chunks below it are in buffer.go, and only this file
// touches them. A log has no lock: that of the session protects it. Pages that were read
// from it are used without that lock, after it is free, and may outlive the log.

// A log is one session's numbered events in one epoch, as far back as they are
// kept. Everything that reads a session is a number that points into it: what is
// not acknowledged, what is sent, a viewer, a replay.
//
//	evicted |  replayable (acked)  |   pending (unacked)   |
//	1 ...... first ............... acked+1 ... sent ...... head
//
// A number in it is an event or in a gap, and goes from one to the other, never back:
//
//	publish, accept    an event, as head+1
//	lost, declare      a gap, after head or before first
//	lose…              the event becomes a gap
//	evict, trim        the number is below first: readers get it in a gap ReasonEvicted
//
// Its slots tile first to head: each begins where the one before it ends, and neighbours
// that are gaps of one reason are one slot. At an agent acked is at least first-1; a hub
// counts everything as acknowledged (S4 of PROTOCOL.md).
//
// A log begins as the zero value, or with low and head where a store says, and is dropped
// whole with its epoch. In between it holds at most what trim leaves it.
type log struct {
	ring   ring
	store  *store // of the chunks that this log writes; nil before the first
	low    uint64 // the number before the first slot's; counts only if there is one
	head   uint64 // last number in use; 0: nothing yet
	events int    // events held; gaps count as nothing
	bytes  int    // of their JSON
}

// first is the lowest number that the log holds, as an event or in a gap, or head+1.
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

// publish gives a prepared event the number head+1 and writes its JSON into the log's last
// chunk, both in one step (rule 1) and the only time that it is encoded. It returns the
// length of the JSON. The caller has checked that there is room and a number.
func (l *log) publish(d *preparedEvent) int {
	if l.store == nil { // most sessions of many are empty
		l.store = new(store)
	}
	c := l.store.room(d.size()+1, l.bytes)
	b, data := d.appendTo(c.b[:c.used], l.head+1)
	e := l.addSlot()
	d.note(e, l.head+1, data)
	l.store.put(e, c, len(b)-c.used)
	l.noteAdded(e)
	return int(e.size)
}

// addSlot adds a free slot after the last. In an empty log it begins at head+1.
func (l *log) addSlot() *slot {
	if l.ring.n == 0 {
		l.low = l.head
	}
	return l.ring.add()
}

// noteAdded makes the slot that was filled in the last of the log.
func (l *log) noteAdded(e *slot) {
	l.head = e.to
	if !e.gap() {
		l.events++
		l.bytes += int(e.size)
	}
}

// push appends a slot that has its bytes already.
func (l *log) push(s slot) {
	*l.addSlot() = s
	l.noteAdded(&s)
}

// gapSlot makes the slot of a gap up to a number. Its chunk has the reason and no store;
// known reasons share theirs, so that a gap costs a slot and no more.
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

// reason is the reason of a gap.
func (s *slot) reason() Reason { return Reason(s.bytes()) }

// appendGap appends a gap from head+1 to a number. It merges with a gap before it that has the
// same reason.
func (l *log) appendGap(to uint64, reason Reason) {
	if n := l.ring.n; n > 0 && l.ring.at(n-1).gap() && l.ring.at(n-1).reason() == reason {
		l.ring.at(n-1).to, l.head = to, to
		return
	}
	l.push(gapSlot(to, reason))
}

// declare puts a gap in front, of what is missing between a number and first. It is for an
// agent whose hub has gone back to below its log: acked goes back to that number, and what
// is pending again must be sent, if only as a gap (rule 6).
func (l *log) declare(after uint64, reason Reason) {
	if first := l.first(); after+1 < first {
		l.ring.pushFront(gapSlot(first-1, reason))
		l.low = after
		l.merge(0)
	}
}

// evict drops the oldest slot, event or gap, and returns the bytes that this frees. There
// must be one.
func (l *log) evict() int {
	s := l.ring.at(0)
	n := l.free(s)
	l.low = s.to
	l.ring.popFront()
	return n
}

// free gives up a slot's bytes and takes an event out of the counts. It returns the bytes
// of the event, or 0 for a gap.
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

// trim evicts from the front what is acknowledged and beyond the limits, and returns the
// bytes that this frees. It never evicts what is not acknowledged, whatever the limits: that
// is makeRoomLocked's to prevent, before there is too much (rule 10). A log that keeps no
// events keeps no gaps, and one that does keeps about as many gaps as can lie between the
// events, or a session that loses everything would grow by gaps alone.
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

// tidy gives memory back when the log holds over four times what its events need: because
// most events in the chunks that it wrote are gone, or because its first slot is the rest of
// a peer's large page. It copies all events into chunks of a new store; the chunks before
// stay with the pages that they were lent to. What it copies is less than what the log has
// given up since the last time, so that on average it costs less than writing the events.
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

// keep copies an event's bytes into a chunk of the log's own, and points the slot there.
func (l *log) keep(s *slot) {
	if l.store == nil {
		l.store = new(store)
	}
	c := l.store.room(int(s.size)+1, l.bytes)
	l.store.put(s, c, copy(c.b[c.used:], s.bytes()))
}

// find returns the index of the slot that covers seq, which is from first to head.
func (l *log) find(seq uint64) int {
	// Without gaps the index is the distance; gaps only make it smaller.
	far := int(min(seq-l.first(), uint64(l.ring.n-1)))
	if l.from(far) <= seq {
		return far
	}
	return sort.Search(far, func(i int) bool { return l.ring.at(i).to >= seq })
}

// tally counts the events after one number and up to another, and their bytes. after is at
// least first-1.
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

// unreadable finds the first event after one number and up to another whose data is not
// JSON without white space: what a hub may have called malformed (rule 11).
func (l *log) unreadable(after, upTo uint64) (seq uint64, found bool) {
	for i := l.find(after + 1); i < l.ring.n; i++ {
		s := l.ring.at(i)
		if s.to > upTo {
			break
		}
		if !s.compact() {
			return s.to, true
		}
	}
	return 0, false
}

// nextEvent returns the first number of a range whose slot is an event.
func (l *log) nextEvent(from, to uint64) (seq uint64, found bool) {
	if from > min(to, l.head) || l.ring.n == 0 {
		return 0, false
	}
	for i := l.find(from); i < l.ring.n; i++ {
		if s := l.ring.at(i); s.to > to {
			break
		} else if !s.gap() {
			return s.to, true
		}
	}
	return 0, false
}

// loseOldest turns the oldest event after a number into a gap, and returns the bytes that
// this frees. There must be such an event.
func (l *log) loseOldest(after uint64, reason Reason) int {
	i := l.find(after + 1)
	for l.ring.at(i).gap() {
		i++
	}
	return l.loseAt(i, reason)
}

// loseSeq turns the event under a number that the log holds into a gap, and returns the
// bytes that this frees. It reports false if the number is in a gap already.
func (l *log) loseSeq(seq uint64, reason Reason) (bytes int, ok bool) {
	i := l.find(seq)
	if l.ring.at(i).gap() {
		return 0, false
	}
	return l.loseAt(i, reason), true
}

// loseAt turns the event at index i into a gap and returns the bytes that this frees. Pages
// that were read before still have the event: the receiver may get either, and an ack
// settles which (rule 10).
func (l *log) loseAt(i int, reason Reason) int {
	s := l.ring.at(i)
	n := l.free(s)
	*s = gapSlot(s.to, reason)
	l.merge(i)
	l.tidy()
	return n
}

// maxGaps is how many gaps a log keeps apart for their reasons alone, besides those that lie
// between its events. Beyond it, neighbours are merged whatever their reasons: a hub that
// refuses events for ever and acknowledges none must not fill the agent's memory (PROTOCOL.md,
// notes on writing an agent).
const maxGaps = 1024

// merge joins the gap at index i with its neighbours, where they are gaps that should be
// one. The merged gap keeps the reason of the first.
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
// or there are too many gaps.
func (l *log) joins(i, j int) bool {
	a, b := l.ring.at(i), l.ring.at(j)
	return a.gap() && b.gap() && (a.reason() == b.reason() || l.ring.n > 2*l.events+maxGaps)
}

// accept appends a page that begins at head+1 (rule 7), events and gaps in the order of their
// numbers. The log's slots refer to the bytes of a heldOwn page, which nobody writes to any
// more, and are not lent: they have no store. Bytes in a frame are copied, since the frame
// is overwritten once it is handled. trim is called now and then and at the end, so that a
// large page evicts as it goes, and its later events are written into the chunks of old ones
// instead of new memory.
func (l *log) accept(p *page, trim func()) {
	const every = 32
	gaps := p.gaps
	for i, s := range p.slots {
		for ; len(gaps) > 0 && gaps[0].To < s.to; gaps = gaps[1:] {
			l.appendGap(gaps[0].To, gaps[0].Reason)
		}
		if p.held == heldByFrame {
			l.keep(&s)
		}
		if l.push(s); i%every == every-1 {
			trim()
		}
	}
	for _, g := range gaps {
		l.appendGap(g.To, g.Reason)
	}
	trim()
}

// oldest returns the time of the oldest event, if that is acknowledged: what a budget shared
// by many sessions evicts by.
func (l *log) oldest(acked uint64) (time.Time, bool) {
	for i := range l.ring.n {
		if s := l.ring.at(i); s.to > acked {
			break
		} else if !s.gap() {
			at, _ := s.timeAndType(new(internTable))
			return at, true
		}
	}
	return time.Time{}, false
}

// read makes the page that a span asks for. What is older than the log is declared as
// evicted, and gaps are clipped to the span (rule 12). If there is nothing after s.after to
// give, the page is empty: first is s.after+1 and last is s.after.
//
// A page of at most s.copied bytes gets a copy of them (heldByPool), and a larger one is lent
// the log's (heldByLog). A copy costs time under the lock; a loan costs the log's chunk,
// which it can't fill again. So what is read once, soon and by one reader, is copied, and
// what many read, or what is large, is lent. The caller ends the page.
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
	if n == events && n > 0 { // no gaps: the slots are copied in one piece
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

// readEach adds n slots to a page, from index start on. A gap that reaches beyond until is
// cut there.
func (l *log) readEach(p *page, start, n int, until uint64) {
	for i := start; i < start+n; i++ {
		if e := l.ring.at(i); e.gap() {
			p.addGap(min(e.to, until), e.reason())
		} else {
			p.addEvent(*e)
		}
	}
}

// lend lends a page the chunks of its slots, so that their bytes stay as they are.
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

// measure counts the slots from index start on that fit the span, and the events among them,
// so that the page's memory is right from the start. used is the bytes that the page has
// already; the result is with those that it will have. until is at most head, so that the
// loop ends before the ring does. One gap fewer than a batch may have leaves room for the
// one that read may have declared.
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
		case events == s.events || events == 0 && int(e.size) > s.first:
			return n, events, used
		default:
			events++
		}
		used += size
		from = e.to + 1
	}
	return n, events, used
}

// A span says what a page may hold. It ends at the first of its bounds that is met. The first
// event has a bound of its own, since one that is larger than a page goes alone.
type span struct {
	after, until  uint64 // numbers from after+1 to until
	events, bytes int    // limits on the events, and on bytes as page.bytes counts them
	first         int    // the most bytes of the first event's JSON
	copied        int    // a page up to this many bytes is copied; 0: it is lent
}

// anySize bounds no event.
const anySize = math.MaxInt
