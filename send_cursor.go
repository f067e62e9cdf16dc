package gvstream

import (
	"cmp"
	"time"
)

// A sendCursor is where an agent stands with one session on one link: what it has sent and
// may send of the session's log, and when it has to send again or to announce the session
// again, which makes the hub say where it stands (rules 5 to 7, 9 and 11). It is a value
// without a lock or a clock: its sender's session's lock protects it, and the time is passed
// in, as are the numbers that outlast the link: acked, up to which everything is
// acknowledged, head, the last one in use, and maxSent, the highest ever sent (mark A of
// rule 6).
//
//	state         batches   is entered                           the next ack
//	awaiting      no        on a new link                        opens, and sends from there
//	implicitOpen  yes       on a new link, if maxSent is 0       opens, and repeats nothing yet
//	opened        yes       by the first ack                     frees, if it is not old
//	rewind        no        by unknown_session, or a retryable   opens, and sends from there
//	                        error
//
// Awaiting is none of the three fields. The timer brings the cursor out of a state in which
// nothing is heard: where batches may go out it sends again, and elsewhere it announces.
type sendCursor struct {
	window window // what the receiver takes beyond its last ack

	// Under way to the receiver: sent and, as far as is known, not acknowledged. Both are
	// zero whenever sent is acknowledged, or has gone back to what is.
	inFlight      int // events; gaps count nothing
	inFlightBytes int // of their JSON

	// How large the next batch may be, in bytes; zero: as the first one, which may have
	// firstBytes. It grows as long as batches arrive, so that a connection that carries little
	// before it breaks carries something, and nobody waits for long behind a batch on a slow
	// one.
	firstBytes int
	batchBytes int
	lastBatch  uint64    // the last number of the batch whose ack makes it grow; 0: none
	lastSent   time.Time // when that was written; zero: it may not be yet

	// At most one of these holds. While none does, the first ack is awaited.
	opened       bool // the hub said on this link where it stands
	implicitOpen bool // nothing was ever sent before this link: the first batch opens it
	rewind       bool // the hub lost its place: the next ack counts as a first one

	// sent is at most maxSentOnLink, or an ack that was beyond that. It goes back, the mark
	// does not: the hub may acknowledge whatever it was ever sent.
	firstAck      uint64 // the ack that opened it; below it, acks on this link are old
	sent          uint64 // last number sent; put back to send again
	maxSentOnLink uint64 // highest number sent on this link: mark B

	probing bool          // the timer has expired: until something is heard, one batch is in flight at the most
	timer   retry         // runs while something written is not acknowledged, or a first ack awaited
	writing bool          // what advance last noted may not be written yet
	resume  time.Time     // a retryable error: not to be announced before; zero: no wait
	pauses  time.Duration // how long the last such wait was, without progress since

	nacked   uint64    // the number last gone back to
	nackedAt time.Time // when that was; zero: never
}

// maySend reports whether batches may go out. Before the first ack they may only for a
// session of which the hub can know nothing: for others, it says by that ack where to begin.
func (c *sendCursor) maySend() bool { return c.opened || c.implicitOpen }

// allowed is how much the next batch may have: how many events, how many bytes of JSON, of
// which one batch has at most the given number, and how large its first event may be. That is
// all there is room for, since an event that is larger than a batch goes alone, and any size if
// nothing is in flight, or it could never be sent. Gaps cost the receiver nothing to hold, and
// may go while it is not full (rule 7).
func (c *sendCursor) allowed(most int) (events, bytes, first int) {
	switch room := max(c.window.bytes-c.inFlightBytes, 0); {
	case c.window.full, c.probing && c.inFlight > 0:
		return 0, 0, 0
	case c.inFlight == 0:
		return max(c.window.events, 1), min(max(c.batchBytes, c.firstBytes), most, room), anySize
	default:
		return max(c.window.events-c.inFlight, 0), min(max(c.batchBytes, c.firstBytes), most, room), room
	}
}

