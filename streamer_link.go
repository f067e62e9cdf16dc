package gvstream

import (
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
// or when the hub is silent. The sessions outlive it.
type streamerLink struct {
	*Link
	st *Streamer

	hello             *handshake  // awaits the welcome; see there
	status, heartbeat task        // of all sessions; each sender is a task of its own
	hasUnchecked      atomic.Bool // something was sent that recheckData has not looked at

	// Link's lock protects the fields below. A session's lock is taken before it, so a list
	// is taken out under it, and its senders are looked at without.
	id          string    // the hub's name for the link; empty before the welcome
	window      uint64    // from the welcome, as is id
	heartbeatAt time.Time // when to give the next sign of life
	heardAt     time.Time // when the hub last said something; zero: nobody has waited yet
	toAnnounce  []*sender // to be named in the next status: those with inStatus
	unacked     []*sender // that may have something unacknowledged: those with unacked
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
	al := &streamerLink{st: st}
	al.Link = newLink(al, &st.refusedPayloads)
	al.hello = newHandshake(al.Link, roleAgent)
	al.status = task{Source: al.nextStatus, Control: true}
	al.heartbeat = task{Source: al.nextHeartbeat, Control: true}
	st.mu.Lock()
	old, shut := st.link, st.shut.Load()
	if !shut {
		st.link = al
	}
	st.mu.Unlock()
	if shut {
		al.fail(now, ErrClosed)
		return al
	}
	if old != nil {
		old.fail(now, ErrSuperseded)
	}
	al.hello.start()
	al.schedule(&al.heartbeat, now)
	return al
}

// welcomed reports whether the hub has named the link.
func (al *streamerLink) welcomed() bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	return al.id != ""
}

// detach takes the sessions off the dead link, and with them their senders. A session may
// be on a newer link already, which stays.
func (al *streamerLink) detach(time.Time) {
	al.st.mu.Lock()
	defer al.st.mu.Unlock()
	if al.st.link == al {
		al.st.link = nil
	}
	for _, s := range al.st.sessions {
		s.mu.Lock()
		if s.sender != nil && s.sender.link == al {
			s.sender = nil
		}
		s.mu.Unlock()
	}
}

// nextStatus names the listed sessions, at most 256 a payload (rules 5 and 9). The list is
// read without its lock, so that a session may be stopped or off the link meanwhile; those
// are left out, and if none is left of a payload, the next ones are tried.
func (al *streamerLink) nextStatus(now time.Time) Payload {
	for {
		al.mu.Lock()
		n := min(len(al.toAnnounce), maxStatus)
		batch := al.toAnnounce[:n:n]
		if al.toAnnounce = al.toAnnounce[n:]; len(al.toAnnounce) == 0 {
			al.toAnnounce = nil // an empty slice would keep the array alive
		}
		p := &StatusPayload{Link: al.id, More: len(al.toAnnounce) > 0}
		al.mu.Unlock()
		for _, a := range batch {
			if s, ok := a.describe(now); ok {
				p.Sessions = append(p.Sessions, s)
			}
		}
		if n == 0 {
			return nil
		}
		if len(p.Sessions) > 0 {
			return p
		}
	}
}

// nextHeartbeat gives a sign of life: a status of the sessions that have something
// unacknowledged, which it leaves to the status task, or an empty one (rule 9). It ends a
// link that has been silent. Before the welcome there is no link id to put into a status,
// but the silence counts. A heartbeat that is asked too early only schedules itself again.
func (al *streamerLink) nextHeartbeat(now time.Time) Payload {
	al.mu.Lock()
	id, due := al.id, !now.Before(al.heartbeatAt)
	if due {
		al.heartbeatAt = now.Add(heartbeatEvery)
	}
	al.scheduleLocked(&al.heartbeat, al.heartbeatAt)
	al.mu.Unlock()
	if !due {
		return nil
	}
	if al.silent(now) {
		al.fail(now, ErrSilent)
		return nil
	}
	al.st.expire(now)
	if id == "" {
		return nil
	}
	if al.announceUnacked() {
		return nil
	}
	return &StatusPayload{Link: id}
}

