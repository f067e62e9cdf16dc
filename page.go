package gvstream

import (
	"cmp"
	"slices"
	"sync"
)

// This file is the form in which events move between a log, a batch and a frame. An
// event's JSON is written once, when it is published; from then on a page refers to it or
// copies it whole, so that a resend, a replay or a relay encodes nothing again.
//
// Logs make pages (log.read, under the lock of the log's session), and so does the decoder.
// Batches carry them; a hub's log takes them in. A page has no lock: it belongs to one
// goroutine at a time, except for a shared one, of which only readers remain. Its bytes may
// belong to others: the table at held says to whom, and for how long they may be read.

// A pageMemory is the memory that log.read makes a page of: the slots, and the bytes if
// they were copied. It is in the pool or with exactly one page. page.release returns it to the
// pool for the next page to overwrite; a page that is never ended leaves it to the garbage
// collector, which is always safe.
type pageMemory struct {
	slots []slot
	chunk chunk // not used unless the page is heldByPool
}

// release returns m, if there is one, to the pool. Bytes beyond those of a batch are left
// to the garbage collector, since a pool must not pin the largest page that ever was.
func (m *pageMemory) release() {
	if m == nil || len(m.chunk.b) > maxBatchBytes {
		return
	}
	clear(m.slots) // in the pool they would keep the log's chunks alive
	pageMemories.Put(m)
}

var pageMemories = sync.Pool{New: func() any { return new(pageMemory) }}

// A page is a piece of a log, or what may become one: events and gaps that tile first to
// last (rule 7). Its life:
//
//  1. It is made: by log.read, by the decoder (slots only, until load adds the rest), by
//     load of a batch's Events, or as a gapPage.
//  2. Its maker may narrow it (clip, cut, lose), and move its bytes (pack, detach).
//  3. It goes by value into a batch, or into a log (log.accept). The value left behind is
//     not used again, unless the page is shared: then it is not changed either.
//  4. It is encoded (appendTo) or decoded (open, copies, items), without any lock, and ended.
type page struct {
	slots       []slot // of the events alone, in order; gaps have none here
	held        held   // who owns the slots and their bytes
	first, last uint64 // last = first-1 if the page is empty
	gaps        []Gap  // in order; in a page of a batch, perhaps the payload's own list
	bytes       int    // of the events' JSON with a comma each, and gapBytes a gap

	// How many use the page, and what has to be given back. At most one of memory and of is set:
	// a memory is overwritten after end, so it must not have further readers.
	memory *pageMemory // of a page that was read for one reader; nil: nothing to give back
	of     *log        // of a shared page: the log that it was read from, for others to find it
	fact   *fact       // of a shared page: what it says, for all its readers; nil: nobody asked yet

	unchecked bool // at an agent: the events' data was published unread (StreamerConfig.TrustData)
	private   bool // at a hub: a gap that was declared for one viewer, and is true for no other
}

// appendTo appends the events' JSON objects, separated by commas. Events that lie next to
// each other in a chunk have the comma between them already, whatever made the chunk (a
// store, encode, copyTo, or a peer's frame), so each such run is one copy: events that were
// published in a row cost one. There must be events.
func (p *page) appendTo(dst []byte) []byte {
	for i := 0; i < len(p.slots); {
		s := p.slots[i]
		end := s.off + s.size
		for i++; i < len(p.slots) && p.slots[i].chunk == s.chunk && p.slots[i].off == end+1; i++ {
			end += 1 + p.slots[i].size
		}
		dst = append(append(dst, s.chunk.b[s.off:end]...), ',')
	}
	return dst[:len(dst)-1]
}

// jsonSize is the number of bytes that appendTo needs: what it appends, and one for the
// last comma, which it takes off again.
func (p *page) jsonSize() int {
	size := 0
	for i := range p.slots {
		size += int(p.slots[i].size) + 1
	}
	return size
}