// advance notes that everything up to last was handed to the link, of which so many events and
// bytes are in flight now.
func (c *sendCursor) advance(last uint64, events, bytes int, acked uint64) {
	if c.maxSentOnLink <= acked { // nothing was outstanding
		c.timer.reset()
		c.probing = false
	}
	c.sent, c.writing = last, true
	c.maxSentOnLink = max(c.maxSentOnLink, last)
	c.inFlight += events
	c.inFlightBytes += bytes
	if c.batchBytes < quickBatchBytes {
		c.batchBytes = max(2*max(c.batchBytes, c.firstBytes), smallBatchBytes)
	}
	if c.lastBatch == 0 {
		c.lastBatch, c.lastSent = last, time.Time{}
	}
}

// landed notes that so many events and bytes of those in flight are acknowledged. What the
// log could not count any more, the ack of all that was sent settles.
func (c *sendCursor) landed(events, bytes int) {
	c.inFlight = max(c.inFlight-events, 0)
	c.inFlightBytes = max(c.inFlightBytes-bytes, 0)
}

// written notes that all of that was written, and reports whether the timer was started. It
// runs from then on: on a slow link a batch may take minutes to write, in which no ack can be
// expected. It runs from the first batch that is outstanding: later ones do not put it off,
// or steady publishing would keep it from ever noticing that nothing is acknowledged.
func (c *sendCursor) written(now time.Time, acked uint64) (started bool) {
	c.writing = false
	if c.lastSent.IsZero() {
		c.lastSent = now
	}
	if started = c.sent > acked && !c.timer.running() && c.maySend(); started {
		c.timer.start(now)
	}
	return started
}

// rewindTo makes what comes after a number be sent once more, in small batches at first: the
// connection may have carried too little.
func (c *sendCursor) rewindTo(seq uint64) {
	c.sent = seq
	c.inFlight, c.inFlightBytes = 0, 0
	c.batchBytes, c.lastBatch = 0, 0
}

// An ackVerdict is what becomes of an ack.
type ackVerdict uint8

const (
	ackTaken  ackVerdict = iota // acked is to be its number, which may be lower
	ackStale                    // it is older than one that was taken: changes nothing
	ackBeyond                   // it is beyond the limit: changes nothing, and is refused
)

// limit is the highest ack that is believed (rule 6). A first ack may be about anything that
// was ever sent, on whatever link. Later ones continue from it, and can add only what was
// sent on this link.
func (c *sendCursor) limit(maxSent uint64) uint64 {
	if c.opened {
		return max(c.firstAck, c.maxSentOnLink)
	}
	return maxSent
}

// ack takes an ack, unless it is stale or beyond the limit. A nack says that what comes next
// is missing. Only progress gives the timer its first wait again: the hub acks each status,
// too, and an ack that repeats a number must not put off sending again. To a session that has
// sent nothing on this link, the first ack is progress.
func (c *sendCursor) ack(now time.Time, a SessionAck, acked, maxSent uint64) ackVerdict {
	upTo := a.UpToSeq
	switch {
	case upTo > c.limit(maxSent):
		return ackBeyond
	case c.opened && upTo < acked:
		return ackStale
	}
	c.window.update(a)
	if upTo > acked {
		c.pauses = 0
	}
	if upTo > acked || a.Nack || !c.opened {
		c.probing = false
	}
	progress := upTo > acked || !c.opened && c.maxSentOnLink == 0
	if !c.opened {
		c.open(upTo)
	}
	if upTo >= c.sent {
		c.sent = upTo
		c.inFlight, c.inFlightBytes = 0, 0
	}
	c.grow(now, upTo)
	if a.Nack {
		c.goBack(now, upTo)
	}
	if progress {
		c.timer.reset()
		if c.sent > upTo && !c.writing {
			c.timer.start(now)
		}
	}
	return ackTaken
}

// grow lets batches be twice as large if one has arrived within growWithin: the connection is
// fast enough for more.
func (c *sendCursor) grow(now time.Time, upTo uint64) {
	if c.lastBatch == 0 || upTo < c.lastBatch {
		return
	}
	if c.lastBatch = 0; c.lastSent.IsZero() || now.Sub(c.lastSent) <= growWithin {
		c.batchBytes = min(2*max(c.batchBytes, c.firstBytes), maxBatchBytes)
	}
}

// open takes the first ack. It says where to go on from, except to a session that has opened
// itself: what that has sent may still be on its way, and is not sent again yet (rule 9).
func (c *sendCursor) open(upTo uint64) {
	if c.rewind || c.maxSentOnLink == 0 {
		c.rewindTo(upTo)
	}
	c.opened, c.implicitOpen, c.rewind, c.firstAck = true, false, false, upTo
	c.resume = time.Time{} // the hub has room again
}

