package gvstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// A hubAgentLink is the hub's half of one connection to an agent. It sorts what comes in:
// statuses open sessions (hub_open.go), batches go to the session's receiver (receiver.go),
// replay batches to the fetch that asked for them (hub_replay.go). What goes out comes from
// receivers and fetches, which are tasks on the link.
//
//	made       in Hub.agents; nothing counts but hello (rule 3)
//	greeted    after the first hello: everything counts, and replays are asked for here
//	dead       after detach: sessions, openings and requests are nil, and no more can be added
//
// A newer link of the agent makes it dead. Sessions outlive it, receivers don't, and of a
// fetch what has come.
type hubAgentLink struct {
	*Link
	h       *Hub
	agentID string
	id      string // of the link; the agent names it in its payloads

	alive     context.Context // of the callbacks of openings
	die       func()          // ends it
	heartbeat task

	// Link's lock protects the fields below.
	greeted   bool      // hello came
	greetedAt time.Time // when it came first
	heardAt   time.Time // when the last payload came, of whatever kind
	staleAt   time.Time // when stale_link was last said

	// What is in these maps is the session's to change: receiver.closeLocked and
	// fetch.dropLocked take it out, with the session's lock held as well. Nil once the link is
	// dead.
	sessions     map[*hubSession]*receiver // open on this link
	openings     map[string]*opening       // that are under way, by session
	requests     map[string]*fetch         // made on this link and not gone, by their id
	requestCount int                       // made so far, for the next id
}

// connectAgent makes an agent's link. It is entered under the hub's lock, so that either
// Close finds it in the table or it finds the hub closed. The older link fails after that: it
// goes through all its sessions, for which nobody else should wait.
func (h *Hub) connectAgent(now time.Time, agentID string) *hubAgentLink {
	ha := &hubAgentLink{
		h: h, agentID: agentID, id: h.ids.ID(),
		sessions: make(map[*hubSession]*receiver), openings: make(map[string]*opening),
		requests: make(map[string]*fetch),
	}
	ha.alive, ha.die = context.WithCancel(h.open)
	ha.Link = newLink(ha, &h.refusedPayloads)
	ha.heartbeat = task{Source: ha.nextHeartbeat, Control: true}
	if !validID(agentID) {
		ha.fail(now, invalidID(agentID))
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
		old.failWith(now, ErrSuperseded, superseded(""))
	}
	return ha
}

// superseded is a link's last payload when a newer one has taken its place. Without it, of two
// processes that use one id each would take its link for broken, connect again and supersede
// the other's, for ever.
func superseded(viewerID string) *ErrorPayload {
	return &ErrorPayload{Code: CodeSuperseded, ViewerID: viewerID, Message: "a newer link has taken over"}
}

// setAgent makes ha the agent's link, and returns the one before or nil.
func (h *Hub) setAgent(agentID string, ha *hubAgentLink) *hubAgentLink {
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	old := h.agents[agentID]
	h.agents[agentID] = ha
	return old
}

// agent returns an agent's link, or nil if there is none, and whether the agent
// said hello on it. A replay request can't be answered before that, since the agent does not
// know its link. It may be called with a session's lock held. The link may die at any time.
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

// times returns when the agent said hello on the link, and when it last said anything.
func (ha *hubAgentLink) times() (greeted, heard time.Time) {
	ha.mu.Lock()
	defer ha.mu.Unlock()
	return ha.greetedAt, ha.heardAt
}

// detach leaves the link's sessions without a receiver, and ends what was asked for on it: the
// cursors ask again on the next link, or give up after a while.
//
// The order matters. The link leaves the hub's table first, so that no cursor chooses it any
// more. Then its maps go, so that what chose it before finds it dead. Only then the sessions
// are locked, one at a time, since their locks come before the link's; meanwhile a newer link
// may have opened them, whose receiver stays.
func (ha *hubAgentLink) detach(now time.Time) {
	ha.h.agentsMu.Lock()
	if ha.h.agents[ha.agentID] == ha {
		delete(ha.h.agents, ha.agentID)
	}
	ha.h.agentsMu.Unlock()
	ha.die()
	ha.mu.Lock()
	sessions, requests := ha.sessions, ha.requests
	for _, o := range ha.openings {
		o.dropLocked()
	}
	ha.sessions, ha.openings, ha.requests = nil, nil, nil
	ha.mu.Unlock()
	for _, s := range slices.SortedFunc(maps.Keys(sessions), compareIDs) { // for runs that can be repeated
		rc := sessions[s]
		s.mu.Lock()
		if s.receiver == rc {
			s.receiver = nil
			s.away = now
			if len(s.refused) > 0 { // it waits for the agent, who may have no more to say of it
				s.dropIntakeLocked()
			}
			s.wakeAllLocked() // cursors that need the agent start to count their wait
			s.watchClockLocked()
		}
		s.mu.Unlock()
	}
	for _, id := range slices.Sorted(maps.Keys(requests)) {
		f := requests[id]
		f.s.mu.Lock()
		f.orphanLocked()
		f.s.mu.Unlock()
	}
}

