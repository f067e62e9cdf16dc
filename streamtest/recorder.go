package streamtest

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"maps"
	"slices"
	"sync"

	"github.com/vibetools/gvstream"
)

// A Recorder takes the items of any number of sessions as a reader gets them, and
// checks gvstream's guarantees: per session and epoch, every number from the start
// position on comes exactly once and in order, as an event or inside a gap; a new epoch
// is announced by a Reset; nothing follows the end.
//
// The zero Recorder is ready to use, with every session at the zero position. All
// methods are safe for concurrent use, and none blocks. For a session of which nothing
// was recorded they return zero values. A Recorder must not be copied after first use.
type Recorder struct {
	mu       sync.Mutex // protects the field below
	sessions map[string]*record
}

// A record is one session of a Recorder.
type record struct {
	position gvstream.Position
	events   []gvstream.Event
	gaps     []gvstream.Gap
	oldGaps  int // how many of gaps were recorded before this epoch, or before Resume
	resets   []gvstream.Reset
	bytes    int
	sum      hash.Hash // of the events' bytes
	last     bool      // the end event was recorded: only End may follow
	ended    bool
}

// Resume says where the reader of a session starts, or starts again, for instance with
// a position that it persisted: the next item must be the one after it. What was
// recorded before is kept.
func (r *Recorder) Resume(sessionID string, position gvstream.Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.open(sessionID)
	rec.position, rec.oldGaps = position, len(rec.gaps)
	rec.last, rec.ended = false, false
	r.put(sessionID, rec)
}

// Record takes the next item of its session. The error says which guarantee the item
// violates; such an item is not recorded and changes nothing. The Recorder keeps the
// item's bytes: they must not be changed afterwards.
func (r *Recorder) Record(item gvstream.Item) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.open(item.SessionID)
	if err := rec.add(item); err != nil {
		return fmt.Errorf("streamtest: session %q epoch %q: %w", item.SessionID, item.Epoch, err)
	}
	r.put(item.SessionID, rec)
	return nil
}

// Sessions returns the ids of all sessions with a record, sorted.
func (r *Recorder) Sessions() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.sessions))
}

// Events returns the events of a session in the order they came. The slice is
// the caller's, the bytes of the events are shared and must not be changed.
func (r *Recorder) Events(sessionID string) []gvstream.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.open(sessionID).events)
}

// Gaps returns the gaps of a session in the order they came. The slice is the
// caller's.
func (r *Recorder) Gaps(sessionID string) []gvstream.Gap {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.open(sessionID).gaps)
}

// Resets returns the resets of a session in the order they came. The slice is
// the caller's.
func (r *Recorder) Resets(sessionID string) []gvstream.Reset {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.open(sessionID).resets)
}

// Ended reports whether a session's End has come.
func (r *Recorder) Ended(sessionID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open(sessionID).ended
}

// Position returns where the reader of a session is: at the last item recorded,
// or where Resume put it.
func (r *Recorder) Position(sessionID string) gvstream.Position {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open(sessionID).position
}

// Bytes returns how many bytes of Data and Bytes the events of a session have in
// all.
func (r *Recorder) Bytes(sessionID string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open(sessionID).bytes
}

// Sum returns the SHA-256 of the Data or Bytes of all events of a session, one after
// the other with nothing between them. Without events it is the SHA-256 of nothing.
func (r *Recorder) Sum(sessionID string) [sha256.Size]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return [sha256.Size]byte(r.open(sessionID).sum.Sum(nil))
}

// open returns the record of a session, or a new one that is not stored yet: asking
// about a session, or recording a wrong item for it, does not create it.
func (r *Recorder) open(sessionID string) *record {
	if rec := r.sessions[sessionID]; rec != nil {
		return rec
	}
	return &record{sum: sha256.New()}
}

func (r *Recorder) put(sessionID string, rec *record) {
	if r.sessions == nil {
		r.sessions = make(map[string]*record)
	}
	r.sessions[sessionID] = rec
}

// add checks item and, if it is right, records it.
func (r *record) add(item gvstream.Item) error {
	if err := r.checkKind(item); err != nil {
		return err
	}
	if item.Reset != nil {
		return r.addReset(item.Epoch, item.Reset)
	}
	if r.position.Epoch != "" && item.Epoch != r.position.Epoch {
		return fmt.Errorf("another epoch without a reset, at %s", at(r.position))
	}
	switch {
	case item.Event != nil:
		return r.addEvent(item.Epoch, item.Event)
	case item.Gap != nil:
		return r.addGap(item.Epoch, item.Gap)
	default:
		return r.addEnd(item)
	}
}

