package gvstream

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A Link is one connection of a Streamer, Hub or Viewer to its peer, for as long
// as the connection lasts: make a new one for each, with Streamer.Connect,
// Hub.ConnectAgent, Hub.ConnectViewer or Viewer.Connect. A link of an older
// connection is dead from the moment a newer one is made: its calls return
// ErrSuperseded and change nothing (rule 3).
//
// Run does everything, and RunLines over a byte stream. Callers who dispatch payloads
// themselves use Handle, and Next or Push, instead, or HandleFrame and NextFrame, and
// Close when the connection is gone.
//
// Locks are taken in this order and no other: 1 that of a Streamer, Hub or Viewer, 2 that
// of a session, 3 that of a link, which also protects the fields of the half that embeds
// it, 4 the leaves, under which nothing else is locked. No goroutine holds two locks of
// one level. A method that wants a lock held ends in Locked.
type Link struct {
	m       machine
	refused *atomic.Uint64 // counts the payloads answered by an error
	workers *workerPool    // that Push shares with other links, or nil
	started atomic.Bool    // Run or Push was called
	pusher  atomic.Pointer[pushWriter]
	wake    chan struct{} // one slot: Next has something to look at
	done    chan struct{} // closed when the link is dead and has said so

	mu      sync.Mutex           // level 3; protects the fields below, and those of the half that embeds the Link
	replies []Payload            // said first, in order
	tasks   sched.Tasks[Payload] // control: acks, statuses, requests, before events (rule 7); data: sessions, cursors, replays
	err     error                // why the link is dead, or nil
	running bool
	over    bool // done is closed
}

// A machine is what a link belongs to: a Streamer's, Hub's or Viewer's half of
// one connection. Batches come and go as eventBatch and replayBatch.
type machine interface {
	// handle applies a payload that arrived at now, and keeps nothing of it. A
	// *ProtocolError is answered to the peer; any other error but ctx's own ends the
	// link. If it has to wait, it waits no longer than ctx.
	handle(ctx context.Context, now time.Time, p Payload) error
	// detach is called once, after the link died.
	detach(now time.Time)
}

// A listener is a machine that takes a silent peer for gone (rule 9): an agent's or
// viewer's.
type listener interface {
	silent(now time.Time) bool
}

// A task is something on a link that may have a payload to send: a session, a cursor, a
// replay, a heartbeat. Its Source is called without any lock, by Next only, and calls
// ready or schedule for whatever it waits for.
type task = sched.Task[Payload]

func newLink(m machine, refused *atomic.Uint64) *Link {
	return &Link{m: m, refused: refused, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// ready asks t for its next payload, in turn.
func (l *Link) ready(t *task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readyLocked(t)
}

func (l *Link) readyLocked(t *task) {
	if l.err == nil {
		l.tasks.Ready(t)
		l.wakeNext()
	}
}

// schedule asks t again at the given time, or earlier. A task that is asked too
// early schedules itself again, so that moving a deadline back costs nothing.
func (l *Link) schedule(t *task, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.scheduleLocked(t, at)
}

func (l *Link) scheduleLocked(t *task, at time.Time) {
	if l.err == nil && l.tasks.ReadyAt(t, at) {
		l.wakeNext()
	}
}

// forget takes t out, so that nothing holds what it belongs to.
func (l *Link) forget(t *task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tasks.Remove(t)
}

// forgetAll takes all tasks out.
func (l *Link) forgetAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tasks.Clear()
}

// reply queues a payload that says something once. If the peer reads nothing, it
// may be lost, a refusal before anything else.
func (l *Link) reply(p Payload) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replyLocked(p)
}

func (l *Link) replyLocked(p Payload) {
	room := 2 * maxReplies
	if _, isError := p.(*ErrorPayload); isError {
		room = maxReplies
	}
	if l.err == nil && len(l.replies) < room {
		l.replies = append(l.replies, p)
	}
	l.wakeNext()
}

// wakeNext wakes Next, or whoever pushes.
func (l *Link) wakeNext() {
	if p := l.pusher.Load(); p != nil {
		p.wake()
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// fail makes the link dead. What was to be said to the peer is still said, unless
// the link was superseded or closed, or the peer is gone.
func (l *Link) fail(now time.Time, err error) { l.failWith(now, err, nil) }

// failWith is fail with a last payload, unless that is nil. Both at once, so that
// nobody can have sent the last one and not know that it was.
func (l *Link) failWith(now time.Time, err error, last Payload) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	l.tasks.Clear()
	if errors.Is(err, ErrSuperseded) || errors.Is(err, ErrClosed) || errors.Is(err, ErrSilent) {
		l.replies = nil
	} else if last != nil {
		l.replies = append(l.replies, last)
	}
	l.finishLocked()
	l.mu.Unlock()
	l.wakeNext()
	if p := l.pusher.Load(); p != nil {
		p.failed()
	}
	l.m.detach(now)
}

// finishLocked closes done once nothing is left to say, and what was said is sent.
func (l *Link) finishLocked() {
	if l.err != nil && len(l.replies) == 0 && !l.over {
		l.over = true
		close(l.done)
	}
}

// flushed takes note that what was said before is sent.
func (l *Link) flushed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finishLocked()
}

