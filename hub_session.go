package gvstream

import (
	"context"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A hubSession is one session at the hub. Without an epoch it is one that only
// watches know of.
type hubSession struct {
	h  *Hub
	id string

	mu sync.Mutex // level 2; protects the fields below
	ownership
	history
	audience

	expiry   sched.Entry[*hubSession] // the lock of the hub's heap protects it
	jobPlace sched.Element[job]       // in the workers's queue
}

// lock locks the session for a change that ha's agent asks for, once no callback
// runs for it.
func (s *hubSession) lock(ctx context.Context, ha *hubAgentLink) error {
	s.mu.Lock()
	err := s.waitIdleLocked(ctx, ha)
	if err != nil {
		s.mu.Unlock()
	}
	return err
}

// waitIdleLocked waits until no callback runs for the session, without the lock
// meanwhile.
func (s *hubSession) waitIdleLocked(ctx context.Context, ha *hubAgentLink) (err error) {
	for s.busy != nil && err == nil {
		b := s.busy
		s.mu.Unlock()
		err = b.wait(ctx, ha)
		s.mu.Lock()
	}
	return err
}

// callLocked runs a callback without the lock, which it takes again.
func (s *hubSession) callLocked(ctx context.Context, ha *hubAgentLink, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	b := &busy{ha: ha, cancel: cancel, done: make(chan struct{})}
	s.busy = b
	s.mu.Unlock()
	defer func() {
		cancel()
		s.mu.Lock()
		s.busy = nil
		close(b.done)
	}()
	return f(ctx)
}

// beginEpochLocked begins an epoch, in which everything up to start counts as accepted
// (rules 5 and 15). A session that had none is counted already.
func (s *hubSession) beginEpochLocked(now time.Time, epoch string, start uint64) {
	next := history{epoch: epoch, log: log{head: start}, head: start}
	if s.epoch != "" {
		next.prev = &pastEpoch{s.epoch, s.log, now.Add(pastEpochTTL)}
		next.prevID, next.prevSeq = s.epoch, s.log.head
	}
	s.history = next
	s.wakeAllLocked()
}

// acceptLocked takes a page that begins after what is accepted: the one place where an
// event becomes visible to viewers and acks.
func (s *hubSession) acceptLocked(p *page) {
	s.log.accept(p, func() {
		s.log.trim(s.log.head, s.h.cfg.LogEvents, s.h.cfg.LogBytes)
	})
	if p.ends() {
		s.endSeq = p.last
	}
	s.head = max(s.head, s.log.head)
	s.noteEndLocked()
	s.page = nil
	for c := s.idle.Pop(); c != nil; c = s.idle.Pop() {
		c.hv.ready(&c.task)
	}
	s.callWorkersLocked()
}

func (s *hubSession) noteEndLocked() {
	if s.endSeq != 0 && s.log.head >= s.endSeq && !s.ended {
		s.ended = true
		s.endSeq, s.head = s.log.head, s.log.head // whatever the agent said before
		s.wakeAllLocked()
	}
}

// wakeAllLocked has every cursor look where it stands: what it reads has changed.
func (s *hubSession) wakeAllLocked() {
	s.page = nil
	for _, c := range s.cursors {
		c.leaveLocked()
		c.hv.ready(&c.task)
	}
}

// forgetEpochsLocked makes the session one that only watches know of.
func (s *hubSession) forgetEpochsLocked() {
	if s.epoch != "" {
		s.h.known.Add(-1)
	}
	if s.receiver != nil {
		s.receiver.closeLocked()
		s.receiver = nil
	}
	s.setOwnerLocked("")
	s.history, s.page = history{}, nil
	for _, c := range s.cursors {
		c.restartLocked(c.epoch, c.seq)
		c.queueStatusLocked()
	}
}

// setOwnerLocked makes an agent the owner, against whose limit the session counts.
func (s *hubSession) setOwnerLocked(agentID string) {
	s.uncountLocked()
	s.owner = agentID
	if agentID == "" {
		return
	}
	s.counted = true
	s.h.agentsMu.Lock()
	s.h.owned[agentID]++
	s.h.agentsMu.Unlock()
}

// uncountLocked takes the session off its owner's limit.
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

func (s *hubSession) stats() (SessionStats, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SessionStats{
		SessionID: s.id, Epoch: s.epoch, First: s.log.first(), Head: s.head, Acked: s.log.head,
		Events: s.log.events, Bytes: s.log.bytes, Ended: s.ended, Connected: s.receiver != nil,
		AgentID: s.owner, Viewers: len(s.cursors),
	}, s.epoch != ""
}

// An ownership is whose a session is: its agent's (rule 4), and the hub's as long as it
// is in the map.
type ownership struct {
	owner    string    // the agent it belongs to, or empty
	receiver *receiver // on the owner's current link, or nil
	away     time.Time // when the owner's link was lost
	listed   time.Time // when the agent last spoke of it
	busy     *busy     // the callback that is running for it
	counted  bool      // against the owner's limit
	gone     bool      // no longer in the hub's map
}

// A history is what the hub knows of a session's events, in the current epoch and in
// the one before. It is zero if the hub knows no epoch.
type history struct {
	epoch  string
	log    log    // its head is what is accepted
	head   uint64 // last number the agent is known to have
	endSeq uint64 // the number of the end, once the agent said so
	ended  bool   // the end was accepted

	prev    *pastEpoch // the log of the epoch before, for a while (rule 15)
	prevID  string     // that epoch, or empty
	prevSeq uint64     // last number accepted of it
}

// An audience is the cursors of all viewers of a session, where they wait, and what
// they share.
type audience struct {
	cursors []*cursor
	atHead  sched.Queue[*cohort] // that were at the head when they were put there; who rests longest is never ahead of another
	lagging sched.Queue[*cohort] // that have not got all yet
	parked  int                  // cursors in both
	idle    sched.Queue[*cursor] // of others that wait for the next event
	page    *page                // read last, for others to share, or nil
	permits permits              // of replay requests to the agent
}

type pastEpoch struct {
	epoch string
	log   log
	until time.Time
}

// busy is a callback that runs for a session, without its lock.
type busy struct {
	ha     *hubAgentLink
	cancel context.CancelFunc
	done   chan struct{}
}

// wait waits for the callback's end. One of an older link of the same agent is told to
// stop; another agent's, and one of the same link, are not (rule 8).
func (b *busy) wait(ctx context.Context, ha *hubAgentLink) error {
	if b.ha != ha && b.ha.agentID == ha.agentID {
		b.cancel()
	}
	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// getOrCreate returns the session, which is made if the hub has none of that id. A
// session without epoch and cursors is to be released.
func (h *Hub) getOrCreate(id string) *hubSession {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[id]
	if s == nil {
		s = h.newSessionLocked(id)
		h.sessions[id] = s
	}
	return s
}

// newSessionLocked returns a session that the hub does not know yet.
func (h *Hub) newSessionLocked(id string) *hubSession {
	return &hubSession{h: h, id: id, audience: audience{permits: permits{free: h.cfg.MaxReplays}}}
}

func (h *Hub) lookup(id string) *hubSession {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[id]
}

// release removes the session if nothing is known of it and nobody watches it.
func (h *Hub) release(s *hubSession) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == "" && len(s.cursors) == 0 && s.busy == nil && !s.gone {
		h.dropLocked(s)
	}
}
