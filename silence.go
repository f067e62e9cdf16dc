package gvstream

import (
	"fmt"
	"time"
)

// This file is how a link notices that its connection is dead although the transport reports
// nothing (rule 9): each side says something every heartbeatEvery, and ends a link on which
// no byte has moved for maxSilence. Machines only speak; to listen is the link's.

// Done returns a channel that is closed when the link is dead and its last payload was sent,
// and at most a second after its death. It is for callers that dispatch payloads themselves:
// while they are stuck in a write of their own, nothing but a goroutine that waits for Done
// can close the connection. It does not block, and concurrent calls are safe.
func (l *Link) Done() <-chan struct{} {
	l.serve()
	return l.done
}

// Err returns why the link is dead, or nil while it is alive. After an error of Handle it
// tells a payload that was refused, which ends nothing, from the end of the link. It does
// not block, and concurrent calls are safe.
func (l *Link) Err() error { return l.failure() }

// clockStart is what the times in atomics count from. Differences to it don't change when
// the system's clock is set.
var clockStart = time.Now()

// serve begins to listen for the peer, when the link is used for the first time. It is for
// links on the real clock: whoever passes the time in asks checkSilence as well.
func (l *Link) serve() {
	l.serving.Do(func() {
		l.heard(time.Now())
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case l.err == nil:
			l.alarm = time.AfterFunc(heartbeatEvery, l.ring)
		case !l.over:
			time.AfterFunc(drainTimeout, l.discardReplies)
		}
	})
}

// ring is the alarm: while the sender is stuck, nothing else looks at the clock.
func (l *Link) ring() {
	l.checkSilence(time.Now())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.alarm.Reset(heartbeatEvery)
	}
}

// heard notes a sign of life: something came from the peer, whatever it was, or the peer's
// side took what it had not taken at first.
func (l *Link) heard(now time.Time) { l.heardAt.Store(int64(now.Sub(clockStart))) }

// checkSilence ends the link if nothing has moved on its connection for maxSilence (rule 9).
// While a payload is being handled the next ones are not received, so that the silence is
// this side's own. It must be asked every heartbeatEvery: then what was forgiven is not much
// older than the end of that, and the peer has time to be heard again.
func (l *Link) checkSilence(now time.Time) {
	if l.patient || l.handling.Load() > 0 || l.heardAt.Load() == 0 {
		l.heard(now)
	}
	if silent := now.Sub(clockStart) - time.Duration(l.heardAt.Load()); silent >= maxSilence {
		l.fail(now, fmt.Errorf("%w for %v", ErrSilent, silent.Round(time.Second)))
	}
}

// slowWrite is how long a write takes at least that shows that the peer is there: one that
// returns sooner may have gone into buffers of this side.
const slowWrite = 100 * time.Millisecond

// wrote notes that a write was successful.
func (l *Link) wrote(begun, now time.Time) {
	if now.Sub(begun) >= slowWrite {
		l.heard(now)
	}
}
