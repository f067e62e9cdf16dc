package gvstream

import "time"

// A sender is one session on one link: the state that ends with the link.
// The session's lock protects it.
type sender struct {
	task // sends the next batch
	sendCursor
	s    *Session
	link *streamerLink

	id        string // of the link
	woken     bool   // take will be called, and that has not begun yet
	checkedTo uint64 // the data of what was sent up to it has been checked
	inStatus  bool   // in the link's list for the next status
	unacked   bool   // in the link's list for the next sign of life

	replays []*replayAnswer
}

// noteUnackedLocked has the next sign of life name the session, if it is not acknowledged
// until then. The session's lock is held.
func (a *sender) noteUnackedLocked() {
	if a.unacked || a.s.acked >= a.s.log.head {
		return
	}
	a.unacked = true
	a.link.mu.Lock()
	a.link.unacked = append(a.link.unacked, a)
	a.link.mu.Unlock()
}

// refusedLocked deals with an error about the session on its link.
func (a *sender) refusedLocked(now time.Time, p *ErrorPayload) {
	s := a.s
	a.heard()
	switch {
	case p.Code == codeStaleEpoch && p.Epoch <= s.epoch: // news of before a Renew
		s.st.stalePayloads.Add(1)
	case p.Code == codeUnknownSession:
		if a.reopen() {
			a.announceLocked()
		}
	case p.refusesEvent():
		a.rejectLocked(p.Seq)
	case p.Retryable:
		a.pause(now)
		a.scheduleTickLocked()
	default:
		s.stopped = p.protocolError()
		s.changed.Broadcast()
	}
}

// announceLocked lists the session for the next status.
func (a *sender) announceLocked() {
	if a.inStatus {
		return
	}
	a.inStatus = true
	a.link.mu.Lock()
	a.link.toAnnounce = append(a.link.toAnnounce, a)
	a.link.readyLocked(&a.link.status)
	a.link.mu.Unlock()
}

// describe is the session's place in a status. While it is unopened, its timer
// says it again (rule 5).
func (a *sender) describe(now time.Time) (SessionStatus, bool) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	a.inStatus = false
	if s.sender != a || s.stopped != nil {
		return SessionStatus{}, false
	}
	a.announced(now)
	a.scheduleTickLocked()
	return SessionStatus{
		SessionID: s.id, Epoch: s.epoch, FirstSeq: s.log.first(), HeadSeq: s.log.head,
		AckSeq: s.acked, Ended: s.hasEnded,
	}, true
}

// next sends the next batch of the session, if it may send (rule 7).
func (a *sender) next(now time.Time) Payload {
	s := a.s
	s.mu.Lock()
	a.woken = false
	if s.sender != a || s.stopped != nil {
		s.mu.Unlock()
		return nil
	}
	switch a.tick(now, s.acked, s.log.head) {
	case giveUp:
		s.mu.Unlock()
		a.link.fail(now, ErrSilent)
		return nil
	case announceAgain:
		a.announceLocked()
	}
	a.noteUnackedLocked()
	p := a.batchLocked(now)
	a.scheduleTickLocked()
	s.mu.Unlock()
	return p
}

// batchLocked makes the next batch, unless there is nothing more to send, or nothing that the
// window allows.
func (a *sender) batchLocked(now time.Time) Payload {
	s := a.s
	if !a.maySend() {
		return nil
	}
	limit := a.eventsUntil(s.acked)
	// A copy, some ten microseconds at the most, so that publishing needs no new
	// memory for what was sent.
	p := s.log.read(span{a.sent, s.log.head, limit, s.st.sizes.batch, pageBytes, pageBytes})
	if p.last == a.sent {
		return nil
	}
	if p.last > a.maxSentOnLink {
		a.link.hasUnchecked.Store(true)
	}
	a.advance(now, p.last, s.acked)
	s.maxSentInEpoch = max(s.maxSentInEpoch, p.last)
	b := newEventBatch()
	b.EventBatchPayload = EventBatchPayload{
		SessionID: s.id, Epoch: s.epoch, Link: a.id, FirstSeq: p.first, LastSeq: p.last, HeadSeq: s.log.head,
		Gaps: p.gaps,
	}
	b.page, b.trusted = p, s.st.cfg.TrustData
	return b
}

// scheduleTickLocked has take called when there is something to do for the time.
func (a *sender) scheduleTickLocked() {
	if at := a.nextTick(); !at.IsZero() {
		a.link.schedule(&a.task, at)
	}
}

// applyAckLocked applies the hub's ack (rule 6).
func (a *sender) applyAckLocked(now time.Time, p *AckBatchPayload) *ProtocolError {
	s := a.s
	switch a.ack(now, p.UpToSeq, p.Nack, s.acked, s.maxSentInEpoch) {
	case ackBeyond:
		return &ProtocolError{
			Code: codeAckBeyondSent, SessionID: s.id, Epoch: s.epoch, Seq: a.limit(s.maxSentInEpoch),
			Message: "ack beyond what was sent", fatal: true,
		}
	case ackStale:
		s.st.stalePayloads.Add(1)
		return nil
	}
	if p.UpToSeq < s.acked {
		s.moveBackLocked(p.UpToSeq)
	}
	s.freeLocked(now, p.UpToSeq)
	a.link.ready(&a.task)
	return nil
}

// recheckDataLocked turns the sent events whose data is wrong into gaps.
func (a *sender) recheckDataLocked() {
	s := a.s
	for seq := max(a.checkedTo, s.acked); seq < a.maxSentOnLink; {
		var found bool
		if seq, found = s.log.unreadable(seq, a.maxSentOnLink); !found {
			break
		}
		a.rejectLocked(seq)
	}
	a.checkedTo = max(a.checkedTo, a.maxSentOnLink)
}

// rejectLocked turns an event that the hub refuses into a gap (rule 11).
func (a *sender) rejectLocked(seq uint64) {
	s := a.s
	if seq <= s.acked || seq > a.maxSentOnLink {
		return
	}
	if !s.loseLocked(seq, ReasonRejected) {
		return // refused before
	}
	s.changed.Broadcast()
	if s.hasEnded {
		a.announceLocked() // the end may lie in the gap
	}
	a.resend(s.acked) // what came before may not have been accepted with it
	a.link.ready(&a.task)
}
