package gvstream

import (
	"context"
	"errors"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// This file opens a session on an agent's link (rules 2, 4 and 5). An entry of a status does
// so, and the first batch of a session of which nothing was sent before.
//
//	open                  an entry of a status: opens it, notes its head and end, owes the ack
//	openSession           finds or makes the session, and locks it
//	authorizeOpenLocked   the three steps, of which the last one counts:
//	  mayOpenLocked         owner, epoch, limits: may this agent have it?
//	  beginLocked           an epoch that is new to the hub: where does it start?
//	  attachLocked          the session gets its receiver on this link
//
// Claim and Resume are called in between, without the session's lock. So Claim is asked
// first, before anything is checked that may change meanwhile, and what may change during
// Resume is looked at again after it.

// open opens one session on this link, and owes it an ack. That ack is the answer that the
// agent waits for before it sends batches (rule 5), so it goes out at once, whether or not
// anything is new.
func (ha *hubAgentLink) open(ctx context.Context, now time.Time, e SessionStatus) error {
	s, err := ha.openSession(ctx, now, e)
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	if !s.ended { // nothing follows the end
		s.agentHead = max(s.agentHead, e.HeadSeq)
		if e.Ended {
			s.endSeq = e.HeadSeq
			s.noteEndLocked()
		}
	}
	s.receiver.ackNowLocked()
	s.watchClockLocked()
	return nil
}

// openSession opens a session on this link, and returns it locked. It makes the session if the
// hub has none of that id. If the session was gone before it could be locked, there may be
// another by now, so it looks again. A session that it made and could not open is released.
func (ha *hubAgentLink) openSession(ctx context.Context, now time.Time, e SessionStatus) (*hubSession, error) {
	for {
		s := ha.h.getOrCreate(e.SessionID)
		if err := s.lock(ctx, ha); err != nil {
			return nil, err
		}
		switch err := ha.authorizeOpenLocked(ctx, now, s, e); err {
		case nil:
			return s, nil
		case errGone: // look again
		default:
			ha.h.release(s)
			return nil, ofEpoch(err, e.Epoch)
		}
	}
}

// errGone says that the session was removed from the hub before it could be opened.
// openSession hides it.
var errGone = errors.New("gvstream: session removed")

// ofEpoch makes a refusal say which life of the session it is about, if it names none. The
// agent may have renewed the session meanwhile, and a refusal without an epoch would stop the
// new life as well (rule 11).
func ofEpoch(err error, epoch string) error {
	if refused, ok := err.(*ProtocolError); ok && refused.Epoch == "" {
		refused.Epoch = epoch
	}
	return err
}

// authorizeOpenLocked opens a locked session on this link, if the agent may have it. The lock
// is free while a callback runs. It is free in the end as well, unless the session is open:
// even after a callback's panic, which would otherwise lock the session for good.
func (ha *hubAgentLink) authorizeOpenLocked(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	open := false
	defer func() {
		if !open {
			s.mu.Unlock()
		}
	}()
	if err := ha.mayOpenLocked(ctx, now, s, e); err != nil {
		return err
	}
	if e.Epoch != s.epoch {
		if err := ha.beginLocked(ctx, now, s, e); err != nil {
			return err
		}
	}
	if err := ha.attachLocked(now, s); err != nil {
		return err
	}
	open = true
	return nil
}

// mayOpenLocked refuses what the agent may not open on this link. A link that died while its
// payload waited for the session opens nothing: it could take the session from a newer one.
// The owner is asked about before the epoch, so that a stranger does not learn of the
// session's epoch from a stale_epoch.
func (ha *hubAgentLink) mayOpenLocked(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	if err := ha.failure(); err != nil {
		return err
	}
	if err := ha.checkClaimLocked(ctx, s); err != nil {
		return err
	}
	if s.gone {
		return errGone
	}
	if err := s.checkEpochLocked(e.Epoch); err != nil {
		return err
	}
	if at, ok := epoch.Time(e.Epoch); ok && e.Epoch != s.epoch && at.After(now.Add(epoch.MaxLead)) {
		return refusal(CodeForbidden, s.id, "the epoch is too far ahead of the hub's clock")
	}
	return ha.checkQuotaLocked(s)
}

// beginLocked makes a session go on in an epoch that is new to the hub, from where the
// caller's store or the agent says (rule 5). During Resume the link may have died, and the
// session may have been forgotten. One without an epoch is counted here: the count goes up
// first and is looked at then, since other sessions, with locks of their own, may be taking
// the last places at the same time.
func (ha *hubAgentLink) beginLocked(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	start, err := ha.startLocked(ctx, s, e)
	if err != nil {
		return err
	}
	if err := ha.failure(); err != nil {
		return err
	}
	if s.epoch == "" && ha.h.knownSessions.Add(1) > int64(ha.h.cfg.MaxSessions) {
		ha.h.knownSessions.Add(-1) // others were faster
		return overloaded(s.id)
	}
	s.beginEpochLocked(now, e.Epoch, start)
	return nil
}

// checkEpochLocked refuses an epoch older than the session's (rule 2).
func (s *hubSession) checkEpochLocked(epoch string) error {
	if epoch >= s.epoch {
		return nil
	}
	err := refusal(CodeStaleEpoch, s.id, "the session has a later epoch")
	err.Epoch = s.epoch
	return err
}

// checkClaimLocked refuses a session of another agent's, unless this one may take it over (rule 4).
// The lock is free meanwhile, and no Resume or Commit runs when it is held again. What was
// allowed is to take the session from the owner that Claim was asked about. So the answer does
// not hold if a third agent was faster; it does if the session belongs to nobody any more.
func (ha *hubAgentLink) checkClaimLocked(ctx context.Context, s *hubSession) error {
	if s.owner == "" || s.owner == ha.agentID {
		return nil
	}
	if ha.h.cfg.Claim == nil {
		return notYours(s.id)
	}
	owner := s.owner
	allowed := ha.askClaimLocked(ctx, s)
	if err := s.waitIdleLocked(ctx, ha); err != nil {
		return err
	}
	if !allowed || s.owner != owner && s.owner != "" {
		return notYours(s.id)
	}
	return nil
}

// askClaimLocked asks the hub's caller whether the agent may take the session over. The lock
// is free meanwhile. Unlike callLocked it does not make the session busy: the owner's batches
// must not wait on a claim, which any agent can make.
func (ha *hubAgentLink) askClaimLocked(ctx context.Context, s *hubSession) bool {
	owner := s.owner
	s.mu.Unlock()
	defer s.mu.Lock()
	return ha.h.cfg.Claim(ctx, ha.agentID, s.id, owner)
}

func notYours(sessionID string) error {
	return refusal(CodeForbidden, sessionID, "the session belongs to another agent")
}

// checkQuotaLocked refuses a session beyond the limits: that of the agent, unless the session
// counts against it already, and that of the hub, unless the hub knows the session. It spares
// the store a question about a session that would be refused in the end. beginLocked has the
// last word on the hub's limit.
func (ha *hubAgentLink) checkQuotaLocked(s *hubSession) error {
	if s.counted && s.owner == ha.agentID {
		return nil
	}
	ha.h.agentsMu.Lock()
	n := ha.h.owned[ha.agentID]
	ha.h.agentsMu.Unlock()
	if n < ha.h.cfg.MaxAgentSessions && (s.epoch != "" || ha.h.knownSessions.Load() < int64(ha.h.cfg.MaxSessions)) {
		return nil
	}
	return overloaded(s.id)
}

// overloaded is the answer past a limit. It is retryable: the agent says again later where the
// session stands, and there may be room then.
func overloaded(sessionID string) error {
	err := refusal(CodeOverloaded, sessionID, "too many sessions")
	err.Retryable = true
	return err
}

// startLocked returns the number up to which an epoch that is new to the hub counts as
// accepted. With a store only its answer counts, even if that is zero: what some hub has
// acknowledged need not be in it. Without one the agent's number does, since to start lower
// would ask for events that it has freed. If the store does not answer, the agent has to try
// again: any number made up here would lose events or repeat them. The lock is free while
// Resume runs.
func (ha *hubAgentLink) startLocked(ctx context.Context, s *hubSession, e SessionStatus) (uint64, error) {
	if ha.h.cfg.Resume == nil {
		return e.AckSeq, nil
	}
	var start uint64
	err := s.callLocked(ctx, ha, func(ctx context.Context) (err error) {
		start, err = ha.h.cfg.Resume(ctx, s.id, e.Epoch)
		return err
	})
	if err != nil && ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil || start > MaxSeq {
		refused := refusal(CodeOverloaded, s.id, "the hub's store does not answer")
		refused.Retryable = true
		return 0, refused
	}
	return start, nil
}

// attachLocked opens the session on this link, unless it died meanwhile: then it has no map
// any more, so detach would not find a receiver that was put into it now. Such a session, which
// may have been begun just now, is away from its start, or it would never expire.
//
// If another link has the session, the agent's older one or one of its former owner, it loses
// it: what still comes there is of a session that is not open. All cursors look again, since
// there is an agent now that can replay older events.
func (ha *hubAgentLink) attachLocked(now time.Time, s *hubSession) error {
	s.listed = now
	if s.receiver != nil && s.receiver.ha == ha {
		return nil
	}
	rc := &receiver{s: s, ha: ha, acks: ackState{
		delay: ackDelay, window: window{events: ha.h.cfg.Window, bytes: ha.h.cfg.WindowBytes},
	}}
	rc.task = task{Source: rc.next, Control: true}
	ha.mu.Lock()
	dead := ha.sessions == nil
	if !dead {
		ha.sessions[s] = rc
	}
	ha.mu.Unlock()
	if dead {
		if s.receiver == nil {
			s.away = now
			s.watchClockLocked()
		}
		return ha.failure()
	}
	if s.receiver != nil {
		s.receiver.closeLocked()
	}
	s.setOwnerLocked(ha.agentID)
	s.receiver = rc
	s.wakeAllLocked()
	return nil
}
