package gvstream

import (
	"context"
	"errors"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/sched"
)

// This file opens a session on an agent's link (rules 2, 4 and 5). An entry of a status does
// so, and the first batch of a session of which nothing was sent before.
//
//	open, openByBatch   a session that is open already: its head and end are noted, the ack is owed
//	begin               any other: an opening is made of it, which goes through
//	  authorize           may this agent open the session? Nobody else waits for the answer
//	  checkLocked         owner, epoch, limits
//	  startLocked         an epoch that is new to the hub: where does it start?
//	  attachLocked        the session gets its receiver on this link
//
// AuthorizeAgent and Resume are called by workers, so that sessions open side by side and no link
// waits. Without these callbacks an opening is done at once.

// An opening is a session that is being opened on one link. The link has one at most for each
// session, whose entry a later status changes. Link's lock protects its fields, unless a comment
// says otherwise.
type opening struct {
	ha     *hubAgentLink
	ctx    context.Context // of its callbacks; set once
	entry  SessionStatus
	status bool   // a status opens it, and is answered at once
	pages  []page // of batches that arrived meanwhile, in order from 1
	bytes  int    // what they count against MaxUncommittedBytes

	dropped bool   // a batch arrived that was not kept
	id      string // the session's; set once

	// Only its one worker uses these.
	authorized bool
	owner      string             // the owner that AuthorizeAgent was told of, if authorized
	turns      bool               // it waited for the session, whose turn ends when it is done
	place      sched.Element[job] // the lock of the workers protects it
}

// Reasons why an opening goes on. Its run hides all of them.
var (
	errGone    = errors.New("gvstream: session removed")      // there may be another by now
	errOwner   = errors.New("gvstream: session has an owner") // it is not the one that was asked about
	errFull    = errors.New("gvstream: too many sessions")    // an ended one may make room
	errParked  = errors.New("gvstream: session is busy")      // it goes on when that is over
	errChanged = errors.New("gvstream: opened anew")          // in another epoch

	errForgotten = errors.New("gvstream: forgotten") // by its agent, meanwhile
)

// open opens a session that a status names on this link, and owes it an ack. That ack is the answer
// that the agent waits for before it sends batches (rule 5), so it goes out at once, whether or
// not anything is new.
func (ha *hubAgentLink) open(ctx context.Context, now time.Time, e SessionStatus) error {
	if e.Forgotten {
		return ha.forgotten(now, e)
	}
	if s := ha.lockOpen(e.SessionID, e.Epoch); s != nil {
		defer s.mu.Unlock()
		s.listed = now
		s.noteStatusLocked(now, e)
		return nil
	}
	_, err := ha.begin(ctx, now, &opening{entry: e, status: true}, nil)
	return err
}

// forgotten notes that the agent has forgotten a session, and answers by a status that says so: with
// what the hub has accepted, or nothing if it does not know the session in that epoch. Either way
// there is nothing that the agent would have to say again. An ack would not tell it that, since one
// may be on its way already.
func (ha *hubAgentLink) forgotten(now time.Time, e SessionStatus) error {
	ha.mu.Lock()
	if o := ha.openings[e.SessionID]; o != nil && o.entry.Epoch == e.Epoch {
		o.dropLocked()
		delete(ha.openings, e.SessionID)
	}
	ha.mu.Unlock()
	accepted := uint64(0)
	if s := ha.h.lookup(e.SessionID); s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.owner != "" && s.owner != ha.agentID {
			return ofEpoch(notYours(s.id), e.Epoch)
		}
		if s.epoch == e.Epoch {
			accepted = s.log.head
		}
		if s.epoch != "" && s.epoch <= e.Epoch { // an earlier life is over with that
			s.forgetByAgentLocked(now)
		}
	}
	ha.reply(&StatusPayload{Link: ha.id, Sessions: []SessionStatus{{
		SessionID: e.SessionID, Epoch: e.Epoch, HeadSeq: accepted, AckSeq: accepted, Forgotten: true,
	}}})
	return nil
}

