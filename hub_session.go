package gvstream

import (
	"context"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A hubSession is one session at the hub: whose it is, what the hub holds of it, and
// which viewers read it. It outlives the links of all of them.
//
//	state     epoch  receiver  what brings it there
//	unknown   ""     nil       a watch, or an agent that is opening it; Forget, while watched
//	open      set    set       its agent named it on the current link (attachLocked)
//	away      set    nil       the owner's link ended (hubAgentLink.detach)
//	gone      ""     nil       nothing is known and nobody watches (dropLocked); final
//
// A session that has ended is open or away as well, until its age removes it.
//
// While a callback of the store runs for it, it stays in the hub's map whatever its state, so that no
// other session of its id can begin and ask the caller for the same events. Code that looked
// a session up and then locked it checks gone, or something that a gone session can't have:
// an epoch or a receiver.
type hubSession struct {
	h  *Hub
	id string

	mu sync.Mutex // level 2; protects the fields below
	ownership
	intake
	history
	audience
	fetching

	expiry    sched.Entry[*hubSession]   // Hub.expiryMu protects it
	overPlace sched.Element[*hubSession] // and this
	age       sched.Entry[*hubSession]   // its place in Hub.total, whose lock protects it
	jobPlace  sched.Element[job]         // in the queue of the hub's workers, whose lock protects it
}

// beginEpochLocked begins an epoch, in which everything up to start counts as accepted
// (rules 5 and 15). The caller has counted a session that had none. The log before is kept
// for a while, so that cursors in it can read it to its end.
func (s *hubSession) beginEpochLocked(now time.Time, epoch string, start uint64) {
	s.endFetchesLocked()
	s.aliveLocked()
	next := history{epoch: epoch, log: log{head: start}, agentHead: start}
	if s.epoch != "" {
		next.prev = &pastEpoch{s.epoch, s.log, now.Add(pastEpochTTL)}
		next.prevID, next.prevSeq = s.epoch, s.log.head
	}
	s.dropIntakeLocked()
	s.history, s.received, s.endsAt = next, start, 0
	s.countBytesLocked()
	s.wakeAllLocked()
}

// acceptLocked takes pages that begin after what is accepted: the one place where an
// event becomes visible to viewers and acks, and so after Commit (rule 8). The log takes over
// the pages' bytes. Cursors that wait alone are woken one by one; those in cohorts, however
// many, only need a worker.
func (s *hubSession) acceptLocked(pages ...page) {
	for i := range pages {
		p := &pages[i]
		s.log.accept(p, func() {
			s.log.trim(s.log.head, s.h.cfg.LogEvents, s.h.cfg.LogBytes)
		})
		if p.hasEnd() {
			s.endSeq = p.last
		}
	}
	s.agentHead = max(s.agentHead, s.log.head)
	s.countBytesLocked()
	s.noteEndLocked()
	s.page = nil // it may end before the new head
	for c := s.idle.Pop(); c != nil; c = s.idle.Pop() {
		c.hv.ready(&c.task)
	}
	s.callWorkersLocked()
}

// noteEndLocked ends the session once everything up to its end is accepted. That is noticed
// in two places: the end event was accepted, or a status named a number that was accepted
// already, since the end may lie in a gap (rule 16). The store is told of that first.
func (s *hubSession) noteEndLocked() {
	if s.endSeq != 0 && s.log.head >= s.endSeq && !s.ended && !s.endDueLocked(s.log.head) {
		s.ended = true
		s.overLocked()
		s.endSeq, s.agentHead = s.log.head, s.log.head // what the agent named beyond that was wrong
		s.wakeAllLocked()
		s.watchClockLocked()
	}
}

// overLocked makes room for a living session: this one has ended, or its agent has forgotten it. It
// counts no more against its agent's limit, and goes first when the hub's is reached.
func (s *hubSession) overLocked() {
	s.uncountLocked()
	s.queueOverLocked()
	s.watchClockLocked()
}

func (s *hubSession) queueOverLocked() {
	s.h.expiryMu.Lock()
	defer s.h.expiryMu.Unlock()
	s.h.over.Push(&s.overPlace, s)
}

// aliveLocked takes the session back out of those that make room: a new life of it begins, or its
// agent goes on with it after all.
func (s *hubSession) aliveLocked() {
	s.forgotten = false
	s.h.expiryMu.Lock()
	defer s.h.expiryMu.Unlock()
	s.overPlace.Remove()
}

// forgetByAgentLocked notes that the agent has forgotten the session, which has not ended: nothing
// follows of this life. Its log stays for viewers, for as long as that of a session that has ended.
func (s *hubSession) forgetByAgentLocked(now time.Time) {
	s.listed = now
	if s.forgotten || s.ended {
		return
	}
	if s.receiver != nil {
		s.receiver.closeLocked()
		s.receiver, s.away = nil, now
	}
	if len(s.refused) > 0 {
		s.dropIntakeLocked()
	}
	s.forgotten = true
	s.overLocked()
	s.wakeAllLocked()
}

// countBytesLocked counts the bytes of the session's logs against the hub's total, and offers the
// session while it has any. It is called after each change of a log; what is too much is evicted
// when the session's lock is free.
func (s *hubSession) countBytesLocked() {
	bytes := s.log.bytes
	if s.prev != nil {
		bytes += s.prev.log.bytes
	}
	switch was := s.logBytes; {
	case bytes > was:
		s.h.total.add(bytes - was)
	case bytes < was:
		s.h.total.release(was - bytes)
	}
	s.logBytes = bytes
	if s.aged {
		return
	}
	if at, ok := s.oldestLocked(); ok {
		s.aged = true
		s.h.total.offer(&s.age, s, at)
	}
}

// oldestLocked is the time by which the session's oldest event is evicted. What an agent says of the
// future does not keep its events any longer.
func (s *hubSession) oldestLocked() (at time.Time, ok bool) {
	if s.prev != nil {
		at, ok = s.prev.log.oldest(MaxSeq)
	}
	if !ok {
		at, ok = s.log.oldest(MaxSeq)
	}
	if at.After(s.listed) {
		at = s.listed
	}
	return at, ok
}

// evictOldest implements evictor. Gaps before the event go with it.
func (s *hubSession) evictOldest(believed time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aged = false
	if at, ok := s.oldestLocked(); ok && at.Equal(believed) {
		l := &s.log
		if s.prev != nil && s.prev.log.events > 0 {
			l = &s.prev.log
		}
		for l.evict() == 0 {
		}
		l.tidy()
		s.page = nil // it may begin before the log does
	}
	s.countBytesLocked()
}

// wakeAllLocked makes every cursor look where it stands, after a change of more than the
// log's head: the epoch, the owner's link, the end. The shared page goes first, since it is
// known by its log's address, and a new epoch's log has the address of the one before.
func (s *hubSession) wakeAllLocked() {
	s.page = nil
	for _, c := range s.cursors {
		c.leaveLocked()
		c.hv.ready(&c.task)
	}
}

// forgetEpochsLocked makes the session one that only watches know of. Its cursors keep their
// positions: if the same epoch comes back, they go on from there. Their viewers get a status
// without an epoch, which is no news to them (rule 15).
func (s *hubSession) forgetEpochsLocked() {
	if s.epoch != "" {
		s.h.knownSessions.Add(-1)
	}
	if s.receiver != nil {
		s.receiver.closeLocked()
		s.receiver = nil
	}
	s.dropIntakeLocked()
	s.setOwnerLocked("")
	s.endFetchesLocked() // it may have had no owner
	s.aliveLocked()
	s.history, s.page = history{}, nil
	s.received, s.endsAt = 0, 0
	s.countBytesLocked()
	if s.aged {
		s.aged = false
		s.h.total.forget(&s.age)
	}
	for _, c := range s.cursors {
		c.restartLocked(c.epoch, c.acked)
		c.queueStatusLocked()
	}
}

// setOwnerLocked makes an agent the owner; with an empty id the session belongs to nobody. What
// the owner before has sent and is not stored is not the new one's to confirm.
func (s *hubSession) setOwnerLocked(agentID string) {
	if s.owner != agentID { // what the one before was asked for, the other is to be asked for
		s.dropIntakeLocked()
		s.endFetchesLocked()
	}
	s.uncountLocked()
	s.owner = agentID
}

// uncountLocked takes the session off its owner's limit. The owner stays: an ended session
// costs its agent nothing any more, but no other agent may open it.
func (s *hubSession) uncountLocked() {
	if !s.counted {
		return
	}
	s.counted = false
	s.h.agentsMu.Lock()
	defer s.h.agentsMu.Unlock()
	if s.h.owned[s.owner]--; s.h.owned[s.owner] == 0 {
		delete(s.h.owned, s.owner)
	}
}

// stats returns what the hub holds of the session, and false if only watches know of it.
func (s *hubSession) stats() (SessionStats, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SessionStats{
		SessionID: s.id, Epoch: s.epoch, First: s.log.first(), Head: s.agentHead, Acked: s.log.head,
		Events: s.log.events, Bytes: s.log.bytes, Ended: s.ended, Connected: s.receiver != nil,
		AgentID: s.owner, Viewers: len(s.cursors),
	}, s.epoch != ""
}

// An ownership is whose a session is: its agent's (rule 4), and the hub's as long as it
// is in the map.
type ownership struct {
	owner    string    // the agent it belongs to, or empty
	receiver *receiver // on the owner's current link, or nil; set only in a session with an epoch
	away     time.Time // when the owner's link was lost; counts only without a receiver
	listed   time.Time // when the agent last spoke of it, by a status or a batch
	counted  bool      // in Hub.owned, for the owner

	forgotten bool // the agent said that it has forgotten it
	gone      bool // no longer in the hub's map; never false again
}

// A history is what the hub knows of a session's events, in the current epoch and in
// the one before. It is zero if the hub knows no epoch.
//
// In an epoch log.head only grows, and it is never above head. Once the session has ended, it
// is endSeq, and does not change any more.
type history struct {
	epoch     string
	log       log    // its head is what is accepted
	agentHead uint64 // last number the agent is known to have
	endSeq    uint64 // the number of the end, once the agent said so, or 0
	endStored bool   // Commit was given the end
	ended     bool   // the end was accepted

	// What outlives a change of the epoch. The position is for statuses, so that a viewer can
	// say what it missed; it stays when the log has expired.
	prev    *pastEpoch // the log of the epoch before, for a while (rule 15), or nil
	prevID  string     // that epoch, or empty
	prevSeq uint64     // last number accepted of it
}

// An audience is the cursors of all viewers of a session, where they wait, and what
// they share. A cursor is in one place at most: in a cohort in one of its two queues, in
// one that is being sent to and so in neither, or in idle. One that is in none of them is
// on its way: its link will ask it for its next payload, or it waits for older events
// (fetching).
type audience struct {
	cursors []*cursor            // all of them; each knows its index
	atHead  sched.Queue[*cohort] // that were at the head when put there: the furthest behind is first
	lagging sched.Queue[*cohort] // that were sent a page and are not at the head yet
	parked  int                  // cursors in the cohorts of both
	idle    sched.Queue[*cursor] // of others that wait for the next event
	page    *page                // read last, for others to share, or nil

	logBytes int  // what the logs count in Hub.total
	aged     bool // offered to Hub.total, which may not have looked at it yet
}

// A pastEpoch is what is left of an epoch that another has followed. Nothing is added to its
// log.
type pastEpoch struct {
	epoch string
	log   log
	until time.Time // when it is dropped
}

// getOrCreate returns the session of an id, and makes one if the hub has none. The caller
// releases it if it has given it neither epoch nor cursor, or it would stay forever.
func (h *Hub) getOrCreate(id string) *hubSession {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[id]
	if s == nil {
		s = h.newSession(id)
		h.sessions[id] = s
	}
	return s
}

// newSession returns a session that is not in the hub's map yet.
func (h *Hub) newSession(id string) *hubSession {
	s := &hubSession{h: h, id: id}
	s.commit.s, s.ctx = s, context.Background()
	return s
}

// lookup returns the session of an id, or nil.
func (h *Hub) lookup(id string) *hubSession {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[id]
}

// release removes the session if nothing is known of it, nobody watches it and no callback
// runs for it. It is called without any lock, by whatever may have taken away the last of
// these reasons to keep it.
func (h *Hub) release(s *hubSession) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == "" && len(s.cursors) == 0 && !s.busy && !s.gone {
		h.deleteLocked(s)
	}
}
