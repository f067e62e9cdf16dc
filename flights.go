package gvstream

import "slices"

// flights are the batches that are under way to a viewer, so that an ack tells how many events
// and bytes of them have landed. The hub's log can't tell: it may have evicted them, or never
// have held them. Batches that are small in relation to the window are counted as one, so that
// there are few; until the last of them is acknowledged, all of them count as under way.
type flights []flight

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
	if n := len(*f); n > 0 {
		if l := &(*f)[n-1]; (l.events+events)*flightsInWindow <= w.events && (l.bytes+bytes)*flightsInWindow <= w.bytes {
			l.last, l.events, l.bytes = last, l.events+events, l.bytes+bytes
			return
		}
	}
	*f = append(*f, flight{last, events, bytes})
}

// land takes out what an ack covers, and returns how much that is.
func (f *flights) land(upTo uint64) (events, bytes int) {
	n := 0
	for ; n < len(*f) && (*f)[n].last <= upTo; n++ {
		events += (*f)[n].events
		bytes += (*f)[n].bytes
	}
	*f = slices.Delete(*f, 0, n)
	return events, bytes
}