// noteStatusLocked notes what the agent says of a session that is open, and owes it the ack.
func (s *hubSession) noteStatusLocked(now time.Time, e SessionStatus) {
	if !s.ended { // nothing follows the end
		s.agentHead = max(s.agentHead, e.HeadSeq)
		if e.Ended {
			s.endSeq = e.HeadSeq
			s.noteEndLocked()
			s.drainLocked(now)
		}
	}
	s.receiver.ackNowLocked()
	s.watchClockLocked()
}

// begin opens a session that is not open on this link: at once if no callback is asked, and
// otherwise by a worker, which answers then. One that is being opened gets the new entry: it says
// more than the one before, or names a greater epoch. If a batch caused it, and there is something
// to wait for, the opening holds that from its start, as hold says: a worker may be done at once.
func (ha *hubAgentLink) begin(ctx context.Context, now time.Time, o *opening, p *eventBatch) (held bool, err error) {
	h := ha.h
	o.ha, o.id = ha, o.entry.SessionID
	o.ctx = callContext{ha.alive, context.WithoutCancel(ctx)}
	atOnce := h.cfg.AuthorizeAgent == nil && h.cfg.Resume == nil
	ha.mu.Lock()
	switch before := ha.openings[o.entry.SessionID]; {
	case ha.openings == nil:
		ha.mu.Unlock()
		return false, ha.failure()
	case before != nil:
		before.mergeLocked(o)
		held = ha.holdLocked(p)
		ha.mu.Unlock()
		return held, nil
	case len(ha.openings)-maxStatus >= h.cfg.MaxAgentSessions: // as many as can become open, and one status of others
		ha.mu.Unlock()
		return false, ofEpoch(notNow(o.entry.SessionID, "%d sessions are being opened", len(ha.openings)), o.entry.Epoch)
	}
	ha.openings[o.entry.SessionID] = o
	if !atOnce {
		held = ha.holdLocked(p)
	}
	ha.mu.Unlock()
	if atOnce {
		return false, o.run(now)
	}
	h.openings.add(&o.place, o)
	return held, nil
}

// mergeLocked takes over what another entry says: more of the same epoch, or of a greater one. An older
// status may come late, so no number goes back.
func (o *opening) mergeLocked(other *opening) {
	e := other.entry
	switch {
	case e.Epoch < o.entry.Epoch:
		return
	case e.Epoch > o.entry.Epoch:
		o.dropLocked()
	default:
		e.HeadSeq = max(e.HeadSeq, o.entry.HeadSeq)
		e.AckSeq = max(e.AckSeq, o.entry.AckSeq)
		e.Ended = e.Ended || o.entry.Ended
	}
	o.entry, o.status = e, o.status || other.status
}

// hold keeps a batch of a session that is being opened, if it follows on what is held, and reports
// whether it is of such a session. What is not kept is asked for again when the session is open.
func (ha *hubAgentLink) hold(p *eventBatch) bool {
	ha.mu.Lock()
	defer ha.mu.Unlock()
	return ha.holdLocked(p)
}

// holdLocked is hold with the lock. Of no batch it returns false.
func (ha *hubAgentLink) holdLocked(p *eventBatch) bool {
	if p == nil {
		return false
	}
	o := ha.openings[p.SessionID]
	if o == nil || o.entry.Epoch != p.Epoch {
		return false
	}
	next := uint64(1)
	if n := len(o.pages); n > 0 {
		next = o.pages[n-1].last + 1
	}
	bytes := p.uncommitted()
	switch {
	case p.LastSeq < next: // a duplicate
	case p.FirstSeq == next && ha.h.reserve(ha.agentID, bytes):
		pg := p.page
		pg.keep()
		o.pages = append(o.pages, pg)
		o.bytes += bytes
		o.entry.HeadSeq = max(o.entry.HeadSeq, p.HeadSeq)
	default:
		o.dropped = true
	}
	return true
}

