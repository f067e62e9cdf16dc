package gvstream

import "time"

// Deadlines of a session: the next thing that its age does to it, if any.
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
	case s.ended && !s.log.empty(): // the agent forgets it first (rule 16)
		earliest(s.listed.Add(2 * endedTTL))
	case s.ended:
		earliest(s.listed.Add(2*endedTTL + ttl))
	}
	if s.receiver == nil {
		earliest(s.away.Add(ttl))
	}
	return at
}

// expireLocked does what time does to a session, and reports whether it is to be removed.
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
		s.log.trim(s.log.head, 0, 0) // remembered, but for its events
		if s.receiver != nil {       // its agent has forgotten it
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
// earlier one is there. The session's lock is held.
func (s *hubSession) watchClockLocked() {
	if at := s.deadlineLocked(); !at.IsZero() {
		s.h.expireAt(s, at)
	}
}

func (h *Hub) expireAt(s *hubSession, at time.Time) {
	h.expiryMu.Lock()
	defer h.expiryMu.Unlock()
	h.expiry.SetEarlier(&s.expiry, s, at)
}

// nextExpired takes the next session out of the heap whose deadline has passed.
func (h *Hub) nextExpired(now time.Time) *hubSession {
	h.expiryMu.Lock()
	defer h.expiryMu.Unlock()
	s, _, _ := h.expiry.PopDue(now)
	return s
}

// expire does what time does to the sessions: any call may bring it about.
func (h *Hub) expire(now time.Time) {
	for s := h.nextExpired(now); s != nil; s = h.nextExpired(now) {
		h.mu.Lock()
		s.mu.Lock()
		switch {
		case s.gone:
		case s.busy != nil:
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

// removeLocked takes the session out of the hub, or leaves it to those who watch it and to
// the callback that runs for it, so that no other can begin. Both locks are held.
func (h *Hub) removeLocked(s *hubSession) {
	s.forgetEpochsLocked()
	if len(s.cursors) == 0 && s.busy == nil {
		h.dropLocked(s)
	}
}

// dropLocked takes the session out of the hub and off its clock. Both locks are held.
func (h *Hub) dropLocked(s *hubSession) {
	s.gone = true
	delete(h.sessions, s.id)
	h.expiryMu.Lock()
	defer h.expiryMu.Unlock()
	h.expiry.Remove(&s.expiry)
}
