package gvstream

import "time"

// A sendCursor is where a sender stands with one session on one link: what it has sent
// and may send of the session's log, and when it has to send again or to announce the
// session again, which has the receiver say where it stands (rules 5 to 7, 9 and 11). It
// is a value without a lock or a clock: its owner's lock protects it, and the time is
// passed in, as are the numbers that outlast the link: acked, up to which everything is
// acknowledged, head, the last one in use, and maxSent, the highest ever sent (mark A of
// rule 6).
type sendCursor struct {
	window uint64 // how far beyond acked events may go

	// At most one of these holds. While none does, the first ack is awaited.
	opened       bool // the receiver said on this link where it stands
	implicitOpen bool // nothing was ever sent before this link: the first batch opens it
	rewind       bool // the receiver lost its place: the next ack counts as a first one

	firstAck      uint64 // the ack that opened it
	sent          uint64 // last number sent; put back to send again
	maxSentOnLink uint64 // highest number sent on this link: mark B

	timer   retry     // runs while something sent is not acknowledged, or a first ack awaited
	expired bool      // it expired, and there was no progress since
	silent  bool      // nor was anything heard of the session
	resume  time.Time // a retryable error: not to be announced before; zero: no wait

	nacked   uint64    // the number last gone back to
	nackedAt time.Time // when that was; zero: never
}

// maySend reports whether batches may go out: before the first ack only a pioneer's.
func (c *sendCursor) maySend() bool { return c.opened || c.implicitOpen }

// eventsUntil is the last number under which an event may go out.
func (c *sendCursor) eventsUntil(acked uint64) uint64 { return acked + c.window }

// advance notes that everything up to last was sent.
func (c *sendCursor) advance(now time.Time, last, acked uint64) {
	if c.maxSentOnLink <= acked { // nothing was outstanding
		c.restart()
	}
	c.sent = last
	c.maxSentOnLink = max(c.maxSentOnLink, last)
	if !c.timer.running() {
		c.timer.start(now)
	}
}

// restart has the timer begin anew, after progress.
func (c *sendCursor) restart() {
	c.timer.reset()
	c.expired = false
}

// An ackVerdict is what becomes of an ack.
type ackVerdict uint8

const (
	ackTaken  ackVerdict = iota // acked is to be its number, which may be lower
	ackStale                    // later news came before it
	ackBeyond                   // it is beyond the limit
)

// limit is the highest ack that is believed.
func (c *sendCursor) limit(maxSent uint64) uint64 {
	if c.opened {
		return max(c.firstAck, c.maxSentOnLink)
	}
	return maxSent
}

// ack takes an ack of everything up to a number, unless it is stale or beyond the limit.
// A nack says that what comes next is missing.
func (c *sendCursor) ack(now time.Time, upTo uint64, nack bool, acked, maxSent uint64) ackVerdict {
	switch {
	case upTo > c.limit(maxSent):
		return ackBeyond
	case c.opened && upTo < acked:
		return ackStale
	}
	c.silent = false
	progress := upTo > acked || !c.opened && c.maxSentOnLink == 0
	if !c.opened {
		c.open(upTo)
	}
	c.sent = max(c.sent, upTo)
	if nack {
		c.goBack(now, upTo)
	}
	if progress {
		c.restart()
		if c.sent > upTo {
			c.timer.start(now)
		}
	}
	return ackTaken
}

// open takes the first ack. What a pioneer sent before it is not sent again yet (rule 9).
func (c *sendCursor) open(upTo uint64) {
	if c.rewind || c.maxSentOnLink == 0 {
		c.sent = upTo
	}
	c.opened, c.implicitOpen, c.rewind, c.firstAck = true, false, false, upTo
	c.resume = time.Time{} // the receiver has room again
}

// goBack sends again from behind a number, and for the same number once more only after
// nackEvery.
func (c *sendCursor) goBack(now time.Time, seq uint64) {
	if c.nackedAt.IsZero() || c.nacked != seq || now.Sub(c.nackedAt) >= nackEvery {
		c.nacked, c.nackedAt, c.sent = seq, now, seq
	}
}

// resend sends again everything that is not acknowledged.
func (c *sendCursor) resend(acked uint64) { c.sent = min(c.sent, acked) }

// heard notes that the receiver said something about the session.
func (c *sendCursor) heard() { c.silent = false }

// announced notes that the receiver is asked where it stands: again on the timer, until
// it answers.
func (c *sendCursor) announced(now time.Time) {
	if !c.opened && !c.timer.running() {
		c.timer.start(now)
	}
}

// reopen notes that the receiver doesn't know the session. It reports whether that is
// news: then the session is to be announced.
func (c *sendCursor) reopen() bool {
	news := c.maySend()
	if news {
		c.close()
	}
	return news
}

// pause notes a retryable error: the session is to be announced after the timer's wait.
func (c *sendCursor) pause(now time.Time) {
	c.close()
	c.timer.start(now)
	c.resume = c.timer.at
	c.timer.backOff()
	c.timer.stop()
}

// close has nothing sent until the next ack, which says from where on.
func (c *sendCursor) close() { c.opened, c.implicitOpen, c.rewind = false, false, true }

// A duty is what the time asks of a cursor's owner.
type duty uint8

const (
	nothingDue duty = iota
	sendAgain       // what is not acknowledged
	announceAgain
	giveUp // the receiver is gone
)

// tick looks at the time. The timer asks for a resend, or for an announcement while
// nothing may be sent; if it expires twice with something outstanding and nothing heard
// of the session in between, the receiver is gone (rules 6 and 9).
func (c *sendCursor) tick(now time.Time, acked, head uint64) duty {
	due := nothingDue
	if !c.resume.IsZero() {
		if now.Before(c.resume) {
			return nothingDue
		}
		c.resume = time.Time{}
		due = announceAgain
	}
	switch {
	case !c.timer.expired(now):
		return due
	case c.expired && c.silent && acked < head:
		return giveUp
	}
	c.expired, c.silent = true, true
	c.timer.again(now)
	if !c.maySend() {
		return announceAgain
	}
	c.resend(acked)
	return sendAgain
}

// nextTick is when tick is to be called next at the latest; zero: never.
func (c *sendCursor) nextTick() time.Time {
	if !c.resume.IsZero() {
		return c.resume
	}
	return c.timer.at
}
