package gvstream

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
)

// A SendFunc sends one payload to the peer. It may block, for as long as the
// transport does, and must return when ctx ends. A link calls it from one
// goroutine at a time. It must not change the payload; it may keep it.
type SendFunc func(ctx context.Context, p Payload) error

// A ReceiveFunc returns the next payload from the peer. It blocks until there is
// one and must return when ctx ends. A link calls it from one goroutine at a
// time. The link keeps nothing of the payload and does not change it. If it returns
// a *ProtocolError, for a frame that could not be decoded, the peer is told and
// the link goes on; any other error ends the link's Run.
type ReceiveFunc func(ctx context.Context) (Payload, error)

// Next returns the next payload to send. It blocks until there is one, ctx ends
// or the link dies, and prefers a ready payload to a context that has ended. The
// payload counts as sent: one that can't be sent is sent again after its timer, or
// on the next link. The payload is read-only. Calls are safe at the same time, but
// only payloads sent in the order in which Next returned them spare resends.
func (l *Link) Next(ctx context.Context) (Payload, error) {
	var a reusableTimer
	defer a.stop()
	p, err := l.await(ctx, &a)
	return open(p), err
}

// NextFrame is Next and Append in one, for callers whose transport carries messages:
// it appends the JSON envelope of the next payload to send to dst and returns the
// extended slice, or dst as it was with an error. It is faster, since the events of a
// batch never become a []Event. It blocks as Next does, and what holds of its ctx,
// of errors and of calls at the same time holds here. The link keeps nothing of dst.
func (l *Link) NextFrame(ctx context.Context, dst []byte) ([]byte, error) {
	var a reusableTimer
	defer a.stop()
	p, err := l.await(ctx, &a)
	if err != nil {
		return dst, err
	}
	return appendOnce(dst, p), nil
}

// appendOnce appends the envelope of a payload that a machine made, whose use ends.
func appendOnce(dst []byte, p Payload) []byte {
	out, _ := Append(dst, p) // a machine says nothing that can't be told
	end(p)
	return out
}

// A reusableTimer is a timer that is set only if the time is another one. Who waits often
// for the same deadline sets it once.
type reusableTimer struct {
	timer *time.Timer
	at    time.Time // what it was set to; zero: it has rung, or was never set
}

// reset returns what is to be waited for.
func (a *reusableTimer) reset(now, at time.Time) <-chan time.Time {
	if a.timer == nil {
		a.timer = time.NewTimer(at.Sub(now))
	} else if !at.Equal(a.at) {
		a.timer.Reset(at.Sub(now))
	}
	a.at = at
	return a.timer.C
}

func (a *reusableTimer) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// await is Next without the last step: batches are in the form that machines make.
func (l *Link) await(ctx context.Context, a *reusableTimer) (Payload, error) {
	for {
		now := time.Now()
		p, at, err := l.take(now)
		if err != nil {
			l.flushed()
		}
		if p != nil || err != nil {
			return p, err
		}
		var fire <-chan time.Time
		if !at.IsZero() && ctx.Err() == nil { // whoever only asks needs no timer
			fire = a.reset(now, at)
		}
		select {
		case <-l.wake:
		case <-fire:
			a.at = time.Time{}
		case <-l.done:
		case <-ctx.Done():
			l.wakeNext() // another call may have to look at the clock in this one's place
			return nil, context.Cause(ctx)
		}
	}
}

// Run connects the link to a transport until the connection breaks: it sends what
// Next returns, handles what receive returns, and returns the first cause why it
// can't go on, which is never nil: an error of send or receive, ctx's cause, or
// ErrSuperseded, ErrClosed, ErrSilent, a fatal *ProtocolError or the error of a
// Commit callback. When it returns, send and receive have returned, all goroutines
// it started have ended and the link is closed. It does not reconnect: make a new
// link, with a back-off of your own. Run a link once. An agent's or viewer's ends
// with ErrSilent after 45 s without a word from the hub; a hub's does not.
func (l *Link) Run(ctx context.Context, send SendFunc, receive ReceiveFunc) error {
	var a reusableTimer
	defer a.stop()
	next := func(ctx context.Context) error {
		p, err := l.await(ctx, &a)
		if err != nil {
			return err
		}
		return send(ctx, open(p))
	}
	return run(ctx, l, next, receive, l.Handle)
}

// run is Run for payloads or frames. send sends what the link says next.
func run[M any](ctx context.Context, l *Link, send func(context.Context) error,
	receive func(context.Context) (M, error), handle func(context.Context, M) error) error {
	if !l.claim() {
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
// outlive it. While send is stuck, nobody calls Next, which looks at the clock
// otherwise: then the link dies of the peer's silence here.
func (l *Link) watch(ctx context.Context) error {
	m, listens := l.m.(listener)
	var tick <-chan time.Time
	if listens {
		ticker := time.NewTicker(heartbeatEvery)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-l.done:
			return l.failure()
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick:
			if m.silent(now) {
				l.fail(now, ErrSilent)
			}
		}
	}
}

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

// drain waits until the sender has said why the link failed.
func (l *Link) drain(ctx context.Context) {
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
	case <-ctx.Done():
	}
}
