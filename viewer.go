package gvstream

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vibetools/gvstream/internal/sched"
)

// A Viewer watches sessions at a hub and yields what happens in them, each event
// once and in order, and a gap or a reset where something is missing. It starts no
// goroutines.
//
// All methods are safe for concurrent use; Items runs once at a time.
type Viewer struct {
	cfg             ViewerConfig
	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64

	mu      sync.Mutex // level 1; protects the fields below
	watches map[string]*watch
	link    *viewerLink
	queue   []*queued    // what Items yields next
	bytes   int          // of it
	room    sched.Signal // something was taken
	more    sched.Signal // something was added
	reading bool         // Items runs
	closed  bool
}

// A watch is one session that the viewer watches. It has two positions: what was
// received, by which holes are seen, and what the caller has dealt with.
type watch struct {
	id           string
	epoch        string
	received     uint64
	fresh        bool // nothing of the epoch was queued, and the position was zero
	handled      Position
	ended        bool   // its end, or the error that ended it, was received
	missed       string // the epoch whose beginning showed that the one before is incomplete
	subscription *subscription
}

// queued is an item, or an error, that waits for Items.
type queued struct {
	w    *watch
	item Item
	err  error
	size int
}

// NewViewer returns a Viewer without watches or links. A nil config means the
// defaults; cfg is copied.
func NewViewer(cfg *ViewerConfig) *Viewer {
	return &Viewer{cfg: cfg.withDefaults(), watches: make(map[string]*watch)}
}

// Watch begins to watch a session after a position: the zero Position for its
// first event, or what Position or Item.Position returned, also in another process.
// The session need not exist yet. It does not block and needs no connection.
// Errors: ErrInvalidID, ErrTooMany, ErrClosed, and ErrBusy if the session is
// watched already.
func (v *Viewer) Watch(sessionID string, after Position) error {
	if !validID(sessionID) || !after.valid() {
		return ErrInvalidID
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return ErrClosed
	case v.watches[sessionID] != nil:
		return ErrBusy
	case len(v.watches) >= v.cfg.MaxWatches:
		return ErrTooMany
	}
	w := &watch{id: sessionID, epoch: after.Epoch, received: after.Seq, handled: after, fresh: after.Epoch == ""}
	v.watches[sessionID] = w
	if v.link != nil {
		v.link.attachLocked(w)
	}
	return nil
}

// Unwatch ends the watch of a session, ended ones too, and drops what of it Items
// has not yielded. It does not block.
func (v *Viewer) Unwatch(sessionID string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w := v.watches[sessionID]
	if w == nil {
		return
	}
	delete(v.watches, sessionID)
	v.detachWatchLocked(w)
	kept := v.queue[:0]
	for _, q := range v.queue {
		if q.w == w {
			v.bytes -= q.size
		} else {
			kept = append(kept, q)
		}
	}
	clear(v.queue[len(kept):])
	v.queue = kept
	v.room.Broadcast()
}

// detachWatchLocked takes a watch off the link and tells the hub.
func (v *Viewer) detachWatchLocked(w *watch) {
	if a := w.subscription; a != nil {
		w.subscription = nil
		a.vl.forget(&a.task)
		a.vl.stopLocked(w.id)
	}
}

// Position returns how far the caller has dealt with a session: what to persist
// and to watch from later. It moves when the body of the loop over Items is done
// with an item. It is the zero Position for a session that is not watched.
func (v *Viewer) Position(sessionID string) Position {
	v.mu.Lock()
	defer v.mu.Unlock()
	if w := v.watches[sessionID]; w != nil {
		return w.handled
	}
	return Position{}
}

// Items yields what happens in all watched sessions, those of one session in
// order. It blocks until there is something, and ends without an error when ctx
// ends or the Viewer is closed; what is ready is yielded before ctx is looked at. An
// item counts as dealt with when the loop's body asks for the next one: after
// break, return or panic it comes again.
//
// An error ends one watch and not the loop: it is a *ProtocolError that names the
// session, such as forbidden or replay_ahead. A watch that has ended keeps its
// place and its position until Unwatch. A second Items at the same time
// yields ErrBusy and ends.
func (v *Viewer) Items(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if !v.startReading() {
			yield(Item{}, ErrBusy)
			return
		}
		defer v.stopReading()
		for {
			q, wait := v.front()
			if q != nil {
				if !yield(q.item, q.err) {
					return
				}
				v.done(q)
				continue
			}
			if wait == nil { // closed
				return
			}
			select {
			case <-wait:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (v *Viewer) startReading() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.reading
	v.reading = true
	return !was
}

func (v *Viewer) stopReading() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reading = false
}

// front returns what to yield next, or what to wait for, or neither.
func (v *Viewer) front() (*queued, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return nil, nil
	case len(v.queue) > 0:
		return v.queue[0], nil
	}
	return nil, v.more.Wait()
}

// done moves the position past an item, unless its watch ended meanwhile.
func (v *Viewer) done(q *queued) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.queue) == 0 || v.queue[0] != q {
		return
	}
	v.queue[0] = nil
	v.queue = v.queue[1:]
	v.bytes -= q.size
	if q.err == nil {
		q.w.handled = q.item.Position()
	}
	v.room.Broadcast()
}

// Close ends Items and the link, and everything that waits. It does not wait for a
// loop's body. Position goes on. It always returns nil.
func (v *Viewer) Close() error {
	v.mu.Lock()
	v.closed = true
	vl := v.link
	v.room.Broadcast()
	v.more.Broadcast()
	v.mu.Unlock()
	if vl != nil {
		vl.Close()
	}
	return nil
}

// Stats returns what the Viewer holds now. It does not block.
func (v *Viewer) Stats() ViewerStats {
	v.mu.Lock()
	defer v.mu.Unlock()
	return ViewerStats{
		Watches: len(v.watches), Items: len(v.queue), Bytes: v.bytes, Connected: v.link != nil && v.link.id != "",
		StalePayloads: v.stalePayloads.Load(), RefusedPayloads: v.refusedPayloads.Load(),
	}
}

func (v *Viewer) pushLocked(q *queued) {
	v.queue = append(v.queue, q)
	v.bytes += q.size
	v.more.Broadcast()
}

// sorted returns the watches in the order of their ids.
func (v *Viewer) sorted() []*watch {
	out := make([]*watch, 0, len(v.watches))
	for _, w := range v.watches {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *watch) int { return cmp.Compare(a.id, b.id) })
	return out
}
