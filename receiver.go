package gvstream

import (
	"context"
	"errors"
	"time"
)

// This file is the receiving end of one session: it takes batches in and owes acks. A batch
// comes from hubAgentLink.dispatch and goes, in order, through
//
//	load           the events' data is checked, before any lock is taken
//	lockOpen       the session is found open on this link, or opened by the batch
//	batchLocked    ended? a hole? known already?
//	takeLocked     what is new is received: stored by Commit, then accepted (hub_commit.go)
//
// and the acks that come of it go out through the receiver's task.

// A receiver is one session on one link of its agent: the acks that the hub owes there. It is
// made by attachLocked, and is over when it is no longer its session's: because the link died,
// another link opened the session, or the hub forgot it. It is the counterpart of the agent's
// sender. The session's lock protects it.
type receiver struct {
	task // sends the next ack
	s    *hubSession
	ha   *hubAgentLink
	acks ackState // when the next ack is due, and whether it is a nack

	refusals  []*ProtocolError // of events, which the agent has not been told of
	refusedAt time.Time        // when the last one was queued
	failed    *ProtocolError   // the last word, of a session that the store has failed: it is closed
}

// closeLocked closes the session on its link, which may be dead or go on with others. The
// caller puts another receiver, or none, in its place.
func (rc *receiver) closeLocked() {
	rc.ha.forget(&rc.task)
	rc.ha.mu.Lock()
	if rc.ha.sessions[rc.s] == rc { // another may be open on the same link by now
		delete(rc.ha.sessions, rc.s)
	}
	rc.ha.mu.Unlock()
}

// ackNowLocked owes an ack at once: a status or a duplicate is answered by one, since the ack
// before it may have been lost, and the agent sends again until it hears one (rule 6).
func (rc *receiver) ackNowLocked() {
	rc.acks.now = true
	rc.ha.ready(&rc.task)
}

// nackLocked asks for what did not arrive. Each batch of those that follow a hole calls it,
// and ackState makes one nack of them.
func (rc *receiver) nackLocked(now time.Time) {
	rc.acks.hole(now, rc.s.log.head)
	rc.wakeLocked(now)
}

// acceptLocked accepts pages that are stored, in order, and owes an ack for them, after which the
// agent may send as much more.
func (rc *receiver) acceptLocked(now time.Time, pages ...page) {
	s, events, bytes := rc.s, 0, 0
	for i := range pages {
		events += len(pages[i].slots)
		bytes += pages[i].eventBytes()
	}
	s.acceptLocked(pages...)
	rc.acks.accept(now, s.ended, false)
	rc.acks.grant(events, bytes)
	rc.wakeLocked(now)
}

// windowLocked is how many events and bytes beyond what is accepted the agent may send: the
// window, but less when what waits for the store nears its limit. It never ends the flow
// altogether, since nobody would tell the agent that there is room again.
func (rc *receiver) windowLocked() (events, bytes int) {
	h := rc.ha.h
	h.agentsMu.Lock()
	free := h.cfg.MaxUncommittedBytes - h.uncommitted[rc.ha.agentID]
	h.agentsMu.Unlock()
	return h.cfg.Window, max(minWindowBytes, min(h.cfg.WindowBytes, free+rc.s.bytes))
}

// refuseLocked tells the agent that an event was refused, which it then turns into a gap. It
// goes out before the next ack. Neighbours that are refused for one reason are one range.
func (rc *receiver) refuseLocked(now time.Time, seq uint64, err *ProtocolError) {
	rc.refusedAt = now
	rc.ha.ready(&rc.task)
	if n := len(rc.refusals); n > 0 {
		last := rc.refusals[n-1]
		if last.Code == err.Code && last.Message == err.Message && max(last.Seq, last.ToSeq)+1 == seq {
			last.ToSeq = seq
			return
		}
	}
	err.Epoch, err.Seq = rc.s.epoch, seq
	rc.refusals = append(rc.refusals, err)
	rc.ha.h.refusedPayloads.Add(1)
}

// awaitConfirmLocked gives up what was received from a refused event on, if the agent has not
// confirmed the refusal for as long as it would have waited before it says anything again. It may
// have stopped the session, and its others need the room. If it has not, a nack brings it again.
func (rc *receiver) awaitConfirmLocked(now time.Time) {
	s := rc.s
	if len(s.refused) == 0 {
		return
	}
	if at := rc.refusedAt.Add(timerFirst); now.Before(at) {
		rc.ha.schedule(&rc.task, at)
		return
	}
	s.dropPagesLocked()
	rc.acks.missing()
}

// wakeLocked makes the link call next when the ack is due, if one is owed.
func (rc *receiver) wakeLocked(now time.Time) {
	if due, next := rc.acks.due(now); due {
		rc.ha.ready(&rc.task)
	} else if !next.IsZero() {
		rc.ha.schedule(&rc.task, next)
	}
}

