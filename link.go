package gvstream

import (
	"context"
	"errors"
	"slices"
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
// Run does everything, as does RunLines over a byte stream. Callers that dispatch
// payloads themselves use Handle with Next or Push, or HandleFrame with NextFrame, and
// call Close when the connection is gone.
//
// A link is alive from Connect on until it fails: because of a newer link, Close, a
// connection on which nothing moves, or a fatal error of the protocol or the transport.
// Then it is dead for good. It may still have a last payload, which says to the peer why:
// for a second, Next returns that before the error.
type Link struct {
	endpoint endpoint
	refused  *atomic.Uint64 // counts the payloads answered by an error
	workers  *workerPool    // that Push shares with other links, or nil
	started  atomic.Bool    // Run or Push was called: a second call gets ErrBusy
	pusher   atomic.Pointer[pushWriter]
	wake     chan struct{} // one slot: Next has something to look at
	done     chan struct{} // closed when the link is dead and its last payload is sent

	// Signs of life (rule 9); see silence.
	patient  bool         // the peer is in this process, and may take its time: Items
	heardAt  atomic.Int64 // when something moved last, as nanoseconds after clockStart; 0: not served yet
	handling atomic.Int32 // calls of Handle that are under way
	serving  sync.Once    // makes the alarm

	// All locks are taken in this order and no other: 1 that of a Streamer, Hub or Viewer, 2
	// that of a session, 3 that of a link, which also protects the fields of the half that
	// embeds it, 4 the leaves, under which nothing else is locked. No goroutine holds two
	// locks of one level. A method that wants a lock held ends in Locked, and holds it again
	// when it returns, if it had to give it up.
	mu sync.Mutex // level 3; protects the fields below, and those of the half that embeds the Link
	// What there is to send, in the order of rule 7: all replies, then control tasks (acks,
	// statuses, requests), then data tasks (sessions, cursors, replays) in turn. A reply is
	// a finished payload, since it says something once; a task makes its payload when it is
	// asked, so that a slow connection is sent what is true now and nothing piles up.
	replies []Payload
	tasks   sched.Tasks[Payload]
	// err is why the link is dead, or nil. A dead link has no tasks and takes none, which
	// lets go of the sessions and cursors that they belong to.
	err  error
	over bool // done is closed
	// unwritten are the tasks whose payloads were taken since the sender last came for one,
	// as far as they want to know when those are written.
	unwritten []*task
	spokeAt   time.Time   // when a payload was last taken
	alarm     *time.Timer // looks for silence; nil: the link's owner does, or nobody has served it
}

// An endpoint is what a link belongs to: a Streamer's, Hub's or Viewer's half of
// one connection. Batches come and go as eventBatch and replayBatch. The link calls it
// with no lock held, so that it may take locks of any level.
type endpoint interface {
	// handle applies a payload that arrived at now, and keeps nothing of it. A
	// *ProtocolError is answered to the peer; any other error but ctx's own ends the
	// link. If it has to wait, it waits no longer than ctx.
	handle(ctx context.Context, now time.Time, p Payload) error
	// detach is called once, after the link died: the whole then forgets the link, unless
	// it has a newer one already. Calls of handle may still be under way.
	detach(now time.Time)
}

// An author is a machine whose own log has to know of an event that no transport can carry:
// an agent's. For others it is a gap in a payload and nothing else.
type author interface {
	// lose makes a gap of an event, unless the hub has acknowledged it.
	lose(sessionID, epoch string, seq uint64)
}

// An unreader is a machine that has to know of an event that it can't be given, since it would
// only ask for it again: a viewer's.
type unreader interface {
	// unreadable is called with no lock held, for an event batch that was refused with
	// CodeEventRejected before the machine saw it.
	unreadable(err *ProtocolError)
}

// A task is something on a link that may have a payload to send: a session, a cursor, a
// replay, a heartbeat. Its Source is called without any lock, by take only. A Source that
// returns nil is not asked again before somebody calls ready or schedule: either it
// schedules itself, or the code that changes what it waits for makes it ready.
type task = sched.Task[Payload]

func newLink(m endpoint, refused *atomic.Uint64) *Link {
	return &Link{endpoint: m, refused: refused, wake: make(chan struct{}, 1), done: make(chan struct{})}
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

// forget takes t out, so that the link no longer keeps alive what it belongs to. A call of
// its Source may still be under way, and make it ready once more: a Source finds out by
// itself that what it belongs to is over.
func (l *Link) forget(t *task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tasks.Remove(t)
	l.unwritten = slices.DeleteFunc(l.unwritten, func(u *task) bool { return u == t })
}

// forgetAll takes all tasks out, for a new link id on the same connection.
func (l *Link) forgetAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetAllLocked()
}

func (l *Link) forgetAllLocked() {
	l.tasks.Clear()
	l.unwritten = nil
}

// reply queues a payload that says something once. If the peer reads nothing, payloads
// past a bound are dropped, or a peer that only writes would fill this side's memory
// (rule 11). Refusals have the lower bound, so that they can't crowd out the replies that
// the peer waits for; whatever is dropped is asked for again on the peer's timer.
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

// wakeNext makes the link's sender look for a payload: a worker of Push, or one call of
// Next. The token stays in the channel if no call waits, so that a change between
// the look of take and the wait of await isn't missed.
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

// fail makes the link dead, unless it is already: the first cause stays. Replies that are
// queued are still sent, unless the link was superseded or closed, or the peer is gone: then
// they are of no use any more.
// The caller holds no lock, since detach takes those of levels 1 and 2.
func (l *Link) fail(now time.Time, err error) { l.failWith(now, err, nil) }

// failWith is fail with a last payload, unless that is nil. Both happen under one lock:
// queued before, the payload could be sent by a link that goes on and sends others after
// it; queued after, it would find the link dead and be dropped.
func (l *Link) failWith(now time.Time, err error, last Payload) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	l.forgetAllLocked()
	if errors.Is(err, ErrSuperseded) || errors.Is(err, ErrClosed) || errors.Is(err, ErrSilent) {
		l.replies = nil
	}
	if last != nil {
		l.replies = append(l.replies, last)
	}
	l.finishLocked()
	if l.alarm != nil {
		l.alarm.Stop()
		if !l.over {
			time.AfterFunc(drainTimeout, l.discardReplies)
		}
	}
	l.mu.Unlock()
	l.wakeNext()
	if p := l.pusher.Load(); p != nil {
		p.failed()
	}
	l.endpoint.detach(now)
}

