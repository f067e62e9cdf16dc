package gvstream

import (
	"slices"
	"time"
)

// A replayAnswer answers one request, a page at a time and in turn with everything else.
type replayAnswer struct {
	task
	replayCursor
	a     *sender
	req   ReplayRequestPayload
	epoch string
	done  bool // the last page was sent, or no more is wanted
}

func (r *replayAnswer) next(time.Time) Payload {
	s := r.a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.done || s.sender != r.a || s.epoch != r.epoch {
		return nil
	}
	p := s.log.read(r.span(s.st.sizes.page))
	done := r.advance(p.last, len(p.slots), p.bytes)
	if done {
		r.a.dropLocked(r)
	}
	b := newReplayBatch()
	b.ReplayBatchPayload = ReplayBatchPayload{
		SessionID: s.id, ViewerID: r.req.ViewerID, RequestID: r.req.RequestID, Epoch: r.epoch,
		FirstSeq: p.first, LastSeq: p.last, UntilSeq: r.until, AvailableFrom: s.log.first(), Done: done,
		Gaps: p.gaps,
	}
	b.page, b.trusted = p, s.st.cfg.TrustData
	return b
}

// replay begins to answer a request, or says why it does not.
func (al *streamerLink) replay(p *ReplayRequestPayload) *ProtocolError {
	s := al.st.lookup(p.SessionID)
	if s == nil {
		return about(p, refusal(codeUnknownSession, p.SessionID, "replay of an unknown session"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.sender
	if a == nil || a.link != al {
		al.st.stalePayloads.Add(1)
		return nil
	}
	if err := a.replayLocked(p); err != nil {
		return about(p, err)
	}
	return nil
}

// about says which request an error answers.
func about(p *ReplayRequestPayload, err *ProtocolError) *ProtocolError {
	err.RequestID, err.ViewerID = p.RequestID, p.ViewerID
	return err
}

func (a *sender) replayLocked(p *ReplayRequestPayload) *ProtocolError {
	s := a.s
	switch {
	case p.Epoch != "" && p.Epoch != s.epoch:
		err := refusal(codeStaleEpoch, s.id, "replay of another epoch")
		err.Epoch = s.epoch
		return err
	case p.AfterSeq > s.log.head:
		err := refusal(codeReplayAhead, s.id, "replay after %d, but the head is %d", p.AfterSeq, s.log.head)
		err.Epoch, err.Seq = s.epoch, s.log.head
		return err
	case a.repeatsLocked(p):
		return nil
	}
	if n := len(a.replays); n >= s.st.cfg.MaxReplays {
		err := refusal(codeReplayBusy, s.id, "%d replays are running", n)
		err.Retryable = n > 0
		return err
	}
	r := &replayAnswer{a: a, req: *p, epoch: s.epoch, replayCursor: newReplayCursor(p, s.log.head)}
	r.task.Source = r.next
	a.replays = append(a.replays, r)
	a.link.ready(&r.task)
	return nil
}

// repeatsLocked reports whether a request is being answered already. If not, it replaces the
// one that its viewer has open: the viewer has moved on.
func (a *sender) repeatsLocked(p *ReplayRequestPayload) bool {
	for _, r := range a.replays {
		if r.req.RequestID == p.RequestID {
			return true
		}
		if p.ViewerID != "" && r.req.ViewerID == p.ViewerID {
			a.dropLocked(r)
			return false
		}
	}
	return false
}

// dropLocked ends a replay.
func (a *sender) dropLocked(r *replayAnswer) {
	r.done = true
	a.link.forget(&r.task)
	i := slices.Index(a.replays, r)
	a.replays = slices.Delete(a.replays, i, i+1)
}
