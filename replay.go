package gvstream

import (
	"encoding/base64"
	"slices"
	"sort"
	"time"
)

// A log is one session's numbered events in one epoch, as far back as they are
// kept. Everything that reads a session is a number that points into it: what is
// not acknowledged, what is sent, a viewer, a replay.
//
//	evicted |  replayable (acked)  |   pending (unacked)   |
//	1 ...... first ............... acked+1 ... sent ...... head
//
// Its entries tile first to head. Only this file touches the ring.
type log struct {
	ring   ring
	head   uint64 // last number in use; 0: nothing yet
	events int    // events held; gaps count as nothing
	bytes  int    // of their JSON
}

// first is the lowest number the log holds, or head+1.
func (l *log) first() uint64 {
	if l.ring.n == 0 {
		return l.head + 1
	}
	return l.ring.at(0).from
}

// append adds an entry that begins at head+1. A gap merges with a gap before it
// that has the same reason.
func (l *log) append(e entry) {
	l.head = e.to
	if e.gap() {
		if n := l.ring.n; n > 0 && l.ring.at(n-1).gap() && l.ring.at(n-1).typ == e.typ {
			l.ring.at(n - 1).to = e.to
			return
		}
	} else {
		l.events++
		l.bytes += len(e.json)
	}
	l.ring.pushBack(e)
}

// declare says that what is missing between after and first is lost.
func (l *log) declare(after uint64, reason Reason) {
	if first := l.first(); after+1 < first {
		l.ring.pushFront(gapEntry(after+1, first-1, reason))
		l.merge(0)
	}
}

// evict drops the oldest entry and returns the bytes that it frees.
func (l *log) evict() int {
	e := l.ring.at(0)
	n := l.uncount(e)
	l.ring.popFront()
	return n
}

func (l *log) uncount(e *entry) int {
	if e.gap() {
		return 0
	}
	l.events--
	l.bytes -= len(e.json)
	return len(e.json)
}

// trim evicts from the front what is acknowledged and beyond the limits, and
// returns the bytes that it frees. A log that keeps no events keeps no gaps, and
// one that does keeps no more gaps than can stand between them.
func (l *log) trim(acked uint64, maxEvents, maxBytes int) int {
	freed := 0
	for l.ring.n > 0 && l.ring.at(0).to <= acked && (l.events > maxEvents || l.bytes > maxBytes || l.ring.n > 2*maxEvents+1 || maxEvents == 0) {
		freed += l.evict()
	}
	return freed
}

// find returns the index of the entry that covers seq, which is between first
// and head.
func (l *log) find(seq uint64) int {
	// Without gaps the index is the distance; gaps only make it smaller.
	far := int(min(seq-l.first(), uint64(l.ring.n-1)))
	if l.ring.at(far).from <= seq {
		return far
	}
	return sort.Search(far, func(i int) bool { return l.ring.at(i).to >= seq })
}

// lose turns the event at index i into a gap and returns the bytes it frees.
func (l *log) lose(i int, reason Reason) int {
	e := l.ring.at(i)
	n := l.uncount(e)
	*e = gapEntry(e.from, e.to, reason)
	l.merge(i)
	return n
}

// merge joins the gap at index i with its neighbours of the same reason.
func (l *log) merge(i int) {
	if i+1 < l.ring.n && l.ring.at(i+1).gap() && l.ring.at(i+1).typ == l.ring.at(i).typ {
		l.ring.at(i).to = l.ring.at(i + 1).to
		l.ring.remove(i + 1)
	}
	if i > 0 && l.ring.at(i-1).gap() && l.ring.at(i-1).typ == l.ring.at(i).typ {
		l.ring.at(i - 1).to = l.ring.at(i).to
		l.ring.remove(i)
	}
}

// A page is a piece of a log, copied out so that it can be encoded and sent
// without the lock: whoever gets it shares no bytes with the log.
type page struct {
	first, last uint64 // what it tiles; last = first-1 if it is empty
	entries     []entry
	json        []byte // of the events, separated by commas
	events      int
	bytes       int // json and what the gaps will take

	request   string // the replay request it answers, or empty
	available uint64 // and what that answer said the agent holds
}

// A span bounds a page: numbers from after+1 to until, of which events may go up
// to eventsUntil, and how much at the most.
type span struct {
	after, until, eventsUntil uint64
	events, bytes             int
}

const (
	batchOverhead = 4 << 10 // an envelope with the longest ids, escaped
	gapBytes      = 96      // a gap's JSON at the most
	pageBytes     = maxBatchBytes - batchOverhead
)

// read copies a page out of the log. What is older than the log, it declares as
// evicted; gaps are clipped to the span (rule 12). The first event is taken
// whatever its size.
func (l *log) read(s span) page {
	p := page{first: s.after + 1, last: s.after}
	until := min(s.until, l.head)
	if first := l.first(); p.first < first && p.first <= until {
		p.add(gapEntry(p.first, min(first-1, until), ReasonEvicted))
	}
	if p.last >= until {
		return p
	}
	start := l.find(p.last + 1)
	n, size := l.measure(start, until, p.bytes, s)
	p.entries = slices.Grow(p.entries, n)
	p.json = make([]byte, 0, size)
	for i := range n {
		e := *l.ring.at(start + i)
		e.from, e.to = max(e.from, p.last+1), min(e.to, until)
		p.add(e)
	}
	return p
}

