package gvstream

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
)

// This file drives a link: it reads the clock, starts goroutines and calls the transport,
// so that link.go and the machines do none of these. Run has three goroutines:
//
//   - the sender: await the next payload, send it, again
//   - the receiver: receive a payload, handle it, again
//   - watch: ends the other two when the link dies, even if both are stuck
//
// Silence is the alarm's, which has a goroutine only while it rings (silence.go). None holds a lock while it calls send or receive.

// A SendFunc sends one payload to the peer. It may block, for as long as the
// transport does, and must return when ctx ends. A link calls it from one
// goroutine at a time. It must not change the payload; it may keep it. If it returns an
// error that wraps ErrTooLarge, the transport can't carry the payload, and has sent nothing
// of it: the link sends smaller ones in its place, and an event that is too large by itself
// becomes a gap. What has no smaller form counts as lost, and is said again on a timer. Any other error ends the link's Run or Push.
type SendFunc func(ctx context.Context, p Payload) error

// A ReceiveFunc returns the next payload from the peer. It blocks until there is
// one and must return when ctx ends. A link calls it from one goroutine at a
// time. The link keeps nothing of the payload and does not change it. If it returns
// a *ProtocolError, for a frame that could not be decoded, the link answers the peer and
// goes on; any other error ends the link's Run.
type ReceiveFunc func(ctx context.Context) (Payload, error)

// Next returns the next payload to send. It blocks until there is one, ctx ends
// or the link dies, and prefers a ready payload to a context that has ended; any other
// error than ctx's is the link's, see Err. The payload counts as sent, and as written when
// Next is called again: one that gets lost is sent again after its timer, which runs from
// then on, or on the next link (rule 9). The payload is read-only. Concurrent calls are safe,
// but payloads sent in another order than Next returned them cost resends.
//
// What a caller does between two calls is hidden from the link. If its write may be stuck
// for long, another goroutine has to wait for Done and close the connection then.
func (l *Link) Next(ctx context.Context) (Payload, error) {
	var t reusableTimer
	defer t.stop()
	p, err := l.await(ctx, &t)
	return toPayload(p), err
}

// NextFrame is Next and Append in one, for callers whose transport carries messages:
// it appends the JSON envelope of the next payload to send to dst and returns the
// extended slice, or dst as it was with an error. It is faster, since the events of a
// batch never become a []Event. It blocks as Next does, and treats ctx, errors and
// concurrent calls in the same way. The link keeps nothing of dst.
func (l *Link) NextFrame(ctx context.Context, dst []byte) ([]byte, error) {
	var t reusableTimer
	defer t.stop()
	p, err := l.await(ctx, &t)
	if err != nil {
		return dst, err
	}
	return appendOnce(dst, p), nil
}

// appendOnce appends the envelope of a payload that a machine made, and ends its use.
func appendOnce(dst []byte, p Payload) []byte {
	out, _ := Append(dst, p) // a machine makes nothing that can't be encoded
	releaseBatch(p)
	return out
}

// A reusableTimer is reset only when the deadline changes. A sender waits anew before each
// payload, mostly with the same deadline, the next sign of life. It belongs to one
// goroutine.
type reusableTimer struct {
	timer *time.Timer
	at    time.Time // what it was set to; zero: it has fired, or was never set
}

// reset sets the timer to fire at a time and returns its channel.
func (t *reusableTimer) reset(now, at time.Time) <-chan time.Time {
	if t.timer == nil {
		t.timer = time.NewTimer(at.Sub(now))
	} else if !at.Equal(t.at) {
		t.timer.Reset(at.Sub(now))
	}
	t.at = at
	return t.timer.C
}

func (t *reusableTimer) stop() {
	if t.timer != nil {
		t.timer.Stop()
	}
}

