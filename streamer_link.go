package gvstream

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// A streamerLink is a Streamer's half of one connection to the hub: the machine of its
// Link, which calls handle for what arrives and the tasks for what is to be sent. It hands
// the payloads of a session to the session's sender, and makes hellos and statuses itself.
//
//	state      id       what is sent             and then
//	greeting   empty    hello, on the timer      open, by the welcome
//	open       set      everything               open under another id, by a later welcome
//	                                             that names it: all senders are new (rule 3)
//	dead       either   at most an error         nothing; detach takes the senders off
//
// A link dies when its connection is closed, when a newer one is made, on a fatal error,
// or when nothing moves on it. The sessions outlive it.
type streamerLink struct {
	*Link
	st *Streamer

	hello             *handshake  // awaits the welcome; see there
	status, heartbeat task        // of all sessions; each sender is a task of its own
	hasUnchecked      atomic.Bool // something was sent that recheckData has not looked at

	// Link's lock protects the fields below. A session's lock is taken before it, so a list
	// is taken out under it, and its senders are looked at without.
	id          string          // the hub's name for the link; empty before the welcome
	window      window          // from the welcome, as is id
	heartbeatAt time.Time       // when to give the next sign of life
	toAnnounce  []*sender       // to be named in the next status: those with inToAnnounce
	toForget    []SessionStatus // to be named in the next status as forgotten
	unacked     []*sender       // that may have something unacknowledged: those with inUnacked
}

// Connect makes the link of a new connection to the hub, and supersedes the one
// before, whose calls return ErrSuperseded from then on. Nothing is sent until the
// link is run or asked for payloads. It does not block. On a closed Streamer the link
// is dead: its calls return ErrClosed.
func (st *Streamer) Connect() *Link { return st.connect(time.Now()).Link }

// connect is Connect at a given time. The new link takes the older one's place before
// that fails: its detach then leaves the Streamer's link alone. To fail it, no lock may be
// held, since detach takes the Streamer's.
func (st *Streamer) connect(now time.Time) *streamerLink {
	sl := &streamerLink{st: st}
	sl.Link = newLink(sl, &st.refusedPayloads)
	sl.hello = newHandshake(sl.Link, roleAgent)
	sl.status = task{Source: sl.nextStatus, Control: true}
	sl.heartbeat = task{Source: sl.nextHeartbeat, Control: true}
	st.mu.Lock()
	old, shut := st.link, st.shut.Load()
	if !shut {
		st.link = sl
	}
	st.mu.Unlock()
	if shut {
		sl.fail(now, ErrClosed)
		return sl
	}
	if old != nil {
		old.fail(now, ErrSuperseded)
	}
	sl.hello.start()
	return sl
}

// welcomed reports whether the hub has named the link.
func (sl *streamerLink) welcomed() bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.id != ""
}

// lose implements author.
func (sl *streamerLink) lose(sessionID, epoch string, seq uint64) {
	s := sl.st.lookup(sessionID)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if sd := s.sender; sd != nil && sd.link == sl && s.epoch == epoch {
		sd.loseLocked(seq, seq)
	}
}

// detach takes the sessions off the dead link, and with them their senders. A session may
// be on a newer link already, which stays.
func (sl *streamerLink) detach(time.Time) {
	sl.st.mu.Lock()
	defer sl.st.mu.Unlock()
	if sl.st.link == sl {
		sl.st.link = nil
	}
	for _, s := range sl.st.sessions {
		s.mu.Lock()
		if s.sender != nil && s.sender.link == sl {
			s.sender = nil
		}
		s.mu.Unlock()
	}
}

