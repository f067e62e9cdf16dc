package gvstream

import "time"

// This file is what time does to the hub's sessions:
//
//	the log of the epoch before     dropped pastEpochTTL after the new one began (rule 15)
//	a session that is over          removed EndedTTL after its agent last spoke of it (rule 16)
//	any other whose agent is away   removed SessionTTL after its link was lost
//
// A session is over when it has ended or its agent has forgotten it. All but the first wait until
// nobody watches the session. Without a timer or a goroutine of its own, the hub looks at the clock
// in calls that happen anyway: when a link is made or handles a payload, at a viewer's heartbeat,
// and before it gives out statistics. Nothing but memory depends on how soon.
//
// The heap has each session that has a deadline under that time or an earlier one. A deadline
// that moves back leaves the heap as it is: the session comes up too early and is put in again.

// deadlineLocked returns when the next thing of these happens to the session, or zero for
// never.
func (s *hubSession) deadlineLocked() time.Time {
	at := s.endOfLifeLocked()
	if s.prev != nil && (at.IsZero() || s.prev.until.Before(at)) {
		at = s.prev.until
	}
	return at
}

// endOfLifeLocked returns when the session is to be removed, or zero for never. What is watched stays,
// and what owes its agent an ack: without that, the agent would open it again. Until then one that
// is over is kept with its epoch and its end, so that an agent that was away can't go on in it.
func (s *hubSession) endOfLifeLocked() time.Time {
	switch {
	case s.epoch == "" || len(s.cursors) > 0 || s.receiver != nil && s.receiver.acks.now:
		return time.Time{} // nothing, or somebody waits for what it says
	case s.ended || s.forgotten:
		return s.listed.Add(s.h.cfg.EndedTTL)
	case s.receiver == nil:
		return s.away.Add(s.h.cfg.SessionTTL)
	}
	return time.Time{}
}

// expireLocked does to a session what its age demands, and reports whether it is to be removed.
func (s *hubSession) expireLocked(now time.Time) (remove bool) {
	if s.prev != nil && !s.prev.until.After(now) {
		s.prev = nil
		s.countBytesLocked()
		s.wakeAllLocked()
	}
	at := s.endOfLifeLocked()
	return !at.IsZero() && !at.After(now)
}

// watchClockLocked puts the session's next deadline into the hub's heap, unless an
// earlier one is there. It is called after each change that may give the session an earlier
// deadline: it loses its link or its last watch, or gets an epoch or an end.
func (s *hubSession) watchClockLocked() {
	if at := s.deadlineLocked(); !at.IsZero() {
		s.h.expireAt(s, at)
	}
}

// expireAt is watchClockLocked for a time of the caller's choice.
func (h *Hub) expireAt(s *hubSession, at time.Time) {
	h.expiryMu.Lock()
	defer h.expiryMu.Unlock()
	h.expiry.SetEarlier(&s.expiry, s, at)
}

// nextExpired takes the next session out of the heap whose deadline has passed, or returns
// nil. Its lock is not held, so by the time it is, the session may be gone or have a later
// deadline.
func (h *Hub) nextExpired(now time.Time) *hubSession {
	h.expiryMu.Lock()
	defer h.expiryMu.Unlock()
	s, _, _ := h.expiry.PopDue(now)
	return s
}

// expire deals with the sessions whose deadline has passed. It is called without any lock,
// since it takes the hub's and the sessions'. One for which a callback runs has to stay until
// that returns, which nobody reports here: it is looked at again in a minute.
func (h *Hub) expire(now time.Time) {
	for s := h.nextExpired(now); s != nil; s = h.nextExpired(now) {
		h.mu.Lock()
		s.mu.Lock()
		switch {
		case s.gone:
		case s.busy:
			h.expireAt(s, now.Add(time.Minute))
		case s.expireLocked(now):
			h.removeLocked(s)
		default:
			s.watchClockLocked()
		}
		s.mu.Unlock()
		h.mu.Unlock()
	}
}

// removeLocked takes the session out of the hub, or if it is watched or a callback runs for
// it, leaves it there without an epoch. It goes when the last watch ends and the callback has
// returned (release). The hub's lock and the session's are held.
func (h *Hub) removeLocked(s *hubSession) {
	s.forgetEpochsLocked()
	if len(s.cursors) == 0 && !s.busy {
		h.deleteLocked(s)
	}
}

// deleteLocked takes the session out of the hub and off its clock, which is its end: there is
// no receiver, cursor or callback left. The hub's lock and the session's are held.
func (h *Hub) deleteLocked(s *hubSession) {
	s.gone = true
	delete(h.sessions, s.id)
	h.expiryMu.Lock()
	defer h.expiryMu.Unlock()
	h.expiry.Remove(&s.expiry)
	s.overPlace.Remove()
}
