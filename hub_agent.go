package gvstream

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// A hubAgentLink is the hub's half of one connection to an agent.
type hubAgentLink struct {
	*Link
	h       *Hub
	agentID string
	id      string // of the link

	// Link's lock protects the fields below.
	greeted      bool      // hello came
	staleAt      time.Time // when stale_link was last said
	sessions     map[*hubSession]*receiver
	requests     map[string]*replayRequest // open replay requests by their id
	requestCount int                       // made so far
}

func (h *Hub) connectAgent(now time.Time, agentID string) *hubAgentLink {
	ha := &hubAgentLink{
		h: h, agentID: agentID, id: h.ids.ID(),
		sessions: make(map[*hubSession]*receiver), requests: make(map[string]*replayRequest),
	}
	ha.Link = newLink(ha, &h.refusedPayloads)
	if !validID(agentID) {
		ha.fail(now, ErrInvalidID)
		return ha
	}
	h.expire(now)
	h.mu.Lock()
	closed := h.closed
	var old *hubAgentLink
	if !closed {
		old = h.setAgent(agentID, ha)
	}
	h.mu.Unlock()
	if closed {
		ha.fail(now, ErrClosed)
	} else if old != nil {
		old.fail(now, ErrSuperseded)
	}
	return ha
}

// setAgent makes ha the agent's link, and returns the one before.
func (h *Hub) setAgent(agentID string, ha *hubAgentLink) *hubAgentLink {
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	old := h.agents[agentID]
	h.agents[agentID] = ha
	return old
}

// agent returns an agent's link, or nil if there is none, and whether the agent
// said hello on it.
func (h *Hub) agent(agentID string) (ha *hubAgentLink, greeted bool) {
	h.agentsMu.Lock()
	ha = h.agents[agentID]
	h.agentsMu.Unlock()
	if ha == nil {
		return nil, false
	}
	ha.mu.Lock()
	defer ha.mu.Unlock()
	return ha, ha.greeted
}

func (ha *hubAgentLink) detach(now time.Time) {
	ha.h.agentsMu.Lock()
	if ha.h.agents[ha.agentID] == ha {
		delete(ha.h.agents, ha.agentID)
	}
	ha.h.agentsMu.Unlock()
	ha.mu.Lock()
	sessions, fetches := ha.sessions, ha.requests
	ha.sessions, ha.requests = nil, nil
	ha.mu.Unlock()
	for s, o := range sessions {
		s.mu.Lock()
		if s.receiver == o {
			s.receiver = nil
			s.away = now
			s.wakeAllLocked() // who needs the agent, waits for it from now on
			s.watchClockLocked()
		}
		s.mu.Unlock()
	}
	for _, f := range fetches { // they are asked again on the next link
		s := f.c.s
		s.mu.Lock()
		if f.c.request == f {
			f.c.releaseLocked()
		}
		f.c.hv.ready(&f.c.task)
		s.mu.Unlock()
	}
}

func (ha *hubAgentLink) handle(ctx context.Context, now time.Time, p Payload) error {
	ha.h.expire(now)
	err := ha.dispatch(ctx, now, p)
	if err == errStale {
		return nil
	}
	return err
}

func (ha *hubAgentLink) dispatch(ctx context.Context, now time.Time, p Payload) error {
	switch p := p.(type) {
	case *HelloPayload:
		return asError(ha.hello(p))
	case *StatusPayload:
		if err := ha.current(now, p.Link); err != nil {
			return err
		}
		return ha.status(ctx, now, p)
	case *eventBatch:
		if err := ha.current(now, p.Link); err != nil {
			return err
		}
		return ha.batch(ctx, now, p)
	case *replayBatch:
		if err := ha.current(now, ha.id); err != nil {
			return err
		}
		return asError(ha.replayed(now, p))
	case *ErrorPayload:
		ha.refused(now, p)
		return nil
	}
	return &ProtocolError{Code: codeUnexpected, Message: "a hub takes no " + p.payloadType() + " from an agent"}
}

func (ha *hubAgentLink) hello(p *HelloPayload) *ProtocolError {
	if p.Role != roleAgent {
		return malformed("hello: an agent's link, but role %q", p.Role)
	}
	if p.V != version {
		return badVersion(p.V)
	}
	ha.mu.Lock()
	ha.greeted = true
	ha.mu.Unlock()
	ha.reply(&WelcomePayload{V: version, Link: ha.id, Window: ha.h.cfg.Window})
	return nil
}

func badVersion(v int) *ProtocolError {
	return &ProtocolError{Code: codeVersion, Message: "version " + strconv.Itoa(v) + ": this hub speaks 1"}
}

// current reports a frame of another link, or one before hello: it changes
// nothing, and at most once a second the peer is told (rule 3).
func (ha *hubAgentLink) current(now time.Time, link string) error {
	ha.mu.Lock()
	defer ha.mu.Unlock()
	if ha.greeted && link == ha.id {
		return nil
	}
	return staleLink(ha.h, ha.Link, now, &ha.staleAt)
}

// staleLink counts a stale frame, and says so to the peer at most once a second.
func staleLink(h *Hub, l *Link, now time.Time, last *time.Time) error {
	h.stalePayloads.Add(1)
	if last.IsZero() || now.Sub(*last) >= staleEvery {
		*last = now
		l.replyLocked(&ErrorPayload{Code: codeStaleLink, Message: "say hello", Retryable: true})
	}
	return errStale
}

// errStale ends the handling of a stale frame. Nobody sees it.
var errStale = errors.New("gvstream: stale frame")

// status opens the sessions it names, and answers each by an ack or an error
// (rules 5 and 9).
func (ha *hubAgentLink) status(ctx context.Context, now time.Time, p *StatusPayload) error {
	if len(p.Sessions) == 0 {
		ha.reply(&StatusPayload{Link: ha.id})
		return nil
	}
	var last *ProtocolError
	for _, e := range p.Sessions {
		if e.Epoch == "" {
			last = malformed("status: an agent's session without epoch")
			continue
		}
		err := ha.open(ctx, now, e)
		if refused := (*ProtocolError)(nil); errors.As(err, &refused) {
			if last != nil {
				ha.refuse(now, last)
			}
			last = refused
		} else if err != nil {
			return err
		}
	}
	return asError(last)
}

// refused deals with an agent's error: only answers to replay requests matter.
func (ha *hubAgentLink) refused(now time.Time, p *ErrorPayload) {
	ha.mu.Lock()
	f := ha.requests[p.RequestID]
	ha.mu.Unlock()
	if f == nil {
		return
	}
	s := f.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.c.request == f {
		f.refusedLocked(now, p.Retryable)
	}
}
