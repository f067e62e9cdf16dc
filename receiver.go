package gvstream

import (
	"context"
	"errors"
	"time"
)

// This file is the receiving end of one session: it takes batches in and owes acks. A batch
// comes from hubAgentLink.dispatch and goes, in order, through
//
//	load               the events' data is checked, before any lock is taken
//	findSession        the session is found open on this link, or opened
//	batch              ended? a hole? known already? what is known in part is cut off
//	acceptLocked       what the hub takes is stored by Commit, then accepted
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
}

// closeLocked closes the session on its link, which may be dead or go on with others. The
// caller puts another receiver, or none, in its place.
func (rc *receiver) closeLocked() {
	rc.ha.forget(&rc.task)
	rc.ha.mu.Lock()
	delete(rc.ha.sessions, rc.s)
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

// acceptedLocked owes an ack for what is new, after which the agent may send as much more.
func (rc *receiver) acceptedLocked(now time.Time, p *page) {
	rc.acks.accept(now, rc.s.ended, false)
	rc.acks.grant(len(p.slots), p.eventBytes())
	rc.wakeLocked(now)
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
	if s.receiver != rc {
		return nil
	}
	if due, next := rc.acks.due(now); !due {
		if !next.IsZero() {
			rc.ha.schedule(&rc.task, next)
		}
		return nil
	}
	p := &AckBatchPayload{SessionID: s.id, Epoch: s.epoch, Link: rc.ha.id, UpToSeq: s.log.head, Nack: rc.acks.sent(now, s.log.head)}
	p.WindowEvents, p.WindowBytes = rc.acks.window.events, rc.acks.window.bytes
	return p
}

// batch accepts what is new in a batch (rules 7 and 8). Of a batch whose data can't be read
// nothing is accepted, and the refusal names the event.
//
// That the session has ended comes first, or what goes on after the end would be accepted, or
// be taken for a hole and asked for again and again. A hole drops the batch whole: what is
// accepted has no holes, and the agent goes back and sends the events in it again anyway.
func (ha *hubAgentLink) batch(ctx context.Context, now time.Time, p *eventBatch) error {
	if bad := (*eventError)(nil); errors.As(p.load(), &bad) {
		refused := refusal(CodeEventRejected, p.SessionID, "%v", bad)
		refused.Epoch, refused.Seq = p.Epoch, bad.seq
		return refused
	}
	s, err := ha.findSession(ctx, now, p)
	if err != nil {
		return err
	}
	defer s.unlockAndRelease()
	rc, accepted := s.receiver, s.log.head
	if s.ended && p.LastSeq > accepted {
		return ofEpoch(refusal(CodeSessionEnded, s.id, "the session ended at %d", accepted), s.epoch)
	}
	s.agentHead = max(s.agentHead, p.HeadSeq)
	s.listed = now
	switch {
	case p.FirstSeq > accepted+1:
		rc.nackLocked(now)
		return nil
	case p.LastSeq <= accepted:
		rc.ackNowLocked() // a duplicate: its ack may have been lost
		return nil
	}
	p.clip(accepted)
	return ha.acceptPageLocked(ctx, now, s, &p.page)
}

// acceptPageLocked accepts a page, up to the first event that is too large, once it is stored
// (rule 8). The lock is free while Commit runs. Meanwhile the session may have been forgotten,
// and then what Commit says does not count; or the link may have died, and then it does, as
// the next link finds: a receiver whose link is dead just sends no ack. Nobody else can have
// accepted anything, since they wait until the session is no longer busy.
//
// The page is packed first: it may go into the log, and would keep the whole payload in memory
// for the sake of the few events that are new.
func (ha *hubAgentLink) acceptPageLocked(ctx context.Context, now time.Time, s *hubSession, pg *page) error {
	rc, epoch := s.receiver, s.epoch // when Commit is done, they may be others
	tooLarge := ha.cutOversizedLocked(s, pg)
	if pg.last >= pg.first {
		pg.pack()
		if err := ha.commitLocked(ctx, s, epoch, pg); err != nil {
			return err
		}
		if s.epoch != epoch {
			return nil // forgotten
		}
		s.acceptLocked(pg)
		rc.acceptedLocked(now, pg)
		s.watchClockLocked()
	}
	if tooLarge != nil { // it will send again from its last ack: let that be up to date
		rc.ackNowLocked()
	}
	return tooLarge
}

// unlockAndRelease unlocks the session, and releases it if it was forgotten while Commit ran: until
// the callback's end it had to stay in the hub's map.
func (s *hubSession) unlockAndRelease() {
	forgotten := s.epoch == ""
	s.mu.Unlock()
	if forgotten {
		s.h.release(s)
	}
}

// findSession returns the session of a batch, open on this link and locked. If it is not open,
// a batch from number 1 opens it, as a status would: the agent has not sent anything of it
// before (rule 5). Any other is refused, and the agent says by a status where it stands.
func (ha *hubAgentLink) findSession(ctx context.Context, now time.Time, p *eventBatch) (*hubSession, error) {
	if s := ha.h.lookup(p.SessionID); s != nil {
		if err := s.lock(ctx, ha); err != nil {
			return nil, err
		}
		if s.receiver != nil && s.receiver.ha == ha && s.epoch == p.Epoch {
			return s, nil
		}
		err := ha.checkOwnerLocked(s, p.Epoch)
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	if p.FirstSeq != 1 {
		err := refusal(CodeUnknownSession, p.SessionID, "not open on this link")
		err.Epoch = p.Epoch
		return nil, err
	}
	return ha.openSession(ctx, now, SessionStatus{SessionID: p.SessionID, Epoch: p.Epoch, HeadSeq: p.HeadSeq})
}

// checkOwnerLocked refuses a session that the agent can't open in that epoch in any way, neither
// by this batch nor by a status. Otherwise the batch would be answered by unknown_session, and
// the agent would learn that it has to stop only from the answer to its status.
func (ha *hubAgentLink) checkOwnerLocked(s *hubSession, epoch string) error {
	switch {
	case s.owner == "" || s.owner == ha.agentID:
		return s.checkEpochLocked(epoch)
	case ha.h.cfg.Claim == nil:
		return ofEpoch(notYours(s.id), epoch)
	}
	return nil
}

// cutOversizedLocked cuts the page before the first event that is too large, and returns the
// refusal of that one (rule 11). The agent sends a gap in its place, and what follows again:
// to accept that now would leave a hole.
func (ha *hubAgentLink) cutOversizedLocked(s *hubSession, p *page) error {
	i := p.firstLarger(ha.h.cfg.MaxEventBytes)
	if i < 0 {
		return nil
	}
	err := refusal(CodeEventTooLarge, s.id, "an event has at most %d bytes", ha.h.cfg.MaxEventBytes)
	err.Epoch, err.Seq = s.epoch, p.slots[i].to
	p.cut(err.Seq - 1)
	return err
}

// commitLocked makes the hub's caller store the page. The lock is free meanwhile. The caller
// gets copies, which it may keep and change. It may refuse one event, and only one of this
// page: any other error, also a *ProtocolError about something else, is a failure of the
// store, which ends the link (rule 8).
func (ha *hubAgentLink) commitLocked(ctx context.Context, s *hubSession, epoch string, p *page) error {
	if ha.h.cfg.Commit == nil {
		return nil
	}
	err := s.callLocked(ctx, ha, func(ctx context.Context) error {
		return ha.h.cfg.Commit(ctx, s.id, epoch, p.items(s.id, epoch))
	})
	var refused *ProtocolError
	if errors.As(err, &refused) && refused.Code == CodeEventRejected && p.has(refused.Seq) {
		out := refusal(CodeEventRejected, s.id, "%s", refused.Message)
		out.Epoch, out.Seq = epoch, refused.Seq
		return out
	}
	if err != nil {
		return &commitError{err}
	}
	return nil
}

// A commitError hides that a Commit callback may have returned a *ProtocolError
// of its own making: Link.handle would send it to the peer and let the link live. Everything
// else that the error wraps stays visible to errors.Is and errors.As.
type commitError struct{ err error }

func (e *commitError) Error() string        { return "gvstream: commit: " + e.err.Error() }
func (e *commitError) Is(target error) bool { return errors.Is(e.err, target) }

func (e *commitError) As(target any) bool {
	_, hidden := target.(**ProtocolError)
	return !hidden && errors.As(e.err, target)
}