// discardReplies drops what was still to be said: the dead link's peer can't be told.
func (l *Link) discardReplies() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replies = nil
	l.finishLocked()
}

func (l *Link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// next returns what to send now, for a caller to see, or when to ask again if
// nothing happens before: never, if that is zero.
func (l *Link) next(now time.Time) (Payload, time.Time, error) {
	p, at, err := l.take(now)
	return open(p), at, err
}

// take is next without the last step: batches are in the form that machines make.
func (l *Link) take(now time.Time) (Payload, time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if len(l.replies) > 0 {
			p := l.replies[0]
			l.replies[0] = nil
			l.replies = l.replies[1:]
			l.wakeNext() // there may be more, for a call at the same time
			return p, time.Time{}, nil
		}
		if l.err != nil {
			return nil, time.Time{}, l.err
		}
		t, at := l.tasks.Next(now)
		if t == nil {
			return nil, at, nil
		}
		l.mu.Unlock()
		p := t.Source(now)
		l.mu.Lock()
		if p != nil {
			l.readyLocked(t) // it may have more, after the others
			return p, time.Time{}, nil
		}
	}
}

// HandleFrame is Unmarshal and Handle in one, for callers whose transport carries
// messages: it applies one JSON envelope from the peer, and keeps nothing of frame.
// It is faster, since the events of a batch never become a []Event. It blocks as
// Handle does, and what holds of its ctx, of errors and of calls at the same time
// holds here. A frame that can't be decoded is refused with a *ProtocolError: the
// peer is told, unless the frame is an error, and the link goes on (rule 11).
func (l *Link) HandleFrame(ctx context.Context, frame []byte) error {
	return l.handleFrame(ctx, time.Now(), frame)
}

func (l *Link) handleFrame(ctx context.Context, now time.Time, frame []byte) error {
	if err := l.failure(); err != nil {
		return err
	}
	d := decoders.Get().(*decoder)
	defer d.release()
	p, err := d.decode(frame)
	if err != nil {
		l.refuseFrame(now, err)
		return err
	}
	defer end(p)
	return l.handle(ctx, now, p)
}

// Handle applies one payload from the peer. It does not change p and keeps nothing of
// it. It may block: in a callback of HubConfig, or at a viewer until Items has taken
// what came before; ctx ends the wait, and then the rest of the payload counts as lost
// and comes again.
//
// A *ProtocolError says that the payload, or a part of it, was refused: the peer
// is told by the next Next, and unless the link died of it the next payload is
// welcome. Any other error but ctx's is the link's end. A duplicate and a payload
// of an older link are no errors. Calls are safe at the same time, but a peer's
// payloads should be handled in the order in which they came.
func (l *Link) Handle(ctx context.Context, p Payload) error {
	return l.handle(ctx, time.Now(), p)
}

func (l *Link) handle(ctx context.Context, now time.Time, p Payload) error {
	if err := l.failure(); err != nil {
		return err
	}
	err := l.apply(ctx, now, p)
	if err == nil {
		return nil
	}
	var refused *ProtocolError
	switch {
	case errors.As(err, &refused):
		if _, isError := p.(*ErrorPayload); !isError {
			l.refuse(now, refused)
		} else if refused.fatal {
			l.fail(now, refused)
		}
	case ctx.Err() == nil:
		l.fail(now, err)
	}
	return err
}

func (l *Link) apply(ctx context.Context, now time.Time, p Payload) error {
	if isNil(p) {
		return malformed("no payload")
	}
	if err := p.check(); err != nil {
		return err
	}
	b := batch(p)
	if b != p {
		defer end(b)
	}
	return l.m.handle(ctx, now, b)
}

// refuseFrame tells the peer of a frame that could not be decoded.
func (l *Link) refuseFrame(now time.Time, err *ProtocolError) {
	if !err.unanswered {
		l.refuse(now, err)
	}
}

// refuse tells the peer, and ends the link if the rule says so.
func (l *Link) refuse(now time.Time, err *ProtocolError) {
	l.refused.Add(1)
	if err.fatal {
		l.failWith(now, err, err.Payload())
	} else {
		l.reply(err.Payload())
	}
}

// Close makes the link dead: its calls return ErrClosed from then on, and a
// running Run returns soon. Payloads that were not sent yet are dropped. It never
// blocks, and is safe to call at any time and more than once. It does not close the transport. It always returns nil.
func (l *Link) Close() error {
	l.fail(time.Now(), ErrClosed)
	return nil
}
