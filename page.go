package gvstream

import (
	"cmp"
	"slices"
	"sync"
)

// sharedEvents are the Events of all payloads that are made of one page, made for the
// first of them.
type sharedEvents struct {
	once   sync.Once
	events []Event
}

// A pageMemory is what a page of a log is made of, to be used again by another once
// that one is encoded. A page that nobody gives back is the garbage collector's.
type pageMemory struct {
	slots []slot
	chunk chunk
}

func (m *pageMemory) release() {
	if m == nil || len(m.chunk.b) > maxBatchBytes {
		return
	}
	clear(m.slots) // they hold the log's chunks
	pageMemories.Put(m)
}

var pageMemories = sync.Pool{New: func() any { return new(pageMemory) }}

// A page is a piece of a log, or what may become one: events and gaps that tile
// first to last. It can be encoded and sent without a lock.
type page struct {
	slots       []slot // of the events alone, in order; their JSON was made when they were published
	held        held
	first, last uint64 // last = first-1 if it is empty
	gaps        []Gap
	bytes       int // of the events' JSON, and what the gaps will take

	memory *pageMemory   // of the slots, and of the bytes if it holds them; nil: the garbage collector's
	shared *sharedEvents // of all payloads that are made of it; nil: it is read once
	of     *log          // that it was read from, if others share it

	request   string // the replay request it answers, or empty
	available uint64 // and what that answer said the agent holds
}

// appendTo appends the events' JSON objects, separated by commas. What lies in one
// piece is copied in one piece. There are events.
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

// jsonSize is the bytes that appendTo appends, and one.
func (p *page) jsonSize() int {
	size := 0
	for i := range p.slots {
		size += int(p.slots[i].size) + 1
	}
	return size
}

// open makes the page's events for a caller to keep and not to change, and ends the use
// of the page.
func (p *page) open() (events []Event) {
	if p.shared != nil {
		p.shared.once.Do(func() { p.shared.events = decodeEvents(p.slots, nil) })
		return p.shared.events
	}
	if p.held == heldByPool || p.held == heldByFrame {
		events = p.ownEvents()
	} else {
		events = decodeEvents(p.slots, nil)
	}
	p.end()
	return events
}

// end ends the use of the page: its memory may be another's now.
func (p *page) end() {
	p.memory.release()
	p.slots, p.memory = nil, nil
}

// ownEvents are the page's events in memory of their own.
func (p *page) ownEvents() []Event {
	if len(p.slots) == 0 {
		return nil
	}
	return decodeEvents(p.slots, &chunk{b: p.appendTo(make([]byte, 0, p.jsonSize()))})
}

// encode makes the page of events, if all of them can be encoded. An error is an
// *eventError.
func (p *page) encode(events []Event) error {
	size := 0
	drafts := make([]preparedEvent, len(events))
	for i := range events {
		drafts[i].ev = &events[i]
		if err := drafts[i].check(false); err != nil {
			return &eventError{events[i].Seq, err}
		}
		size += drafts[i].size() + 1
	}
	if size > maxFrame {
		return &eventError{events[0].Seq, ErrTooLarge}
	}
	p.slots, p.held = make([]slot, len(events)), heldOwn
	out, c := make([]byte, 0, size), new(chunk)
	for i := range drafts {
		d, s, off := &drafts[i], &p.slots[i], len(out)
		var data int
		out, data = d.appendTo(out, events[i].Seq)
		d.note(s, events[i].Seq, data)
		s.chunk, s.off, s.size = c, uint32(off), uint32(len(out)-off)
		out = append(out, ',')
	}
	c.b = out
	return nil
}

// detach takes the page to slots and bytes of its own, in as little memory as they need.
func (p *page) detach() {
	if len(p.slots) > 0 {
		p.slots = slices.Clone(p.slots)
		p.copyTo(&chunk{b: make([]byte, 0, p.jsonSize())})
	}
	p.held = heldOwn
}

// copyTo takes the JSON to a chunk.
func (p *page) copyTo(c *chunk) {
	c.b = p.appendTo(c.b[:0])
	off := uint32(0)
	for i := range p.slots {
		s := &p.slots[i]
		s.chunk, s.off = c, off
		off += s.size + 1
	}
}

func (p *page) addEvent(s slot) {
	p.last = s.to
	p.bytes += int(s.size) + 1
	p.slots = append(p.slots, s)
}

func (p *page) addGap(to uint64, reason Reason) {
	p.gaps = append(p.gaps, Gap{p.last + 1, to, reason})
	p.last = to
	p.bytes += gapBytes
}