// announceUnacked lists the sessions that have something unacknowledged for the next
// status, and reports whether there are any. It looks only at those that have been asked
// for a batch since they were last found idle: idle sessions cost it nothing, however many
// there are. While it holds the list, senders may append to a new one; at the end the two
// are joined.
func (al *streamerLink) announceUnacked() bool {
	al.mu.Lock()
	as := al.unacked
	al.unacked = nil
	al.mu.Unlock()
	as = slices.DeleteFunc(as, func(a *sender) bool {
		s := a.s
		s.mu.Lock()
		defer s.mu.Unlock()
		if a.unacked = s.sender == a && s.acked < s.log.head && s.stopped == nil; a.unacked {
			a.announceLocked()
		}
		return !a.unacked
	})
	al.mu.Lock()
	al.unacked = append(as, al.unacked...)
	al.mu.Unlock()
	return len(as) > 0
}

// silent reports whether the hub has said nothing for so long that it must be gone. The
// heartbeat asks, and so does Run, which still can while send is stuck.
func (al *streamerLink) silent(now time.Time) bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	if al.heardAt.IsZero() { // the silence counts from the first hello
		al.heardAt = now
	}
	return now.Sub(al.heardAt) >= maxSilence
}

// handle applies a payload from the hub. It never waits: acks have to be read while batches
// are written, or the two sides could wait for each other. A status serves only as a sign
// of life here.
func (al *streamerLink) handle(_ context.Context, now time.Time, p Payload) error {
	var err *ProtocolError
	switch p := p.(type) {
	case *WelcomePayload:
		err = al.welcome(now, p)
	case *StatusPayload:
		al.heard(now, p.Link)
	case *AckBatchPayload:
		if al.heard(now, p.Link) {
			err = al.ack(now, p)
		}
	case *ReplayRequestPayload:
		if al.heard(now, "") {
			err = al.replay(p)
		}
	case *ErrorPayload:
		err = al.refused(now, p)
	default:
		err = &ProtocolError{Code: codeUnexpected, Message: "an agent takes no " + p.payloadType()}
	}
	return asError(err)
}

// heard records that a payload arrived and reports whether it belongs to this link: one of
// an earlier link id, or one that comes before the welcome, is stale and not even a sign of
// life (rule 3). An empty id stands for a payload that carries none.
func (al *streamerLink) heard(now time.Time, link string) bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	if al.id == "" || link != "" && link != al.id {
		al.st.stalePayloads.Add(1)
		return false
	}
	al.heardAt = now
	return true
}

// welcome opens the link: every session is attached and announced (rules 3 and 5). Only a
// welcome that was asked for is obeyed, and one that repeats the link's id changes nothing:
// to begin afresh on either would send everything again. Another id means that the hub
// knows nothing of what was sent under the first, so all tasks and lists of that go.
//
// The Streamer's lock is held throughout, so that a session created or renewed meanwhile
// waits, and is then attached by its creator: see create.
func (al *streamerLink) welcome(now time.Time, p *WelcomePayload) *ProtocolError {
	if p.V != version {
		return &ProtocolError{Code: codeVersion, Message: "welcome of another version", fatal: true}
	}
	al.st.mu.Lock()
	defer al.st.mu.Unlock()
	al.mu.Lock()
	if al.st.link != al || !al.hello.acceptWelcomeLocked() {
		al.mu.Unlock()
		al.st.stalePayloads.Add(1)
		return nil
	}
	al.heardAt = now
	if al.id == p.Link { // the same welcome again: nothing was lost
		al.mu.Unlock()
		return nil
	}
	al.tasks.Clear() // nothing goes on under another link id
	al.id, al.window = p.Link, uint64(p.Window)
	al.heartbeatAt = now.Add(heartbeatEvery)
	al.scheduleLocked(&al.heartbeat, al.heartbeatAt)
	al.toAnnounce, al.unacked = nil, nil
	al.mu.Unlock()
	sessions := slices.Collect(maps.Values(al.st.sessions))
	sortSessions(sessions)
	for _, s := range sessions {
		if a := al.attach(s); a != nil {
			s.mu.Lock()
			a.announceLocked()
			s.mu.Unlock()
		}
	}
	return nil
}

