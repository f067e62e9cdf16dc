package gvstream

import (
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// This file serves one viewer from one session (rules 12, 13 and 15). A cursor is asked for its
// next payload by its viewer's link, and looks where it stands:
//
//	its position is                   next
//	in no epoch that the hub holds    goes to the start of the current one, after a status
//	ahead of the agent                ends the watch by replay_ahead
//	at the log's head                 waits: alone in idle, or in a cohort (cohort.go)
//	in the log                        sends a page of it
//	below the log                     sends what the agent replayed, waits for it, or declares a
//	                                  gap (hub_replay.go)
//
// This is decided anew each time, from epoch and sent. So no cursor is ever bound to a replay:
// events that are accepted during one are in the log when the cursor gets there.

// A cursor is one viewer's place in one session, and what it has been sent: the sender of a
// leg, as an agent's sender is, of which the viewer's subscription is the receiver. All that a
// viewer costs the hub is this, and its part in a fetch. hubViewerLink.cursor makes it, and it is
// gone when its watch ends or its link dies. It does not outlive the link or the session. The
// session's lock protects it.
//
// The watch opens it, so that it is always opened: a position and a window are what a first
// ack says.
type cursor struct {
	task  // sends the session's events and gaps
	hv    *hubViewerLink
	s     *hubSession
	index int // its index in the session's cursors

	// The position: acked and sent are in epoch. The statuses that are owed come before
	// anything after it.
	epoch string // empty: from the first event of whatever epoch there is
	sendCursor
	acked         uint64    // the viewer has what is up to here
	flights       flights   // what is between acked and sent, as far as it is events
	gone          bool      // off its session; final
	statusPending bool      // it is in its link's statuses, and sends nothing meanwhile
	toldEnd       bool      // the session's end was sent, as an event or by a status
	statusAgainAt time.Time // when a nack that is of no use was last answered by a status

	// Where it waits for the next event, in a cohort or in idle.
	cohort *cohort                // in which it rests, or nil
	pusher *pushWriter            // of its link, or nil; for the cohort
	idle   sched.Element[*cursor] // in the session's queue of others that wait

	// The way to what is older than the log. Reading a page of the log ends it.
	fetch        *fetch                 // that has its next number, unless it is gone; or nil
	fetchPlace   sched.Element[*cursor] // in the session's asking, or the fetch's waiting
	fromStart    bool                   // it reads the fetch from its first number on
	waitingSince time.Time              // it waits for the agent since then; zero: it does not

	statusPlace sched.Element[*cursor] // in the link's queue for a status, whose lock protects it
}

// remove takes the cursor off its session, after its link let go of it, and releases the
// session, of which it may have been the last trace. It is called without any lock.
func (c *cursor) remove() {
	s := c.s
	s.mu.Lock()
	if !c.gone { // or it was refused just before its link died
		c.endLocked()
	}
	s.mu.Unlock()
	s.h.release(s)
}

// endLocked takes the cursor off its session and its link, and gives up its fetch and its places
// in queues. To remove the session as well would take the hub's lock, which comes before the
// session's: that is for remove, or else for the session's age.
func (c *cursor) endLocked() {
	s, hv := c.s, c.hv
	c.restartLocked("", 0)
	c.gone = true
	s.removeCursorLocked(c)
	s.watchClockLocked()
	hv.mu.Lock()
	if hv.cursors[s.id] == c {
		delete(hv.cursors, s.id)
	}
	c.statusPlace.Remove()
	hv.mu.Unlock()
	hv.forget(&c.task)
}

// restartLocked puts the cursor at a position up to which the viewer has everything, and drops
// all that belonged to the one before but the window.
func (c *cursor) restartLocked(epoch string, seq uint64) {
	c.movedLocked()
	c.epoch, c.acked, c.toldEnd = epoch, seq, false
	c.sendCursor = sendCursor{
		window: c.window, firstBytes: c.s.h.sizes.first, opened: true, firstAck: seq, sent: seq,
	}
}

// movedLocked follows a step of sent, back to what is missing or beyond what was to be sent again:
// what was read for the place before is of no use, and the link is to ask for what comes next.
func (c *cursor) movedLocked() {
	c.leaveLocked()
	c.stopAskingLocked()
	c.flights.clear()
	c.hv.ready(&c.task)
}

// start is restartLocked for a watch, which is answered by a status.
func (c *cursor) start(p *WatchPayload) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !c.gone {
		c.window = newWindow(p.WindowEvents, p.WindowBytes)
		c.restartLocked(p.Epoch, p.AfterSeq)
		c.queueStatusLocked()
	}
}