// open returns the page's events for a caller to keep but not to change, and ends the page.
// Events of bytes that stay (heldOwn, heldByLog) refer to those bytes; of bytes that are
// about to be overwritten (heldByPool, heldByFrame) they get a copy.
func (p *page) open() (events []Event) {
	if p.held == heldByPool || p.held == heldByFrame {
		events = p.ownEvents()
	} else {
		events = decodeEvents(p.slots, nil)
	}
	p.release()
	return events
}

// release ends the page: its memory may be another page's from here on, so nothing that was
// made of its slots, or of pooled bytes, may be read any more. Only one of the values that
// a page was copied to may be ended, or two pages would share a memory. Ending one that has
// no memory only drops its slots.
func (p *page) release() {
	p.memory.release()
	p.slots, p.memory = nil, nil
}

// ownEvents returns the page's events in memory of their own, all their data in one piece.
// The caller may keep and change them; the page stays as it is.
func (p *page) ownEvents() []Event {
	if len(p.slots) == 0 {
		return nil
	}
	return decodeEvents(p.slots, &chunk{b: p.appendTo(make([]byte, 0, p.jsonSize()))})
}

// encode makes the slots of events that came as a payload's Events: it checks and encodes
// each of them into one chunk of the page's own (heldOwn). If one cannot be encoded it
// returns an *eventError that names it, and the page is unchanged. All events are checked
// before any is encoded, so that the chunk is allocated once, at its full size, and no
// slot ever points into memory that append has moved.
func (p *page) encode(events []Event) error {
	size := 0
	prepared := make([]preparedEvent, len(events))
	for i := range events {
		prepared[i].ev = &events[i]
		if err := prepared[i].check(false); err != nil {
			return &eventError{events[i].Seq, err}
		}
		size += prepared[i].size() + 1
	}
	if size > maxFrame {
		return &eventError{events[0].Seq, ErrTooLarge}
	}
	p.slots, p.held = make([]slot, len(events)), heldOwn
	out, c := make([]byte, 0, size), new(chunk)
	for i := range prepared {
		d, s, off := &prepared[i], &p.slots[i], len(out)
		var data int
		out, data = d.appendTo(out, events[i].Seq)
		d.note(s, events[i].Seq, data)
		s.chunk, s.off, s.size = c, uint32(off), uint32(len(out)-off)
		out = append(out, ',')
	}
	c.b = out
	return nil
}

// detach copies the page's slots and bytes to memory of its own that just fits them: heldOwn
// from any other state. What it leaves is not given back here, and need not be: pages that
// are detached came from a peer and have no memory.
func (p *page) detach() {
	if len(p.slots) > 0 {
		p.slots = slices.Clone(p.slots)
		p.copyTo(&chunk{b: make([]byte, 0, p.jsonSize())})
	}
	p.held = heldOwn
}

// copyTo copies the events' JSON to a chunk, whose bytes it overwrites, and points the slots
// there. The slots must be the page's alone.
func (p *page) copyTo(c *chunk) {
	c.b = p.appendTo(c.b[:0])
	off := uint32(0)
	for i := range p.slots {
		s := &p.slots[i]
		s.chunk, s.off = c, off
		off += s.size + 1
	}
}

// addEvent appends an event to a page that is being read. It is the next number.
func (p *page) addEvent(s slot) {
	p.last = s.to
	p.bytes += int(s.size) + 1
	p.slots = append(p.slots, s)
}

// addGap appends a gap from the page's next number on.
func (p *page) addGap(to uint64, reason Reason) {
	p.gaps = append(p.gaps, Gap{p.last + 1, to, reason})
	p.last = to
	p.bytes += gapBytes
}

// eventBytes is the bytes of the events' JSON alone, as windows count them.
func (p *page) eventBytes() int { return p.bytes - len(p.gaps)*gapBytes - len(p.slots) }

