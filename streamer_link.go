package gvstream

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// An agentLink is a Streamer's half of one connection to the hub.
type agentLink struct {
	*Link
	st *Streamer

	hello        *greeter
	status, beat task
	unvetted     atomic.Bool // something was sent that vet has not looked at

	// Link's lock protects the fields below.
	id      string // the hub's name of the link; empty before the welcome
	window  uint64
	beatAt  time.Time // when to give the next sign of life
	heardAt time.Time
	list    []*attachment // to be named in the next status
	unacked []*attachment // that may have something unacknowledged
}

// Connect makes the link of a new connection to the hub, and supersedes the one
// before. It does not block. On a closed Streamer the link is dead: its calls
// return ErrClosed.
func (st *Streamer) Connect() *Link { return st.connect(time.Now()).Link }

func (st *Streamer) connect(now time.Time) *agentLink {
	al := &agentLink{st: st}
	al.Link = newLink(al, &st.refusedPayloads)
	al.hello = newGreeter(al.Link, roleAgent)
	al.status = task{Source: al.takeStatus, Control: true}
	al.beat = task{Source: al.takeBeat, Control: true}
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
	al.schedule(&al.beat, now)
	return al
}

func (al *agentLink) welcomed() bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	return al.id != ""
}

func (al *agentLink) detach(time.Time) {
	al.st.mu.Lock()
	defer al.st.mu.Unlock()
	if al.st.link == al {
		al.st.link = nil
	}
	for _, s := range al.st.sessions {
		s.mu.Lock()
		if s.on != nil && s.on.l == al {
			s.on = nil
		}
		s.mu.Unlock()
	}
}

