package gvstream

import (
	"strconv"
	"time"
)

// fetchHistoryLocked deals with what is older than the hub's log: it asks the agent, waits, or
// declares a gap (rule 12).
func (c *cursor) fetchHistoryLocked(now time.Time, l *log) *page {
	s := c.s
	until := l.first() - 1
	switch {
	case l != &s.log: // no agent has the older epoch any more
		return c.gapLocked(until, ReasonEvicted)
	case c.unavailableTo > c.seq:
		return c.gapLocked(min(c.unavailableTo, until), ReasonUnavailable)
	case c.awaitsLocked(now):
		return nil
	case s.h.cfg.MaxReplays == 0 || s.h.cfg.MaxViewerReplays == 0: // its turn never comes
		return c.gapLocked(until, ReasonUnavailable)
	}
	ha, greeted := s.h.agent(s.owner)
	if greeted {
		c.waitingSince = time.Time{}
		c.requestReplayLocked(ha, until)
		c.awaitsLocked(now)
		return nil
	}
	if !c.patientLocked(now, ha != nil) {
		return c.gapLocked(until, ReasonUnavailable)
	}
	return nil
}

// patientLocked reports whether the cursor still waits for an agent that can't be asked, and
// looks for it again soon.
func (c *cursor) patientLocked(now time.Time, connected bool) bool {
	if c.waitingSince.IsZero() {
		c.waitingSince = now
	}
	patience := c.s.h.cfg.ReplayWait
	if connected { // its hello may have been lost, and comes again
		patience = max(patience, maxSilence)
	}
	left := c.waitingSince.Add(patience).Sub(now)
	if left > 0 {
		c.hv.schedule(&c.task, now.Add(min(left, time.Second)))
	}
	return left > 0
}

// gapLocked declares what nobody can give to the cursor.
func (c *cursor) gapLocked(to uint64, reason Reason) *page {
	c.stopAskingLocked()
	p := gapPage(c.seq+1, to, reason)
	return &p
}

// awaitsLocked reports whether the cursor waits for an answer, or for the time to ask again.
func (c *cursor) awaitsLocked(now time.Time) bool {
	if c.request != nil && !c.retry.running() { // not yet sent: its agent's link may be stuck
		c.retry.start(now)
	}
	c.unansweredLocked(now)
	if !c.retry.running() || c.retry.expired(now) {
		return false
	}
	c.hv.schedule(&c.task, c.retry.at)
	return true
}

// unansweredLocked ends a request to which nothing came for a timer period, and reports
// whether it did. The agent is asked again, under a new id and in turn.
func (c *cursor) unansweredLocked(now time.Time) bool {
	if c.request == nil || !c.retry.expired(now) {
		return false
	}
	c.retry.backOff()
	c.releaseLocked()
	return true
}

// requestReplayLocked sends a replay request to the agent, once the cursor has the permits for it.
func (c *cursor) requestReplayLocked(ha *hubAgentLink, until uint64) {
	if c.acquireLocked() {
		c.sendRequestLocked(ha, until)
	}
}

// acquireLocked takes the permits that a request needs, the link's before the session's, or
// waits for one.
func (c *cursor) acquireLocked() bool {
	if !c.atSession.Queued() {
		c.hv.mu.Lock()
		ok := c.hv.permits.acquire(c, &c.atLink)
		c.hv.offerLocked()
		c.hv.mu.Unlock()
		if !ok {
			return false
		}
	}
	return c.s.permits.acquire(c, &c.atSession)
}

// sendRequestLocked sends the request for which the cursor has the permits.
func (c *cursor) sendRequestLocked(ha *hubAgentLink, until uint64) {
	f := &replayRequest{c: c, ha: ha, from: c.seq + 1, expected: c.seq + 1, until: until, left: c.s.h.sizes.replay}
	f.task = task{Source: f.next, Control: true}
	c.request = f
	c.retry.stop()
	ha.mu.Lock()
	dead := ha.requests == nil
	if !dead {
		ha.requestCount++
		f.id = ha.id + "-" + strconv.Itoa(ha.requestCount) // no other link has it
		ha.requests[f.id] = f
		ha.readyLocked(&f.task)
	}
	ha.mu.Unlock()
	if dead { // it is asked again when the agent is back
		c.releaseLocked()
		c.hv.ready(&c.task)
	}
}

// releaseLocked ends the cursor's request, or its wait for the session's permit, and gives
// back the permits that it has.
func (c *cursor) releaseLocked() { c.releaseAtLocked(time.Time{}) }

// releaseAtLocked is release, but for the link's permit, which stays taken until then.
func (c *cursor) releaseAtLocked(at time.Time) {
	s, hv, f := c.s, c.hv, c.request
	if f == nil && !c.atSession.Queued() {
		return
	}
	c.atSession.Remove()
	hv.mu.Lock()
	hv.permits.release(at)
	hv.offerLocked()
	hv.mu.Unlock()
	if f != nil {
		c.request = nil
		c.retry.stop()
		f.withdrawLocked()
		s.permits.release(time.Time{})
		s.passPermitsLocked()
	}
}

// passPermitsLocked gives the session's free permits to the first that wait for one and can
// use it. Their requests go out here and now: the viewers' own links may be stuck.
func (s *hubSession) passPermitsLocked() {
	for c := s.permits.next(); c != nil; c = s.permits.next() {
		if ha, greeted := s.h.agent(s.owner); greeted && c.epoch == s.epoch {
			c.requestReplayLocked(ha, s.log.first()-1)
		} else {
			c.releaseLocked()
		}
		c.hv.ready(&c.task) // if it asked, its clock runs from now on
	}
}