// load completes the page of a batch that arrived and passed its check. Events that the
// decoder left in the frame are in the slots already; those of a payload are checked and
// encoded here. Callers hold no lock, since that may take long. An error is an *eventError;
// the batch is then to be refused by event_rejected with its number (rule 11).
func (p *page) load(first, last uint64, events []Event, gaps []Gap) error {
	if len(events) > 0 {
		if err := p.encode(events); err != nil {
			return err
		}
	}
	if p.held != heldByFrame { // they are the caller's of Handle, who may change them
		gaps = slices.Clone(gaps)
	}
	p.first, p.last, p.gaps = first, last, gaps
	p.bytes = p.jsonSize() + len(gaps)*gapBytes
	return nil
}

// copies returns the events, from the slots or else those given, and the gaps, all in memory
// of their own for a reader to keep and to change.
func (p *page) copies(events []Event, gaps []Gap) ([]Event, []Gap) {
	if len(p.slots) > 0 {
		events = p.ownEvents()
	} else {
		events = cloneEvents(events)
	}
	return events, slices.Clone(gaps)
}

// clip drops everything up to and including a number: what the receiver has already
// (rule 7). A gap that it has in part counts for the other part; a list of gaps that may be
// a caller's is copied, not changed.
func (p *page) clip(after uint64) {
	for len(p.slots) > 0 && p.slots[0].to <= after {
		p.bytes -= int(p.slots[0].size) + 1
		p.slots = p.slots[1:]
	}
	for len(p.gaps) > 0 && p.gaps[0].To <= after {
		p.bytes -= gapBytes
		p.gaps = p.gaps[1:]
	}
	if len(p.gaps) > 0 && p.gaps[0].From <= after {
		p.gaps = append([]Gap{{after + 1, p.gaps[0].To, p.gaps[0].Reason}}, p.gaps[1:]...)
	}
	p.first = max(p.first, after+1)
	p.last = max(p.last, after)
}

// cut drops everything after a number, which no gap crosses.
func (p *page) cut(last uint64) {
	for n := len(p.slots); n > 0 && p.slots[n-1].to > last; n-- {
		p.bytes -= int(p.slots[n-1].size) + 1
		p.slots = p.slots[:n-1]
	}
	for n := len(p.gaps); n > 0 && p.gaps[n-1].To > last; n-- {
		p.bytes -= gapBytes
		p.gaps = p.gaps[:n-1]
	}
	p.last = min(p.last, last)
}

// pack moves the events' bytes before a hub's log takes them in, where the log would
// otherwise hold too much memory or too many chunks:
//
//   - heldOwn: the log would refer to the page's chunk, and so keep all of it alive. If
//     more than half of it belongs to events that were clipped or cut off, the rest gets
//     memory of its own; otherwise a peer could fill a hub with a few events of many batches.
//   - heldByFrame: the log copies the bytes into its own chunks (log.accept). Only if the
//     events are so large that each would get a chunk of its own (largeEntry) do they move
//     into one chunk together here.
func (p *page) pack() {
	bytes := p.bytes - len(p.gaps)*gapBytes
	switch {
	case len(p.slots) == 0:
	case p.held == heldByFrame && bytes > len(p.slots)*largeEntry,
		p.held == heldOwn && len(p.slots[0].chunk.b) > 2*bytes:
		p.detach()
	}
}

// firstLarger returns the index of the first event whose JSON has more bytes than that, or -1.
func (p *page) firstLarger(bytes int) int {
	return slices.IndexFunc(p.slots, func(s slot) bool { return int(s.size) > bytes })
}

// hasEnd reports whether the page's last event is its session's.
func (p *page) hasEnd() bool {
	n := len(p.slots)
	return n > 0 && p.slots[n-1].end()
}

// has reports whether the page has an event, not a gap, under that number.
func (p *page) has(seq uint64) bool {
	return slices.ContainsFunc(p.slots, func(s slot) bool { return s.to == seq })
}

