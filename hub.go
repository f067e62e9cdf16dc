package gvstream

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/sched"
)

// This file is the hub as a whole: its tables of sessions and links, and what a caller
// does to them. The rest of the hub is laid out by what it serves:
//
//	hub_session.go, hub_expiry.go              one session: its log, its life, its age
//	hub_agent.go, hub_open.go, receiver.go     one agent's link, and a session open on it
//	hub_viewer.go, hub_cursor.go, cohort.go    one viewer's link, and its place in a session
//	hub_replay.go                              events older than the log, from the agent
//	hub_items.go                               a viewer inside the hub's own process

// A Hub takes the events of many agents, each exactly once and in order, and
// serves them to many viewers, each at its own pace. It keeps one log a session, in
// which every viewer is a cursor, and fetches older events from the agent. It starts
// no goroutines except those of [Link.Run] and [Link.Push], and those that call AuthorizeAgent,
// Resume and Commit.
//
// All methods are safe for concurrent use. Only the iteration of Items blocks.
type Hub struct {
	cfg     HubConfig
	sizes   sizes
	ids     *epoch.Source // of links
	workers workerPool    // shared by all viewers' links that push

	// Workers of their own call back about agents' sessions, so that neither what stores nor
	// what decides keeps the other from going on. They wait in the callbacks, and hold no lock.
	commits  workerPool      // of commitJobs
	openings workerPool      // of openings
	open     context.Context // of the callbacks
	shut     func()          // ends it

	// Counters are atomic: most are changed under a session's or a link's lock, where the
	// hub's can't be taken.
	knownSessions   atomic.Int64 // sessions with an epoch
	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64

	// A session is in the map from its first opener or watch until it is gone. A link is
	// in one of the maps from its making until its detach, or until a newer one of the
	// same id replaces it.
	mu       sync.Mutex // level 1; protects the fields below
	sessions map[string]*hubSession
	viewers  map[string]*hubViewerLink // by viewer id
	locals   map[*hubViewerLink]bool   // those of Items, which have no id
	closed   bool                      // links that are made now are dead

	// Looked up by sessions, to find the agent that can replay older events, and so with a
	// session's lock held: mu could not protect them.
	agentsMu sync.Mutex // level 4; protects the fields below
	agents   map[string]*hubAgentLink
	owned    map[string]int                  // sessions that count against an agent's limit: those with counted set, and openings
	awaiting map[string]map[*hubSession]bool // sessions of which cursors wait for an agent's hello

	uncommitted map[string]int // bytes that an agent has sent and that are not stored, by agent

	total budget[*hubSession] // of the bytes of all logs

	expiryMu sync.Mutex               // level 4; protects the fields below and each session's expiry and overPlace
	expiry   sched.Heap[*hubSession]  // by their next deadline, or one that has moved back since
	over     sched.Queue[*hubSession] // that have ended or were forgotten, in that order
}

// NewHub returns a Hub without sessions or links. A nil config means the defaults;
// cfg is copied.
func NewHub(cfg *HubConfig) *Hub {
	h := &Hub{
		cfg: cfg.withDefaults(), sizes: fullSizes, ids: epoch.Process, workers: newWorkerPool(),
		sessions:    make(map[string]*hubSession),
		agents:      make(map[string]*hubAgentLink),
		owned:       make(map[string]int),
		awaiting:    make(map[string]map[*hubSession]bool),
		uncommitted: make(map[string]int),
		viewers:     make(map[string]*hubViewerLink),
		locals:      make(map[*hubViewerLink]bool),
	}
	h.commits.size, h.openings.size = h.cfg.MaxCommits, h.cfg.MaxCommits
	h.total.max = int64(h.cfg.MaxTotalBytes)
	h.sizes.batchBytes = h.cfg.MaxBatchBytes - batchOverhead
	h.open, h.shut = context.WithCancel(context.Background())
	return h
}

// ConnectAgent makes the link of a new connection from an agent, whose id the
// caller has authenticated, and supersedes the agent's link before. It does not
// block. With an invalid id, or on a closed Hub, the link is dead: its calls
// return ErrInvalidID or ErrClosed.
//
// The link lives until Run returns, Close is called, a newer one is made, or nothing
// moves on its connection for 45 s (rule 9).
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
// their ids. It does not block, and no lock is held while the caller has a value;
// sessions that come or go meanwhile may be missed.
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

// dropEnded removes the session that ended, or was forgotten by its agent, the longest time ago,
// and reports whether there was one. It is called without any lock.
//
// One that is watched stays: its viewers would wait for what never comes. It is looked at again after
// the others, of which no more than a few are looked at.
func (h *Hub) dropEnded() bool {
	for range 64 {
		h.expiryMu.Lock()
		s := h.over.Pop()
		h.expiryMu.Unlock()
		if s == nil {
			return false
		}
		if h.dropOver(s) {
			return true
		}
	}
	return false
}

// dropOver removes a session that is over, and reports whether it could.
func (h *Hub) dropOver(s *hubSession) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone || !s.ended && !s.forgotten:
		return false
	case s.busy || len(s.cursors) > 0:
		s.queueOverLocked()
		return false
	}
	h.removeLocked(s)
	return true
}

// all returns the sessions in the order of their ids, those that only watches know of
// included. Some may be gone by the time the caller locks them.
func (h *Hub) all() []*hubSession {
	h.mu.Lock()
	out := slices.Collect(maps.Values(h.sessions))
	h.mu.Unlock()
	slices.SortFunc(out, compareIDs)
	return out
}

func compareIDs(a, b *hubSession) int { return cmp.Compare(a.id, b.id) }

// Forget removes a session from the hub. Viewers go on waiting for it. An agent that
// still has it opens it again, from the number that HubConfig.Resume returns or else
// after the last one that was acknowledged to it. If a Commit is running, its result
// is ignored. It does not block.
func (h *Hub) Forget(sessionID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[sessionID]; s != nil {
		s.mu.Lock()
		h.removeLocked(s)
		s.mu.Unlock()
	}
}

// Revoke ends a viewer's watch on a session, if there is one, with
// CodeForbidden. A watch that AuthorizeViewer is being asked about is asked about again; a later
// one is for AuthorizeViewer to refuse. It does not block.
func (h *Hub) Revoke(viewerID, sessionID string) {
	h.mu.Lock()
	hv := h.viewers[viewerID]
	h.mu.Unlock()
	if hv != nil {
		hv.revoke(sessionID)
	}
}

// Close ends all links, which return ErrClosed, and all Items, and forgets all
// sessions. It ends the ctx of callbacks and does not wait for them: what a running Commit
// stores is acknowledged when the agent finds the next hub. It may be called more than
// once, and always returns nil.
func (h *Hub) Close() error {
	h.mu.Lock()
	h.closed = true // first: from here on the maps below get no new links
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
	h.shut()
	for _, l := range links { // without the lock, which their detach takes
		l.Close()
	}
	// After the links, or an agent could open a session again.
	for _, s := range h.all() {
		h.mu.Lock()
		s.mu.Lock()
		h.removeLocked(s)
		s.mu.Unlock()
		h.mu.Unlock()
	}
	return nil
}

// Stats returns counts, which need not be of one moment. It does not block.
func (h *Hub) Stats() HubStats {
	h.expire(time.Now())
	h.agentsMu.Lock()
	agents := len(h.agents)
	h.agentsMu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	return HubStats{
		Sessions: int(h.knownSessions.Load()), Agents: agents, Viewers: len(h.viewers) + len(h.locals),
		StalePayloads: h.stalePayloads.Load(), RefusedPayloads: h.refusedPayloads.Load(),
	}
}