// ackLocked takes the viewer's ack, by which the cursor may send more, or has to go back (rules
// 6 and 14). One that is old, or of another epoch, changes nothing; if it asks for something, the
// viewer is told where the session stands, and can watch it anew. One of more than was sent puts
// the cursor there: the viewer knows best what it has, and the watch by which it said so was lost.
// But what no agent is known to have it can't have, and the watch ends.
//
// With the ack of the session's end the watch is over, if the viewer can know that it is the
// end.
func (c *cursor) ackLocked(now time.Time, a SessionAck) {
	s, sent := c.s, c.sent
	verdict := ackStale
	switch {
	case c.gone || a.Epoch != c.epoch:
	case c.epoch == "": // both wait for the session to appear
		return
	default:
		verdict = c.ack(now, a, c.acked, 0)
	}
	switch verdict {
	case ackStale:
		s.h.stalePayloads.Add(1)
		if a.Nack && now.Sub(c.statusAgainAt) >= nackEvery {
			c.statusAgainAt = now
			c.queueStatusLocked()
		}
		return
	case ackBeyond:
		if c.epoch == s.epoch && a.UpToSeq > s.agentHead {
			err := refusal(CodeAckBeyondSent, s.id, "an ack of %d, but %d is the last number there is", a.UpToSeq, s.agentHead)
			err.Epoch, err.Seq = c.epoch, s.agentHead
			c.refuseLocked(err)
			return
		}
		c.window.update(a)
		c.restartLocked(c.epoch, a.UpToSeq)
		return
	}
	c.acked = a.UpToSeq
	if c.toldEnd && s.ended && c.epoch == s.epoch && c.acked >= s.log.head {
		c.endLocked()
		return
	}
	if c.sent != sent {
		c.movedLocked()
	}
	if c.inFlight == 0 {
		c.flights.clear()
	} else {
		c.landed(c.flights.land(c.acked))
	}
	c.scheduleResendLocked()
	if c.cohort == nil && !c.idle.Queued() { // it may have waited for this
		c.hv.ready(&c.task)
	}
}

// scheduleResendLocked makes the link look at the cursor's timer when that expires.
func (c *cursor) scheduleResendLocked() {
	if c.timer.running() {
		c.hv.schedule(&c.hv.resend, c.timer.at)
	}
}

// resendLocked looks at the cursor's timer, and returns when it expires, or zero if it does not
// run. If nothing was heard of what was sent, it is sent again, and the timer starts with the
// first of it.
func (c *cursor) resendLocked(now time.Time) time.Time {
	if !c.gone && c.timer.expired(now) {
		c.expire(c.acked)
		c.movedLocked()
	}
	return c.timer.at
}

// queueStatusLocked makes the link's next status say where the session stands, before anything
// else of it goes out. A viewer learns of a new epoch only by a status, and drops batches of
// an epoch that it does not know (rule 15).
func (c *cursor) queueStatusLocked() {
	if c.statusPending || c.gone {
		return
	}
	c.statusPending = true
	c.hv.mu.Lock()
	c.hv.statuses.Push(&c.statusPlace, c)
	c.hv.readyLocked(&c.hv.status)
	c.hv.mu.Unlock()
}

// takeStatus returns the session's entry in a status to this viewer, unless there is nothing to
// say. A cursor that can't stay where it is moves here, so that the status says where it
// goes on; one that is ahead of the agent ends, with an error in the status's place.
//
// With this the status is no longer pending, and the cursor may send what follows it.
func (c *cursor) takeStatus() (SessionStatus, bool) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { c.statusPending = false }()
	if c.gone {
		return SessionStatus{}, false
	}
	c.hv.ready(&c.task)
	if s.epoch == "" {
		return SessionStatus{SessionID: s.id}, true
	}
	if ahead := c.checkAheadLocked(); ahead != nil {
		c.refuseLocked(ahead)
		return SessionStatus{}, false
	}
	if c.logLocked() == nil {
		c.restartLocked(s.epoch, 0)
	}
	return c.standingLocked(), true
}