// dropLocked drops what an opening of the link holds.
func (o *opening) dropLocked() {
	o.ha.h.unreserve(o.ha.agentID, o.bytes)
	o.pages, o.bytes, o.dropped = nil, 0, false
}

// work is one turn of a worker.
func (o *opening) work(now time.Time) {
	if refused := (*ProtocolError)(nil); errors.As(o.run(now), &refused) {
		o.ha.refuse(now, refused)
	}
	o.ha.h.total.makeRoom(0)
}

// run opens the session, or returns why the agent can't have it. It returns nil as well if the
// opening has to wait until no callback runs for the session, and is given to a worker again then.
func (o *opening) run(now time.Time) (err error) {
	ha, h := o.ha, o.ha.h
	defer func() { // even after a callback's panic
		if err == errParked {
			err = nil
			return
		}
		o.endTurn(now)
		ha.mu.Lock()
		if ha.openings[o.entry.SessionID] == o {
			delete(ha.openings, o.entry.SessionID)
		}
		o.dropLocked()
		ha.mu.Unlock()
	}()
	for {
		if err := ha.failure(); err != nil {
			return err
		}
		ha.mu.Lock()
		e := o.entry
		ha.mu.Unlock()
		if err := o.authorize(e); err != nil {
			return err
		}
		s := h.getOrCreate(e.SessionID)
		switch err := o.open(now, s, e); err {
		case nil, errParked:
			return err
		case errOwner:
			o.authorized = false
		case errFull:
			if !h.dropEnded() {
				h.release(s)
				return ofEpoch(tooMany(e.SessionID, int(h.knownSessions.Load()), h.cfg.MaxSessions), e.Epoch)
			}
		case errForgotten:
			h.release(s)
			return nil
		case errGone, errChanged:
		default:
			h.release(s)
			return ofEpoch(err, e.Epoch)
		}
	}
}

// endTurn lets the session that the opening waited for go on.
func (o *opening) endTurn(now time.Time) {
	if !o.turns {
		return
	}
	o.turns = false
	if s := o.ha.h.lookup(o.id); s != nil {
		s.mu.Lock()
		s.turn = false
		s.drainLocked(now)
		s.mu.Unlock()
	}
}

// authorize asks the hub's caller whether the agent may open the session, once. Nobody waits for
// the answer, neither the session, of which any agent can cause the question, nor the link.
func (o *opening) authorize(e SessionStatus) error {
	ha, h := o.ha, o.ha.h
	if o.authorized || h.cfg.AuthorizeAgent == nil {
		return nil
	}
	o.owner = ""
	if s := h.lookup(e.SessionID); s != nil {
		s.mu.Lock()
		o.owner = s.owner
		s.mu.Unlock()
	}
	if err := h.cfg.AuthorizeAgent(o.ctx, ha.agentID, e.SessionID, o.owner); err != nil {
		return ofEpoch(notAllowed(e.SessionID, err), e.Epoch)
	}
	o.authorized = true
	return nil
}

// notAllowed is the answer to an agent whose session AuthorizeAgent has refused. The error is
// the caller's, and may say what is none of the agent's business.
func notAllowed(sessionID string, err error) error {
	var said *ProtocolError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return notNow(sessionID, "it can't be said yet whether the agent may open the session")
	case !errors.As(err, &said):
		return refusal(CodeForbidden, sessionID, "the agent may not open the session")
	case said.Retryable:
		return notNow(sessionID, "%s", said.Message)
	}
	return refusal(CodeForbidden, sessionID, "%s", said.Message)
}

// notNow is a refusal after which the agent says again later where the session stands.
func notNow(sessionID, format string, args ...any) *ProtocolError {
	err := refusal(CodeOverloaded, sessionID, format, args...)
	err.Retryable = true
	return err
}

// tooMany is the answer past a limit: there may be room later.
func tooMany(sessionID string, n, limit int) error {
	return notNow(sessionID, "too many sessions: %d of at most %d, all alive", n, limit)
}

func notYours(sessionID string) error {
	return refusal(CodeForbidden, sessionID, "the session belongs to another agent")
}