// goBack sends again what comes after a number, and for the same number once more only after
// nackEvery: batches that were on their way may bring more nacks about the same hole, and to
// send it once is enough to mend it.
func (c *sendCursor) goBack(now time.Time, seq uint64) {
	if c.nackedAt.IsZero() || c.nacked != seq || now.Sub(c.nackedAt) >= nackEvery {
		c.nacked, c.nackedAt = seq, now
		c.resend(seq)
	}
}

// resend goes back to what is acknowledged, so that all that comes after it is sent again.
// The timer counts again from when the first of it is written. Before the session is open the
// timer is about the announcement, and goes on.
func (c *sendCursor) resend(acked uint64) {
	c.rewindTo(min(c.sent, acked))
	if c.maySend() {
		c.timer.stop()
	}
}

// announced notes that the hub is asked where it stands: again on the timer, until it
// answers. Once the session is open, the timer is about batches, and a status leaves it
// alone.
func (c *sendCursor) announced(now time.Time) {
	if !c.opened && !c.timer.running() {
		c.timer.start(now)
	}
}

// reopen notes that the hub doesn't know the session. It reports whether that is news: then
// the session is to be announced. Each batch that was on its way gets the same answer, and
// one status is enough for all of them.
func (c *sendCursor) reopen() bool {
	news := c.maySend()
	if news {
		c.close()
	}
	return news
}

// pause notes a retryable error: the session is to be announced after a wait, which is longer
// each time until there is progress. The timer does not run meanwhile: it would announce the
// session.
func (c *sendCursor) pause(now time.Time) {
	c.close()
	c.timer.stop()
	if !c.resume.IsZero() { // one error may come twice
		return
	}
	c.pauses = min(max(pauseFirst, 2*c.pauses), timerMax)
	c.resume = now.Add(c.pauses)
}

// close stops the sending until the next ack, which says where to go on from.
func (c *sendCursor) close() { c.opened, c.implicitOpen, c.rewind = false, false, true }

// A duty is what the time asks of a cursor's owner.
type duty uint8

const (
	nothingDue    duty = iota
	sendAgain          // what is not acknowledged; the cursor has gone back already
	announceAgain      // list the session for the next status
)

// tick looks at the time. The timer asks for a resend, or for an announcement while nothing
// may be sent. However often it expires, the link goes on: that is judged by what moves on
// the connection (rule 9).
func (c *sendCursor) tick(now time.Time, acked uint64) duty {
	due := nothingDue
	if !c.resume.IsZero() {
		if now.Before(c.resume) {
			return nothingDue
		}
		c.resume = time.Time{}
		due = announceAgain
	}
	if !c.timer.expired(now) {
		return due
	}
	if !c.maySend() || c.implicitOpen && c.maxSentOnLink == 0 {
		c.timer.again(now)
		return announceAgain
	}
	c.expire(acked)
	return sendAgain
}

// expire goes back since nothing was heard of what was sent. A receiver that reads nothing would
// be sent all of it at each expiry, and have more under way than its window: so one batch goes
// out, and the others once it is heard of.
func (c *sendCursor) expire(acked uint64) {
	c.resend(acked)
	c.timer.backOff()
	c.timer.stop()
	c.probing = true
}

// nextTick is when tick is to be called next, at the latest; zero: never. While a pause
// lasts, the timer does not run.
func (c *sendCursor) nextTick() time.Time {
	if !c.resume.IsZero() {
		return c.resume
	}
	return c.timer.at
}

// A window is how much the receiver of a leg takes beyond what it has acknowledged (rule 7).
type window struct {
	events int
	bytes  int
	full   bool // it takes nothing at all now
}

// newWindow is the window that a welcome or a watch names, or the usual one where it names
// none.
func newWindow(events, bytes int) window {
	return window{events: cmp.Or(events, defaultWindow), bytes: cmp.Or(bytes, defaultWindowBytes)}
}

// update takes over what an ack says. What it leaves out stays as it was said before.
func (w *window) update(a SessionAck) {
	w.events = cmp.Or(a.WindowEvents, w.events)
	w.bytes = cmp.Or(a.WindowBytes, w.bytes)
	w.full = a.Full
}
