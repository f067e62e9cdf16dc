package gvstream

import (
	"context"
	"errors"
	"time"
)

// A receiver is one session on one link of its agent: what the hub owes it.
type receiver struct {
	task
	s    *hubSession
	ha   *hubAgentLink
	acks ackState
}

func (o *receiver) closeLocked() {
	o.ha.forget(&o.task)
	o.ha.mu.Lock()
	delete(o.ha.sessions, o.s)
	o.ha.mu.Unlock()
}

// ackNowLocked owes an ack at once: a status, or a duplicate, is answered by one.
func (o *receiver) ackNowLocked() {
	o.acks.now = true
	o.ha.ready(&o.task)
}

// nackLocked asks for what did not arrive.
func (o *receiver) nackLocked(now time.Time) {
	o.acks.hole(now, o.s.log.head)
	o.wakeLocked(now)
}

// acceptedLocked owes an ack for new events.
func (o *receiver) acceptedLocked(now time.Time, events int) {
	o.acks.accept(now, events, o.ha.h.cfg.Window, o.s.ended)
	o.wakeLocked(now)
}

// wakeLocked has take called when the ack is due.
func (o *receiver) wakeLocked(now time.Time) {
	if due, next := o.acks.due(now); due {
		o.ha.ready(&o.task)
	} else if !next.IsZero() {
		o.ha.schedule(&o.task, next)
	}
}

func (o *receiver) next(now time.Time) Payload {
	s := o.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.receiver != o {
		return nil
	}
	if due, next := o.acks.due(now); !due {
		if !next.IsZero() {
			o.ha.schedule(&o.task, next)
		}
		return nil
	}
	p := &AckBatchPayload{SessionID: s.id, Epoch: s.epoch, Link: o.ha.id, UpToSeq: s.log.head, Nack: o.acks.sent()}
	return p
}

// batch accepts what is new in a batch (rules 7 and 8).
func (ha *hubAgentLink) batch(ctx context.Context, now time.Time, p *eventBatch) error {
	if bad := (*eventError)(nil); errors.As(p.load(), &bad) {
		refused := refusal(codeEventRejected, p.SessionID, "%v", bad)
		refused.Epoch, refused.Seq = p.Epoch, bad.seq
		return refused
	}
	s, err := ha.findSession(ctx, now, p)
	if err != nil {
		return err
	}
	defer s.leaveLocked()
	o, accepted := s.receiver, s.log.head
	if s.ended && p.LastSeq > accepted {
		return ofEpoch(refusal(codeEnded, s.id, "the session ended at %d", accepted), s.epoch)
	}
	s.head = max(s.head, p.HeadSeq)
	s.listed = now
	switch {
	case p.FirstSeq > accepted+1:
		o.nackLocked(now)
		return nil
	case p.LastSeq <= accepted:
		o.ackNowLocked() // a duplicate: its ack may have been lost
		return nil
	}
	p.clip(accepted)
	return ha.acceptLocked(ctx, now, s, &p.page)
}

// acceptLocked has the session accept a page, up to the first event that is too large, once
// it is stored (rule 8).
func (ha *hubAgentLink) acceptLocked(ctx context.Context, now time.Time, s *hubSession, pg *page) error {
	o, epoch := s.receiver, s.epoch // when Commit is done, they may be others
	tooLarge := ha.cutOversizedLocked(s, pg)
	if pg.last >= pg.first {
		pg.pack()
		if err := ha.commitLocked(ctx, s, epoch, pg); err != nil {
			return err
		}
		if s.epoch != epoch {
			return nil // forgotten while Commit ran
		}
		s.acceptLocked(pg)
		o.acceptedLocked(now, len(pg.slots))
		s.watchClockLocked()
	}
	if tooLarge != nil {
		o.ackNowLocked()
	}
	return tooLarge
}

// leaveLocked unlocks the session, and lets it go if it was forgotten while Commit ran.
func (s *hubSession) leaveLocked() {
	forgotten := s.epoch == ""
	s.mu.Unlock()
	if forgotten {
		s.h.release(s)
	}
}

// findSession returns the session of a batch, open on this link and locked.
func (ha *hubAgentLink) findSession(ctx context.Context, now time.Time, p *eventBatch) (*hubSession, error) {
	if s := ha.h.lookup(p.SessionID); s != nil {
		if err := s.lock(ctx, ha); err != nil {
			return nil, err
		}
		if s.receiver != nil && s.receiver.ha == ha && s.epoch == p.Epoch {
			return s, nil
		}
		err := ha.barredLocked(s, p.Epoch)
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	if p.FirstSeq != 1 {
		err := refusal(codeUnknownSession, p.SessionID, "not open on this link")
		err.Epoch = p.Epoch
		return nil, err
	}
	return ha.openSession(ctx, now, SessionStatus{SessionID: p.SessionID, Epoch: p.Epoch, HeadSeq: p.HeadSeq})
}

// barredLocked refuses a session that the agent can't open in that epoch, whatever its caller
// says.
func (ha *hubAgentLink) barredLocked(s *hubSession, epoch string) error {
	switch {
	case s.owner == "" || s.owner == ha.agentID:
		return s.checkEpochLocked(epoch)
	case ha.h.cfg.Claim == nil:
		return ofEpoch(notYours(s.id), epoch)
	}
	return nil
}

// cutOversizedLocked cuts the page before the first event that is too large, and returns the
// refusal of that one (rule 11).
func (ha *hubAgentLink) cutOversizedLocked(s *hubSession, p *page) error {
	i := p.larger(ha.h.cfg.MaxEventBytes)
	if i < 0 {
		return nil
	}
	err := refusal(codeEventTooLarge, s.id, "an event has at most %d bytes", ha.h.cfg.MaxEventBytes)
	err.Epoch, err.Seq = s.epoch, p.slots[i].to
	p.cut(err.Seq - 1)
	return err
}

// commitLocked has the caller store the page. The lock is free meanwhile.
func (ha *hubAgentLink) commitLocked(ctx context.Context, s *hubSession, epoch string, p *page) error {
	if ha.h.cfg.Commit == nil {
		return nil
	}
	err := s.callLocked(ctx, ha, func(ctx context.Context) error {
		return ha.h.cfg.Commit(ctx, s.id, epoch, p.items(s.id, epoch))
	})
	var refused *ProtocolError
	if errors.As(err, &refused) && refused.Code == codeEventRejected && p.has(refused.Seq) {
		out := refusal(codeEventRejected, s.id, "%s", refused.Message)
		out.Epoch, out.Seq = epoch, refused.Seq
		return out
	}
	if err != nil {
		return &commitError{err}
	}
	return nil
}

// A commitError hides that a Commit callback may have returned a *ProtocolError
// of its own making, which is none of the peer's.
type commitError struct{ err error }

func (e *commitError) Error() string        { return "gvstream: commit: " + e.err.Error() }
func (e *commitError) Is(target error) bool { return errors.Is(e.err, target) }

func (e *commitError) As(target any) bool {
	_, hidden := target.(**ProtocolError)
	return !hidden && errors.As(e.err, target)
}
