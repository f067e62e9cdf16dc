package gvstream

import (
	"slices"
	"time"
)

// This file is how an agent answers the hub's replay requests (rule 12): the link finds the
// session, the sender accepts or refuses the request, and a replayAnswer sends the pages. A
// request is refused at once or answered to its end: nothing is queued at the agent, since
// the hub has a queue of its own and asks again.

// A replayAnswer answers one request, a page at a time and in turn with everything else. It
// is made by an accepted request. It is done when its last page was sent, and dead with its sender or epoch. Pages are made one by one, from the log
// as it is by then: what was evicted since the request is a gap. The session's lock protects
// it.
type replayAnswer struct {
	task
	replayCursor
	sender *sender
	req    ReplayRequestPayload // returned in part in every page
	epoch  string               // of the request, filled in if that left it open
	done   bool                 // the last page was sent
}

// next is the task: it returns the next page. The link asks it once more after the last page,
// as it does with each task that had a payload, so done is looked at here. The page is lent
// the log's bytes and not copied: what is replayed is old, and the log would not soon write
// to its memory again.
func (r *replayAnswer) next(time.Time) Payload {
	s := r.sender.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.done || s.sender != r.sender || s.epoch != r.epoch {
		return nil
	}
	p := s.log.read(r.span(s.st.sizes.page))
	done := r.advance(p.last, len(p.slots), p.bytes)
	if done {
		r.sender.dropReplayLocked(r)
	}
	b := newReplayBatch()
	b.ReplayBatchPayload = ReplayBatchPayload{
		SessionID: s.id, ViewerID: r.req.ViewerID, RequestID: r.req.RequestID, Epoch: r.epoch,
		FirstSeq: p.first, LastSeq: p.last, UntilSeq: r.until, AvailableFrom: s.log.first(), Done: done,
		Gaps: p.gaps,
	}
	p.unchecked = s.st.cfg.TrustData
	b.page = p
	return b
}

// replay begins to answer a request, or returns the refusal. For a session that is not on
// this link there is neither: a newer link has it, and there the hub asks again.
func (sl *streamerLink) replay(p *ReplayRequestPayload) *ProtocolError {
	s := sl.st.lookup(p.SessionID)
	if s == nil {
		return about(p, refusal(CodeUnknownSession, p.SessionID, "replay of an unknown session"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sd := s.sender
	if sd == nil || sd.link != sl {
		sl.st.stalePayloads.Add(1)
		return nil
	}
	if err := sd.replayLocked(p); err != nil {
		return about(p, err)
	}
	return nil
}

// about adds to an error which request it answers, so that the hub finds what asked.
func about(p *ReplayRequestPayload, err *ProtocolError) *ProtocolError {
	err.RequestID, err.ViewerID = p.RequestID, p.ViewerID
	return err
}

// replayLocked accepts a request, or returns why not. Repetition is looked at before the
// limit: a request that is being answered needs no further place. An agent whose limit is zero never has a place, so asking again is of no use: not retryable.
func (sd *sender) replayLocked(p *ReplayRequestPayload) *ProtocolError {
	s := sd.s
	switch {
	case p.Epoch != "" && p.Epoch != s.epoch:
		err := refusal(CodeStaleEpoch, s.id, "replay of another epoch")
		err.Epoch = s.epoch
		return err
	case p.AfterSeq > s.log.head:
		err := refusal(CodeReplayAhead, s.id, "replay after %d, but the head is %d", p.AfterSeq, s.log.head)
		err.Epoch, err.Seq = s.epoch, s.log.head
		return err
	case sd.repeatedLocked(p):
		return nil
	}
	if n := len(sd.replays); n >= s.st.cfg.MaxReplays {
		err := refusal(CodeReplayBusy, s.id, "%d replays are running", n)
		err.Retryable = n > 0
		return err
	}
	r := &replayAnswer{sender: sd, req: *p, epoch: s.epoch, replayCursor: newReplayCursor(p, s.log.head)}
	r.task.Source = r.next
	sd.replays = append(sd.replays, r)
	sd.link.ready(&r.task)
	return nil
}

// repeatedLocked reports whether a request is being answered already, by its id. One that says
// the same changes nothing, since a transport may repeat payloads. If it says anything else, a
// part was lost, and the answer goes on from where the hub is.
func (sd *sender) repeatedLocked(p *ReplayRequestPayload) bool {
	i := slices.IndexFunc(sd.replays, func(r *replayAnswer) bool { return r.req.RequestID == p.RequestID })
	if i < 0 {
		return false
	}
	if r := sd.replays[i]; r.req != *p {
		r.req, r.replayCursor = *p, newReplayCursor(p, sd.s.log.head)
	}
	return true
}

// dropReplayLocked ends a replay and frees its place among MaxReplays.
func (sd *sender) dropReplayLocked(r *replayAnswer) {
	r.done = true
	sd.link.forget(&r.task)
	i := slices.Index(sd.replays, r)
	sd.replays = slices.Delete(sd.replays, i, i+1)
}
