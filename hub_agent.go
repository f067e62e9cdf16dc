package gvstream

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// A hubAgent is the hub's half of one connection to an agent.
type hubAgent struct {
	*Link
	h       *Hub
	agentID string
	id      string // of the link

	// Link's lock protects the fields below.
	greeted  bool      // hello came
	staleAt  time.Time // when stale_link was last said
	sessions map[*hubSession]*opening
	fetches  map[string]*fetch // open replay requests by their id
	requests int               // made so far
}

func (h *Hub) connectAgent(now time.Time, agentID string) *hubAgent {
	ha := &hubAgent{
		h: h, agentID: agentID, id: h.mint.ID(),
		sessions: make(map[*hubSession]*opening), fetches: make(map[string]*fetch),
	}
	ha.Link = newLink(ha, &h.refusedPayloads)
	if !validID(agentID) {
		ha.fail(now, ErrInvalidID)
		return ha
	}
	h.expire(now)
	h.mu.Lock()
	closed := h.closed
	var old *hubAgent
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
func (h *Hub) setAgent(agentID string, ha *hubAgent) *hubAgent {
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	old := h.agents[agentID]
	h.agents[agentID] = ha
	return old
}

// agent returns an agent's link, or nil if there is none, and whether the agent
// said hello on it.
func (h *Hub) agent(agentID string) (ha *hubAgent, greeted bool) {
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

func (ha *hubAgent) detach(now time.Time) {
	ha.h.agentsMu.Lock()
	if ha.h.agents[ha.agentID] == ha {
		delete(ha.h.agents, ha.agentID)
	}
	ha.h.agentsMu.Unlock()
	ha.mu.Lock()
	sessions, fetches := ha.sessions, ha.fetches
	ha.sessions, ha.fetches = nil, nil
	ha.mu.Unlock()
	for s, o := range sessions {
		s.mu.Lock()
		if s.on == o {
			s.on = nil
			s.away = now
			s.wakeAll() // who needs the agent, waits for it from now on
			s.watchClock()
		}
		s.mu.Unlock()
	}
	for _, f := range fetches { // they are asked again on the next link
		s := f.c.s
		s.mu.Lock()
		if f.c.fetch == f {
			f.c.release()
		}
		f.c.hv.ready(&f.c.task)
		s.mu.Unlock()
	}
}

func (ha *hubAgent) handle(ctx context.Context, now time.Time, p Payload) error {
	ha.h.expire(now)
	err := ha.dispatch(ctx, now, p)
	if err == errStale {
		return nil
	}
	return err
}

func (ha *hubAgent) dispatch(ctx context.Context, now time.Time, p Payload) error {
	switch p := p.(type) {
	case *HelloPayload:
		return plain(ha.hello(p))
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
		return plain(ha.replayed(now, p))
	case *ErrorPayload:
		ha.refused(now, p)
		return nil
	}
	return &ProtocolError{Code: codeUnexpected, Message: "a hub takes no " + p.payloadType() + " from an agent"}
}

// plain makes an error of a *ProtocolError that may be nil.
func plain(err *ProtocolError) error {
	if err == nil {
		return nil
	}
	return err
}

func (ha *hubAgent) hello(p *HelloPayload) *ProtocolError {
	if p.Role != roleAgent {
		return malformed("hello: an agent's link, but role %q", p.Role)
	}
	if p.V != version {
		return badVersion(p.V)
	}
	ha.mu.Lock()
	ha.greeted = true
	ha.mu.Unlock()
	ha.answer(&WelcomePayload{V: version, Link: ha.id, Window: ha.h.cfg.Window})
	return nil
}

func badVersion(v int) *ProtocolError {
	return &ProtocolError{Code: codeVersion, Message: "version " + strconv.Itoa(v) + ": this hub speaks 1"}
}

// current reports a frame of another link, or one before hello: it changes
// nothing, and at most once a second the peer is told (rule 3).
func (ha *hubAgent) current(now time.Time, link string) error {
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
	if last.IsZero() || now.Sub(*last) >= time.Second {
		*last = now
		l.answerLocked(&ErrorPayload{Code: codeStaleLink, Message: "say hello", Retryable: true})
	}
	return errStale
}

// errStale ends the handling of a stale frame. Nobody sees it.
var errStale = errors.New("gvstream: stale frame")

// status opens the sessions it names, and answers each by an ack or an error
// (rules 5 and 9).
func (ha *hubAgent) status(ctx context.Context, now time.Time, p *StatusPayload) error {
	if len(p.Sessions) == 0 {
		ha.answer(&StatusPayload{Link: ha.id})
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
	return plain(last)
}

// open opens one session on this link, and has it acknowledged.
func (ha *hubAgent) open(ctx context.Context, now time.Time, e SessionStatus) error {
	s, err := ha.enter(ctx, now, e)
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	if !s.ended { // nothing follows the end
		s.head = max(s.head, e.HeadSeq)
		if e.Ended {
			s.endSeq = e.HeadSeq
			s.noteEnd()
		}
	}
	s.on.ackNow()
	s.watchClock()
	return nil
}

// enter opens a session on this link, which is made if the hub has none of that id, and
// returns it locked.
func (ha *hubAgent) enter(ctx context.Context, now time.Time, e SessionStatus) (*hubSession, error) {
	for {
		s := ha.h.hold(e.SessionID)
		if err := s.lock(ctx, ha); err != nil {
			return nil, err
		}
		switch err := ha.admit(ctx, now, s, e); err {
		case nil:
			return s, nil
		case errGone: // the next one is another
		default:
			ha.h.release(s)
			return nil, ofEpoch(err, e.Epoch)
		}
	}
}

// errGone says that the session was removed from the hub before it could be opened.
// Nobody sees it.
var errGone = errors.New("gvstream: session removed")

// ofEpoch has a refusal say which life of the session it is about, if it names no
// other: the agent may have renewed it meanwhile.
func ofEpoch(err error, epoch string) error {
	if refused, ok := err.(*ProtocolError); ok && refused.Epoch == "" {
		refused.Epoch = epoch
	}
	return err
}

// admit opens a locked session on this link, if the agent may have it. The lock is free
// while a callback runs. It is free in the end as well, unless the session is open: also
// after a callback's panic.
func (ha *hubAgent) admit(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	open := false
	defer func() {
		if !open {
			s.mu.Unlock()
		}
	}()
	if err := ha.mayOpen(ctx, now, s, e); err != nil {
		return err
	}
	if e.Epoch != s.epoch {
		if err := ha.begin(ctx, now, s, e); err != nil {
			return err
		}
	}
	if err := ha.attach(now, s); err != nil {
		return err
	}
	open = true
	return nil
}

// mayOpen refuses what the agent may not open on this link.
func (ha *hubAgent) mayOpen(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	if err := ha.failure(); err != nil {
		return err
	}
	if err := ha.claim(ctx, s); err != nil {
		return err
	}
	if s.gone {
		return errGone
	}
	if err := s.staleEpoch(e.Epoch); err != nil {
		return err
	}
	if at, ok := epoch.Time(e.Epoch); ok && e.Epoch != s.epoch && at.After(now.Add(epoch.MaxLead)) {
		return refusal(codeForbidden, s.id, "the epoch is too far ahead of the hub's clock")
	}
	return ha.full(s)
}

// begin has a session go on in an epoch that is new to the hub, from where its store or
// its agent says (rule 5).
func (ha *hubAgent) begin(ctx context.Context, now time.Time, s *hubSession, e SessionStatus) error {
	start, err := ha.start(ctx, s, e)
	if err != nil {
		return err
	}
	if err := ha.failure(); err != nil {
		return err
	}
	if s.epoch == "" && ha.h.known.Add(1) > int64(ha.h.cfg.MaxSessions) {
		ha.h.known.Add(-1) // others were faster
		return overloaded(s.id)
	}
	s.adopt(now, e.Epoch, start)
	return nil
}

// staleEpoch refuses an epoch older than the session's (rule 2).
func (s *hubSession) staleEpoch(epoch string) error {
	if epoch >= s.epoch {
		return nil
	}
	err := refusal(codeStaleEpoch, s.id, "the session has a later epoch")
	err.Epoch = s.epoch
	return err
}

// claim refuses a session of another agent's, unless this one may take it over (rule 4).
// The lock is free meanwhile, and no callback runs when it is taken again.
func (ha *hubAgent) claim(ctx context.Context, s *hubSession) error {
	if s.owner == "" || s.owner == ha.agentID {
		return nil
	}
	if ha.h.cfg.Claim == nil {
		return notYours(s.id)
	}
	owner := s.owner
	allowed := ha.askClaim(ctx, s)
	if err := s.waitIdleLocked(ctx, ha); err != nil {
		return err
	}
	if !allowed || s.owner != owner && s.owner != "" {
		return notYours(s.id)
	}
	return nil
}

// askClaim has the caller say whether the agent may take the session over. The lock is
// free meanwhile, and not as in call: the owner's batches don't wait for it.
func (ha *hubAgent) askClaim(ctx context.Context, s *hubSession) bool {
	owner := s.owner
	s.mu.Unlock()
	defer s.mu.Lock()
	return ha.h.cfg.Claim(ctx, ha.agentID, s.id, owner)
}

func notYours(sessionID string) error {
	return refusal(codeForbidden, sessionID, "the session belongs to another agent")
}

// full refuses a session beyond the limits.
func (ha *hubAgent) full(s *hubSession) error {
	if s.counted && s.owner == ha.agentID {
		return nil
	}
	ha.h.agentsMu.Lock()
	n := ha.h.owned[ha.agentID]
	ha.h.agentsMu.Unlock()
	if n < ha.h.cfg.MaxAgentSessions && (s.epoch != "" || ha.h.known.Load() < int64(ha.h.cfg.MaxSessions)) {
		return nil
	}
	return overloaded(s.id)
}

func overloaded(sessionID string) error {
	err := refusal(codeOverloaded, sessionID, "too many sessions")
	err.Retryable = true
	return err
}

// start is the number up to which an epoch that is new to the hub counts as
// accepted.
func (ha *hubAgent) start(ctx context.Context, s *hubSession, e SessionStatus) (uint64, error) {
	if ha.h.cfg.Resume == nil {
		return e.AckSeq, nil
	}
	var start uint64
	err := s.call(ctx, ha, func(ctx context.Context) (err error) {
		start, err = ha.h.cfg.Resume(ctx, s.id, e.Epoch)
		return err
	})
	if err != nil && ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil || start > MaxSeq {
		refused := refusal(codeOverloaded, s.id, "the hub's store does not answer")
		refused.Retryable = true
		return 0, refused
	}
	return start, nil
}

// attach opens the session on this link, unless that died meanwhile.
func (ha *hubAgent) attach(now time.Time, s *hubSession) error {
	s.listed = now
	if s.on != nil && s.on.ha == ha {
		return nil
	}
	o := &opening{s: s, ha: ha}
	o.task = task{Source: o.take, Control: true}
	ha.mu.Lock()
	dead := ha.sessions == nil
	if !dead {
		ha.sessions[s] = o
	}
	ha.mu.Unlock()
	if dead {
		if s.on == nil {
			s.away = now
			s.watchClock()
		}
		return ha.failure()
	}
	if s.on != nil {
		s.on.close()
	}
	s.belongTo(ha.agentID)
	s.on = o
	s.wakeAll()
	return nil
}

// batch accepts what is new in a batch (rules 7 and 8).
func (ha *hubAgent) batch(ctx context.Context, now time.Time, p *eventBatch) error {
	if bad := (*eventError)(nil); errors.As(p.load(), &bad) {
		refused := refusal(codeEventRejected, p.SessionID, "%v", bad)
		refused.Epoch, refused.Seq = p.Epoch, bad.seq
		return refused
	}
	s, err := ha.find(ctx, now, p)
	if err != nil {
		return err
	}
	defer s.leave()
	o, accepted := s.on, s.log.head
	if s.ended && p.LastSeq > accepted {
		return ofEpoch(refusal(codeEnded, s.id, "the session ended at %d", accepted), s.epoch)
	}
	s.head = max(s.head, p.HeadSeq)
	s.listed = now
	switch {
	case p.FirstSeq > accepted+1:
		o.nack(now)
		return nil
	case p.LastSeq <= accepted:
		o.ackNow() // a duplicate: its ack may have been lost
		return nil
	}
	p.clip(accepted)
	return ha.accept(ctx, now, s, &p.page)
}

// accept has the session accept a page, up to the first event that is too large, once
// it is stored (rule 8).
func (ha *hubAgent) accept(ctx context.Context, now time.Time, s *hubSession, pg *page) error {
	o, epoch := s.on, s.epoch // when Commit is done, they may be others
	tooLarge := ha.fit(s, pg)
	if pg.last >= pg.first {
		pg.pack()
		if err := ha.commit(ctx, s, epoch, pg); err != nil {
			return err
		}
		if s.epoch != epoch {
			return nil // forgotten while Commit ran
		}
		s.accept(pg)
		o.accepted(now, len(pg.slots))
		s.watchClock()
	}
	if tooLarge != nil {
		o.ackNow()
	}
	return tooLarge
}

// leave unlocks the session, and lets it go if it was forgotten while Commit ran.
func (s *hubSession) leave() {
	forgotten := s.epoch == ""
	s.mu.Unlock()
	if forgotten {
		s.h.release(s)
	}
}

// find returns the session of a batch, open on this link and locked.
func (ha *hubAgent) find(ctx context.Context, now time.Time, p *eventBatch) (*hubSession, error) {
	if s := ha.h.lookup(p.SessionID); s != nil {
		if err := s.lock(ctx, ha); err != nil {
			return nil, err
		}
		if s.on != nil && s.on.ha == ha && s.epoch == p.Epoch {
			return s, nil
		}
		err := ha.barred(s, p.Epoch)
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	if p.FirstSeq != 1 {
		err := refusal(codeUnknownSession, p.SessionID, "not open on this link")
		err.Epoch = p.Epoch
		return nil, err
	}
	return ha.enter(ctx, now, SessionStatus{SessionID: p.SessionID, Epoch: p.Epoch, HeadSeq: p.HeadSeq})
}

// barred refuses a session that the agent can't open in that epoch, whatever its caller
// says.
func (ha *hubAgent) barred(s *hubSession, epoch string) error {
	switch {
	case s.owner == "" || s.owner == ha.agentID:
		return s.staleEpoch(epoch)
	case ha.h.cfg.Claim == nil:
		return ofEpoch(notYours(s.id), epoch)
	}
	return nil
}

// fit cuts the page before the first event that is too large, and returns the
// refusal of that one (rule 11).
func (ha *hubAgent) fit(s *hubSession, p *page) error {
	i := p.larger(ha.h.cfg.MaxEventBytes)
	if i < 0 {
		return nil
	}
	err := refusal(codeEventTooLarge, s.id, "an event has at most %d bytes", ha.h.cfg.MaxEventBytes)
	err.Epoch, err.Seq = s.epoch, p.slots[i].to
	p.cut(err.Seq - 1)
	return err
}

// commit has the caller store the page. The lock is free meanwhile.
func (ha *hubAgent) commit(ctx context.Context, s *hubSession, epoch string, p *page) error {
	if ha.h.cfg.Commit == nil {
		return nil
	}
	err := s.call(ctx, ha, func(ctx context.Context) error {
		return ha.h.cfg.Commit(ctx, s.id, epoch, p.items(s.id, epoch))
	})
	var refused *ProtocolError
	if errors.As(err, &refused) && refused.Code == codeEventRejected && p.has(refused.Seq) {
		out := refusal(codeEventRejected, s.id, "%s", refused.Message)
		out.Epoch, out.Seq = epoch, refused.Seq
		return out
	}
	if err != nil {
		return &commitError{err}
	}
	return nil
}

// A commitError hides that a Commit callback may have returned a *ProtocolError
// of its own making, which is none of the peer's.
type commitError struct{ err error }

func (e *commitError) Error() string        { return "gvstream: commit: " + e.err.Error() }
func (e *commitError) Is(target error) bool { return errors.Is(e.err, target) }

func (e *commitError) As(target any) bool {
	_, hidden := target.(**ProtocolError)
	return !hidden && errors.As(e.err, target)
}

// refused deals with an agent's error: only answers to replay requests matter.
func (ha *hubAgent) refused(now time.Time, p *ErrorPayload) {
	ha.mu.Lock()
	f := ha.fetches[p.RequestID]
	ha.mu.Unlock()
	if f == nil {
		return
	}
	s := f.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.c.fetch == f {
		f.refused(now, p.Retryable)
	}
}

// An opening is one session on one link of its agent: what the hub owes it.
type opening struct {
	task
	s    *hubSession
	ha   *hubAgent
	acks ackState
}

func (o *opening) close() {
	o.ha.forget(&o.task)
	o.ha.mu.Lock()
	delete(o.ha.sessions, o.s)
	o.ha.mu.Unlock()
}

// ackNow owes an ack at once: a status, or a duplicate, is answered by one.
func (o *opening) ackNow() {
	o.acks.now = true
	o.ha.ready(&o.task)
}

// nack asks for what did not arrive.
func (o *opening) nack(now time.Time) {
	o.acks.hole(now, o.s.log.head)
	o.wake(now)
}

// accepted owes an ack for new events.
func (o *opening) accepted(now time.Time, events int) {
	o.acks.accept(now, events, o.ha.h.cfg.Window, o.s.ended)
	o.wake(now)
}

// wake has take called when the ack is due.
func (o *opening) wake(now time.Time) {
	if due, next := o.acks.due(now); due {
		o.ha.ready(&o.task)
	} else if !next.IsZero() {
		o.ha.schedule(&o.task, next)
	}
}

func (o *opening) take(now time.Time) Payload {
	s := o.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on != o {
		return nil
	}
	if due, next := o.acks.due(now); !due {
		if !next.IsZero() {
			o.ha.schedule(&o.task, next)
		}
		return nil
	}
	p := &AckBatchPayload{SessionID: s.id, Epoch: s.epoch, Link: o.ha.id, UpToSeq: s.log.head, Nack: o.acks.sent()}
	return p
}
