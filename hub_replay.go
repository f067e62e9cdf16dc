package gvstream

import (
	"strconv"
	"time"
)

// This file gets events for a cursor that are older than the hub's log (rule 12). The agent has
// them; the hub asks for them, one request a cursor at a time, and hands them on without
// keeping them.
//
//	the cursor                        what it has
//	waits for a permit of its link    a place in atLink
//	waits for one of the session      the link's permit, a place in atSession
//	has a request                     both permits, a replayRequest
//	sends what came                   pages; the permits only until the answer is complete
//	waits to ask again                retry: after a refusal, a loss or silence
//	waits for the agent               waitingSince: it is away, or has not said hello
//
// The events of a request arrive on the agent's link, and what the cursor does next depends on
// the viewer's link asking it. Either connection may be stuck, so the clock of a request is
// looked at from both sides, and a free permit of the session, for which other viewers wait, is
// used by whichever goroutine frees it.

// fetchOlderLocked deals with what is older than the hub's log: it asks the agent, waits, or
// declares a gap, which it returns. The order: what can't be had is declared before anything
// is waited for, a request that is open or put off keeps its time, and only then the agent is
// asked. If it returns nil, the cursor is in a queue or has set a time, so that something
// wakes it.
func (c *cursor) fetchOlderLocked(now time.Time, l *log) *page {
	s := c.s
	until := l.first() - 1
	switch {
	case l != &s.log: // no agent has the older epoch any more
		return c.gapLocked(until, ReasonEvicted)
	case c.unavailableTo > c.sent:
		return c.gapLocked(min(c.unavailableTo, until), ReasonUnavailable)
	case c.tickRequestLocked(now):
		return nil
	case s.h.cfg.MaxReplays == 0 || s.h.cfg.MaxViewerReplays == 0: // there are no permits
		return c.gapLocked(until, ReasonUnavailable)
	}
	ha, greeted := s.h.agent(s.owner)
	if greeted {
		c.waitingSince = time.Time{}
		c.requestReplayLocked(ha, until)
		c.tickRequestLocked(now) // starts the clock of a request that it made
		return nil
	}
	if !c.waitForAgentLocked(now, ha != nil) {
		return c.gapLocked(until, ReasonUnavailable)
	}
	return nil
}

// waitForAgentLocked reports whether the cursor still waits for an agent that can't be asked. It is
// called again within a second, since a hello, which may precede the session's opening by far,
// wakes no cursors. The wait counts from when the cursor first needed the agent, over all
// links that come and go meanwhile.
func (c *cursor) waitForAgentLocked(now time.Time, connected bool) bool {
	if c.waitingSince.IsZero() {
		c.waitingSince = now
	}
	patience := c.s.h.cfg.ReplayWait
	if connected { // its hello may have been lost; by then it has come again, or the link is dead
		patience = max(patience, maxSilence)
	}
	left := c.waitingSince.Add(patience).Sub(now)
	if left > 0 {
		c.hv.schedule(&c.task, now.Add(min(left, time.Second)))
	}
	return left > 0
}

// gapLocked declares what nobody can give to the cursor, up to a number.
func (c *cursor) gapLocked(to uint64, reason Reason) *page {
	c.stopAskingLocked()
	p := gapPage(c.sent+1, to, reason)
	return &p
}

// tickRequestLocked reports whether the cursor waits for an answer, or for the time to ask again.
// A request's time counts from when it was made, and anew from when it is sent: an agent's
// link that is stuck must not keep the permits.
func (c *cursor) tickRequestLocked(now time.Time) bool {
	if c.request != nil && !c.retry.running() {
		c.retry.start(now)
	}
	c.retryUnansweredLocked(now)
	if !c.retry.running() || c.retry.expired(now) {
		return false
	}
	c.hv.schedule(&c.task, c.retry.at)
	return true
}

// retryUnansweredLocked ends a request to which nothing came for a timer period, and reports
// whether it did. The agent is asked again under a new id, so that the two answers can't be
// confused, and in turn: the permits go to the cursors that wait, so that an agent that
// answers some requests and not others does not hold up all of them.
func (c *cursor) retryUnansweredLocked(now time.Time) bool {
	if c.request == nil || !c.retry.expired(now) {
		return false
	}
	c.retry.backOff()
	c.releaseLocked()
	return true
}

// requestReplayLocked sends a replay request to the agent, or waits for the permits that it
// takes. The cursor has no request.
func (c *cursor) requestReplayLocked(ha *hubAgentLink, until uint64) {
	if c.acquireLocked() {
		c.sendRequestLocked(ha, until)
	}
}

// acquireLocked takes the permits that a request needs, or waits for one. The link's comes
// before the session's: so a viewer at its own limit takes no turn away from the session's
// other viewers, and as all take them in this order, none waits for another in a circle. A
// cursor in the queue for the session's permit has the link's.
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

