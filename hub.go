package gvstream

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/sched"
)

// A Hub takes the events of many agents, each exactly once and in order, and
// serves them to many viewers, each at its own pace. It keeps one log a session,
// of which every viewer is a cursor; what is older, it fetches from the agent. It
// starts no goroutines but those of links that push, and of [Link.Run].
//
// All methods are safe for concurrent use.
type Hub struct {
	cfg     HubConfig
	sizes   sizes
	ids     *epoch.Source
	workers workerPool // of viewers' links that push

	known           atomic.Int64 // sessions with an epoch
	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64

	mu       sync.Mutex // level 1; protects the fields below
	sessions map[string]*hubSession
	viewers  map[string]*hubViewerLink
	locals   map[*hubViewerLink]bool // the cursors of Items
	closed   bool

	agentsMu sync.Mutex // level 4; protects the fields below
	agents   map[string]*hubAgentLink
	owned    map[string]int // sessions that count against an agent's limit

	expiryMu sync.Mutex              // level 4; protects the field below and each session's expiry
	expiry   sched.Heap[*hubSession] // by their next deadline
}

// NewHub returns a Hub without sessions or links. A nil config means the defaults;
// cfg is copied.
func NewHub(cfg *HubConfig) *Hub {
	return &Hub{
		cfg: cfg.withDefaults(), sizes: fullSizes, ids: epoch.Process, workers: newWorkerPool(),
		sessions: make(map[string]*hubSession),
		agents:   make(map[string]*hubAgentLink),
		owned:    make(map[string]int),
		viewers:  make(map[string]*hubViewerLink),
		locals:   make(map[*hubViewerLink]bool),
	}
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

// Forget removes a session from the hub. Viewers go on waiting for it; an agent
// that still has it opens it again, where HubConfig.Resume says or with what the
// agent has not been acknowledged. What a Commit that is running returns is
// ignored. It does not block.
func (h *Hub) Forget(sessionID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[sessionID]; s != nil {
		s.mu.Lock()
		h.removeLocked(s)
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
		h.removeLocked(s)
		s.mu.Unlock()
		h.mu.Unlock()
	}
	return nil
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
