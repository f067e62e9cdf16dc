package gvstream

import "time"

// An ackState decides when a receiver acknowledges one session on one link, and with that
// says how much more it takes (rules 6, 7 and 14): a hub's receiver of an agent's session, and
// a viewer's subscription. It is a value without a lock or a clock: its owner's lock protects
// it, and the time is passed in. It holds no number to acknowledge: an ack is cumulative, so
// the owner puts into it whatever is accepted when it is sent.
//
//	state      now, at       what leads there
//	nothing    no, zero      sent
//	held back  no, set       accept
//	due        yes, either   accept of the end; grant of half the window; hole; the owner, for a
//	                         status or a batch that it has already
//
// A due ack stays due until sent. As long as something is missing, every ack says so, but not
// more than once in nackEvery.
type ackState struct {
	delay  time.Duration // how long the ack of something accepted is held back
	window window        // how much the receiver takes at the most

	now   bool      // an ack is due at once
	at    time.Time // when an ack that was held back is due; zero: none is
	since time.Time // when the first came of what it is to acknowledge; zero: nothing did

	// How much further the sender may go than the last ack said.
	granted      int // in events
	grantedBytes int // and in bytes of their JSON

	// These outlast the ack.
	lacks    bool      // what comes after the last number accepted is missing
	again    bool      // more of it was lost since the last nack: the next ack is one in any case
	nacked   uint64    // what was accepted when the last nack was sent
	nackedAt time.Time // when that was; zero: never
}

// accept notes that something new was accepted, the session's last number if it has ended. It
// is acknowledged after the delay, or at once at the end. If the sender has more, and does not
// send it soon, it may be waiting for room: a large event can't go before this is acknowledged.
func (a *ackState) accept(now time.Time, ended, more bool) {
	if a.since.IsZero() {
		a.since = now
	}
	a.at = a.since.Add(a.delay)
	if soon := now.Add(ackDelay); more && soon.Before(a.at) {
		a.at = soon
	}
	a.now = a.now || ended
}

// came notes that what was missing has come: what follows the last number received. With a store it
// is accepted later.
func (a *ackState) came() { a.lacks, a.again = false, false }

// grant notes that the sender may go further: a hub has accepted events, a viewer's caller has
// read some. That is said when it has come to half of the window, so that the sender hears of
// room long before it has used up what it knows of, and the stream does not stop and go.
func (a *ackState) grant(events, bytes int) {
	a.granted += events
	a.grantedBytes += bytes
	if a.granted >= max(1, a.window.events/2) || a.grantedBytes >= max(1, a.window.bytes/2) {
		a.now = true
	}
}

// hole notes that something is missing after the last number accepted. The first batch after
// the hole makes a nack due; those that follow it find the same hole, so they don't, until
// nackEvery has passed and the nack, or what it asked for, may have been lost.
func (a *ackState) hole(now time.Time, accepted uint64) {
	a.lacks = true
	a.now = a.now || a.mayNack(now, accepted)
}

// missing makes a nack due: what follows the last number accepted is known to be lost.
func (a *ackState) missing() { a.lacks, a.again, a.now = true, true, true }

// full notes that a batch was dropped for want of room. It is asked for in a second, by when
// there may be some: what follows it until then is a hole that is known.
func (a *ackState) full(now time.Time, accepted uint64) {
	a.lacks = true
	if a.mayNack(now, accepted) {
		a.again, a.nacked, a.nackedAt = true, accepted, now
	}
	if at := a.nackedAt.Add(nackEvery); a.at.IsZero() || at.Before(a.at) {
		a.at = at
	}
}

// lost notes that something was dropped that the sender takes for received. Whatever ack is sent
// next asks for it: there is no use in asking before it says that there is room.
func (a *ackState) lost() { a.lacks, a.again = true, true }

// mayNack reports whether the last nack was about something else, or is nackEvery old.
func (a *ackState) mayNack(now time.Time, accepted uint64) bool {
	return a.nackedAt.IsZero() || a.nacked != accepted || now.Sub(a.nackedAt) >= nackEvery
}

// due reports whether an ack is to be sent now; if not, next is when, or zero for never.
func (a *ackState) due(now time.Time) (due bool, next time.Time) {
	return a.now || !a.at.IsZero() && !now.Before(a.at), a.at
}

// sent notes that the ack is sent, and reports whether it is a nack. With it all that was
// held back is acknowledged, too.
func (a *ackState) sent(now time.Time, accepted uint64) (nack bool) {
	if nack = a.lacks && (a.again || a.mayNack(now, accepted)); nack {
		a.nacked, a.nackedAt, a.again = accepted, now, false
	}
	a.now, a.at, a.since, a.granted, a.grantedBytes = false, time.Time{}, time.Time{}, 0, 0
	return nack
}