// sendRequestLocked makes the request for which the cursor has the permits, and queues it on the
// agent's link. That may have died since it was looked up: then its map is nil.
func (c *cursor) sendRequestLocked(ha *hubAgentLink, until uint64) {
	rq := &replayRequest{c: c, ha: ha, from: c.sent + 1, expected: c.sent + 1, until: until, left: c.s.h.sizes.replay}
	rq.task = task{Source: rq.next, Control: true}
	c.request = rq
	c.retry.stop()
	ha.mu.Lock()
	dead := ha.requests == nil
	if !dead {
		ha.requestCount++
		rq.id = ha.id + "-" + strconv.Itoa(ha.requestCount) // an id that no other link uses
		ha.requests[rq.id] = rq
		ha.readyLocked(&rq.task)
	}
	ha.mu.Unlock()
	if dead { // the cursor looks for the next link, and waits for it if need be
		c.releaseLocked()
		c.hv.ready(&c.task)
	}
}

// releaseLocked ends the cursor's request, or its wait for the session's permit, and gives
// back the permits that it has. What came of the request stays in pages.
func (c *cursor) releaseLocked() { c.releaseAtLocked(time.Time{}) }

// releaseAtLocked is releaseLocked, except that the link's permit stays taken until the given
// time, if there is one. The session's is free at once in any case: one viewer that asks and
// gives up must not keep the others waiting.
func (c *cursor) releaseAtLocked(at time.Time) {
	s, hv, rq := c.s, c.hv, c.request
	if rq == nil && !c.atSession.Queued() {
		return
	}
	c.atSession.Remove()
	hv.mu.Lock()
	hv.permits.release(at)
	hv.offerLocked()
	hv.mu.Unlock()
	if rq != nil {
		c.request = nil
		c.retry.stop()
		rq.withdrawLocked()
		s.permits.release(time.Time{})
		s.passPermitsLocked()
	}
}

// passPermitsLocked gives the session's free permits to the first cursors that wait for one and
// can use it. Their requests go out here and now. To wake a cursor and let it ask, as
// offerLocked does, would be wrong: its viewer's link may be stuck, and would keep a turn for
// which the cursors of other links wait. A cursor that can't use it, because it reads an older
// epoch or the agent can't be asked, leaves the queue and decides anew.
func (s *hubSession) passPermitsLocked() {
	for c := s.permits.next(); c != nil; c = s.permits.next() {
		if ha, greeted := s.h.agent(s.owner); greeted && c.epoch == s.epoch {
			c.requestReplayLocked(ha, s.log.first()-1)
		} else {
			c.releaseLocked()
		}
		c.hv.ready(&c.task) // to decide anew, or to start the clock of its request
	}
}

// passOnLocked gives up the cursor's turn to take a permit of the link, which it was woken for
// and did not use, and wakes the next one.
func (c *cursor) passOnLocked() {
	c.hv.mu.Lock()
	defer c.hv.mu.Unlock()
	if c.hv.permits.next() == c {
		c.atLink.Remove()
		c.hv.offerLocked()
	}
}

// giveUpLocked ends a request that the viewer gives up, by another watch or a stop. It counts
// for its link for another second, since the agent may be sending what nobody wants any more
// (rule 12): so a viewer that watches again and again costs the agent no more than its permits
// allow. A request that was not sent yet costs it nothing.
func (c *cursor) giveUpLocked(now time.Time) {
	if c.request == nil || !c.request.sent {
		return
	}
	at := now.Add(replayAgain)
	c.releaseAtLocked(at)
	c.hv.schedule(&c.hv.permitTask, at)
}

// stopAskingLocked ends whatever the cursor does to get older events from the agent, its waits
// included. What came already is the caller's to keep or drop.
func (c *cursor) stopAskingLocked() {
	c.releaseLocked()
	c.retry.reset()
	c.waitingSince = time.Time{}
}

// maxRequestBytes is how much of the answers to one request the hub holds before it takes no
// more, and asks on later. An agent that keeps to rule 12 ends an answer with a limit there by
// itself; one that doesn't is held to it here.
const maxRequestBytes = maxReplayBytes

// A replayRequest is one open replay request to an agent, for one cursor. It holds a permit of
// the session and one of the viewer's link. The session's lock protects it.
//
//	made       in its agent's link's requests, and a task there
//	sent       answers are awaited, until the cursor's retry expires; each one that brings
//	           something new starts that again
//	over       no longer its cursor's request: what still comes for it is stale
//
// It is over when it is answered in full or refused, a part of its answer was lost, its time
// has passed, the viewer gave it up, or either link died. It is never used again.
type replayRequest struct {
	task // sends the request, then looks at its time
	c    *cursor
	ha   *hubAgentLink // whose link it was sent on: answers count on no other
	id   string

	// from ≤ expected ≤ until+1: the answer is taken in order, from its first number on.
	from, expected, until uint64 // asked from, expected next, asked until
	left                  int    // events that may still come
	bytes                 int    // that came
	sent                  bool
}

