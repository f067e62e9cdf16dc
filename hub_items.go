package gvstream

import (
	"context"
	"iter"
	"time"
)

// This file is a viewer inside the hub's process. It is the real Viewer and the real link of
// a hub, so that rules 12 to 16 are written once, and in place of a connection a loop that
// hands the payloads of either to the other. No payload is encoded, and there is no goroutine
// but the reader's.

// Items yields what happens in one session to the hub's own process, after a
// position, including older events that only the agent has, just as a Viewer's Items
// does. It blocks until there is something, and ends without an error when ctx
// ends, after the End item, or when the Hub is closed. Otherwise it ends with the one
// error that it yields: ErrInvalidID, ErrInvalidPosition, or a *ProtocolError such as replay_ahead. Any
// number may run at once. AuthorizeViewer is not asked. Items and their bytes are the caller's.
//
// A reader that stands still holds up nothing but itself. To go on later, give Items the
// Position of the last item that was dealt with.
func (h *Hub) Items(ctx context.Context, sessionID string, after Position) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		v := NewViewer(nil)
		if err := v.Watch(sessionID, after); err != nil {
			yield(Item{}, err)
			return
		}
		now := time.Now()
		w := local{v: v, up: v.connect(now), down: h.connectViewer(now, "", true)}
		w.up.patient = true // while the reader is elsewhere, nothing is carried
		defer w.up.Close()
		defer w.down.Close()
		for {
			q, err := w.next(ctx)
			switch {
			case err != nil && err != ErrClosed:
				yield(Item{}, err)
				return
			case q == nil:
				return
			case !yield(q.item, q.err) || q.err != nil || q.item.End:
				return
			}
			v.done(q)
		}
	}
}

// A local is a viewer and both halves of its connection, used by one goroutine. It lives as
// long as one iteration of Items.
type local struct {
	v    *Viewer
	up   *viewerLink    // the viewer's half
	down *hubViewerLink // the hub's
}

// next carries payloads between the links until there is an item, or returns
// nothing when ctx ends.
func (w *local) next(ctx context.Context) (*queued, error) {
	for {
		if q, _ := w.v.front(); q != nil {
			return q, nil
		}
		now := time.Now()
		moved, atUp, err := carry(ctx, now, w.up.Link, w.down.Link)
		if err != nil {
			return nil, err
		}
		back, atDown, err := carry(ctx, now, w.down.Link, w.up.Link)
		if err != nil {
			return nil, err
		}
		if moved || back {
			continue
		}
		if !w.wait(ctx, now, atUp, atDown) {
			return nil, nil
		}
	}
}

// carry hands at most one payload over. If there is none, it returns when from has something
// to send by the clock. A batch's use ends here, when the other side has handled it.
func carry(ctx context.Context, now time.Time, from, to *Link) (bool, time.Time, error) {
	p, at, err := from.take(now)
	if err != nil || p == nil {
		return false, at, err
	}
	defer releaseBatch(p)
	return true, at, to.handle(ctx, now, p)
}

// wait waits until a link may have something to send, and reports false if ctx ended.
func (w *local) wait(ctx context.Context, now, a, b time.Time) bool {
	if b.Before(a) { // both links have a heartbeat by now
		a = b
	}
	timer := time.NewTimer(a.Sub(now))
	defer timer.Stop()
	select {
	case <-w.up.wake:
	case <-w.down.wake:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}
