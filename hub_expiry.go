package gvstream

import "time"

// This file is what time does to the hub's sessions:
//
//	the log of the epoch before       dropped pastEpochTTL after the new one began (rule 15)
//	an ended session's events         dropped 2·endedTTL after its agent last spoke of it (rule 16)
//	an ended session                  removed SessionTTL after that
//	a session whose agent is away     removed SessionTTL after its link was lost
//
// All but the first wait until nobody watches the session. Without a timer or a goroutine of
// its own, the hub looks at the clock in calls that happen anyway: when a link is made or
// handles a payload, at a viewer's heartbeat, and before it gives out statistics. Nothing but
// memory depends on how soon.
//
// The heap has each session that has a deadline under that time or an earlier one. A deadline
// that moves back leaves the heap as it is: the session comes up too early and is put in again.

// deadlineLocked returns when the next thing of these happens to the session, or zero for
// never. It says when expireLocked has something to do, and has to agree with it.
func (s *hubSession) deadlineLocked() time.Time {
	var at time.Time
	earliest := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if s.prev != nil {
		earliest(s.prev.until)
	}
	if s.epoch == "" || len(s.cursors) > 0 {
		return at
	}
	ttl := s.h.cfg.SessionTTL
	switch {
	case s.ended && !s.log.empty(): // twice as long, so that the agent forgets it first
		earliest(s.listed.Add(2 * endedTTL))
	case s.ended:
		earliest(s.listed.Add(2*endedTTL + ttl))
	}
	if s.receiver == nil {
		earliest(s.away.Add(ttl))
	}
	return at
}

// expireLocked does to a session what its age demands, and reports whether it is to be
// removed. An ended session without events is kept for its epoch and its end, so that an agent
// that was away can't go on in it.
func (s *hubSession) expireLocked(now time.Time) (remove bool) {
	if s.prev != nil && !s.prev.until.After(now) {
		s.prev = nil
		s.wakeAllLocked()
	}
	if s.epoch == "" || len(s.cursors) > 0 {
		return false
	}
	ttl := s.h.cfg.SessionTTL
	if s.ended && !s.listed.Add(2*endedTTL).After(now) {
		s.log.trim(s.log.head, 0, 0)
		if s.receiver != nil { // its agent has forgotten it: it is away as if the link were lost
			s.receiver.closeLocked()
			s.receiver, s.away = nil, now
		}
		s.uncountLocked()
		if !s.listed.Add(2*endedTTL + ttl).After(now) {
			return true
		}
	}
	return s.receiver == nil && !s.away.Add(ttl).After(now)
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
}
