package gvstream

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// Push makes the link call send with each payload that Next would return, as soon as
// there is one, and returns at once. It is for callers that have no goroutine for
// each connection: an event-driven server, a sink in this process. Pass the peer's
// payloads to Handle. Do not call Next on the same link.
//
// send is called from a few goroutines that all viewers' links of a Hub share and that
// exist only while there is something to send; every other link has a goroutine of its
// own. For one link there is one call at a time. So send has to be quick, such as an
// append to the connection's own queue: one that blocks holds up other links. The
// payload is read-only and may be kept; many viewers may be given the same one, of which
// Append then encodes the events only once. An error of send ends the link, and send
// is not called again.
//
// When ctx ends, the link is closed. To learn when the link is over, for whatever
// reason, wait for the ctx passed to send: it ends when the last payload to the peer has
// been sent, and at most one second after the link has died; a call of send that is under
// way may return later. Handle then returns the cause. Errors: ErrBusy if Push or Run was
// called before, or why the link is dead already.
func (l *Link) Push(ctx context.Context, send SendFunc) error {
	if err := l.failure(); err != nil {
		return err
	}
	if !l.start() {
		return ErrBusy
	}
	p := &pushWriter{l: l, workers: l.workers, send: send}
	if p.workers == nil {
		own := newWorkerPool()
		p.workers = &own
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.timer = time.AfterFunc(timerMax, p.tick) // so late that tick finds p.timer set
	p.timer.Stop()
	p.release = context.AfterFunc(ctx, func() { l.Close() })
	l.pusher.Store(p)
	if p.workers.size > 0 {
		l.serve()
	}
	p.wake() // what became ready before the Store woke nobody
	return nil
}

// A pushWriter sends what its link has to send, when a worker comes round. Push makes it,
// and it lasts until the link is dead and its last payload sent; then it stays claimed for
// good, so that nobody sends any more. It has no lock: state decides which goroutine may
// call send, a worker of the pool or the one that serves a cohort.
type pushWriter struct {
	state atomic.Int32
	send  SendFunc
	ctx   context.Context
	l     *Link

	workers *workerPool
	place   sched.Element[job] // in the queue of workers, whose lock protects it
	cancel  context.CancelFunc
	release func() bool // takes back what was registered with the caller's ctx
	// The timer wakes the writer when a task of the link is due, and also looks for a link that
	// died while send is stuck. at is for the worker that has the link;
	// fired tells it that at is void.
	timer *time.Timer
	fired atomic.Bool // the timer has fired, and was not set since
	at    time.Time   // what the timer was set to
}

// States of a pushWriter. Only an idle one may be claimed, so that send is called by one
// goroutine at a time; and one that is idle has nothing to send, since going idle fails if
// a wake came after the last look at the link.
//
//	idle  wake: busy, and queued for the workers   claim: busy
//	busy  wake: more                               work finds nothing, or unclaim: idle
//	more  wake: more                               work looks again: busy
//	                                               unclaim: queued, and stays more
const (
	pushIdle int32 = iota
	pushBusy       // claimed, or waiting for the workers
	pushMore       // busy, and woken since
)

// wake makes the workers serve the link. It never waits, and costs next to nothing while
// the link is being served.
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

// tryClaim makes the caller the one that may send, if there is nothing else to be sent: what
// a cohort sends can't overtake what the link itself has to send.
func (p *pushWriter) tryClaim() bool { return p.state.CompareAndSwap(pushIdle, pushBusy) }

// unclaim ends a claim. If the link was woken meanwhile, the workers serve it.
func (p *pushWriter) unclaim() {
	if !p.state.CompareAndSwap(pushBusy, pushIdle) {
		p.workers.add(&p.place, p)
	}
}

// pushTurn is how many payloads a link sends before it is another's turn, and how many
// times a session sends to a cohort. A turn costs a lock that all workers share, so it is
// more than one payload; the others wait for all of it, so it is not many.
const pushTurn = 16

// work sends what the link has to send, for one turn. The state is busy before each look
// at the link, so that whatever becomes ready after the look turns it to more and is found
// when the writer tries to go idle.
func (p *pushWriter) work(now time.Time) {
	for range pushTurn {
		p.state.Store(pushBusy)
		pl, at, err := p.l.next(now)
		switch {
		case err != nil: // the link is dead and all is sent: the writer is never idle again
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

// write sends one payload. A transport that fails once takes no last payload either.
func (p *pushWriter) write(now time.Time, pl Payload) {
	err := p.send(p.ctx, pl)
	switch {
	case err == nil:
	case errors.Is(err, ErrTooLarge):
		p.l.carryLess(pl)
	default:
		p.l.fail(now, err)
		p.l.discardReplies()
	}
}

// setTimer makes the timer fire at a time, or leaves it alone if it is zero. It does
// nothing for the same time again, unless the timer has fired.
func (p *pushWriter) setTimer(at time.Time) {
	if !p.fired.Swap(false) && at.Equal(p.at) {
		return
	}
	if p.at = at; !at.IsZero() {
		p.resetTimer(time.Until(at))
	}
}

// resetTimer makes tick run after d. A pool without goroutines has no timers: its owner
// looks at the clock.
func (p *pushWriter) resetTimer(d time.Duration) {
	if p.timer.Stop(); p.workers.size > 0 {
		p.timer.Reset(d)
	}
}

// tick is called when a task of the link is due, or when the drainTimeout of a dead link is
// over, by the timer's goroutine: send may be stuck.
func (p *pushWriter) tick() {
	if p.l.failure() != nil {
		p.cancel()
		return
	}
	p.fired.Store(true) // a worker may have an older now, and find nothing due yet
	p.wake()
}

// failed gives send a last moment to say why the link died.
func (p *pushWriter) failed() { p.resetTimer(drainTimeout) }

// end lets go of the timer and of both contexts. Its caller keeps the writer claimed.
func (p *pushWriter) end() {
	p.timer.Stop()
	p.release()
	p.cancel()
}
