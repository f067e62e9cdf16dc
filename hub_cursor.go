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
//	in the log                        hands out a page of it
//	below the log                     hands out what the agent replayed, asks the agent for it,
//	                                  waits, or declares a gap (hub_replay.go)
//
// This is decided anew each time, from epoch and seq. So no cursor is ever bound to a replay:
// events that are accepted during one are in the log when the cursor gets there.

// A cursor is one viewer's place in one session. All that a viewer costs the hub is this, and
// one answer to a replay request at most. hubViewerLink.cursor makes it, and it is gone when
// its watch ends or its link dies. It does not outlive the link or the session, and is the
// counterpart of the viewer's subscription. The session's lock protects it.
type cursor struct {
	task  // hands out the session's events and gaps
	hv    *hubViewerLink
	s     *hubSession
	index int // its index in the session's cursors

	// The position. seq is in epoch, and is what the link was handed, whether or not it
	// arrived. The statuses that are owed come before anything after it.
	epoch         string // empty: from the first event of whatever epoch there is
	seq           uint64 // handed out up to here
	gone          bool   // off its session; final
	statusPending bool   // it is in its link's statuses, and hands out nothing meanwhile
	ended         bool   // a status that names the end was queued

	// The way to what is older than the log. Reading a page of the log ends it.
	request       *replayRequest // its open replay request, or nil
	retry         retry          // runs until the request is given up or, without one, it asks again
	pages         []page         // what came of it, to be handed out; the bytes are the cursor's
	unavailableTo uint64         // the agent can't give what is up to here
	waitingSince  time.Time      // it waits for the agent since then; zero: it does not

	// Where it waits for the next event, in a cohort or in idle, or for a permit.
	cohort    *cohort                // in which it rests, or nil
	pusher    *pushWriter            // of its link, or nil; for the cohort
	idle      sched.Element[*cursor] // in the session's queue of others that wait
	atSession sched.Element[*cursor] // in the queue for the session's permit; it has the link's then
	// The link's lock protects these.
	atLink      sched.Element[*cursor] // in the queue for the link's permit; changes under both locks
	statusPlace sched.Element[*cursor] // in the link's queue for a status
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

// endLocked takes the cursor off its session and its link, and gives back what it holds: its
// request, permits and places in queues. To remove the session as well would take the hub's
// lock, which comes before the session's: that is for remove, or else for the session's age.
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
	c.atLink.Remove()
	hv.offerLocked()
	hv.mu.Unlock()
	hv.forget(&c.task)
}

// restartLocked puts the cursor at a position, and drops all that belonged to the one before.
func (c *cursor) restartLocked(epoch string, seq uint64) {
	c.leaveLocked()
	c.stopAskingLocked()
	c.epoch, c.seq = epoch, seq
	c.pages, c.unavailableTo, c.ended = nil, 0, false
	c.hv.ready(&c.task)
}

// start is restartLocked for a watch, which is answered by a status. A request that is open
// is given up first, while it is still known to have been sent, so that its permit stays taken
// for a while.
func (c *cursor) start(now time.Time, epoch string, seq uint64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !c.gone {
		c.giveUpLocked(now)
		c.restartLocked(epoch, seq)
		c.queueStatusLocked()
	}
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
// say. Its AckSeq is what was handed to the viewer's link: if less than that arrived, something
// was lost. A cursor that can't stay where it is moves here, so that the status says where it
// goes on; one that is ahead of the agent ends, with an error in the status's place.
//
// With this the status is no longer pending, and the cursor may hand out what follows it.
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
// catches up with its agent (rule 13); AckSeq must not be.
func (c *cursor) standingLocked() SessionStatus {
	s, l := c.s, c.logLocked()
	st := SessionStatus{
		SessionID: s.id, Epoch: c.epoch, FirstSeq: l.first(), HeadSeq: l.head, AckSeq: min(c.seq, l.head),
	}
	if l == &s.log {
		st.Ended, st.PrevEpoch, st.PrevSeq = s.ended, s.prevID, s.prevSeq
	}
	return st
}

// checkAheadLocked returns the refusal of a position that the agent has not reached, or nil (rule
// 13). One that is only beyond what is accepted waits there: a hub that lost its last minute
// is sent that again.
func (c *cursor) checkAheadLocked() *ProtocolError {
	s := c.s
	if c.epoch < s.epoch || c.epoch == s.epoch && c.seq <= s.agentHead {
		return nil
	}
	err := refusal(CodeReplayAhead, s.id, "position %d is ahead of the session", c.seq)
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
	case s.prev != nil && s.prev.epoch == c.epoch && c.seq < s.prev.log.head:
		return &s.prev.log
	}
	return nil
}

