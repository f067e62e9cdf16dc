package gvstream

import (
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A cursor is one viewer's place in one session. All that a viewer costs the hub
// is this. The session's lock protects it.
type cursor struct {
	task
	hv *hubViewerLink
	s  *hubSession
	at int // in the session's cursors

	epoch         string // empty: from the first event of whatever epoch there is
	seq           uint64 // handed out up to here
	gone          bool
	statusPending bool // a status comes first
	ended         bool // it was told of the end

	request       *replayRequest // its open replay request, or nil
	retry         retry          // of its request; without one that is open, it does not ask before then
	pages         []page         // what came of it, to be handed out
	unavailableTo uint64         // the agent can't give what is up to here
	waitingSince  time.Time      // it waits for the agent since then; zero: it does not

	cohort    *cohort                // in which it rests, or nil
	pusher    *pushWriter            // of its link, or nil; for the cohort
	idle      sched.Element[*cursor] // in the session's queue of others that wait
	atSession sched.Element[*cursor] // in the queue for the session's permit; it has the link's then
	// The link's lock protects these.
	atLink      sched.Element[*cursor] // in the queue for the link's permit. It changes under both locks
	statusPlace sched.Element[*cursor] // in the link's queue for a status
}

// remove takes the cursor off its session.
func (c *cursor) remove() {
	s := c.s
	s.mu.Lock()
	if !c.gone { // or it was refused just before its link died
		c.endLocked()
	}
	s.mu.Unlock()
	s.h.release(s)
}

// endLocked takes the cursor off its session and its link. The session's lock is held, so the
// session itself goes later, if it does.
func (c *cursor) endLocked() {
	s, hv := c.s, c.hv
	c.restartLocked("", 0)
	c.gone = true
	s.dropLocked(c)
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

// restartLocked puts the cursor at a position.
func (c *cursor) restartLocked(epoch string, seq uint64) {
	c.leaveLocked()
	c.stopAskingLocked()
	c.epoch, c.seq = epoch, seq
	c.pages, c.unavailableTo, c.ended = nil, 0, false
	c.hv.ready(&c.task)
}

// start is restart for a watch, which is answered.
func (c *cursor) start(now time.Time, epoch string, seq uint64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !c.gone {
		c.giveUpLocked(now)
		c.restartLocked(epoch, seq)
		c.queueStatusLocked()
	}
}

// queueStatusLocked has the viewer told where the session stands, before anything else of it.
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

// describe is the session's place in a status to this viewer. Its AckSeq is what
// was handed to the viewer's link: if less than that arrived, something was lost.
func (c *cursor) describe() (SessionStatus, bool) {
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
	if ahead := c.aheadLocked(); ahead != nil {
		c.refuseLocked(ahead)
		return SessionStatus{}, false
	}
	if c.logLocked() == nil {
		c.restartLocked(s.epoch, 0)
	}
	return c.standingLocked(), true
}

// standingLocked is a status entry of the cursor's epoch.
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

// aheadLocked refuses a position that no agent has reached (rule 13).
func (c *cursor) aheadLocked() *ProtocolError {
	s := c.s
	if c.epoch < s.epoch || c.epoch == s.epoch && c.seq <= s.head {
		return nil
	}
	err := refusal(codeReplayAhead, s.id, "position %d is ahead of the session", c.seq)
	err.Epoch, err.Seq = s.epoch, s.log.head
	return err
}

// refuseLocked ends the watch, and tells the viewer why.
func (c *cursor) refuseLocked(err *ProtocolError) {
	c.hv.refused.Add(1)
	c.hv.reply(err.Payload())
	c.endLocked()
}

// logLocked returns the log of the cursor's epoch, or nil if the cursor is at the end of an
// older one, or the hub no longer has that: then it goes on in the current one.
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
// that the agent replayed, or a gap.
func (c *cursor) next(now time.Time) Payload {
	s := c.s
	s.mu.Lock()
	c.leaveLocked()
	l := c.readableLocked()
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

// readableLocked returns the log that the cursor reads, or nil if there is nothing to read
// now: a status comes first, or the watch is over.
func (c *cursor) readableLocked() *log {
	s := c.s
	if c.gone || c.statusPending || s.epoch == "" {
		return nil
	}
	if ahead := c.aheadLocked(); ahead != nil {
		c.refuseLocked(ahead)
		return nil
	}
	l := c.logLocked()
	if l == nil { // the viewer is told before it goes on (rule 15)
		c.restartLocked(s.epoch, 0)
		c.queueStatusLocked()
	}
	return l
}

// nextPageLocked returns the next piece of the log, and whether the agent replayed it.
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
		p = c.fetchHistoryLocked(now, l)
	}
	if p != nil {
		c.seq = p.last
	}
	return p, replayed
}

// parkLocked puts the cursor among those that wait for the next event.
func (c *cursor) parkLocked() {
	s := c.s
	if c.hv.started.Load() && c.seq == s.log.head && c.epoch == s.epoch {
		s.joinLocked(c)
	} else {
		s.idle.Push(&c.idle, c)
	}
	s.dropSharedPageLocked()
}

// dropLocked takes a cursor out.
func (s *hubSession) dropLocked(c *cursor) {
	c.leaveLocked()
	last := len(s.cursors) - 1
	s.cursors[c.at] = s.cursors[last]
	s.cursors[c.at].at = c.at
	s.cursors[last] = nil
	s.cursors = s.cursors[:last]
	s.dropSharedPageLocked()
}

// dropSharedPageLocked forgets the page that cursors shared, if none of them is on the way.
func (s *hubSession) dropSharedPageLocked() {
	if s.parked+s.idle.Len() == len(s.cursors) && s.nextBehindLocked() == nil {
		s.page = nil
	}
}

// readLocked returns the page behind a number of one of the session's logs. Cursors that
// come one after the other share it.
func (s *hubSession) readLocked(l *log, after uint64) *page {
	if p := s.page; p != nil && p.of == l && p.first == after+1 {
		return p
	}
	p := l.read(span{after, l.head, l.head, s.h.sizes.batch, pageBytes, 0})
	if len(s.cursors) > 1 {
		p.of, p.shared, p.memory = l, new(sharedEvents), nil // which nobody may use again
		s.page = &p
	}
	return &p
}
