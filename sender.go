package gvstream

import "time"

// A sender is one session on one link: the state that ends with the link. attach makes it;
// it is dead once it is no longer its session's sender, because the link died or was
// welcomed under another id, or the session was renewed or forgotten. Whatever still holds
// a dead one, a list of the link or a task that is being asked, finds that out under the
// session's lock, which protects all of it.
//
// sendCursor decides what is sent and when, and the sender does it: it reads the session's
// log and makes the payloads. What the hub says it passes to the cursor first, and then
// applies to the session. It takes the link's lock under the session's, never the reverse.
type sender struct {
	task // sends the next batch
	sendCursor
	s    *Session
	link *streamerLink

	id        string // of the link, copied: to read it there takes the link's lock
	woken     bool   // next will be called, and that has not begun yet
	checkedTo uint64 // the data of what was sent up to it has been checked

	// Each says that the sender is in that list of the link, so that none names it twice.
	inToAnnounce bool // toAnnounce, for the next status
	inUnacked    bool // unacked, for the next sign of life

	replays []*replayAnswer // those that are not done, in the order of their requests
}

// noteUnackedLocked makes the next sign of life name the session, if it still has something
// unacknowledged by then (rule 9). The session's lock is held.
func (sd *sender) noteUnackedLocked() {
	if sd.inUnacked || sd.s.acked >= sd.s.log.head {
		return
	}
	sd.inUnacked = true
	sd.link.mu.Lock()
	sd.link.unacked = append(sd.link.unacked, sd)
	sd.link.mu.Unlock()
}

// refusedLocked handles an error about the session on its link. The code decides before the
// retryable flag does, and codes that are unknown here are treated by the flag alone.
func (sd *sender) refusedLocked(now time.Time, p *ErrorPayload) {
	s := sd.s
	sd.heard()
	switch {
	case p.Code == CodeStaleEpoch && p.Epoch <= s.epoch: // sent before a Renew
		s.st.stalePayloads.Add(1)
	case p.Code == CodeUnknownSession:
		if sd.reopen() {
			sd.announceLocked()
		}
	case p.Code == CodeEventRejected || p.Code == CodeEventTooLarge:
		sd.rejectLocked(p.Seq) // none without a number: what was refused is sent again, on the timer
	case p.Retryable:
		sd.pause(now)
		sd.scheduleTickLocked()
	default:
		s.stopped = p.protocolError()
		s.changed.Broadcast()
	}
}

// announceLocked lists the session for the next status, once. The entry is made when the
// status is, so it says where the session stands by then.
func (sd *sender) announceLocked() {
	if sd.inToAnnounce {
		return
	}
	sd.inToAnnounce = true
	sd.link.mu.Lock()
	sd.link.toAnnounce = append(sd.link.toAnnounce, sd)
	sd.link.readyLocked(&sd.link.status)
	sd.link.mu.Unlock()
}

// takeStatus returns the session's entry in a status, unless the sender is dead or the session
// is stopped. If the session is not open, the timer runs from then on, and announces it again
// until the hub answers (rule 5).
func (sd *sender) takeStatus(now time.Time) (SessionStatus, bool) {
	s := sd.s
	s.mu.Lock()
	defer s.mu.Unlock()
	sd.inToAnnounce = false
	if s.sender != sd || s.stopped != nil {
		return SessionStatus{}, false
	}
	sd.announced(now)
	sd.scheduleTickLocked()
	return SessionStatus{
		SessionID: s.id, Epoch: s.epoch, FirstSeq: s.log.first(), HeadSeq: s.log.head,
		AckSeq: s.acked, Ended: s.hasEnded,
	}, true
}

// next is the task: it does what the time asks for, and returns the next batch if the
// session may send one (rule 7). woken is cleared before the log is read, so that whatever
// is published afterwards wakes the sender again. To fail the link, the lock has to be
// given up: detach takes the Streamer's, which comes before it.
func (sd *sender) next(now time.Time) Payload {
	s := sd.s
	s.mu.Lock()
	sd.woken = false
	if s.sender != sd || s.stopped != nil {
		s.mu.Unlock()
		return nil
	}
	switch sd.tick(now, s.acked, s.log.head) {
	case giveUp:
		s.mu.Unlock()
		sd.link.fail(now, ErrSilent)
		return nil
	case announceAgain:
		sd.announceLocked()
	}
	sd.noteUnackedLocked()
	p := sd.batchLocked(now)
	sd.scheduleTickLocked()
	s.mu.Unlock()
	return p
}