// nextStatus names the listed sessions, at most 256 a payload (rules 5 and 9), and before all
// others those that are forgotten, which then don't count against the hub's limits. The list is
// read without its lock, so that a session may be stopped or off the link meanwhile; those
// are left out, and if none is left of a payload, the next ones are tried.
func (sl *streamerLink) nextStatus(now time.Time) Payload {
	for {
		sl.mu.Lock()
		f := min(len(sl.toForget), maxStatus)
		forget := sl.toForget[:f:f]
		if sl.toForget = sl.toForget[f:]; len(sl.toForget) == 0 {
			sl.toForget = nil // an empty slice would keep the array alive
		}
		n := min(len(sl.toAnnounce), maxStatus-f)
		batch := sl.toAnnounce[:n:n]
		if sl.toAnnounce = sl.toAnnounce[n:]; len(sl.toAnnounce) == 0 {
			sl.toAnnounce = nil
		}
		p := &StatusPayload{Link: sl.id, More: len(sl.toAnnounce)+len(sl.toForget) > 0}
		sl.mu.Unlock()
		p.Sessions = append(p.Sessions, forget...)
		for _, sd := range batch {
			if s, ok := sd.takeStatus(now); ok {
				p.Sessions = append(p.Sessions, s)
			}
		}
		if n+f == 0 {
			return nil
		}
		if len(p.Sessions) > 0 {
			return p
		}
	}
}

// nextHeartbeat gives a sign of life: a status of the sessions that have something
// unacknowledged, which it leaves to the status task, or an empty one (rule 9). It begins with
// the welcome. A heartbeat that is asked too early only schedules itself again.
func (sl *streamerLink) nextHeartbeat(now time.Time) Payload {
	sl.mu.Lock()
	id, due := sl.id, !now.Before(sl.heartbeatAt)
	if due {
		sl.heartbeatAt = now.Add(heartbeatEvery)
	}
	sl.scheduleLocked(&sl.heartbeat, sl.heartbeatAt)
	sl.mu.Unlock()
	if !due {
		return nil
	}
	sl.st.expire(now)
	forgotten := sl.repeatForgotten()
	if sl.announceUnacked() || forgotten {
		return nil
	}
	return &StatusPayload{Link: id}
}

// tellForgotten lists a session for the next status as forgotten. Before the welcome, that will do
// so. The Streamer's lock is held.
func (sl *streamerLink) tellForgotten(e SessionStatus) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.id != "" {
		sl.toForget = append(sl.toForget, e)
		sl.readyLocked(&sl.status)
	}
}

// repeatForgotten lists all sessions for the next status of which the hub has not said that it knows
// they are forgotten, and reports whether there are any: a status may have been lost.
func (sl *streamerLink) repeatForgotten() bool {
	all := sl.st.allForgotten()
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.toForget = all; len(all) > 0 {
		sl.readyLocked(&sl.status)
	}
	return len(all) > 0
}

// announceUnacked lists the sessions that have something unacknowledged for the next
// status, and reports whether there are any, besides those that wait because the hub has no room
// for them. It looks only at those that have been asked
// for a batch since they were last found idle: idle sessions cost it nothing, however many
// there are. While it holds the list, senders may append to a new one; at the end the two
// are joined.
func (sl *streamerLink) announceUnacked() bool {
	sl.mu.Lock()
	as := sl.unacked
	sl.unacked = nil
	sl.mu.Unlock()
	any := false
	as = slices.DeleteFunc(as, func(sd *sender) bool {
		s := sd.s
		s.mu.Lock()
		defer s.mu.Unlock()
		if sd.inUnacked = s.sender == sd && s.unsettledLocked() && s.stopped == nil; sd.inUnacked && sd.resume.IsZero() {
			sd.announceLocked()
			any = true
		}
		return !sd.inUnacked
	})
	sl.mu.Lock()
	sl.unacked = append(as, sl.unacked...)
	sl.mu.Unlock()
	return any
}

