package gvstream

import "time"

// An ackState decides when a hub acknowledges one session on one link (rules 6 and 7). It
// is a value without a lock or a clock: the lock of its receiver's session protects it, and
// the time is passed in. It holds no number to acknowledge: an ack is cumulative, so the
// receiver puts into it whatever is accepted when it is sent.
//
//	state      now, at       what leads there
//	nothing    no, zero      the zero ackState; sent
//	held back  no, set       accept, for few events
//	due        yes, either   accept for many events or the end; hole; the receiver, for a
//	                         status or a batch that it has already
//
// A due ack stays due until sent. It is a nack if the hole is still there.
type ackState struct {
	now     bool      // an ack is due at once
	nack    bool      // and is to say that something is missing
	at      time.Time // when an ack that was held back is due; zero: none is
	unacked int       // events accepted since the last ack; gaps are not counted

	// These outlast the ack, so that a hole is not asked for with each batch after it.
	nacked   uint64    // what was accepted when the last nack was decided on
	nackedAt time.Time // when that was; zero: never
}

// accept notes that new events were accepted, the session's last one if it has ended. Their
// ack is due when a quarter of the window, or ackEvents, has come together, at the end, and
// otherwise after ackDelay. A quarter, so that the agent gets room long before it has used
// its window up, and the stream does not stop and go; with a window below 8, each event is
// acknowledged.
func (a *ackState) accept(now time.Time, events, window int, ended bool) {
	a.nack = false // what was missing has come
	a.unacked += events
	switch {
	case ended || a.unacked >= max(1, min(ackEvents, window/4)):
		a.now = true
	case a.at.IsZero():
		a.at = now.Add(ackDelay)
	}
}

// hole notes that something is missing after the last number accepted. The first batch after
// the hole makes a nack due; those that follow it find the same hole, so they don't, until
// nackEvery has passed and the nack, or what it asked for, may have been lost.
func (a *ackState) hole(now time.Time, accepted uint64) {
	if a.nackedAt.IsZero() || a.nacked != accepted || now.Sub(a.nackedAt) >= nackEvery {
		a.missing(now, accepted)
	}
}

// missing makes a nack due: what follows the last number accepted is known to be lost.
func (a *ackState) missing(now time.Time, accepted uint64) {
	a.nacked, a.nackedAt, a.nack, a.now = accepted, now, true, true
}

// full notes that a batch was dropped for want of room. It is asked for in a second, by when
// there may be some: what follows it until then is a hole that is known.
func (a *ackState) full(now time.Time, accepted uint64) {
	if a.nackedAt.IsZero() || a.nacked != accepted || now.Sub(a.nackedAt) >= nackEvery {
		a.nacked, a.nackedAt, a.nack, a.at = accepted, now, true, now.Add(nackEvery)
	}
}

// due reports whether an ack is to be sent now; if not, next is when, or zero for never.
func (a *ackState) due(now time.Time) (due bool, next time.Time) {
	return a.now || !a.at.IsZero() && !now.Before(a.at), a.at
}

// sent notes that the ack is sent, and reports whether it is a nack. With it all that was
// held back is acknowledged, too.
func (a *ackState) sent() (nack bool) {
	nack = a.nack
	*a = ackState{nacked: a.nacked, nackedAt: a.nackedAt}
	return nack
}
