package gvstream

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/sched"
)

// A HubConfig holds the callbacks and limits of a Hub. A nil config is all
// defaults. Callbacks are called without locks and may call anything back; they
// must return when ctx ends. Several may run at once, but for one session only one
// of Resume and Commit at a time.
type HubConfig struct {
	// Authorize says whether a viewer may watch a session, on every watch and
	// each time one resumes; an error refuses it. It is asked whether or not the
	// session exists, and the viewer can't tell the difference. If nil, every
	// viewer may watch every session (rule 13).
	Authorize func(ctx context.Context, viewerID, sessionID string) error
	// Commit stores events and gaps, in order, before they count as accepted,
	// are acknowledged or seen by a viewer. The agent waits meanwhile, nobody
	// else. An error accepts none of them and ends the agent's link; its
	// reconnect is the retry. So the same items may come again: store, in one
	// transaction, only what is above the last number stored in that epoch, of
	// a gap too. A *ProtocolError with Code "event_rejected" and Seq instead
	// refuses that one event for good. The items and their bytes are Commit's to
	// keep. The agent hears nothing while it waits, and takes a hub that is silent
	// for 45 s for gone: a slower store never gets past its first batch. If nil,
	// accepted events live in the hub's memory only (rule 8).
	Commit func(ctx context.Context, sessionID, epoch string, items []Item) error
	// Resume says up to which number the caller's store holds a session that the
	// hub does not know in that epoch: 0 if none. An error is answered to the
	// agent as retryable. If nil, the hub believes the agent's own count of what
	// was acknowledged (rule 5).
	Resume func(ctx context.Context, sessionID, epoch string) (uint64, error)
	// Claim says whether an agent may take over a session that belongs to
	// another agent. That one goes on meanwhile. If nil, none may (rule 4).
	Claim func(ctx context.Context, agentID, sessionID, ownerID string) bool

	// LogEvents is how many of the most recent events of a session the hub
	// keeps for its viewers. If zero, 1,000. If negative, none.
	LogEvents int
	// LogBytes is the bytes of their JSON, a session. If zero, 8 MiB. If
	// negative, none.
	LogBytes int
	// MaxEventBytes is the bytes of an event's JSON; a larger one is refused and
	// becomes a gap. If zero, 1 MiB. If negative, none.
	MaxEventBytes int
	// MaxSessions is the number of sessions of all agents. If zero, 100,000. If
	// negative, none.
	MaxSessions int
	// MaxAgentSessions is the number of sessions of one agent: those open on its
	// link, and those that SessionTTL keeps while it is away. If zero, 10,000. If
	// negative, none.
	MaxAgentSessions int
	// MaxWatches is the number of sessions watched over one viewer's link. If
	// zero, 100. If negative, none.
	MaxWatches int
	// MaxReplays is the number of replay requests to an agent that are open at a
	// time for one session; more wait in turn. If zero, 8. If negative, none.
	MaxReplays int
	// MaxViewerReplays is the same for one viewer's link. If zero, 4. If
	// negative, none.
	MaxViewerReplays int
	// Window is the number of events an agent may send beyond the hub's ack, a
	// session. If zero, 1,024. If negative, none.
	Window int
	// SessionTTL is how long the hub remembers a session whose agent is away and
	// that nobody watches, and one that has ended. If zero, 1 hour. If
	// negative, not at all.
	SessionTTL time.Duration
	// ReplayWait is how long a viewer waits for older events while their agent
	// is away, before they are declared unavailable. If zero, 10 seconds. If
	// negative, not at all.
	ReplayWait time.Duration
}

func (c *HubConfig) withDefaults() HubConfig {
	var d HubConfig
	if c != nil {
		d = *c
	}
	d.LogEvents = or(d.LogEvents, 1000)
	d.LogBytes = or(d.LogBytes, 8<<20)
	d.MaxEventBytes = or(d.MaxEventBytes, 1<<20)
	d.MaxSessions = or(d.MaxSessions, 100_000)
	d.MaxAgentSessions = or(d.MaxAgentSessions, 10_000)
	d.MaxWatches = or(d.MaxWatches, 100)
	d.MaxReplays = or(d.MaxReplays, 8)
	d.MaxViewerReplays = or(d.MaxViewerReplays, 4)
	d.Window = min(or(d.Window, 1024), math.MaxInt32) // what everybody can read
	d.SessionTTL = or(d.SessionTTL, time.Hour)
	d.ReplayWait = or(d.ReplayWait, 10*time.Second)
	return d
}

