package gvstream

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// A streamerLink is a Streamer's half of one connection to the hub.
type streamerLink struct {
	*Link
	st *Streamer

	hello             *handshake
	status, heartbeat task
	hasUnchecked      atomic.Bool // something was sent that vet has not looked at

	// Link's lock protects the fields below.
	id          string // the hub's name of the link; empty before the welcome
	window      uint64
	heartbeatAt time.Time // when to give the next sign of life
	heardAt     time.Time
	toAnnounce  []*sender // to be named in the next status
	unacked     []*sender // that may have something unacknowledged
}

// Connect makes the link of a new connection to the hub, and supersedes the one
// before. It does not block. On a closed Streamer the link is dead: its calls
// return ErrClosed.
func (st *Streamer) Connect() *Link { return st.connect(time.Now()).Link }

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

func (al *streamerLink) welcomed() bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	return al.id != ""
}

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

// nextStatus names the listed sessions, at most 256 a payload (rules 5 and 9).
func (al *streamerLink) nextStatus(now time.Time) Payload {
	for {
		al.mu.Lock()
		n := min(len(al.toAnnounce), maxStatus)
		batch := al.toAnnounce[:n:n]
		if al.toAnnounce = al.toAnnounce[n:]; len(al.toAnnounce) == 0 {
			al.toAnnounce = nil // a slice of none still holds them all
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
// unacknowledged, or an empty one (rule 9). It ends a link that has been silent.
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

// announceUnacked lists the sessions that have something unacknowledged, and
// reports whether there are any. Sessions that have not cost it nothing.
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

// silent reports whether the hub has said nothing for so long that it must be gone.
func (al *streamerLink) silent(now time.Time) bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	if al.heardAt.IsZero() { // it counts from the first hello
		al.heardAt = now
	}
	return now.Sub(al.heardAt) >= maxSilence
}

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

// heard takes note of a frame and reports whether it is one of this link. An
// empty id stands for a frame that does not say.
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

// welcome opens the link: every session is announced (rules 3 and 5).
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
	if al.id == p.Link { // welcomed once more: nothing was lost
		al.mu.Unlock()
		return nil
	}
	al.tasks.Clear() // nothing of another link id goes on
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

// attach begins the session's life on this link, once it is welcomed. The
// Streamer's lock is held.
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

// refused deals with an error payload (rule 11). One about a frame needs nothing: what
// the frame carried is sent again on the timer.
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

// refused deals with an error about the session that came on a link.
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

// recheckData checks the data that was sent unchecked, since the hub could not read a frame:
// once, however often the hub says so.
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