// lose turns the event at index i into a gap. It changes copies of the lists, since the
// slots may be the decoder's and the gaps a caller's.
func (p *page) lose(i int, reason Reason) {
	seq := p.slots[i].to
	p.bytes += gapBytes - int(p.slots[i].size) - 1
	p.slots = slices.Delete(slices.Clone(p.slots), i, i+1)
	at, _ := slices.BinarySearchFunc(p.gaps, seq, func(g Gap, seq uint64) int { return cmp.Compare(g.From, seq) })
	p.gaps = slices.Insert(slices.Clone(p.gaps), at, Gap{seq, seq, reason})
}

// orNil is the page, or nil if it is empty.
func (p *page) orNil() *page {
	if p.last < p.first {
		return nil
	}
	return p
}

// fits reports whether the page has no more than a span with these limits asks for.
func (p *page) fits(events, bytes, first int) bool {
	n := len(p.slots)
	return n <= events && (p.eventBytes()+n <= bytes || n <= 1 && p.eventBytes() <= first)
}

// held says who owns a page's slots, and the bytes that they point to, and so how long each
// may be read. While a page may be read nobody writes to either; that is what lets it be
// encoded and sent without a lock.
//
//	state        slots                bytes                  slots valid    bytes valid
//	heldOwn      the page's           the page's chunk       for good       for good
//	heldByLog    its pageMemory's     the log's, lent        until end      for good
//	 …, shared   the page's           the log's, lent        for good       for good
//	heldByPool   its pageMemory's     its pageMemory's       until end      until end
//	heldByFrame  the decoder's        the peer's frame       until the decoder's release
//
// "For good" means that the memory is never written again: each reference keeps it alive,
// and the garbage collector takes it after the last one. A log never writes again to what a
// page was lent of a chunk (chunk.lent), not even once it has dropped those events.
//
// A page comes into a state in one of these ways:
//
//	heldOwn      made without events, as the zero value: there is nothing to own
//	             encode: of the Events of a batch, from Handle or a frame that is not plain
//	             detach: of a page from a peer; pack does it to save memory
//	heldByLog    log.read, of more bytes than the span lets it copy: replays at an agent,
//	             everything that a hub reads for viewers, a large event
//	 …, shared   hubSession.readLocked, of such a page if the session has several cursors: it
//	             takes the memory away from it, so that no reader's end gives it back
//	heldByPool   log.read, of few enough bytes to copy: what an agent sends. The log's chunk
//	             is not lent then, and can be filled again once it is acknowledged
//	heldByFrame  decoder.plainEvents, of events that are in the frame just as we write them
//
// It goes from heldByFrame, or from a larger chunk of its own, to heldOwn by detach. From
// any state end takes it to none: it has no slots then. A decoder's release ends a
// heldByFrame page as well, so that whatever keeps one longer has to detach it.
//
// A log that accepts a page (log.accept) refers to the bytes of a heldOwn one, which the
// page and the log then share, and copies those of a heldByFrame one. A hub accepts no
// others: its pages come from a peer.
type held uint8

const (
	heldOwn held = iota
	heldByLog
	heldByPool
	heldByFrame
)

// A payload's JSON stays within maxBatchBytes if its page stays within pageBytes: the
// overhead and gapBytes are upper bounds, so that nothing is encoded to be measured.
const (
	batchOverhead = 4 << 10 // an envelope with the longest ids, every byte escaped
	gapBytes      = 96      // one gap's JSON, with the greatest numbers and the longest reason
	pageBytes     = maxBatchBytes - batchOverhead
)

// gapPage makes a page of one gap that is declared for one viewer. Nobody has to end it.
func gapPage(from, to uint64, reason Reason) page {
	p := page{first: from, last: from - 1, private: true}
	p.addGap(to, reason)
	return p
}

// items returns copies of the page's events and gaps as a caller gets them, in the order of
// their numbers: what HubConfig.Commit is given, to keep and to change.
func (p *page) items(sessionID, epoch string) []Item {
	return interleave(sessionID, epoch, p.ownEvents(), slices.Clone(p.gaps))
}