// A Hub takes the events of many agents, each exactly once and in order, and
// serves them to many viewers, each at its own pace. It keeps one log a session,
// of which every viewer is a cursor; what is older, it fetches from the agent. It
// starts no goroutines but those of links that push, and of [Link.Run].
//
// All methods are safe for concurrent use.
type Hub struct {
	cfg   HubConfig
	sizes sizes
	mint  *epoch.Source
	crew  crew // of viewers' links that push

	known           atomic.Int64 // sessions with an epoch
	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64

	mu       sync.Mutex // level 1; protects the fields below
	sessions map[string]*hubSession
	viewers  map[string]*hubViewer
	locals   map[*hubViewer]bool // the cursors of Items
	closed   bool

	agentsMu sync.Mutex // level 4; protects the fields below
	agents   map[string]*hubAgent
	owned    map[string]int // sessions that count against an agent's limit

	expiryMu sync.Mutex              // level 4; protects the field below and each session's expiry
	expiry   sched.Heap[*hubSession] // by their next deadline
}

// NewHub returns a Hub without sessions or links. A nil config means the defaults;
// cfg is copied.
func NewHub(cfg *HubConfig) *Hub {
	return &Hub{
		cfg: cfg.withDefaults(), sizes: fullSizes, mint: epoch.Process, crew: newCrew(),
		sessions: make(map[string]*hubSession),
		agents:   make(map[string]*hubAgent),
		owned:    make(map[string]int),
		viewers:  make(map[string]*hubViewer),
		locals:   make(map[*hubViewer]bool),
	}
}

// A hubSession is one session at the hub. Without an epoch it is one that only
// watches know of.
type hubSession struct {
	h  *Hub
	id string

	mu sync.Mutex // level 2; protects the fields below
	ownership
	history
	audience

	expiry sched.Entry[*hubSession] // the lock of the hub's heap protects it
	news   sched.Element[job]       // in the crew's queue
}

// An ownership is whose a session is: its agent's (rule 4), and the hub's as long as it
// is in the map.
type ownership struct {
	owner   string    // the agent it belongs to, or empty
	on      *opening  // on the owner's current link, or nil
	away    time.Time // when the owner's link was lost
	listed  time.Time // when the agent last spoke of it
	busy    *busy     // the callback that is running for it
	counted bool      // against the owner's limit
	gone    bool      // no longer in the hub's map
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
	resting sched.Queue[*fan]    // that were at the head when they were put there; who rests longest is never ahead of another
	behind  sched.Queue[*fan]    // that have not got all yet
	atRest  int                  // cursors in both
	idle    sched.Queue[*cursor] // of others that wait for the next event
	page    *page                // read last, for others to share, or nil
	permits permits              // of replay requests to the agent
}

// pastEpochTTL is how long the hub keeps the log of the epoch before (rule 15).
const pastEpochTTL = 5 * time.Minute

type pastEpoch struct {
	epoch string
	log   log
	until time.Time
}

// busy is a callback that runs for a session, without its lock.
type busy struct {
	ha     *hubAgent
	cancel context.CancelFunc
	done   chan struct{}
}

// hold returns the session, which is made if the hub has none of that id. A
// session without epoch and cursors is to be released.
func (h *Hub) hold(id string) *hubSession {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[id]
	if s == nil {
		s = h.newSession(id)
		h.sessions[id] = s
	}
	return s
}

// newSession returns a session that the hub does not know yet.
func (h *Hub) newSession(id string) *hubSession {
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
		h.drop(s)
	}
}

// lock locks the session for a change that ha's agent asks for, once no callback
// runs for it.
func (s *hubSession) lock(ctx context.Context, ha *hubAgent) error {
	s.mu.Lock()
	err := s.waitIdleLocked(ctx, ha)
	if err != nil {
		s.mu.Unlock()
	}
	return err
}

// waitIdleLocked waits until no callback runs for the session, without the lock
// meanwhile.
func (s *hubSession) waitIdleLocked(ctx context.Context, ha *hubAgent) (err error) {
	for s.busy != nil && err == nil {
		b := s.busy
		s.mu.Unlock()
		err = b.wait(ctx, ha)
		s.mu.Lock()
	}
	return err
}

