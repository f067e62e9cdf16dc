package gvstream

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// Push has the link call send with each payload that Next would return, as soon as
// there is one, and returns at once. It is for callers who have no goroutine for
// each connection: an event-driven server, a sink in this process. The peer's
// payloads come in by Handle. Do not call Next beside it.
//
// send is called from a few goroutines that all viewers' links of a Hub share, and
// that are there only while there is something to send; every other link has one of
// its own. For one link it is called by one of them at a time. So it has to be quick,
// such as an append to a queue of the connection's own: one that blocks holds up
// others. Its payload is read-only, since viewers share the events; it may be kept,
// with which a few payloads beside it stay in memory. An error of send is the link's
// end, and send is not called again.
//
// When ctx ends, the link is closed. Whoever has to know when the link is over, why
// ever that is, waits for the ctx that send is given, which ends at most a second after
// the link and not before the last words to the peer are sent; a call that is under way
// may return later. Handle returns the cause. Errors: ErrBusy if Push or Run was called
// before, or why the link is dead already.
func (l *Link) Push(ctx context.Context, send SendFunc) error {
	if err := l.failure(); err != nil {
		return err
	}
	if !l.claim() {
		return ErrBusy
	}
	p := &pushWriter{l: l, workers: l.workers, send: send}
	if p.workers == nil {
		own := newWorkerPool()
		p.workers = &own
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.timer = time.AfterFunc(timerMax, p.tick)
	p.resetTimer(heartbeatEvery)
	p.release = context.AfterFunc(ctx, func() { l.Close() })
	l.pusher.Store(p)
	p.wake()
	return nil
}

// claim reports whether the caller is the one that serves the link.
func (l *Link) claim() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.running
	l.running = true
	l.started.Store(true)
	return !was
}

// A pushWriter sends what its link has to send, when a worker comes round.
type pushWriter struct {
	l       *Link
	workers *workerPool
	ctx     context.Context
	cancel  context.CancelFunc
	send    SendFunc
	release func() bool // of what was registered with the caller's ctx

	state atomic.Int32
	place sched.Element[job] // in the workers's queue
	timer *time.Timer
	fired atomic.Bool // the timer did, and was not set since
	// Whoever claimed the link has these to itself.
	at time.Time // what the timer was set to
}

// States of a pusher. Only an idle one may be claimed, so that send is called by one
// goroutine at a time; and one that is idle has nothing to send.
const (
	pushIdle int32 = iota
	pushBusy       // claimed, or waiting for the workers
	pushMore       // and there was news since
)

// wake has the workers serve the link.
func (p *pushWriter) wake() {
	for {
		old := p.state.Load()
		if old == pushMore {
			return
		}
		if p.state.CompareAndSwap(old, old+1) {
			if old == pushIdle {
				p.workers.add(&p.place, p)
			}
			return
		}
	}
}

// claim makes the caller the one that may send, if there is nothing else to be sent.
func (p *pushWriter) claim() bool { return p.state.CompareAndSwap(pushIdle, pushBusy) }

// unclaim is its end.
func (p *pushWriter) unclaim() {
	if !p.state.CompareAndSwap(pushBusy, pushIdle) {
		p.workers.add(&p.place, p)
	}
}

// pushTurn is how many payloads a link sends before it is another's turn, and how many
// times a session sends to a cohort.
const pushTurn = 16

// work sends what the link has to send, for one turn.
func (p *pushWriter) work(now time.Time) {
	for range pushTurn {
		p.state.Store(pushBusy)
		pl, at, err := p.l.next(now)
		switch {
		case err != nil: // it is never idle again
			p.end()
			return
		case pl != nil:
			p.write(now, pl)
		default:
			p.setTimer(at)
			if p.state.CompareAndSwap(pushBusy, pushIdle) {
				return
			}
		}
	}
	p.workers.add(&p.place, p)
}

func (p *pushWriter) write(now time.Time, pl Payload) {
	if err := p.send(p.ctx, pl); err != nil {
		p.l.fail(now, err)
		p.l.discardReplies()
	}
}

func (p *pushWriter) setTimer(at time.Time) {
	if !p.fired.Swap(false) && at.Equal(p.at) {
		return
	}
	if p.at = at; !at.IsZero() {
		p.resetTimer(time.Until(at))
	}
}

// resetTimer has the clock be looked at after a while.
func (p *pushWriter) resetTimer(d time.Duration) {
	if p.timer.Stop(); p.workers.size > 0 {
		p.timer.Reset(d)
	}
}

// tick is called when a task of the link is due. While send is stuck, nobody else
// looks at the clock (rule 9), and a link that is dead waits no longer.
func (p *pushWriter) tick() {
	m, listens := p.l.m.(listener)
	now := time.Now()
	switch {
	case p.l.failure() != nil:
		p.cancel()
	case listens && m.silent(now):
		p.l.fail(now, ErrSilent)
	case listens:
		p.resetTimer(heartbeatEvery)
		fallthrough
	default:
		p.fired.Store(true) // whoever is at work may have an older now
		p.wake()
	}
}

// failed gives send a last moment to say why the link died.
func (p *pushWriter) failed() { p.resetTimer(drainTimeout) }

func (p *pushWriter) end() {
	p.timer.Stop()
	p.release()
	p.cancel()
}
