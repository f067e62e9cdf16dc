package gvstream

import "slices"

// flights are the batches that are under way to a viewer, so that an ack tells how many events
// and bytes of them have landed. The hub's log can't tell: it may have evicted them, or never
// have held them. Batches that are small in relation to the window are counted as one, so that
// there are few; until the last of them is acknowledged, all of them count as under way.
type flights struct {
	newest flight   // the only one, mostly, and so not in a list; without events: there is none
	older  []flight // in order
}

type flight struct {
	last          uint64 // the number of its last event
	events, bytes int
}

// flightsInWindow is how many flights a window has room for, of events or of bytes.
const flightsInWindow = 8

// add adds a batch, unless it has no events: gaps take nothing of the window.
func (f *flights) add(last uint64, events, bytes int, w window) {
	if events == 0 {
		return
	}
	switch n := &f.newest; {
	case (n.events+events)*flightsInWindow <= w.events && (n.bytes+bytes)*flightsInWindow <= w.bytes:
		events, bytes = n.events+events, n.bytes+bytes
	case n.events > 0:
		f.older = append(f.older, *n)
	}
	f.newest = flight{last, events, bytes}
}

// land takes out what an ack covers, and returns how much that is.
func (f *flights) land(upTo uint64) (events, bytes int) {
	n := 0
	for ; n < len(f.older) && f.older[n].last <= upTo; n++ {
		events += f.older[n].events
		bytes += f.older[n].bytes
	}
	f.older = slices.Delete(f.older, 0, n)
	if f.newest.last <= upTo { // and so all before it
		events += f.newest.events
		bytes += f.newest.bytes
		f.newest = flight{}
	}
	return events, bytes
}

// clear takes all out.
func (f *flights) clear() { f.newest, f.older = flight{}, f.older[:0] }