// wait waits for the callback's end. One of an older link of the same agent is told to
// stop; another agent's, and one of the same link, are not (rule 8).
func (b *busy) wait(ctx context.Context, ha *hubAgent) error {
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

// call runs a callback without the lock, which it takes again.
func (s *hubSession) call(ctx context.Context, ha *hubAgent, f func(ctx context.Context) error) error {
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

// adopt begins an epoch, in which everything up to start counts as accepted
// (rules 5 and 15). A session that had none is counted already.
func (s *hubSession) adopt(now time.Time, epoch string, start uint64) {
	next := history{epoch: epoch, log: log{head: start}, head: start}
	if s.epoch != "" {
		next.prev = &pastEpoch{s.epoch, s.log, now.Add(pastEpochTTL)}
		next.prevID, next.prevSeq = s.epoch, s.log.head
	}
	s.history = next
	s.wakeAll()
}

// accept takes a page that begins after what is accepted: the one place where an
// event becomes visible to viewers and acks.
func (s *hubSession) accept(p *page) {
	s.log.accept(p, func() {
		s.log.trim(s.log.head, s.h.cfg.LogEvents, s.h.cfg.LogBytes)
	})
	if p.ends() {
		s.endSeq = p.last
	}
	s.head = max(s.head, s.log.head)
	s.noteEnd()
	s.page = nil
	for c := s.idle.Pop(); c != nil; c = s.idle.Pop() {
		c.hv.ready(&c.task)
	}
	s.callCrew()
}

func (s *hubSession) noteEnd() {
	if s.endSeq != 0 && s.log.head >= s.endSeq && !s.ended {
		s.ended = true
		s.endSeq, s.head = s.log.head, s.log.head // whatever the agent said before
		s.wakeAll()
	}
}

// wakeAll has every cursor look where it stands: what it reads has changed.
func (s *hubSession) wakeAll() {
	s.page = nil
	for _, c := range s.cursors {
		c.leave()
		c.hv.ready(&c.task)
	}
}

// forgetEpochs makes the session one that only watches know of.
func (s *hubSession) forgetEpochs() {
	if s.epoch != "" {
		s.h.known.Add(-1)
	}
	if s.on != nil {
		s.on.close()
		s.on = nil
	}
	s.belongTo("")
	s.history, s.page = history{}, nil
	for _, c := range s.cursors {
		c.restart(c.epoch, c.seq)
		c.tell()
	}
}

// belongTo makes an agent the owner, against whose limit the session counts.
func (s *hubSession) belongTo(agentID string) {
	s.uncount()
	s.owner = agentID
	if agentID == "" {
		return
	}
	s.counted = true
	s.h.agentsMu.Lock()
	s.h.owned[agentID]++
	s.h.agentsMu.Unlock()
}

// uncount takes the session off its owner's limit.
func (s *hubSession) uncount() {
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

// Deadlines of a session: the next thing that its age does to it, if any.
func (s *hubSession) deadline() time.Time {
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
	if s.on == nil {
		earliest(s.away.Add(ttl))
	}
	return at
}

// age does what time does to a session, and reports whether it is to be removed.
func (s *hubSession) age(now time.Time) (remove bool) {
	if s.prev != nil && !s.prev.until.After(now) {
		s.prev = nil
		s.wakeAll()
	}
	if s.epoch == "" || len(s.cursors) > 0 {
		return false
	}
	ttl := s.h.cfg.SessionTTL
	if s.ended && !s.listed.Add(2*endedTTL).After(now) {
		s.log.trim(s.log.head, 0, 0) // remembered, but for its events
		if s.on != nil {             // its agent has forgotten it
			s.on.close()
			s.on, s.away = nil, now
		}
		s.uncount()
		if !s.listed.Add(2*endedTTL + ttl).After(now) {
			return true
		}
	}
	return s.on == nil && !s.away.Add(ttl).After(now)
}

// watchClock puts the session's next deadline into the hub's heap, unless an
// earlier one is there. The session's lock is held.
func (s *hubSession) watchClock() {
	if at := s.deadline(); !at.IsZero() {
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
		case s.age(now):
			h.remove(s)
		default:
			s.watchClock()
		}
		s.mu.Unlock()
		h.mu.Unlock()
	}
}

// remove takes the session out of the hub, or leaves it to those who watch it and to
// the callback that runs for it, so that no other can begin. Both locks are held.
func (h *Hub) remove(s *hubSession) {
	s.forgetEpochs()
	if len(s.cursors) == 0 && s.busy == nil {
		h.drop(s)
	}
}

// drop takes the session out of the hub and off its clock. Both locks are held.
func (h *Hub) drop(s *hubSession) {
	s.gone = true
	delete(h.sessions, s.id)
	h.expiryMu.Lock()
	defer h.expiryMu.Unlock()
	h.expiry.Remove(&s.expiry)
}

// ConnectAgent makes the link of a new connection from an agent, whose id the
// caller has authenticated, and supersedes the agent's link before. It does not
// block. With an invalid id, or on a closed Hub, the link is dead: its calls
// return ErrInvalidID or ErrClosed.
//
// The link lives until Run returns, Close is called or a newer one is made. A hub
// does not end silent links: let the transport do so, by keep-alives or pings.
func (h *Hub) ConnectAgent(agentID string) *Link {
	return h.connectAgent(time.Now(), agentID).Link
}

// ConnectViewer makes the link of a new connection from a viewer, whose id the
// caller has authenticated, and supersedes the viewer's link before: the id names
// one instance of a viewer, such as a browser's tab, not its user. It does not
// block. With an invalid id, or on a closed Hub, the link is dead: its calls
// return ErrInvalidID or ErrClosed. It lives as an agent's link does.
func (h *Hub) ConnectViewer(viewerID string) *Link {
	return h.connectViewer(time.Now(), viewerID, false).Link
}

// Sessions yields what the hub holds of each session it knows, in the order of
// their ids. It does not block; sessions that come or go meanwhile may be missed.
func (h *Hub) Sessions() iter.Seq[SessionStats] {
	return func(yield func(SessionStats) bool) {
		h.expire(time.Now())
		for _, s := range h.all() {
			if st, ok := s.stats(); ok && !yield(st) {
				return
			}
		}
	}
}

func (h *Hub) all() []*hubSession {
	h.mu.Lock()
	out := slices.Collect(maps.Values(h.sessions))
	h.mu.Unlock()
	slices.SortFunc(out, compareIDs)
	return out
}

func compareIDs(a, b *hubSession) int { return cmp.Compare(a.id, b.id) }

func (s *hubSession) stats() (SessionStats, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SessionStats{
		SessionID: s.id, Epoch: s.epoch, First: s.log.first(), Head: s.head, Acked: s.log.head,
		Events: s.log.events, Bytes: s.log.bytes, Ended: s.ended, Connected: s.on != nil,
		AgentID: s.owner, Viewers: len(s.cursors),
	}, s.epoch != ""
}

// Forget removes a session from the hub. Viewers go on waiting for it; an agent
// that still has it opens it again, where HubConfig.Resume says or with what the
// agent has not been acknowledged. What a Commit that is running returns is
// ignored. It does not block.
func (h *Hub) Forget(sessionID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[sessionID]; s != nil {
		s.mu.Lock()
		h.remove(s)
		s.mu.Unlock()
	}
}

// Revoke ends a viewer's watch on a session, if there is one: the viewer is told
// "forbidden", and its next watch is for Authorize to refuse. It does not block.
func (h *Hub) Revoke(viewerID, sessionID string) {
	h.mu.Lock()
	hv := h.viewers[viewerID]
	h.mu.Unlock()
	if hv != nil {
		hv.revoke(sessionID)
	}
}

// Close ends all links, which return ErrClosed, and all Items, and forgets all
// sessions. It does not wait for callbacks; what a Commit that is running stores is
// acknowledged when the agent finds the next hub. It always returns nil.
func (h *Hub) Close() error {
	h.mu.Lock()
	h.closed = true
	var links []*Link
	h.agentsMu.Lock()
	for _, ha := range h.agents {
		links = append(links, ha.Link)
	}
	h.agentsMu.Unlock()
	for _, hv := range h.viewers {
		links = append(links, hv.Link)
	}
	for hv := range h.locals {
		links = append(links, hv.Link)
	}
	h.mu.Unlock()
	for _, l := range links {
		l.Close()
	}
	for _, s := range h.all() {
		h.mu.Lock()
		s.mu.Lock()
		h.remove(s)
		s.mu.Unlock()
		h.mu.Unlock()
	}
	return nil
}

// HubStats is what a Hub holds and has seen.
type HubStats struct {
	Sessions        int    // known, remembered ended ones included
	Agents          int    // links
	Viewers         int    // links, without those of Items
	StalePayloads   uint64 // payloads of another link, epoch or request, which changed nothing
	RefusedPayloads uint64 // payloads answered by an error
}

// Stats returns counts. It does not block.
func (h *Hub) Stats() HubStats {
	h.expire(time.Now())
	h.agentsMu.Lock()
	agents := len(h.agents)
	h.agentsMu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	return HubStats{
		Sessions: int(h.known.Load()), Agents: agents, Viewers: len(h.viewers),
		StalePayloads: h.stalePayloads.Load(), RefusedPayloads: h.refusedPayloads.Load(),
	}
}