// await is Next for callers that only encode the payload: batches stay in the form that
// machines make, and the caller ends their use.
func (l *Link) await(ctx context.Context, t *reusableTimer) (Payload, error) {
	l.serve()
	for {
		now := time.Now()
		p, at, err := l.take(now)
		if err != nil { // no reply is left, and the caller has sent those before
			l.flushed()
		}
		if p != nil || err != nil {
			return p, err
		}
		var fire <-chan time.Time
		if !at.IsZero() && ctx.Err() == nil { // a caller that only polls needs no timer
			fire = t.reset(now, at)
		}
		select {
		case <-l.wake:
		case <-fire:
			t.at = time.Time{}
		case <-l.done:
		case <-ctx.Done():
			l.wakeNext() // this call may have taken the wake, or the deadline, of another
			return nil, context.Cause(ctx)
		}
	}
}

// Run connects the link to a transport until the connection breaks: it sends what Next
// returns, handles what receive returns, and returns the first reason why it can't go on,
// which is never nil: an error of send or receive, ctx's cause, or ErrSuperseded,
// ErrClosed, ErrSilent or a fatal *ProtocolError. When it returns, send and receive have
// returned, all goroutines it started have ended and the link is closed. It does not
// reconnect: make a new link, with a back-off of your own. Run a link once. It ends with
// ErrSilent when nothing has moved for 45 to 60 s (rule 9): no call of receive has
// returned, and none of send that had to wait for 0.1 s or more. A transport of messages
// shows no more than that: one on which a single payload may take longer needs RunLines,
// or smaller events.
func (l *Link) Run(ctx context.Context, send SendFunc, receive ReceiveFunc) error {
	var t reusableTimer
	defer t.stop()
	next := func(ctx context.Context) error {
		p, err := l.await(ctx, &t)
		if err != nil {
			return err
		}
		p = toPayload(p)
		begun := time.Now()
		switch err = send(ctx, p); {
		case err == nil:
			l.wrote(begun, time.Now())
		case errors.Is(err, ErrTooLarge):
			l.carryLess(p)
			return nil
		}
		return err
	}
	return run(ctx, l, next, receive, l.Handle)
}

// start reports whether the caller is the first to serve the link, by Run or Push. From
// then on a cursor of the link may join a cohort.
func (l *Link) start() bool { return !l.started.Swap(true) }

// run is Run for payloads or frames. send sends what the link has to send next. The first
// of the three goroutines that returns ends the ctx of the other two. The link is closed
// last, since Close drops what is not sent yet.
func run[M any](ctx context.Context, l *Link, send func(context.Context) error,
	receive func(context.Context) (M, error), handle func(context.Context, M) error) error {
	if !l.start() {
		return ErrBusy
	}
	defer l.Close()
	caller := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			if err := send(ctx); err != nil {
				return err
			}
		}
	})
	g.Go(func() error { return receiveLoop(ctx, l, receive, handle) })
	g.Go(func() error { return l.watch(ctx) })
	err := g.Wait()
	if caller.Err() != nil && errors.Is(err, caller.Err()) {
		return context.Cause(caller) // send and receive know only ctx.Err
	}
	return err
}

// watch returns when the link has died, so that a stuck send or receive does not
// outlive it.
func (l *Link) watch(ctx context.Context) error {
	select {
	case <-l.done:
		return l.failure()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// receiveLoop handles what comes until receive fails or the link is dead. A payload that
// was refused ends nothing (rule 11). If the link died while the payload was handled, the
// sender may have to say why, and returning would end its ctx: hence drain.
func receiveLoop[M any](ctx context.Context, l *Link, receive func(context.Context) (M, error), handle func(context.Context, M) error) error {
	for {
		m, err := receive(ctx)
		var refused *ProtocolError
		switch {
		case errors.As(err, &refused):
			l.refuseFrame(time.Now(), refused)
		case err != nil:
			return err
		default:
			err = handle(ctx, m)
		}
		if dead := l.failure(); dead != nil {
			l.drain(ctx)
			return dead
		}
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// drain waits until the sender has sent the link's last payload, or done is closed without
// that: the peer may read nothing.
func (l *Link) drain(ctx context.Context) {
	select {
	case <-l.done:
	case <-ctx.Done():
	}
}