// load makes the page of a batch that was checked. Its events are in the slots already,
// or their data is checked and encoded here, outside every lock. An error is an
// *eventError.
func (p *page) load(first, last uint64, events []Event, gaps []Gap) error {
	if len(events) > 0 {
		if err := p.encode(events); err != nil {
			return err
		}
		gaps = slices.Clone(gaps)
	}
	p.first, p.last, p.gaps = first, last, gaps
	p.bytes = p.jsonSize() + len(gaps)*gapBytes
	return nil
}

// copies are the events, of the page or given, and the gaps in memory of their own.
func (p *page) copies(events []Event, gaps []Gap) ([]Event, []Gap) {
	if len(p.slots) > 0 {
		events = p.ownEvents()
	} else {
		events = cloneEvents(events)
	}
	return events, slices.Clone(gaps)
}

// clip drops what is not after a number. A gap may be known in part.
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

// cut drops what is after a number that no gap crosses.
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

// pack takes the events' bytes to memory of their own, if they are less than half of
// that in which a peer sent them: beside some that are known already, or refused.
// Those in a frame stay where they are, unless a log would have a chunk for each of
// them.
func (p *page) pack() {
	bytes := p.bytes - len(p.gaps)*gapBytes
	switch {
	case len(p.slots) == 0:
	case p.held == heldByFrame && bytes > len(p.slots)*largeEntry,
		p.held == heldOwn && len(p.slots[0].chunk.b) > 2*bytes:
		p.detach()
	}
}

// larger returns the index of the first event of more than so many bytes, or -1.
func (p *page) larger(bytes int) int {
	return slices.IndexFunc(p.slots, func(s slot) bool { return int(s.size) > bytes })
}

// ends reports whether the page's last event is its session's.
func (p *page) ends() bool {
	n := len(p.slots)
	return n > 0 && p.slots[n-1].end()
}

func (p *page) has(seq uint64) bool {
	return slices.ContainsFunc(p.slots, func(s slot) bool { return s.to == seq })
}

// lose turns the event at index i into a gap.
func (p *page) lose(i int, reason Reason) {
	seq := p.slots[i].to
	p.bytes += gapBytes - int(p.slots[i].size) - 1
	p.slots = slices.Delete(slices.Clone(p.slots), i, i+1)
	at, _ := slices.BinarySearchFunc(p.gaps, seq, func(g Gap, seq uint64) int { return cmp.Compare(g.From, seq) })
	p.gaps = slices.Insert(slices.Clone(p.gaps), at, Gap{seq, seq, reason})
}

// pieces are the page in pages none of which is more than one payload may hold.
func (p *page) pieces() []page {
	var out []page
	for rest := *p; rest.last >= rest.first; {
		piece := rest
		piece.cut(rest.fitting())
		rest.clip(piece.last)
		out = append(out, piece)
	}
	return out
}

// fitting is the last number up to which the page fits one payload: the first
// event does, whatever its size.
func (p *page) fitting() uint64 {
	last, bytes, gaps := p.first-1, 0, 0
	for i := 0; ; {
		size := gapBytes
		gap := gaps < len(p.gaps) && p.gaps[gaps].From == last+1
		switch {
		case gap && gaps == maxBatchGaps, !gap && i == len(p.slots):
			return last
		case !gap:
			size = int(p.slots[i].size) + 1
		}
		if bytes += size; bytes > pageBytes && i+gaps > 0 {
			return last
		}
		if gap {
			last = p.gaps[gaps].To
			gaps++
		} else {
			last = p.slots[i].to
			i++
		}
	}
}

// held says who holds the bytes of a page's events. Nobody writes to bytes that stay.
//
//	who          slots                  bytes                   until
//	heldOwn      the page's             the page's              for good
//	heldByLog    memory's, or shared    the log's, lent         slots: end; bytes: for good
//	heldByPool   memory's               memory's                end
//	heldByFrame  the decoder's          the peer's frame        the frame was handled
//
// read makes pages of the second and third kind, the decoder makes the fourth, and load
// the first, of events. The first may go into another log, which then has the bytes too;
// of the fourth it keeps copies. settle makes the first of any.
type held uint8

const (
	heldOwn held = iota
	heldByLog
	heldByPool
	heldByFrame
)

const (
	batchOverhead = 4 << 10 // an envelope with the longest ids, escaped
	gapBytes      = 96      // a gap's JSON at the most
	pageBytes     = maxBatchBytes - batchOverhead
)

// gapPage is a page of one gap.
func gapPage(from, to uint64, reason Reason) page {
	p := page{first: from, last: from - 1}
	p.addGap(to, reason)
	return p
}

// items are the page's events and gaps as a reader gets them: copies.
func (p *page) items(sessionID, epoch string) []Item {
	return interleave(sessionID, epoch, p.ownEvents(), slices.Clone(p.gaps))
}