// finishLocked closes done once the link is dead and no reply is left. It is not called
// when the last reply is taken but when the sender comes for another, since only then is
// the last one sent: done ends Run, and with it the transport.
func (l *Link) finishLocked() {
	if l.err != nil && len(l.replies) == 0 && !l.over {
		l.over = true
		close(l.done)
	}
}

// flushed notes that all payloads taken so far are sent.
func (l *Link) flushed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finishLocked()
}

// discardReplies drops the replies of a dead link whose transport takes no more.
func (l *Link) discardReplies() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replies = nil
	l.finishLocked()
}

// failure returns why the link is dead, or nil while it is alive.
func (l *Link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// next returns the payload to send now, in the form that callers see. Without one it
// returns the time at which to ask again if nothing wakes the sender before, or the zero
// time if only a wake can bring one. A dead link first yields the replies that are left.
func (l *Link) next(now time.Time) (Payload, time.Time, error) {
	p, at, err := l.take(now)
	return toPayload(p), at, err
}

// take is like next, for callers that only encode the payload: batches stay in the form
// that machines make, and the caller ends their use. That the sender comes for another says
// that those it took before are written.
func (l *Link) take(now time.Time) (Payload, time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteWrittenLocked(now)
	return l.takeLocked(now)
}

// noteWrittenLocked tells the tasks whose payloads were taken that those are written.
func (l *Link) noteWrittenLocked(now time.Time) {
	for n := len(l.unwritten); n > 0; n = len(l.unwritten) {
		t := l.unwritten[n-1]
		if l.unwritten = l.unwritten[:n-1]; n == 1 && cap(l.unwritten) > 16 {
			l.unwritten = nil
		}
		l.mu.Unlock()
		t.Written(now)
		l.mu.Lock()
	}
}

// takeMore is take for a sender that has not written yet what it took before.
func (l *Link) takeMore(now time.Time) (Payload, time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.takeLocked(now)
}

// takeLocked finds the payload that is to be sent next.
//
// The lock is given up while a Source is called, since that takes locks of levels 1 and 2.
// Meanwhile the link may die, and other tasks and replies may come; the loop looks at all
// of it afresh. A payload that was made is returned all the same: it counts as sent.
func (l *Link) takeLocked(now time.Time) (Payload, time.Time, error) {
	for {
		if len(l.replies) > 0 {
			p := l.replies[0]
			l.replies[0] = nil
			l.replies = l.replies[1:]
			l.spokeAt = now
			l.wakeNext() // there may be more, for a concurrent call
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
			if l.spokeAt = now; t.Written != nil && l.err == nil {
				l.unwritten = append(l.unwritten, t)
			}
			l.readyLocked(t) // it may have more, after the others: they take turns (rule 7)
			return p, time.Time{}, nil
		}
	}
}

// carryLess sends smaller payloads in place of the last one that was taken, which is more
// than the transport can carry. They go out before all else, since they have its place in the
// order of its session. An event that is too large by itself becomes a gap. What can't be
// made smaller counts as lost on its way.
func (l *Link) carryLess(p Payload) {
	parts, lost := divide(p)
	if lost != nil {
		switch m := l.endpoint.(type) {
		case author:
			m.lose(lost.SessionID, lost.Epoch, lost.FirstSeq)
		case *hubViewerLink:
			m.addressLost(parts[0].(*EventBatchPayload), lost.Events[0].End)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.replies = slices.Insert(l.replies, 0, parts...)
	}
	l.wakeNext()
}

// HandleFrame is Unmarshal and Handle in one, for callers whose transport carries
// messages: it applies one JSON envelope from the peer, and keeps nothing of frame.
// It is faster, since the events of a batch never become a []Event. It blocks as
// Handle does, and treats ctx, errors and concurrent calls in the same way. A frame that
// can't be decoded is refused with a *ProtocolError: the peer gets an error payload,
// unless the frame is one itself, and the link goes on (rule 11). As with Handle, Err tells
// whether the link has ended.
func (l *Link) HandleFrame(ctx context.Context, frame []byte) error {
	l.serve()
	return l.handleFrame(ctx, time.Now(), frame)
}

func (l *Link) handleFrame(ctx context.Context, now time.Time, frame []byte) error {
	if err := l.failure(); err != nil {
		return err
	}
	l.heard(now)
	d := decoders.Get().(*decoder)
	defer d.release()
	p, err := d.decode(frame)
	if err != nil {
		l.refuseFrame(now, err)
		return err
	}
	defer releaseBatch(p)
	return l.handle(ctx, now, p)
}

// Handle applies one payload from the peer. It does not change p and keeps nothing of
// it. It may block at a hub, in HubConfig.AuthorizeViewer; where ctx ends that, the payload
// counts as lost and comes again.
//
// A *ProtocolError says that the payload, or a part of it, was refused (rule 11): the
// answer to the peer is queued for Next. That is nothing to end a connection for, or each
// new one would end by the same payload. So ask Err after an error: if it returns nil and
// ctx has not ended, go on with the next payload. Duplicates and payloads of an older link
// are not errors. Whatever comes is a sign of the peer's life (rule 9). Concurrent calls are
// safe, but a peer's payloads should be handled in the order in which they arrived.
func (l *Link) Handle(ctx context.Context, p Payload) error {
	l.serve()
	return l.handle(ctx, time.Now(), p)
}

// handle is Handle at a given time. It answers what apply refuses, but never an error by an
// error: two peers would go on refusing each other's refusals.
func (l *Link) handle(ctx context.Context, now time.Time, p Payload) error {
	if err := l.failure(); err != nil {
		return err
	}
	l.heard(now)
	l.handling.Add(1)
	defer l.handling.Add(-1)
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

// apply checks a payload and gives it to the machine. Callers of Handle may pass anything,
// so the machines rely on this check and not on the decoder's.
func (l *Link) apply(ctx context.Context, now time.Time, p Payload) error {
	if isNil(p) {
		return malformed("no payload")
	}
	if err := p.check(); err != nil {
		return err
	}
	b := toBatch(p)
	if b != p {
		defer releaseBatch(b)
	}
	return l.endpoint.handle(ctx, now, b)
}

// refuseFrame answers a frame that could not be decoded, unless it is an error payload
// itself (rule 11).
func (l *Link) refuseFrame(now time.Time, err *ProtocolError) {
	if !err.unanswered {
		l.refuse(now, err)
	}
}

// refuse counts a refusal and queues the answer to the peer. A fatal one is the link's last
// payload.
func (l *Link) refuse(now time.Time, err *ProtocolError) {
	l.refused.Add(1)
	if err.fatal {
		l.failWith(now, err, err.Payload())
	} else {
		l.reply(err.Payload())
		if ha, ok := l.endpoint.(*hubAgentLink); ok {
			ha.refusedBatch(now, err)
		}
	}
	if m, ok := l.endpoint.(unreader); ok && err.Code == CodeEventRejected {
		m.unreadable(err)
	}
}

// Close makes the link dead: its calls return ErrClosed from then on, and a
// running Run returns soon. Payloads that were not sent yet are dropped. It never
// blocks, and is safe to call at any time and more than once. It does not close the
// transport. It always returns nil.
func (l *Link) Close() error {
	l.fail(time.Now(), ErrClosed)
	return nil
}