// passOnLocked gives up the cursor's turn to take a permit of the link, if it did not use it.
func (c *cursor) passOnLocked() {
	c.hv.mu.Lock()
	defer c.hv.mu.Unlock()
	if c.hv.permits.next() == c {
		c.atLink.Remove()
		c.hv.offerLocked()
	}
}

// giveUpLocked ends a request that the viewer gives up. It counts for its link for another
// second: the agent may be sending what nobody wants any more (rule 12).
func (c *cursor) giveUpLocked(now time.Time) {
	if c.request == nil || !c.request.sent {
		return
	}
	at := now.Add(replayAgain)
	c.releaseAtLocked(at)
	c.hv.schedule(&c.hv.permitTask, at)
}

// stopAskingLocked ends whatever the cursor does to have older events from the agent.
func (c *cursor) stopAskingLocked() {
	c.releaseLocked()
	c.retry.reset()
	c.waitingSince = time.Time{}
}

// maxRequestBytes bounds what the hub holds of one replay request, beside its events.
const maxRequestBytes = maxReplayBytes

// A replayRequest is one open replay request to an agent, for one cursor. It holds a permit of
// the session and one of the viewer's link. It is over when it is no longer its cursor's.
// The session's lock protects it.
type replayRequest struct {
	task
	c  *cursor
	ha *hubAgentLink // whose link it was sent on: answers count on no other
	id string

	from, expected, until uint64 // asked from, expected next, asked until
	left                  int    // events that may still come
	bytes                 int
	sent                  bool
}

func (f *replayRequest) next(now time.Time) Payload {
	c := f.c
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	switch {
	case c.request != f:
		return nil
	case f.sent && c.unansweredLocked(now): // here too: the viewer's own link may be stuck
		c.hv.ready(&c.task)
		return nil
	case f.sent:
		f.ha.schedule(&f.task, c.retry.at)
		return nil
	}
	f.sent = true
	c.retry.start(now)
	c.hv.schedule(&c.task, c.retry.at)
	return &ReplayRequestPayload{
		SessionID: c.s.id, ViewerID: c.hv.viewerID, RequestID: f.id, Epoch: c.epoch,
		AfterSeq: f.from - 1, UntilSeq: f.until, Limit: f.left,
	}
}

// withdrawLocked takes the request off its agent's link.
func (f *replayRequest) withdrawLocked() {
	f.ha.mu.Lock()
	delete(f.ha.requests, f.id)
	f.ha.mu.Unlock()
	f.ha.forget(&f.task)
}

// refusedLocked ends a request that the agent does not answer: it is asked again on the
// timer, or what it asked for is lost.
func (f *replayRequest) refusedLocked(now time.Time, retry bool) {
	c := f.c
	c.releaseLocked()
	if retry {
		c.retry.start(now)
		c.hv.schedule(&c.task, c.retry.at)
		c.retry.backOff()
		return
	}
	c.unavailableTo = f.until
	c.hv.ready(&c.task)
}

// answered takes an answer unless the request is no longer open, or it is not one.
func (f *replayRequest) answered(now time.Time, p *replayBatch, answer *page) *ProtocolError {
	s := f.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.c.request != f {
		s.h.stalePayloads.Add(1)
		return nil
	}
	answer.clip(f.expected - 1) // a duplicate asks for nothing more
	switch {
	case p.SessionID != s.id || p.Epoch != f.c.epoch || p.ViewerID != f.c.hv.viewerID:
		return malformed("replay_batch: not what request %q asked for", p.RequestID)
	case p.LastSeq > f.until || len(answer.slots) > f.left:
		return malformed("replay_batch: more than request %q asked for", p.RequestID)
	}
	f.acceptLocked(now, p, answer)
	return nil
}

// acceptLocked keeps what is new in an answer for the cursor to hand out.
func (f *replayRequest) acceptLocked(now time.Time, p *replayBatch, answer *page) {
	c := f.c
	if p.FirstSeq > f.expected { // a part was lost: ask again, in a moment
		c.releaseLocked()
		c.retry.startIn(now, replayAgain)
		c.hv.schedule(&c.task, c.retry.at)
		return
	}
	if answer.pack(); answer.held != heldOwn {
		answer.detach()
	}
	for _, pg := range answer.pieces() {
		c.retry.reset() // an answer without news is none
		c.retry.start(now)
		pg.request, pg.available = f.id, p.AvailableFrom
		c.pages = append(c.pages, pg)
		f.expected = pg.last + 1
		f.left -= len(pg.slots)
		f.bytes += pg.bytes
	}
	if p.Done && f.expected == f.from { // it has nothing to give
		c.unavailableTo = f.until
	}
	if p.Done || f.fullLocked() {
		c.releaseLocked()
	}
	c.hv.ready(&c.task)
}

// fullLocked reports whether the request has all that it may have.
func (f *replayRequest) fullLocked() bool {
	return f.expected > f.until || f.left == 0 || f.bytes >= maxRequestBytes
}

// replayed takes an agent's answer to a replay request (rule 12).
func (ha *hubAgentLink) replayed(now time.Time, p *replayBatch) *ProtocolError {
	ha.mu.Lock()
	f := ha.requests[p.RequestID]
	ha.mu.Unlock()
	if f == nil {
		ha.h.stalePayloads.Add(1)
		return nil
	}
	pg := &p.page
	if err := p.load(); err != nil {
		return malformed("replay_batch: %v", err)
	}
	for i := pg.larger(ha.h.cfg.MaxEventBytes); i >= 0; i = pg.larger(ha.h.cfg.MaxEventBytes) {
		pg.lose(i, ReasonRejected)
	}
	return f.answered(now, p, pg)
}