// handle applies a payload from the hub. It never waits: acks have to be read while batches
// are written, or the two sides could wait for each other. A status is a sign of life, and
// says of which forgotten sessions the hub knows.
func (sl *streamerLink) handle(_ context.Context, now time.Time, p Payload) error {
	var err *ProtocolError
	switch p := p.(type) {
	case *WelcomePayload:
		err = sl.welcome(now, p)
	case *StatusPayload:
		if sl.isCurrent(p.Link) {
			for _, e := range p.Sessions {
				if e.Forgotten {
					sl.st.heardForgotten(e.SessionID, e.Epoch)
				}
			}
		}
	case *AckBatchPayload:
		if sl.isCurrent(p.Link) {
			err = sl.acks(now, p)
		}
	case *ReplayRequestPayload:
		if sl.isCurrent("") {
			err = sl.replay(p)
		}
	case *ErrorPayload:
		err = sl.refused(now, p)
	default:
		err = &ProtocolError{Code: CodeUnexpected, Message: "an agent takes no " + p.payloadType()}
	}
	return asError(err)
}

// isCurrent reports whether a payload belongs to this link: one of an earlier link id, or one
// that comes before the welcome, is stale (rule 3). An empty id stands for a payload that
// carries none.
func (sl *streamerLink) isCurrent(link string) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.id == "" || link != "" && link != sl.id {
		sl.st.stalePayloads.Add(1)
		return false
	}
	return true
}

// welcome opens the link: every session is attached and announced (rules 3 and 5). Only a
// welcome that was asked for is obeyed, and one that repeats the link's id changes nothing:
// to begin afresh on either would send everything again. Another id means that the hub
// knows nothing of what was sent under the first, so all tasks and lists of that go.
//
// The Streamer's lock is held throughout, so that a session created or renewed meanwhile
// waits, and is then attached by its creator: see create.
func (sl *streamerLink) welcome(now time.Time, p *WelcomePayload) *ProtocolError {
	if p.V != version {
		return &ProtocolError{Code: CodeVersionUnsupported, Message: "welcome of another version", fatal: true}
	}
	sl.st.mu.Lock()
	defer sl.st.mu.Unlock()
	sl.mu.Lock()
	if sl.st.link != sl || !sl.hello.acceptWelcomeLocked() {
		sl.mu.Unlock()
		sl.st.stalePayloads.Add(1)
		return nil
	}
	if sl.id == p.Link { // the same welcome again: nothing was lost
		sl.mu.Unlock()
		return nil
	}
	sl.forgetAllLocked() // nothing goes on under another link id
	sl.id, sl.window = p.Link, newWindow(p.WindowEvents, p.WindowBytes)
	sl.heartbeatAt = now.Add(heartbeatEvery)
	sl.scheduleLocked(&sl.heartbeat, sl.heartbeatAt)
	sl.toAnnounce, sl.toForget, sl.unacked = nil, slices.Collect(maps.Values(sl.st.forgotten)), nil
	slices.SortFunc(sl.toForget, func(a, b SessionStatus) int { return cmp.Compare(a.SessionID, b.SessionID) })
	if len(sl.toForget) > 0 {
		sl.readyLocked(&sl.status)
	}
	sl.mu.Unlock()
	for _, s := range sl.st.rotatedLocked() {
		if sd := sl.attach(s); sd != nil {
			s.mu.Lock()
			sd.announceLocked()
			s.mu.Unlock()
		}
	}
	return nil
}

// attach puts the session on this link, with a new sender in place of any it had, and
// returns that, or nil before the welcome, which will do so. A session of which nothing was
// ever sent need not wait for an ack: its first batch opens it (rule 5). The Streamer's lock
// is held, so that the session is not forgotten, or put on another link, meanwhile.
func (sl *streamerLink) attach(s *Session) *sender {
	sl.mu.Lock()
	id, window := sl.id, sl.window
	sl.mu.Unlock()
	if id == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sd := &sender{s: s, link: sl, id: id, sendCursor: sendCursor{
		window: window, firstBytes: sl.st.sizes.first, implicitOpen: s.maxSentInEpoch == 0,
	}}
	sd.task.Source, sd.task.Written = sd.next, sd.written
	s.sender = sd
	s.wakeSenderLocked()
	return sd
}