// measure counts the entries from index start that fit the span, and the bytes
// of their JSON. used is what the page holds already.
func (l *log) measure(start int, until uint64, used int, s span) (n, size int) {
	events, gaps := 0, 0
	for ; start+n < l.ring.n; n++ {
		e := l.ring.at(start + n)
		switch {
		case e.from > until || gaps == maxBatchGaps-1 || e.gap() && events > 0 && used+gapBytes > s.bytes:
			return n, size
		case e.gap():
			used += gapBytes
			gaps++
		case e.to > s.eventsUntil || events == s.events:
			return n, size
		case events > 0 && used+len(e.json)+1 > s.bytes:
			return n, size
		default:
			used += len(e.json) + 1
			size += len(e.json) + 1
			events++
		}
	}
	return n, size
}

// add appends an entry and copies its bytes.
func (p *page) add(e entry) {
	p.last = e.to
	if e.gap() {
		p.bytes += gapBytes
	} else {
		if len(p.json) > 0 {
			p.json = append(p.json, ',')
		}
		at := len(p.json)
		p.json = append(p.json, e.json...)
		e.json = p.json[at:len(p.json):len(p.json)]
		p.bytes += len(e.json) + 1
		p.events++
	}
	p.entries = append(p.entries, e)
}

// split returns the page's events and gaps, and the events' JSON.
func (p *page) split() ([]Event, []Gap, encodedEvents) {
	var events []Event
	var gaps []Gap
	if p.events > 0 {
		events = make([]Event, 0, p.events)
	}
	for i := range p.entries {
		if e := &p.entries[i]; e.gap() {
			gaps = append(gaps, Gap{e.from, e.to, e.reason()})
		} else {
			events = append(events, e.event())
		}
	}
	return events, gaps, encodedEvents{json: p.json, events: slices.Clone(events)}
}

// event is the entry as callers see it. It shares the entry's bytes.
func (e *entry) event() Event {
	ev := Event{Seq: e.to, Time: e.time(), Type: e.typ, End: e.end()}
	if data := e.json[e.lo:e.hi:e.hi]; len(data) > 0 {
		if e.kind&kindMask == isBytes {
			ev.Bytes, _ = base64.StdEncoding.AppendDecode(nil, data) // our own encoding
		} else {
			ev.Data = data
		}
	}
	return ev
}

// A draft is an event that has no number yet: its JSON, with seqRoom bytes in
// front for the number.
type draft struct{ entry }

const seqRoom = len(`{"seq":9007199254740991`)

// newDraft checks an event and makes its JSON, the only time that is done
// (rule 1 leaves only the number to the lock).
func newDraft(ev *Event) (draft, error) {
	size := seqRoom + len(`,"time":"2006-01-02T15:04:05.999999999Z","type":"","data_base64":"","end":true}`) +
		len(ev.Type) + max(len(ev.Data), base64.StdEncoding.EncodedLen(len(ev.Bytes)))
	json, lo, hi, err := appendEventTail(make([]byte, seqRoom, size), ev)
	if err != nil {
		return draft{}, err
	}
	var d draft
	d.json, d.lo, d.hi, d.typ = json, uint32(lo), uint32(hi), ev.Type
	d.kind = isJSON
	if len(ev.Bytes) > 0 {
		d.kind = isBytes
	}
	if ev.End {
		d.kind |= isEnd
	}
	if !ev.Time.IsZero() {
		d.kind |= isTimed
		d.sec, d.nsec = ev.Time.Unix(), int32(ev.Time.Nanosecond())
	}
	return d, nil
}

// size is the most that the numbered event's JSON takes, in bytes.
func (d *draft) size() int { return len(d.json) }

// number gives the draft its number, writing it in front of the rest.
func (d *draft) number(seq uint64) entry {
	var head [seqRoom]byte
	h := appendEventHead(head[:0], seq)
	start := seqRoom - len(h)
	copy(d.json[start:], h)
	e := d.entry
	e.from, e.to = seq, seq
	e.json = d.json[start:]
	if e.hi > 0 {
		e.lo, e.hi = e.lo-uint32(start), e.hi-uint32(start)
	}
	return e
}

// entries makes the entries of a batch that was checked, events and gaps in
// order. Data is checked and copied here, outside every lock.
func entries(first uint64, events []Event, gaps []Gap) ([]entry, error) {
	out := make([]entry, 0, len(events)+len(gaps))
	for next := first; len(events) > 0 || len(gaps) > 0; next = out[len(out)-1].to + 1 {
		if len(gaps) > 0 && gaps[0].From == next {
			out = append(out, gapEntry(gaps[0].From, gaps[0].To, gaps[0].Reason))
			gaps = gaps[1:]
			continue
		}
		d, err := newDraft(&events[0])
		if err != nil {
			return nil, err
		}
		out = append(out, d.number(next))
		events = events[1:]
	}
	return out, nil
}

// asPage makes a page of entries that begin at first.
func asPage(first uint64, es []entry) page {
	p := page{first: first, last: first - 1}
	for _, e := range es {
		p.add(e)
	}
	return p
}

// asPages makes pages, none of which is more than one payload may hold.
func asPages(es []entry) []page {
	var out []page
	for n := 0; len(es) > 0; es, n = es[n:], 0 {
		for bytes := 0; n < min(len(es), maxBatchGaps) && (n == 0 || bytes+len(es[n].json)+gapBytes <= pageBytes); n++ {
			bytes += len(es[n].json) + gapBytes
		}
		out = append(out, asPage(es[0].from, es[:n]))
	}
	return out
}

// oldest is the time of the oldest event, if it is acknowledged.
func (l *log) oldest(acked uint64) (time.Time, bool) {
	for i := range l.ring.n {
		if e := l.ring.at(i); e.to > acked {
			break
		} else if !e.gap() {
			return e.time(), true
		}
	}
	return time.Time{}, false
}
