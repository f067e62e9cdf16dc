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

	confirm []Gap           // refused ranges that the hub waits for, as gaps
	replays []*replayAnswer // those that are not done, in the order of their requests
}

// noteUnackedLocked makes the next sign of life name the session, if it is still unsettled by
// then (rule 9). The session's lock is held.
func (sd *sender) noteUnackedLocked() {
	if sd.inUnacked || !sd.s.unsettledLocked() {
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
	switch {
	case p.Code == CodeStaleEpoch && p.Epoch <= s.epoch: // sent before a Renew
		s.st.stalePayloads.Add(1)
	case p.Code == CodeUnknownSession:
		if sd.reopen() {
			sd.announceLocked()
		}
	case p.Code == CodeEventRejected || p.Code == CodeEventTooLarge:
		sd.rejectLocked(p.Seq, max(p.Seq, p.ToSeq)) // none without a number: what was refused is sent again, on the timer
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
	s.known = true
	sd.announced(now)
	sd.scheduleTickLocked()
	return SessionStatus{
		SessionID: s.id, Epoch: s.epoch, FirstSeq: s.log.first(), HeadSeq: s.log.head,
		AckSeq: s.acked, Ended: s.hasEnded,
	}, true
}

// next is the task: it does what the time asks for, and returns the next batch if the
// session may send one (rule 7). woken is cleared before the log is read, so that whatever
// is published afterwards wakes the sender again.
func (sd *sender) next(now time.Time) Payload {
	s := sd.s
	s.mu.Lock()
	defer s.mu.Unlock()
	sd.woken = false
	if s.sender != sd || s.stopped != nil {
		return nil
	}
	if sd.tick(now, s.acked) == announceAgain {
		sd.announceLocked()
	}
	sd.noteUnackedLocked()
	p := sd.batchLocked(now)
	sd.scheduleTickLocked()
	return p
}

// written is called when the batches that next returned are written: the timer counts from
// then on.
func (sd *sender) written(now time.Time) {
	s := sd.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sender == sd && sd.sendCursor.written(now, s.acked) {
		sd.scheduleTickLocked()
	}
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
	if b := sd.confirmLocked(); b != nil {
		return b
	}
	events, bytes, first := sd.allowed(s.st.sizes.batchBytes)
	if sd.window.full {
		return nil
	}
	// A copy, which takes some ten microseconds at most: the log can then write again to
	// the memory of what was sent, and publishing needs no new one.
	p := s.log.read(span{
		after: sd.sent, until: s.log.head, events: min(events, s.st.sizes.batch),
		bytes: bytes, first: first, copied: s.st.sizes.batchBytes,
	})
	if p.last == sd.sent {
		return nil
	}
	if p.last > sd.maxSentOnLink {
		sd.link.hasUnchecked.Store(true)
	}
	sd.advance(p.last, len(p.slots), p.jsonSize()-len(p.slots), s.acked)
	s.maxSentInEpoch, s.known = max(s.maxSentInEpoch, p.last), true
	return sd.payload(p)
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
		if sd.timer.late() && sd.reopen() { // no relic: the hub has lost its place
			sd.announceLocked()
		}
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
		sd.loseLocked(seq, seq)
		wrong = true
	}
	if wrong {
		sd.nackedAt = time.Time{}
		sd.resend(s.acked) // the hub could not read what came with it either
		sd.link.ready(&sd.task)
	}
	sd.checkedTo = max(sd.checkedTo, sd.maxSentOnLink)
	return wrong
}

// rejectLocked turns the events that the hub refuses into gaps, and sends the gaps at once, in
// place of what was sent under their numbers: the hub has the rest (rule 11). If it has not, it
// says so by a nack, which is obeyed even if there was one a moment ago. A number that was not
// sent on this link is none that the hub can refuse, and one that is acknowledged it has accepted.
func (sd *sender) rejectLocked(from, to uint64) {
	s := sd.s
	from, to = max(from, s.acked+1), min(to, sd.maxSentOnLink)
	if from > to || len(sd.confirm) >= maxGaps {
		return
	}
	sd.confirm = append(sd.confirm, Gap{From: from, To: to})
	sd.link.ready(&sd.task)
	if sd.loseLocked(from, to) { // it was not refused before
		sd.nackedAt = time.Time{}
	}
}

// loseLocked turns events that were sent on this link into gaps, and reports whether any of them
// was one still. Those that are acknowledged the hub has.
func (sd *sender) loseLocked(from, to uint64) bool {
	s := sd.s
	from, to = max(from, s.acked+1), min(to, sd.maxSentOnLink)
	if s.loseRangeLocked(from, to, ReasonRejected) == 0 {
		return false
	}
	s.changed.Broadcast()
	if s.hasEnded && to == s.log.head {
		s.endLost = true
		sd.announceLocked()
	}
	return true
}

// confirmLocked makes a batch of the next refused range that is a gap now and that the hub may be
// waiting for, or returns nil.
func (sd *sender) confirmLocked() Payload {
	s := sd.s
	for len(sd.confirm) > 0 {
		g := &sd.confirm[0]
		from := max(g.From, s.acked+1)
		if from > min(g.To, sd.sent) { // acknowledged, or about to be sent again
			sd.confirm = sd.confirm[1:]
			continue
		}
		p := s.log.read(span{after: from - 1, until: min(g.To, sd.sent), bytes: pageBytes})
		if p.last < from {
			sd.confirm = sd.confirm[1:]
			continue
		}
		g.From = p.last + 1
		return sd.payload(p)
	}
	sd.confirm = nil
	return nil
}

// payload makes the batch of a page.
func (sd *sender) payload(p page) *eventBatch {
	s := sd.s
	b := newEventBatch()
	b.EventBatchPayload = EventBatchPayload{
		SessionID: s.id, Epoch: s.epoch, Link: sd.id, FirstSeq: p.first, LastSeq: p.last, HeadSeq: s.log.head,
		Gaps: p.gaps,
	}
	p.unchecked = s.st.cfg.TrustData
	b.page = p
	return b
}