// ofEpoch makes a refusal say which life of the session it is about, if it names none. The
// agent may have renewed the session meanwhile, and a refusal without an epoch would stop the
// new life as well (rule 11).
func ofEpoch(err error, epoch string) error {
	if refused, ok := err.(*ProtocolError); ok && refused.Epoch == "" {
		refused.Epoch = epoch
	}
	return err
}

// open opens the session on the opening's link, unless something is in the way. The session must
// not change its epoch while a callback runs for it: what a running Commit stores is of the epoch
// before, and a store that is being written to must not be asked where it stands.
func (o *opening) open(now time.Time, s *hubSession, e SessionStatus) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := o.checkLocked(now, s, e); err != nil {
		return err
	}
	if e.Epoch != s.epoch && s.busy {
		o.turns = false
		s.waiting = append(s.waiting, o)
		return errParked
	}
	counts := !s.ended || e.Epoch != s.epoch
	if counts && !s.takePlaceLocked(o.ha.agentID) {
		return tooMany(s.id, o.ha.h.cfg.MaxAgentSessions, o.ha.h.cfg.MaxAgentSessions)
	}
	o.ha.mu.Lock()
	if o.entry.Epoch == e.Epoch {
		e = o.entry // a later status may have said more
	}
	o.ha.mu.Unlock()
	attached := false
	defer func() {
		if counts && !attached {
			s.leavePlaceLocked(o.ha.agentID)
		}
	}()
	if e.Epoch != s.epoch {
		if err := o.startLocked(now, s, e); err != nil {
			return err
		}
	}
	pages, dropped, err := o.attachLocked(now, s, counts)
	if err != nil {
		return err
	}
	attached = true
	if !s.ended {
		s.agentHead = max(s.agentHead, e.HeadSeq)
	}
	if o.status {
		s.noteStatusLocked(now, e)
	}
	for i := range pages {
		s.receiver.batchLocked(o.ctx, now, &pages[i], e.HeadSeq) // the end is the last of them
	}
	if dropped {
		s.receiver.acks.missing()
		s.receiver.wakeLocked(now)
	}
	s.watchClockLocked()
	return nil
}

// checkLocked refuses what the agent may not open on this link. A link that died while its
// payload waited opens nothing: it could take the session from a newer one. The owner is looked
// at before the epoch, so that a stranger does not learn of the session's epoch from a
// stale_epoch.
func (o *opening) checkLocked(now time.Time, s *hubSession, e SessionStatus) error {
	ha := o.ha
	if err := ha.failure(); err != nil {
		return err
	}
	ha.mu.Lock()
	forgotten := ha.openings[s.id] != o
	ha.mu.Unlock()
	switch {
	case s.gone:
		return errGone
	case forgotten:
		return errForgotten
	case s.owner == "" || s.owner == ha.agentID:
	case ha.h.cfg.AuthorizeAgent == nil:
		return notYours(s.id)
	case s.owner != o.owner:
		return errOwner
	}
	if err := s.checkEpochLocked(e.Epoch); err != nil {
		return err
	}
	// The hub's clock may be wrong as well, or not set yet, so the agent is to ask again.
	if at, ok := epoch.Time(e.Epoch); ok && e.Epoch != s.epoch && at.After(now.Add(epoch.MaxLead)) {
		return notNow(s.id, "the epoch is too far ahead of the hub's clock")
	}
	if s.epoch == "" && ha.h.knownSessions.Load() >= int64(ha.h.cfg.MaxSessions) {
		return errFull // before the store is asked about it
	}
	return nil
}

// checkEpochLocked refuses an epoch older than the session's (rule 2).
func (s *hubSession) checkEpochLocked(epoch string) error {
	if epoch >= s.epoch {
		return nil
	}
	err := refusal(CodeStaleEpoch, s.id, "the session has a later epoch")
	err.Epoch = s.epoch
	return err
}

