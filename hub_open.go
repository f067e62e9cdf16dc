package gvstream

import (
	"context"
	"errors"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// open opens one session on this link, and has it acknowledged.
func (ha *hubAgentLink) open(ctx context.Context, now time.Time, e SessionStatus) error {
	s, err := ha.openSession(ctx, now, e)
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	if !s.ended { // nothing follows the end
		s.head = max(s.head, e.HeadSeq)
		if e.Ended {
			s.endSeq = e.HeadSeq
			s.noteEndLocked()
		}
	}
	s.receiver.ackNowLocked()
	s.watchClockLocked()
	return nil
}

// openSession opens a session on this link, which is made if the hub has none of that id, and
// returns it locked.
func (ha *hubAgentLink) openSession(ctx context.Context, now time.Time, e SessionStatus) (*hubSession, error) {
	for {
		s := ha.h.getOrCreate(e.SessionID)
		if err := s.lock(ctx, ha); err != nil {
			return nil, err
		}
		switch err := ha.authorizeOpenLocked(ctx, now, s, e); err {
		case nil:
			return s, nil
		case errGone: // the next one is another
		default:
			ha.h.release(s)
			return nil, ofEpoch(err, e.Epoch)
		}
	}
}

// errGone says that the session was removed from the hub before it could be opened.
// Nobody sees it.
var errGone = errors.New("gvstream: session removed")

// ofEpoch has a refusal say which life of the session it is about, if it names no
// other: the agent may have renewed it meanwhile.
func ofEpoch(err error, epoch string) error {
	if refused, ok := err.(*ProtocolError); ok && refused.Epoch == "" {
		refused.Epoch = epoch
	}
	return err
}

// authorizeOpenLocked opens a locked session on this link, if the agent may have it. The lock is free
// while a callback runs. It is free in the end as well, unless the session is open: also
// after a callback's panic.
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

// mayOpenLocked refuses what the agent may not open on this link.
func (ha *hubAgentLink) mayOpenLocked(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	if err := ha.failure(); err != nil {
		return err
	}
	if err := ha.claimLocked(ctx, s); err != nil {
		return err
	}
	if s.gone {
		return errGone
	}
	if err := s.checkEpochLocked(e.Epoch); err != nil {
		return err
	}
	if at, ok := epoch.Time(e.Epoch); ok && e.Epoch != s.epoch && at.After(now.Add(epoch.MaxLead)) {
		return refusal(codeForbidden, s.id, "the epoch is too far ahead of the hub's clock")
	}
	return ha.checkQuotaLocked(s)
}

// beginLocked has a session go on in an epoch that is new to the hub, from where its store or
// its agent says (rule 5).
func (ha *hubAgentLink) beginLocked(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	start, err := ha.startLocked(ctx, s, e)
	if err != nil {
		return err
	}
	if err := ha.failure(); err != nil {
		return err
	}
	if s.epoch == "" && ha.h.known.Add(1) > int64(ha.h.cfg.MaxSessions) {
		ha.h.known.Add(-1) // others were faster
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
	err := refusal(codeStaleEpoch, s.id, "the session has a later epoch")
	err.Epoch = s.epoch
	return err
}

// claimLocked refuses a session of another agent's, unless this one may take it over (rule 4).
// The lock is free meanwhile, and no callback runs when it is taken again.
func (ha *hubAgentLink) claimLocked(ctx context.Context, s *hubSession) error {
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

// askClaimLocked has the caller say whether the agent may take the session over. The lock is
// free meanwhile, and not as in call: the owner's batches don't wait for it.
func (ha *hubAgentLink) askClaimLocked(ctx context.Context, s *hubSession) bool {
	owner := s.owner
	s.mu.Unlock()
	defer s.mu.Lock()
	return ha.h.cfg.Claim(ctx, ha.agentID, s.id, owner)
}

func notYours(sessionID string) error {
	return refusal(codeForbidden, sessionID, "the session belongs to another agent")
}

// checkQuotaLocked refuses a session beyond the limits.
func (ha *hubAgentLink) checkQuotaLocked(s *hubSession) error {
	if s.counted && s.owner == ha.agentID {
		return nil
	}
	ha.h.agentsMu.Lock()
	n := ha.h.owned[ha.agentID]
	ha.h.agentsMu.Unlock()
	if n < ha.h.cfg.MaxAgentSessions && (s.epoch != "" || ha.h.known.Load() < int64(ha.h.cfg.MaxSessions)) {
		return nil
	}
	return overloaded(s.id)
}

func overloaded(sessionID string) error {
	err := refusal(codeOverloaded, sessionID, "too many sessions")
	err.Retryable = true
	return err
}

// startLocked is the number up to which an epoch that is new to the hub counts as
// accepted.
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
		refused := refusal(codeOverloaded, s.id, "the hub's store does not answer")
		refused.Retryable = true
		return 0, refused
	}
	return start, nil
}

// attachLocked opens the session on this link, unless that died meanwhile.
func (ha *hubAgentLink) attachLocked(now time.Time, s *hubSession) error {
	s.listed = now
	if s.receiver != nil && s.receiver.ha == ha {
		return nil
	}
	o := &receiver{s: s, ha: ha}
	o.task = task{Source: o.next, Control: true}
	ha.mu.Lock()
	dead := ha.sessions == nil
	if !dead {
		ha.sessions[s] = o
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
	s.receiver = o
	s.wakeAllLocked()
	return nil
}