// acks applies an ack, and those of further sessions that came with it. One that is refused
// does not keep the others from being applied. Of the refusals the last is returned, which
// Link.handle answers, and the others are answered here.
func (sl *streamerLink) acks(now time.Time, p *AckBatchPayload) *ProtocolError {
	if p.ViewerID != "" { // a viewer's, which frees nothing
		sl.st.stalePayloads.Add(1)
		return nil
	}
	last := sl.ack(now, p.first())
	for _, a := range p.Acks {
		if err := sl.ack(now, a); err != nil {
			if last != nil {
				sl.refuse(now, last)
			}
			last = err
		}
	}
	return last
}

// ack hands an ack to the session's sender. One of another epoch or for a session that is
// not on this link is stale (rule 6).
func (sl *streamerLink) ack(now time.Time, p SessionAck) *ProtocolError {
	s := sl.st.lookup(p.SessionID)
	if s == nil {
		return refusal(CodeUnknownSession, p.SessionID, "ack of an unknown session")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sd := s.sender
	if sd == nil || sd.link != sl || p.Epoch != s.epoch {
		sl.st.stalePayloads.Add(1)
		return nil
	}
	return sd.applyAckLocked(now, p)
}

// refused handles an error payload (rule 11). One about a frame needs nothing: what the
// frame carried is sent again on the timer. The exception is data that was never checked,
// since the same frame would be refused each time. stale_link and what ends the link do not
// ask whether it is welcomed: they are what a hub says to a link that is not.
func (sl *streamerLink) refused(now time.Time, p *ErrorPayload) *ProtocolError {
	switch {
	case p.Code == CodeStaleLink:
		sl.hello.start()
	case p.endsLink():
		err := p.protocolError()
		err.fatal = true
		return err
	case !sl.isCurrent(""):
	case sl.st.cfg.TrustData && (p.Code == CodeMalformed || p.Code == CodeEventRejected) && sl.recheckData():
	case p.SessionID != "" && p.RequestID == "":
		if p.Code == CodeForbidden && sl.st.heardForgotten(p.SessionID, p.Epoch) {
			return nil // it is another agent's
		}
		if s := sl.st.lookup(p.SessionID); s != nil {
			s.refused(now, sl, p)
		}
	}
	return nil
}

// refused hands an error about the session to its sender, if the session is on the link on
// which it came. An epoch other than the session's means another life; only stale_epoch
// names the greater one (rule 11).
func (s *Session) refused(now time.Time, sl *streamerLink, p *ErrorPayload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sd := s.sender
	if sd == nil || sd.link != sl || p.Code != CodeStaleEpoch && p.Epoch != "" && p.Epoch != s.epoch {
		s.st.stalePayloads.Add(1)
		return
	}
	sd.refusedLocked(now, p)
}

// endsLink reports whether an error says that the hub will never take this link.
func (p *ErrorPayload) endsLink() bool {
	return p.Code == CodeVersionUnsupported || p.Code == CodeWrongRole || p.Code == CodeSuperseded
}

// recheckData checks the data that was sent unchecked, since the hub could not read a frame,
// and reports whether any was wrong. The hub does not say which frame, and the event that it
// names may be one that the data of another passed for, so all sessions on the link are
// checked. However often it says so, nothing is checked twice: a hub can't keep the agent busy.
func (sl *streamerLink) recheckData() (wrong bool) {
	if !sl.hasUnchecked.Swap(false) {
		return false
	}
	for _, s := range sl.st.all() {
		s.mu.Lock()
		if sd := s.sender; sd != nil && sd.link == sl {
			wrong = sd.recheckDataLocked() || wrong
		}
		s.mu.Unlock()
	}
	return wrong
}
