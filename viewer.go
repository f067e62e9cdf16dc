package gvstream

import (
	"cmp"
	"context"
	"fmt"
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
// It outlives its links: watches and their positions, and items that wait, stay when a
// link dies, and the next one goes on from them.
//
// All methods are safe for concurrent use; Items runs once at a time.
type Viewer struct {
	cfg             ViewerConfig
	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64

	mu      sync.Mutex        // level 1; protects the fields below
	watches map[string]*watch // by session, ended ones too until Unwatch
	link    *viewerLink       // the newest, or nil if that is dead

	welcomes int // of all links: each begins with another watch

	// One queue for all watches, in the order of arrival. Its front is being yielded while
	// Items runs the loop's body; done takes it out. How much of it a watch may fill is said
	// to the hub (rule 14); errors need no room, since a watch has at most one.
	queue []*queued
	bytes int          // sum of the queue's sizes
	more  sched.Signal // something was added, or the Viewer was closed

	reading bool // Items runs
	closed  bool
}

// A watch is one session that the viewer watches, from Watch to Unwatch, across links.
//
//	fresh     begun at the zero position, told of no numbers: takes whatever epoch a status names
//	running   at a position in an epoch: another epoch is a reset, or old (rule 15)
//	ended     its End or its error is queued: never asked for again, keeps its position
//
// It has two positions (rule 14). What was received shows holes and is what the hub is asked
// to go on from, on any link. What the caller has dealt with lags by what waits in the
// queue. The Viewer's lock protects it.
type watch struct {
	id            string
	epoch         string // with received: the last number that was queued
	received      uint64
	fresh         bool
	handled       Position // after the last item that the body of the loop over Items has finished
	last          uint64   // of the epoch, if a status said that the session ended there; 0: unknown
	ended         bool
	askedAgainFor string // the new epoch at which the rest of the old one was asked for once more

	// What waits in the queue, of every kind: the window less this is what the hub may send.
	unread      int
	unreadBytes int // as queued.size

	subscription *subscription // on the Viewer's link; nil: none, or not welcomed, or over
}

// queued is an item, or an error, that waits for Items. Its bytes are the reader's once it
// is yielded: it shares them with no payload.
type queued struct {
	w    *watch
	item Item
	err  error // then item is zero
	size int   // about the bytes of memory, counted against WindowBytes
}

// NewViewer returns a Viewer without watches or links. A nil config means the
// defaults; cfg is copied.
func NewViewer(cfg *ViewerConfig) *Viewer {
	return &Viewer{cfg: cfg.withDefaults(), watches: make(map[string]*watch)}
}

// Watch begins to watch a session after a position: the zero Position for its
// first event, or what Position or Item.Position returned, even in another process.
// The session need not exist yet: its events come when it does (rule 13). Watch does
// not block and needs no connection.
// Errors: ErrInvalidID, ErrInvalidPosition, ErrTooMany, ErrClosed, and ErrWatched if the
// session is watched already, be it by a watch that has ended.
func (v *Viewer) Watch(sessionID string, after Position) error {
	if !validID(sessionID) {
		return invalidID(sessionID)
	}
	if err := after.check(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return ErrClosed
	case v.watches[sessionID] != nil:
		return fmt.Errorf("%w: %q", ErrWatched, sessionID)
	case len(v.watches) >= v.cfg.MaxWatches:
		return fmt.Errorf("%w: %d watches, at most %d", ErrTooMany, len(v.watches), v.cfg.MaxWatches)
	}
	w := &watch{id: sessionID, epoch: after.Epoch, received: after.Seq, handled: after, fresh: after.Epoch == ""}
	v.watches[sessionID] = w
	if v.link != nil {
		v.link.attachLocked(w)
	}
	return nil
}

// Unwatch removes the watch of a session, also one that has ended, and drops its items
// that Items has not yielded. It does not block.
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
}

// detachWatchLocked takes a watch off the link, if it is on one, and makes the hub stop
// sending it, if that was asked to begin.
func (v *Viewer) detachWatchLocked(w *watch) {
	if sub := w.subscription; sub != nil {
		sub.endLocked()
		if sub.said {
			sub.vl.stopLocked(w.id)
		}
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
// break, return or panic it comes again. The item and its bytes are the caller's.
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

// startReading reports whether the caller is the only reader. Two would both be yielded the
// front of the queue.
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

// front returns what to yield next, which stays in the queue until done, or what to wait
// for, or neither if the Viewer is closed.
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

// done takes an item out of the queue and moves the position past it. While the loop's body
// ran, Unwatch may have dropped the item from the queue: then its watch is gone, and the
// front is another item that has not been yielded.
func (v *Viewer) done(q *queued) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.queue) == 0 || v.queue[0] != q {
		return
	}
	v.queue[0] = nil
	v.queue = v.queue[1:]
	v.bytes -= q.size
	if q.err != nil {
		return
	}
	q.w.handled = q.item.Position()
	events, bytes := v.roomLocked(q.w)
	q.w.unread--
	q.w.unreadBytes -= q.size
	if sub := q.w.subscription; sub != nil {
		eventsNow, bytesNow := v.roomLocked(q.w)
		sub.grantLocked(eventsNow-events, bytesNow-bytes)
	}
}

// roomLocked is how much more of a watch there is room for.
func (v *Viewer) roomLocked(w *watch) (events, bytes int) {
	return max(v.cfg.Window-w.unread, 0), max(v.cfg.WindowBytes-w.unreadBytes, 0)
}

// Close ends Items and the link, and everything that waits. It does not wait for a
// loop's body. Position still works afterwards. It always returns nil.
func (v *Viewer) Close() error {
	v.mu.Lock()
	v.closed = true
	vl := v.link
	v.more.Broadcast()
	v.mu.Unlock()
	if vl != nil { // its detach takes the lock again
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

// pushLocked appends to the queue, whether or not there is room.
func (v *Viewer) pushLocked(q *queued) {
	if q.err == nil {
		q.w.unread++
		q.w.unreadBytes += q.size
	}
	v.queue = append(v.queue, q)
	v.bytes += q.size
	v.more.Broadcast()
}

// sortedLocked returns the watches in the order of their ids, so that what is done for all
// of them happens the same way each time.
func (v *Viewer) sortedLocked() []*watch {
	out := make([]*watch, 0, len(v.watches))
	for _, w := range v.watches {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *watch) int { return cmp.Compare(a.id, b.id) })
	return out
}

// rotatedLocked is sortedLocked, but each time it begins with the next one: a connection may
// always break before the last of them has had its turn (L8).
func (v *Viewer) rotatedLocked() []*watch {
	return rotated(v.sortedLocked(), &v.welcomes)
}
