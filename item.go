package gvstream

import "slices"

// An Item is what a reader of a session is given next: exactly one of Event,
// Gap and Reset is non-nil, or End is true. Whoever reads only Event reads nil
// where something is missing: a gap can't be overlooked.
//
// An item and its bytes belong to whoever received it. Its identity, also after
// a restart of agent, hub or viewer, is (SessionID, Epoch, number): the same
// event has it again whenever it is replayed.
type Item struct {
	SessionID string
	Epoch     string // for a Reset, the new epoch

	Event *Event // what happened
	Gap   *Gap   // numbers that can no longer be delivered
	Reset *Reset // a new epoch begins: numbers start again from 1
	End   bool   // the session is over: nothing follows

	seq uint64 // the item's last number
}

// Position is where a reader is that has dealt with the item: what to persist,
// and to give to Viewer.Watch or Hub.Items in order to continue after it. For a
// Reset it is the new epoch and 0, for the end that of the last number.
func (it Item) Position() Position { return Position{it.Epoch, it.seq} }

// A Reset says that the session began a new life, usually because its agent
// restarted (rule 15). What stood between Old.Seq and PrevSeq in the epoch
// PrevEpoch was accepted by the hub and did not reach this reader.
type Reset struct {
	Old       Position // how far this reader was
	PrevEpoch string   // the epoch before the new one; empty: unknown
	PrevSeq   uint64   // last number the hub accepted of PrevEpoch; 0: unknown
}

// newEvents are the events after a number. Those of one payload share memory: if
// they are less than half of it, they get their own, so that an item which waits
// holds no more than itself.
func newEvents(events []Event, after uint64) []Event {
	i := 0
	for i < len(events) && events[i].Seq <= after {
		i++
	}
	known, kept := dataBytes(events[:i]), dataBytes(events[i:])
	if known <= kept {
		return events[i:]
	}
	return cloneEvents(events[i:])
}

// dataBytes is about the memory that events take.
func dataBytes(events []Event) int {
	n := len(events) * itemBytes
	for i := range events {
		n += len(events[i].Data) + len(events[i].Bytes)
	}
	return n
}

// newGaps are the gaps that reach beyond a number.
func newGaps(gaps []Gap, after uint64) []Gap {
	i := 0
	for i < len(gaps) && gaps[i].To <= after {
		i++
	}
	if i == 0 {
		return gaps
	}
	return slices.Clone(gaps[i:])
}

// interleave puts events and gaps, each in order, into one order.
func interleave(sessionID, epoch string, events []Event, gaps []Gap) []Item {
	out := make([]Item, 0, len(events)+len(gaps))
	for len(events) > 0 || len(gaps) > 0 {
		it := Item{SessionID: sessionID, Epoch: epoch}
		if len(gaps) > 0 && (len(events) == 0 || gaps[0].From < events[0].Seq) {
			it.Gap, it.seq = &gaps[0], gaps[0].To
			gaps = gaps[1:]
		} else {
			it.Event, it.seq = &events[0], events[0].Seq
			events = events[1:]
		}
		out = append(out, it)
	}
	return out
}

const itemBytes = 64 // what an item counts beside its data