// standingLocked returns a status entry of the cursor's epoch. Of an epoch before the current
// one it says neither an end nor what came before: the viewer is to read on in it, and hears
// of the next epoch when it has. The position may be ahead of what is accepted, while the hub
// catches up with its agent (rule 13); AckSeq, which says how far the hub takes the viewer to
// be, must not be.
func (c *cursor) standingLocked() SessionStatus {
	s, l := c.s, c.logLocked()
	st := SessionStatus{
		SessionID: s.id, Epoch: c.epoch, FirstSeq: l.first(), HeadSeq: l.head, AckSeq: min(c.acked, l.head),
	}
	if l == &s.log {
		st.Ended, st.PrevEpoch, st.PrevSeq = s.ended, s.prevID, s.prevSeq
		c.toldEnd = c.toldEnd || s.ended
	}
	return st
}

// checkAheadLocked returns the refusal of a position that the agent has not reached, or nil (rule
// 13). One that is only beyond what is accepted waits there: a hub that lost its last minute
// is sent that again.
func (c *cursor) checkAheadLocked() *ProtocolError {
	s := c.s
	if c.epoch < s.epoch || c.epoch == s.epoch && c.sent <= s.agentHead {
		return nil
	}
	err := refusal(CodeReplayAhead, s.id, "position %d is ahead of the session", c.sent)
	err.Epoch, err.Seq = s.epoch, s.log.head
	return err
}

// refuseLocked ends the watch, and tells the viewer why. It answers no payload at hand, so it
// counts the refusal itself.
func (c *cursor) refuseLocked(err *ProtocolError) {
	c.hv.refused.Add(1)
	c.hv.reply(err.Payload())
	c.endLocked()
}

// logLocked returns the log of the cursor's epoch, or nil if the cursor is at the end of an
// older one, or the hub no longer has that: then it goes on in the current one. The epoch
// before is kept so that a viewer gets its last events and not just a reset (rule 15).
func (c *cursor) logLocked() *log {
	s := c.s
	switch {
	case c.epoch == s.epoch:
		return &s.log
	case s.prev != nil && s.prev.epoch == c.epoch && c.sent < s.prev.log.head:
		return &s.prev.log
	}
	return nil
}

// next sends what comes next in the session: a piece of the hub's log, a piece that the agent
// replayed, or a gap. The session is locked only to choose the page, which is
// decoded or encoded after that. All but a gap that was declared for this viewer is true for every viewer of
// the session, and names none. The link serves the cursor now, so it leaves its cohort.
func (c *cursor) next(now time.Time) Payload {
	s := c.s
	s.mu.Lock()
	c.leaveLocked()
	l := c.resolveLogLocked()
	var p *page
	if l != nil {
		p = c.nextPageLocked(now, l)
	}
	if p == nil {
		s.mu.Unlock()
		return nil
	}
	c.sentLocked(now, p)
	b := s.batchLocked(p, c.epoch, l.head)
	s.mu.Unlock()
	if p.private {
		own := b.(*eventBatch) // it is never shared
		own.ViewerID, own.Link = c.hv.viewerID, c.hv.id
	}
	return b
}

// batchLocked returns the batch that says what a page has. Of a shared page that is a fact, which
// says how far the log reached when it was first sent.
func (s *hubSession) batchLocked(p *page, epoch string, head uint64) Payload {
	if p.fact != nil {
		return p.fact
	}
	payload := EventBatchPayload{
		SessionID: s.id, Epoch: epoch, FirstSeq: p.first, LastSeq: p.last, HeadSeq: head, Gaps: p.gaps,
	}
	if p.of != nil {
		p.fact = newFact(payload, p)
		return p.fact
	}
	b := newEventBatch()
	b.EventBatchPayload, b.page = payload, *p
	return b
}

// sentLocked notes that a page is sent.
func (c *cursor) sentLocked(now time.Time, p *page) {
	events, bytes := len(p.slots), p.eventBytes()
	c.advance(p.last, events, bytes, c.acked)
	c.flights.add(p.last, events, bytes, c.window)
	c.toldEnd = c.toldEnd || p.hasEnd()
}