// next sends the request, once. After that it only looks at the time, as the cursor's own task
// does: that one is not asked while the viewer's link is stuck, and the permits of a request
// without an answer would stay taken.
func (rq *replayRequest) next(now time.Time) Payload {
	c := rq.c
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	switch {
	case c.request != rq:
		return nil
	case rq.sent && c.retryUnansweredLocked(now):
		c.hv.ready(&c.task)
		return nil
	case rq.sent:
		rq.ha.schedule(&rq.task, c.retry.at)
		return nil
	}
	rq.sent = true
	c.retry.start(now)
	c.hv.schedule(&c.task, c.retry.at)
	return &ReplayRequestPayload{
		SessionID: c.s.id, ViewerID: c.hv.viewerID, RequestID: rq.id, Epoch: c.epoch,
		AfterSeq: rq.from - 1, UntilSeq: rq.until, Limit: rq.left,
	}
}

// withdrawLocked takes the request off its agent's link. The agent does not hear of
// it: there is no payload for that, and it stops by itself at the request's limit.
func (rq *replayRequest) withdrawLocked() {
	rq.ha.mu.Lock()
	delete(rq.ha.requests, rq.id)
	rq.ha.mu.Unlock()
	rq.ha.forget(&rq.task)
}

// refusedLocked ends a request that the agent refuses. If that may change, the cursor asks again
// on the timer; else what it asked for can't be had, and becomes a gap. The wait is doubled
// for the next time only after this one has started.
func (rq *replayRequest) refusedLocked(now time.Time, retryable bool) {
	c := rq.c
	c.releaseLocked()
	if retryable {
		c.retry.start(now)
		c.hv.schedule(&c.task, c.retry.at)
		c.retry.backOff()
		return
	}
	c.unavailableTo = rq.until
	c.hv.ready(&c.task)
}

// answered takes an answer, unless the request is over, or the answer does not fit it: that is
// refused, since it could bring one viewer what another asked for, or more than there is room
// for. It is clipped to what is new before it is measured, so that a transport may repeat it.
func (rq *replayRequest) answered(now time.Time, p *replayBatch, answer *page) *ProtocolError {
	s := rq.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if rq.c.request != rq {
		s.h.stalePayloads.Add(1)
		return nil
	}
	answer.clip(rq.expected - 1) // a duplicate asks for nothing more
	switch {
	case p.SessionID != s.id || p.Epoch != rq.c.epoch || p.ViewerID != rq.c.hv.viewerID:
		return malformed("replay_batch: not what request %q asked for", p.RequestID)
	case p.LastSeq > rq.until || len(answer.slots) > rq.left:
		return malformed("replay_batch: more than request %q asked for", p.RequestID)
	}
	rq.acceptAnswerLocked(now, p, answer)
	return nil
}

// acceptAnswerLocked keeps what is new in an answer for the cursor to hand out, in bytes of its own and
// in pages that fit a payload. A request that is complete, or as much as the hub holds at a
// time, gives its permits back now, before the viewer has taken anything: the cursor asks on
// when its pages are handed out.
func (rq *replayRequest) acceptAnswerLocked(now time.Time, p *replayBatch, answer *page) {
	c := rq.c
	if p.FirstSeq > rq.expected { // a part was lost: ask again, at most once a second
		c.releaseLocked()
		c.retry.startIn(now, replayAgain)
		c.hv.schedule(&c.task, c.retry.at)
		return
	}
	if answer.pack(); answer.held != heldOwn {
		answer.detach()
	}
	for _, pg := range answer.pieces() {
		c.retry.reset() // here, as only an answer with news is progress
		c.retry.start(now)
		c.pages = append(c.pages, pg)
		rq.expected = pg.last + 1
		rq.left -= len(pg.slots)
		rq.bytes += pg.bytes
	}
	if p.Done && rq.expected == rq.from { // the agent has nothing to give: don't ask for the same again
		c.unavailableTo = rq.until
	}
	if p.Done || rq.fullLocked() {
		c.releaseLocked()
	}
	c.hv.ready(&c.task)
}

// fullLocked reports whether the request has got all that it asked for, or all that it may
// get, whether or not the agent said that it is done.
func (rq *replayRequest) fullLocked() bool {
	return rq.expected > rq.until || rq.left == 0 || rq.bytes >= maxRequestBytes
}

// replayed takes an agent's answer to a replay request (rule 12). Its data is checked before any
// session is locked, and only if the request is known: stale answers cost nothing. An event
// that is larger than the hub takes becomes a gap, as it would in a batch (rule 11), but
// without a word to the agent: it can't change what it has published.
func (ha *hubAgentLink) replayed(now time.Time, p *replayBatch) *ProtocolError {
	ha.mu.Lock()
	rq := ha.requests[p.RequestID]
	ha.mu.Unlock()
	if rq == nil {
		ha.h.stalePayloads.Add(1)
		return nil
	}
	pg := &p.page
	if err := p.load(); err != nil {
		return malformed("replay_batch: %v", err)
	}
	for i := pg.firstLarger(ha.h.cfg.MaxEventBytes); i >= 0; i = pg.firstLarger(ha.h.cfg.MaxEventBytes) {
		pg.lose(i, ReasonRejected)
	}
	return rq.answered(now, p, pg)
}