// startLocked makes a session go on in an epoch that is new to the hub, from where the
// caller's store or the agent says (rule 5). With a store only its answer counts, even if that is
// zero: what some hub has acknowledged need not be in it. Without one the agent's number does,
// since to start lower would ask for events that it has freed. If the store does not answer, the
// agent has to try again: any number made up here would lose events or repeat them.
//
// The lock is free while Resume runs, so all that was checked is checked once more. A session
// without an epoch is counted here: the count goes up first and is looked at then, since other
// sessions, with locks of their own, may be taking the last places at the same time.
func (o *opening) startLocked(now time.Time, s *hubSession, e SessionStatus) error {
	h, start := o.ha.h, e.AckSeq
	if h.cfg.Resume != nil {
		err := s.callLocked(func() (err error) {
			start, err = h.cfg.Resume(o.ctx, s.id, e.Epoch)
			return err
		})
		s.drainLocked(now) // what came of the epoch before, if the session stays in it
		if err := o.checkLocked(now, s, e); err != nil {
			return err
		}
		if err != nil || start > MaxSeq {
			return notNow(s.id, "the hub's store does not answer")
		}
	}
	if s.epoch == "" && h.knownSessions.Add(1) > int64(h.cfg.MaxSessions) {
		h.knownSessions.Add(-1) // others were faster
		return errFull
	}
	s.beginEpochLocked(now, e.Epoch, start)
	return nil
}

// takePlaceLocked counts one more session of an agent, unless the session counts already, and
// reports whether the agent's limit allows it.
func (s *hubSession) takePlaceLocked(agentID string) bool {
	h := s.h
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	if h.owned[agentID] >= h.cfg.MaxAgentSessions && !(s.counted && s.owner == agentID) {
		return false
	}
	h.owned[agentID]++
	return true
}

// leavePlaceLocked takes back what takePlaceLocked counted.
func (s *hubSession) leavePlaceLocked(agentID string) {
	h := s.h
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	if h.owned[agentID]--; h.owned[agentID] == 0 {
		delete(h.owned, agentID)
	}
}

// attachLocked opens the session on this link, and returns the batches that came meanwhile, and
// whether others were dropped. If the link has died, it has no map any more, so detach would not find a receiver that was put into it
// now: such a session, which may have been begun just now, is away from its start, or it would
// never expire.
//
// If another link has the session, the agent's older one or one of its former owner, it loses
// it: what still comes there is of a session that is not open. All cursors look again, since
// there is an agent now that can replay older events.
func (o *opening) attachLocked(now time.Time, s *hubSession, counts bool) (pages []page, dropped bool, err error) {
	ha := o.ha
	rc := &receiver{s: s, ha: ha, acks: ackState{
		delay: ackDelay, window: window{events: ha.h.cfg.Window, bytes: ha.h.cfg.WindowBytes},
	}}
	rc.task = task{Source: rc.next, Control: true}
	ha.mu.Lock()
	dead, changed := ha.sessions == nil, o.entry.Epoch != s.epoch
	forgotten := ha.openings[s.id] != o
	pages, dropped = o.pages, o.dropped
	if !dead && !changed && !forgotten {
		ha.sessions[s] = rc
		o.dropLocked()
		delete(ha.openings, s.id)
	}
	ha.mu.Unlock()
	if dead || changed || forgotten {
		if s.receiver == nil {
			s.away = now
			s.watchClockLocked()
		}
		switch {
		case dead:
			return nil, false, ha.failure()
		case changed:
			return nil, false, errChanged
		}
		if s.owner == "" { // it began just now: nobody's, and never alive
			s.listed, s.forgotten = now, true
			s.overLocked()
		}
		return nil, false, errForgotten
	}
	if s.receiver != nil {
		s.receiver.closeLocked()
	}
	s.listed = now
	s.setOwnerLocked(ha.agentID)
	s.counted = counts
	if s.forgotten {
		s.aliveLocked()
	}
	s.receiver, s.ctx = rc, context.WithoutCancel(o.ctx)
	s.wakeAllLocked()
	return pages, dropped, nil
}
