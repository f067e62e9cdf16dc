package gvstream

import (
	"cmp"
	"fmt"
	"slices"
)

// An Item is what a reader of a session is given next: exactly one of Event,
// Gap and Reset is non-nil, or End is true. Code that reads only Event meets nil
// where something is missing: a gap can't be overlooked.
//
// An item and its bytes belong to the caller that received it. Its identity, even after
// a restart of agent, hub or viewer, is (SessionID, Epoch, number): the same
// event has it again whenever it is replayed.
//
// The end of a session comes twice: as an Event with End, if that can still be
// delivered, and after it as an Item with End, which comes always, also where the event is
// in a gap. Act on the Item: nothing follows it. Both are at the same position.
//
// Items have a JSON form, of encoding/json, which keeps all that is in them, the position
// too. Commit's and Items' items can be stored or passed on in it.
type Item struct {
	SessionID string `json:"session_id"`
	Epoch     string `json:"epoch"` // for a Reset, the new epoch
	Seq       uint64 `json:"seq"`   // the event's number, or the gap's last; 0 for a Reset; the session's last at the End

	Event *Event `json:"event,omitempty"` // what happened
	Gap   *Gap   `json:"gap,omitempty"`   // numbers that can no longer be delivered
	Reset *Reset `json:"reset,omitempty"` // a new epoch begins: numbers start again from 1
	End   bool   `json:"end,omitempty"`   // the session is over: nothing follows
}

// Position is where a reader stands once it has dealt with the item: what to persist,
// and to give to Viewer.Watch or Hub.Items in order to continue after it. For a
// Reset it is the new epoch and 0, for the end the position of the last number.
func (it Item) Position() Position { return Position{it.Epoch, it.Seq} }

// String returns the item in one line, for people: its session, position and kind, and the
// first bytes of an event's data. It is safe in a log, whatever a peer put into the item.
func (it Item) String() string {
	at := quoted(it.SessionID) + " " + it.Position().String()
	switch {
	case it.Event != nil:
		return at + ": " + it.Event.summary()
	case it.Gap != nil:
		return fmt.Sprintf("%s: missing from %d: %s", at, it.Gap.From, quoted(string(it.Gap.Reason)))
	case it.Reset != nil:
		return fmt.Sprintf("%s: new epoch after %s", at, it.Reset.Old)
	case it.End:
		return at + ": end"
	}
	return "no item"
}

// summary is the event's part of Item.String.
func (e *Event) summary() string {
	s := cmp.Or(quoted(e.Type), "event")
	switch {
	case len(e.Bytes) > maxSummary:
		s += fmt.Sprintf(" %q… of %d bytes", e.Bytes[:maxSummary], len(e.Bytes))
	case len(e.Bytes) > 0:
		s += fmt.Sprintf(" %q", e.Bytes)
	case len(e.Data) > maxSummary:
		s += fmt.Sprintf(" %s… of %d bytes", quoted(clipTo(string(e.Data), maxSummary)), len(e.Data))
	case len(e.Data) > 0:
		s += " " + quoted(string(e.Data))
	}
	if e.End {
		s += ", the last"
	}
	return s
}

const maxSummary = 128 // bytes of an event's data that Item.String shows

// A Reset says that the session began a new epoch, usually because its agent
// restarted (rule 15). If PrevEpoch is Old.Epoch, the numbers above Old.Seq up to
// PrevSeq were accepted by the hub and did not reach this reader.
type Reset struct {
	Old       Position `json:"old"`                  // how far this reader was
	PrevEpoch string   `json:"prev_epoch,omitempty"` // the epoch before the new one; empty: unknown
	PrevSeq   uint64   `json:"prev_seq,omitempty"`   // last number the hub accepted of PrevEpoch; 0: unknown
}

// newEvents are the events after a number. Those of one payload share memory. If less than
// half of it is new, the new events get memory of their own, so that a queued item does not
// pin a batch that is mostly known already; that bounds what items pin to about twice their size.
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

// dataBytes is roughly the bytes of memory that events take.
func dataBytes(events []Event) int {
	n := len(events) * itemBytes
	for i := range events {
		n += len(events[i].Data) + len(events[i].Bytes)
	}
	return n
}

// newGaps are the gaps that reach beyond a number; the first may also reach below it. A part
// of the list is copied, for the same reason.
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

// interleave puts events and gaps, each in order, into one order by number. They don't
// overlap. The items point into both slices, which are theirs from then on.
func interleave(sessionID, epoch string, events []Event, gaps []Gap) []Item {
	out := make([]Item, 0, len(events)+len(gaps))
	for len(events) > 0 || len(gaps) > 0 {
		it := Item{SessionID: sessionID, Epoch: epoch}
		if len(gaps) > 0 && (len(events) == 0 || gaps[0].From < events[0].Seq) {
			it.Gap, it.Seq = &gaps[0], gaps[0].To
			gaps = gaps[1:]
		} else {
			it.Event, it.Seq = &events[0], events[0].Seq
			events = events[1:]
		}
		out = append(out, it)
	}
	return out
}

const itemBytes = 64 // what an item counts besides its data, so that empty ones aren't free
