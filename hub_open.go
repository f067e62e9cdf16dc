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
			s.noteEnd()
		}
	}
	s.receiver.ackNow()
	s.watchClock()
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
		switch err := ha.authorizeOpen(ctx, now, s, e); err {
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

// authorizeOpen opens a locked session on this link, if the agent may have it. The lock is free
// while a callback runs. It is free in the end as well, unless the session is open: also
// after a callback's panic.
func (ha *hubAgentLink) authorizeOpen(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	open := false
	defer func() {
		if !open {
			s.mu.Unlock()
		}
	}()
	if err := ha.mayOpen(ctx, now, s, e); err != nil {
		return err
	}
	if e.Epoch != s.epoch {
		if err := ha.begin(ctx, now, s, e); err != nil {
			return err
		}
	}
	if err := ha.attach(now, s); err != nil {
		return err
	}
	open = true
	return nil
}

// mayOpen refuses what the agent may not open on this link.
func (ha *hubAgentLink) mayOpen(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	if err := ha.failure(); err != nil {
		return err
	}
	if err := ha.claim(ctx, s); err != nil {
		return err
	}
	if s.gone {
		return errGone
	}
	if err := s.checkEpoch(e.Epoch); err != nil {
		return err
	}
	if at, ok := epoch.Time(e.Epoch); ok && e.Epoch != s.epoch && at.After(now.Add(epoch.MaxLead)) {
		return refusal(codeForbidden, s.id, "the epoch is too far ahead of the hub's clock")
	}
	return ha.checkQuota(s)
}

// begin has a session go on in an epoch that is new to the hub, from where its store or
// its agent says (rule 5).
func (ha *hubAgentLink) begin(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	start, err := ha.start(ctx, s, e)
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
	s.beginEpoch(now, e.Epoch, start)
	return nil
}

// checkEpoch refuses an epoch older than the session's (rule 2).
func (s *hubSession) checkEpoch(epoch string) error {
	if epoch >= s.epoch {
		return nil
	}
	err := refusal(codeStaleEpoch, s.id, "the session has a later epoch")
	err.Epoch = s.epoch
	return err
}

// claim refuses a session of another agent's, unless this one may take it over (rule 4).
// The lock is free meanwhile, and no callback runs when it is taken again.
func (ha *hubAgentLink) claim(ctx context.Context, s *hubSession) error {
	if s.owner == "" || s.owner == ha.agentID {
		return nil
	}
	if ha.h.cfg.Claim == nil {
		return notYours(s.id)
	}
	owner := s.owner
	allowed := ha.askClaim(ctx, s)
	if err := s.waitIdleLocked(ctx, ha); err != nil {
		return err
	}
	if !allowed || s.owner != owner && s.owner != "" {
		return notYours(s.id)
	}
	return nil
}

// askClaim has the caller say whether the agent may take the session over. The lock is
// free meanwhile, and not as in call: the owner's batches don't wait for it.
func (ha *hubAgentLink) askClaim(ctx context.Context, s *hubSession) bool {
	owner := s.owner
	s.mu.Unlock()
	defer s.mu.Lock()
	return ha.h.cfg.Claim(ctx, ha.agentID, s.id, owner)
}

func notYours(sessionID string) error {
	return refusal(codeForbidden, sessionID, "the session belongs to another agent")
}

// checkQuota refuses a session beyond the limits.
func (ha *hubAgentLink) checkQuota(s *hubSession) error {
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

// start is the number up to which an epoch that is new to the hub counts as
// accepted.
func (ha *hubAgentLink) start(ctx context.Context, s *hubSession, e SessionStatus) (uint64, error) {
	if ha.h.cfg.Resume == nil {
		return e.AckSeq, nil
	}
	var start uint64
	err := s.call(ctx, ha, func(ctx context.Context) (err error) {
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

// attach opens the session on this link, unless that died meanwhile.
func (ha *hubAgentLink) attach(now time.Time, s *hubSession) error {
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
			s.watchClock()
		}
		return ha.failure()
	}
	if s.receiver != nil {
		s.receiver.close()
	}
	s.setOwner(ha.agentID)
	s.receiver = o
	s.wakeAll()
	return nil
}