// batchLocked makes the next batch, unless there is nothing to send, or nothing that the
// window allows. Once it returns, the batch counts as sent: if it never gets to the hub, a
// nack, the timer or the next link sends it again. Both marks move with it, since from now
// on the hub may acknowledge it.
func (sd *sender) batchLocked(now time.Time) Payload {
	s := sd.s
	if !sd.maySend() {
		return nil
	}
	events, bytes, first := sd.allowed(pageBytes)
	if sd.window.full {
		return nil
	}
	// A copy, which takes some ten microseconds at most: the log can then write again to
	// the memory of what was sent, and publishing needs no new one.
	p := s.log.read(span{
		after: sd.sent, until: s.log.head, events: min(events, s.st.sizes.batch),
		bytes: bytes, first: first, copied: pageBytes,
	})
	if p.last == sd.sent {
		return nil
	}
	if p.last > sd.maxSentOnLink {
		sd.link.hasUnchecked.Store(true)
	}
	sd.advance(now, p.last, len(p.slots), p.jsonSize()-len(p.slots), s.acked)
	s.maxSentInEpoch = max(s.maxSentInEpoch, p.last)
	b := newEventBatch()
	b.EventBatchPayload = EventBatchPayload{
		SessionID: s.id, Epoch: s.epoch, Link: sd.id, FirstSeq: p.first, LastSeq: p.last, HeadSeq: s.log.head,
		Gaps: p.gaps,
	}
	p.unchecked = s.st.cfg.TrustData
	b.page = p
	return b
}

// scheduleTickLocked makes the link ask the sender when its cursor's time has come. Whatever
// starts the cursor's timer calls it, or makes the task ready, which then calls it. A time
// that moved to later needs no call: asked too early, the sender schedules itself again.
func (sd *sender) scheduleTickLocked() {
	if at := sd.nextTick(); !at.IsZero() {
		sd.link.schedule(&sd.task, at)
	}
}

// applyAckLocked applies the hub's ack (rule 6). The cursor judges it by acked as it was,
// and only then the session moves: back if the hub has lost something, and forward
// otherwise. To believe an ack beyond what was sent would free events that no hub can have. If
// it is the first of the link, the hub has numbers under which this agent never sent anything:
// the agent's state is an old copy, and the session can't go on in this epoch.
func (sd *sender) applyAckLocked(now time.Time, p SessionAck) *ProtocolError {
	s := sd.s
	first := !sd.opened
	switch sd.ack(now, p, s.acked, s.maxSentInEpoch) {
	case ackBeyond:
		limit := sd.limit(s.maxSentInEpoch)
		err := refusal(CodeAckBeyondSent, s.id, "an ack of %d, but %d is the last that was sent", p.UpToSeq, limit)
		err.Epoch, err.Seq = s.epoch, limit
		if first && s.stopped == nil {
			s.stopped = err
			s.changed.Broadcast()
		}
		return err
	case ackStale:
		s.st.stalePayloads.Add(1)
		return nil
	}
	if p.UpToSeq < s.acked {
		s.moveBackLocked(p.UpToSeq)
	}
	sd.landed(s.freeLocked(now, p.UpToSeq))
	sd.link.ready(&sd.task)
	return nil
}

// recheckDataLocked turns the sent events whose data is wrong into gaps (rule 11). What is
// acknowledged the hub could read, and what was checked once stays checked.
func (sd *sender) recheckDataLocked() (wrong bool) {
	s := sd.s
	for seq := max(sd.checkedTo, s.acked); seq < sd.maxSentOnLink; {
		var found bool
		if seq, found = s.log.unreadable(seq, sd.maxSentOnLink); !found {
			break
		}
		sd.rejectLocked(seq)
		wrong = true
	}
	sd.checkedTo = max(sd.checkedTo, sd.maxSentOnLink)
	return wrong
}

// rejectLocked turns an event that the hub refuses into a gap, and sends again from the
// session's ack on (rule 11). A number that was not sent on this link is none that the hub
// can refuse, and one that is acknowledged it has accepted.
func (sd *sender) rejectLocked(seq uint64) {
	s := sd.s
	if seq <= s.acked || seq > sd.maxSentOnLink {
		return
	}
	if !s.loseLocked(seq, ReasonRejected) {
		return // refused before
	}
	s.changed.Broadcast()
	if s.hasEnded {
		sd.announceLocked() // the end may lie in the gap
	}
	sd.resend(s.acked) // what came before may not have been accepted with it
	sd.link.ready(&sd.task)
}