// takeStatus names the listed sessions, at most 256 a payload (rules 5 and 9).
func (al *agentLink) takeStatus(now time.Time) Payload {
	for {
		al.mu.Lock()
		n := min(len(al.list), maxStatus)
		batch := al.list[:n:n]
		if al.list = al.list[n:]; len(al.list) == 0 {
			al.list = nil // a slice of none still holds them all
		}
		p := &StatusPayload{Link: al.id, More: len(al.list) > 0}
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

// takeBeat gives a sign of life: a status of the sessions that have something
// unacknowledged, or an empty one (rule 9). It ends a link that has been silent.
func (al *agentLink) takeBeat(now time.Time) Payload {
	al.mu.Lock()
	id, due := al.id, !now.Before(al.beatAt)
	if due {
		al.beatAt = now.Add(heartbeat)
	}
	al.scheduleLocked(&al.beat, al.beatAt)
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
func (al *agentLink) announceUnacked() bool {
	al.mu.Lock()
	as := al.unacked
	al.unacked = nil
	al.mu.Unlock()
	as = slices.DeleteFunc(as, func(a *attachment) bool {
		s := a.s
		s.mu.Lock()
		defer s.mu.Unlock()
		if a.unacked = s.on == a && s.acked < s.log.head && s.stopped == nil; a.unacked {
			a.announce()
		}
		return !a.unacked
	})
	al.mu.Lock()
	al.unacked = append(as, al.unacked...)
	al.mu.Unlock()
	return len(as) > 0
}

// noteUnacked has the next sign of life name the session, if it is not acknowledged
// until then. The session's lock is held.
func (a *attachment) noteUnacked() {
	if a.unacked || a.s.acked >= a.s.log.head {
		return
	}
	a.unacked = true
	a.l.mu.Lock()
	a.l.unacked = append(a.l.unacked, a)
	a.l.mu.Unlock()
}

// silent reports whether the hub has said nothing for so long that it must be gone.
func (al *agentLink) silent(now time.Time) bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	if al.heardAt.IsZero() { // it counts from the first hello
		al.heardAt = now
	}
	return now.Sub(al.heardAt) >= maxSilence
}

func (al *agentLink) handle(_ context.Context, now time.Time, p Payload) error {
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
	return plain(err)
}

// heard takes note of a frame and reports whether it is one of this link. An
// empty id stands for a frame that does not say.
func (al *agentLink) heard(now time.Time, link string) bool {
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
func (al *agentLink) welcome(now time.Time, p *WelcomePayload) *ProtocolError {
	if p.V != version {
		return &ProtocolError{Code: codeVersion, Message: "welcome of another version", fatal: true}
	}
	al.st.mu.Lock()
	defer al.st.mu.Unlock()
	al.mu.Lock()
	if al.st.link != al || !al.hello.welcomedLocked() {
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
	al.beatAt = now.Add(heartbeat)
	al.scheduleLocked(&al.beat, al.beatAt)
	al.list, al.unacked = nil, nil
	al.mu.Unlock()
	sessions := slices.Collect(maps.Values(al.st.sessions))
	sortSessions(sessions)
	for _, s := range sessions {
		if a := al.attach(s); a != nil {
			s.mu.Lock()
			a.announce()
			s.mu.Unlock()
		}
	}
	return nil
}

// attach begins the session's life on this link, once it is welcomed. The
// Streamer's lock is held.
func (al *agentLink) attach(s *Session) *attachment {
	al.mu.Lock()
	id, window := al.id, al.window
	al.mu.Unlock()
	if id == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &attachment{s: s, l: al, id: id, sendCursor: sendCursor{window: window, pioneer: s.maxSent == 0}}
	a.task.Source = a.take
	s.on = a
	s.poke()
	return a
}

func (al *agentLink) ack(now time.Time, p *AckBatchPayload) *ProtocolError {
	s := al.st.lookup(p.SessionID)
	if s == nil {
		return refusal(codeUnknownSession, p.SessionID, "ack of an unknown session")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.on
	switch {
	case a == nil || a.l != al || p.Epoch != s.epoch:
		al.st.stalePayloads.Add(1)
		return nil
	case p.ViewerID != "":
		s.noteProgress(p.ViewerID, p.UpToSeq)
		return nil
	}
	return a.applyAck(now, p)
}

const maxProgress = 100 // viewers whose progress a session notes

func (s *Session) noteProgress(viewerID string, seq uint64) {
	if _, ok := s.progress[viewerID]; !ok && len(s.progress) >= maxProgress || seq > s.log.head {
		return
	}
	s.begin()
	if s.progress == nil {
		s.progress = make(map[string]uint64)
	}
	s.progress[viewerID] = seq
}

// refused deals with an error payload (rule 11). One about a frame needs nothing: what
// the frame carried is sent again on the timer.
func (al *agentLink) refused(now time.Time, p *ErrorPayload) *ProtocolError {
	switch {
	case p.Code == codeStaleLink:
		al.hello.start()
	case p.Code == codeVersion:
		err := p.protocolError()
		err.fatal = true
		return err
	case !al.heard(now, ""):
	case p.Code == codeMalformed && al.st.cfg.TrustData:
		al.vet()
	case p.SessionID != "" && p.RequestID == "":
		if s := al.st.lookup(p.SessionID); s != nil {
			s.refused(now, al, p)
		}
	}
	return nil
}

// refused deals with an error about the session that came on a link.
func (s *Session) refused(now time.Time, al *agentLink, p *ErrorPayload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.on
	if a == nil || a.l != al || p.Code != codeStaleEpoch && p.Epoch != "" && p.Epoch != s.epoch {
		s.st.stalePayloads.Add(1)
		return
	}
	a.refused(now, p)
}

// refused deals with an error about the session on its link.
func (a *attachment) refused(now time.Time, p *ErrorPayload) {
	s := a.s
	a.heard()
	switch {
	case p.Code == codeStaleEpoch && p.Epoch <= s.epoch: // news of before a Renew
		s.st.stalePayloads.Add(1)
	case p.Code == codeUnknownSession:
		if a.reopen() {
			a.announce()
		}
	case p.refusesEvent():
		a.reject(p.Seq)
	case p.Retryable:
		a.pause(now)
		a.scheduleTick()
	default:
		s.stopped = p.protocolError()
		s.changed.broadcast()
	}
}

// refusesEvent reports whether an error is about one event of its session.
func (p *ErrorPayload) refusesEvent() bool {
	return p.Seq != 0 && (p.Code == codeEventRejected || p.Code == codeEventTooLarge)
}

// An attachment is one session on one link: the state that ends with the link.
// The session's lock protects it.
type attachment struct {
	task // sends the next batch
	sendCursor
	s *Session
	l *agentLink

	id      string // of the link
	poked   bool   // take will be called, and that has not begun yet
	vetted  uint64 // the data of what was sent up to it has been checked
	listed  bool   // in the link's list for the next status
	unacked bool   // in the link's list for the next sign of life

	replays []*replay
}

// announce lists the session for the next status.
func (a *attachment) announce() {
	if a.listed {
		return
	}
	a.listed = true
	a.l.mu.Lock()
	a.l.list = append(a.l.list, a)
	a.l.readyLocked(&a.l.status)
	a.l.mu.Unlock()
}

// describe is the session's place in a status. While it is unopened, its timer
// says it again (rule 5).
func (a *attachment) describe(now time.Time) (SessionStatus, bool) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	a.listed = false
	if s.on != a || s.stopped != nil {
		return SessionStatus{}, false
	}
	a.announced(now)
	a.scheduleTick()
	return SessionStatus{
		SessionID: s.id, Epoch: s.epoch, FirstSeq: s.log.first(), HeadSeq: s.log.head,
		AckSeq: s.acked, Ended: s.hasEnded,
	}, true
}

// take sends the next batch of the session, if it may send (rule 7).
func (a *attachment) take(now time.Time) Payload {
	s := a.s
	s.mu.Lock()
	a.poked = false
	if s.on != a || s.stopped != nil {
		s.mu.Unlock()
		return nil
	}
	switch a.tick(now, s.acked, s.log.head) {
	case giveUp:
		s.mu.Unlock()
		a.l.fail(now, ErrSilent)
		return nil
	case announceAgain:
		a.announce()
	}
	a.noteUnacked()
	p := a.batch(now)
	a.scheduleTick()
	s.mu.Unlock()
	return p
}

// batch makes the next batch, unless there is nothing more to send, or nothing that the
// window allows.
func (a *attachment) batch(now time.Time) Payload {
	s := a.s
	if !a.maySend() {
		return nil
	}
	limit := a.eventsUntil(s.acked)
	// A copy, some ten microseconds at the most, so that publishing needs no new
	// memory for what was sent.
	p := s.log.read(span{a.sent, s.log.head, limit, s.st.sizes.batch, pageBytes, pageBytes})
	if p.last == a.sent {
		return nil
	}
	if p.last > a.top {
		a.l.unvetted.Store(true)
	}
	a.advance(now, p.last, s.acked)
	s.maxSent = max(s.maxSent, p.last)
	p.checked = !s.st.cfg.TrustData
	b := eventBatches.Get().(*EventBatchPayload)
	*b = EventBatchPayload{
		SessionID: s.id, Epoch: s.epoch, Link: a.id, FirstSeq: p.first, LastSeq: p.last, HeadSeq: s.log.head,
		Gaps: p.gaps, encoded: p.seal(),
	}
	return b
}

// scheduleTick has take called when there is something to do for the time.
func (a *attachment) scheduleTick() {
	if at := a.nextTick(); !at.IsZero() {
		a.l.schedule(&a.task, at)
	}
}

// applyAck applies the hub's ack (rule 6).
func (a *attachment) applyAck(now time.Time, p *AckBatchPayload) *ProtocolError {
	s := a.s
	switch a.ack(now, p.UpToSeq, p.Nack, s.acked, s.maxSent) {
	case ackBeyond:
		return &ProtocolError{
			Code: codeAckBeyondSent, SessionID: s.id, Epoch: s.epoch, Seq: a.limit(s.maxSent),
			Message: "ack beyond what was sent", fatal: true,
		}
	case ackStale:
		s.st.stalePayloads.Add(1)
		return nil
	}
	if p.UpToSeq < s.acked {
		s.moveBack(p.UpToSeq)
	}
	s.free(now, p.UpToSeq)
	a.l.ready(&a.task)
	return nil
}

// vet checks the data that was sent unchecked, since the hub could not read a frame:
// once, however often the hub says so.
func (al *agentLink) vet() {
	if !al.unvetted.Swap(false) {
		return
	}
	for _, s := range al.st.all() {
		s.mu.Lock()
		if a := s.on; a != nil && a.l == al {
			a.vet()
		}
		s.mu.Unlock()
	}
}

// vet turns the sent events whose data is wrong into gaps.
func (a *attachment) vet() {
	s := a.s
	for seq := max(a.vetted, s.acked); seq < a.top; {
		var found bool
		if seq, found = s.log.unreadable(seq, a.top); !found {
			break
		}
		a.reject(seq)
	}
	a.vetted = max(a.vetted, a.top)
}

// reject turns an event that the hub refuses into a gap (rule 11).
func (a *attachment) reject(seq uint64) {
	s := a.s
	if seq <= s.acked || seq > a.top {
		return
	}
	if !s.lose(seq, ReasonRejected) {
		return // refused before
	}
	s.changed.broadcast()
	if s.hasEnded {
		a.announce() // the end may lie in the gap
	}
	a.resend(s.acked) // what came before may not have been accepted with it
	a.l.ready(&a.task)
}

// A replay answers one request, a page at a time and in turn with everything else.
type replay struct {
	task
	replayCursor
	a     *attachment
	req   *ReplayRequestPayload
	epoch string
	done  bool // the last page was sent, or no more is wanted
}

// replay begins to answer a request, or says why it does not.
func (al *agentLink) replay(p *ReplayRequestPayload) *ProtocolError {
	s := al.st.lookup(p.SessionID)
	if s == nil {
		return about(p, refusal(codeUnknownSession, p.SessionID, "replay of an unknown session"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.on
	if a == nil || a.l != al {
		al.st.stalePayloads.Add(1)
		return nil
	}
	if err := a.replay(p); err != nil {
		return about(p, err)
	}
	return nil
}

// about says which request an error answers.
func about(p *ReplayRequestPayload, err *ProtocolError) *ProtocolError {
	err.RequestID, err.ViewerID = p.RequestID, p.ViewerID
	return err
}

func (a *attachment) replay(p *ReplayRequestPayload) *ProtocolError {
	s := a.s
	switch {
	case p.Epoch != "" && p.Epoch != s.epoch:
		err := refusal(codeStaleEpoch, s.id, "replay of another epoch")
		err.Epoch = s.epoch
		return err
	case p.AfterSeq > s.log.head:
		err := refusal(codeReplayAhead, s.id, "replay after %d, but the head is %d", p.AfterSeq, s.log.head)
		err.Epoch, err.Seq = s.epoch, s.log.head
		return err
	case a.repeats(p):
		return nil
	}
	if n := len(a.replays); n >= s.st.cfg.MaxReplays {
		err := refusal(codeReplayBusy, s.id, "%d replays are running", n)
		err.Retryable = n > 0
		return err
	}
	r := &replay{a: a, req: p, epoch: s.epoch, replayCursor: newReplayCursor(p, s.log.head)}
	r.task.Source = r.take
	a.replays = append(a.replays, r)
	a.l.ready(&r.task)
	return nil
}

// repeats reports whether a request is being answered already. If not, it replaces the
// one that its viewer has open: the viewer has moved on.
func (a *attachment) repeats(p *ReplayRequestPayload) bool {
	for _, r := range a.replays {
		if r.req.RequestID == p.RequestID {
			return true
		}
		if p.ViewerID != "" && r.req.ViewerID == p.ViewerID {
			a.drop(r)
			return false
		}
	}
	return false
}

// drop ends a replay.
func (a *attachment) drop(r *replay) {
	r.done = true
	a.l.forget(&r.task)
	i := slices.Index(a.replays, r)
	a.replays = slices.Delete(a.replays, i, i+1)
}

func (r *replay) take(time.Time) Payload {
	s := r.a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.done || s.on != r.a || s.epoch != r.epoch {
		return nil
	}
	p := s.log.read(r.next(s.st.sizes.page))
	done := r.advance(p.last, len(p.slots), p.bytes)
	if done {
		r.a.drop(r)
	}
	p.checked = !s.st.cfg.TrustData
	b := replayBatches.Get().(*ReplayBatchPayload)
	*b = ReplayBatchPayload{
		SessionID: s.id, ViewerID: r.req.ViewerID, RequestID: r.req.RequestID, Epoch: r.epoch,
		FirstSeq: p.first, LastSeq: p.last, UntilSeq: r.until, AvailableFrom: s.log.first(), Done: done,
		Gaps: p.gaps, encoded: p.seal(),
	}
	return b
}
