package gvstream

import "time"

// An ackState decides when a receiver acknowledges one session on one link (rules 6
// and 7). It is a value without a lock or a clock: its owner's lock protects it, and
// the time is passed in. The zero ackState owes nothing.
type ackState struct {
	now      bool      // an ack is due at once
	nack     bool      // and is to say that something is missing
	at       time.Time // when an ack that was held back is due; zero: none is
	unacked  int       // events accepted since the last ack
	nacked   uint64    // what was accepted when the last nack was decided on
	nackedAt time.Time // when that was; zero: never
}

// accept notes that so many new events were accepted, the session's last one if it has
// ended. Their ack is due when a quarter of the window, or ackEvents, has come together,
// at the end, and else after ackDelay.
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

// hole notes that something is missing after the last number accepted. It asks for it
// once, and for the same number again only after nackEvery.
func (a *ackState) hole(now time.Time, accepted uint64) {
	if a.nackedAt.IsZero() || a.nacked != accepted || now.Sub(a.nackedAt) >= nackEvery {
		a.nacked, a.nackedAt, a.nack, a.now = accepted, now, true, true
	}
}

// due reports whether an ack is to be sent now; if not, next is when, or zero for never.
func (a *ackState) due(now time.Time) (due bool, next time.Time) {
	return a.now || !a.at.IsZero() && !now.Before(a.at), a.at
}

// sent notes that the ack was sent, and reports whether it was to be a nack.
func (a *ackState) sent() (nack bool) {
	nack = a.nack
	*a = ackState{nacked: a.nacked, nackedAt: a.nackedAt}
	return nack
}