// attach puts the session on this link, with a new sender in place of any it had, and
// returns that, or nil before the welcome, which will do so. A session of which nothing was
// ever sent need not wait for an ack: its first batch opens it (rule 5). The Streamer's lock
// is held, so that the session is not forgotten, or put on another link, meanwhile.
func (al *streamerLink) attach(s *Session) *sender {
	al.mu.Lock()
	id, window := al.id, al.window
	al.mu.Unlock()
	if id == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &sender{s: s, link: al, id: id, sendCursor: sendCursor{window: window, implicitOpen: s.maxSentInEpoch == 0}}
	a.task.Source = a.next
	s.sender = a
	s.wakeSenderLocked()
	return a
}

// ack hands an ack to the session's sender. One of another epoch or for a session that is
// not on this link is stale, and one with a viewer's id is that viewer's progress (rule 6).
func (al *streamerLink) ack(now time.Time, p *AckBatchPayload) *ProtocolError {
	s := al.st.lookup(p.SessionID)
	if s == nil {
		return refusal(codeUnknownSession, p.SessionID, "ack of an unknown session")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.sender
	switch {
	case a == nil || a.link != al || p.Epoch != s.epoch:
		al.st.stalePayloads.Add(1)
		return nil
	case p.ViewerID != "":
		s.noteProgressLocked(p.ViewerID, p.UpToSeq)
		return nil
	}
	return a.applyAckLocked(now, p)
}

// refused handles an error payload (rule 11). One about a frame needs nothing: what the
// frame carried is sent again on the timer. The exception is data that was never checked,
// since the same frame would be refused each time. stale_link and version_unsupported do
// not ask whether the link is welcomed: they are what a hub says to a link that is not.
func (al *streamerLink) refused(now time.Time, p *ErrorPayload) *ProtocolError {
	switch {
	case p.Code == codeStaleLink:
		al.hello.start()
	case p.Code == codeVersion:
		err := p.protocolError()
		err.fatal = true
		return err
	case !al.heard(now, ""):
	case p.Code == codeMalformed && al.st.cfg.TrustData:
		al.recheckData()
	case p.SessionID != "" && p.RequestID == "":
		if s := al.st.lookup(p.SessionID); s != nil {
			s.refused(now, al, p)
		}
	}
	return nil
}

// refused hands an error about the session to its sender, if the session is on the link on
// which it came. An epoch other than the session's means another life; only stale_epoch
// names the greater one (rule 11).
func (s *Session) refused(now time.Time, al *streamerLink, p *ErrorPayload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.sender
	if a == nil || a.link != al || p.Code != codeStaleEpoch && p.Epoch != "" && p.Epoch != s.epoch {
		s.st.stalePayloads.Add(1)
		return
	}
	a.refusedLocked(now, p)
}

// refusesEvent reports whether an error is about one event of its session.
func (p *ErrorPayload) refusesEvent() bool {
	return p.Seq != 0 && (p.Code == codeEventRejected || p.Code == codeEventTooLarge)
}

// recheckData checks the data that was sent unchecked, since the hub could not read a frame.
// The hub does not say which, so all sessions on the link are checked. However often it
// says malformed, nothing is checked twice, so that a hub can't keep the agent busy.
func (al *streamerLink) recheckData() {
	if !al.hasUnchecked.Swap(false) {
		return
	}
	for _, s := range al.st.all() {
		s.mu.Lock()
		if a := s.sender; a != nil && a.link == al {
			a.recheckDataLocked()
		}
		s.mu.Unlock()
	}
}