// next hands out what comes next in the session: a piece of the hub's log, a piece
// that the agent replayed, or a gap. The session is locked only to choose the page, and the
// payload is made of it after that.
//
// The link serves the cursor now, so it leaves its cohort. If it was woken because it is its
// turn to take a permit of the link, and did not take it, the next in the queue gets the turn: it
// may have moved into the log meanwhile, and nobody else would pass the permit on.
func (c *cursor) next(now time.Time) Payload {
	s := c.s
	s.mu.Lock()
	c.leaveLocked()
	l := c.resolveLogLocked()
	var p *page
	var replayed bool
	if l != nil {
		p, replayed = c.nextPageLocked(now, l)
	}
	if c.atLink.Queued() {
		c.passOnLocked()
	}
	if p == nil {
		s.mu.Unlock()
		return nil
	}
	epoch, head, first := c.epoch, l.head, l.first()
	s.mu.Unlock()
	if replayed {
		b := newReplayBatch()
		b.ReplayBatchPayload = ReplayBatchPayload{
			SessionID: s.id, ViewerID: c.hv.viewerID, RequestID: p.request, Epoch: epoch,
			FirstSeq: p.first, LastSeq: p.last, UntilSeq: first - 1, AvailableFrom: p.available,
			Done: p.last == first-1,
		}
		b.Gaps, b.page = p.gaps, *p
		return b
	}
	b := newEventBatch()
	b.EventBatchPayload = EventBatchPayload{
		SessionID: s.id, ViewerID: c.hv.viewerID, Epoch: epoch, Link: c.hv.id,
		FirstSeq: p.first, LastSeq: p.last, HeadSeq: head,
	}
	b.Gaps, b.page = p.gaps, *p
	return b
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

// nextPageLocked returns the next piece of the session, or nil if there is none yet, and
// whether the agent replayed it. The log comes before what the agent replayed: where it reaches
// far enough, nothing has to be waited for.
//
// At the head an ended session is named in one more status, so that a viewer learns of an end
// that lies in a gap (rule 16).
func (c *cursor) nextPageLocked(now time.Time, l *log) (p *page, replayed bool) {
	s := c.s
	switch {
	case c.seq >= l.head:
		c.parkLocked()
		if s.ended && !c.ended {
			c.ended = true
			c.queueStatusLocked()
		}
		return nil, false
	case c.seq+1 >= l.first():
		c.stopAskingLocked()
		c.pages = nil
		p = s.readLocked(l, c.seq)
	case len(c.pages) > 0:
		p, replayed = &c.pages[0], true
		c.pages = c.pages[1:]
	default:
		p = c.fetchOlderLocked(now, l)
	}
	if p != nil {
		c.seq = p.last
	}
	return p, replayed
}

// parkLocked puts the cursor among those that wait for the next event. Those that stand at the
// head of the current epoch and whose links are run or pushed rest in cohorts, which workers
// serve or wake. A cursor that waits ahead of the head stands alone, as does one whose link's
// caller asks by Next: it is woken by acceptLocked itself.
func (c *cursor) parkLocked() {
	s := c.s
	if c.hv.started.Load() && c.seq == s.log.head && c.epoch == s.epoch {
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

// readLocked returns the page after a number of one of the session's logs. Cursors that come
// one after the other share it, and the events that are made of it for their payloads. Nobody
// knows which of them uses it last, so a shared page's memory is left to the garbage collector.
func (s *hubSession) readLocked(l *log, after uint64) *page {
	if p := s.page; p != nil && p.of == l && p.first == after+1 {
		return p
	}
	p := l.read(span{after: after, until: l.head, events: s.h.sizes.batch, bytes: pageBytes, first: anySize})
	if len(s.cursors) > 1 {
		p.of, p.shared, p.memory = l, new(sharedEvents), nil
		s.page = &p
	}
	return &p
}