// checkKind makes the checks that are the same for all items.
func (r *record) checkKind(item gvstream.Item) error {
	kinds := 0
	for _, is := range []bool{item.Event != nil, item.Gap != nil, item.Reset != nil, item.End} {
		if is {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return fmt.Errorf("item is %d of event, gap, reset and end, not exactly one", kinds)
	case item.SessionID == "" || item.Epoch == "":
		return fmt.Errorf("item without session or epoch")
	case r.ended:
		return fmt.Errorf("%s follows the end, at %s", kind(item), at(r.position))
	case r.last && !item.End:
		return fmt.Errorf("%s follows the end event %d", kind(item), r.position.Seq)
	}
	return nil
}

func (r *record) addEvent(epoch string, e *gvstream.Event) error {
	if err := r.checkNext(kindEvent, e.Seq, e.Seq); err != nil {
		return err
	}
	r.position = gvstream.Position{Epoch: epoch, Seq: e.Seq}
	r.events = append(r.events, *e)
	r.bytes += len(e.Data) + len(e.Bytes)
	r.sum.Write(e.Data)
	r.sum.Write(e.Bytes)
	r.last = e.End
	return nil
}

func (r *record) addGap(epoch string, g *gvstream.Gap) error {
	if err := r.checkNext(kindGap, g.From, g.To); err != nil {
		return err
	}
	r.position = gvstream.Position{Epoch: epoch, Seq: g.To}
	r.gaps = append(r.gaps, *g)
	return nil
}

func (r *record) addReset(epoch string, reset *gvstream.Reset) error {
	switch {
	case r.position.Epoch == "":
		return fmt.Errorf("reset before the first epoch, which needs none")
	case epoch <= r.position.Epoch:
		return fmt.Errorf("reset to an epoch that is not newer, at %s", at(r.position))
	case reset.Old != r.position:
		return fmt.Errorf("reset says the reader was at %s, it was at %s", at(reset.Old), at(r.position))
	}
	r.position = gvstream.Position{Epoch: epoch}
	r.resets = append(r.resets, *reset)
	r.oldGaps = len(r.gaps)
	return nil
}

// addEnd takes the End. Its number is only known of an item that the library
// made; it may be the end event's, which then needs no item of its own.
func (r *record) addEnd(item gvstream.Item) error {
	seq := max(item.Position().Seq, r.position.Seq)
	switch {
	case seq == 0:
		return fmt.Errorf("end before the first number: an ended session has one at least")
	case seq > r.position.Seq+1:
		return fmt.Errorf("end at %d skips %s without a gap", seq, numbers(r.position.Seq+1, seq-1))
	}
	r.position = gvstream.Position{Epoch: item.Epoch, Seq: seq}
	r.ended = true
	return nil
}

// checkNext checks that the numbers from to to are the next ones.
func (r *record) checkNext(kind string, from, to uint64) error {
	what, next := kind+" "+numbers(from, to), r.position.Seq+1
	switch {
	case from == 0 || from > to || to > gvstream.MaxSeq:
		return fmt.Errorf("%s: not a range of numbers from 1 to %d", what, uint64(gvstream.MaxSeq))
	case from > next:
		return fmt.Errorf("%s skips %s without a gap", what, numbers(next, from-1))
	case from == next:
		return nil
	}
	for _, g := range r.gaps[r.oldGaps:] {
		if from <= g.To && g.From <= to {
			return fmt.Errorf("%s overlaps gap %s, at %s", what, numbers(g.From, g.To), at(r.position))
		}
	}
	return fmt.Errorf("%s is repeated or out of order, at %s", what, at(r.position))
}

// The names of the kinds of items in messages.
const (
	kindEvent = "event"
	kindGap   = "gap"
)

func kind(item gvstream.Item) string {
	switch {
	case item.Event != nil:
		return fmt.Sprintf("%s %d", kindEvent, item.Event.Seq)
	case item.Gap != nil:
		return kindGap + " " + numbers(item.Gap.From, item.Gap.To)
	case item.Reset != nil:
		return "reset"
	}
	return "another end"
}

func numbers(from, to uint64) string {
	if from == to {
		return fmt.Sprint(from)
	}
	return fmt.Sprintf("%d-%d", from, to)
}

func at(p gvstream.Position) string { return fmt.Sprintf("%q/%d", p.Epoch, p.Seq) }
