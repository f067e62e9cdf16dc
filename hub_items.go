package gvstream

import (
	"context"
	"iter"
	"math"
	"time"
)

// Items yields what happens in one session to the hub's own process, after a
// position: as a Viewer's Items does, older events that only the agent has
// included. It blocks until there is something, and ends without an error when ctx
// ends, after the End item, or when the Hub is closed; otherwise with the one error
// that it yields: ErrInvalidID, or a *ProtocolError such as replay_ahead. Any
// number may run at once. Authorize is not asked.
func (h *Hub) Items(ctx context.Context, sessionID string, after Position) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		// A viewer without a connection: both of its links in one goroutine.
		v := NewViewer(&ViewerConfig{
			BufferItems: 2 * (maxBatchEvents + maxBatchGaps), // one payload is never too much
			BufferBytes: math.MaxInt / 2,
		})
		if err := v.Watch(sessionID, after); err != nil {
			yield(Item{}, err)
			return
		}
		now := time.Now()
		w := local{v: v, up: v.connect(now), down: h.connectViewer(now, "", true)}
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

type local struct {
	v    *Viewer
	up   *viewerLink
	down *hubViewerLink
}

// next carries payloads between the links until there is an item, or returns
// nothing when ctx ends.
func (w *local) next(ctx context.Context) (*queued, error) {
	for {
		if q, _ := w.v.front(); q != nil {
			return q, nil
		}
		w.v.mu.Lock()
		w.up.held = true // silence is the loop body's
		w.v.mu.Unlock()
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

// carry hands at most one payload over.
func carry(ctx context.Context, now time.Time, from, to *Link) (bool, time.Time, error) {
	p, at, err := from.take(now)
	if err != nil || p == nil {
		return false, at, err
	}
	defer end(p)
	return true, at, to.handle(ctx, now, p)
}

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