// written is called by the link when what the cursor handed out is written.
func (c *cursor) written(now time.Time) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.writtenLocked(now)
}

// writtenLocked starts the cursor's timer, unless it runs: so the link is not asked for each
// event to look at it.
func (c *cursor) writtenLocked(now time.Time) {
	if !c.gone && c.sendCursor.written(now, c.acked) {
		c.scheduleResendLocked()
	}
}

// resolveLogLocked returns the log that the cursor reads, or nil if there is nothing to read
// now: a status comes first, or the watch is over.
func (c *cursor) resolveLogLocked() *log {
	s := c.s
	if c.gone || c.statusPending || s.epoch == "" {
		return nil
	}
	if ahead := c.checkAheadLocked(); ahead != nil {
		c.refuseLocked(ahead)
		return nil
	}
	l := c.logLocked()
	if l == nil { // a new epoch, of which the status comes first (rule 15)
		c.restartLocked(s.epoch, 0)
		c.queueStatusLocked()
	}
	return l
}

// nextPageLocked returns the next piece of the session that the viewer has room for, or nil if
// there is none yet. The log comes before what the agent replayed: where it reaches far enough,
// nothing has to be waited for. Where there is no room, the viewer's ack wakes the cursor, or
// its timer (rule 7).
//
// At the head a session whose end lies in a gap is named in one more status, or the viewer would
// not learn of it (rule 16).
func (c *cursor) nextPageLocked(now time.Time, l *log) *page {
	s := c.s
	events, bytes, first := c.allowed(c.s.h.sizes.batchBytes)
	switch {
	case c.sent >= l.head:
		c.parkLocked()
		if s.ended && !c.toldEnd {
			c.queueStatusLocked()
		}
		return nil
	case c.window.full:
		return nil
	}
	r := span{after: c.sent, until: l.head, events: events, bytes: bytes, first: first}
	switch {
	case c.sent+1 >= l.first():
		c.stopAskingLocked()
		return s.readLocked(l, r)
	case events == 0: // what is older costs the agent something
		return nil
	}
	return c.fetchOlderLocked(now, l, r)
}

// parkLocked puts the cursor among those that wait for the next event. Those that stand at the
// head of the current epoch and whose links are run or pushed rest in cohorts, which workers
// serve or wake. A cursor that waits ahead of the head stands alone, as does one whose link's
// caller asks by Next: it is woken by acceptLocked itself.
func (c *cursor) parkLocked() {
	s := c.s
	if c.hv.started.Load() && c.sent == s.log.head && c.epoch == s.epoch {
		s.joinLocked(c)
	} else {
		s.idle.Push(&c.idle, c)
	}
	s.dropSharedPageLocked()
}

// removeCursorLocked takes a cursor out of the session, in whose list the last one takes its index.
func (s *hubSession) removeCursorLocked(c *cursor) {
	c.leaveLocked()
	last := len(s.cursors) - 1
	s.cursors[c.index] = s.cursors[last]
	s.cursors[c.index].index = c.index
	s.cursors[last] = nil
	s.cursors = s.cursors[:last]
	s.dropSharedPageLocked()
}

// dropSharedPageLocked forgets the page that cursors share, if all of them wait and no cohort
// is behind the head: nobody would read it, and it holds chunks of the log.
func (s *hubSession) dropSharedPageLocked() {
	if s.parked+s.idle.Len() == len(s.cursors) && s.nextBehindLocked() == nil {
		s.page = nil
	}
}

// readLocked returns the page of one of the session's logs that a span asks for, or nil if it
// would be empty. Cursors that come one after the other share it if all of it fits them, and the
// batch that is made of it. Nobody knows which of them uses it last, so a shared page's memory is
// left to the garbage collector.
func (s *hubSession) readLocked(l *log, r span) *page {
	if p := s.page; p != nil && p.of == l && p.first == r.after+1 && p.fits(r.events, r.bytes, r.first) {
		return p
	}
	r.events = min(r.events, s.h.sizes.batch)
	p := l.read(r)
	if len(s.cursors) > 1 && p.last >= p.first {
		p.of, p.memory = l, nil
		s.page = &p
	}
	return p.orNil()
}