// next sends the ack that is due. It says what is accepted when it is sent, which may be more
// than when it was decided on.
func (rc *receiver) next(now time.Time) Payload {
	s := rc.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if failed := rc.failed; failed != nil {
		rc.failed = nil
		return failed.Payload()
	}
	if s.receiver != rc {
		return nil
	}
	if len(rc.refusals) > 0 {
		p := rc.refusals[0].Payload()
		rc.refusals = rc.refusals[1:]
		return p
	}
	rc.awaitConfirmLocked(now)
	if due, next := rc.acks.due(now); !due {
		if !next.IsZero() {
			rc.ha.schedule(&rc.task, next)
		}
		return nil
	}
	p := &AckBatchPayload{SessionID: s.id, Epoch: s.epoch, Link: rc.ha.id, UpToSeq: s.log.head, Nack: rc.acks.sent(now, s.log.head)}
	p.WindowEvents, p.WindowBytes = rc.windowLocked()
	if s.ended {
		s.watchClockLocked() // it may go now
	}
	return p
}

// batch receives what is new in a batch (rules 7 and 8). Of a batch whose data can't be read
// nothing is received, and the refusal names the event. A session that is not open is opened
// first, which may take a while.
func (ha *hubAgentLink) batch(ctx context.Context, now time.Time, p *eventBatch) error {
	if bad := (*eventError)(nil); errors.As(p.load(), &bad) {
		refused := refusal(CodeEventRejected, p.SessionID, "%v", bad)
		refused.Epoch, refused.Seq = p.Epoch, bad.seq
		return refused
	}
	for range 3 { // the opening may end between two looks
		if s := ha.lockOpen(p.SessionID, p.Epoch); s != nil {
			defer s.mu.Unlock()
			return s.receiver.batchLocked(ctx, now, &p.page, p.HeadSeq)
		}
		if ha.hold(p) {
			return nil
		}
		if err := ha.openByBatch(ctx, now, p); err != nil {
			return err
		}
	}
	return nil // it was opened, and lost again at once: the batch comes again
}

// refusedBatch asks for the rest of a batch that was dropped for the sake of one event that could
// not be read. The agent turns that event into a gap when it hears of the refusal, which comes
// first.
func (ha *hubAgentLink) refusedBatch(now time.Time, err *ProtocolError) {
	if err.Code != CodeEventRejected {
		return
	}
	if s := ha.lockOpen(err.SessionID, err.Epoch); s != nil {
		defer s.mu.Unlock()
		s.receiver.acks.missing()
		s.receiver.wakeLocked(now)
	}
}

// lockOpen returns a session locked if it is open on this link in that epoch, and otherwise nil.
func (ha *hubAgentLink) lockOpen(sessionID, epoch string) *hubSession {
	s := ha.h.lookup(sessionID)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	if s.receiver != nil && s.receiver.ha == ha && s.epoch == epoch {
		return s
	}
	s.mu.Unlock()
	return nil
}

// batchLocked receives what is new in a page of its session's.
//
// That the session has ended comes first, or what goes on after the end would be accepted, or
// be taken for a hole and asked for again and again. A hole drops the batch whole: what is
// received has no holes, and the agent goes back and sends the events in it again anyway. What
// is received and not accepted needs no answer: its ack follows.
func (rc *receiver) batchLocked(ctx context.Context, now time.Time, p *page, head uint64) error {
	s := rc.s
	s.listed = now
	if end, ok := s.lastLocked(); ok && p.last > end {
		return ofEpoch(refusal(CodeSessionEnded, s.id, "the session ended at %d", end), s.epoch)
	}
	if !s.ended {
		s.agentHead = max(s.agentHead, head)
	}
	rc.confirmLocked(now, p)
	switch {
	case p.first > s.received+1:
		rc.nackLocked(now)
	case p.last <= s.log.head:
		if p.last == s.log.head && p.hasEnd() && !s.ended { // the store has it, and the hub has forgotten that
			s.endSeq = p.last
			s.noteEndLocked()
			s.drainLocked(now)
		}
		rc.ackNowLocked() // a duplicate: its ack may have been lost
	case p.last > s.received:
		rc.takeLocked(ctx, now, p)
	}
	return nil
}

// openByBatch opens the session of a batch from number 1, as a status would: the agent has not
// sent anything of it before (rule 5). Any other is refused, and the agent says by a status where
// it stands.
func (ha *hubAgentLink) openByBatch(ctx context.Context, now time.Time, p *eventBatch) error {
	if s := ha.h.lookup(p.SessionID); s != nil {
		s.mu.Lock()
		err := ha.checkOwnerLocked(s, p.Epoch)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if p.FirstSeq != 1 {
		err := refusal(CodeUnknownSession, p.SessionID, "not open on this link")
		err.Epoch = p.Epoch
		return err
	}
	return ha.begin(ctx, now, &opening{entry: SessionStatus{SessionID: p.SessionID, Epoch: p.Epoch, FirstSeq: p.FirstSeq, HeadSeq: p.HeadSeq}})
}

// checkOwnerLocked refuses a session that the agent can't open in that epoch in any way, neither
// by this batch nor by a status. Otherwise the batch would be answered by unknown_session, and
// the agent would learn that it has to stop only from the answer to its status.
func (ha *hubAgentLink) checkOwnerLocked(s *hubSession, epoch string) error {
	switch {
	case s.owner == "" || s.owner == ha.agentID:
		return s.checkEpochLocked(epoch)
	case ha.h.cfg.AuthorizeAgent == nil:
		return ofEpoch(notYours(s.id), epoch)
	}
	return nil
}