// handle implements machine. A stale payload is no error to the caller.
func (ha *hubAgentLink) handle(ctx context.Context, now time.Time, p Payload) error {
	ha.h.expire(now)
	ha.mu.Lock()
	ha.heardAt = now
	ha.mu.Unlock()
	err := ha.dispatch(ctx, now, p)
	ha.h.total.makeRoom(0)
	if err == errStale {
		return nil
	}
	return err
}

// dispatch applies one payload. Those with a link id are checked against this link's, and a
// replay batch, which has none, only against the greeting: its request's id says where it
// belongs, and no two links use the same.
func (ha *hubAgentLink) dispatch(ctx context.Context, now time.Time, p Payload) error {
	switch p := p.(type) {
	case *HelloPayload:
		return asError(ha.hello(now, p))
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
	return &ProtocolError{Code: CodeUnexpected, Message: "a hub takes no " + p.payloadType() + " from an agent"}
}

// hello answers each hello by the same welcome: the one before may have been lost (rule 3).
func (ha *hubAgentLink) hello(now time.Time, p *HelloPayload) *ProtocolError {
	if p.V != version {
		return badVersion(p.V)
	}
	if p.Role != roleAgent {
		return wrongRole(p.Role, roleAgent)
	}
	ha.mu.Lock()
	first := !ha.greeted
	if first {
		ha.greeted, ha.greetedAt = true, now
		ha.scheduleLocked(&ha.heartbeat, now.Add(heartbeatEvery))
	}
	ha.mu.Unlock()
	ha.reply(&WelcomePayload{V: version, Link: ha.id, WindowEvents: ha.h.cfg.Window, WindowBytes: ha.h.cfg.WindowBytes})
	if first {
		ha.greet(now)
	}
	return nil
}

// nextHeartbeat gives a sign of life if nothing else was said for 15 s (rule 9). An agent
// that is there draws answers, so that mostly there is no need; one whose own writes are held
// up draws none.
func (ha *hubAgentLink) nextHeartbeat(now time.Time) Payload {
	ha.mu.Lock()
	defer ha.mu.Unlock()
	if next := ha.spokeAt.Add(heartbeatEvery); now.Before(next) {
		ha.scheduleLocked(&ha.heartbeat, next)
		return nil
	}
	return &StatusPayload{Link: ha.id}
}

// badVersion refuses a hello, and names the version that would do. The hub's link stays as it
// is: it is the peer's that fails (rule 17).
func badVersion(v int) *ProtocolError {
	return &ProtocolError{Code: CodeVersionUnsupported, Message: "version " + strconv.Itoa(v) + ": this hub speaks 1"}
}

// wrongRole refuses a hello on a connection that the hub takes for another role's, as when
// two ports were swapped. As with badVersion, the peer's link fails.
func wrongRole(role, want string) *ProtocolError {
	return &ProtocolError{Code: CodeWrongRole, Message: clip(fmt.Sprintf("role %q on a connection for %ss", shorten(role), want))}
}

// current returns errStale for a payload of another link, or one before hello: it changes
// nothing, and at most once a second the peer hears of it (rule 3).
func (ha *hubAgentLink) current(now time.Time, link string) error {
	ha.mu.Lock()
	defer ha.mu.Unlock()
	if ha.greeted && link == ha.id {
		return nil
	}
	return staleLink(ha.h, ha.Link, now, &ha.staleAt)
}

// staleLink counts a stale payload, and says so to the peer at most once a second: a pipe
// full of them would otherwise be answered by as many errors, each asking for a hello. last is
// when that was said; the lock of l protects it and is held.
func staleLink(h *Hub, l *Link, now time.Time, last *time.Time) error {
	h.stalePayloads.Add(1)
	if last.IsZero() || now.Sub(*last) >= staleEvery {
		*last = now
		l.replyLocked(&ErrorPayload{Code: CodeStaleLink, Message: "say hello", Retryable: true})
	}
	return errStale
}

// errStale ends the handling of a stale payload. handle hides it.
var errStale = errors.New("gvstream: stale frame")

// status opens the sessions it names, and answers each by an ack or an error
// (rules 5 and 9). One that is refused does not keep the others from being opened. Of the
// refusals the last is returned, which Link.handle answers, and the others are answered here.
// Any other error, such as that of a context that has ended, leaves the rest unopened: the
// agent says it again on its timer.
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

// refused deals with an agent's error. One that answers a replay request is the request's. One
// about an ack says that agent and hub don't mean the same session: what the hub has received
// and not accepted would wait for an agent that may have nothing more to say of it.
func (ha *hubAgentLink) refused(now time.Time, p *ErrorPayload) {
	if f := ha.request(p.RequestID); f != nil {
		f.refused(now, p.Retryable)
		return
	}
	if p.Code != CodeAckBeyondSent {
		return
	}
	if s := ha.lockOpen(p.SessionID, p.Epoch); s != nil {
		s.closeLocked(now)
		s.mu.Unlock()
	}
}
